// Buffers hold floats: beyond 0 to 1, below zero, precisely, with alpha, and what is not a number.
//! Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = vec4(1234.5678, -fragCoord.x / 3.0, 1e-20, fragCoord.x < 32.0 ? intBitsToFloat(0x7fc00000) : 1e30);
}
//! Image
//! iChannel0: Buffer A, linear, clamp
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec4 a = texelFetch(iChannel0, ivec2(fragCoord), 0);
    bool good = a.x == 1234.5678 && a.y == -fragCoord.x / 3.0 && a.z == 1e-20;
    good = good && (fragCoord.x < 32.0 ? isnan(a.w) : a.w == 1e30);
    vec4 between = texture(iChannel0, (floor(fragCoord) + vec2(1.0, 0.5)) / iResolution.xy);
    good = good && abs(between.y + min(floor(fragCoord.x) + 1.0, 63.5) / 3.0) < 0.01;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

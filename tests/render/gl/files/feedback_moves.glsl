// Neighbours of the last picture: a pattern that moves one pixel to the right and one upwards in each frame.
//! run-up: 90
//! Buffer A
//! iChannel0: Buffer A, nearest
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    ivec2 at = ivec2(fragCoord);
    if (iFrame == 0) fragColor = vec4(fragCoord, 0.0, 1.0);
    else fragColor = textureLod(iChannel0, (fragCoord - 1.0) / iResolution.xy, 0.0);
}
//! Image
//! iChannel0: Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 from = max(fragCoord - float(iFrame), 0.5);
    fragColor = texelFetch(iChannel0, ivec2(fragCoord), 0).xy == from ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

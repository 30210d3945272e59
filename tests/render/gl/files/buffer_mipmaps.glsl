// A buffer through mipmaps: the mean of a picture, as scenes use it for bloom and exposure.
//! run-up: 1
//! Buffer A
//! iChannel0: Buffer A, mipmap
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float last = textureLod(iChannel0, vec2(0.5), 20.0).x;
    fragColor = vec4(float(iFrame) + (int(fragCoord.x) % 2 == 0 ? 1.0 : -1.0), last, 0.0, 1.0);
}
//! Image
//! iChannel1: Buffer A, mipmap
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 uv = fragCoord / iResolution.xy;
    bool good = abs(textureLod(iChannel1, uv, 20.0).x - float(iFrame)) < 1e-3;
    good = good && textureSize(iChannel1, 1) == ivec2(32, 18) && texelFetch(iChannel1, ivec2(fragCoord) / 2, 1).x == float(iFrame);
    good = good && abs(texelFetch(iChannel1, ivec2(fragCoord), 0).y - float(max(iFrame - 1, 0))) < 1e-3;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

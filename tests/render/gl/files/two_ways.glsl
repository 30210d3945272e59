// One image in two channels, each read in its own way; the second image beside it.
//! iChannel0: image 1, nearest, repeat
//! iChannel1: image 1, linear, clamp
//! iChannel2: image 2, nearest
//! iChannel3: cover
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    ivec2 at = ivec2(fragCoord) % ivec2(39, 23);
    vec2 between = (vec2(at) + 1.0) / vec2(40.0, 24.0) - 1e-4;
    vec4 mean = vec4(0.0);
    for (int i = 0; i < 4; i++) mean += 0.25 * texelFetch(iChannel0, at + ivec2(i % 2, i / 2), 0);
    bool good = texture(iChannel0, between) == texelFetch(iChannel0, at, 0);
    good = good && distance(texture(iChannel1, between), mean) < 0.01;
    good = good && texture(iChannel0, vec2(1.01, 0.5)) == texelFetch(iChannel0, ivec2(0, 12), 0);
    good = good && texture(iChannel1, vec2(9.0, 0.5)).r == texelFetch(iChannel1, ivec2(39, 12), 0).r;
    good = good && iChannelResolution[2].xy == vec2(3.0, 2.0) && texture(iChannel2, vec2(0.1, 0.9)) == vec4(1.0, 0.0, 0.0, 1.0);
    good = good && texture(iChannel2, vec2(0.9, 0.1)).rgb == vec3(0.0, 0.0, 1.0);
    good = good && textureSize(iChannel3, 0) == ivec2(8);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

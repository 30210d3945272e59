// The other ways to read: with an offset, projected, and offsets of levels.
//! iChannel1: image 1, nearest, clamp
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    ivec2 at = ivec2(fragCoord) % ivec2(38, 22) + 1;
    vec2 size = vec2(textureSize(iChannel1, 0)), uv = (vec2(at) + 0.5) / size;
    vec4 here = texelFetch(iChannel1, at, 0), right = texelFetch(iChannel1, at + ivec2(1, -1), 0);
    bool good = texture(iChannel1, uv) == here && textureOffset(iChannel1, uv, ivec2(1, -1)) == right;
    good = good && texelFetchOffset(iChannel1, at, 0, ivec2(1, -1)) == right;
    good = good && textureLodOffset(iChannel1, uv, 0.0, ivec2(1, -1)) == right;
    good = good && textureProj(iChannel1, vec3(uv * 4.0, 4.0)) == here;
    good = good && textureProjLod(iChannel1, vec4(uv * 2.0, 9.0, 2.0), 0.0) == here;
    good = good && texture(iChannel1, vec2(-1.0, 2.0)) == texelFetch(iChannel1, ivec2(0, 23), 0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

// An image, right way up: 40 x 24, red 5 x column, green 9 x row from the top, blue 77, alpha 200.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = textureSize(iChannel1, 0) == ivec2(40, 24);
    ivec2 at = ivec2(fragCoord) % ivec2(40, 24);
    vec4 want = vec4(5 * at.x, 9 * (23 - at.y), 77, 200) / 255.0;
    good = good && distance(texelFetch(iChannel1, at, 0), want) < 1e-6;
    good = good && distance(textureLod(iChannel1, (vec2(at) + 0.5) / vec2(40, 24), 0.0), want) < 2e-3;
    good = good && texture(iChannel1, vec2(0.5, 0.95)).g < texture(iChannel1, vec2(0.5, 0.05)).g;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

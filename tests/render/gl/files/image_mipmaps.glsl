// Images have mipmaps and repeat. textureLod, bias and textureGrad choose among the levels.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 uv = fragCoord / iResolution.xy;
    bool good = textureSize(iChannel1, 1) == ivec2(20, 12) && textureSize(iChannel1, 5) == ivec2(1, 1);
    vec4 mean = vec4(97.5, 103.5, 77.0, 200.0) / 255.0;
    good = good && distance(textureLod(iChannel1, uv, 9.0), mean) < 0.06;
    good = good && distance(textureGrad(iChannel1, uv, vec2(8.0), vec2(8.0)), mean) < 0.06;
    good = good && distance(texture(iChannel1, uv, 16.0), mean) < 0.06;
    good = good && distance(textureGrad(iChannel1, uv, vec2(0.0), vec2(0.0)), textureLod(iChannel1, uv, 0.0)) < 1e-3;
    good = good && distance(textureLod(iChannel1, uv + vec2(3.0, -2.0), 0.0), textureLod(iChannel1, uv, 0.0)) < 5e-3;
    ivec2 half_ = ivec2(fragCoord) % ivec2(20, 12);
    vec4 four = vec4(0.0);
    for (int i = 0; i < 4; i++) four += 0.25 * texelFetch(iChannel1, 2 * half_ + ivec2(i % 2, i / 2), 0);
    good = good && distance(texelFetch(iChannel1, half_, 1), four) < 0.01;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

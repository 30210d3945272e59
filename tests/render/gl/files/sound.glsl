// The sound's texture: 512 x 2, the spectrum below, the wave above. The test gives (7 k, 13 k + 5) modulo 256.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = textureSize(iChannel0, 0) == ivec2(512, 2);
    for (int part = 0; part < 8; part++) {
        int k = int(fragCoord.x) + 64 * part;
        float x = (float(k) + 0.5) / 512.0, low = float(7 * k % 256) / 255.0, high = float((13 * k + 5) % 256) / 255.0;
        good = good && abs(texture(iChannel0, vec2(x, 0.25)).x - low) < 2e-3;
        good = good && abs(texture(iChannel0, vec2(x, 0.75)).x - high) < 2e-3;
        good = good && abs(texelFetch(iChannel0, ivec2(k, 0), 0).x - low) < 1e-6;
        good = good && abs(texelFetch(iChannel0, ivec2(k, 1), 0).x - high) < 1e-6;
    }
    good = good && texture(iChannel0, vec2(0.5)).yzw == vec3(0.0, 0.0, 1.0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

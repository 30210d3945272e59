// What Shadertoy does not have: how loud it is, beats, and 96 bands.
bool near(float a, float b) { return abs(a - b) < 1e-5; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = near(iLevel, 0.5) && near(iBeat, 0.25) && near(iEnergy, 0.5 * 8.0 / 30.0);
    for (int i = 0; i < 96; i++) good = good && near(iBands[i], float(i) / 95.0);
    good = good && near(iBands[int(fragCoord.x)], floor(fragCoord.x) / 95.0) && iBands.length() == 96;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

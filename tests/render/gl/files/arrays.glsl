// Arrays: constants, lengths, as arguments and results, of vectors, and any index.
const float WEIGHTS[5] = float[5](0.1, 0.2, 0.4, 0.2, 0.1);
const vec3 PALETTE[] = vec3[](vec3(1.0, 0.0, 0.0), vec3(0.0, 1.0, 0.0), vec3(0.0, 0.0, 1.0));

float[3] doubled(float values[3])
{
    for (int i = 0; i < values.length(); i++) values[i] *= 2.0;
    return values;
}

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float sum = 0.0;
    for (int i = 0; i < 5; i++) sum += WEIGHTS[i];
    int at = int(fragCoord.x) % 3;
    float own[3] = float[3](fragCoord.x, 2.0, 3.0), twice[3] = doubled(own);
    bool good = abs(sum - 1.0) < 1e-5 && PALETTE.length() == 3;
    good = good && own[0] == fragCoord.x && twice[0] == 2.0 * fragCoord.x && twice != own;
    good = good && twice[at] == 2.0 * own[at] && PALETTE[at][at] == 1.0 && PALETTE[at][(at + 1) % 3] == 0.0;
    mat3 m = mat3(1.0);
    m[at][at] = 5.0;
    good = good && m[0][0] + m[1][1] + m[2][2] == 7.0;
    fragColor = vec4(good ? PALETTE[1] : PALETTE[0], 1.0);
}

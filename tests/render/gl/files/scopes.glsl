// Scopes: globals that change, names that hide others, and values that are assigned within expressions.
float global = 2.0;
const int SIZE = 2 + 1;
int counts[SIZE];
vec2 p = vec2(1.0, 2.0) * 3.0;

float next() { return global++; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    for (int i = 0; i < SIZE; i++) counts[i] = 0;
    float a = next(), b = next();
    bool good = a == 2.0 && b == 3.0 && global == 4.0 && p == vec2(3.0, 6.0);
    { float global = 9.0; good = good && global == 9.0; for (int global = 0; global < 2; global++) counts[global]++; }
    good = good && global == 4.0 && counts[0] == 1 && counts[1] == 1;
    float c, d;
    c = d = fragCoord.x;
    d += c -= 1.0;
    good = good && c == fragCoord.x - 1.0 && d == 2.0 * fragCoord.x - 1.0 && (a = 5.0, a + 1.0) == 6.0;
    int i = 3, j = i++ + ++i;
    good = good && i == 5 && j == 8;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

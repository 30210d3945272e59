// Loops of every kind, with bounds that are known only while drawing.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    int n = int(fragCoord.x), sum = 0, odd = 0, down = n, steps = 0, pairs = 0;
    for (int i = 0; i <= n; ++i) sum += i;
    for (int i = 0; ; i++) { if (i > n) break; if (i % 2 == 0) continue; odd++; }
    while (down > 0) { down -= 3; if (down == 1) break; }
    do { steps++; } while (steps < n);
    for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) { if (j > i) break; pairs++; }
    bool good = sum == n * (n + 1) / 2 && odd == (n + 1) / 2 && steps == max(n, 1) && pairs == 10;
    good = good && down == (n % 3 == 1 && n > 1 ? 1 : n % 3 == 0 ? 0 : n % 3 - 3);
    float march = 0.0;
    for (int i = 0; i < 100; i++) { float far = fragCoord.y - march; if (far < 0.01) break; march += 0.5 * far; }
    good = good && abs(march - fragCoord.y) < 0.02;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

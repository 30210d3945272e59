// switch: falling through, default, a return within it; and conditions that are evaluated only where they must be.
int named(int n)
{
    int sum = 0;
    switch (n % 5) {
        case 0: return 100;
        case 1: sum += 1;
        case 2: sum += 10; break;
        case -3:
        default: { int more = 3; sum += more; }
    }
    return sum;
}

int calls = 0;
bool called(bool answer) { calls++; return answer; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    int n = int(fragCoord.x), want[5] = int[](100, 11, 10, 3, 3);
    bool good = named(n) == want[n % 5];
    bool either = called(n >= 0) || called(true), both = called(n < 0) && called(true);
    good = good && either && !both && calls == 2 && (either ^^ both);
    float shown = n % 2 == 0 ? 1.0 : n % 3 == 0 ? 2.0 : 3.0;
    good = good && shown == (n % 2 == 0 ? 1.0 : (n % 3 == 0 ? 2.0 : 3.0));
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

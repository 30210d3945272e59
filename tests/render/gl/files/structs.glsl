// Structs: nested, with arrays, as arguments and results, compared as a whole.
struct Ray { vec3 from, to; };
struct Hit { float distance; Ray ray; int parts[3]; };

const Ray AHEAD = Ray(vec3(0.0), vec3(0.0, 0.0, -1.0));

Hit hit(Ray ray, float far)
{
    return Hit(far, Ray(ray.from + far * ray.to, -ray.to), int[3](1, 2, int(far)));
}

void mark(inout Hit one) { one.parts[1] = 7; one.ray.to.x = 4.0; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    Hit first = hit(AHEAD, fragCoord.x), second = first;
    bool good = first == second && first.ray.from.z == -fragCoord.x && first.parts[2] == int(fragCoord.x);
    mark(second);
    good = good && first != second && first.parts[1] == 2 && second.parts[1] == 7 && second.ray.to == vec3(4.0, 0.0, 1.0);
    Hit[2] both = Hit[](first, second);
    good = good && both[int(fragCoord.y) % 2].parts[1] == (int(fragCoord.y) % 2 == 0 ? 2 : 7);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

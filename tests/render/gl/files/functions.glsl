// Functions: overloaded, declared before they are written, with in, out and inout, and results that are dropped.
float area(float side);
float area(vec2 sides) { return sides.x * sides.y; }
int area(ivec2 sides) { return sides.x * sides.y; }
float area(float side) { return area(vec2(side)); }

void split(in float value, out float whole, out float part) { whole = floor(value); part = value - whole; value = 0.0; }
void swap(inout vec2 a, inout vec2 b) { vec2 c = a; a = b; b = c; }
vec3 early(const vec3 v) { if (v.x > 10.0) return v; else if (v.y > 10.0) { return -v; } return vec3(0.0); }
float nothing(void) { return 0.0; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float whole, part, value = fragCoord.x;
    split(value, whole, part);
    bool good = value == fragCoord.x && part == 0.5 && whole + part == value;
    good = good && area(3.0) == 9.0 && area(ivec2(fragCoord)) == int(fragCoord.x) * int(fragCoord.y);
    vec2 a = fragCoord, b = vec2(-1.0);
    swap(a, b);
    good = good && a == vec2(-1.0) && b == fragCoord;
    swap(a, b), nothing();
    good = good && a == fragCoord;
    vec3 v = early(vec3(fragCoord, 1.0));
    good = good && v == (fragCoord.x > 10.0 ? 1.0 : fragCoord.y > 10.0 ? -1.0 : 0.0) * vec3(fragCoord, 1.0);
    fragCoord = vec2(0.0);
    fragColor = good && fragCoord.x == 0.0 ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

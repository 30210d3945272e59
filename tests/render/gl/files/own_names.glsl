// Names that a file may use for itself.
#define colour vec3(0.0, 1.0, 0.0)
#define main what
#define place fragCoord
#define out_ out
#define time iTime
#define mainImage mainImage_
#define clamp(x) (x)
float iBeat = 1.0;
int iLevel(int n) { return n + 1; }
float sin = 0.5, mix = 0.25, isnan = 0.125;
uint bits = 3u;
vec2 turn(vec2 p) { return p.yx; }
struct eye { float ahead; };
void mainImage(out_ vec4 shown, vec2 place)
{
    float buffer = 1.0, precise = 2.0, shared = 3.0, texture2 = 4.0, fma = 5.0;
    bool good = clamp(iBeat) == 1.0 && iLevel(1) == 2 && sin + mix + isnan == 0.875 && bits == 3u;
    good = good && turn(place) == place.yx && eye(2.0).ahead == precise && buffer + shared + texture2 + fma == 13.0;
    shown = vec4(good && time >= 0.0 ? colour : colour.gbr, 1.0);
}
#define vec4 nothing
#define void nothing

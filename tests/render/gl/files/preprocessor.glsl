// The preprocessor; __LINE__ is the file's own.
#define R iResolution
#define sq(x) ((x) * (x))
#define rot(a) mat2(cos(a), -sin(a), \
                    sin(a), cos(a))
#define LEVEL 2
#if LEVEL == 1
#error this is not compiled
#elif LEVEL >= 2 && !defined(NO_SUCH_NAME) && defined GL_ES
#define CHOSEN 1.0
#else
#define CHOSEN 0.0
#endif
#ifndef HW_PERFORMANCE
#define HW_PERFORMANCE 5
#endif
#undef LEVEL
#ifdef LEVEL
what is here is not read
#endif
#pragma optimize(on)
#

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = __LINE__ == 26 && __VERSION__ == 300 && CHOSEN == R.z && sq(fragCoord.x - 1.0) >= 0.0;
    good = good && HW_PERFORMANCE < 2 && abs(length(rot(fragCoord.x) * vec2(3.0, 4.0)) - 5.0) < 1e-4; /* two
    lines */ good = good && __LINE__ == 28; // a comment that goes on \
    good = false;
    good = good && __LINE__ == 30;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}
#define LONG /* a directive goes on
behind a comment */ 1.0
const float long_ = LONG;

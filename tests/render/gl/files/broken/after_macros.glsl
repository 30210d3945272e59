#define join(a, b) ((a) + (b))
#define TWO \
    2.0
float three = join(
    1.0,
    TWO
);

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = vec4(join(
        vec2(0.5),
        fragCoord), 0.0, 1.0);
    fragColor.x = wrong;
}

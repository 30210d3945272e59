// It takes one argument more.

void mainImage(out vec4 fragColor, in vec2 fragCoord, float more)
{
    fragColor = vec4(1.0);
}

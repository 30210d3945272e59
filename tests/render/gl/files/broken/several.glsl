void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float a = first;
    float b = second;
    float c = third;
    float d = fourth;
    fragColor = vec4(a + b + c + d);
}

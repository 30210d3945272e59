void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float bright = 1.0
    fragColor = vec4(bright);
}

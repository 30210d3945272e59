void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float bright = 2 * fragCoord.x;
    fragColor = vec4(bright);
}

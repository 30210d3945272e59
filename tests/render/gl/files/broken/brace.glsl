void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    if (fragCoord.x > 3.0) {
        fragColor = vec4(1.0);
}

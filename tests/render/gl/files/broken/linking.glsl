float noise(vec2 p);

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = vec4(noise(fragCoord));
}

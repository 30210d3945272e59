void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec3 ray = vec3(fragCoord, 1.0);
    fragColor = texture(iChannel1, ray);
}

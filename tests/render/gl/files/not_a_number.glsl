// Colours that are not numbers, or have no end, give a pixel that is defined; alpha is never shown.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float zero = iMouse.x, nan = fragCoord.y < 18.0 ? zero / zero : sqrt(-fragCoord.x);
    float huge = fragCoord.x < 32.0 ? 1.0 / zero : 1e38;
    fragColor = vec4(nan, huge, -huge, fragCoord.x < 16.0 ? nan : 0.0);
}

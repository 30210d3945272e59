uniform vec2 iResolution;
void mainImage(out vec4 fragColor, in vec2 fragCoord) { fragColor = vec4(fragCoord / iResolution, 0.0, 1.0); }

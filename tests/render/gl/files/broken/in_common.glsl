//! Common
float twice(float x) { return 2.0 * y; }
//! Image
void mainImage(out vec4 fragColor, in vec2 fragCoord) { fragColor = vec4(twice(0.5)); }

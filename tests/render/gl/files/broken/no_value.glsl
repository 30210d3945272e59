uniform float iTime;
uniform float speed;
void mainImage(out vec4 fragColor, in vec2 fragCoord) { fragColor = vec4(iTime * speed); }

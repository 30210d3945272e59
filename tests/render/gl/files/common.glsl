// What stands before the first part is in each of them, as Common is.
//! iChannel2: image 2, nearest, clamp
const vec3 GREEN = vec3(0.0, 1.0, 0.0);
//! Common
vec3 shown(bool good) { return good ? GREEN : vec3(1.0, 0.0, 0.0); }
vec4 corner() { return texture(iChannel2, vec2(0.0, 1.0)); }
float globally = 3.0;
//! Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    globally += fragCoord.x;
    fragColor = vec4(globally, corner().r, 0.0, 1.0);
}
//! Image
//! iChannel0: Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 a = texelFetch(iChannel0, ivec2(fragCoord), 0).xy;
    fragColor = vec4(shown(a == vec2(fragCoord.x + 3.0, 1.0) && globally == 3.0 && corner().g == 0.0), 1.0);
}

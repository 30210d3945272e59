//! Common
const float SPEED = 2.0;
//! Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = vec4(SPEED);
}
//! Image
//! iChannel0: Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    fragColor = texture(iChannel0, fragCoord) * SPEEED;
}

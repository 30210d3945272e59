// A buffer that reads its own last picture: it is black before the first frame.
//! run-up: 0.5 s
//! Buffer A
//! iChannel0: Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec4 last = texelFetch(iChannel0, ivec2(fragCoord), 0);
    fragColor = vec4(last.x + 1.0, iFrame == 0 ? dot(last, last) : last.y, fragCoord.x, 0.25);
}
//! Image
//! iChannel1: Buffer A
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec4 a = texelFetch(iChannel1, ivec2(fragCoord), 0);
    bool good = a == vec4(float(iFrame + 1), 0.0, fragCoord.x, 0.25) && iChannelResolution[1] == iResolution;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

// Four buffers: each reads those before it in this frame, and those after it in the frame before.
//! run-up: 8 frames
//! Common
#define N float(iFrame + 1)
//! Buffer A
//! iChannel3: Buffer D
void mainImage(out vec4 o, vec2 p) { o = vec4(N, texelFetch(iChannel3, ivec2(p), 0).x, 0, 0); }
//! Buffer B
//! iChannel0: Buffer A
void mainImage(out vec4 o, vec2 p) { o = texelFetch(iChannel0, ivec2(p), 0) + vec4(100, 0, 0, 0); }
//! buffer c
//! iChannel0: Buffer B
//! iChannel1: Buffer A
void mainImage(out vec4 o, vec2 p) { o = texelFetch(iChannel0, ivec2(p), 0) + texelFetch(iChannel1, ivec2(p), 0); }
//! BUFFER D
//! iChannel2: Buffer C
void mainImage(out vec4 o, vec2 p) { o = texelFetch(iChannel2, ivec2(p), 0) * 2.0; }
//! Image
//! iChannel0: Buffer A
//! iChannel1: Buffer B
//! iChannel2: Buffer C
//! iChannel3: Buffer D
void mainImage(out vec4 o, vec2 p)
{
    ivec2 at = ivec2(p);
    bool good = texelFetch(iChannel0, at, 0).x == N && texelFetch(iChannel1, at, 0).x == N + 100.0;
    good = good && texelFetch(iChannel2, at, 0).x == 2.0 * N + 100.0 && texelFetch(iChannel3, at, 0).x == 4.0 * N + 200.0;
    good = good && texelFetch(iChannel0, at, 0).y == (iFrame == 0 ? 0.0 : 4.0 * (N - 1.0) + 200.0);
    o = good ? vec4(0, 1, 0, 1) : vec4(1, 0, 0, 1);
}

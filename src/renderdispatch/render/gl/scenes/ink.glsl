// Ink: two inks that the music drips into water, where currents carry them about until they fade.
//
// Buffer A holds the ink, on at most 360 rows, so that it flows alike at all sizes. There are two glasses of it, with both
// inks each. Both get the same drops, but every six seconds one of them is emptied, in turns three seconds apart, while only
// the other one is shown: so nothing that is shown is older than six seconds, and a picture is right after so many.
//
// On Shadertoy, put these lines into Common:
//   #define iSwell 0.6
//   #define iBeat (fract(-2.0 * iTime) * fract(-2.0 * iTime))
//   #define iEnergy (0.6 * iTime)
//   const vec3 first = vec3(0.11, 0.25, 0.66), second = vec3(0.83, 0.13, 0.37), paper = vec3(0.95, 0.91, 0.86);
//   const float speed = 1.0, pulse = 0.6;

//! run-up: 6 s
//! Common

const float PI = 3.14159265;

// Six seconds in frames, or just less: never more than the run-up.
int life() { return 2 * max(int(3.0 * iFrameRate), 1); }

uint mixed(uint n) {
    n = (n ^ (n >> 16u)) * 0x7feb352du;
    n = (n ^ (n >> 15u)) * 0x846ca68bu;
    return n ^ (n >> 16u);
}

// From 1 to -1 and back in each whole number, like a cosine.
float wave(float x) {
    float t = abs(fract(x) - 0.5) * 4.0 - 1.0;
    return t * (1.5 - 0.5 * t * t);
}

vec3 linear(vec3 c) { return c * c * (0.3 * c + 0.7); }

// The size of the ink's own picture, in its pixels.
vec2 glass() { return max(floor(iResolution.xy * min(1.0, 360.0 / min(iResolution.x, iResolution.y))), 2.0); }

//! Buffer A
//! iChannel0: sound
//! iChannel1: Buffer A, linear, clamp

// What `wave` rises by.
float slope(float x) {
    float f = fract(x) - 0.5, t = abs(f) * 4.0 - 1.0;
    return sign(f) * (6.0 - 6.0 * t * t);
}

// The current at a place, in heights of the glass a second: the curl of a sum of waves, so that no ink is squeezed.
vec2 current(vec2 p, float time, int waves) {
    vec2 sum = vec2(0.0);
    vec2 d[5] = vec2[5](vec2(0.83, 0.31), vec2(-0.42, 0.95), vec2(1.51, -1.27), vec2(-1.93, -0.88), vec2(2.9, 1.7));
    float strong[5] = float[5](0.060, 0.055, 0.026, 0.024, 0.011);
    for (int n = 0; n < waves; n++) {
        float bent = 0.21 * wave(dot(p, d[n].yx) * 0.7 + 0.031 * time * float(n + 1));
        sum += strong[n] * vec2(-d[n].y, d[n].x) * slope(dot(p, d[n]) + bent + time * (0.020 + 0.011 * float(n)) * (n % 2 == 0 ? 1.0 : -1.0));
    }
    return sum;
}

void mainImage(out vec4 colour, in vec2 place) {
    vec2 size = glass(), shape = iResolution.xy / min(iResolution.x, iResolution.y);
    vec2 p = (place / size - 0.5) * shape;
    float flow = speed * (4.0 * iTime + 22.0 * iEnergy) / 6.0;
    float pace = speed * iTimeDelta * (0.10 + 1.15 * iSwell * iSwell + 1.3 * pulse * iBeat);
    bool used = place.x < size.x && place.y < size.y;
    vec2 edge = smoothstep(0.0, 0.14, 0.5 * shape - abs(p));
    vec2 moved = current(p, flow, used ? 5 : 0) * pace * edge.x * edge.y;
    vec2 from = (place - moved / shape * size) / iResolution.xy;
    from = clamp(from, 0.5 / iResolution.xy, (size - 0.5) / iResolution.xy);
    vec4 ink = textureLod(iChannel1, from, 0.0) * exp2(-iTimeDelta * 0.85);

    // Drops: each from its own part of the spectrum.
    for (int n = 0; n < (used ? 6 : 0); n++) {
        float own = float(n), turn = own / 6.0 + 0.017 * flow + 0.13 * wave(0.021 * flow + own * 0.37);
        vec2 at = vec2(wave(turn), wave(turn + 0.25)) * vec2(0.36, 0.33) * (0.75 + 0.35 * wave(0.037 * flow + own * 0.21)) * shape;
        float note = texelFetch(iChannel0, ivec2(3 << n, 0), 0).x;
        note = smoothstep(0.35, 0.95, note + 0.06 * own);
        vec2 off = p - at;
        float wide = 0.0009 + 0.0030 * note;
        float drop = iTimeDelta * (0.5 + 5.0 * note * note * (0.3 + iSwell) + 9.0 * pulse * iBeat * note) * exp2(-dot(off, off) / wide);
        ink += drop * (n % 2 == 0 ? vec4(1.0, 0.12, 1.0, 0.12) : vec4(0.10, 1.0, 0.10, 1.0));
    }
    int when = iFrame % life();
    if (when == 0) ink.xy = vec2(0.0);
    if (when == life() / 2) ink.zw = vec2(0.0);
    colour = used ? min(ink, 6.0) : vec4(0.0);
}

//! Image
//! iChannel1: Buffer A, linear, clamp

// The ink at a place of the picture, smooth between its pixels: a cubic B-spline from four readings.
vec2 ink_at(vec2 place) {
    vec2 size = glass(), at = place / iResolution.xy * size - 0.5, whole = floor(at), t = at - whole;
    vec2 t2 = t * t, t3 = t2 * t, left = 1.0 - t;
    vec2 w0 = left * left * left / 6.0, w1 = (4.0 - 6.0 * t2 + 3.0 * t3) / 6.0, w3 = t3 / 6.0, w2 = 1.0 - w0 - w1 - w3;
    vec2 low = w0 + w1, high = w2 + w3;
    vec2 a = clamp(whole - 0.5 + w1 / low, vec2(0.5), size - 0.5) / iResolution.xy;
    vec2 b = clamp(whole + 1.5 + w3 / high, vec2(0.5), size - 0.5) / iResolution.xy;
    vec4 ink = low.y * (low.x * textureLod(iChannel1, a, 0.0) + high.x * textureLod(iChannel1, vec2(b.x, a.y), 0.0))
        + high.y * (low.x * textureLod(iChannel1, vec2(a.x, b.y), 0.0) + high.x * textureLod(iChannel1, b, 0.0));
    float one = 0.5 - 0.5 * wave(float(iFrame % life()) / float(life()));
    return 1.35 * (1.0 - exp2(-0.9 * mix(ink.zw, ink.xy, one)));
}

void mainImage(out vec4 colour, in vec2 place) {
    vec2 ink = ink_at(place);
    vec2 at = (2.0 * place - iResolution.xy) / min(iResolution.x, iResolution.y);
    vec2 slope = vec2(dFdx(ink.x + ink.y), dFdy(ink.x + ink.y)) * min(iResolution.x, iResolution.y) / 90.0;
    vec3 ground = linear(paper) * (0.62 + 0.30 * iSwell + 0.16 * pulse * iBeat) * (1.0 - 0.10 * min(dot(at, at), 3.0));
    // What an ink lets through is its own colour; the more of it, the darker.
    vec3 through = exp2(ink.x * log2(max(linear(first), 0.006)) + ink.y * log2(max(linear(second), 0.006)));
    float light = clamp(0.5 * dot(slope, vec2(-0.6, 0.8)), -0.25, 0.25);
    vec3 c = ground * through * (1.0 + light) + max(light, 0.0) * 0.05;
    vec3 s = sqrt(c), t = sqrt(s);
    c = 0.662 * s + 0.684 * t - 0.323 * sqrt(t) - 0.0225 * c;
    uint dither = mixed(uint(place.x) + uint(place.y) * 8192u + uint(iFrame) * 0x9e3779b9u);
    colour = vec4(0.96 * max(c, 0.0) + (float(dither >> 8u) / 16777216.0 - 0.5) / 255.0, 1.0);
}

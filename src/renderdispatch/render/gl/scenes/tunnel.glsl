// Tunnel: a flight through a shaft of dark glass tiles, which the notes light up. Every beat sends a ring of light ahead.
//
// Lengths are metres; the shaft's radius is two. On Shadertoy, put these lines first:
//   float iSwell = 0.6, iBeat = 0.0, iEnergy = 0.0, iSwells[96];
//   const vec3 near = vec3(0.13, 0.72, 1.0), far = vec3(1.0, 0.24, 0.53);
//   const float speed = 1.0, pulse = 0.6, turns = 1.0;

const float PI = 3.14159265;
const float RADIUS = 2.0;
const float AROUND = 18.0;                                     // tiles around the shaft
const float TILE = 2.0 * PI * RADIUS / AROUND;                 // the width of a tile
const float ROW = 0.8660254;                                   // from row to row of hexagons, in widths of a tile
const float ROWS = 3072.0;                                     // then the shaft repeats itself
const float FRAME = 12.0;                                      // rows from one frame of light to the next

uint mixed(uint n) {
    n = (n ^ (n >> 16u)) * 0x7feb352du;
    n = (n ^ (n >> 15u)) * 0x846ca68bu;
    return n ^ (n >> 16u);
}

// From -1 to 1 and back in each whole number, like a sine.
float wave(float x) {
    float t = abs(fract(x) - 0.5) * 4.0 - 1.0;
    return t * (1.5 - 0.5 * t * t);
}

// The angle of a direction, in turns from -0.5 to 0.5.
float turn(vec2 v) {
    vec2 a = abs(v);
    float q = min(a.x, a.y) / max(max(a.x, a.y), 1e-6), s = q * q;
    float t = q * (0.15915 + s * (-0.05295 + s * (0.03066 + s * (-0.01842 + s * 0.00656))));
    t = a.y > a.x ? 0.25 - t : t;
    t = v.x < 0.0 ? 0.5 - t : t;
    return v.y < 0.0 ? -t : t;
}

vec3 linear(vec3 c) { return c * c * (0.3 * c + 0.7); }

struct Shaft {
    float travelled;     // how far the viewer has come
    vec2 curve;          // how the shaft bends here,
    vec2 change;         // and how that changes ahead
    float heart;         // the light at the end
    vec3 end;
};

Shaft shaft_now(float bent) {
    Shaft now;
    now.travelled = speed * (1.3 * iTime + 4.5 * iEnergy);
    float s = now.travelled;
    now.curve = turns * bent * vec2(0.011 * wave(s / 131.0) + 0.004 * wave(s / 47.0), 0.009 * wave(s / 103.0 + 0.3));
    now.change = turns * bent * vec2(2e-4 * wave(s / 131.0 + 0.25), 1.5e-4 * wave(s / 103.0 + 0.55));
    now.heart = 0.42 + 0.70 * iSwell + 0.5 * pulse * iBeat + 0.06 * wave(iTime / 7.0);
    now.end = mix(linear(far), vec3(1.0, 0.93, 0.86), 0.3) * now.heart;
    return now;
}

vec3 hue_at(float along, float dice) {
    float depth = 0.5 + 0.5 * wave(along / 58.0);
    vec3 hue = mix(linear(near), linear(far), clamp(1.25 * depth - 0.25 + 0.5 * (dice - 0.5), 0.0, 1.0));
    hue -= 0.7 * min(hue.r, min(hue.g, hue.b));                // blended light is never pale,
    return hue * 0.42 / (0.13 + dot(hue, vec3(0.2126, 0.7152, 0.0722)));             // and all hues are as bright
}

// The light of the wall: at a distance along the shaft, at an angle in turns, for pixels of this size there. `edge` is
// how far the nearest side of the tile is, `tilt` how the glass leans.
vec3 wall(Shaft now, float z, float angle, vec2 pixel, out float edge, out vec2 tilt) {
    float along = (z + now.travelled) / TILE;
    vec2 place = vec2(angle * AROUND, along / ROW);
    // The nearest of the middles of the hexagons: they are at whole numbers, in every second row half a tile aside.
    float row = floor(place.y), odd = 0.5 * mod(row, 2.0);
    vec2 one = vec2(floor(place.x - odd + 0.5) + odd, row);
    vec2 two = vec2(floor(place.x + odd) + 0.5 - odd, row + 1.0);
    vec2 a = (place - one) * vec2(1.0, ROW), b = (place - two) * vec2(1.0, ROW);
    bool first = dot(a, a) < dot(b, b);
    vec2 middle = first ? one : two, from = first ? a : b, side = abs(from);
    edge = 0.5 - max(side.x, 0.5 * side.x + ROW * side.y);
    tilt = from * (1.0 - smoothstep(0.02, 0.14, edge));

    uint random = mixed(uint(mod(middle.y, ROWS)) * 64u + uint(2.0 * mod(middle.x, AROUND)));
    vec3 dice = vec3(random & 1023u, (random >> 10u) & 1023u, (random >> 20u) & 1023u) / 1023.0;
    // Low notes are below, high ones above, on both sides.
    float up = abs(fract(middle.x / AROUND + 0.75) * 2.0 - 1.0);
    float band = iSwells[int(clamp((1.0 - up) * 84.0 + dice.x * 12.0, 0.0, 95.0))];

    float wide = max(pixel.x, pixel.y);
    float shown = clamp(1.0 - 1.4 * wide, 0.0, 1.0);           // tiles that are too small to be seen melt
    float lucky = smoothstep(0.30, 0.95, dice.y);
    float rest = smoothstep(0.75, 1.0, dice.y) * (0.06 + 0.04 * wave(iTime / 6.0 + dice.z));
    float lit = mix(0.3, lucky, shown) * band * band * band * 1.6 + rest * shown;
    float glass = smoothstep(0.0, 0.10 + wide, edge) * (1.0 - 0.55 * smoothstep(0.12, 0.5, edge));
    vec3 hue = hue_at(along * TILE, mix(0.5, dice.z, shown));

    float ring = z - 4.2 * -log(max(iBeat, 0.01));             // the beat's ring runs away from the viewer
    float pulsed = iBeat * pulse / (1.0 + 0.9 * ring * ring);
    float soft = 0.012 + 0.75 * wide;
    float seam = mix(0.10, smoothstep(soft, 0.0, edge - 0.012), clamp(1.0 - 2.0 * wide, 0.0, 1.0));
    float halo = 0.055 / (0.05 + edge) * shown;
    vec3 light = (hue * 3.4 + 0.12 * lit) * lit * glass;
    light += hue * (seam + 0.10 * halo) * (0.09 + 0.8 * iSwell * iSwell + 4.0 * pulsed);
    light += (hue + 0.25) * pulsed * glass * 0.3;

    float frame = abs(fract(along / ROW / FRAME) - 0.5) * FRAME * ROW * TILE;        // metres to a frame of light
    float thin = 0.05 + pixel.y * TILE;
    float bright = 0.16 + 1.1 * iSwell * iSwell + 0.6 * pulse * iBeat;
    light += (hue + 0.2) * bright * smoothstep(thin, 0.0, frame - 0.02) * 0.17 / thin;
    light += hue * bright * 0.16 / (0.25 + frame * frame);
    return light;
}

// The light from a direction; `bent` is 1 for the flat picture, and a pixel is that wide at a distance of one.
vec3 seen(vec3 origin, vec3 ray, float bent, float pixel) {
    Shaft now = shaft_now(bent);
    float across = max(length(ray.xy), 1e-4), least = max(0.5 * across, 0.03), distance = 0.0;
    vec2 outwards = ray.xy / across;
    for (int n = 0; n < 7; n++) {
        float z = distance * -ray.z;
        vec2 middle = z * z * (0.5 * now.curve + z * now.change / 6.0), slope = z * (now.curve + 0.5 * z * now.change);
        vec2 from = origin.xy + distance * ray.xy - middle;
        float radius = max(length(from), 1e-3);
        outwards = from / radius;
        distance += (RADIUS - radius) / max(dot(ray.xy + slope * ray.z, outwards), least);
        distance = clamp(distance, 0.0, 120.0);
    }
    float slant = max(dot(outwards, ray.xy), 0.02);
    vec2 size = vec2(1.0, min(1.0 / slant, 50.0)) * pixel * distance / TILE;
    float edge;
    vec2 tilt;
    vec3 light = wall(now, origin.z * -1.0 - distance * ray.z, turn(outwards), size, edge, tilt);

    // The glass mirrors the light at the end, and of the wall before it what its own colour is.
    vec2 around = vec2(-outwards.y, outwards.x) * tilt.x * 0.9;
    vec3 normal = normalize(vec3(around - outwards, -0.9 * tilt.y));
    float facing = clamp(-dot(ray, normal), 0.0, 1.0), away = 1.0 - facing;
    float fresnel = 0.04 + 0.8 * away * away * away * away;
    float ahead = max(-reflect(ray, normal).z, 0.0), shine = ahead * ahead;
    shine *= shine;
    shine *= shine;
    light += fresnel * now.end * (0.10 * ahead + 0.9 * shine * shine * shine) * smoothstep(0.0, 0.03, edge);

    light *= (0.66 + 0.5 * iSwell) * (0.35 + 0.65 * distance) / (1.6 + 0.65 * distance);                   // what is beside the viewer is dark
    float haze = exp(-0.05 * distance), thick = 1.0 - haze;
    vec3 fog = mix(hue_at(now.travelled + 30.0, 0.5) * now.heart, now.end, thick);
    // The end shines through the haze.
    float reach = 22.0 * sign(-ray.z);
    vec3 there = normalize(vec3(reach * reach * (0.5 * now.curve + reach * now.change / 6.0) - origin.xy, -reach));
    float off = 1.0 - dot(ray, there);
    light += now.end * now.heart * (0.0045 / (off + 0.0035) + 0.006 / (off + 0.10));
    return light * haze + fog * thick * thick * (0.08 + 2.0 * thick * thick * thick);
}

vec3 graded(vec3 light, vec2 place) {
    vec3 c = 1.0 - exp(-1.3 * light), s = sqrt(c), t = sqrt(s);
    c = 0.662 * s + 0.684 * t - 0.323 * sqrt(t) - 0.0225 * c;                        // near to sRGB's curve
    c = c * c * (0.45 - 0.1 * c) + 0.65 * c;
    uint dither = mixed(uint(place.x) + uint(place.y) * 8192u + uint(iFrame) * 0x9e3779b9u);
    return 0.915 * max(c, 0.0) + (float(dither >> 8u) / 16777216.0 - 0.5) / 255.0;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y);
    vec2 at = (2.0 * place - iResolution.xy) / least;
    Shaft now = shaft_now(1.0);
    float roll = 0.22 * wave(now.travelled / 230.0) + 0.05 * wave(iTime / 20.0);
    at += roll * vec2(-at.y, at.x);
    vec3 ray = normalize(vec3(at, -1.1));
    vec3 origin = vec3(0.3 * wave(iTime / 17.0), 0.3 * wave(iTime / 23.0), 0.0);
    vec3 light = seen(origin, ray, 1.0, 2.0 / least / 1.1);
    colour = vec4(graded(light * (1.0 - 0.16 * min(dot(at, at), 3.0) / 3.0), place), 1.0);
}

void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 ray) {
    colour = vec4(graded(seen(origin, ray, 0.0, PI / iResolution.y), place), 1.0);
}

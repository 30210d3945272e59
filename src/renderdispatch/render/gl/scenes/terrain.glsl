// Terrain: a flight at dusk over a lake between mountains. Each contour line is a part of the spectrum: low notes at the
// shore, high ones at the tops. The spectrum is also a northern light over them.
//
// Lengths are metres, of a model: the viewer is three metres above the water. Buffer A holds the land as the viewer has
// it around himself: a column for each direction, a row for each distance. Buffer B holds how steeply one must look
// to see over all that is nearer, and how steeply what is farther rises in the water's mirror. So the land at a pixel is found by halving, with no march along the ray.
//
// On Shadertoy, put these lines into Common:
//   #define iSwell 0.6
//   #define iBeat 0.0
//   #define iEnergy (0.6 * iTime)
//   float iSwells[96];
//   const vec3 sky = vec3(0.10, 0.14, 0.40), sun = vec3(1.0, 0.54, 0.30), lines = vec3(0.30, 0.88, 1.0);
//   const float speed = 1.0, pulse = 0.6;

//! Common

const float PI = 3.14159265;
const float NEAR = 1.6;
const float FAR = 150.0;
const float LINE = 0.6;                                        // height from one contour line to the next

int groups() { return int(min(14.0, iResolution.y / 4.0)); }                       // of four rows
float rows() { return 4.0 * float(groups()); }
float columns() { return min(1280.0, iResolution.x); }

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

vec3 linear(vec3 c) { return c * c * (0.3 * c + 0.7); }

float travelled() { return speed * (1.1 * iTime + 3.2 * iEnergy); }

// The middle of the lake, at a distance along the way.
float middle(float along) { return 7.0 * wave(along / 190.0) + 3.0 * wave(along / 83.0); }

// Where the viewer is: x to the right, y up, z along the way.
vec3 viewer() {
    float along = travelled();
    return vec3(middle(along), 3.0 + 0.25 * wave(iTime / 11.0), along);
}

// Columns are directions, x to the right and y ahead; there are more of them ahead. The direction behind is the middle of
// the first column and of the last one.
float column_of(vec2 way) {
    float t = 0.25 * way.x / (abs(way.x) + abs(way.y));
    t = way.y < 0.0 ? (way.x < 0.0 ? -0.5 : 0.5) - t : t;
    return 0.5 * columns() + 2.0 * t / (0.5 + 3.0 * abs(t)) * (columns() - 1.0);
}

vec2 way_of(float column) {
    float t = (column - 0.5 * columns()) / (columns() - 1.0);
    t *= 4.0 / (4.0 - 6.0 * abs(t));
    float x = abs(t) > 1.0 ? sign(t) * 2.0 - t : t;
    return normalize(vec2(x, sign(1.0 - abs(t)) * (1.0 - abs(x))));
}

float distance_of(float row) { return NEAR * exp2(row * (log2(FAR / NEAR) / (rows() - 1.0))); }

//! Buffer A

float corner(ivec2 cell) {
    return float(mixed(uint(cell.x + 4096) * 8192u + uint(cell.y & 8191)) >> 8u) / 16777216.0;
}

// Smooth noise from 0 to 1, and its slopes.
vec3 noise(vec2 place) {
    vec2 whole = floor(place), t = place - whole;
    ivec2 cell = ivec2(whole);
    float a = corner(cell), b = corner(cell + ivec2(1, 0)), c = corner(cell + ivec2(0, 1)), d = corner(cell + 1);
    vec2 u = t * t * t * (t * (t * 6.0 - 15.0) + 10.0), v = 30.0 * t * t * (t * (t - 2.0) + 1.0);
    float k = a - b - c + d;
    return vec3(a + (b - a) * u.x + (c - a) * u.y + k * u.x * u.y, v * (vec2(b - a, c - a) + k * u.yx));
}

// The height of the land above the water.
float land(vec2 place, float swell, int octaves) {
    vec2 at = place * 0.045, slope = vec2(0.0);
    float size = 1.0, sum = 0.0;
    for (int octave = 0; octave < octaves; octave++) {         // steep places are smooth: so water wears down land
        vec3 n = noise(at);
        slope += n.yz * 0.9 * size;
        sum += size * n.x / (1.0 + dot(slope, slope));
        size *= 0.48;
        at = mat2(1.6, 1.2, -1.2, 1.6) * at + 17.0;
    }
    float away = abs(place.x - middle(place.y));
    float bank = smoothstep(2.5, 30.0, away), shore = smoothstep(2.0, 10.0, away);
    return (sum - 0.3) * (0.04 + 0.12 * shore + 1.1 * bank) * (10.5 + 8.0 * swell) - 2.8 * (1.0 - shore);
}

// Renderers on the CPU skip no branch, but they do end loops: so the pixels that hold nothing cost little.
void mainImage(out vec4 colour, in vec2 place) {
    bool used = place.x < columns() && place.y < rows();
    float distance = distance_of(place.y - 0.5), bass = texelFetch(iChannel0, ivec2(4, 0), 0).x, step = 0.02 * distance;
    vec2 at = viewer().xz + distance * way_of(place.x);
    vec3 heights = vec3(0.0);
    for (int n = 0; n < (used ? 3 : 0); n++) {
        vec3 one = vec3(n == 0, n == 1, n == 2);
        heights += one * land(at + step * one.yz, bass, used ? 6 : 0);
    }
    colour = vec4(heights.x, (heights.yz - heights.x) / step, distance);
}

//! Buffer B
//! iChannel0: Buffer A, nearest, clamp

// A pixel holds four rows: how steeply one must look to see over each of them and over all that is nearer. Above these
// pixels are as many that hold how steeply what is farther rises in the mirror of the water, how far that is, and at
// which of the four rows the land falls, as bits.
void mainImage(out vec4 colour, in vec2 place) {
    int group = int(place.y) % groups();
    bool over = place.y < float(groups()), used = place.x < columns() && place.y < 2.0 * float(groups());
    float eye = viewer().y, steepest = -99.0, mirrored = -99.0, far = 0.0, falls = 0.0;
    vec4 tops = vec4(-99.0);
    for (int row = over ? 0 : 4 * group; row < (!used ? 0 : over ? 4 * group + 4 : int(rows())); row++) {
        vec4 found = texelFetch(iChannel0, ivec2(int(place.x), row), 0);
        float slope = (max(found.x, 0.0) - eye) / found.w, rise = (found.x + eye) / found.w;
        int part = row - 4 * group;
        if (part > 0 && part < 5 && slope < steepest) falls += float(1 << (part - 1));
        steepest = max(steepest, slope);
        tops = part == 0 ? vec4(steepest) : part == 1 ? vec4(tops.x, vec3(steepest)) : part == 2 ? vec4(tops.xy, vec2(steepest)) : part == 3 ? vec4(tops.xyz, steepest) : tops;
        if (part > 3 && found.x > 0.0 && rise > mirrored) {
            mirrored = rise;
            far = found.w;
        }
    }
    colour = over ? tops : vec4(mirrored, far, falls, 0.0);
}

//! Image
//! iChannel0: sound
//! iChannel1: Buffer A, linear, clamp
//! iChannel2: Buffer B, nearest, clamp

const vec3 SUN = vec3(0.0, 0.105, -0.99447222);

// Four rows of buffer B, between two columns.
vec4 tops(float column, int group) {
    float left = clamp(floor(column - 0.5), 0.0, columns() - 2.0), part = column - 0.5 - left;
    ivec2 at = ivec2(int(left), group);
    return mix(texelFetch(iChannel2, at, 0), texelFetch(iChannel2, at + ivec2(1, 0), 0), part);
}

struct Hit {
    bool open;          // nothing but the sky
    bool ridge;         // the land falls behind it
    float distance;
    float top;          // of the land up to there, as a slope
    vec2 slope;
    vec2 mirrored;      // how steeply land behind it rises in the mirror, and how far that is
};

// The first land that rises above a slope. `shift` is how far the eye is beside the middle of the head.
Hit land_at(vec2 way, vec2 shift, float slope) {
    int low = 0, high = groups();
    float column = column_of(way);
    bool beside = shift != vec2(0.0);
    for (int n = 0; n < 4; n++) {
        int half_way = (low + high) / 2;
        if (beside) column = column_of(way + shift / distance_of(float(4 * half_way + 3)));
        if (low < high) {
            if (tops(column, half_way).w >= slope) high = half_way;
            else low = half_way + 1;
        }
    }
    Hit hit;
    hit.open = low == groups();
    if (beside) column = column_of(way + shift / distance_of(float(4 * low + 3)));
    vec4 four = tops(column, min(low, groups() - 1));
    vec4 before = vec4(low == 0 ? -99.0 : tops(column, low - 1).w, four.xyz);
    int part = int(four.x < slope) + int(four.y < slope) + int(four.z < slope);
    float here = before[part], there = four[part];
    vec3 behind = texelFetch(iChannel2, ivec2(int(column), min(low, groups() - 1) + groups()), 0).xyz;
    hit.ridge = (int(behind.z) >> part & 1) == 1;
    hit.top = there;
    hit.mirrored = behind.xy;
    // Heights are straight between the rows: then one over the distance is, along a ray.
    float row = float(4 * low + part), mixed_in = clamp((slope - here) / max(there - here, 1e-5), 0.0, 1.0);
    hit.distance = 1.0 / mix(1.0 / distance_of(row - 1.0), 1.0 / distance_of(row), mixed_in);
    hit.slope = textureLod(iChannel1, vec2(column, row + mixed_in - 0.5) / iResolution.xy, 0.0).yz;
    return hit;
}

// The glow of the air, without the sun.
vec3 air(vec3 ray) {
    float up = max(ray.y, 0.0), low = 1.0 / (1.0 + 9.0 * up), to_sun = 0.5 + 0.5 * dot(ray.xz, SUN.xz);
    vec3 high = linear(sky), warm = linear(sun), violet = high * 1.5 + warm * 0.16;
    float strong = 0.62 + 0.5 * iSwell;
    return (mix(high * 0.62, violet * 0.80, low) + warm * low * low * low * (0.06 + 0.55 * to_sun * to_sun * to_sun)) * strong;
}

vec3 heaven(vec3 ray, vec2 way, float pixel, float stars) {
    float off = max(1.0 - dot(ray, SUN), 0.0);
    float power = 0.55 + 0.5 * iSwell + 0.5 * pulse * iBeat + 0.03 * wave(iTime / 8.0);
    vec3 warm = linear(sun), light = air(ray);
    light += warm * power * (0.010 / (off + 0.012) + 0.014 / (off + 0.16));
    float disc = smoothstep(1.5 * pixel, -1.5 * pixel, sqrt(2.0 * off) - 0.115);
    light += (warm * 1.5 + 0.22) * power * disc * (0.8 + 2.2 * clamp(ray.y, 0.0, 0.25));

    // The northern light: the spectrum from the sun to both sides.
    float part = 0.5 * abs(way.x) / (abs(way.x) + abs(way.y));
    part = way.y < 0.0 ? 1.0 - part : part;
    float at = 2.0 * exp2(6.6 * sqrt(part)) / 512.0;
    float note = textureLod(iChannel0, vec2(at, 0.25), 0.0).x;
    float folds = 0.07 * wave(4.0 * part + iTime / 23.0) + 0.035 * wave(11.0 * part - iTime / 15.0);
    float over = ray.y - 0.20 - folds;
    float rays = 0.62 + 0.22 * wave(37.0 * part + iTime / 11.0) + 0.16 * wave(83.0 * part - iTime / 7.0);
    float curtain = smoothstep(-0.09, 0.03, over) / (1.0 + 30.0 * max(over, 0.0) * max(over, 0.0) + 3.0 * max(over, 0.0));
    float strong = note * note * note * (0.6 + 0.9 * iSwell) * rays * smoothstep(0.0, 0.16, part);
    light += mix(linear(lines), linear(sky) * 1.5 + linear(sun) * 0.6, clamp(over * 2.4, 0.0, 1.0)) * curtain * strong * 1.1;

    // Stars: cells of a cube around the viewer, so that they are alike in all directions.
    vec3 cube = ray * 58.0, cell = floor(cube);
    uint random = mixed(uint(int(cell.x) + 64) * 16384u + uint(int(cell.y) + 64) * 128u + uint(int(cell.z) + 64));
    vec3 dice = vec3(random & 1023u, (random >> 10u) & 1023u, (random >> 20u) & 1023u) / 1023.0;
    float away = length(cube - cell - 0.3 - 0.4 * dice) / (58.0 * max(pixel, 0.0011));
    float twinkle = 0.7 + 0.3 * wave(iTime * (0.2 + 0.4 * dice.x) + dice.y);
    float star = dice.z > 0.86 ? max(1.0 - 0.6 * away, 0.0) * twinkle * min(1.0, 4e-6 / (pixel * pixel)) : 0.0;
    return light + stars * star * smoothstep(0.05, 0.4, ray.y) * 0.9;
}

// The light of a place of the land.
vec3 ground(Hit hit, vec3 eye, vec3 ray, vec2 way, float slope, float pixel, float pulsed) {
    float height = eye.y + slope * hit.distance;
    vec3 normal = normalize(vec3(-hit.slope.x, 1.0, hit.slope.y));
    float rise = dot(hit.slope, way), aside = dot(hit.slope, vec2(way.y, -way.x));
    vec3 light = linear(sky) * (0.10 + 0.45 * normal.y * normal.y) + linear(sun) * 0.30 * max(dot(normal, SUN), 0.0);
    light *= 0.55 + 0.45 * smoothstep(0.0, 9.0, height);

    float level = height / LINE, nearest = floor(level + 0.5);
    float changes = pixel * hit.distance * max(abs(rise) / max(rise - slope, 0.02), abs(aside)) / LINE;
    float band = iSwells[int(clamp(nearest * 3.6, 0.0, 95.0))];
    float thin = 0.035 + 0.9 * changes, line = smoothstep(thin, 0.0, abs(level - nearest)) * 0.05 / thin * 1.4;
    line = mix(line, 0.07, smoothstep(0.3, 0.8, changes));
    float halo = 0.05 / (0.06 + abs(level - nearest)) * 0.25;
    vec3 hue = mix(linear(lines), linear(sun), smoothstep(1.0, 11.0, height));
    light += hue * (line + 0.12 * halo) * (0.10 + 0.25 * iSwell + 2.6 * band * band * band + 5.0 * pulsed);
    return light;
}

// Where the water mirrors a ray to, at a place; `footprint` is the size of a pixel there.
vec3 mirrored(vec2 at, vec3 ray, float footprint) {
    float choppy = (0.4 + 0.9 * iSwell) / (1.0 + 60.0 * footprint);
    vec2 ripple = vec2(wave(at.x * 0.53 + at.y * 0.21 + iTime * 0.31) + 0.6 * wave(at.x * 1.1 - at.y * 0.7 - iTime * 0.43),
                       wave(at.y * 0.61 - at.x * 0.17 + iTime * 0.37) + 0.6 * wave(at.y * 1.3 + at.x * 0.47 + iTime * 0.29));
    vec3 look = reflect(ray, normalize(vec3(0.016 * ripple.x * choppy, 1.0, 0.04 * ripple.y * choppy)));
    return normalize(vec3(look.x, abs(look.y) + 0.002, look.z));
}

vec3 seen(vec3 origin, vec3 ray, float pixel) {
    vec3 eye = viewer();
    eye.y += origin.y;
    float level = max(length(ray.xz), 1e-4), slope = ray.y / level;
    vec2 way = vec2(ray.x, -ray.z) / level, shift = vec2(origin.x, -origin.z);
    float size = pixel * (1.0 + slope * slope);

    vec3 light = vec3(0.0), haze = air(vec3(ray.x, 0.03, ray.z));
    float left = 1.0;                                          // how much of the pixel is not covered yet
    for (int layer = 0; layer < 2; layer++) {                  // at the edge of a ridge, what is behind it too
        Hit hit = land_at(way, shift, slope);
        float water_at = eye.y / max(-slope, 1e-3), ring = 9.0 * -log(max(iBeat, 0.01)) + 2.0;
        bool water = !hit.open && hit.distance > water_at - 0.03 / max(-slope, 1e-3);
        hit.distance = water ? water_at : hit.distance;
        float cover = hit.ridge && !hit.open && !water ? clamp((hit.top - slope) / size + 0.5 * float(layer), 0.0, 1.0) : 1.0;
        float shine = 1.0, shore = 0.0;
        vec3 look = ray;
        if (water) {
            look = mirrored(eye.xz + water_at * way, ray, water_at * pixel);
            float grazing = 1.0 - clamp(-ray.y, 0.0, 1.0);
            shine = 0.14 + 0.86 * grazing * grazing * grazing * grazing;
            shore = smoothstep(-0.01, 0.01, hit.mirrored.x - look.y / max(length(look.xz), 1e-3)) * exp(-0.014 * hit.mirrored.y);
        }
        float pulsed = pulse * iBeat / (1.0 + 0.10 * (hit.distance - ring) * (hit.distance - ring));
        vec3 colour = mix(heaven(look, way, pixel, water ? 0.0 : 1.0), linear(sky) * 0.10, shore) * shine;
        if (water) {
            float deep = clamp(-ray.y, 0.0, 1.0) * (0.5 + 0.6 * iSwell);
            colour += (linear(sky) * 0.55 + linear(lines) * 0.05) * deep + linear(lines) * 0.35 * pulsed * (1.0 - 0.75 * clamp(-ray.y, 0.0, 1.0));
        }
        if (!water && !hit.open) colour = ground(hit, eye, ray, way, slope, pixel, pulsed);
        float thick = hit.open ? 0.0 : 1.0 - exp(-0.016 * hit.distance);
        light += left * cover * mix(colour, haze, 0.94 * thick * (water ? thick : 1.0));
        left *= 1.0 - cover;
        if (left < 0.02) break;
        slope = max(slope, hit.top + 1e-5);
    }
    return light / max(1.0 - left, 1e-3);
}

vec3 graded(vec3 light, vec2 place) {
    vec3 c = 1.0 - exp(-1.5 * light), s = sqrt(c), t = sqrt(s);
    c = 0.662 * s + 0.684 * t - 0.323 * sqrt(t) - 0.0225 * c;                        // near to sRGB's curve
    c = c * c * (0.45 - 0.1 * c) + 0.65 * c;
    uint dither = mixed(uint(place.x) + uint(place.y) * 8192u + uint(iFrame) * 0x9e3779b9u);
    return 0.915 * max(c, 0.0) + (float(dither >> 8u) / 16777216.0 - 0.5) / 255.0;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y * 1.2);
    vec2 at = (2.0 * place - iResolution.xy) / least;
    float along = travelled(), heading = (middle(along + 16.0) - middle(along)) / 16.0;
    vec3 ray = normalize(vec3(at.x + 0.0, at.y + 0.17, -1.25));
    float roll = -0.10 * heading;
    ray.xy += roll * vec2(-ray.y, ray.x);
    ray.xz = ray.xz + 0.5 * heading * vec2(-ray.z, ray.x);
    vec3 light = seen(vec3(0.0), normalize(ray), 2.0 / least / 1.25);
    colour = vec4(graded(light * (1.0 - 0.10 * min(dot(at, at), 3.0) / 3.0), place), 1.0);
}

void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 ray) {
    colour = vec4(graded(seen(origin, ray, PI / iResolution.y), place), 1.0);
}

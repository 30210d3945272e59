// Terrain: a flight at dusk over a lake between mountains. Each contour line is a part of the spectrum: low notes at the
// shore, high ones at the tops. The spectrum is also a northern light over them.
//
// Lengths are metres, of a model: the viewer is three metres above the water. Buffer A holds the land as the viewer has
// it around himself: a column for each direction, a row for each distance. Buffer B holds how steeply one must look up
// to see over all that is nearer. So the land at a pixel is found by halving, with no march along the ray.
//
// On Shadertoy, put these lines into Common:
//   #define iLevel 0.6
//   #define iBeat 0.0
//   #define iEnergy (0.6 * iTime)
//   float iBands[96];
//   const vec3 sky = vec3(0.10, 0.14, 0.40), sun = vec3(1.0, 0.54, 0.30), lines = vec3(0.30, 0.88, 1.0);
//   const float speed = 1.0, pulse = 0.6;

//! Common

const float PI = 3.14159265;
const float NEAR = 1.6;
const float FAR = 150.0;
const float LINE = 0.6;                                        // height from one contour line to the next

float rows() { return min(64.0, iResolution.y); }
float columns() { return min(2048.0, iResolution.x); }

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

// Columns are directions, in turns from -0.5 to 0.5, ahead at 0; there are more of them ahead.
float column_of(float turn) {
    float t = 2.0 * abs(turn);
    return (0.5 + 0.5 * sign(turn) * t * 4.0 / (1.0 + 3.0 * t)) * columns();
}

float turn_of(float column) {
    float t = 2.0 * abs(column / columns() - 0.5);
    return sign(column / columns() - 0.5) * 0.5 * t / (4.0 - 3.0 * t);
}

float distance_of(float row) { return NEAR * exp2(row / (rows() - 1.0) * log2(FAR / NEAR)); }

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
float land(vec2 place, float swell) {
    float beside = abs(place.x - middle(place.y));
    vec2 at = place * 0.045;
    float size = 1.0, sum = 0.0;
    vec2 slope = vec2(0.0);
    for (int octave = 0; octave < 6; octave++) {               // steep places are smooth: so water wears down land
        vec3 n = noise(at);
        slope += n.yz * 0.9 * size;
        sum += size * n.x / (1.0 + dot(slope, slope));
        size *= 0.48;
        at = mat2(1.6, 1.2, -1.2, 1.6) * at + 17.0;
    }
    float bank = smoothstep(2.5, 30.0, beside), shore = smoothstep(2.0, 9.0, beside);
    return (sum * 15.0 - 4.5) * (0.16 + 1.1 * bank) * (0.75 + 0.5 * swell) - 1.6 * (1.0 - shore);
}

// How much there is of the spectrum's part for a place, smooth in time.
float swelling(float part) {
    float at = 2.0 * exp2(part * 6.5) / 512.0;
    return textureLod(iChannel0, vec2(at, 0.25), 0.0).x;
}

void mainImage(out vec4 colour, in vec2 place) {
    colour = vec4(0.0);
    if (place.x > columns() || place.y > rows()) return;
    float turn = turn_of(place.x), distance = distance_of(place.y - 0.5);
    vec3 eye = viewer();
    vec2 at = eye.xz + distance * vec2(sin(2.0 * PI * turn), cos(2.0 * PI * turn));
    float swell = swelling(clamp(abs(at.x - middle(at.y)) / 40.0, 0.0, 1.0));
    float height = land(at, swell), step = 0.02 * distance;
    float right = land(at + vec2(step, 0.0), swell), ahead = land(at + vec2(0.0, step), swell);
    colour = vec4(height, (right - height) / step, (ahead - height) / step, swell);
}

//! Buffer B
//! iChannel0: Buffer A, nearest, clamp

void mainImage(out vec4 colour, in vec2 place) {
    colour = vec4(0.0);
    if (place.x > columns() || place.y > rows()) return;
    float eye = viewer().y;
    vec2 steepest = vec2(-99.0);
    for (int row = 0; row <= int(place.y); row++) {
        float height = texelFetch(iChannel0, ivec2(int(place.x), row), 0).x, far = 1.0 / distance_of(float(row));
        steepest.x = max(steepest.x, (max(height, 0.0) - eye) * far);
        if (height > 0.0) steepest.y = max(steepest.y, (height + eye) * far);      // as the water mirrors it
    }
    colour = vec4(steepest, 0.0, 1.0);
}

//! Image
//! iChannel0: sound
//! iChannel1: Buffer A, nearest, clamp
//! iChannel2: Buffer B, nearest, clamp

const vec3 SUN = vec3(0.0, 0.105, -0.9945);

// The angle of a direction, in turns from -0.5 to 0.5: 0 along x.
float turn(vec2 v) {
    vec2 a = abs(v);
    float q = min(a.x, a.y) / max(max(a.x, a.y), 1e-6), s = q * q;
    float t = q * (0.15915 + s * (-0.05295 + s * (0.03066 + s * (-0.01842 + s * 0.00656))));
    t = a.y > a.x ? 0.25 - t : t;
    t = v.x < 0.0 ? 0.5 - t : t;
    return v.y < 0.0 ? -t : t;
}

// A buffer at a row, between two columns.
vec4 between(sampler2D buffer, float column, int row) {
    float left = floor(column - 0.5), part = column - 0.5 - left;
    int one = int(mod(left, columns())), two = int(mod(left + 1.0, columns()));
    return mix(texelFetch(buffer, ivec2(one, row), 0), texelFetch(buffer, ivec2(two, row), 0), part);
}

// The first row that rises above a slope: as seen, or as mirrored. `shift` moves the columns as an eye beside the middle
// of the head sees them.
int row_above(float turned, float shift, float slope, bool mirrored, int first) {
    int low = first, high = int(rows());
    for (int n = 0; n < 7; n++) {
        int half_way = (low + high) / 2;
        float at = column_of(turned + shift / distance_of(float(half_way)));
        vec2 top = between(iChannel2, at, half_way).xy;
        bool above = (mirrored ? top.y : top.x) >= slope;
        if (low < high) {
            if (above) high = half_way;
            else low = half_way + 1;
        }
    }
    return low;
}

// The glow of the sky over the horizon, without the sun.
vec3 air(vec3 ray) {
    float up = max(ray.y, 0.0), low = 1.0 / (1.0 + 7.0 * up), to_sun = 0.5 + 0.5 * dot(ray.xz, SUN.xz);
    vec3 high = linear(sky), warm = linear(sun);
    vec3 violet = high * 1.6 + warm * 0.22;
    vec3 light = mix(high * 0.42, violet * 0.62, low);
    light += warm * low * low * low * (0.10 + 0.62 * to_sun * to_sun) * (0.75 + 0.35 * iLevel);
    return light;
}

vec3 heaven(vec3 ray, float turned, float pixel, float stars) {
    float off = 1.0 - dot(ray, SUN);
    float power = 0.62 + 0.55 * iLevel + 0.45 * pulse * iBeat + 0.03 * wave(iTime / 8.0);
    vec3 warm = linear(sun), light = air(ray);
    light += warm * power * (0.010 / (off + 0.012) + 0.05 / (off + 0.25));
    float disc = smoothstep(1.5 * pixel, -1.5 * pixel, sqrt(2.0 * off) - 0.115);
    light += (warm * 1.5 + 0.30) * power * disc * (0.8 + 2.2 * clamp(ray.y, 0.0, 0.25));

    // The northern light: the spectrum from the sun to both sides.
    float part = abs(turned) * 2.0, at = 2.0 * exp2(6.6 * sqrt(part)) / 512.0;
    float note = textureLod(iChannel0, vec2(at, 0.25), 0.0).x;
    float folds = 0.06 * wave(5.0 * part + iTime / 21.0) + 0.04 * wave(13.0 * part - iTime / 13.0) + 0.012 * wave(47.0 * part + iTime / 7.0);
    float foot = 0.22 + 0.5 * folds, over = ray.y - foot;
    float rays = 0.6 + 0.25 * wave(61.0 * part + iTime / 9.0) + 0.15 * wave(149.0 * part - iTime / 5.0);
    float curtain = smoothstep(-0.05, 0.02, over) / (1.0 + 34.0 * max(over, 0.0) * max(over, 0.0) + 4.0 * max(over, 0.0));
    float strong = note * note * note * (0.9 + 0.7 * iLevel) * rays * (0.25 + 0.75 * smoothstep(0.02, 0.12, part));
    light += mix(linear(lines), linear(sky) * 2.0 + linear(sun) * 0.5, clamp(over * 2.6, 0.0, 1.0)) * curtain * strong * 1.25;

    // Stars: cells of a cube around the viewer, so that they are alike in all directions.
    vec3 cube = ray * 58.0, cell = floor(cube);
    uint random = mixed(uint(int(cell.x) + 64) * 16384u + uint(int(cell.y) + 64) * 128u + uint(int(cell.z) + 64));
    vec3 dice = vec3(random & 1023u, (random >> 10u) & 1023u, (random >> 20u) & 1023u) / 1023.0;
    float away = length(cube - cell - 0.3 - 0.4 * dice) / (58.0 * max(pixel, 0.0011));
    float twinkle = 0.7 + 0.3 * wave(iTime * (0.2 + 0.4 * dice.x) + dice.y);
    float star = dice.z > 0.86 ? max(1.0 - 0.6 * away, 0.0) * twinkle : 0.0;
    return light + stars * star * smoothstep(0.05, 0.4, ray.y) * 0.9;
}

struct Hit {
    float distance;
    vec2 slope;
    float top;          // of the ridge, as a slope
    int row;
};

Hit land_at(float turned, float shift, float slope, int first, float eye) {
    Hit hit;
    hit.row = row_above(turned, shift, slope, false, first);
    if (hit.row >= int(rows())) return hit;
    float far = distance_of(float(hit.row)), column = column_of(turned + shift / far);
    vec4 there = between(iChannel1, column, hit.row);
    hit.distance = far;
    hit.slope = there.yz;
    hit.top = between(iChannel2, column, hit.row).x;
    if (hit.row > 0) {
        float near = distance_of(float(hit.row - 1));
        vec4 here = between(iChannel1, column_of(turned + shift / near), hit.row - 1);
        float low = (max(here.x, 0.0) - eye) / near, high = (max(there.x, 0.0) - eye) / far;
        float part = clamp((slope - low) / max(high - low, 1e-5), 0.0, 1.0);
        // Heights are straight between the rows: then one over the distance is, along a ray.
        hit.distance = 1.0 / mix(1.0 / near, 1.0 / far, part);
        hit.slope = mix(here.yz, there.yz, part);
    }
    return hit;
}

// The light of a place of the land.
vec3 ground(Hit hit, vec3 eye, vec3 ray, float slope, float pixel) {
    float height = eye.y + slope * hit.distance;
    vec2 way = normalize(ray.xz * vec2(1.0, -1.0));
    vec2 at = eye.xz + hit.distance * way;
    vec3 normal = normalize(vec3(-hit.slope.x, 1.0, hit.slope.y));
    float rise = dot(hit.slope, way), aside = dot(hit.slope, vec2(way.y, -way.x));
    vec3 light = linear(sky) * (0.05 + 0.22 * normal.y * normal.y) + linear(sun) * 0.5 * max(dot(normal, SUN), 0.0);
    light *= 0.55 + 0.45 * smoothstep(0.0, 9.0, height);

    float level = height / LINE, nearest = floor(level + 0.5);
    float changes = pixel * hit.distance * max(abs(rise) / max(rise - slope, 0.02), abs(aside)) / LINE;
    float band = iBands[int(clamp(nearest * 3.6, 0.0, 95.0))];
    float thin = 0.035 + 0.9 * changes, line = smoothstep(thin, 0.0, abs(level - nearest)) * 0.05 / thin * 1.4;
    line = mix(line, 0.07, smoothstep(0.3, 0.8, changes));
    float halo = 0.05 / (0.06 + abs(level - nearest)) * 0.25;
    float ring = hit.distance - 9.0 * -log(max(iBeat, 0.01)) - 2.0;
    float pulsed = pulse * iBeat / (1.0 + 0.10 * ring * ring);
    vec3 hue = mix(linear(lines), linear(sun), smoothstep(1.0, 11.0, height));
    light += hue * (line + 0.12 * halo) * (0.10 + 0.25 * iLevel + 2.6 * band * band * band + 5.0 * pulsed);
    return light;
}

vec3 seen(vec3 origin, vec3 ray, float pixel) {
    vec3 eye = viewer();
    eye.y += origin.y;
    float flat_length = max(length(ray.xz), 1e-4), slope = ray.y / flat_length;
    vec2 way = ray.xz / flat_length;
    float turned = turn(vec2(-way.y, way.x));
    float shift = (origin.x * -way.y + origin.z * way.x) / (2.0 * PI);             // the eye is to the right of the head
    float size = pixel * (1.0 + slope * slope);

    vec3 light = vec3(0.0);
    float left = 1.0;                                          // how much of the pixel is not covered yet
    int first = 0;
    float below = slope;
    for (int layer = 0; layer < 2; layer++) {
        Hit hit = land_at(turned, shift, below, first, eye.y);
        bool open = hit.row >= int(rows());
        float height = eye.y + below * hit.distance;
        bool water = !open && height < 0.03;
        if (hit.row == 0) { water = true; }
        float cover = open ? 1.0 : clamp((hit.top - below) / size + 0.5 * float(layer), 0.0, 1.0);
        if (water) cover = 1.0;
        vec3 colour = vec3(0.0);
        if (open || water) {
            vec3 look = ray;
            float shine = 1.0, far = eye.y / max(-slope, 1e-3);
            vec3 mirror = vec3(0.0);
            bool land_mirrored = false;
            if (water) {
                vec2 at = eye.xz + far * vec2(way.x, -way.y);
                float calm = 1.0 / (1.0 + 0.012 * far * far * pixel * 900.0);
                float choppy = (0.5 + 0.9 * iLevel) * calm;
                vec2 ripple = vec2(wave(at.x * 0.53 + at.y * 0.21 + iTime * 0.31) + 0.6 * wave(at.x * 1.1 - at.y * 0.7 - iTime * 0.43),
                                   wave(at.y * 0.61 - at.x * 0.17 + iTime * 0.37) + 0.6 * wave(at.y * 1.3 + at.x * 0.47 + iTime * 0.29));
                vec3 normal = normalize(vec3(0.016 * choppy * ripple.x, 1.0, 0.045 * choppy * ripple.y));
                look = reflect(ray, normal);
                look.y = abs(look.y) + 0.002;
                look = normalize(look);
                float cosine = clamp(-ray.y, 0.0, 1.0), grazing = 1.0 - cosine;
                shine = 0.05 + 0.95 * grazing * grazing * grazing * grazing;
                float up = look.y / max(length(look.xz), 1e-4);
                int mirrored_row = row_above(turned, shift, up, true, hit.row);
                land_mirrored = mirrored_row < int(rows());
                if (land_mirrored) {
                    float d = distance_of(float(mirrored_row));
                    mirror = mix(linear(sky) * 0.10, air(vec3(ray.x, 0.02, ray.z)), 1.0 - exp(-0.014 * d));
                }
            }
            colour = land_mirrored ? mirror : heaven(look, turned, pixel, open ? 1.0 : 0.0);
            if (water) {
                float ring = far - 9.0 * -log(max(iBeat, 0.01)) - 2.0;
                colour = colour * shine + linear(sky) * 0.05;
                colour += linear(lines) * pulse * iBeat * 0.35 / (1.0 + 0.4 * ring * ring);
                hit.distance = far;
            }
        } else {
            colour = ground(hit, eye, ray, below, pixel);
        }
        if (!open) {
            float haze = 1.0 - exp(-0.016 * hit.distance);
            float mist = haze * (water ? haze : 1.0);
            colour = mix(colour, air(vec3(ray.x, 0.03, ray.z)), mist * 0.94);
        }
        light += left * cover * colour;
        left *= 1.0 - cover;
        if (left < 0.02 || open) break;
        first = hit.row;
        below = max(below, hit.top + 1e-5);
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

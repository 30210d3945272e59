// Flames that the spectrum feeds: the bass burns in the middle, the highest notes at the sides, and sparks fly above.
// Parameters: colours (from the rims to the hottest places), root, background, gain, pulse, speed, embers.

// Chance in whole numbers, so that every device draws the same.
uint mixed(uint x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

float chance(uint x) { return float(mixed(x) >> 8) / 16777216.0; }

// Nearly a sine, of radians: smooth up to its second derivative, and quick where a CPU draws.
float swell(float radians) {
    float high = abs(2.0 * fract(radians * 0.15915494 - 0.25) - 1.0);
    return high * high * (6.0 - 4.0 * high) - 1.0;
}

float into(float place, float first) {
    float part = clamp(place - first, 0.0, 1.0);
    return part * part * (3.0 - 2.0 * part);
}

// The colours, from the first at 0 to the last at 1.
vec3 colour_at(float at) {
    float place = at * float(coloursCount - 1);
    vec3 colour = mix(colours[0], colours[1], into(place, 0.0));
    colour = mix(colour, colours[2], into(place, 1.0));
    colour = mix(colour, colours[3], into(place, 2.0));
    return colour;
}

// How loud the notes around a texel of the spectrum are, 0 to 1, smoothed so that they do not flicker.
float heard(int texel) { return texelFetch(iChannel0, ivec2(texel, 0), 0).x; }

// What feeds the fire at a distance from its middle, 0 to 1.
float fed_at(float side) {
    float bass = heard(4);
    float low = heard(11);
    float middle = heard(36) + 0.04;
    float high = heard(150) + 0.12;
    float place = 3.0 * side;
    float fed = mix(bass, low, smoothstep(0.0, 1.0, place));
    fed = mix(fed, middle, smoothstep(1.0, 2.0, place));
    fed = mix(fed, high, smoothstep(2.0, 3.0, place));
    return smoothstep(0.35, 0.95, fed);
}

// Eddies of a rising gas: each wave bends the ones after it. At the root they are small.
vec2 stirred(vec2 at, float rise) {
    float loose = 0.25 + 0.75 * smoothstep(0.0, 0.45, at.y);
    vec2 along = vec2(0.28, 0.96);
    float fine = 3.1;
    for (int n = 0; n < 7; n++) {
        float phase = fine * (dot(at, along) - rise * along.y) + 1.7 * float(n) + 0.8 * rise;
        at += 0.55 * loose / fine * swell(phase) * vec2(along.y, -along.x);
        along = mat2(0.6, -0.8, 0.8, 0.6) * along;
        fine *= 1.38;
    }
    return at;
}

// Sparks: one in each cell of a grid that rises, blown from side to side.
vec3 sparks(vec2 at, float rise, float cells, uint layer, float pixel, float loud) {
    vec2 grid = vec2(at.x + 0.045 * swell(at.y * 7.0 - rise * 2.0 + float(layer)), at.y - rise) * cells;
    vec2 cell = floor(grid);
    uint seed = uint(int(cell.x) + 4096) * 73856093u ^ uint(int(cell.y) + 1048576) * 19349663u ^ layer * 83492791u;
    seed = mixed(seed);
    float kind = float(seed >> 24) / 256.0;
    if (kind > embers * (0.15 + 0.6 * loud)) {
        return vec3(0.0);
    }
    vec2 own = vec2(seed & 1023u, (seed >> 10) & 1023u) / 1023.0 * 0.5 + 0.25;
    vec2 away = (grid - cell - own) / cells;
    away.y *= 0.45;
    float own_radius = (0.0017 + 0.0028 * kind) * max(1.0 - 0.4 * at.y, 0.3);
    float radius = max(own_radius, 0.9 * pixel); // what is smaller than a pixel is as dim as it is small
    float off = dot(away, away) / (radius * radius);
    float hot = max(1.0 - 0.25 * off, 0.0);
    float warm = max(1.0 - 0.02 * off, 0.0);
    float glow = hot * hot * hot + 0.12 * warm * warm * warm;
    float alive = (1.0 - smoothstep(0.25, 1.05, at.y)) * (0.65 + 0.35 * swell(rise * 9.0 + 40.0 * kind));
    return own_radius * own_radius / (radius * radius) * glow * alive * mix(colours[2], colours[3], kind);
}

// The blue light at the root, where the gas is not yet hot.
vec3 root_light(float body, float strands) { return root * body * (0.50 + 0.22 * strands); }

// The light of the flames.
vec3 fire(vec2 at, float half_width, float taller, float rise, float loud, float beat) {
    vec2 gas = stirred(at, rise);
    float side = abs(gas.x) / half_width;
    float fed = gain * fed_at(side);
    float lobes = 0.80 + 0.20 * swell(gas.x * 13.0 + 1.57 + 1.3 * swell(0.7 * rise));
    float height = (0.44 + 0.28 * loud + 0.46 * fed) * lobes / (1.0 + 1.9 * side * side) + 0.06 * beat;
    float heat = 1.0 - gas.y / (taller * height);
    float strands = swell(gas.x * 27.0 + 1.5 * swell(gas.y * 6.0 - rise));
    float fine = swell(gas.x * 61.0 - 2.0 * strands + gas.y * 9.0);
    float front = heat * (0.80 + 0.20 * strands + 0.06 * fine) - 0.10;
    float behind = heat * 0.75 + 0.26 + 0.10 * swell(gas.x * 17.0 + 2.0 - gas.y * 3.0);
    float blue = 1.0 - smoothstep(0.0, 0.11, at.y * (1.0 + 0.35 * strands));

    float veil = smoothstep(0.0, 1.0, behind);
    vec3 light = mix(colours[0], colours[1], min(0.30 + behind, 1.0)) * veil * veil * (0.35 + 0.35 * loud);
    float body = smoothstep(0.0, 0.85, front);
    vec3 flame = colour_at(1.15 * front) * body * (0.55 + 2.1 * front * front);
    flame *= 0.80 + 0.60 * loud + 0.85 * beat;
    flame = mix(flame, root_light(body, strands), 0.85 * blue);
    return light + flame;
}

// Bright light is rolled off, and what eight bits cannot hold is left to chance, so that gradients have no steps.
vec3 shown(vec3 light, vec2 place) {
    vec3 rolled = 0.92 * (1.0 - exp(-light));
    uint seed = uint(place.x) * 0x9e3779b1u ^ uint(place.y) * 0x85ebca77u ^ uint(iFrame) * 0xc2b2ae3du;
    return rolled + (chance(seed) - 0.5) / 255.0;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y);
    vec2 size = iResolution.xy / least;
    float tall = mix(1.0, size.y, 0.72);
    vec2 at = vec2(place.x - 0.5 * iResolution.x, place.y) / (least * tall);
    float half_width = 0.5 * size.x / tall;
    float pixel = 1.0 / (least * tall);
    float rise = speed * (0.30 * iTime + 0.75 * gain * iEnergy);
    float loud = gain * iSwell;
    float beat = pulse * iBeat;

    // The light that the fire throws on the smoke around it.
    vec2 off = vec2(at.x / (0.55 * half_width + 0.25), (at.y - 0.12) / (0.55 + 0.2 * loud + 0.5 * (tall - 1.0)));
    vec3 light = background * (1.5 - 0.5 * at.y);
    light += mix(colours[0], colours[1], 0.6) * (0.24 + 0.34 * loud + 0.32 * beat) * exp(-1.5 * dot(off, off));

    light += fire(at, half_width, 1.0 + 0.7 * (tall - 1.0), rise, loud, beat);
    light += 2.2 * (0.6 + 0.6 * loud + beat) * (
        sparks(at, 0.55 * rise, 7.0, 1u, pixel, loud) + sparks(at + 0.37, 0.8 * rise, 11.0, 2u, pixel, loud));
    colour = vec4(shown(light, place), 1.0);
}

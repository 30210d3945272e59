// Gas and dust between the stars. Young suns inside light them: the bass; the stars twinkle with the high notes.
// Parameters: colours (from the cold gas to the hottest), background, gain, pulse, speed, stars.

const float TURN = 6.2831853;

// Chance in whole numbers, so that every device draws the same.
uint mixed(uint x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
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
    return colour * colour; // as light
}

// How loud the notes around a texel of the spectrum are, 0 to 1, smoothed so that they do not flicker.
float heard(int texel) { return smoothstep(0.35, 0.95, texelFetch(iChannel0, ivec2(texel, 0), 0).x); }

// Nearly a cosine, of turns: smooth up to its second derivative, and quick where a CPU draws.
vec3 swell(vec3 turns) {
    vec3 high = abs(2.0 * fract(turns) - 1.0);
    return high * high * (6.0 - 4.0 * high) - 1.0;
}

const mat3 TURNED = mat3(0.00, 0.80, 0.60, -0.80, 0.36, -0.48, -0.60, -0.48, 0.64);

// Clouds, about -1 to 1. Each octave bends the ones after it, so they are drawn out to threads.
float clouds(vec3 at, float flow, int octaves) {
    float sum = 0.0;
    float high = 0.5;
    vec3 bent = vec3(0.0);
    at = at * TURNED;
    for (int n = 0; n < octaves; n++) {
        vec3 wave = swell(at + 0.50 * bent + vec3(0.0, 0.11 * flow, 0.0));
        sum += high * (wave.x * wave.y + wave.z * 0.6);
        bent = wave.zxy;
        at = TURNED * at * 1.87 + 0.27;
        high *= 0.535;
    }
    return sum;
}

// Stars in a direction: one in some of the cells of a grid, on the sphere around the eye.
vec3 stars_at(vec3 way, float cells, float pixel, uint layer) {
    vec3 cell = floor(way * cells);
    uvec3 whole = uvec3(ivec3(cell) + 4096);
    uint seed = mixed(whole.x * 73856093u ^ whole.y * 19349663u ^ whole.z * 83492791u ^ layer * 2654435761u);
    float kind = float(seed >> 24) / 256.0;
    if (kind > 0.45 * stars) {
        return vec3(0.0);
    }
    vec3 own = vec3(seed & 255u, (seed >> 8) & 255u, (seed >> 16) & 255u) / 255.0;
    vec3 star = normalize(cell + 0.2 + 0.6 * own) * cells;
    vec3 inside = abs(fract(star) - 0.5);
    float room_left = 0.5 - max(inside.x, max(inside.y, inside.z));
    if (any(notEqual(floor(star), cell)) || room_left < 0.05) {
        return vec3(0.0);
    }
    float far = length(star - way * cells) / cells;
    float bright = own.x * own.x * own.x;
    float own_radius = 0.0011 + 0.0012 * bright;
    float radius = max(own_radius, 0.8 * pixel); // what is smaller than a pixel is as dim as it is small
    float twinkle = 0.55 + 0.25 * swell(vec3(0.21 * iTime + own.y)).x + 1.2 * gain * heard(100 + int(own.z * 220.0));
    float light = exp(-far * far / (radius * radius)) + 0.10 * bright / (1.0 + far * far / (9.0 * radius * radius));
    light *= smoothstep(room_left, 0.5 * room_left, far * cells) * own_radius * own_radius / (radius * radius);
    return mix(vec3(0.75, 0.85, 1.0), vec3(1.0, 0.86, 0.68), own.y) * light * (0.15 + 1.8 * bright) * twinkle;
}

vec3 look(vec3 eye, vec3 way, float pixel) {
    float loud = gain * iSwell;
    float beat = pulse * iBeat;
    float bass = gain * 0.5 * (heard(3) + heard(6));
    float flow = speed * (0.10 * iTime + 0.30 * gain * iEnergy);
    vec3 drift = vec3(0.05 * flow, 0.0, -0.11 * flow);

    vec3 far = eye * 0.12 + way;             // eight metres away
    vec3 near = (eye * 0.4 + way) * 0.9;    // two and a half
    float wide = clouds(0.40 * far + drift * 0.5 + 0.11, 0.5 * flow, 3);
    float cold = clouds(0.74 * far + 0.24 * wide + drift + 0.31, flow, 6);
    float dust = clouds(0.80 * near - 0.26 * wide + 1.5 * drift + 0.73, flow, 5);

    vec3 sun = normalize(vec3(0.22, 0.10, -1.0));
    vec3 other = normalize(vec3(-0.55, -0.22, -1.0));
    float to_sun = max(1.0 - dot(way, sun), 0.0);
    float to_other = max(1.0 - dot(way, other), 0.0);
    float shine = (0.35 + 0.9 * bass + 0.9 * beat + 0.3 * loud) * (0.034 / (0.018 + to_sun))
        + (0.30 + 0.9 * loud) * (0.016 / (0.020 + to_other));

    float thick = smoothstep(-0.42, 1.00, cold);
    float dark = smoothstep(0.10, 0.62, dust);
    float brink = smoothstep(-0.20, 0.16, dust) * (1.0 - dark);
    float warm = 0.34 + 0.44 * wide + 0.26 * cold;
    vec3 gas = colour_at(warm);
    vec3 light = background * background * 4.0;
    light += gas * thick * (0.26 + 0.58 * loud) * (0.30 + 1.6 * thick * thick);
    light += (1.1 * gas + 0.25 * colour_at(0.6 + 0.4 * thick)) * shine * (0.12 + 0.75 * thick);
    vec3 sky = stars_at(way, 22.0, pixel, 1u) + stars_at(way, 47.0, pixel, 2u);
    light += sky * (1.0 - 0.75 * thick);
    light *= mix(1.0, 0.14, dark);
    light += colour_at(warm + 0.30) * brink * brink * (0.03 + 0.06 * loud + 0.34 * shine);
    light *= 0.72 + 0.45 * loud + 0.20 * beat;
    return max(mix(vec3(dot(light, vec3(0.3, 0.5, 0.2))), light, 1.22), 0.0);
}

// Bright light is rolled off, and what eight bits cannot hold is left to chance, so that gradients have no steps.
vec3 shown(vec3 light, vec2 place) {
    vec3 rolled = 0.94 * sqrt(1.0 - exp(-1.5 * light));
    uint seed = uint(place.x) * 0x9e3779b1u ^ uint(place.y) * 0x85ebca77u ^ uint(iFrame) * 0xc2b2ae3du;
    return rolled + (float(mixed(seed) >> 8) / 16777216.0 - 0.5) / 255.0;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y);
    vec2 at = (place - 0.5 * iResolution.xy) / least;
    vec3 way = normalize(vec3(1.15 * at, -1.0));
    colour = vec4(shown(look(vec3(0.0), way, 1.15 / least), place), 1.0);
}

void mainVR(out vec4 colour, in vec2 place, in vec3 eye, in vec3 way) {
    colour = vec4(shown(look(eye, way, TURN / iResolution.x), place), 1.0);
}

// Flames that the spectrum feeds: the bass burns in the middle, the highest notes at the sides, and sparks fly above.
// Parameters: colours (from the rims to the hottest places), root, background, gain, pulse, speed, embers.

const float TURN = 6.2831853;

// Chance in whole numbers, so that every device draws the same.
uint mixed(uint x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

float chance(uint x) { return float(mixed(x) >> 8) / 16777216.0; }

vec3 colour_at(float at) {
    float place = clamp(at, 0.0, 1.0) * float(coloursCount - 1);
    int first = min(int(place), max(coloursCount - 2, 0));
    return mix(colours[first], colours[min(first + 1, coloursCount - 1)], smoothstep(0.0, 1.0, place - float(first)));
}

// How loud the notes at a place are, 0 (the lowest) to 1, without the haste of single frames.
float heard(float at) {
    float hertz = 50.0 * exp2(at * 7.2);
    float db = texture(iChannel0, vec2(hertz / 11025.0, 0.25)).x;
    float lift = 0.10 * at;
    return smoothstep(0.30, 0.95, db + lift);
}

// Eddies of a rising gas: each wave bends the ones after it.
vec2 stirred(vec2 at, float rise) {
    vec2 moved = at;
    vec2 along = vec2(0.0, 1.0);
    float fine = 2.6;
    for (int n = 0; n < 9; n++) {
        float phase = fine * (dot(moved, along) - rise * along.y) + float(n) * 1.7 + rise * 0.9;
        moved += 0.62 / fine * vec2(along.y, -along.x) * sin(phase) * smoothstep(0.0, 0.3, at.y + 0.05);
        along = mat2(0.6, -0.8, 0.8, 0.6) * along;
        fine *= 1.37;
    }
    return moved;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y);
    vec2 size = iResolution.xy / least;
    vec2 at = vec2(place.x - 0.5 * iResolution.x, place.y) / least;
    float tall = pow(size.y, 0.7);
    at /= tall;
    float pixel = 1.0 / (least * tall);
    float rise = speed * (0.45 * iTime + 1.1 * gain * iEnergy);
    float loud = min(gain * (0.6 * iLevel + 0.4 * heard(0.1)), 1.5);

    vec2 gas = stirred(at, rise);
    float side = abs(gas.x) / (0.5 * size.x / tall);
    float fed = gain * heard(clamp(side, 0.0, 1.0));
    float height = (0.20 + 0.30 * loud + 0.38 * fed) * exp(-1.4 * side * side) + 0.05 * pulse * iBeat;
    float heat = 1.0 - gas.y / height;
    float strands = 0.5 + 0.5 * sin(gas.x * 21.0 + 2.0 * sin(gas.y * 5.0 - rise * 2.0));
    heat = heat * (0.75 + 0.35 * strands);
    float body = smoothstep(0.0, 0.9, heat);
    vec3 light = background * (0.6 + 0.5 * size.y - 0.4 * at.y);
    light += colour_at(heat) * body * (0.4 + 1.6 * body) * (0.7 + 0.5 * loud + 0.4 * pulse * iBeat);
    colour = vec4(1.0 - exp(-light), 1.0);
}

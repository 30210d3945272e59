// A drop of liquid metal in a room of lights. Each light is a part of the spectrum; the drop flows and reflects them.
// Parameters: colours, background, gain, pulse, speed, size.

const float TURN = 6.2831853;
const float AWAY = 2.6; // metres from the eye to the middle of the orb

// Chance in whole numbers, so that every device draws the same.
uint mixed(uint x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// The colours in a circle: 0 and 1 are the first one.
vec3 colour_at(float turns) {
    float place = fract(turns) * float(coloursCount);
    int first = min(int(place), coloursCount - 1);
    int next = first + 1 == coloursCount ? 0 : first + 1;
    vec3 mixed_in = mix(colours[first], colours[next], smoothstep(0.0, 1.0, place - float(first)));
    return mixed_in * mixed_in; // as light
}

// How loud the notes around a texel of the spectrum are, 0 to 1, without the haste of single frames.
float heard(int texel) { return smoothstep(0.35, 0.95, texelFetch(iChannel0, ivec2(texel, 0), 0).x); }

// What moves the orb in a frame.
struct Motion {
    float flow;
    float radius;
    vec3 waves; // how high the slow, the middle and the fine waves are, in metres
};

Motion motion_of() {
    float loud = gain * iLevel;
    float breath = 0.5 + 0.5 * sin(0.9 * iTime);
    float bass = gain * 0.5 * (heard(3) + heard(6));
    float middle = gain * 0.5 * (heard(20) + heard(45));
    float high = gain * 0.5 * (heard(110) + heard(220));
    Motion motion;
    motion.flow = speed * (0.35 * iTime + 0.9 * gain * iEnergy);
    motion.radius = size * (0.66 + 0.012 * breath + 0.05 * loud + 0.05 * pulse * iBeat);
    motion.waves = size * vec3(0.055 + 0.11 * bass, 0.012 + 0.045 * middle, 0.003 + 0.011 * high);
    return motion;
}

float wave_at(vec3 at, Motion motion) {
    float t = motion.flow;
    vec3 slow = sin(3.1 * at + vec3(t, 1.3 * t + 2.0, 0.7 * t + 4.0));
    vec3 quick = sin(6.7 * at.yzx + 1.6 * slow + vec3(1.1 * t, 0.0, -0.8 * t));
    vec3 fine = sin(15.0 * at.zxy + 1.3 * quick - vec3(0.0, 2.0 * t, 0.0));
    return motion.waves.x * (slow.x * slow.y + slow.y * slow.z + 0.5 * slow.x)
        + motion.waves.y * (quick.x * quick.y + quick.z)
        + motion.waves.z * (fine.x + fine.y * fine.z);
}

float distance_to(vec3 at, Motion motion) { return length(at) - motion.radius - wave_at(at, motion); }

// The light that comes from a direction: panels around the horizon, a lamp above, and the room.
vec3 room(vec3 way, float soft) {
    float around = atan(way.x, -way.z) / TURN + 0.5;
    vec3 light = background * background * 3.0 * (0.6 + 0.4 * way.y);
    light += colour_at(0.12 + 0.25 * way.y) * 0.06 * (0.6 + 0.8 * gain * iLevel) * (1.0 - abs(way.y));
    float panel = floor(around * 20.0);
    float across = abs(fract(around * 20.0) - 0.5);
    float note = abs(panel - 9.5) - 0.5; // 0 (ahead) to 9 (behind)
    float loud = gain * heard(3 + int(note * note * 3.5));
    float tall = 0.30 + 0.35 * loud;
    float shape = smoothstep(0.34 + soft, 0.22 - soft, across) * smoothstep(tall + 0.12, tall - 0.12 - soft, abs(way.y));
    light += colour_at(0.5 + 0.055 * note + 0.1 * way.y) * shape * (0.22 + 1.9 * loud);
    float lamp = smoothstep(0.70 - soft, 0.93, way.y);
    light += vec3(1.0, 0.96, 0.92) * lamp * (0.9 + 0.7 * pulse * iBeat);
    light += colour_at(0.65) * 0.5 * smoothstep(0.4, 1.0, -way.y);
    return light;
}

vec3 look(vec3 eye, vec3 way, float pixel) {
    Motion motion = motion_of();
    vec3 from = eye + vec3(0.0, 0.0, AWAY);
    float middle = -dot(from, way);
    float passing = length(from + middle * way); // how near the ray comes to the middle
    float reach = motion.radius + 2.2 * motion.waves.x + 2.0 * motion.waves.y + 2.0 * motion.waves.z;
    float loud = gain * iLevel;

    float rim = middle > 0.0 ? passing - motion.radius : 3.0;
    float halo = exp(-3.4 * max(rim, 0.0) / motion.radius);
    vec3 light = 0.16 * room(way, 0.2);
    light += colour_at(0.62 + 0.10 * sin(0.3 * motion.flow) + 0.25 * way.y) * halo
        * (0.10 + 0.42 * loud + 0.35 * pulse * iBeat);

    if (middle > 0.0 && passing < reach) {
        float half_chord = sqrt(reach * reach - passing * passing);
        float along = middle - half_chord;
        float until = middle + half_chord;
        float nearest = 1.0;
        float nearest_at = middle;
        for (int n = 0; n < 22; n++) {
            float gap = distance_to(from + along * way, motion);
            if (gap < nearest) {
                nearest = gap;
                nearest_at = along;
            }
            if (gap < 0.0008 || along > until) {
                break;
            }
            along += 0.75 * gap;
        }
        float cover = clamp(1.0 - (nearest - 0.0008) / (1.5 * pixel * AWAY), 0.0, 1.0);
        if (cover > 0.0) {
            vec3 at = from + nearest_at * way;
            vec2 step = vec2(0.004, -0.004);
            vec3 normal = normalize(
                step.xyy * distance_to(at + step.xyy, motion) + step.yyx * distance_to(at + step.yyx, motion)
                + step.yxy * distance_to(at + step.yxy, motion) + step.xxx * distance_to(at + step.xxx, motion));
            float facing = clamp(-dot(normal, way), 0.0, 1.0);
            vec3 back = reflect(way, normal);
            float edge = pow(1.0 - facing, 4.0);
            vec3 film = colour_at(0.85 * facing + 0.22 * normal.y + 0.04 * motion.flow);
            vec3 metal = room(back, 0.03) * mix(0.35 + 1.1 * film, vec3(1.0), edge);
            float hollow = smoothstep(0.02, -0.14, wave_at(at, motion) / size);
            vec3 within = film * (0.10 + 0.30 * loud + 0.5 * pulse * iBeat * hollow + 0.5 * loud * hollow);
            vec3 lit = metal + within * (0.35 + 0.65 * facing) + film * edge * (0.25 + 0.8 * loud);
            light = mix(light, lit, cover);
        }
    }
    return light;
}

// Bright light is rolled off, and what eight bits cannot hold is left to chance, so that gradients have no steps.
vec3 shown(vec3 light, vec2 place) {
    vec3 rolled = 0.94 * sqrt(1.0 - exp(-1.3 * light));
    uint seed = uint(place.x) * 0x9e3779b1u ^ uint(place.y) * 0x85ebca77u ^ uint(iFrame) * 0xc2b2ae3du;
    return rolled + (float(mixed(seed) >> 8) / 16777216.0 - 0.5) / 255.0;
}

void mainImage(out vec4 colour, in vec2 place) {
    float least = min(iResolution.x, iResolution.y);
    vec2 at = (place - 0.5 * iResolution.xy) / least;
    colour = vec4(shown(look(vec3(0.0), normalize(vec3(0.92 * at, -1.0)), 0.92 / least), place), 1.0);
}

void mainVR(out vec4 colour, in vec2 place, in vec3 eye, in vec3 way) {
    colour = vec4(shown(look(eye, way, TURN / iResolution.x), place), 1.0);
}

// A drop of liquid metal in a room of lights. Each light is a part of the spectrum; the drop flows and reflects them.
// Parameters: colours, background, gain, pulse, speed, size.

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

// The colours in a circle: 0 and 1 are the first one.
vec3 colour_at(float turns) {
    float place = fract(turns) * float(coloursCount);
    vec3 colour = mix(colours[0], colours[1], into(place, 0.0));
    colour = mix(colour, colours[2], into(place, 1.0));
    colour = mix(colour, colours[3], into(place, 2.0));
    colour = mix(colour, colours[0], into(place, float(coloursCount - 1)));
    return colour * colour; // as light
}

// Nearly a cosine, of turns: smooth up to its second derivative, and quick where a CPU draws.
vec3 swell(vec3 turns) {
    vec3 high = abs(2.0 * fract(turns) - 1.0);
    return high * high * (6.0 - 4.0 * high) - 1.0;
}

// How fast it rises.
vec3 rise(vec3 turns) {
    vec3 high = 2.0 * fract(turns) - 1.0;
    return 24.0 * high * (1.0 - abs(high));
}

// How loud the notes around a texel of the spectrum are, 0 to 1, smoothed so that they do not flicker.
float heard(int texel) { return smoothstep(0.35, 0.95, texelFetch(iChannel0, ivec2(texel, 0), 0).x); }

// What the orb does in a frame.
struct Motion {
    float flow;   // how far it has flowed
    float radius; // in metres
    vec3 waves;   // how high its slow, its quick and its fine waves are, in metres
};

vec3 waves_of_the_sound() {
    float bass = gain * heard(4);
    float middle = gain * heard(30);
    float high = gain * heard(150);
    return size * vec3(0.040 + 0.080 * bass, 0.012 + 0.040 * middle, 0.003 + 0.010 * high);
}

vec3 slow_turns(vec3 at, float flow) { return 0.49 * at + vec3(0.16, 0.21, 0.11) * flow + vec3(0.0, 0.3, 0.6); }

vec3 quick_turns(vec3 at, float flow, vec3 slow) {
    return 1.07 * at.yzx + 0.25 * slow + vec3(0.18, 0.0, -0.13) * flow + vec3(0.0, 0.25, 0.0);
}

// How far a place is from the surface, without the fine waves: those only bend the light.
float distance_to(vec3 at, Motion motion) {
    vec3 slow = swell(slow_turns(at, motion.flow));
    vec3 quick = swell(quick_turns(at, motion.flow, slow));
    float wave = motion.waves.x * (slow.x * slow.y + slow.y * slow.z + 0.5 * slow.x)
        + motion.waves.y * (quick.x * quick.y + quick.z);
    return length(at) - motion.radius - wave;
}

// The direction away from the surface: that of the slope of the distance, and of the fine waves.
vec3 normal_at(vec3 at, Motion motion) {
    vec3 turns = slow_turns(at, motion.flow);
    vec3 slow = swell(turns);
    vec3 slow_rise = 0.49 * rise(turns);
    turns = quick_turns(at, motion.flow, slow);
    vec3 quick = swell(turns);
    vec3 quick_rise = rise(turns);
    turns = 2.40 * at.zxy + 0.21 * quick + vec3(0.0, -0.32, 0.0) * motion.flow;
    vec3 fine = swell(turns);
    vec3 by_fine = motion.waves.z * vec3(1.0, fine.z, fine.y) * rise(turns);
    vec3 by_quick = (motion.waves.y * vec3(quick.y, quick.x, 1.0) + 0.21 * by_fine) * quick_rise;
    vec3 by_slow = motion.waves.x * vec3(slow.y + 0.5, slow.x + slow.z, slow.y) + 0.25 * by_quick;
    vec3 slope = by_slow * slow_rise + 1.07 * by_quick.zxy + 2.40 * by_fine.yzx;
    return normalize(normalize(at) - slope);
}

// The panels of light around the horizon, in a direction: how bright each is, its notes say. The lowest are ahead.
vec3 panels(vec3 way, float soft) {
    float around = 24.0 * (atan(way.x, -way.z) / TURN + 0.5);
    float note = abs(floor(around) - 11.5) - 0.5; // 0 (ahead) to 11 (behind)
    float loud = gain * heard(3 + int(note * note * 2.5));
    float tall = 0.26 + 0.34 * loud;
    float across = abs(fract(around) - 0.5);
    float shape = smoothstep(0.30 + soft, 0.20 - soft, across) * smoothstep(tall + 0.1 + soft, tall - 0.1 - soft, abs(way.y));
    return colour_at(0.5 + 0.05 * note + 0.1 * way.y) * shape * (0.16 + 1.9 * loud);
}

// The light of the walls, which have no edges.
vec3 walls(vec3 way) {
    vec3 wash = mix(colours[0] * colours[0], colours[1] * colours[1], 0.55 + 0.45 * way.y);
    return background * background * (2.6 + 1.8 * way.y) + wash * (0.022 + 0.04 * gain * iSwell);
}

// All the light that comes from a direction, for what reflects it.
vec3 room(vec3 way) {
    vec3 lamp = vec3(1.0, 0.96, 0.92) * smoothstep(0.66, 0.93, way.y) * (0.9 + 0.7 * pulse * iBeat);
    vec3 floor_light = 0.45 * (0.3 * colours[2] * colours[2] + colours[3] * colours[3]) * smoothstep(0.35, 1.0, -way.y);
    return 1.5 * walls(way) + panels(way, 0.03) + lamp + floor_light;
}

// The orb, as it is seen from a place relative to its middle.
vec3 metal(vec3 at, vec3 way, Motion motion, float loud) {
    vec3 normal = normal_at(at, motion);
    float facing = clamp(-dot(normal, way), 0.0, 1.0);
    float edge = (1.0 - facing) * (1.0 - facing);
    edge *= edge;
    vec3 film = colour_at(0.85 * facing + 0.22 * normal.y + 0.04 * motion.flow);
    float hollow = 1.0 - smoothstep(-0.12, 0.03, (length(at) - motion.radius) / size);
    float beat = pulse * iBeat;
    vec3 within = film * (0.10 + 0.25 * loud + (0.6 * beat + 0.5 * loud) * hollow) * (0.35 + 0.65 * facing);
    vec3 mirror = room(reflect(way, normal)) * mix(0.32 + 1.1 * film, vec3(1.0), edge);
    return mirror + within + film * edge * (0.25 + 0.8 * loud);
}

// What an eye sees in a direction. `away` is how far the middle of the orb is ahead; `pixel` is an angle.
vec3 look(vec3 eye, vec3 way, float away, float pixel, vec3 behind) {
    float loud = gain * iSwell;
    Motion motion;
    motion.flow = speed * (0.35 * iTime + 0.9 * gain * iEnergy);
    vec3 slow = swell(vec3(0.14 * iTime, 0.05 * motion.flow, 0.0));
    float breath = slow.x;
    motion.radius = size * (0.66 + 0.008 * breath + 0.05 * loud + 0.05 * pulse * iBeat);

    vec3 from = eye + vec3(0.0, 0.0, away);
    float middle = -dot(from, way);
    float passing = middle > 0.0 ? length(from + middle * way) : away; // how near the ray comes to the middle
    float halo = exp(-3.2 * max(passing / motion.radius - 0.9, 0.0));
    vec3 glow = colour_at(0.62 + 0.10 * slow.y + 0.25 * way.y);
    vec3 light = behind + walls(way) + glow * (0.004 + 0.014 * loud);
    light += glow * halo * (0.13 + 0.04 * breath + 0.50 * loud + 0.40 * pulse * iBeat);

    if (middle > 0.0 && passing < motion.radius + 0.35 * size) {
        motion.waves = waves_of_the_sound();
        float reach = motion.radius + 1.8 * motion.waves.x + 2.0 * motion.waves.y;
        float half_chord = sqrt(max(reach * reach - passing * passing, 0.0));
        float along = middle - half_chord;
        float nearest = 1.0;
        float nearest_at = middle;
        for (int n = 0; n < 15; n++) {
            float gap = distance_to(from + along * way, motion);
            if (gap < nearest) {
                nearest = gap;
                nearest_at = along;
            }
            along += 0.85 * gap;
            if (gap < 0.001 || along > middle + half_chord) {
                break;
            }
        }
        float cover = clamp(1.0 - (nearest - 0.001) / (1.4 * pixel * away), 0.0, 1.0);
        if (cover > 0.0) {
            light = mix(light, metal(from + nearest_at * way, way, motion, loud), cover);
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
    vec3 way = normalize(vec3(0.92 * at, -1.0));
    vec3 light = look(vec3(0.0), way, 2.6, 0.92 / least, vec3(0.0));
    colour = vec4(shown(light / (1.0 + 0.5 * dot(at, at)), place), 1.0);
}

void mainVR(out vec4 colour, in vec2 place, in vec3 eye, in vec3 way) {
    float away = 1.5 + max(size * (0.8 + 0.2 * gain) - 1.0, 0.0); // no part of it is in the viewer's face
    vec3 light = look(eye, way, away, TURN / iResolution.x, 0.35 * panels(way, 0.06));
    colour = vec4(shown(light, place), 1.0);
}

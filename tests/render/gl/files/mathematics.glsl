// Functions that scenes are made of, at values where they are known.
bool near(float a, float b) { return abs(a - b) < 2e-4; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float one = iResolution.z, x = fragCoord.x, whole;
    bool good = mod(-one, 3.0) == 2.0 && fract(-0.25 * one) == 0.75 && floor(-0.5 * one) == -1.0 && ceil(0.2 * one) == 1.0;
    good = good && sign(-x) == -1.0 && step(x, x) == 1.0 && near(smoothstep(0.0, 4.0, one), 0.15625) && trunc(-1.7 * one) == -1.0;
    good = good && roundEven(2.5 * one) == 2.0 && modf(2.75 * one, whole) == 0.75 && whole == 2.0;
    good = good && near(atan(one, -one), 2.3561945) && near(acos(-one), 3.1415927) && near(atan(one), 0.7853982);
    good = good && near(pow(2.0 * one, 10.0) / 1024.0, 1.0) && near(exp2(3.0 * one), 8.0) && near(log2(8.0 * one), 3.0);
    good = good && near(exp(one), 2.7182818) && near(log(2.7182818 * one), 1.0) && near(inversesqrt(4.0 * one), 0.5);
    good = good && near(tanh(one), 0.7615942) && near(sinh(one), 1.1752012) && near(acosh(2.0 * one), 1.3169579);
    vec3 n = normalize(vec3(0.0, one, 0.0)), d = vec3(one, -one, 0.0);
    good = good && reflect(d, n) == vec3(1.0, 1.0, 0.0) && near(refract(normalize(d), n, 0.5).x, 0.35355338);
    good = good && dot(n, d) == -1.0 && cross(vec3(one, 0.0, 0.0), n) == vec3(0.0, 0.0, 1.0) && faceforward(n, d, n) == n;
    good = good && mix(vec2(1.0), vec2(5.0), 0.25 * one) == vec2(2.0) && mix(vec2(1.0, 2.0), vec2(3.0, 4.0), bvec2(true, false)) == vec2(3.0, 2.0);
    good = good && any(lessThan(vec2(x, 0.0), vec2(0.0, one))) && !all(greaterThan(vec2(x, 0.0), vec2(0.0))) && not(bvec2(false)).x;
    good = good && clamp(x, 3.0, 5.0) >= 3.0 && clamp(vec2(x), 3.0, 5.0).y <= 5.0 && near(sin(radians(90.0 * one)), 1.0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

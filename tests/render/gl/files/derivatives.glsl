// Derivatives: x grows to the right, y upwards, as on Shadertoy.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec2 uv = fragCoord / iResolution.xy;
    bool good = dFdx(fragCoord) == vec2(1.0, 0.0) && dFdy(fragCoord) == vec2(0.0, 1.0);
    good = good && fwidth(3.0 * fragCoord.x - 2.0 * fragCoord.y) == 5.0;
    good = good && abs(dFdx(uv.x) * iResolution.x - 1.0) < 1e-3 && abs(dFdy(uv.y) * iResolution.y - 1.0) < 1e-3;
    vec3 place = vec3(fragCoord, 0.0), normal = normalize(cross(dFdx(place), dFdy(place)));
    good = good && normal == vec3(0.0, 0.0, 1.0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

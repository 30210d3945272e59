// Swizzles: reading, writing, all three alphabets, and vectors made of parts.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    vec4 v = vec4(fragCoord, iResolution.xy);
    bool good = v.xy == fragCoord && v.ba == iResolution.xy && v.stpq == v.rgba;
    vec4 u = v;
    u.wzyx = v;
    good = good && u == v.abgr;
    u.xz *= 2.0;
    good = good && u.x == 2.0 * v.w && u.y == v.z && u.z == 2.0 * v.y;
    u.yx = u.xy;
    good = good && u.x == v.z;
    good = good && vec3(1.0).xxyz.w == 1.0 && vec4(vec2(1.0), vec2(2.0)).yzw.zx == vec2(2.0, 1.0);
    ivec3 i = ivec3(fragCoord.xyx);
    i.zx = i.yy + 1;
    good = good && i == ivec3(fragCoord.y + 1.0, fragCoord.y, fragCoord.y + 1.0);
    fragColor = vec4(1.0, 0.0, 0.0, 1.0);
    if (good) fragColor.rg = fragColor.gr;
}

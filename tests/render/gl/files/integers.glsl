// Integers, signed and unsigned: 32 bits that wrap, shifts, and a hash that is the same on every device.
uint pcg(uint n)
{
    n = n * 747796405u + 2891336453u;
    n = ((n >> ((n >> 28u) + 4u)) ^ n) * 277803737u;
    return (n >> 22u) ^ n;
}

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    uint zero = uint(iMouse.x), x = uint(fragCoord.x);
    bool good = pcg(zero) == 129708002u && pcg(zero + 1u) == 2831084092u && pcg(zero + 0xffffffffu) == 3861530882u;
    good = good && zero - 1u == 0xffffffffu && (x << 3u) == 8u * x && ((x ^ 21u) ^ 21u) == x && (~x & x) == 0u;
    int minus = -int(x) - 1;
    good = good && minus >> 1 == -int(x / 2u) - 1 && -7 / (int(zero) + 2) == -3 && (minus & 1) == 1 - (int(x) & 1);
    uvec3 v = uvec3(x, x + 1u, 7u) * uvec3(2u, 3u, 0x40000000u);
    good = good && v == uvec3(2u * x, 3u * x + 3u, 0xc0000000u);
    good = good && int(-2.7 * iResolution.z) == -2 && uint(3.9 * iResolution.z) == 3u && float(0x80000000u + zero) == 2147483648.0;
    good = good && abs(ivec2(minus, 3)) == ivec2(int(x) + 1, 3) && max(minus, -3) >= -3 && sign(minus) == -1;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

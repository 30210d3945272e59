// The bits of numbers, and numbers that are packed into others.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float x = fragCoord.x, one = iResolution.z;
    bool good = floatBitsToUint(one) == 0x3f800000u && floatBitsToInt(-one) < 0;
    good = good && uintBitsToFloat(floatBitsToUint(x)) == x && intBitsToFloat(0x40490fdb + int(iMouse.x)) > 3.14159;
    good = good && packUnorm2x16(vec2(one, 0.0)) == 0xffffu && unpackUnorm2x16(0xffff0000u) == vec2(0.0, one);
    good = good && unpackHalf2x16(packHalf2x16(vec2(x, -x))) == vec2(x, -x);
    good = good && abs(unpackSnorm2x16(packSnorm2x16(vec2(-0.5, 0.25) * one)).x + 0.5) < 1e-4;
    good = good && isnan(uintBitsToFloat(0x7fc00000u + uint(iMouse.x))) && isinf(uintBitsToFloat(0xff800000u));
    good = good && !isnan(x) && !isinf(x);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

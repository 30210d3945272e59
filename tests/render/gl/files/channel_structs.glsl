// Shadertoy's other form of the same: iCh0 to iCh3.
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = iCh0.size == vec3(512.0, 2.0, 1.0) && iCh0.time == iTime && iCh0.loaded == 1;
    good = good && iCh1.size == iChannelResolution[1] && iCh1.time == 0.0;
    vec2 uv = fragCoord / iResolution.xy;
    good = good && texture(iCh1.sampler, uv) == texture(iChannel1, uv);
    good = good && texelFetch(iCh0.sampler, ivec2(fragCoord), 0) == texelFetch(iChannel0, ivec2(fragCoord), 0);
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

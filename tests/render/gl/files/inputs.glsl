// What Shadertoy gives: at frame 7 of 30 a second, with sound of 48,000 samples a second.
bool near(float a, float b) { return abs(a - b) < 1e-6; }

void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    bool good = iResolution == vec3(64.0, 36.0, 1.0) && iFrame == 7 && iFrameRate == 30.0;
    good = good && near(iTime, 7.0 / 30.0) && near(iTimeDelta, 1.0 / 30.0) && iGlobalTime == iTime;
    good = good && iMouse == vec4(0.0) && iDate.y == 0.0 && iDate.z == 1.0 && iSampleRate == 48000.0;
    good = good && iChannelTime[0] == iTime && iChannelTime[1] == 0.0 && iChannelTime[2] == 0.0;
    good = good && iChannelResolution[0] == vec3(512.0, 2.0, 1.0) && iChannelResolution[1] == vec3(40.0, 24.0, 1.0);
    good = good && iChannelResolution[3] == vec3(0.0);
    good = good && fragCoord == floor(fragCoord) + 0.5 && fragCoord.x < 64.0 && fragCoord.y < 36.0;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}
//! iChannel3: none

#version 300 es
#extension GL_OES_standard_derivatives : enable
#ifdef GL_ES
precision mediump float;
precision mediump int;
#endif
uniform vec3 iResolution;           // viewport resolution (in pixels)
uniform float iTime, iTimeDelta;    // shader playback time (in seconds)
uniform highp vec4 iMouse;
uniform sampler2D iChannel0;
uniform float iChannelTime[4]; uniform vec3 iChannelResolution [ 4 ];
/* uniform float nothing; */
uniform int
    iFrame;

void mainImage(out highp vec4 fragColor, in mediump vec2 fragCoord)
{
    bool good = __LINE__ == 18 && iResolution.x == 64.0 && iFrame == 7 && iMouse == vec4(0.0) && iTime > iTimeDelta;
    good = good && texelFetch(iChannel0, ivec2(1, 0), 0).x > 0.0 && dFdx(fragCoord.x) == 1.0;
    fragColor = good ? vec4(0.0, 1.0, 0.0, 1.0) : vec4(1.0, 0.0, 0.0, 1.0);
}

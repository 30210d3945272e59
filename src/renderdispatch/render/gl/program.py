"""How does a pass of a shader become a program, and where in the file is its mistake?

Shadertoy is WebGL 2, so this is GLSL ES 3.00, which desktop OpenGL compiles too since version 4.3. ``#line`` gives each
part of a file its own numbers, and what stands around it numbers that no file has.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import moderngl

from renderdispatch.errors import SceneError
from renderdispatch.render.features import BANDS
from renderdispatch.render.gl.shader import Pass, Shader, Text

Entry = Literal["image", "vr"]

_BEYOND: Final = 1_000_000
"""Line numbers of what is ours."""

VERTEX: Final = """#version 300 es
void main() {
    vec2 corner = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
    gl_Position = vec4(corner, 0.0, 1.0);
}
"""
"""One triangle that covers the picture."""

_HEAD: Final = f"""#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform vec3 iResolution;
uniform float iTime;
uniform float iTimeDelta;
uniform float iFrameRate;
uniform int iFrame;
uniform vec4 iMouse;
uniform vec4 iDate;
uniform float iSampleRate;
uniform float iChannelTime[4];
uniform vec3 iChannelResolution[4];
uniform sampler2D iChannel0;
uniform sampler2D iChannel1;
uniform sampler2D iChannel2;
uniform sampler2D iChannel3;
uniform float iBeat;
uniform float iLevel;
uniform float iEnergy;
uniform float iBands[{BANDS}];
out vec4 renderdispatch_colour;
"""

_IMAGE: Final = """
void main() {
    vec4 colour = vec4(0.0, 0.0, 0.0, 1.0);
    mainImage(colour, gl_FragCoord.xy);
    renderdispatch_colour = colour;
}
"""

_VR: Final = """
uniform float renderdispatch_eye;
uniform float renderdispatch_below;
void main() {
    vec2 place = gl_FragCoord.xy - vec2(0.0, renderdispatch_below);
    vec2 turn = (place / iResolution.xy - 0.5) * vec2(6.283185307179586, 3.141592653589793);
    vec3 ahead = vec3(cos(turn.y) * sin(turn.x), sin(turn.y), -cos(turn.y) * cos(turn.x));
    vec3 eye = renderdispatch_eye * vec3(cos(turn.x), 0.0, sin(turn.x));
    vec4 colour = vec4(0.0, 0.0, 0.0, 1.0);
    mainVR(colour, place, eye, ahead);
    renderdispatch_colour = colour;
}
"""
"""Each column of the picture is a longitude, and each eye is beside the middle of the head, at right angles to it."""

_PLACES: Final = re.compile(
    r"""^\s*(?:ERROR:\s*)?\d+[:(](?P<line>\d+)\)?(?:\(\d+\))?\s*:?\s*(?:error\b)?[:\s]*(?P<what>.*)$""", re.IGNORECASE
)
"""``0:12(5): error: ...`` (Mesa), ``0(12) : error C0000: ...`` (NVIDIA), ``ERROR: 0:12: ...`` (others)."""


def source_of(shader: Shader, drawn: Pass, entry: Entry, *, uniforms: str = "") -> str:
    """Return the fragment shader of a pass.

    Args:
        shader: The file.
        drawn: The pass.
        entry: Which of its functions draws.
        uniforms: Declarations of further uniforms.
    """
    parts = [_HEAD + uniforms, *map(_numbered, (*shader.common, drawn.text))]
    return "".join([*parts, f"\n#line {_BEYOND}", _IMAGE if entry == "image" else _VR])


def _numbered(text: Text) -> str:
    return f"\n#line {text.line}\n{text.source}\n"


def compile_pass(
    context: moderngl.Context, shader: Shader, drawn: Pass, entry: Entry = "image", *, uniforms: str = ""
) -> moderngl.Program:
    """Compile and link a pass.

    Raises:
        SceneError: ``shader.compile``: what is wrong, with the file's own line.
    """
    try:
        return context.program(VERTEX, source_of(shader, drawn, entry, uniforms=uniforms))
    except moderngl.Error as error:
        raise SceneError(describe_mistake(shader, drawn, str(error)), code="shader.compile") from error


def describe_mistake(shader: Shader, drawn: Pass, log: str) -> str:
    """Return the first mistake that a compiler's log names, with the file's own line."""
    where = shader.name if len(shader.passes) == 1 else f"{shader.name}, {drawn.name}"
    for line in log.splitlines():
        found = _PLACES.match(line)
        if found is not None and int(found["line"]) < _BEYOND:
            return f"{where}, line {found['line']}: {found['what'].strip()}"
    what = next((line.strip() for line in log.splitlines() if "error" in line.lower()), log.strip()[:200])
    return f"{where}: {what}"

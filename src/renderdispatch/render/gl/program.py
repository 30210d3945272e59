"""How does a pass of a shader become a program?

Shadertoy is WebGL 2, so this is GLSL ES 3.00, which desktop OpenGL compiles too since version 4.3. The file's text
keeps its line numbers, by ``#line``; our own text before and after it has numbers that no file has. A file's macros do
not change our text: its names are undefined first. Only ``mainImage`` and ``mainVR`` may be macros, as on Shadertoy.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import moderngl

from renderdispatch.render.features import BANDS
from renderdispatch.render.gl.mistakes import OURS, describe_mistakes, line_of
from renderdispatch.render.gl.shader import IMAGE, Pass, Shader
from renderdispatch.render.gl.text import Text, blank, emptied, numbered

Entry = Literal["image", "vr"]

SIGNATURES: Final[dict[Entry, str]] = {
    "image": "void mainImage(out vec4 fragColor, in vec2 fragCoord)",
    "vr": "void mainVR(out vec4 fragColor, in vec2 fragCoord, in vec3 fragRayOri, in vec3 fragRayDir)",
}

VERTEX: Final = """#version 300 es
void main() {
    vec2 corner = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
    gl_Position = vec4(corner, 0.0, 1.0);
}
"""
"""One triangle that covers the picture."""

_SHADERTOY: Final = {
    "iResolution": "vec3",
    "iTime": "float",
    "iGlobalTime": "float",  # of old files
    "iTimeDelta": "float",
    "iFrameRate": "float",
    "iFrame": "int",
    "iMouse": "vec4",
    "iDate": "vec4",
    "iSampleRate": "float",
    "iChannelTime": "float[4]",
    "iChannelResolution": "vec3[4]",
    **{f"iChannel{number}": "sampler2D" for number in range(4)},
    **{f"iCh{number}": "struct { sampler2D sampler; vec3 size; float time; int loaded; }" for number in range(4)},
}
"""Shadertoy's inputs, and their types."""

_MUSIC: Final = {
    **dict.fromkeys(("iBeat", "iLevel", "iSwell", "iEnergy"), "float"),
    **dict.fromkeys(("iBands", "iSwells"), f"float[{BANDS}]"),
}
"""Inputs that Shadertoy does not have. A file may use their names for something else."""

_TAKEN: Final = {name: kind.partition("[")[0] for name, kind in {**_SHADERTOY, **_MUSIC}.items()}

_BEFORE: Final = """
precision highp float;
precision highp int;
precision highp sampler2D;
#define HW_PERFORMANCE 1
uniform float renderdispatch_eye;
uniform float renderdispatch_below;
out vec4 renderdispatch_colour;
vec4 renderdispatch_shown(vec4 colour) {
    uvec3 bits = floatBitsToUint(colour.rgb) & 0x7fffffffu;
    return vec4(mix(colour.rgb, vec3(0.0), greaterThan(bits, uvec3(0x7f800000u))), 1.0);
}
void renderdispatch_ray(out vec2 place, out vec3 eye, out vec3 ahead) {
    place = gl_FragCoord.xy - vec2(0.0, renderdispatch_below);
    vec2 turn = (place / iResolution.xy - 0.5) * vec2(6.283185307179586, 3.141592653589793);
    ahead = vec3(cos(turn.y) * sin(turn.x), sin(turn.y), -cos(turn.y) * cos(turn.x));
    eye = renderdispatch_eye * vec3(cos(turn.x), 0.0, sin(turn.x));
}
"""
"""What is not a number is black: a value that OpenGL leaves open would differ from device to device. It does not leave
open that the others are clamped to 0 and 1 when they become bytes.

In a 360 picture each column is a longitude, and each eye is beside the middle of the head, at right angles to it.
"""

_AFTER: Final[dict[Entry, str]] = {
    "image": "mainImage(renderdispatch_c, gl_FragCoord.xy);",
    "vr": """vec2 renderdispatch_p;
vec3 renderdispatch_e, renderdispatch_a;
renderdispatch_ray(renderdispatch_p, renderdispatch_e, renderdispatch_a);
mainVR(renderdispatch_c, renderdispatch_p, renderdispatch_e, renderdispatch_a);""",
}
_UNDEFINED: Final = "".join(f"#undef {name}\n" for name in ("main", "void", "vec2", "vec3", "vec4"))

_VERSION: Final = re.compile(r"^[ \t]*#[ \t]*version\b[^\n]*", re.MULTILINE)
_EXTENSION: Final = re.compile(
    r"^[ \t]*#[ \t]*extension[ \t]+GL_(?:OES_standard_derivatives|EXT_shader_texture_lod|EXT_frag_depth"
    r"|EXT_draw_buffers|ARB_shader_texture_lod)\b[^\n]*",
    re.MULTILINE,
)
"""Of what GLSL ES 3.00 has without them; in the middle of a text they are mistakes."""

_LINE: Final = re.compile(r"^[ \t]*#[ \t]*line\b[^\n]*(?:(?<=\\)\n[^\n]*)*", re.MULTILINE)
"""Mistakes are named with the lines of the file, whatever another tool has numbered."""

_UNIFORM: Final = re.compile(r"\buniform\s++(?:(?:lowp|mediump|highp)\s++)?(\w++)\s++([\w\s,\[\]]{1,400}+);")
"""Nothing in it is tried twice: such a search takes half a minute in a text of blanks."""
_DECLARATION: Final = re.compile(r"\buniform\s+\w+\s+(\w+)")


def source_of(shader: Shader, drawn: Pass, entry: Entry, *, uniforms: str = "") -> str:
    """Return the fragment shader of a pass.

    Args:
        shader: The file.
        drawn: The pass.
        entry: Which of its functions draws.
        uniforms: Declarations of further uniforms.
    """
    texts = [_in_our_form(text) for text in shader.texts_of(drawn)]
    code = "\n".join(text.code for text in texts)
    inputs = _SHADERTOY | {name: kind for name, kind in _MUSIC.items() if not _defines(code, name)}
    declared = "".join(f"uniform {kind} {name};\n" for name, kind in inputs.items())
    shown = "renderdispatch_c" if drawn.name != IMAGE else "renderdispatch_shown(renderdispatch_c)"
    return "".join(
        [
            f"#version 300 es\n#line {OURS}\n",
            _BEFORE.replace("uniform", f"{declared}uniform", 1),
            uniforms,
            *(f"\n{numbered(text)}\n\n" for text in texts),  # the last line may end with a backslash
            f"#line {OURS}\n{_UNDEFINED}",
            f"void main() {{\nvec4 renderdispatch_c = vec4(0.0, 0.0, 0.0, 1.0);\n{_AFTER[entry]}\n",
            f"renderdispatch_colour = {shown};\n}}\n",
        ]
    )


def compile_pass(
    context: moderngl.Context, shader: Shader, drawn: Pass, entry: Entry = "image", *, uniforms: str = ""
) -> moderngl.Program:
    """Compile and link a pass.

    Raises:
        SceneError: ``shader.compile``: what is wrong, with the file's own lines.
    """
    name = "mainImage" if entry == "image" else "mainVR"
    if line_of(name, shader.texts_of(drawn)) is None:
        raise shader.wrong(f"there is no {name}; write {SIGNATURES[entry]} {{ ... }}", drawn=drawn)
    try:
        program = context.program(VERTEX, source_of(shader, drawn, entry, uniforms=uniforms))
    except moderngl.Error as error:
        what, line = describe_mistakes(shader, drawn, str(error), signature=SIGNATURES[entry], taken=_TAKEN)
        raise shader.wrong(what, drawn=drawn, line=line) from error
    known = {*_TAKEN, *_DECLARATION.findall(uniforms + _BEFORE)}
    for member in program:
        is_set = not isinstance(program[member], moderngl.Uniform | moderngl.UniformBlock)
        if (name := re.split(r"[.\[]", member)[0]) not in known and not is_set:
            what = f"nothing sets the uniform {name!r}; give it a value here, as a const"
            raise shader.wrong(what, drawn=drawn, line=line_of(name, shader.texts_of(drawn)))
    return program


def _in_our_form(text: Text) -> Text:
    """Return a part of a file as compilers take it behind other text; no place in it moves."""
    dropped = [found.span() for pattern in (_VERSION, _EXTENSION, _LINE) for found in pattern.finditer(text.code)]
    dropped += [found.span() for found in _UNIFORM.finditer(text.code) if _repeats(found[1], found[2])]
    source, parts, seen = emptied(text.source), list[str](), 0
    for begin, end in sorted(dropped):
        parts += [source[seen:begin], blank(source[begin:end])]
        seen = end
    return Text("".join([*parts, source[seen:]]), text.line)


def _repeats(kind: str, names: str) -> bool:
    """Return whether all that is declared are inputs, with their own types: other tools want them declared."""
    return all(_TAKEN.get(each.partition("[")[0].strip()) == kind for each in names.split(","))


def _defines(code: str, name: str) -> bool:
    """Return whether a text defines a name itself, as a variable or a function."""
    found = re.finditer(rf"\b([A-Za-z_]\w*)\s+{name}\b\s*[=;,(\[]", code)
    return any(match[1] not in {"return", "else", "case", "in", "uniform"} for match in found)

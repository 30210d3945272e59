"""Are the mistakes found that drivers name, each in its own form?"""

from __future__ import annotations

import pytest

from renderdispatch.errors import SceneError
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.gl.mistakes import OURS, describe_mistakes
from renderdispatch.render.gl.shader import read_shader
from tests.support.shaders import artist_of

TEXT = """//! Image
void mainImage(out vec4 fragColor, in vec2 fragCoord)
{
    float a = first;
    vec3 b = 2 * vec3(1.0);
    fragColor = vec4(b, a) + noise(fragCoord);
}
"""

MESA = """GLSL Compiler failed

fragment_shader
===============
0:4(12): warning: `a' used uninitialized
0:4(15): error: `first' undeclared
0:4(11): error: initializer of type error cannot be assigned to variable of type float
0:5(14): error: could not implicitly convert operands to arithmetic operator
0:6(29): error: no function with name 'noise'
"""

NVIDIA = """GLSL Compiler failed

fragment_shader
===============
Fragment info
-------------
0(4) : warning C7050: "a" might be used before being initialized
0(4) : error C1503: undefined variable "first"
0(5) : error C7011: implicit cast from "int" to "float"
0(6) : error C1503: undefined variable "noise"
"""

AMD = """fragment_shader
===============
Fragment shader failed to compile with the following errors:
WARNING: 0:4: warning(#402) Implicit truncation of vector from size 3 to size 2.
ERROR: 0:4: error(#143) Undeclared identifier: first
ERROR: 0:5: error(#162) Wrong operand types: no operation "*" exists that takes a left-hand operand of type "const int"
ERROR: 0:6: error(#202) No matching overloaded function found: noise
ERROR: error(#273) 3 compilation errors.  No code generated
"""

INTEL = """fragment_shader
===============
ERROR: 0:4: 'first' : undeclared identifier
ERROR: 0:5: '*' :  wrong operand types  no operation '*' exists that takes a left-hand operand of type 'const int'
ERROR: 0:6: 'noise' : no matching overloaded function found
"""

SIGNATURE = "void mainImage(out vec4 fragColor, in vec2 fragCoord)"


def described(log: str, text: str = TEXT) -> tuple[str, int | None]:
    shader = read_shader(text, name="test.glsl")
    return describe_mistakes(shader, shader.passes[-1], log, signature=SIGNATURE, taken={"iTime": "float"})


@pytest.mark.parametrize("log", [MESA, NVIDIA, AMD, INTEL], ids=["Mesa", "NVIDIA", "AMD", "Intel, Apple"])
def test_forms_of_drivers(log: str) -> None:
    """Three lines are named, each with its first mistake and its text; warnings and codes are left out."""
    what, line = described(log)
    first, second, third = what.split("; line ")
    assert line == 4
    assert "first" in first and first.endswith("in 'float a = first;'")
    assert second.startswith("5: ") and "1.0, not 1" in second and second.endswith("in 'vec3 b = 2 * vec3(1.0);'")
    assert third.startswith("6: ") and "noise" in third
    assert not {"C1503", "#143", "initializer", "uninitialized", "===", "No code generated"} & {
        word.strip("():;") for word in what.split()
    }


@pytest.mark.parametrize(
    "log",
    [
        f"0:{OURS + 8}(1): error: no matching function for call to `mainImage(vec4, vec2)'; candidates are:",
        f'0({OURS + 8}) : error C1103: too few parameters in function call "mainImage"',
        f"ERROR: 0:{OURS + 8}: 'mainImage' : no matching overloaded function found",
    ],
    ids=["Mesa", "NVIDIA", "others"],
)
def test_another_signature(log: str) -> None:
    """A mainImage that takes something else is named where it is, with the signature that it should have."""
    assert described(log) == (f"mainImage must be {SIGNATURE}", 2)


@pytest.mark.parametrize(
    "log",
    [
        "error: unresolved reference to function `noise'",
        '(0) : error C3002: call to undefined function "float noise(vf2);"',
        "ERROR: 0:2000009: error(#280) Not all shaders have valid object code: 'noise'",
    ],
    ids=["Mesa", "NVIDIA", "AMD"],
)
def test_link_errors(log: str) -> None:
    """What is missing when a program is linked is named with the line that uses it."""
    what, line = described(log)
    assert line == 6 and "noise" in what


@pytest.mark.parametrize(
    ("end", "line", "said"),
    [
        ("void f() {\n", 9, "'{' is not closed"),
        ("float x = sin(\n\n", 9, "'(' is not closed"),
        ("\nfloat x\n", 10, "the text ends in the middle"),
    ],
)
def test_a_text_that_ends_early(end: str, line: int, said: str) -> None:
    """A compiler notices it behind the file's text; the message says where in the file it begins."""
    log = f"0:{OURS + 7}(6): error: syntax error, unexpected VOID_TOK"
    assert described(log, TEXT + "\n" + end) == (said, line)


def test_a_log_of_another_form() -> None:
    """A driver whose form is not known is quoted, shortly, without names of ours."""
    what, line = described("the compiler gave up at renderdispatch_colour " + "!" * 5000 + "\nerror: out of registers")
    assert (what, line) == ("out of registers", None)
    assert described("") == ("the shader cannot be compiled", None)


def test_an_input_of_another_type() -> None:
    """A file that declares an input with another type learns the right one."""
    what, _ = described("0:4(6): error: redeclaration of `iTime' has incorrect type")
    assert "(iTime is declared already, as float)" in what


def test_a_mistake_of_no_line() -> None:
    """Mesa writes line 0 for what it finds in the whole text: the message names the line of what it is about."""
    log = "0:0(0): error: function `vec4 noise(vec2)' has static recursion"
    assert described(log) == ("function `vec4 noise(vec2)' has static recursion", 6)


@pytest.mark.parametrize("directive", ["#line 500", "# line 7 3", "/**/#line \\\n 5000000"])
def test_a_file_that_numbers_its_lines(device: GlDevice, directive: str) -> None:
    """Its mistakes have the lines that an editor shows."""
    text = f"{directive}\n" + TEXT.replace("first", "1.0").replace("2 *", "2.0 *").replace(" + noise", ";\n noise")
    with pytest.raises(SceneError, match=f"test.glsl, line {text[: text.index('noise')].count(chr(10)) + 1}: .*noise"):
        artist_of(device, text)

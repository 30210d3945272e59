"""What do lines that begin with //! say, and which texts are refused before a compiler sees them?"""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.errors import SceneError
from renderdispatch.render.gl.program import source_of
from renderdispatch.render.gl.shader import Channel, RunUp, Shader, read_shader

IMAGE = "void mainImage(out vec4 c, in vec2 p) { c = vec4(1.0); }\n"


def read(text: str) -> Shader:
    return read_shader(text, name="test.glsl")


def refused(text: str) -> str:
    with pytest.raises(SceneError) as caught:
        read(text)
    assert caught.value.code == "shader.invalid"
    return str(caught.value)


def test_a_plain_file() -> None:
    """It is the image, reads the sound and three images, and needs no run-up."""
    shader = read(IMAGE)
    assert [one.name for one in shader.passes] == ["Image"]
    assert [channel.source for channel in shader.passes[0].channels] == ["sound", "image 1", "image 2", "image 3"]
    assert shader.run_up == RunUp() and shader.common == () and not shader.has_vr


def test_parts() -> None:
    """Each pass has its own text with the file's line numbers, and its own channels."""
    text = "// first\n//!Common\nfloat x;\n  //!   buffer b  \n//! iCHANNEL2 :  Buffer  B , Nearest,REPEAT\n" + IMAGE
    shader = read(f"{text}//! Image\n//! iChannel0: Buffer B\n{IMAGE}")
    buffer, image = shader.passes
    assert (buffer.name, buffer.text.line, image.text.line) == ("Buffer B", 5, 8)
    assert [(part.source.strip(), part.line) for part in shader.common] == [("// first", 1), ("float x;", 3)]
    assert buffer.channels[2] == Channel("Buffer B", "nearest", "repeat")
    assert image.channels[0] == Channel("Buffer B") and image.channels[2] == Channel("image 2")


@pytest.mark.parametrize("comment", ["//! \\brief a flame", "//!< of the flame", "//! @author me", "//!\\file"])
def test_comments_for_doxygen(comment: str) -> None:
    """They use the same mark, and are comments."""
    shader = read(f"{comment}\n{IMAGE}")
    assert (shader.passes[0].text.source, shader.passes[0].text.line) == (f"{comment}\n{IMAGE}".rstrip("\n") + "\n", 1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends(end: str, mark: str) -> None:
    """Lines end as on any system, and a byte order mark is dropped. Other characters end no line."""
    text = f"{mark}//! run-up: 3\n// \u2028 \x85 \x0b \x0c\n//! Buffer A\n//! iChannel1: Buffer A\n\n{IMAGE}\t//! Image\n{IMAGE}"
    shader = read(text.replace("\n", end))
    assert [one.text.line for one in shader.passes] == [4, 8] and shader.run_up == RunUp(3)
    assert "\r" not in source_of(shader, shader.passes[0], "image")


def test_comments_that_say_nothing() -> None:
    """Within a block comment, behind code, and with another sign, these lines are comments as any other."""
    text = f"/*\n//! Buffer A\n*/\n// ! Buffer A\n/* //! Buffer A */\n///! Buffer A\n{IMAGE.strip()} //! Buffer A"
    assert [one.name for one in read(text).passes] == ["Image"]
    assert [one.name for one in read(f"//*\n//! Image\n{IMAGE}//*/\n").passes] == ["Image"]


@pytest.mark.parametrize(
    ("said", "run_up", "frames"),
    [
        ("run-up: 90", RunUp(90), 90),
        ("runup:0", RunUp(0), 0),
        ("Run-Up : 7 frames", RunUp(7), 7),
        ("run-up: 1.5 s", RunUp(seconds=Fraction(3, 2)), 38),
        ("run-up: 2 seconds", RunUp(seconds=Fraction(2)), 50),
    ],
)
def test_run_up(said: str, run_up: RunUp, frames: int) -> None:
    """It is a number of frames, or seconds, which are rounded up to frames: here 25 a second."""
    shader = read(f"//! {said}\n//! Buffer A\n//! iChannel0: Buffer A\n{IMAGE}//! Image\n{IMAGE}")
    assert shader.run_up == run_up
    assert run_up.at(Fraction(25)) == frames


def test_feedback() -> None:
    """A pass that reads its own picture, or a later buffer's, needs a run-up; without one, it is not known."""
    own = f"//! Buffer A\n//! iChannel0: Buffer A\n{IMAGE}//! Image\n{IMAGE}"
    later = f"//! Buffer A\n//! iChannel3: Buffer B\n{IMAGE}//! Buffer B\n{IMAGE}//! Image\n{IMAGE}"
    chain = f"//! run-up: 9\n//! Buffer A\n{IMAGE}//! Buffer B\n//! iChannel0: Buffer A\n{IMAGE}//! Image\n{IMAGE}"
    assert read(own).run_up is None and read(later).run_up is None
    assert read(chain).run_up == RunUp(0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("//! Bufer A\n", "line 1: '//! Bufer A' says nothing known"),
        (f"{IMAGE}//! iChannel4: sound\n", "line 2: '//! iChannel4: sound' says nothing known"),
        ("//! iChannel0: noise\n", "line 1: a channel has no source 'noise'; known are sound, cover, none, image 1"),
        (
            "//! iChannel0: sound, near\n",
            "line 1: unknown option 'near'; known are nearest, linear, mipmap, clamp, repeat",
        ),
        ("//! iChannel0: Buffer B\n", "Image reads Buffer B, which is not there"),
        ("//! run-up: 1.5\n", "line 1: a run-up is a whole number of frames, or in seconds"),
        ("//! run-up: 36001\n", "line 1: a run-up has at most 36000 frames, 600 seconds"),
        ("//! run-up: 601 s\n", "line 1: a run-up has at most 36000 frames, 600 seconds"),
        ("//! run-up: -1\n", "line 1: '//! run-up: -1' says nothing known"),
        (f"//! Image\n{IMAGE}//! Image\n", "line 3: Image is there twice"),
        (f"//! Buffer A\n{IMAGE}", "there is no Image; begin it with a line '//! Image'"),
        ("//! Common\n", "there is no Image; begin it with a line '//! Image'"),
        ("//! Sound\n", "line 1: a pass Sound is not offered"),
        ("//! Cubemap A\n", "line 1: a pass Cubemap A is not offered"),
        ("//! iChannel1: webcam\n", "line 1: webcam is not offered in a channel"),
        ("float a;\nvec4 mainCubemap (", "line 2: mainCubemap is not offered"),
        ("\n/* comment", "line 2: a comment begins here and does not end"),
        ("/*/", "line 1: a comment begins here and does not end"),
        (f"{IMAGE}#if 1\n#ifdef A\n#else\n#endif // #endif\n", "line 2: #if without #endif"),
        ("float a = \u201c1.0\u201d;", "line 1: U+201C (LEFT DOUBLE QUOTATION MARK) is not a character of GLSL"),
        ("float a;\nfloat b\x00;", "line 2: U+0000 (a control character) is not a character of GLSL"),
        ("a\n\n  # include <b>", "line 3: GLSL has no #include"),
    ],
)
def test_refused(text: str, said: str) -> None:
    """The error says the line and what is wrong there."""
    assert refused(text).startswith(f"test.glsl{', ' if said.startswith('line') else ': '}{said}")


def test_names_of_files() -> None:
    """A name is shown so that it can do no harm in a terminal or a log, and not at any length."""
    with pytest.raises(SceneError) as caught:
        read_shader("//! x", name="a\n\x1b[2J\udce9\u202e" + "b" * 500)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400


def test_long_directives() -> None:
    """What is quoted of a file is short and printable."""
    message = refused("//! " + "x\x07\u202e" * 100_000)
    assert message.isprintable() and len(message) < 400


@given(st.text(st.sampled_from("/*!\\\n\r\t #ifendifelse(){};aA1\ufeff\u2028\x00 bufferIimagechannel0:,-.s")))
def test_any_text(text: str) -> None:
    """A text is read or refused with an error of the scene; what is read keeps its lines."""
    with suppress(SceneError):
        shader = read(text)
        for one in (*shader.common, *(drawn.text for drawn in shader.passes)):
            assert one.line >= 1 and len(one.code) == len(one.source) and "\r" not in one.source
        for drawn in shader.passes:
            source_of(shader, drawn, "image")


@pytest.mark.parametrize(
    "text",
    [
        " " * (1 << 17),
        "//! " + " " * (1 << 17) + "x",
        "/" * (1 << 17),
        "/*" * (1 << 16),
        "/**/" * (1 << 15),
        "\n" * (1 << 17),
        "uniform float " * (1 << 13),
        "uniform float iTime;" * (1 << 12),
        "float iBeat " * (1 << 13),
        "\\\n" * (1 << 16),
        "#if 1\n#endif\n" * (1 << 13),
        "(\n" * (1 << 16),
        "//! iChannel0: sound\n" * (1 << 12),
        "#" + " " * (1 << 17),
        "mainSound " * (1 << 13),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_large_texts(text: str) -> None:
    """A large text takes no longer than its length: nothing is gone through again and again."""
    began = time.process_time()
    with suppress(SceneError):
        shader = read(text)
        source_of(shader, shader.passes[0], "image")
    assert time.process_time() - began < 5

"""What does drawing with OpenGL take, and what happens where there is too little of it?"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import moderngl
import pytest
from attrs import evolve

from renderdispatch.errors import InvalidRequestError, RenderError
from renderdispatch.messages import Output
from renderdispatch.render.gl.context import GlDevice, open_device
from renderdispatch.render.gl.program import source_of
from renderdispatch.render.gl.shader import read_shader
from tests.support.shaders import artist_of, bytes_of, draw_each, frame

PLAIN = "void mainImage(out vec4 o, in vec2 p) { o = vec4(1.0); }\n"
BUFFERS = """//! Buffer A
//! iChannel0: Buffer B
void mainImage(out vec4 o, in vec2 p) {{ o = texelFetch(iChannel0, ivec2(p), 0) + 1.0; }}
//! Buffer B
//! iChannel0: Buffer A
//! iChannel1: Buffer B
void mainImage(out vec4 o, in vec2 p) {{ o = texelFetch({b}, ivec2(p), 0); }}
//! Image
//! iChannel0: Buffer B
void mainImage(out vec4 o, in vec2 p) {{ o = texelFetch(iChannel0, ivec2(p), 0) / 20.0; }}
"""


@pytest.mark.parametrize(("b", "textures"), [("iChannel0", [1, 1, 1]), ("iChannel1", [1, 2, 1])])
def test_a_second_picture_of_a_buffer(device: GlDevice, b: str, textures: list[int]) -> None:
    """Only a buffer that its own program reads has one: at 8192x8192 it is 1 GiB."""
    artist = artist_of(device, BUFFERS.format(b=b))
    assert [len(one._textures) for one in artist._passes] == textures


def test_a_buffer_with_one_picture_is_read_from_the_frame_before(device: GlDevice) -> None:
    """A reads B before B is drawn over, and B reads A of its own frame: both count the frames."""
    pictures = draw_each(artist_of(device, BUFFERS.format(b="iChannel0")), range(5))
    assert [picture.luma[0, 0] for picture in pictures] == pytest.approx(
        [16 + 219 * n / 20 for n in range(1, 6)], abs=1
    )


@pytest.mark.parametrize("before", ["", "//! Buffer A\n" + PLAIN + "//! Image\n//! iChannel0: Buffer A\n"])
def test_discarded_pixels_are_black(device: GlDevice, before: str) -> None:
    """They do not show an earlier frame: a video that is cut has the same frames."""
    text = before + "void mainImage(out vec4 o, in vec2 p) { if (iFrame > 0) discard; o = vec4(1.0); }"
    artist = artist_of(device, text)
    first, second = draw_each(artist, [0, 1])
    assert (first.luma == 235).all()
    assert bytes_of(second) == bytes_of(draw_each(artist_of(device, text), [1])[0])
    assert (second.luma == 16).all()


def test_discarded_pixels_of_buffers_are_black(device: GlDevice) -> None:
    """A buffer that reads itself has two pictures, and shows neither of the older ones."""
    shader = """//! run-up: 2
//! Buffer A
//! iChannel0: Buffer A
void mainImage(out vec4 o, in vec2 p) {
    if (iFrame == 2) discard;
    o = texelFetch(iChannel0, ivec2(p), 0) * 0.0 + 1.0;
}
//! Image
//! iChannel0: Buffer A
void mainImage(out vec4 o, in vec2 p) { o = texelFetch(iChannel0, ivec2(p), 0); }"""
    assert [picture.luma[0, 0] for picture in draw_each(artist_of(device, shader), range(4))] == [235, 235, 16, 235]


def test_both_eyes_discard(device: GlDevice) -> None:
    """What the right eye's picture discards does not take the left one's away."""
    text = """void mainImage(out vec4 o, in vec2 p) { o = vec4(0.0); }
void mainVR(out vec4 o, in vec2 p, in vec3 eye, in vec3 ahead) { if (p.x < 16.0) discard; o = vec4(1.0); }"""
    output = Output(width=32, height=32, projection="360-stereo")
    (picture,) = draw_each(artist_of(device, text, output=output), [0])
    assert (picture.luma[:, 18:] == 235).all()
    assert (picture.luma[:, :14] == 16).all()


class _Failing:
    """A context in which a call fails."""

    def __init__(self, context: moderngl.Context, *, error: str = "GL_NO_ERROR", most: int = 16384) -> None:
        self._context, self._error, self._most = context, error, most

    @property
    def error(self) -> str:
        return self._error

    @property
    def info(self) -> dict[str, Any]:
        return {**self._context.info, "GL_MAX_TEXTURE_SIZE": self._most}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def failing(device: GlDevice, **how: Any) -> Any:
    context: Any = _Failing(device.context, **how)
    return evolve(device, context=context)


@pytest.mark.parametrize(
    ("error", "code"), [("GL_OUT_OF_MEMORY", "memory.full"), ("GL_INVALID_OPERATION", "gl.failed")]
)
@pytest.mark.parametrize("planar", [False, True])
def test_a_call_that_fails(device: GlDevice, error: str, code: str, planar: bool) -> None:
    """OpenGL says nothing by itself: it is asked when all is made, and for each frame."""
    with pytest.raises(RenderError, match=r"pictures of 64x36 for test\.glsl") as caught:
        artist_of(failing(device, error=error), PLAIN, planar=planar)
    assert caught.value.code == code
    there = failing(device)
    artist = artist_of(there, PLAIN, planar=planar)
    draw_each(artist, [0])
    there.context._error = error
    with pytest.raises(RenderError, match="a frame was not drawn") as caught:
        list(artist.pictures([(artist.start(), frame(1))]))
    assert caught.value.code == code


def test_a_picture_that_is_too_large(device: GlDevice) -> None:
    """The message says what the device can draw."""
    with pytest.raises(InvalidRequestError, match="at most 32x32, not of 64x36") as caught:
        artist_of(failing(device, most=32), PLAIN)
    assert caught.value.code == "output.unsupported"


def test_buffers_that_have_no_room(device: GlDevice) -> None:
    """llvmpipe refuses textures of 4 GiB."""
    if device.on_gpu:
        pytest.skip("a GPU may have room for them")
    text = BUFFERS.format(b="iChannel0")
    with pytest.raises(RenderError, match="too little memory: pictures of 16384x16384") as caught:
        artist_of(device, text, output=Output(width=16384, height=16384))
    assert caught.value.code == "memory.full"


@pytest.mark.long
def test_many_renders_in_one_process(device: GlDevice) -> None:
    """What a render took is given back: files at once, and memory but for what the driver keeps."""

    def taken() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE") >> 20

    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc")
    for number in range(200):
        with open_device() as own:
            draw_each(artist_of(own, BUFFERS.format(b="iChannel1"), output=Output(width=640, height=360)), [0])
        if number == 19:
            files, mebibytes = taken()
    assert taken()[0] <= files
    assert taken()[1] < mebibytes + 100


def test_a_child_of_a_process_that_drew(device: GlDevice) -> None:
    """It is told so: in the child of a fork, drivers wait for threads that are not there."""
    program = """
        import os
        from renderdispatch.errors import RenderError
        from renderdispatch.render.gl.context import open_device

        with open_device():
            pass
        if os.fork() == 0:
            for _ in range(2):
                try:
                    with open_device():
                        print("opened", flush=True)
                except RenderError as error:
                    print(error.code, "forked" in str(error), flush=True)
            os._exit(0)
        os.wait()
        with open_device():
            print("the parent draws")
    """
    asked = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["gl.unavailable True", "gl.unavailable True", "the parent draws"]


@pytest.mark.parametrize(
    "text",
    ["uniform a" + " " * 100_000, ("uniform a" + " " * 400) * 250, "uniform lowp " * 8_000, "a iBeat " * 12_000],
    ids=["blanks", "many blanks", "uniforms", "names"],
)
def test_odd_texts_take_no_time(text: str) -> None:
    """No search goes back over a text again and again."""
    begin = time.process_time()
    shader = read_shader(text + "\n" + PLAIN, name="test.glsl")
    source_of(shader, shader.passes[0], "image")
    assert time.process_time() - begin < 1.0


def test_the_environment_is_left_as_it_is(device: GlDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Mesa is told while a device is opened concerns no other program that this process starts."""
    monkeypatch.setenv("MESA_DEBUG", "flush")
    before = dict(os.environ)
    with open_device():
        assert dict(os.environ) == before

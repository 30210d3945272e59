"""Do the pixels that OpenGL drew reach the encoder, in whichever way they are read?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import Asset, Output, RenderOrder
from renderdispatch.render import glsl
from renderdispatch.render.artist import Artist
from renderdispatch.render.covers import Cover
from renderdispatch.render.features import Frame
from renderdispatch.render.gl.artist import GlArtist, GlState
from renderdispatch.render.gl.context import open_device
from renderdispatch.render.gl.shader import read_shader
from renderdispatch.render.music import compose
from renderdispatch.render.params import SceneParams
from renderdispatch.render.picture import Picture
from renderdispatch.render.renderer import VideoRenderer
from tests.support.needs import need_opengl

NOISE = """
void mainImage(out vec4 colour, in vec2 place) {
    ivec3 at = ivec3(place, iFrame);
    uint number = uint(at.x * 73856093 ^ at.y * 19349663 ^ at.z * 83492791);
    number = (number ^ (number >> 13u)) * 1274126177u;
    number ^= number >> 16u;
    colour = vec4(uvec4(number, number >> 8u, number >> 16u, number >> 24u) & 255u) / 255.0;
}
"""
"""Each pixel of each frame has a colour of its own."""

FEEDBACK = """
//! Buffer A
//! iChannel1: Buffer A
void mainImage(out vec4 colour, in vec2 place) {
    colour = 0.5 * texelFetch(iChannel1, ivec2(place), 0) + 0.1 * float(iFrame % 5) + 0.5 * iLevel;
}
//! Image
//! iChannel1: Buffer A
void mainImage(out vec4 colour, in vec2 place) {
    colour = texelFetch(iChannel1, ivec2(place), 0) * texture(iChannel0, place / iResolution.xy).x;
}
"""
"""Each frame depends on all frames before it, and on the sound."""

MIPMAPS = """
//! iChannel0: sound, mipmap
void mainImage(out vec4 colour, in vec2 place) {
    colour = texture(iChannel0, place / iResolution.xy);
}
"""

SMALL = Output(width=48, height=28, fps=Fraction(30))


@pytest.fixture(autouse=True)
def opengl() -> None:
    """Skip where OpenGL is missing."""
    need_opengl()


def moments(count: int) -> list[tuple[GlState, Frame]]:
    """Return frames with a sound of their own."""
    dice = np.random.default_rng(5)
    return [
        (
            GlState(),
            Frame(
                index=index,
                time_s=index / 30,
                level=index % 4 / 4,
                beat=0,
                bands=np.zeros(96, np.float32),
                wave=np.zeros(512, np.float32),
                texture=dice.integers(0, 256, (2, 512), np.uint8),
            ),
        )
        for index in range(count)
    ]


@contextmanager
def drawing(text: str, output: Output, *, planar: bool | None = None) -> Iterator[GlArtist]:
    """Return what draws a shader."""
    with open_device() as device:
        yield GlArtist(device, read_shader(text, name="test.glsl"), output, planar=planar)


def pixels(picture: Picture) -> bytes:
    """Return what the encoder gets."""
    return b"".join(plane.tobytes() for plane in picture.planes)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("text", [NOISE, FEEDBACK], ids=["noise", "feedback"])
def test_frames_in_flight_are_those_that_are_drawn_one_by_one(text: str, planar: bool) -> None:
    """Drawing a frame before the one before it is read changes no pixel, and mixes up no two frames."""
    given = moments(9)
    with drawing(text, SMALL, planar=planar) as artist:
        one_by_one = [pixels(artist.draw(state, frame)) for state, frame in given]
    with drawing(text, SMALL, planar=planar) as artist:
        in_flight = [pixels(picture) for picture in artist.pictures(given)]
    assert in_flight == one_by_one
    assert len(set(in_flight)) == len(given)


@pytest.mark.parametrize(("planar", "ahead"), [(False, 1), (True, 2)])
def test_the_next_frames_are_being_drawn_when_a_picture_comes(planar: bool, ahead: int) -> None:
    """One frame is in flight on llvmpipe, and two where OpenGL makes the planes: no more, as each takes memory."""
    begun: list[int] = []

    def given() -> Iterator[tuple[GlState, Frame]]:
        for moment in moments(9):
            begun.append(moment[1].index)
            yield moment

    with drawing(NOISE, SMALL, planar=planar) as artist:
        for number, _ in enumerate(artist.pictures(given())):
            assert len(begun) == min(number + 1 + ahead, 9)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_video_of_fewer_frames_than_may_be_in_flight_has_all_of_them(count: int, planar: bool) -> None:
    """There are as many pictures as frames."""
    with drawing(NOISE, SMALL, planar=planar) as artist:
        assert len(list(artist.pictures(moments(count)))) == count


@pytest.mark.parametrize("size", [(16, 16), (18, 18), (322, 182), (90, 160), (160, 90)], ids=str)
def test_planes_drawn_by_opengl_are_those_of_swscale(size: tuple[int, int]) -> None:
    """Of noise, no value of any plane differs by more than 1, at the edges too, whatever the size."""
    output = Output(width=size[0], height=size[1], fps=Fraction(30))
    with drawing(NOISE, output, planar=False) as artist:
        converted = list(artist.pictures(moments(3)))
    with drawing(NOISE, output, planar=True) as artist:
        drawn = list(artist.pictures(moments(3)))
    for one, other in zip(converted, drawn, strict=True):
        for plane, same in zip(one.planes, other.planes, strict=True):
            assert plane.shape == same.shape
            assert plane.std() > 10
            assert np.abs(plane.astype(int) - same).max() <= 1


def test_planes_do_not_depend_on_how_a_pass_reads_its_channels() -> None:
    """A pass that reads mipmaps leaves nothing behind that the planes are drawn with."""
    with drawing(MIPMAPS, SMALL, planar=False) as artist:
        converted = list(artist.pictures(moments(2)))
    with drawing(MIPMAPS, SMALL, planar=True) as artist:
        drawn = list(artist.pictures(moments(2)))
    for one, other in zip(converted, drawn, strict=True):
        assert one.luma.min() > 20
        assert np.abs(one.luma.astype(int) - other.luma).max() <= 1


@pytest.mark.parametrize("planar", [False, True])
def test_frames_that_were_in_flight_are_forgotten(planar: bool) -> None:
    """Where a video is given up in the middle, what is drawn next is not one of its frames."""
    given = moments(9)
    with drawing(NOISE, SMALL, planar=planar) as artist:
        right = [pixels(artist.draw(state, frame)) for state, frame in given[6:]]
        for _ in range(3):
            next(artist.pictures(given))
            assert [pixels(artist.draw(state, frame)) for state, frame in given[6:]] == right


class OneByOne(VideoRenderer):
    """Renders a Shadertoy file, and reads each frame before the next one is drawn."""

    def __init__(self) -> None:
        super().__init__(SceneParams)

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws."""
        with glsl.artist(order, cover=cover) as artist:
            assert isinstance(artist, GlArtist)
            yield _OneByOne(artist)


class _OneByOne:
    """An artist that draws as another one does, but a frame at a time."""

    keep: int | None = None
    kept: Picture | None = None

    def __init__(self, artist: GlArtist) -> None:
        self.rendered_by, self.device_class, self.run_up = artist.rendered_by, artist.device_class, artist.run_up
        self.gpu = artist.gpu
        self.start, self.step, self.light = artist.start, artist.step, artist.light
        self.draw, self.flat = artist.draw, artist.flat

    def pictures(self, moments: Iterable[tuple[GlState, Frame]]) -> Iterator[Picture]:
        return (self.draw(state, frame) for state, frame in moments)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Return one second of music."""
    path = tmp_path / "song.wav"
    compose(path, seconds=1)
    return path


def file_of(text: str, folder: Path) -> Asset:
    """Return a shader as orders have it."""
    path = folder / "test.glsl"
    path.write_text(text)
    return Asset(url="", size=path.stat().st_size, path=str(path))


def test_a_video_has_the_bytes_that_it_has_without_overlap(
    tmp_path: Path, song: Path, render: Callable[..., tuple[Path, object]]
) -> None:
    """Whether frames are in flight or not, the file is the same."""
    given = {"scene_file": file_of(FEEDBACK, tmp_path), "output": SMALL}
    overlapped = render(glsl, song, **given)[0].read_bytes()
    assert render(OneByOne(), song, **given)[0].read_bytes() == overlapped


def test_a_stop_in_the_middle_leaves_nothing(tmp_path: Path, song: Path, order: Callable[..., RenderOrder]) -> None:
    """RenderStopped comes out as it was raised; no thread and no file stay."""
    folder = tmp_path / "out"
    folder.mkdir()
    before, seen = set(threading.enumerate()), list[int]()

    def report(done: int, total: int) -> None:
        seen.append(done)
        if done == 5:
            raise RenderStopped("enough")

    with pytest.raises(RenderStopped, match="enough"):
        glsl.render(order(scene_file=file_of(NOISE, tmp_path), output=SMALL), song, folder / "video.mp4", report)
    assert seen[-1] == 5
    assert set(threading.enumerate()) <= before
    assert list(folder.iterdir()) == []

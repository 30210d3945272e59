"""Which moment is on the poster, and what is the file like?"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderdispatch.errors import SceneError
from renderdispatch.messages import ObjectUrls, Output, RenderOrder, SignedPut
from renderdispatch.render import bars
from renderdispatch.render.features import Frame
from renderdispatch.render.music import compose
from renderdispatch.render.params import SceneParams
from renderdispatch.render.poster import PosterMoment
from renderdispatch.render.scene import NumpyRenderer, Scene

Render = Callable[..., Any]
WANTED = ObjectUrls(key="", put=SignedPut(url=""), get="")


def moment(lights: list[float], fps: int = 10) -> int:
    """Return the frame that is chosen of a video with these lights."""
    found = PosterMoment(len(lights), Fraction(fps))
    for index, light in enumerate(lights):
        found.see(index, light)
    return found.best


def test_the_brightest_half_second_is_chosen() -> None:
    """Its middle, and not a single bright frame elsewhere."""
    lights = [0.1] * 100
    lights[60:65] = [0.6] * 5
    lights[30] = 1.0
    assert moment(lights) == 62


def test_the_ends_are_left_out() -> None:
    """Songs are loud where they begin and end abruptly, but there the picture is still dark, or dark already."""
    lights = [0.1] * 100
    lights[:5] = lights[95:] = [1.0] * 5
    lights[50:55] = [0.3] * 5
    assert moment(lights) == 52


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
def test_a_short_video_has_a_poster_too(frames: int) -> None:
    """Even of one frame."""
    assert 0 <= moment([0.5] * frames) < frames


def test_silence_has_a_poster_too() -> None:
    """Where no moment is brighter, an early one is taken."""
    assert moment([0.0] * 100) == 7


def test_a_light_that_is_no_number_is_dark() -> None:
    """Such as that of a scene which divides by the level, in the silence before the music."""
    assert moment([float("nan")] * 50 + [0.2] * 50) > 50


def test_memory_is_constant() -> None:
    """Half a second is kept, however long the video is."""
    found = PosterMoment(100_000, Fraction(10))
    for _ in range(1000):
        found.see(50_000, 0.0)
    assert len(found._window) == 5


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    compose(path, seconds=3)
    return path


def test_the_poster_is_a_frame_of_the_video(tmp_path: Path, song: Path, render: Render) -> None:
    """A JPEG beside the video, of its size, the same bytes each time; nothing else is left."""
    video, _ = render(bars, song, output=Output(width=128, height=72), poster=WANTED)
    poster = video.with_suffix(".jpg")
    first = poster.read_bytes()
    with Image.open(poster) as image:
        assert (image.format, image.size, image.info.get("exif")) == ("JPEG", (128, 72), None)
        assert np.asarray(image).max() > 150
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song.wav", "video.jpg", "video.mp4"]
    render(bars, song, output=Output(width=128, height=72), poster=WANTED)
    assert poster.read_bytes() == first


def test_there_is_no_poster_unless_it_is_wanted(tmp_path: Path, song: Path, render: Render) -> None:
    """The order says so."""
    render(bars, song)
    assert not list(tmp_path.glob("*.jpg"))


@pytest.mark.parametrize(("width", "height"), [(2400, 40), (40, 2400)])
def test_a_poster_has_at_most_1920_pixels(
    tmp_path: Path, write_wav: Callable[..., Path], render: Render, width: int, height: int
) -> None:
    """On its longer side."""
    short = write_wav(tmp_path / "a.wav", np.zeros(4410))
    render(bars, short, output=Output(width=width, height=height), poster=WANTED)
    with Image.open(tmp_path / "video.jpg") as image:
        assert image.size == ((1920, 32) if width > height else (32, 1920))


@pytest.mark.parametrize("projection", ["360-mono", "360-stereo"])
def test_the_poster_of_a_360_video_is_flat(tmp_path: Path, song: Path, render: Render, projection: Any) -> None:
    """One eye's picture, as the scene draws it."""
    render(bars, song, output=Output(width=128, height=128, projection=projection), poster=WANTED)
    with Image.open(tmp_path / "video.jpg") as image:
        assert np.asarray(image).max() > 100


class NoParams(SceneParams):
    """None."""


class Dim(Scene):
    """Has no light to speak of."""

    def __init__(self, params: NoParams, *, width: int, height: int, fps: Fraction) -> None:
        pass

    def light(self, state: Any, frame: Frame) -> float:
        raise ZeroDivisionError("no light")

    def paint(self, state: Any, frame: Frame, canvas: Any) -> None:
        canvas[:] = 0


dim = NumpyRenderer(f"{__name__}:Dim", NoParams)


def test_a_scene_whose_light_fails_is_blamed(
    tmp_path: Path, song: Path, order: Callable[..., RenderOrder], render: Render
) -> None:
    """With the frame; its light is not asked for where no poster is wanted."""
    with pytest.raises(SceneError, match=r"frame 0: ZeroDivisionError: no light"):
        dim.render(order(poster=WANTED), song, tmp_path / "video.mp4", lambda done, total: None)
    assert list(tmp_path.iterdir()) == [song]
    render(dim, song)

"""A preview shows the frame that the video has at a moment of the song."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import ObjectUrls, Output, RenderOrder, SignedPut
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.features import Analyser
from renderdispatch.render.music import compose
from renderdispatch.render.picture import Converter
from renderdispatch.render.preview import preview
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scene_artist import SceneArtist
from renderdispatch.render.song import open_song, read_song

SMALL = Output(width=128, height=96, fps=Fraction(20))


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Three seconds of music."""
    compose(tmp_path / "song.wav", seconds=3)
    return tmp_path / "song.wav"


def _frames(renderer: NumpyRenderer, order: RenderOrder, song: Path, folder: Path) -> list[np.ndarray[Any, Any]]:
    """Draw all frames in order, as a render does."""
    scene, params = renderer.load({})
    artist = SceneArtist(scene, params, order.output)
    with open_song(song, order) as sound, Analyser(folder / "f", rate=sound.rate, fps=order.output.fps) as analyser:
        for block in read_song(sound, longest_s=None):
            analyser.feed(block)
        state, drawn = artist.start(), []
        with analyser.finish(round(sound.duration * order.output.fps)) as features:
            for frame in features:
                state = artist.step(state, frame)
                canvas = np.empty((order.output.height, order.output.width, 3), np.uint8)
                Converter().to_rgb(artist.draw(state, frame), canvas)
                drawn.append(canvas)
    return drawn


@pytest.mark.parametrize("renderer", [bars, radial, wave], ids=["bars", "radial", "wave"])
def test_it_is_the_frame_of_the_video(
    renderer: NumpyRenderer, song: Path, order: Callable[..., RenderOrder], tmp_path: Path
) -> None:
    """Bit by bit, also in a range of the song: what came before counts, and so does the range's loudness."""
    wanted = order(output=SMALL, start=0.5, duration=2.0)
    drawn = _frames(renderer, wanted, song, tmp_path)
    for at, index in ((0.5, 0), (1.2, 14), (2.5, 39)):
        shown = np.asarray(preview(song, scene=renderer, at=at, output=SMALL, start=0.5, duration=2.0))
        assert np.array_equal(shown, drawn[index]), at


def test_the_encoded_frame_is_close(song: Path, order: Callable[..., RenderOrder], tmp_path: Path) -> None:
    """What a player shows differs by what the encoder loses."""
    video = tmp_path / "video.mp4"
    bars.render(order(output=SMALL), song, video, lambda _done, _total: None)
    with av.open(str(video)) as container:
        played = [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)][30]
    shown = np.asarray(preview(song, scene=bars, at=1.5, output=SMALL)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((played - shown) ** 2)) > 30


def test_without_a_moment_it_is_the_poster(song: Path, order: Callable[..., RenderOrder], tmp_path: Path) -> None:
    """The brightest moment is that of the poster."""
    nowhere = ObjectUrls(key="", put=SignedPut(url=""), get="")
    bars.render(order(output=SMALL, poster=nowhere), song, tmp_path / "video.mp4", lambda _done, _total: None)
    poster = np.asarray(Image.open(tmp_path / "video.jpg")).astype(float)
    shown = np.asarray(preview(song, scene=bars, output=SMALL)).astype(float)
    assert 10 * np.log10(255**2 / np.mean((poster - shown) ** 2)) > 30


@pytest.mark.parametrize("at", [-0.1, 0.4, 2.6, 99.0, float("nan"), float("inf")])
def test_a_moment_outside_of_the_video_is_refused(song: Path, at: float) -> None:
    """The error says what the video shows."""
    with pytest.raises(InvalidRequestError) as refused:
        preview(song, scene=bars, at=at, output=SMALL, start=0.5, duration=2)
    assert refused.value.code == "preview.range"


def test_parameters_and_fields_are_checked(song: Path) -> None:
    """As at submit."""
    with pytest.raises(InvalidRequestError, match="start"):
        preview(song, scene=bars, output=SMALL, start=-1)


def test_what_is_no_file_is_refused(song: Path, tmp_path: Path) -> None:
    """A named pipe too, which nobody may ever write to."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "nothing", tmp_path):
        with pytest.raises(InvalidRequestError, match="there is no file") as refused:
            preview(path, scene=bars, output=SMALL)
        assert refused.value.code == "audio.missing"
        with pytest.raises(InvalidRequestError) as refused:
            preview(song, scene=bars, output=SMALL, cover=path)
        assert refused.value.code == "cover.missing"


def test_the_cover_is_drawn(song: Path, tmp_path: Path) -> None:
    """The disc of `radial` shows it."""
    Image.new("RGB", (64, 64), (0, 255, 0)).save(tmp_path / "cover.png")
    shown = np.asarray(preview(song, scene=radial, at=1, output=SMALL, cover=tmp_path / "cover.png"))
    red, green, _ = shown[48, 64]
    assert green > 100 > red


def test_a_360_picture_is_whole(song: Path) -> None:
    """It is the equirectangular frame."""
    output = Output(width=256, height=128, fps=Fraction(10), projection="360-mono")
    assert preview(song, scene=bars, at=1, output=output).size == (256, 128)

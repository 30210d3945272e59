"""The examples of programs and of a function make videos that move with the music."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.render.alone import order_alone
from renderdispatch.render.music import compose
from renderdispatch.runner.renderers import load_renderer
from tests.support.needs import need_blender, need_ffmpeg

EXAMPLES = Path(__file__).parents[2] / "examples"
ANY: Callable[[], None] = lambda: None  # noqa: E731 - nothing is needed


def video_of(example: str, folder: Path, *, fps: int = 10) -> NDArray[np.uint8]:
    """Return the pictures of a video of two seconds, (frames, height, width, 3)."""
    song = folder / "song.wav"
    compose(song, seconds=2)
    scene = load_renderer(example, f"{EXAMPLES / example}")
    order = order_alone(song, scene=example, output=Output(width=96, height=54, fps=Fraction(fps)))
    stats = scene.render(order, song, folder / "video.mp4", lambda _done, _total: None)
    with av.open(str(folder / "video.mp4")) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert stats.frames == len(pictures) == 2 * fps
    return np.stack(pictures)


@pytest.mark.parametrize(
    ("example", "need"),
    [
        ("pulse_function.py:pulse", ANY),
        ("ffmpeg_scope.py:notes", need_ffmpeg),
        ("ffmpeg_scope.py:scope", need_ffmpeg),
        pytest.param("blender_rings.py:rings", need_blender, marks=pytest.mark.long),
    ],
)
def test_the_example_draws(example: str, need: Callable[[], None], tmp_path: Path) -> None:
    """Pictures are neither black nor clipped, and no two that follow each other are the same for long."""
    need()
    pictures = video_of(example, tmp_path, fps=4 if "blender" in example else 10)
    assert pictures.max() > 60
    assert (pictures > 250).all(axis=-1).mean() < 0.2
    changes = np.abs(np.diff(pictures.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert (changes > 0.05).mean() > 0.5

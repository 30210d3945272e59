"""Does `bars` use its picture, and is its light soft?"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Frame
from renderdispatch.render.music import compose
from renderdispatch.render.params import BarsParams
from renderdispatch.render.scenes.bars import Bars, BarsState, Row


def bars(width: int, height: int, **params: object) -> Bars:
    return Bars(BarsParams.model_validate(params), width=width, height=height, fps=Fraction(30))


def raised(scene: Bars, height: float) -> BarsState:
    heights = np.full(scene.row.count, height, np.float32)
    return scene.start()._replace(light=0.8, heights=heights, peaks=heights)


def test_every_bar_moves_over_music(tmp_path: Path) -> None:
    """Bass, voices and hiss each raise their part of the row above a third of the picture's reach, and let it fall."""
    compose(tmp_path / "song.wav", seconds=8)
    scene = bars(320, 180)
    state, seen = scene.start(), []
    with (
        SoundReader(tmp_path / "song.wav", start=Fraction(0), duration=None) as sound,
        Analyser(tmp_path / "features", rate=sound.rate, fps=Fraction(30)) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        with analyser.finish(240) as features:
            for frame in features:
                state = scene.step(state, frame)
                seen.append(state.heights)
    heights = np.array(seen)
    assert heights.max(axis=0).min() > 1 / 3
    assert (heights.max(axis=0) - heights.min(axis=0)).min() > 0.3


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1080, 1920), (1080, 1080), (3840, 2160), (2160, 3840)])
def test_the_row_fills_the_picture(width: int, height: int) -> None:
    """The highest bar reaches the upper eighth, the floor is below seven tenths, the row is four fifths wide."""
    row = Row.of(64, width, height)
    assert row.floor - row.reach < height / 8
    assert row.floor > 0.7 * height
    assert row.count * row.pitch > 0.8 * width
    assert row.left > 0


@pytest.mark.parametrize(("width", "height"), [(1000, 34), (512, 16), (4096, 128)])
@pytest.mark.parametrize("count", [4, 5, 8])
def test_wide_bars_fit_into_a_low_picture(width: int, height: int, count: int) -> None:
    """At any height of the bars, their caps are in the picture, above them."""
    scene = bars(width, height, bars=count)
    frame = Frame(0, 0.0, 0.0, 0.0, np.zeros(96, np.float32), np.zeros(512, np.float32), np.zeros((2, 512), np.uint8))
    for tall in np.linspace(0, 1, 9):
        with_caps = scene.picture(raised(scene, tall), frame)
        without = bars(width, height, bars=count, peaks=False).picture(raised(scene, tall), frame)
        rows = np.flatnonzero((with_caps.luma != without.luma).any(axis=1))
        assert rows[-1] < scene.row.floor - scene.row.least


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640)])
def test_the_glow_has_no_edge(width: int, height: int) -> None:
    """No two pixels of the light side by side differ by more than a fiftieth of the range, at full height."""
    scene = bars(width, height, glow=1)
    luma = scene.backdrop.picture(scene._shine(raised(scene, 1).heights), 1.0).luma.astype(int)
    assert luma.max() - luma.min() > 60
    for axis in (0, 1):
        assert np.abs(np.diff(luma, axis=axis)).max() <= 5


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1080, 1920), (1922, 1082)])
def test_a_bar_is_as_high_as_its_band(width: int, height: int) -> None:
    """Colours and luma end at the same row, where the state says, in any shape of picture."""
    scene = bars(width, height, peaks=False, glow=0, pulse=0)
    row = scene.row
    for share in (0.25, 0.5, 0.9):
        state = raised(scene, 0)
        state.heights[row.count // 2] = share
        picture = scene.backdrop.picture(np.zeros((len(scene.backdrop.y), len(scene.backdrop.x)), np.float32), 0)
        for drawn, planes in ((scene.luma, [picture.luma]), (scene.chroma, [picture.blue, picture.red])):
            drawn.draw(planes, row.tops(state.heights), None)
        middle = row.left + row.count // 2 * row.pitch + row.width // 2
        tall = row.least + share * (row.reach - row.least)
        bright = np.flatnonzero(picture.luma[: row.floor, middle] > 70)
        coloured = 2 * np.flatnonzero(np.abs(picture.red[: row.floor // 2, middle // 2].astype(int) - 128) > 12)
        assert abs(row.floor - tall - bright.min()) <= 2
        assert abs(row.floor - tall - coloured.min()) <= 4
        np.testing.assert_array_equal(np.diff(bright), 1)

"""Does `wave` hold still where the sound does, follow it at once where it changes, and fill any shape of picture?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.render.features import Analyser, Features, Floats
from renderdispatch.render.params import WaveParams
from renderdispatch.render.picture import Picture
from renderdispatch.render.scenes.wave import Wave
from renderdispatch.render.snapshots import dump_state

RATE = 44_100
TONES = [(shape, hz, 30) for shape in ("sine", "saw") for hz in (55, 110, 220, 440, 1000)]
Sound = NDArray[np.float64]


class Untriggered(Wave):
    """A wave that shows what is in the middle of each frame."""

    def _continued(self, last: Floats, wave: Floats, light: float) -> Floats:
        return np.asarray(np.tanh(wave[192:320] * np.float32(1.4 * light / np.abs(wave).max())))


def tone(shape: str, hz: float, *, seconds: float = 1) -> Sound:
    turns = hz * np.arange(round(seconds * RATE)) / RATE
    return 0.5 * np.asarray(np.sin(2 * np.pi * turns) if shape == "sine" else 2 * (turns % 1) - 1)


@pytest.fixture
def analysed(tmp_path: Path) -> Iterator[Callable[..., Features]]:
    with ExitStack() as opened:

        def of(sound: Sound, fps: int = 30) -> Features:
            with Analyser(tmp_path / "features", rate=RATE, fps=Fraction(fps)) as analyser:
                analyser.feed(sound[None].astype(np.float32))
                return opened.enter_context(analyser.finish(len(sound) * fps // RATE))

        yield of


def pictures(
    features: Features, *, scene: type[Wave] = Wave, size: tuple[int, int] = (320, 180), **params: Any
) -> Iterator[tuple[int, Picture]]:
    """Yield each frame's number and picture."""
    made = scene(WaveParams(**params), width=size[0], height=size[1], fps=features.fps)
    state = made.start()
    for frame in features:
        state = made.step(state, frame)
        yield frame.index, made.picture(state, frame)


def lines(features: Features) -> list[Floats]:
    """Return the line of each frame."""
    scene = Wave(WaveParams(), width=320, height=180, fps=features.fps)
    states = accumulate(features, scene.step, initial=scene.start())
    return [state.lines[-1] for state in states][1:]


def changes(features: Features, scene: type[Wave]) -> float:
    """Return by how much neighbouring frames differ, once the tone has begun."""
    lumas = [
        picture.luma.astype(int) for index, picture in pictures(features, scene=scene, size=(240, 136)) if index >= 10
    ]
    return float(np.mean([np.abs(one - other).mean() for one, other in pairwise(lumas)]))


@pytest.mark.parametrize(("shape", "hz", "fps"), [*TONES, ("saw", 55, 60), ("sine", 440, 60)])
def test_a_held_tone_is_a_still_line(analysed: Callable[..., Features], shape: str, hz: int, fps: int) -> None:
    """Neighbouring frames differ by less than a fifth of what they would if the line did not go on."""
    features = analysed(tone(shape, hz, seconds=20 / fps + 0.2), fps)
    assert changes(features, Wave) < changes(features, Untriggered) / 5


def test_a_chord_changes_slowly(analysed: Callable[..., Features]) -> None:
    """Notes whose common period is longer than what is known: the best part is still much like the line before."""
    features = analysed(np.sum([tone("saw", hz) for hz in (130.8, 164.8, 196.0)], axis=0) / 3)
    assert changes(features, Wave) < changes(features, Untriggered) / 1.6


def test_an_attack_shows_at_once(analysed: Callable[..., Features]) -> None:
    """In the frame in which a tone begins, after silence or over another tone, the line is far from where it was."""
    for before in (np.zeros(RATE), 0.2 * tone("sine", 70)):
        line = lines(analysed(np.concatenate([before, tone("saw", 300)])))
        assert np.abs(line[30]).max() > 0.5
        assert np.abs(line[30] - line[29]).mean() > 0.2


def test_the_end_of_the_sound_shows_at_once(analysed: Callable[..., Features]) -> None:
    """As soon as all that is known is silent, the line is at rest."""
    line = lines(analysed(np.concatenate([tone("sine", 110), np.zeros(RATE)])))
    assert np.abs(line[28]).max() > 0.5
    assert not line[32].any()


def lit(picture: Picture) -> NDArray[np.bool_]:
    return np.asarray(picture.luma > 100)


@pytest.mark.parametrize("size", [(320, 180), (180, 320), (240, 240), (480, 160)])
def test_the_line_fills_the_picture(analysed: Callable[..., Features], size: tuple[int, int]) -> None:
    """It runs from end to end of the longer side, and over most of the other one. Nothing of it is cut off."""
    for index, picture in pictures(analysed(tone("sine", 200)), size=size):
        if index < 10:
            continue
        shown = lit(picture)
        along, across = (np.any(shown, axis=axis) for axis in ((0, 1) if size[0] >= size[1] else (1, 0)))
        assert along.all()
        assert across.mean() > 0.7
        assert not across.take([0, -1]).any()


@pytest.mark.parametrize("hz", [200, 900, 2500])
def test_the_line_has_no_gaps(analysed: Callable[..., Features], hz: int) -> None:
    """Where it is steep too, the lit pixels of neighbouring columns touch."""

    def touch(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
        near = one.copy()
        near[1:] |= one[:-1]
        near[:-1] |= one[1:]
        return bool((near & other).any())

    *_, (_, picture) = pictures(analysed(tone("sine", hz)), size=(640, 360))
    assert all(touch(one, other) for one, other in pairwise(picture.luma.T > 80))


def test_the_line_has_the_colours_first_to_last(analysed: Callable[..., Features]) -> None:
    """Colour and brightness are at the same place: from blue at the left to red at the right."""
    *_, (_, picture) = pictures(analysed(tone("sine", 200)), colours=("#0000ff", "#ff0000"), glow=0)
    bright = picture.luma.reshape(90, 2, 160, 2).mean(axis=(1, 3))
    rows = bright.argmax(axis=0)
    for columns, strong, weak in (
        (slice(4, 40), picture.blue, picture.red),
        (slice(-40, -4), picture.red, picture.blue),
    ):
        at = rows[columns], np.arange(160)[columns]
        assert strong[at].mean() > 145 > weak[at].mean()


@pytest.mark.parametrize("fps", [Fraction(1), Fraction(60), Fraction(1000)])
def test_the_state_is_small(fps: Fraction) -> None:
    """It does not grow with the picture, and hardly with the frames a second."""
    scene = Wave(WaveParams(), width=8192, height=256, fps=fps)
    assert len(dump_state(scene.start())) < 64 * 1024

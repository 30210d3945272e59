"""Is every click seen when it is heard?"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import Output, RenderStats
from renderdispatch.testing.scenes import flash

RATE = 44_100


def click_track(seconds: int) -> tuple[NDArray[np.float64], list[int]]:
    """Return sound with a short click about every 0.7 s, and where each begins."""
    starts = [int(t * RATE) for t in np.cumsum(np.random.default_rng(11).uniform(0.6, 0.8, 2 * seconds))]
    starts = [start for start in starts if start < (seconds - 1) * RATE]
    sound = np.zeros(seconds * RATE)
    click = 0.9 * np.sin(2 * np.pi * 2000 * np.arange(220) / RATE) * np.hanning(220)
    for start in starts:
        sound[start : start + 220] += click
    return sound, starts


def onsets(signal: NDArray[np.float64] | NDArray[np.float32], *, above: float, dead: int) -> list[int]:
    """Return where the signal rises above a threshold, after having been below it for ``dead`` values."""
    found: list[int] = []
    last = -dead - 1
    for at in np.flatnonzero(np.abs(signal) > above):
        if at - last > dead:
            found.append(int(at))
        last = int(at)
    return found


@pytest.mark.parametrize(
    ("codec", "fps"),
    [("wav", "24"), ("wav", "25"), ("wav", "30000/1001"), ("wav", "30"), ("wav", "60"), ("mp3", "30000/1001")],
)
def test_every_flash_is_in_the_frame_of_its_click(
    tmp_path: Path,
    write_wav: Callable[..., Path],
    encode: Callable[..., Path],
    render: Callable[..., tuple[Path, RenderStats]],
    brightness: Callable[[Path], NDArray[np.float64]],
    sound_of: Callable[[Path], tuple[NDArray[np.float32], int]],
    codec: str,
    fps: str,
) -> None:
    """Over 60 s: as many flashes as clicks, each within one frame of its own, and the sound in the file in step too."""
    sound, clicks = click_track(60)
    if codec == "wav":
        song = write_wav(tmp_path / "a.wav", sound)
    else:
        song = encode(tmp_path / "a.mp3", "libmp3lame", sound, RATE)
    output = Output(width=32, height=32, fps=Fraction(fps))
    video, stats = render(flash, song, output=output)
    assert stats.frames == round(Fraction(stats.duration_s).limit_denominator(RATE) * output.fps)

    flashes = onsets(brightness(video) - 16, above=60, dead=2)
    assert len(flashes) == len(clicks)
    for shown, click in zip(flashes, clicks, strict=True):
        assert abs(shown - int(Fraction(click, RATE) * output.fps)) <= 1

    heard, rate = sound_of(video)
    assert rate == RATE
    samples = onsets(heard, above=0.3, dead=2000)
    assert len(samples) == len(clicks)
    assert max(abs(sample - click) for sample, click in zip(samples, clicks, strict=True)) < 100

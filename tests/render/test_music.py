"""Is the demo's music what it says?"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.render.music import compose


@pytest.mark.parametrize("seconds", [0.5, 3.0, 12.345])
def test_music_is_as_long_as_asked(tmp_path: Path, seconds: float) -> None:
    """16-bit stereo at 44.1 kHz, to the sample."""
    compose(tmp_path / "a.wav", seconds=seconds)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 44_100, round(seconds * 44_100))


def test_the_same_seed_gives_the_same_music(tmp_path: Path) -> None:
    """Another seed gives another melody."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        compose(tmp_path / name, seconds=3, seed=seed)
    one, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == same != other


def test_music_has_loud_and_quiet_parts(tmp_path: Path) -> None:
    """It does not clip, and its loud parts are at least 8 dB over the quiet ones."""
    compose(tmp_path / "a.wav", seconds=20)
    with wave.open(str(tmp_path / "a.wav")) as file:
        sound = np.frombuffer(file.readframes(-1), "<i2") / 32_768
    assert np.abs(sound).max() < 0.99
    rms = np.sqrt([np.mean(part**2) for part in np.array_split(sound, 20)])
    assert 20 * np.log10(np.percentile(rms, 80) / np.percentile(rms, 20)) > 8

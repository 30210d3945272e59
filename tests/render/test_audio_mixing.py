"""How do many channels become two?"""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from renderdispatch.errors import AudioError
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.mixing import Mixer
from tests.support.sounds import pitch, read

RATE = 44_100


def wav(path: Path, channels: int, seconds: float = 0.5, rate: int = RATE) -> Path:
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(np.repeat((tone * 32_767).astype("<i2"), channels).tobytes())
    return path


@pytest.mark.parametrize("channels", [3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 32, 64])
def test_channels_without_a_layout_are_mixed(tmp_path: Path, channels: int) -> None:
    """A tone in all channels is heard on both sides, about as loud as it was."""
    got, reader = read(wav(tmp_path / "a.wav", channels))
    assert got.shape == (2, RATE // 2)
    assert pitch(got, reader.rate) == pytest.approx(440, abs=3)
    assert 0.1 < np.abs(got).max() < 1


def test_more_channels_than_can_be_mixed_are_the_fault_of_the_audio(tmp_path: Path) -> None:
    """255 channels are refused with what is wrong."""
    with pytest.raises(AudioError, match="255 channels") as caught:
        read(wav(tmp_path / "a.wav", 255))
    assert caught.value.code == "audio.unsupported"


def frame(layout: str, *channels: float) -> av.AudioFrame:
    planes = av.AudioFrame("fltp", layout, 100)
    for plane, value in zip(planes.planes, channels, strict=False):
        plane.update(np.full(100, value, np.float32).tobytes())
    planes.sample_rate = RATE
    return planes


def test_of_ambisonic_sound_both_sides_get_the_omnidirectional_channel() -> None:
    """The others are directions, and have no sound of their own."""
    got = Mixer("stereo", RATE).mix(frame("ambisonic 1", 0.5, 0.1, 0.2, 0.3))
    np.testing.assert_allclose(got, np.full((2, 100), 0.5), atol=1e-6)


def test_no_channel_of_an_unknown_layout_is_lost() -> None:
    """Both sides get the mean of all."""
    packed = av.AudioFrame.from_ndarray(
        np.tile(np.arange(10, dtype=np.float32) / 10, 100)[np.newaxis], format="flt", layout="10 channels"
    )
    packed.sample_rate = RATE
    np.testing.assert_allclose(Mixer("stereo", RATE).mix(packed), np.full((2, 100), 0.45), atol=1e-6)


def test_sound_of_ten_samples_a_second_comes_in_small_blocks(tmp_path: Path) -> None:
    """Nine kilobytes of it are seven minutes: what a small file becomes is never in memory at once."""
    path = wav(tmp_path / "a.wav", 1, 0.1, rate=10)
    with SoundReader(path, start=Fraction(0), duration=None) as reader:
        sizes = [block.shape[1] for block in reader.blocks()]
    assert sum(sizes) == pytest.approx(441 * reader.rate, rel=1e-3)
    assert max(sizes) < 5 * reader.rate

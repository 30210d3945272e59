"""Is a range near the end of a long file the same as if all of it were decoded, and had quickly?"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.sounds import RATE, Track, read, write

START = 32.765432


def noise(seconds: float, since: float = 0) -> NDArray[np.float32]:
    """Return noise that begins at a second."""
    sound = np.random.default_rng(3).uniform(-0.4, 0.4, round(seconds * RATE)).astype(np.float32)
    sound[: round(since * RATE)] = 0
    return sound


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.flac", "flac"),
        ("a.wav", "pcm_s16le"),
        ("a.mp3", "libmp3lame"),
        ("a.m4a", "alac"),
        ("aac.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.opus", "libopus"),
        ("flac.ogg", "flac"),
        ("a.mka", "libopus"),
        ("a.ts", "mp2"),
        ("adpcm.wav", "adpcm_ima_wav"),
    ],
)
def test_a_late_start_gives_the_same_samples(tmp_path: Path, name: str, codec: str) -> None:
    """To the bit, in each format."""
    path = write(tmp_path / name, Track(sound=noise(34, since=30), codec=codec))
    whole, _ = read(path)
    got, reader = read(path, START, 1)
    begin = round(START * RATE)
    np.testing.assert_array_equal(got, whole[:, begin : begin + RATE])
    assert not reader.warnings


@pytest.mark.skipif(sys.platform != "linux", reason="what a process read is in /proc")
def test_what_is_before_a_late_start_is_not_read(tmp_path: Path) -> None:
    """Of 8 MB of FLAC less than a quarter is read for its last second."""
    path = write(tmp_path / "a.flac", Track(sound=noise(60), codec="flac"))

    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_bytes()
    read(path, 58, 1)
    assert read_bytes() - before < path.stat().st_size / 4


def test_a_late_start_lies_behind_a_gap_where_it_should(tmp_path: Path) -> None:
    """A seek leads by timestamps, and decoding counts the silence: both come to the same sample."""
    path = write(tmp_path / "a.m4a", Track(sound=noise(34), codec="alac", keep=lambda time: not 20 < time < 25))
    whole, _ = read(path)
    got, _ = read(path, START, 1)
    begin = round(START * RATE)
    np.testing.assert_array_equal(got, whole[:, begin : begin + RATE])


def test_one_frame_does_not_say_where_a_seek_led(tmp_path: Path) -> None:
    """FFmpeg's times of some frames of Vorbis are 9 ms off, where its blocks change their size."""

    def stamp(time: float) -> float:
        return time + (0.009 if round(time * RATE) // 4096 % 5 == 1 else 0)

    path = write(tmp_path / "a.m4a", Track(sound=noise(34), codec="alac", stamp=stamp))
    whole, _ = read(path)
    for start in np.arange(31, 32, 0.1):
        got, _ = read(path, float(start), 0.5)
        begin = round(float(start) * RATE)
        np.testing.assert_array_equal(got, whole[:, begin : begin + RATE // 2])


def test_times_in_the_page_that_a_seek_led_to_are_not_believed(tmp_path: Path) -> None:
    """FFmpeg guesses them, and near the end of an Ogg it is wrong by half a second."""
    path = write(tmp_path / "a.ogg", Track(sound=noise(34), codec="flac"))
    whole, _ = read(path)
    for start in np.arange(32, 34, 0.15):
        got, reader = read(path, float(start), 0.5)
        begin = round(float(start) * RATE)
        np.testing.assert_array_equal(got, whole[:, begin : begin + RATE // 2])
        assert not reader.warnings

"""When is what a file holds heard?"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.sounds import RATE, Track, bursts, codes, heard, read, write

SOUND = bursts(6, 0.5, 1.5, 4.5, 5.5)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mka", "libopus"),
        ("a.mkv", "aac"),
        ("a.webm", "libopus"),
        ("flac.mka", "flac"),
        ("a.mp4", "aac"),
        ("alac.m4a", "alac"),
        ("a.opus", "libopus"),
        ("a.ts", "mp2"),
        ("a.flv", "aac"),
        ("a.wma", "wmav2"),
        ("a.flac", "flac"),
    ],
)
def test_lost_packets_are_silence(tmp_path: Path, name: str, codec: str) -> None:
    """Two seconds that are not in the file are silent, and what follows is heard at its time."""
    lost = Track(sound=SOUND, codec=codec, keep=lambda time: not 2 < time < 4)
    path = write(tmp_path / name, lost)
    begins = heard(path)
    assert np.diff(begins) == pytest.approx([1, 3, 1], abs=0.005)
    _, reader = read(path)
    assert codes(reader) == {"audio.gap"}
    assert float(reader.duration) == pytest.approx(6, abs=0.06)


def test_packets_lost_one_by_one_cost_no_time(tmp_path: Path) -> None:
    """Each 30th packet of 20 ms is lost: the sound stays in its place, and one warning tells of all."""
    count = iter(range(10_000))
    path = write(tmp_path / "a.mka", Track(sound=SOUND, keep=lambda time: next(count) % 30 != 29))
    assert heard(path) == pytest.approx([0.5, 1.5, 4.5, 5.5], abs=0.005)
    (warning,) = read(path)[1].warnings
    assert warning.code == "audio.gap"
    assert "10 places" in warning.message


def test_jitter_changes_no_sample(tmp_path: Path) -> None:
    """Timestamps of the time of arrival, up to 20 ms late, neither insert nor cut anything."""
    late = random.Random(1)
    straight, _ = read(write(tmp_path / "a.mka", Track(sound=SOUND)))
    jittered = Track(sound=SOUND, stamp=lambda time: time + late.uniform(0, 0.019))
    got, reader = read(write(tmp_path / "b.mka", jittered))
    np.testing.assert_array_equal(got, straight)
    assert not reader.warnings


def test_what_overlaps_is_cut(tmp_path: Path) -> None:
    """A second that is in the file twice is heard once."""
    path = write(tmp_path / "a.mka", Track(sound=SOUND, stamp=lambda time: time - (time > 3)))
    assert heard(path) == pytest.approx([0.5, 1.5, 4.5], abs=0.005)
    _, reader = read(path)
    assert float(reader.duration) == pytest.approx(5, abs=0.01)
    assert codes(reader) == {"audio.overlap"}


@pytest.mark.parametrize(("name", "codec"), [("a.mka", "libopus"), ("a.ts", "mp2")])
@pytest.mark.parametrize("jump_s", [7_000, 50_000])
def test_a_clock_that_jumps_by_hours_makes_no_silence(tmp_path: Path, name: str, codec: str, jump_s: float) -> None:
    """The sound goes on, and a warning says where the clock was set."""
    path = write(tmp_path / name, Track(sound=SOUND, codec=codec, stamp=lambda time: time + jump_s * (time > 3)))
    assert np.diff(heard(path)) == pytest.approx([1, 3, 1], abs=0.005)
    _, reader = read(path)
    assert codes(reader) == {"audio.timestamps"}
    assert float(reader.duration) == pytest.approx(6, abs=0.06)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "aac"), ("a.mp4", "aac"), ("a.ts", "mp2"), ("a.mov", "alac")])
def test_sound_that_begins_later_than_its_video_is_heard_later(tmp_path: Path, name: str, codec: str) -> None:
    """The first second of the file is silent, which is nothing to warn of."""
    later = Track(sound=SOUND, codec=codec, stamp=lambda time: time + 1)
    path = write(tmp_path / name, later, video_s=8)
    assert heard(path) == pytest.approx([1.5, 2.5, 5.5, 6.5], abs=0.03)
    assert not read(path)[1].warnings


def test_a_start_is_on_the_clock_of_a_player(tmp_path: Path) -> None:
    """1.4 s into a file whose sound begins after a second is 0.4 s into the sound."""
    path = write(tmp_path / "a.mkv", Track(sound=SOUND, codec="flac", stamp=lambda time: time + 1), video_s=8)
    assert heard(path, start=1.4) == pytest.approx([0.1, 1.1, 4.1, 5.1], abs=0.002)


def test_a_file_that_was_cut_out_begins_with_its_sound(tmp_path: Path) -> None:
    """Timestamps that begin at an hour are not an hour of silence: players count from the file's begin."""
    path = write(tmp_path / "a.mka", Track(sound=SOUND, stamp=lambda time: time + 3600))
    assert heard(path) == pytest.approx([0.5, 1.5, 4.5, 5.5], abs=0.002)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.opus", "libopus"), ("a.mp3", "libmp3lame")])
def test_what_the_encoder_put_around_the_sound_is_not_heard(tmp_path: Path, name: str, codec: str) -> None:
    """The video is as long as the sound was before it was encoded, to the sample."""
    _, reader = read(write(tmp_path / name, Track(sound=bursts(4.123, 1), codec=codec)))
    assert reader.duration * RATE == round(4.123 * RATE)


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.ts", "mp2"), ("a.mp3", "libmp3lame")])
def test_files_that_were_joined_are_played_through(tmp_path: Path, name: str, codec: str) -> None:
    """Timestamps that begin anew are no overlap."""
    path = write(tmp_path / name, Track(sound=bursts(2, 0.5, 1.5), codec=codec))
    path.write_bytes(path.read_bytes() * 2)
    assert np.diff(heard(path)) == pytest.approx([1, 1, 1], abs=0.08)
    assert "audio.damaged" not in codes(read(path)[1])

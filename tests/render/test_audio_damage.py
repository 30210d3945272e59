"""What is left of a song that is damaged, and what is said of it?"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.errors import AudioError
from tests.support.sounds import RATE, Track, codes, read, write

FORMATS = [
    ("a.mp3", "libmp3lame"),
    ("a.aac", "aac"),
    ("a.flac", "flac"),
    ("a.ogg", "libopus"),
    ("a.mkv", "aac"),
    ("a.webm", "libopus"),
    ("a.m4a", "aac"),
    ("a.ts", "mp2"),
    ("a.flv", "aac"),
    ("a.wma", "wmav2"),
]


def noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-0.4, 0.4, round(seconds * RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of noise in each format."""
    folder = tmp_path_factory.mktemp("songs")
    for name, codec in FORMATS:
        write(folder / name, Track(sound=noise(8), codec=codec))
    return folder


def damaged(song: Path, at: float = 0.5, size: int = 1500) -> Path:
    data = bytearray(song.read_bytes())
    begin = int(len(data) * at)
    data[begin : begin + size] = random.Random(5).randbytes(size)
    path = song.with_stem("damaged")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", [name for name, _ in FORMATS])
def test_damage_costs_what_it_covers(songs: Path, name: str) -> None:
    """1500 bytes of garbage in the middle: what is behind them is heard, and a warning says so."""
    whole, intact = read(songs / name)
    assert not intact.warnings
    _, reader = read(damaged(songs / name))
    assert float(reader.duration) == pytest.approx(whole.shape[1] / RATE, abs=0.7)
    assert codes(reader) & {"audio.damaged", "audio.gap"}


def test_a_frame_header_that_is_wrong_is_not_the_end(songs: Path) -> None:
    """A frame of an AAC stream says that it has no bytes; the rest of the song is heard."""
    data = bytearray((songs / "a.aac").read_bytes())
    at = 0
    while at < len(data) // 2:  # to the begin of a frame
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    data[at + 3] &= 0xFC
    data[at + 4] = 0
    data[at + 5] &= 0x1F
    path = songs / "header.aac"
    path.write_bytes(data)
    _, reader = read(path)
    assert float(reader.duration) > 7.5
    (warning,) = reader.warnings
    assert warning.code == "audio.damaged"
    assert "first at 4." in warning.message


def test_damage_outside_the_range_is_not_said(songs: Path) -> None:
    """A range from before and one from behind the damage have no warnings."""
    path = damaged(songs / "a.mp3")
    assert not read(path, 0, 3)[1].warnings
    assert not read(path, 6, 1)[1].warnings
    assert read(path, 3, 3)[1].warnings


@pytest.mark.parametrize("name", ["a.mkv", "a.mp3", "a.flac", "a.wma"])
def test_a_file_that_was_cut_off_says_so(songs: Path, name: str) -> None:
    """Half of a file whose header tells the whole length gives half of the song, with a warning."""
    path = songs / f"half-{name}"
    data = (songs / name).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, reader = read(path)
    assert float(reader.duration) == pytest.approx(4, abs=0.3)
    assert "audio.truncated" in codes(reader)


def test_an_mp4_with_its_index_in_front_that_was_cut_off_says_so(tmp_path: Path) -> None:
    """As others. Without its index it cannot be read at all."""
    song = Track(sound=noise(8), codec="aac")
    path = write(tmp_path / "a.m4a", song, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, reader = read(path)
    assert float(reader.duration) == pytest.approx(4, abs=0.3)
    assert "audio.truncated" in codes(reader)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("a.w64", "pcm_s16le"),
        ("a.caf", "pcm_s16be"),
        ("pcm.avi", "pcm_s16le"),
        ("mp3.avi", "libmp3lame"),
        ("a.aiff", "pcm_s16be"),
        ("a.au", "pcm_s16be"),
    ],
)
def test_a_file_that_was_cut_off_by_its_size_says_so(tmp_path: Path, name: str, codec: str) -> None:
    """Its header tells how many bytes there should be."""
    path = write(tmp_path / name, Track(sound=noise(4), codec=codec))
    assert not read(path)[1].warnings
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (warning,) = read(path)[1].warnings
    assert warning.code == "audio.truncated"
    lost = re.search(r"about ([\d.]+) s", warning.message)
    assert lost and float(lost[1]) == pytest.approx(2, abs=0.15)


def test_a_duration_that_was_estimated_promises_nothing(tmp_path: Path) -> None:
    """The header of an SWF does not tell how long its sound is; FFmpeg concludes it from the size."""
    path = write(tmp_path / "a.swf", Track(sound=noise(20), codec="libmp3lame", rate=44_100))
    assert not read(path)[1].warnings


@pytest.mark.parametrize(("name", "codec"), [("a.aac", "aac"), ("a.opus", "libopus")])
def test_a_file_whose_end_is_empty_says_so(tmp_path: Path, name: str, codec: str) -> None:
    """A download that was never finished ends in zeros."""
    path = write(tmp_path / name, Track(sound=noise(8), codec=codec))
    path.write_bytes(path.read_bytes() + bytes(200_000))
    _, reader = read(path)
    assert float(reader.duration) == pytest.approx(8, abs=0.1)
    assert codes(reader) == {"audio.truncated"}


def test_tags_at_the_end_are_no_damage(tmp_path: Path) -> None:
    """The tags of old MP3 files stand behind the sound."""
    path = write(tmp_path / "a.mp3", Track(sound=noise(2), codec="libmp3lame"))
    ape = b"APETAGEX" + (2000).to_bytes(4, "little") + (70_032).to_bytes(4, "little") + bytes(70_016)
    path.write_bytes(path.read_bytes() + ape + b"TAG" + bytes(125))
    assert not read(path)[1].warnings


def test_what_is_damaged_nearly_everywhere_is_refused(tmp_path: Path) -> None:
    """One good packet among a hundred of nonsense is no song."""
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4608), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        file.mux([*stream.encode(frame), *stream.encode(None)])
        for number in range(1, 101):
            packet = av.Packet(random.Random(number).randbytes(300))
            packet.stream, packet.pts, packet.dts = stream, number * 4608, number * 4608
            packet.time_base = Fraction(1, RATE)
            file.mux(packet)
    with pytest.raises(AudioError) as caught:
        read(path)
    assert caught.value.code == "audio.undecodable"


def test_whatever_is_in_a_file_is_blamed_on_the_audio(songs: Path) -> None:
    """Of 200 files with bytes changed, lost and added, each is read or refused with an `AudioError`."""
    chance = random.Random(7)
    for number in range(200):
        name, _ = FORMATS[number % len(FORMATS)]
        data = bytearray((songs / name).read_bytes()[:30_000])
        for _ in range(chance.choice([1, 5, 50])):
            at = chance.randrange(chance.choice([400, len(data)]))
            new = chance.randbytes(chance.randrange(8))
            data[at : at + chance.randrange(8)] = new
        path = songs / f"changed-{name}"
        path.write_bytes(data)
        try:
            _, reader = read(path, chance.choice([0, 0.2]), 30)
        except AudioError as error:
            assert error.code.startswith("audio.")  # noqa: PT017
        else:
            assert len(reader.warnings) <= 5

"""Which samples does a file hold, exactly, in the range that was asked for?"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.errors import AudioError
from renderdispatch.render.audio import SoundReader

WriteWav = Callable[..., Path]
Encode = Callable[..., Path]


def read(
    path: Path, start: Fraction = Fraction(0), duration: Fraction | None = None
) -> tuple[NDArray[np.float32], SoundReader]:
    with SoundReader(path, start=start, duration=duration) as reader:
        return np.concatenate(list(reader.blocks()), axis=1), reader


def noise(samples: int) -> NDArray[np.float64]:
    return np.random.default_rng(3).uniform(-0.5, 0.5, samples)


def refused(path: Path, start: Fraction = Fraction(0), duration: Fraction | None = None) -> str:
    with pytest.raises(AudioError) as caught:
        read(path, start, duration)
    assert str(path) not in str(caught.value)
    return caught.value.code


def test_a_wav_is_read_to_the_last_sample(tmp_path: Path, write_wav: WriteWav) -> None:
    """Every sample arrives, and the duration is samples / rate."""
    samples = noise(100_001)
    got, reader = read(write_wav(tmp_path / "a.wav", samples))
    assert got.shape == (1, 100_001)
    np.testing.assert_allclose(got[0], samples, atol=1e-4)
    assert reader.duration == Fraction(100_001, 44_100)


def test_a_title_need_not_be_text(tmp_path: Path, write_wav: WriteWav) -> None:
    """Old songs have tags in any encoding; they are read like others."""
    path = write_wav(tmp_path / "a.wav", noise(44_100))
    sound = path.read_bytes()[8:]
    title = b"INFOINAM" + (8).to_bytes(4, "little") + b"caf\xe9 \xff\0\0"
    tagged = b"WAVELIST" + len(title).to_bytes(4, "little") + title + sound.removeprefix(b"WAVE")
    path.write_bytes(b"RIFF" + len(tagged).to_bytes(4, "little") + tagged)
    _, reader = read(path)
    assert reader.duration == 1


def test_a_range_is_cut_at_the_nearest_samples(tmp_path: Path, write_wav: WriteWav) -> None:
    """A start and a duration, floats on the wire, pick the samples that they mean."""
    samples = noise(88_200)
    got, reader = read(write_wav(tmp_path / "a.wav", samples), Fraction(0.1), Fraction(0.7))
    assert reader.duration == Fraction(7, 10)
    np.testing.assert_allclose(got[0], samples[4410 : 4410 + 30_870], atol=1e-4)


def test_a_range_past_the_end_ends_with_the_sound(tmp_path: Path, write_wav: WriteWav) -> None:
    """A duration that reaches past the end is cut there."""
    _, reader = read(write_wav(tmp_path / "a.wav", noise(44_100)), Fraction(1, 2), Fraction(60))
    assert reader.duration == Fraction(1, 2)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mp3", "libmp3lame", 44_100),
        ("a.flac", "flac", 48_000),
        ("a.m4a", "aac", 44_100),
        ("a.ogg", "vorbis", 44_100),
        ("a.opus", "libopus", 48_000),
        ("a.mkv", "ac3", 48_000),
    ],
)
def test_common_formats_are_read_in_their_right_place(
    tmp_path: Path, encode: Encode, name: str, codec: str, rate: int
) -> None:
    """What the encoder put before the sound is left out, and nothing of the sound is missing."""
    click = np.zeros(rate)
    click[rate // 2 : rate // 2 + 64] = 0.8
    got, reader = read(encode(tmp_path / name, codec, click, rate))
    assert reader.rate == rate
    assert float(reader.duration) == pytest.approx(1, abs=0.06)
    assert abs(int(np.argmax(np.abs(got[0]))) - rate // 2) < 256


def test_the_sound_of_a_video_is_read(tmp_path: Path, encode: Encode) -> None:
    """The pictures of a file are ignored."""
    got, _ = read(encode(tmp_path / "a.mp4", "aac", noise(44_100), 44_100, picture=True))
    assert got.shape[0] == 2
    assert got.shape[1] == pytest.approx(44_100, abs=1024)


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 96_000])
def test_unusual_rates_are_resampled(tmp_path: Path, write_wav: WriteWav, rate: int) -> None:
    """The duration stays that of the source's samples, and as much sound comes out."""
    got, reader = read(write_wav(tmp_path / "a.wav", noise(rate + 7), rate))
    assert reader.rate in {44_100, 48_000}
    assert reader.duration == Fraction(rate + 7, rate)
    assert got.shape[1] == pytest.approx(float(reader.duration * reader.rate), abs=1)


def test_many_channels_become_two(tmp_path: Path, write_wav: WriteWav) -> None:
    """5.1 is mixed to stereo."""
    got, _ = read(write_wav(tmp_path / "a.wav", np.tile(noise(44_100), (6, 1))))
    assert got.shape == (2, 44_100)


def test_a_truncated_file_gives_what_it_has(tmp_path: Path, encode: Encode) -> None:
    """Half of an mp3 is half of the song."""
    path = encode(tmp_path / "a.mp3", "libmp3lame", noise(441_000), 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _, reader = read(path)
    assert float(reader.duration) == pytest.approx(5, abs=0.3)


def test_a_truncated_wav_gives_what_it_has(tmp_path: Path, write_wav: WriteWav) -> None:
    """A WAV whose header promises more is read to its end."""
    path = write_wav(tmp_path / "a.wav", noise(44_100))
    path.write_bytes(path.read_bytes()[: 44 + 2 * 10_000])
    assert read(path)[1].duration == Fraction(10_000, 44_100)


def test_corrupt_packets_are_skipped(tmp_path: Path, encode: Encode) -> None:
    """Garbage in the middle costs what it covers, not the rest."""
    path = encode(tmp_path / "a.mp3", "libmp3lame", noise(441_000), 44_100)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = random.Random(5).randbytes(4000)
    path.write_bytes(data)
    assert float(read(path)[1].duration) == pytest.approx(10, abs=1)


def test_samples_that_are_no_numbers_are_silenced(tmp_path: Path) -> None:
    """A float WAV with NaN and infinity is read as silence there."""
    samples = np.array([0.5, np.nan, np.inf, -np.inf, 1e30, 0.25] * 2000, "<f4")
    header = b"RIFF" + (36 + samples.nbytes).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"".join(
        n.to_bytes(size, "little") for n, size in ((3, 2), (1, 2), (44_100, 4), (176_400, 4), (4, 2), (32, 2))
    )
    path = tmp_path / "a.wav"
    path.write_bytes(header + b"data" + samples.nbytes.to_bytes(4, "little") + samples.tobytes())
    got, _ = read(path)
    np.testing.assert_allclose(got[0, :6], [0.5, 0, 0, 0, 4, 0.25])


def test_what_is_not_audio_is_refused(tmp_path: Path) -> None:
    """Text and noise are ``audio.undecodable``."""
    for name, content in (("a.txt", b"Not a song.\n" * 99), ("a.mp3", random.Random(1).randbytes(5000))):
        path = tmp_path / name
        path.write_bytes(content)
        assert refused(path) == "audio.undecodable"


def test_a_picture_has_no_sound(tmp_path: Path) -> None:
    """A file without an audio stream is ``audio.no-stream``."""
    import av

    path = tmp_path / "a.png"
    av.VideoFrame(16, 16, "rgb24").save(str(path))
    assert refused(path) == "audio.no-stream"


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """No bytes is ``audio.empty``."""
    (tmp_path / "a.wav").touch()
    assert refused(tmp_path / "a.wav") == "audio.empty"


def test_a_sound_without_samples_is_refused(tmp_path: Path, write_wav: WriteWav) -> None:
    """A WAV of no samples is ``audio.empty``."""
    assert refused(write_wav(tmp_path / "a.wav", np.zeros(0))) == "audio.empty"


@pytest.mark.parametrize("start", [Fraction(1), Fraction(100)])
def test_a_range_that_starts_past_the_end_is_refused(tmp_path: Path, write_wav: WriteWav, start: Fraction) -> None:
    """To begin at or after the end is ``audio.range``."""
    assert refused(write_wav(tmp_path / "a.wav", noise(44_100)), start) == "audio.range"


def test_a_range_without_a_sample_is_refused(tmp_path: Path, write_wav: WriteWav) -> None:
    """A nanosecond within the sound is ``audio.too-short``: it is not past the end."""
    path = write_wav(tmp_path / "a.wav", noise(44_100))
    assert refused(path, duration=Fraction(1e-9)) == "audio.too-short"
    assert refused(path, start=Fraction(1, 2), duration=Fraction(1e-9)) == "audio.too-short"


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    """A file that is not there is ``audio.unreadable``."""
    assert refused(tmp_path / "a.wav") == "audio.unreadable"


def test_a_directory_is_unreadable(tmp_path: Path) -> None:
    """A directory is ``audio.unreadable``."""
    assert refused(tmp_path) == "audio.unreadable"


def test_a_file_without_permission_is_unreadable(tmp_path: Path, write_wav: WriteWav) -> None:
    """A file that may not be read is ``audio.unreadable``."""
    path = write_wav(tmp_path / "a.wav", noise(100))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65_534)
    try:
        assert refused(path) == "audio.unreadable"
    finally:
        os.seteuid(user)


def test_a_playlist_reaches_no_other_file(tmp_path: Path, write_wav: WriteWav) -> None:
    """A playlist that poses as a song is refused, whatever stands beside it."""
    song = write_wav(tmp_path / "secret.wav", noise(44_100))
    path = tmp_path / "a.mp3"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{song.as_uri()}\n#EXT-X-ENDLIST\n")
    assert refused(path) in {"audio.undecodable", "audio.no-stream"}
    path.write_text(f"ffconcat version 1.0\nfile {song.name}\n")
    assert refused(path) in {"audio.undecodable", "audio.no-stream"}

"""Which of the tracks and links of a file are played?"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from subprocess import run

import pytest

from renderdispatch.errors import AudioError
from tests.support.sounds import RATE, Track, bursts, codes, heard, pitch, read, write


def tone(hz: float, seconds: float = 2) -> Track:
    sound = bursts(seconds, *(n / 50 for n in range(round(seconds * 50))), hz=hz)
    return Track(sound=sound)


def with_default(track: Track) -> Track:
    return Track(sound=track.sound, default=True)


def test_the_default_track_is_played(tmp_path: Path) -> None:
    """Not the first one, but the one that is marked: as in players."""
    path = write(tmp_path / "a.mkv", tone(300), with_default(tone(900)))
    assert pitch(read(path)[0], RATE) == pytest.approx(900, abs=5)


def test_without_a_default_the_first_track_is_played(tmp_path: Path) -> None:
    """As in players."""
    path = write(tmp_path / "a.mkv", tone(300), tone(900))
    assert pitch(read(path)[0], RATE) == pytest.approx(300, abs=5)


def test_a_track_without_sound_is_passed_over(tmp_path: Path) -> None:
    """The default track has no packets: the first one that has some is played."""
    nothing = Track(sound=tone(300).sound, default=True, keep=lambda time: False)
    path = write(tmp_path / "a.mkv", nothing, tone(600), tone(900))
    assert pitch(read(path)[0], RATE) == pytest.approx(600, abs=5)


def test_another_track_can_be_chosen(tmp_path: Path) -> None:
    """Tracks are counted from 0; videos do not count."""
    path = write(tmp_path / "a.mkv", with_default(tone(300)), tone(900), video_s=2)
    assert pitch(read(path, track=1)[0], RATE) == pytest.approx(900, abs=5)
    assert pitch(read(path, track=0)[0], RATE) == pytest.approx(300, abs=5)


def test_a_track_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error says which there are."""
    path = write(tmp_path / "a.mkv", tone(300), tone(900))
    with pytest.raises(AudioError, match=r"there is no audio track 2; the file has 2 audio tracks, 0 to 1") as caught:
        read(path, track=2)
    assert caught.value.code == "audio.no-track"


def links(folder: Path, *tracks: Track) -> list[bytes]:
    return [write(folder / f"{number}.ogg", track).read_bytes() for number, track in enumerate(tracks)]


def test_chained_streams_are_played_through(tmp_path: Path) -> None:
    """The links of a chained Ogg may differ in rate and codec."""
    sound = bursts(2, 0.5, 1.5)
    path = tmp_path / "a.ogg"
    first = Track(sound=bursts(2, 0.5, 1.5, rate=44_100), codec="flac", rate=44_100)
    path.write_bytes(b"".join(links(tmp_path, first, Track(sound=sound), Track(sound=sound, codec="flac"))))
    assert heard(path) == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.005)
    _, reader = read(path)
    assert reader.rate == 44_100
    assert float(reader.duration) == pytest.approx(6, abs=0.01)
    assert not reader.warnings


def test_a_start_may_be_in_a_later_link(tmp_path: Path) -> None:
    """Seconds go on counting from link to link."""
    path = tmp_path / "a.opus"
    path.write_bytes(b"".join(links(tmp_path, *[Track(sound=bursts(20, 5))] * 3)))
    assert heard(path, start=41) == pytest.approx([4], abs=0.005)


def test_a_link_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    """Its neighbours are played, and a warning says where it was."""
    sound = Track(sound=bursts(2, 0.5, 1.5))
    first, second, third = links(tmp_path, sound, sound, sound)
    path = tmp_path / "a.opus"
    path.write_bytes(first + second.replace(b"OpusHead", b"NopeHead") + third)
    assert heard(path) == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.005)
    assert codes(read(path)[1]) == {"audio.damaged"}


_LOOK = """
import re, sys
from fractions import Fraction
from pathlib import Path
from renderdispatch.render.audio import SoundReader
with SoundReader(Path(sys.argv[1]), start=Fraction(0), duration=None) as sound:
    assert sum(block.shape[1] for block in sound.blocks()) > 40_000
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def zeros(mib: int) -> bytes:
    """Return so many MiB of zeros as a zlib stream, quickly."""
    packer = zlib.compressobj(9)
    packer.compress(bytes(1 << 20))
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (mib << 20) % 65_521 << 16 | 1  # Adler-32
    return b"\x78\xda" + block * mib + b"\x03\x00" + checksum.to_bytes(4, "big")


def big_png() -> bytes:
    """Return a picture of 8191 x 6000 points of 8 bytes, in less than half a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = (8191).to_bytes(4, "big") + (6000).to_bytes(4, "big")
    parts = chunk(b"IHDR", size + b"\x10\x06\0\0\0"), chunk(b"IDAT", zeros(375)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def id3(frame: bytes) -> bytes:
    length = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + length + frame


def apic(data: bytes, flags: bytes = b"\0\0") -> bytes:
    return b"APIC" + len(data).to_bytes(4, "big") + flags + data


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", ["a cover", "a compressed tag", "a cover in FLAC"])
def test_pictures_take_no_memory(tmp_path: Path, kind: str) -> None:
    """A cover that would unpack to 375 MiB is not decoded, and a tag of that size is not unpacked."""
    codec = "flac" if kind == "a cover in FLAC" else "libmp3lame"
    song = write(tmp_path / f"a.{'flac' if codec == 'flac' else 'mp3'}", Track(sound=bursts(1, 0.5), codec=codec))
    if kind == "a cover":
        tagged = id3(apic(b"\0image/png\0\3\0" + big_png())) + song.read_bytes()
    elif kind == "a compressed tag":
        tagged = id3(apic((375 << 20).to_bytes(4, "big") + zeros(375), b"\0\x09")) + song.read_bytes()
    else:
        picture = (3).to_bytes(4, "big") + (9).to_bytes(4, "big") + b"image/png" + bytes(20)
        picture += len(big_png()).to_bytes(4, "big") + big_png()
        data = song.read_bytes()
        tagged = data[:42] + b"\x06" + len(picture).to_bytes(3, "big") + picture + data[42:]
    song.write_bytes(tagged)
    done = run([sys.executable, "-c", _LOOK, str(song)], check=True, capture_output=True)
    assert int(done.stdout) < 200 * 1024

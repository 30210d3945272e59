"""Which title, artist and cover does a song have, whatever wrote its tags, and whatever is wrong with them?"""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_TAG, Asset, RenderOrder
from renderdispatch.render.covers import to_jpeg
from renderdispatch.render.tags import Tags, describe_song, read_tags, tidy
from tests.support import id3
from tests.support.needs import need_ffmpeg

WriteWav = Callable[..., Path]
Encode = Callable[..., Path]
Order = Callable[..., RenderOrder]

NOISE = np.random.default_rng(7)
JPEG = to_jpeg(NOISE.integers(0, 255, (60, 60, 3), np.uint8))
TITLE, ARTIST = "Tïtle ☃", "Café Æ"
UTF_16 = b"\x01\xff\xfe" + TITLE.encode("utf-16-le")
assert b"\xff\x00" in JPEG  # so that unsynchronisation changes it


def write_tagged(path: Path, song: Path) -> Path:
    """Write a song with tags and a cover by FFmpeg, which knows how for most formats."""
    need_ffmpeg()
    tags = ["-metadata", f"title={TITLE}", "-metadata", f"artist={ARTIST}"]
    command = ["ffmpeg", "-v", "error", "-i", str(song)]
    if path.suffix in {".mp3", ".m4a", ".flac", ".aiff"}:
        (path.parent / "cover.jpg").write_bytes(JPEG)
        command += ["-i", str(path.parent / "cover.jpg"), "-map", "0", "-map", "1", "-c:v", "copy"]
        command += ["-disposition:v", "attached_pic", "-metadata:s:v", "comment=Cover (front)"]
    elif path.suffix in {".ogg", ".opus"}:
        block = struct.pack(">II10sI", 3, 10, b"image/jpeg", 0) + bytes(16) + struct.pack(">I", len(JPEG)) + JPEG
        tags = [*tags, "-metadata", "METADATA_BLOCK_PICTURE=" + base64.b64encode(block).decode()]
    if path.suffix == ".aiff":
        command += ["-write_id3v2", "1"]
    codecs = {".ogg": ["-c:a", "libvorbis"], ".opus": ["-c:a", "libopus"], ".m4a": ["-c:a", "aac"]}
    subprocess.run([*command, *tags, *codecs.get(path.suffix, []), str(path)], check=True)
    return path


@pytest.fixture
def song(tmp_path: Path, write_wav: WriteWav) -> Path:
    return write_wav(tmp_path / "song.wav", NOISE.uniform(-0.3, 0.3, 22_050))


@pytest.fixture
def mp3(tmp_path: Path, encode: Encode) -> bytes:
    """An mp3 without tags."""
    data = encode(tmp_path / "plain.mp3", "libmp3lame", NOISE.uniform(-0.3, 0.3, 22_050), 44_100).read_bytes()
    return data[data.index(b"\xff\xfb") :]


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".flac", ".ogg", ".opus", ".aiff"])
def test_tags_of_every_format_are_read(tmp_path: Path, song: Path, suffix: str) -> None:
    """Title and artist in any script, and the cover as the very file that it was."""
    assert read_tags(write_tagged(tmp_path / f"tagged{suffix}", song)) == Tags(TITLE, ARTIST, JPEG)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_wav_has_its_tags_in_a_list(song: Path, encoding: str) -> None:
    """RIFF says nothing of the encoding: what is not UTF-8 is Latin-1."""
    info = _chunk(b"INAM", "Größe\0".encode(encoding)) + _chunk(b"IART", "Ærtist\0".encode(encoding))
    body = song.read_bytes()[8:] + _chunk(b"LIST", b"INFO" + info)
    song.write_bytes(_chunk(b"RIFF", body))
    assert read_tags(song) == Tags("Größe", "Ærtist", None)


def test_a_wav_may_have_an_id3_tag(song: Path) -> None:
    """In a chunk of its own, with a cover."""
    frames = id3.frame(3, "TIT2", UTF_16), id3.frame(3, "APIC", id3.picture(JPEG))
    song.write_bytes(_chunk(b"RIFF", song.read_bytes()[8:] + _chunk(b"id3 ", id3.tag(3, *frames))))
    assert read_tags(song) == Tags(TITLE, None, JPEG)


def _with_bombs(folder: Path) -> None:
    """Write a second of sound in each format in which FFmpeg reads ID3 tags that are not in front."""
    bomb = id3.tag(4, id3.frame(4, "TIT2", b"\x03Bomb"), *[id3.zipped(4, "APIC", APIC + bytes(30 << 20))] * 4)
    formats = {"wav": "pcm_s16le", "aiff": "pcm_s16be", "aac": "aac", "wma": "wmav2"}
    for kind, codec in formats.items():
        path = folder / f"bomb.{kind}"
        with av.open(str(path), "w", format={"aac": "adts", "wma": "asf"}.get(kind)) as container:
            sound: Any = container.add_stream(codec, rate=16_000, layout="mono", options={"b": "64000"})
            floats = {"aac": np.float32, "wma": np.float32}.get(kind)
            samples = np.full((1, 16_000), 999, np.int16) if floats is None else np.full((1, 16_000), 0.1, floats)
            frame = av.AudioFrame.from_ndarray(samples, format="s16" if floats is None else "fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        plain = path.read_bytes()
        if kind in {"wav", "aiff"}:
            name, order = (b"id3 ", "<I") if kind == "wav" else (b"ID3 ", ">I")
            body = plain[8:] + name + struct.pack(order, len(bomb)) + bomb + bytes(len(bomb) % 2)
            path.write_bytes((b"RIFF" if kind == "wav" else b"FORM") + struct.pack(order, len(body)) + body)
        elif kind == "aac":  # behind the first frame
            first = int.from_bytes(plain[3:6]) >> 5 & 0x1FFF
            path.write_bytes(plain[:first] + bomb + plain[first:])
        else:  # in the Metadata Library Object
            name = "ID3\0".encode("utf-16-le")
            field = struct.pack("<HHHHHI", 1, 0, 0, len(name), 1, len(bomb)) + name + bomb
            library = bytes.fromhex("941c23449894d149a1411d134e457054") + struct.pack("<Q", 24 + len(field)) + field
            size, objects = struct.unpack_from("<QI", plain, 16)
            path.write_bytes(
                plain[:16] + struct.pack("<QI", size + len(library), objects + 1) + plain[28:30] + library + plain[30:]
            )
    riff = (folder / "bomb.wav").read_bytes()
    sizes = b"ds64" + struct.pack("<IQQQI", 28, len(riff) + 28, 32_000, 16_000, 0)
    (folder / "bomb64.wav").write_bytes(b"BW64" + riff[4:12] + sizes + riff[12:])
    rate = struct.pack("<IIIIIIQII", 1, 0, 1, 1, 2_822_400, 1, 2_822_400, 4096, 0)
    bits = bytes([0x69]) * 4096 * 87
    sounding = b"fmt " + struct.pack("<Q", 52) + rate + b"data" + struct.pack("<Q", 12 + len(bits)) + bits
    at = 28 + len(sounding)
    (folder / "bomb.dsf").write_bytes(b"DSD " + struct.pack("<QQQ", 28, at + len(bomb), at) + sounding + bomb)


def test_ffmpeg_unpacks_no_tag(tmp_path: Path) -> None:
    """A picture that unpacks to far more is not unpacked, wherever its tag is, and the sound is heard."""
    _with_bombs(tmp_path)
    code = (
        "import resource, sys; from fractions import Fraction; from pathlib import Path\n"
        "from renderdispatch.render.audio import SoundReader; from renderdispatch.render.tags import read_tags\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    with SoundReader(path, start=Fraction(0), duration=None) as sound:\n"
        "        print(round(sum(block.shape[1] for block in sound.blocks()) / sound.rate))\n"
        "print(used() - before < 60_000, *(read_tags(path).title for path in map(Path, sys.argv[1:])))\n"
    )
    files = sorted(map(str, tmp_path.glob("bomb*")))
    ran = subprocess.run([sys.executable, "-c", code, *files], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == [*["1"] * len(files), "True", *["Bomb"] * len(files)]
    assert len(files) == 6


def test_the_oldest_tags_are_read(tmp_path: Path, mp3: bytes) -> None:
    """ID3v1 has 128 bytes at the end, in Latin-1."""
    path = tmp_path / "old.mp3"
    path.write_bytes(mp3 + b"TAG" + b"Gr\xfc\xdfe".ljust(30, b"\0") + b"Someone".ljust(30, b"\0") + bytes(65))
    assert read_tags(path) == Tags("Grüße", "Someone", None)


APIC = id3.picture(JPEG)
PLAIN = [id3.frame(3, "TIT2", UTF_16), id3.frame(3, "TPE1", b"\0Caf\xe9 \xc6"), id3.frame(3, "APIC", APIC)]
PARTED = struct.pack(">I", len(APIC))  # as old versions of iTunes wrote it


@pytest.mark.parametrize(
    "tag",
    [
        id3.tag(
            2,
            id3.frame(2, "TT2", UTF_16),
            id3.frame(2, "TP1", b"\0Caf\xe9 \xc6"),
            id3.frame(2, "PIC", b"\0JPG\x03\0" + JPEG),
        ),
        id3.tag(3, *PLAIN),
        id3.tag(3, id3.frame(3, "TXXX", bytes(100)), *PLAIN, bytes(500)),
        id3.tag(3, struct.pack(">IHI", 6, 0, 0), *PLAIN, flags=0x40),
        id3.tag(3, id3.unsynchronised(b"".join(PLAIN)), flags=0x80),
        id3.tag(3, b"".join(PLAIN), flags=0x80),
        id3.tag(3, id3.zipped(3, "TIT2", UTF_16), PLAIN[1], id3.zipped(3, "APIC", APIC)),
        id3.tag(
            4,
            id3.frame(4, "TIT2", b"\x03" + TITLE.encode()),
            id3.frame(4, "TPE1", b"\x02" + ARTIST.encode("utf-16-be")),
            id3.zipped(4, "APIC", APIC),
        ),
        id3.tag(
            4,
            id3.frame(4, "TIT2", id3.unsynchronised(UTF_16), flags=0x02),
            id3.frame(4, "TPE1", b"g\x03" + ARTIST.encode(), flags=0x40),
            id3.frame(4, "APIC", id3.synchsafe(len(APIC)) + id3.unsynchronised(APIC), flags=0x03),
            flags=0x80,
        ),
        id3.tag(
            4,
            b"APIC" + PARTED + b"\0\0" + APIC,
            id3.frame(4, "TIT2", b"\x03" + TITLE.encode() + b"\0"),
            id3.frame(4, "TPE1", b"\x03" + ARTIST.encode()),
        ),
    ],
    ids=[
        "2.2", "2.3", "padded", "extended", "unsynchronised", "wrongly-flagged", "compressed", "2.4", "flags", "itunes",
    ],
)  # fmt: skip
def test_id3_of_every_kind_is_read(tmp_path: Path, mp3: bytes, tag: bytes) -> None:
    """Each version, with what few programs write."""
    path = tmp_path / "a.mp3"
    path.write_bytes(tag + mp3)
    assert read_tags(path) == Tags(TITLE, ARTIST, JPEG)


def test_the_front_cover_counts_most(tmp_path: Path, mp3: bytes) -> None:
    """Several artists are all named; of several pictures the front cover is taken, and links are not followed."""
    frames = [
        id3.frame(4, "TPE1", b"\x03One\0Two\0"),
        id3.frame(4, "APIC", b"\0-->\0\x03\0http://example.com/cover.jpg"),
        id3.frame(4, "APIC", id3.picture(b"the back", kind=4)),
        id3.frame(4, "APIC", id3.picture(JPEG, description=b"front\0")),
        id3.frame(4, "APIC", id3.picture(b"another front")),
    ]
    path = tmp_path / "a.mp3"
    path.write_bytes(id3.tag(4, *frames) + mp3)
    assert read_tags(path) == Tags(None, "One; Two", JPEG)


HOSTILE = {
    "claims more than there is": b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + id3.frame(3, "TIT2", b"\0A")[:-1],
    "a frame that claims 4 GiB": id3.tag(3, b"TIT2\xff\xff\xff\xff\0\0\0A"),
    "pictures of 1 GiB in 1 MiB": id3.tag(3, *[id3.zipped(3, "APIC", APIC + bytes(24 << 20))] * 43),
    "a million frames": id3.tag(3, b"TIT2\0\0\0\0\0\0" * 1_000_000),
    "a text of a million values": id3.tag(4, id3.frame(4, "TPE1", b"\x03" + b"a\0" * 1_000_000)),
    "compressed nonsense": id3.tag(4, id3.frame(4, "APIC", bytes(50), flags=9)),
    "an encrypted picture": id3.tag(4, id3.frame(4, "APIC", APIC, flags=4)),
    "a picture without an end": id3.tag(3, id3.frame(3, "APIC", b"\1image/jpeg")),
    "an unknown version": b"ID3\x09\0\0" + bytes(100),
    "an empty file": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tags_cost_little_and_raise_nothing(tmp_path: Path, mp3: bytes, what: str) -> None:
    """Memory stays below 100 MiB, and time below a second."""
    path = tmp_path / "a.mp3"
    path.write_bytes(HOSTILE[what] + mp3)
    began = time.thread_time()
    tags = read_tags(path)
    assert time.thread_time() - began < 1
    tracemalloc.start()
    try:
        assert read_tags(path) == tags
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=400), st.integers(0, 300), st.sampled_from([2, 3, 4]), st.integers(0, 255))
def test_no_bytes_make_reading_raise(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, version: int, flags: int
) -> None:
    """Whatever a tag holds, it is read or not, and nothing is raised."""
    tag = id3.tag(version, id3.frame(version, "TIT2"[: 3 if version == 2 else 4], UTF_16), *PLAIN, flags=flags)
    path = tmp_path_factory.getbasetemp() / "junk.mp3"
    path.write_bytes(tag[:at] + junk + tag[at + len(junk) :])
    tags = read_tags(path)
    assert tags.title is None or isinstance(tags.title, str)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, None),
        ("", None),
        (" \0\t\n", None),
        ("a\r\nb\0c\x1b[31m", "a b c [31m"),
        ("GrÃ¶ÃŸe", "GrÃ¶ÃŸe"),
        ("\u202egnp.exe", "gnp.exe"),
        ("👩\u200d🚀 im All", "👩\u200d🚀 im All"),
        ("a\udce4b\ufffe", "a b"),
        ("x" * 201, "x" * 197 + "..."),
        ("x" * 10_000_000, "x" * 197 + "..."),
    ],
    ids=range(10),
)
def test_texts_become_one_short_line(text: str | None, shown: str | None) -> None:
    """What cannot be seen is left out; what another program garbled is left alone."""
    assert tidy(text) == shown
    assert shown is None or len(shown) <= MAX_TAG


def _tagged(path: Path, mp3: bytes, cover: bytes) -> Path:
    path.write_bytes(id3.tag(3, *PLAIN[:2], id3.frame(3, "APIC", id3.picture(cover))) + mp3)
    return path


def _asset(path: Path) -> Asset:
    return Asset(url="", size=path.stat().st_size, path=str(path))


def test_the_order_overrules_the_tags(tmp_path: Path, mp3: bytes, order: Order) -> None:
    """Title, artist and cover, each by itself; an empty title takes the song's away."""
    song = _tagged(tmp_path / "a.mp3", mp3, JPEG)
    white = tmp_path / "white.jpg"
    white.write_bytes(to_jpeg(np.full((20, 20, 3), 255, np.uint8)))
    plain = describe_song(order(), song)
    assert (plain.title, plain.artist, plain.warnings) == (TITLE, ARTIST, ())
    assert plain.cover is not None and plain.cover.pixels.shape == (60, 60, 3)
    given = describe_song(order(title="Mine", artist="", cover=_asset(white)), song)
    assert (given.title, given.artist) == ("Mine", None)
    assert given.cover is not None and (given.cover.pixels == 255).all()


def test_a_bad_cover_in_the_tags_is_left_out(tmp_path: Path, mp3: bytes, order: Order) -> None:
    """The video is made without it, and says so."""
    found = describe_song(order(), _tagged(tmp_path / "a.mp3", mp3, JPEG[: len(JPEG) // 2]))
    assert (found.title, found.cover, found.tags.cover) == (TITLE, None, None)
    assert [warning.code for warning in found.warnings] == ["cover.ignored"]
    assert "cannot be decoded" in found.warnings[0].message


def test_a_bad_cover_of_the_order_is_an_error(tmp_path: Path, mp3: bytes, order: Order) -> None:
    """Also where the song's own one is good: who names a cover wants that one."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<svg/>")
    with pytest.raises(InvalidRequestError, match=r"not a JPEG, PNG, WebP, GIF or BMP") as caught:
        describe_song(order(cover=_asset(bad)), _tagged(tmp_path / "a.mp3", mp3, JPEG))
    assert caught.value.code == "cover.invalid"


def test_a_video_has_the_tags_of_its_song(tmp_path: Path, mp3: bytes, render: Any) -> None:
    """From the song to the mp4, where the same reader finds them; the cover is a JPEG of our own."""
    from renderdispatch.testing.scenes import flash

    video, stats = render(flash, _tagged(tmp_path / "a.mp3", mp3, JPEG))
    tags = read_tags(video)
    assert (tags.title, tags.artist, stats.warnings) == (TITLE, ARTIST, ())
    assert tags.cover is not None and tags.cover.startswith(b"\xff\xd8\xff") and tags.cover != JPEG

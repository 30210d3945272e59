"""What do other programs read in a finished file, and where are its data?"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import av
import numpy as np
import pytest

from renderdispatch.render.boxes import Box, box, finish, full_box, move_data, places
from renderdispatch.render.covers import to_jpeg
from renderdispatch.render.tags import Tags
from tests.support.needs import need_ffmpeg

JPEG = to_jpeg(np.random.default_rng(5).integers(0, 255, (40, 40, 3), np.uint8))
TAGS = Tags(title="Straße ☃ & <Söhne>", artist="Ærtist", cover=JPEG)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A video with sound as the encoders leave it: the index is at the end, and it has tags of the encoder's."""
    path = tmp_path / "raw.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        container.metadata.update({"comment": "made by hand", "creation_time": "2020-02-02T02:02:02Z"})
        video: Any = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p"
        sound: Any = container.add_stream("aac", rate=44_100, layout="mono")
        for number in range(20):
            picture = av.VideoFrame(64, 32, "yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, 10)
            container.mux(video.encode(picture))
        noise = np.random.default_rng(1).uniform(-0.5, 0.5, (1, 88_200)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
        for part in (frame, None):
            container.mux(sound.encode(part))
        container.mux(video.encode(None))
    with path.open("rb", buffering=0) as file:
        assert list(places(file))[-2:] == [b"mdat", b"moov"]
    return path


def probe(path: Path) -> dict[str, Any]:
    need_ffmpeg()
    command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", str(path)]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def packets(path: Path) -> list[tuple[int, int | None, int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(p.stream_index, p.pts, p.dts, bytes(p)) for p in container.demux() if p.stream_index < 2 and p.size]


def index_of(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        place = places(file)[b"moov"]
        file.seek(place.at)
        return file.read(place.size)


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_index_is_first_and_the_data_are_the_same(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """Every packet has its bytes and its times, also where the system copies no files."""
    if by_hand:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    finish(raw, tmp_path / "video.mp4", projection="360-mono", tags=TAGS)
    with (tmp_path / "video.mp4").open("rb", buffering=0) as file:
        assert list(places(file)) == [b"ftyp", b"moov", b"mdat"]
    assert packets(tmp_path / "video.mp4") == packets(raw)


def test_players_see_title_artist_and_cover(raw: Path, tmp_path: Path) -> None:
    """FFmpeg reads both texts, and a cover with the very bytes, which no player takes for a video."""
    finish(raw, tmp_path / "video.mp4", tags=TAGS)
    probed = probe(tmp_path / "video.mp4")
    tags = probed["format"]["tags"]
    assert (tags["title"], tags["artist"]) == (TAGS.title, TAGS.artist)
    assert [stream["disposition"]["attached_pic"] for stream in probed["streams"]] == [0, 0, 1]
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert JPEG in [bytes(packet) for packet in container.demux(container.streams[2])]


def test_nothing_is_said_that_is_not_known(raw: Path, tmp_path: Path) -> None:
    """Without tags there is no metadata box, and a flat picture is not spherical."""
    finish(raw, tmp_path / "video.mp4", tags=Tags(title="", artist=None))
    index = index_of(tmp_path / "video.mp4")
    assert not any(kind in index for kind in (b"udta", b"ilst", b"sv3d", b"st3d", b"uuid"))


def test_times_and_versions_are_removed(raw: Path, tmp_path: Path) -> None:
    """What two runs or two versions of the encoder would write differently is not in the index."""
    finish(raw, tmp_path / "video.mp4", tags=TAGS)
    before, after = index_of(raw), index_of(tmp_path / "video.mp4")
    assert b"Lavf" in before and b"made by hand" in before
    assert not any(word in after for word in (b"Lavf", b"Lavc", b"x264", b"made by hand"))
    assert "creation_time" not in probe(tmp_path / "video.mp4")["format"]["tags"]


@pytest.mark.parametrize(("projection", "views"), [("360-mono", "2D"), ("360-stereo", "top and bottom")])
def test_a_360_video_is_marked_as_one(raw: Path, tmp_path: Path, projection: Any, views: str) -> None:
    """FFmpeg reads Google's boxes of both versions: the second, and the first where a player knows no other."""
    video = tmp_path / "video.mp4"
    finish(raw, video, projection=projection)
    whole = {item["side_data_type"]: item for item in probe(video)["streams"][0]["side_data_list"]}
    assert whole["Spherical Mapping"]["projection"] == "equirectangular"
    assert whole["Stereo 3D"]["type"] == views
    video.write_bytes(video.read_bytes().replace(b"sv3d", b"free").replace(b"st3d", b"free"))
    old = {item["side_data_type"]: item for item in probe(video)["streams"][0]["side_data_list"]}
    assert old["Spherical Mapping"]["projection"] == "equirectangular"
    assert old.get("Stereo 3D", {}).get("type", "2D") == views


def test_the_older_box_is_well_formed(raw: Path, tmp_path: Path) -> None:
    """It holds XML with the names of Google's specification."""
    finish(raw, tmp_path / "video.mp4", projection="360-stereo")
    text = index_of(tmp_path / "video.mp4").partition(b"<?xml")[2].partition(b"</rdf:SphericalVideo>")[0]
    root = ET.fromstring(b"<?xml" + text + b"</rdf:SphericalVideo>")
    space = "{http://ns.google.com/videos/1.0/spherical/}"
    assert {item.tag.removeprefix(space): item.text for item in root} == {
        "Spherical": "true",
        "Stitched": "true",
        "StitchingSoftware": "renderdispatch",
        "ProjectionType": "equirectangular",
        "StereoMode": "top-bottom",
    }


def _index(*tables: bytes) -> Box:
    def track(table: bytes) -> bytes:
        return box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", box(b"free"), table))))

    return Box.read(b"moov", b"".join(map(track, tables)))


def _table(kind: bytes, number: str, *positions: int) -> bytes:
    return full_box(kind, struct.pack(f">I{len(positions)}{number}", len(positions), *positions))


def _positions(index: Box) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    for kind, number in ((b"stco", "I"), (b"co64", "Q")):
        for table in index.find(b"trak", b"mdia", b"minf", b"stbl", kind):
            (count,) = struct.unpack_from(">I", table.head, 4)
            yield kind, struct.unpack_from(f">{count}{number}", table.head, 8)


def test_positions_move_with_the_data() -> None:
    """Each position grows by what is now in front of the data."""
    index = _index(_table(b"stco", "I", 48, 1000), _table(b"co64", "Q", 500, 1 << 33))
    move_data(index, 40, before=32)
    by = 32 + len(index.pack()) - 40
    assert list(_positions(index)) == [(b"stco", (48 + by, 1000 + by)), (b"co64", (500 + by, (1 << 33) + by))]


@pytest.mark.parametrize("last", [(1 << 32) - 1, (1 << 32) - 150])
def test_positions_beyond_4_gib_get_64_bits(last: int) -> None:
    """Where one passes 4 GiB, all tables of 32 bits are replaced, and the growth of the index itself counts."""
    index = _index(_table(b"stco", "I", 48, 1000, last), _table(b"stco", "I", 64), _table(b"co64", "Q", 500))
    before = len(index.pack())
    move_data(index, 40, before=32)
    by = 32 + len(index.pack()) - 40
    assert len(index.pack()) == before + 4 * 4
    assert sorted(_positions(index)) == [
        (b"co64", (48 + by, 1000 + by, last + by)),
        (b"co64", (64 + by,)),
        (b"co64", (500 + by,)),
    ]


def test_a_box_that_is_read_is_written_as_it_was(raw: Path) -> None:
    """Reading and writing an index changes nothing, whatever is in it."""
    index = index_of(raw)
    assert Box.read(b"moov", index[8:]).pack() == index


@pytest.mark.parametrize("spoil", [lambda data: data[:-5], lambda data: data[:200], lambda data: b""])
def test_a_file_that_is_not_whole_is_refused(raw: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A file without its index, or cut off, is not finished."""
    raw.write_bytes(spoil(raw.read_bytes()))
    with pytest.raises(ValueError, match=r"mp4 file|ends in a box"):
        finish(raw, tmp_path / "video.mp4")


def test_a_size_that_is_wrong_is_refused() -> None:
    """A box that is larger than the one around it is not read."""
    with pytest.raises(ValueError, match="wrong size"):
        Box.read(b"moov", struct.pack(">I4s", 100, b"trak"))

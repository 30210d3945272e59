"""What is in the file of a segment, who can play it, and what is refused?"""

from __future__ import annotations

import io
import os
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from attrs import evolve

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import Output
from renderdispatch.plumbing.pieces import HEAD_BYTES, SegmentHead
from renderdispatch.render.encoders import LIBX264
from renderdispatch.render.segment import FrameTable, Segment, SegmentError, SegmentWriter, encoder_config, player_begin
from renderdispatch.render.tracks import Clock
from tests.support.needs import need_ffmpeg
from tests.support.segments import DIGEST, picture, write_segment

SMALL = Output(width=64, height=36)


def times(data: bytes) -> list[Fraction]:
    with av.open(io.BytesIO(data), "r") as container:
        return [Fraction(frame.pts or 0) * (frame.time_base or 0) for frame in container.decode(video=0)]


@pytest.mark.parametrize("rate", ["30", "30000/1001", "25", "1/2", "239.76"])
def test_a_player_gets_its_begin_and_any_segment(tmp_path: Path, rate: Any) -> None:
    """Each frame is shown at its exact time, also if those before it were not played."""
    output = Output(width=64, height=36, fps=rate)
    head = write_segment(tmp_path / "2.seg", output, index=2, begin=240, frames=31)
    alone = player_begin(output, head.config) + (tmp_path / "2.seg").read_bytes()
    assert times(alone) == [n / output.fps for n in range(240, 271)]


@pytest.mark.parametrize("frames", [1, 2, 3, 24])
def test_short_segments_have_exact_times_too(tmp_path: Path, frames: int) -> None:
    """The encoder gives the first frames other times of decoding where there are few: they are not used."""
    head = write_segment(tmp_path / "0.seg", SMALL, frames=frames)
    data = player_begin(SMALL, head.config) + (tmp_path / "0.seg").read_bytes()
    assert times(data) == [Fraction(n, 30) for n in range(frames)]


def test_ffmpeg_plays_segments_without_a_warning(tmp_path: Path) -> None:
    """The begin and three segments are a file, heads and all."""
    need_ffmpeg()
    heads = [write_segment(tmp_path / f"{n}.seg", SMALL, index=n, begin=30 * n, frames=30) for n in range(3)]
    parts = [player_begin(SMALL, heads[0].config), *((tmp_path / f"{n}.seg").read_bytes() for n in range(3))]
    (tmp_path / "all.mp4").write_bytes(b"".join(parts))
    command = ["ffmpeg", "-v", "warning", "-i", str(tmp_path / "all.mp4"), "-f", "framemd5", "-"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len([line for line in done.stdout.splitlines() if not line.startswith("#")]) == 90


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    """They depend on no segment before them and on no thread: only the place in the video differs."""
    first = write_segment(tmp_path / "0.seg", SMALL, frames=40)
    with ThreadPoolExecutor(1) as other:
        writer = SegmentWriter(tmp_path / "again.seg", SMALL, LIBX264, digest=DIGEST, index=0, begin=0)
        for number in range(40):
            writer.write_frame(picture(SMALL, number))
        assert other.submit(writer.close).result() == first
    assert (tmp_path / "again.seg").read_bytes() == (tmp_path / "0.seg").read_bytes()
    with (tmp_path / "7.seg").open("wb") as file:
        head = write_segment(Path(file.name), SMALL, index=7, begin=280, frames=40, first=0)
    assert head.config == first.config
    data = [(tmp_path / name).read_bytes().partition(b"mdat")[2] for name in ("0.seg", "7.seg")]
    assert data[0] == data[1]


def test_the_head_says_what_follows(tmp_path: Path) -> None:
    """Digest, index, frames, size and hash, and what was drawn in vain."""
    with SegmentWriter(tmp_path / "a.seg", SMALL, LIBX264, digest=DIGEST, index=3, begin=360) as writer:
        for number in range(5):
            writer.write_frame(picture(SMALL, number))
        head = writer.close(2)
    data = (tmp_path / "a.seg").read_bytes()
    assert SegmentHead.read(data[:HEAD_BYTES]) == head
    rest = data[HEAD_BYTES:]
    assert head == SegmentHead(
        digest=DIGEST,
        index=3,
        frames=5,
        size=len(rest),
        sha256=sha256(rest).hexdigest(),
        config=encoder_config(SMALL, LIBX264),
        twice=2,
    )


def test_nothing_says_how_it_was_made(tmp_path: Path) -> None:
    """There is no SEI with the encoder's version, settings and threads."""
    write_segment(tmp_path / "0.seg", SMALL, frames=3)
    data = (tmp_path / "0.seg").read_bytes()
    assert not [word for word in (b"x264", b"Lavf", b"Lavc", b"options") if word in data]


def test_a_segment_is_there_once_it_is_complete(tmp_path: Path) -> None:
    """Nothing is found before, and nothing is left of one that was given up."""
    with SegmentWriter(tmp_path / "0.seg", SMALL, LIBX264, digest=DIGEST, index=0, begin=0) as writer:
        writer.write_frame(picture(SMALL, 0))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        writer.close()


def test_a_picture_that_the_encoder_refuses_is_a_fault_of_the_request() -> None:
    """libx264 has no picture of 32768 lines."""
    with pytest.raises(InvalidRequestError, match="16x32768") as refused:
        encoder_config(Output.model_construct(width=16, height=1 << 15, fps=Fraction(30)), LIBX264)
    assert refused.value.code == "output.unsupported"


# --- what is read ----------------------------------------------------------------------------------


def read(data: bytes, folder: Path, **given: Any) -> Segment:
    path = folder / "read"
    path.write_bytes(data)
    wanted: dict[str, Any] = {"index": 1, "begin": 30, "digest": DIGEST} | given
    with path.open("rb", buffering=0) as file:
        return Segment.read(file, SMALL, **wanted)


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """Segment 1 of a video, frames 30 to 54."""
    write_segment(tmp_path / "1.seg", SMALL, index=1, begin=30, frames=24)
    return (tmp_path / "1.seg").read_bytes()


def test_what_was_written_is_read(tmp_path: Path, written: bytes) -> None:
    """Sizes and order of the frames are those of the file."""
    found = read(written, tmp_path, config=encoder_config(SMALL, LIBX264))
    assert len(written) == found.data + found.frames.size
    assert sorted(found.frames.shown) == list(range(24))
    assert found.frames.keys.tolist() == [True] + [False] * 23


@pytest.mark.parametrize("other", [{"index": 2}, {"begin": 31}, {"digest": "e" * 64}, {"config": "01"}])
def test_another_segment_is_refused(tmp_path: Path, written: bytes, other: dict[str, Any]) -> None:
    """Index, place, plan and configuration of the decoder are to be those of the video."""
    with pytest.raises(SegmentError, match="segment"):
        read(written, tmp_path, **other)


def test_a_segment_with_other_frames_is_refused_before_they_are_read(tmp_path: Path, written: bytes) -> None:
    """The head alone shows it, so a large file that says so costs no memory."""
    head = SegmentHead.read(written)
    assert head is not None
    with pytest.raises(SegmentError, match="24 frames"):
        read(written, tmp_path, frames=range(25, 26))
    size = 1 << 34
    path = tmp_path / "large"
    path.write_bytes(evolve(head, frames=size // 32, size=size).pack())
    os.truncate(path, HEAD_BYTES + size)  # without a block on the disk
    with path.open("rb", buffering=0) as file, pytest.raises(SegmentError, match="too many"):
        Segment.read(file, SMALL, index=1, begin=30, frames=range(24, 25))


def _with_size(data: bytes, size: int) -> bytes:
    """Return a segment whose first frame says another size, and whose file has that size."""
    at = data.index(b"trun") + 16 + 4
    (before,) = struct.unpack_from(">I", data, at)
    return data[:at] + struct.pack(">I", size) + data[at + 4 :] + bytes(max(size - before, 0))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:HEAD_BYTES],
        lambda data: b"",
        lambda data: data.replace(b"traf", b"free"),
        lambda data: data.replace(b"mdat", b"moov"),
        lambda data: data.replace(struct.pack(">I", 0x02000000), struct.pack(">I", 0x01010000)),
        lambda data: _with_size(data, 1 << 20),
        lambda data: data.replace(b'"frames":24', b'"frames":99'),
        lambda data: data.replace(b'"frames":24', b'"frames":00'),
        lambda data: data.replace(b'"frames":24,', b'"frames":9007199254740991,').replace(b" " * 15, b"", 1),
        lambda data: data.replace(encoder_config(SMALL, LIBX264).encode(), b"not hex"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path: Path, written: bytes, spoil: Callable[[bytes], bytes]) -> None:
    """No file makes the reader raise anything else, or read more than there is."""
    spoilt = spoil(written)
    assert spoilt != written
    with pytest.raises(SegmentError):
        read(spoilt, tmp_path)


def test_no_changed_byte_of_the_boxes_is_taken(tmp_path: Path, written: bytes) -> None:
    """All that players read before the pictures is compared."""
    end = written.index(b"mdat") + 4
    for at in range(HEAD_BYTES, end, 7):
        spoilt = bytearray(written)
        spoilt[at] ^= 1 + at % 255
        with pytest.raises(SegmentError):
            read(bytes(spoilt), tmp_path)


def test_frames_in_an_impossible_order_are_refused(tmp_path: Path, written: bytes) -> None:
    """A frame that is shown twice, at the time of another one, would leave a gap."""
    found = read(written, tmp_path)
    shown = found.frames.shown.copy()
    shown[3] = shown[4]
    table = FrameTable(found.frames.sizes, shown, np.asarray(found.frames.keys))
    boxes = table.pack(index=1, begin=30, clock=Clock.of(SMALL.fps))
    spoilt = written[:HEAD_BYTES] + boxes + written[found.data :]
    with pytest.raises(SegmentError, match="damaged"):
        read(spoilt, tmp_path)

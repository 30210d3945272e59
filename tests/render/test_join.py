"""Is the video that is joined from segments exact, bounded, and what players expect?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import Output
from renderdispatch.plumbing.pieces import HEAD_BYTES, SegmentHead
from renderdispatch.render.boxes import places
from renderdispatch.render.encoders import LIBX264
from renderdispatch.render.join import Joiner
from renderdispatch.render.mixing import Samples
from renderdispatch.render.segment import FrameTable, SegmentError, SegmentWriter, encoder_config, player_begin
from renderdispatch.render.sound import Sound
from renderdispatch.render.tags import Tags
from renderdispatch.render.tracks import Clock, Track
from tests.support.decoding import ffmpeg_warnings, heard, probed, psnr, shown, time_of
from tests.support.needs import need_ffmpeg
from tests.support.segments import DIGEST, noisy, write_segment

SMALL = Output(width=64, height=36)


def song(samples: int, *, layout: str = "stereo") -> Samples:
    """Return noise and a tone, with silence at the begin, so that a shift would be seen."""
    channels = 1 if layout == "mono" else 2
    sound = np.random.default_rng(3).normal(0, 0.05, (channels, samples)) + np.sin(np.arange(samples) / 20) / 4
    sound[:, : samples // 10] = 0
    return sound.astype(np.float32)


def blocks(sound: Samples) -> Iterable[Samples]:
    return (sound[:, at : at + 16_384] for at in range(0, sound.shape[1], 16_384))


def write_parts(folder: Path, output: Output, bounds: Sequence[int]) -> list[Path]:
    """Write the segments of a video."""
    paths = [folder / f"{index}.seg" for index in range(len(bounds) - 1)]
    for index, (begin, end) in enumerate(pairwise(bounds)):
        write_segment(paths[index], output, index=index, begin=begin, frames=end - begin)
    return paths


def join(
    parts: Sequence[Path],
    output: Output,
    frames: int,
    *,
    layout: str = "stereo",
    rate: int = 44_100,
    tags: Tags | None = None,
    samples: int | None = None,
) -> Path:
    """Join segments with a song, and return the video."""
    sound = song(round(frames / output.fps * rate) if samples is None else samples, layout=layout)
    made = parts[0].with_name("video.mp4")
    with Sound(made.with_name("sound"), rate=rate, layout=layout) as encoded:
        encoded.encode(blocks(sound))
        options: dict[str, Any] = {"frames": frames, "segments": len(parts), "sound": encoded, "tags": tags}
        with Joiner(made, output, digest=DIGEST, config=encoder_config(output, LIBX264), **options) as joiner:
            for part in parts:
                joiner.append(part)
            joiner.finish()
    return made


@pytest.mark.parametrize(
    ("rate", "bounds"),
    [
        ("30", (0, 12)),
        ("30", (0, 120)),
        ("30", (0, 120, 240)),
        ("30", (0, 40, 80, 159)),
        ("30000/1001", (0, 40, 80, 133)),
        ("25", (0, 1)),
        ("25", (0, 24, 48, 49)),
        ("1/2", (0, 3, 5)),
        ("239.76", (0, 60, 121)),
    ],
)
def test_every_frame_is_that_of_its_segment_at_its_exact_time(
    tmp_path: Path, rate: Any, bounds: tuple[int, ...]
) -> None:
    """Frame n is shown at n / fps, whatever the rate, and looks as in the segment alone."""
    output = Output(width=64, height=36, fps=rate)
    parts = write_parts(tmp_path, output, bounds)
    video = join(parts, output, bounds[-1])
    begin = player_begin(output, encoder_config(output, LIBX264))
    alone = [frame for part in parts for frame in shown(begin + part.read_bytes())]
    assert shown(video) == alone
    assert [at for at, _ in alone] == [n / output.fps for n in range(bounds[-1])]


@pytest.mark.parametrize(
    ("samples", "layout", "rate"),
    [(1, "mono", 44_100), (1024, "stereo", 48_000), (1025, "mono", 48_000), (100_003, "stereo", 44_100)],
)
def test_the_sound_is_exact(tmp_path: Path, samples: int, layout: str, rate: int) -> None:
    """It begins at 0 with its first sample, as one decoder makes it of all packets; its length is said to the sample."""
    output = Output(width=64, height=36, fps=Fraction(10))
    frames = max(round(Fraction(samples, rate) * 10), 1)
    video = join(write_parts(tmp_path, output, (0, frames)), output, frames, layout=layout, rate=rate, samples=samples)
    with Sound(tmp_path / "again", rate=rate, layout=layout) as encoded:
        encoded.encode(blocks(song(samples, layout=layout)))
        assert encoded.durations().sum() == 1024 + samples
        ends = np.cumsum(encoded.sizes())
        decoder = av.CodecContext.create("aac", "r")
        decoder.extradata = encoded.config
        packets = [encoded.read(at, at + 1) for at in range(len(ends))]
        uncut = [frame.to_ndarray() for packet in packets for frame in decoder.decode(av.Packet(packet))]
    at, found = heard(video)
    expected = np.concatenate(uncut, axis=1)[:, 1024:]
    assert at == 0
    assert np.array_equal(found, expected[:, : found.shape[1]]) and found.shape[1] >= samples
    stream = probed(video)["streams"][1]
    assert (stream["duration_ts"], stream["time_base"], stream["start_pts"]) == (samples, f"1/{rate}", 0)


def test_ffmpeg_reads_it_without_a_warning(tmp_path: Path) -> None:
    """Both tracks begin at 0, all frames are counted, and the index says the exact rate."""
    output = Output(width=64, height=36, fps=Fraction(30_000, 1001))
    video = join(write_parts(tmp_path, output, (0, 40, 80, 133)), output, 133, layout="mono")
    found = probed(video)
    pictures, sound = found["streams"]
    assert (pictures["nb_frames"], pictures["nb_read_frames"], pictures["start_time"]) == ("133", "133", "0.000000")
    assert (pictures["r_frame_rate"], pictures["avg_frame_rate"]) == ("30000/1001", "30000/1001")
    assert (pictures["color_space"], pictures["color_range"], pictures["pix_fmt"]) == ("bt709", "tv", "yuv420p")
    assert (sound["channels"], sound["start_time"]) == (1, "0.000000")
    assert ffmpeg_warnings(video) == ""


def test_players_can_begin_anywhere(tmp_path: Path) -> None:
    """A jump leads to the begin of a segment, or to a key frame within it, and decodes what is shown there."""
    output = Output(width=64, height=36, fps=Fraction(10))
    parts = write_parts(tmp_path, output, (0, 40, 90))
    video = join(parts, output, 90)
    frames = shown(video)
    with av.open(video, "r") as container:
        for wanted, key in ((39, 0), (40, 40), (79, 40), (89, 80)):
            container.seek(wanted * av.time_base // 10, backward=True)
            frame = next(container.decode(video=0))
            assert (time_of(frame), bytes(frame.planes[0])) == frames[key]


def test_the_index_is_first_and_says_nothing_of_how_it_was_made(tmp_path: Path) -> None:
    """Players begin before they have all. No time, no version, no setting is in the file."""
    video = join(write_parts(tmp_path, SMALL, (0, 30, 60)), SMALL, 60)
    with video.open("rb", buffering=0) as file:
        found = places(file)
    assert list(found) == [b"ftyp", b"moov", b"free", b"mdat"]
    assert found[b"mdat"].at + found[b"mdat"].size == video.stat().st_size
    data = video.read_bytes()
    assert not [word for word in (b"x264", b"Lavf", b"Lavc", b"options") if word in data]


def test_pictures_and_sound_take_turns(tmp_path: Path) -> None:
    """What is heard with a frame is never more than a second away from it in time, so that players need little memory."""
    output = Output(width=64, height=36, fps=Fraction(10))
    video = join(write_parts(tmp_path, output, (0, 40, 90)), output, 90)
    with av.open(video, "r") as container:
        packets = [(packet.pos, packet.stream.type, time_of(packet)) for packet in container.demux() if packet.size]
    latest = {"audio": Fraction(0), "video": Fraction(0)}
    for _, kind, at in sorted(packets):
        latest[kind] = max(latest[kind], at)
        assert abs(latest["audio"] - latest["video"]) < 1


@pytest.mark.parametrize(("projection", "views"), [("360-mono", "2D"), ("360-stereo", "top and bottom")])
def test_a_360_video_with_tags_is_described(tmp_path: Path, projection: Any, views: str) -> None:
    """The index holds the boxes of spherical video, and title, artist and cover."""
    cover = b"\xff\xd8" + bytes(50_000) + b"\xff\xd9"
    output = Output(width=64, height=64, projection=projection)
    video = join(write_parts(tmp_path, output, (0, 30)), output, 30, tags=Tags("A title", "An artist", cover))
    need_ffmpeg()
    command = ["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", str(video)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    sphere = {item["side_data_type"]: item for item in found["streams"][0]["side_data_list"]}
    assert sphere["Spherical Mapping"]["projection"] == "equirectangular"
    assert sphere["Stereo 3D"]["type"] == views
    assert found["format"]["tags"]["title"] == "A title"
    assert cover in video.read_bytes()


# --- in time, and bounded --------------------------------------------------------------------------


def test_the_join_goes_on_while_sound_is_encoded(tmp_path: Path) -> None:
    """A segment waits for the sound that is heard with it, and for no more; the bytes are the same."""
    output = Output(width=64, height=36, fps=Fraction(10))
    parts = write_parts(tmp_path, output, (0, 40, 80))
    sound = song(8 * 44_100)
    first = Event()

    def slowly(encoded: Sound) -> None:
        encoded.write(sound[:, : 5 * 44_100])
        assert first.wait(60)
        encoded.encode(blocks(sound[:, 5 * 44_100 :]))

    with Sound(tmp_path / "slow", rate=44_100, layout="stereo") as encoded, ThreadPoolExecutor(1) as other:
        encoding = other.submit(slowly, encoded)
        with Joiner(tmp_path / "slow.mp4", output, frames=80, segments=2, sound=encoded) as joiner:
            joiner.append(parts[0])
            first.set()
            joiner.append(parts[1])
            joiner.finish()
        encoding.result()
    assert (tmp_path / "slow.mp4").read_bytes() == join(parts, output, 80).read_bytes()


def test_sound_that_fails_ends_the_join(tmp_path: Path) -> None:
    """Whoever waits for it gets its error, and no video is left."""
    parts = write_parts(tmp_path, SMALL, (0, 30))

    def broken() -> Iterable[Samples]:
        yield song(100)
        raise RuntimeError("no more sound")

    with Sound(tmp_path / "sound", rate=44_100, layout="stereo") as encoded, ThreadPoolExecutor(1) as other:
        with Joiner(tmp_path / "video.mp4", SMALL, frames=30, segments=1, sound=encoded) as joiner:
            joining = other.submit(joiner.append, parts[0])
            with pytest.raises(RuntimeError):
                encoded.encode(broken())
            with pytest.raises(RuntimeError, match="no more sound"):
                joining.result()
        assert not (tmp_path / "video.mp4").exists()


def test_a_bad_segment_leaves_the_join_as_it_was(tmp_path: Path) -> None:
    """It is refused before a byte is written, and a good one takes its place."""
    parts = write_parts(tmp_path, SMALL, (0, 30, 60))
    bad = tmp_path / "bad.seg"
    write_segment(bad, SMALL, index=1, begin=30, frames=29)
    with Sound(tmp_path / "sound", rate=44_100, layout="stereo") as encoded:
        encoded.encode(blocks(song(2 * 44_100)))
        with Joiner(tmp_path / "joined.mp4", SMALL, frames=60, segments=2, sound=encoded, digest=DIGEST) as joiner:
            with pytest.raises(SegmentError, match="another one"):
                joiner.append(parts[1])
            joiner.append(parts[0], frames=30)
            with pytest.raises(ValueError, match="1 of 2"):
                joiner.finish()
            with pytest.raises(SegmentError, match="29 frames"):
                joiner.append(bad, frames=30)
            assert (joiner.segments, joiner.frames) == (1, 30)
            joiner.append(parts[1], frames=30)
            with pytest.raises(SegmentError, match="segment 2"):
                joiner.append(parts[1])
            joiner.finish()
    assert (tmp_path / "joined.mp4").read_bytes() == join(parts, SMALL, 60).read_bytes()


def made_up(path: Path, output: Output, *, index: int, begin: int, sizes: NDArray[np.int64]) -> None:
    """Write a segment whose frames have these sizes, and hold nothing."""
    keys = np.arange(len(sizes)) == 0
    boxes = FrameTable(sizes, np.arange(len(sizes)), keys).pack(index=index, begin=begin, clock=Clock.of(output.fps))
    head = SegmentHead(
        digest=DIGEST, index=index, frames=len(sizes), size=len(boxes) + int(sizes.sum()), sha256="", config="01"
    )
    path.write_bytes(head.pack() + boxes)
    os.truncate(path, HEAD_BYTES + head.size)


@pytest.mark.parametrize("small", [0, 5])
def test_a_video_that_becomes_too_large_is_refused_early(tmp_path: Path, small: int) -> None:
    """``output.too-large``, a fault of the request: before 5 GiB are written, once it is sure to become much more."""
    segments = 40 if small else 8
    with Sound(tmp_path / "sound", rate=44_100, layout="mono") as encoded:
        encoded.finish()
        video = tmp_path / "video.mp4"
        with Joiner(video, SMALL, frames=24 * segments, segments=segments, sound=encoded) as joiner:
            for index in range(small):
                made_up(tmp_path / "part", SMALL, index=index, begin=24 * index, sizes=np.full(24, 1000))
                joiner.append(tmp_path / "part")
            made_up(tmp_path / "part", SMALL, index=small, begin=24 * small, sizes=np.full(24, 50 << 20))
            with pytest.raises(InvalidRequestError, match="GiB") as refused:
                joiner.append(tmp_path / "part")
            assert (refused.value.code, joiner.segments) == ("output.too-large", small)
            assert video.stat().st_size < 1 << 20


def test_positions_beyond_4_gib_have_64_bits() -> None:
    """Where a chunk is behind 4 GiB, the table is a ``co64``; before that, players get the smaller one."""

    def track(at: int) -> bytes:
        one = np.ones(1, np.int64)
        return Track(number=1, entry=b"", scale=30, durations=one, sizes=one, chunks=[at], counts=[1], played=1).pack(
            30
        )

    assert b"stco" in track((1 << 32) - 1) and b"co64" not in track((1 << 32) - 1)
    assert b"co64" in track(1 << 32) and b"stco" not in track(1 << 32)


def test_the_picture_is_as_good_as_if_it_were_not_cut(tmp_path: Path) -> None:
    """PSNR against the drawn frames is within 0.2 dB of one encode, and bytes are within 5 %."""
    output = Output(width=128, height=64, fps=Fraction(15))
    frames = [noisy(output, number) for number in range(185)]
    begin = player_begin(output, encoder_config(output, LIBX264))
    measured = []
    for bounds in ((0, 60, 120, 185), (0, 185)):
        parts = []
        for index, (first, end) in enumerate(pairwise(bounds)):
            path = tmp_path / f"{len(bounds)}-{index}"
            with SegmentWriter(path, output, LIBX264, digest=DIGEST, index=index, begin=first) as writer:
                for frame in frames[first:end]:
                    writer.write_frame(frame)
                writer.close()
            parts.append(begin + path.read_bytes())
        lumas = (luma for part in parts for _, luma in shown(part))
        measured.append((psnr(lumas, [bytes(frame.planes[0]) for frame in frames]), sum(map(len, parts))))
    (cut, size), (whole, size_of_whole) = measured
    assert abs(cut - whole) < 0.2
    assert size < 1.05 * size_of_whole


_TWO_HOURS = r"""
import re, sys
from pathlib import Path
import numpy as np
from renderdispatch.messages import Output
from renderdispatch.render.join import Joiner
from renderdispatch.render.sound import Sound
from tests.render.test_join import SMALL, made_up

def kib(what):
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

folder = Path(sys.argv[1])
before = kib("VmRSS")
second = np.zeros((1, 44_100), np.float32)  # which is encoded fast, as the same number of packets
with Sound(folder / "sound", rate=44_100, layout="mono") as sound:
    sound.encode(second for _ in range(7200))
    with Joiner(folder / "video.mp4", SMALL, frames=216_000, segments=256, sound=sound) as joiner:
        for index in range(256):
            begin = 843 * index
            frames = 843 if index < 255 else 216_000 - begin
            made_up(folder / "part", SMALL, index=index, begin=begin, sizes=np.full(frames, 6000))
            joiner.append(folder / "part")
        joiner.finish()
print(kib("VmHWM") - before)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_two_hours_take_little_memory(tmp_path: Path) -> None:
    """Sound and join of 2 h and 1.3 GB take at most 128 MiB above import."""
    done = subprocess.run([sys.executable, "-c", _TWO_HOURS, str(tmp_path)], check=True, capture_output=True, text=True)
    print(done.stdout)
    assert int(done.stdout) < 128 * 1024
    with av.open(tmp_path / "video.mp4", "r") as container:
        assert [stream.frames for stream in container.streams] == [216_000, -(-(7200 * 44_100 + 1024) // 1024)]
        assert container.duration == 7200 * av.time_base

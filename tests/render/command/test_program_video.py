"""Is a program's video what was ordered, and is it refused with a reason where it is not?"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from renderdispatch.errors import InvalidRequestError, SceneError
from renderdispatch.messages import ObjectUrls, Output, RenderOrder, RenderStats, SignedPut
from renderdispatch.render.command import CommandRenderer, ffmpeg
from renderdispatch.render.preview import preview
from tests.support.needs import need_ffmpeg

Render = Callable[..., tuple[Path, RenderStats]]
Order = Callable[..., RenderOrder]

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p")
SILENT = ("ffmpeg", "-nostdin", "-loglevel", "error", "-f", "lavfi")


@pytest.fixture(autouse=True)
def _ffmpeg() -> None:
    need_ffmpeg()


@pytest.fixture
def song(write_wav: Callable[..., Path], tmp_path: Path) -> Path:
    """A second of a tone, loudest at 0.7 s."""
    time = np.arange(44_100) / 44_100
    return write_wav(tmp_path / "song.wav", np.exp(-80 * (time - 0.7) ** 2) * np.sin(2000 * time))


def making(*options: str, source: str = "testsrc=size={width}x{height}:rate={fps}") -> CommandRenderer:
    """Return a renderer whose video has the options of FFmpeg."""
    frames = () if "-frames:v" in options else ("-frames:v", "{frame_count}")
    return CommandRenderer([*SILENT, "-i", source, *options, *frames, "{output}"], makes="video")


def test_the_video_is_complete(render: Render, song: Path) -> None:
    """It has the ordered picture at exact times, the song's sound, and its index in front."""
    scene = ffmpeg("showwaves=size={width}x{height}:rate={fps}")
    fps = Fraction(30000, 1001)
    path, stats = render(scene, song, output=Output(width=64, height=36, fps=fps), title="A song")
    assert (stats.width, stats.height, stats.fps, stats.frames, stats.duration_s) == (64, 36, fps, 30, 1.0)
    assert (stats.rendered_by, stats.encoded_by) == ("ffmpeg", "ffmpeg")
    assert stats.device_class is not None and stats.device_class.endswith("+ffmpeg-unheld")
    with av.open(str(path)) as video:
        times = [frame.time for frame in video.decode(video=0)]
        assert times == pytest.approx([float(number / fps) for number in range(30)], abs=1e-9)
        assert video.metadata["title"] == "A song"
    with av.open(str(path)) as video:
        assert [stream.codec_context.name for stream in video.streams] == ["h264", "aac"]
        assert sum(frame.samples for frame in video.decode(audio=0)) >= 44_100
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "mov"])
def test_any_container_will_do(container: str, render: Render, song: Path) -> None:
    """Times that a container rounds are made exact, B-frames included."""
    scene = making(*X264, "-bf", "2", "-preset", "veryfast", "-f", container)
    path, stats = render(scene, song)
    assert stats.frames == 30
    with av.open(str(path)) as video:
        assert [frame.time for frame in video.decode(video=0)] == pytest.approx([n / 30 for n in range(30)], abs=1e-6)


def test_sound_of_its_own_is_kept(render: Render, song: Path, sound_of: Callable[[Path], Any]) -> None:
    """A program that mixes its own sound is heard."""
    scene = making("-f", "lavfi", "-i", "sine=frequency=1000:duration=1", *X264, "-c:a", "aac")
    path, _ = render(scene, song)
    samples, rate = sound_of(path)
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() * rate / len(samples) == pytest.approx(1000, abs=2)


def test_the_poster_is_the_loudest_moment(render: Render, song: Path, order: Order) -> None:
    """It is the frame of the program's video there."""
    blank = ObjectUrls(key="poster", put=SignedPut(url=""))
    scene = making(
        *X264, "-crf", "4", source="color=black:size={width}x{height}:rate={fps},geq=lum=8*N+16:cb=128:cr=128"
    )
    path, _ = render(scene, song, poster=blank)
    with Image.open(path.with_suffix(".jpg")) as poster:
        shown = np.asarray(poster.convert("L")).mean()
    assert shown == pytest.approx((8 * 21) * 255 / 219, abs=20)  # frame 21 is at 0.7 s


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-s", "32x32", *X264), "a video of 32x32; 64x36 was ordered"),
        (("-r", "25", *X264, "-frames:v", "25"), "25 frames a second; 30 were ordered"),
        ((*X264, "-frames:v", "20"), "20 frames; 30 were ordered"),
        ((*X264, "-frames:v", "32"), "32 frames; 30 were ordered"),
        ((*X264, "-vf", "setsar=2"), "pixels of 2:1; square ones are needed"),
        (("-c:v", "mpeg4"), "mpeg4 in yuv420p; h264 in yuv420p is needed"),
        (("-c:v", "libx264", "-pix_fmt", "yuv444p"), "h264 in yuv444p; h264 in yuv420p is needed"),
        ((*X264, "-vf", "setpts='if(gt(N,20),PTS+1/(30*TB),PTS)'", "-fps_mode", "vfr"), "frame 21 at 0.7"),
        (("-f", "lavfi", "-i", "sine=duration=1", *X264, "-c:a", "libmp3lame"), "sound in mp3float"),
        (
            ("-f", "lavfi", "-i", "sine=duration=1", "-map", "1:a", "-c:a", "aac", "-vn", "-t", "1"),
            "a file with 0 videos",
        ),
    ],
    ids=["size", "rate", "too short", "too long", "shape", "codec", "pixels", "times", "sound", "no video"],
)
def test_what_was_not_ordered_is_refused(
    options: tuple[str, ...], said: str, render: Render, song: Path, tmp_path: Path
) -> None:
    """The message names what came and what was ordered; nothing is left."""
    with pytest.raises(SceneError) as refused:
        render(making(*options), song)
    assert said in str(refused.value)
    assert refused.value.code == "command.wrong-output"
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]


def test_sound_that_goes_on_is_refused(render: Render, song: Path) -> None:
    """A video would be four times as long as was ordered."""
    source = "testsrc=size={width}x{height}:rate={fps}:duration=1"
    long = making("-f", "lavfi", "-i", "sine=duration=4", *X264, "-c:a", "aac", "-frames:v", "100", source=source)
    with pytest.raises(SceneError, match="4 s of sound; 1 s were ordered"):
        render(long, song)


def test_one_frame_more_or_less_is_taken(render: Render, song: Path) -> None:
    """Programs cut the last frame in different ways; the video says how many it has."""
    for frames in (29, 31):
        _, stats = render(making(*X264, "-frames:v", str(frames)), song)
        assert stats.frames == frames


def test_no_video_at_all(render: Render, song: Path) -> None:
    """A file of something else is no video."""
    scene = CommandRenderer(
        [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('text')", "{output}"], makes="video"
    )
    with pytest.raises(SceneError, match="a file that is not a video"):
        render(scene, song)


def test_a_360_video_is_made_by_who_knows_of_it(render: Render, song: Path) -> None:
    """A command with the place for the projection draws all of it, and gets the boxes; another one is refused."""
    sphere = Output(width=64, height=32, projection="360-mono")
    with pytest.raises(SceneError, match="makes flat videos, and 360-mono was ordered"):
        render(making(*X264), song, output=sphere)
    path, _ = render(making("-metadata", "comment={projection}", *X264), song, output=sphere)
    assert b"equi" in path.read_bytes() and struct.pack(">4s", b"sv3d") in path.read_bytes()


def test_there_is_no_preview(song: Path) -> None:
    """A program that makes a video makes no single frames."""
    with pytest.raises(InvalidRequestError, match="render a second of it"):
        preview(song, scene=making(*X264), output="flat-720p-landscape")

"""What does a rendered file hold, and what is left when a render ends early?"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.errors import AudioError, RenderError, RenderStopped, SceneError
from renderdispatch.messages import Output, RenderOrder, RenderStats
from renderdispatch.render import bars
from renderdispatch.render.encoders import LIBX264
from renderdispatch.render.features import Frame
from renderdispatch.render.music import compose
from renderdispatch.render.params import SceneParams
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import NumpyRenderer, Scene
from renderdispatch.testing.scenes import flash
from tests.support.needs import need_ffmpeg

WriteWav = Callable[..., Path]
Encode = Callable[..., Path]
Order = Callable[..., RenderOrder]
Render = Callable[..., tuple[Path, RenderStats]]

AAC_FRAME_S = 1024 / 44_100


def exact(time_base: Any) -> Fraction:
    """Return PyAV's rational as Python's, which it was before PyAV 19."""
    return Fraction(time_base.numerator, time_base.denominator)


def ffprobe(path: Path) -> dict[str, Any]:
    """Return what ffprobe says of the file, and of its two streams by kind."""
    need_ffmpeg()
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    assert len(streams) == 2
    return {stream["codec_type"]: stream for stream in streams}


def boxes(path: Path) -> list[str]:
    """Return the kinds of the boxes at the top of an mp4, in order."""
    found = []
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if size == 1:
                size = struct.unpack(">Q", file.read(8))[0] - 8
            found.append(kind.decode())
            file.seek(size - 8, os.SEEK_CUR)
    return found


def noise(samples: int) -> NDArray[np.float64]:
    return np.random.default_rng(3).uniform(-0.3, 0.3, samples)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "seconds", "fps", "size"),
    [
        ("a.wav", "pcm_s16le", 44_100, 2.013, "24", (64, 36)),
        ("a.mp3", "libmp3lame", 44_100, 3.7, "25", (36, 64)),
        ("a.flac", "flac", 96_000, 1.999, "30000/1001", (64, 64)),
        ("a.m4a", "aac", 44_100, 5.05, "30", (16, 16)),
        ("a.ogg", "vorbis", 44_100, 2.51, "60", (130, 74)),
        ("a.opus", "libopus", 48_000, 1.3, "24000/1001", (64, 36)),
        ("a.mp4", "aac", 48_000, 2.2, "12.5", (2000, 16)),
        ("a.wav", "pcm_s16le", 8_000, 0.05, "30", (16, 400)),
        ("a.wav", "pcm_s16le", 44_100, 25.0, "1/10", (64, 36)),
        ("a.wav", "pcm_s16le", 44_100, 0.5, "240", (64, 36)),
    ],
)
def test_a_video_is_exactly_as_long_as_its_song(
    tmp_path: Path,
    encode: Encode,
    render: Render,
    name: str,
    codec: str,
    rate: int,
    seconds: float,
    fps: str,
    size: tuple[int, int],
) -> None:
    """H.264 and AAC from time 0, round(duration x fps) frames at exact times, the index first, BT.709."""
    song = encode(tmp_path / name, codec, noise(round(seconds * rate)), rate, picture=name.endswith(".mp4"))
    output = Output(width=size[0], height=size[1], fps=Fraction(fps))
    video, stats = render(bars, song, output=output)

    frames = round(Fraction(stats.duration_s).limit_denominator(96_000) * output.fps)
    assert stats.duration_s == pytest.approx(seconds, abs=0.06)
    assert (stats.frames, stats.fps, stats.width, stats.height) == (frames, output.fps, *size)
    assert (stats.rendered_by, stats.encoded_by, stats.content_type) == ("numpy", "libx264", "video/mp4")
    assert boxes(video)[:2] == ["ftyp", "moov"]
    with av.open(str(video)) as container:
        times = [(frame.pts or 0) * exact(frame.time_base) for frame in container.decode(video=0)]
    assert times == [number / output.fps for number in range(frames)]

    probed = ffprobe(video)
    picture, sound = probed["video"], probed["audio"]
    assert (picture["codec_name"], sound["codec_name"]) == ("h264", "aac")
    assert (picture["width"], picture["height"], picture["pix_fmt"]) == (*size, "yuv420p")
    assert int(picture["nb_read_frames"]) == int(picture["nb_frames"]) == frames
    assert Fraction(picture["avg_frame_rate"]) == output.fps
    assert float(picture["start_time"]) == float(sound["start_time"]) == 0
    assert float(sound["duration"]) == pytest.approx(stats.duration_s, abs=AAC_FRAME_S)
    tags = {picture[tag] for tag in ("color_space", "color_transfer", "color_primaries")}
    assert (tags, picture["color_range"]) == ({"bt709"}, "tv")


def test_the_sound_of_the_video_is_that_of_the_song(
    tmp_path: Path, write_wav: WriteWav, render: Render, sound_of: Callable[[Path], tuple[NDArray[np.float32], int]]
) -> None:
    """Decoded from the video, the sound has the song's samples in their places: not one is shifted or lost."""
    t = np.arange(100_000) / 44_100
    sweep = 0.5 * np.sin(2 * np.pi * (200 + 900 * t) * t)
    video, _ = render(flash, write_wav(tmp_path / "a.wav", sweep))
    heard, rate = sound_of(video)
    assert rate == 44_100
    assert len(heard) == pytest.approx(len(sweep), abs=1024)
    assert np.abs(heard[:99_000] - sweep[:99_000]).max() < 0.1


def test_a_range_of_the_song_is_rendered(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Start and duration pick the part; the rest is not heard."""
    sound = np.concatenate([noise(44_100), np.zeros(88_200)])
    video, stats = render(flash, write_wav(tmp_path / "a.wav", sound), start=0.5, duration=1.25)
    assert (stats.frames, stats.duration_s) == (round(1.25 * 30), 1.25)
    with av.open(str(video)) as container:
        lit = [float(frame.to_ndarray()[: frame.height].mean()) > 100 for frame in container.decode(video=0)]
    assert lit == [True] * 15 + [False] * 23


class RedParams(SceneParams):
    """None."""


class Red(Scene):
    """A scene of one colour, which raises when a test asks it to."""

    fails_at = -1

    def __init__(self, params: RedParams, *, width: int, height: int, fps: Fraction) -> None:
        pass

    def paint(self, state: Any, frame: Any, canvas: Any) -> None:
        if frame.index == self.fails_at:
            raise ZeroDivisionError("at last")
        canvas[:] = (255, 0, 0)


class Broken(Red):
    fails_at = 7


class Drifting(Red):
    """Soft noise that drifts to the side."""

    grains = np.random.default_rng(8).uniform(60, 190, (18, 64))

    @classmethod
    def luma(cls, index: int) -> NDArray[np.float64]:
        grey = np.roll(np.kron(cls.grains, np.ones((10, 10))), 3 * index, axis=1)[:, :320]
        return 16 + 219 / 255 * np.floor(grey)

    def paint(self, state: Any, frame: Any, canvas: Any) -> None:
        canvas[:] = ((self.luma(frame.index) - 16) * 255 / 219)[..., None]


red = NumpyRenderer(f"{__name__}:Red", RedParams)
drifting = NumpyRenderer(f"{__name__}:Drifting", RedParams)
broken = NumpyRenderer(f"{__name__}:Broken", RedParams)


def test_colours_are_converted_by_bt709_in_limited_range(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Pure red is Y 63, Cb 102, Cr 240 (ITU-R BT.709)."""
    video, _ = render(red, write_wav(tmp_path / "a.wav", noise(44_100)))
    with av.open(str(video)) as container:
        planes = next(container.decode(video=0)).planes
        got = [np.frombuffer(bytes(plane), np.uint8)[: plane.width].mean() for plane in planes]
    assert got == pytest.approx([63, 102, 240], abs=1.5)


@pytest.mark.parametrize(
    ("width", "height", "kind", "threads"),
    [(16, 16, "FRAME", 8), (1080, 1920, "FRAME", 8), (4096, 2048, "FRAME", 6), (8192, 8192, "SLICE", 8)],
)
def test_the_encoders_threads_follow_from_the_size(width: int, height: int, kind: str, threads: int) -> None:
    """The number of threads, on which the bytes depend, is the same on every machine; large frames are shared."""
    context = av.CodecContext.create("libx264", "w")
    LIBX264.set_up(context, Output(width=width, height=height))
    assert (context.thread_type.name, context.thread_count) == (kind, threads)


def test_quality_is_nearer_to_what_was_drawn(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """``quality`` shows finer differences than ``balanced``, the default; every quality makes a whole video."""
    song = write_wav(tmp_path / "a.wav", noise(44_100))
    away = {}
    for quality in ("fast", "balanced", "quality"):
        video, stats = render(drifting, song, output=Output(width=320, height=180, quality=quality))
        assert stats.frames == 30
        with av.open(str(video)) as container:
            shown = [frame.to_ndarray()[:180] for frame in container.decode(video=0)]
        away[quality] = np.mean([np.square(luma - Drifting.luma(n)).mean() for n, luma in enumerate(shown)])
    assert away["quality"] < 0.8 * away["balanced"]


def test_stereo_shows_the_picture_to_each_eye(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """``360-stereo`` has the same picture above and below."""
    output = Output(width=128, height=128, projection="360-stereo")
    video, _ = render(bars, write_wav(tmp_path / "a.wav", noise(44_100)), output=output)
    with av.open(str(video)) as container:
        picture = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)][-1].astype(int)
    assert picture.max() > 60
    assert np.abs(picture[:64] - picture[64:]).mean() < 3


def test_progress_counts_every_frame(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """Each frame is reported, the last one as all of them. A number may be reported again."""
    seen: list[tuple[int, int]] = []
    song = write_wav(tmp_path / "a.wav", noise(44_100))
    flash.render(order(), song, tmp_path / "video.mp4", lambda done, total: seen.append((done, total)))
    assert list(dict.fromkeys(report for report in seen if report[0])) == [(done, 30) for done in range(1, 31)]
    assert seen[0][0] == 0 < seen[0][1]


@pytest.mark.parametrize("when", [0, 1, 13])
def test_a_stopped_render_leaves_nothing(tmp_path: Path, write_wav: WriteWav, order: Order, when: int) -> None:
    """What `report` raises comes back at once; no file and no thread stay."""
    song = write_wav(tmp_path / "a.wav", noise(44_100))

    def report(done: int, total: int) -> None:
        if done >= when:
            raise RenderStopped("told to stop")

    with pytest.raises(RenderStopped):
        flash.render(order(), song, tmp_path / "video.mp4", report)
    assert list(tmp_path.iterdir()) == [song]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("renderdispatch-")]


def test_an_error_in_the_scene_names_the_frame(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """A scene that raises is `SceneError`, with the frame and the cause; nothing stays."""
    song = write_wav(tmp_path / "a.wav", noise(44_100))
    with pytest.raises(SceneError, match=r"frame 7: ZeroDivisionError: at last") as caught:
        broken.render(order(), song, tmp_path / "video.mp4", lambda done, total: None)
    assert caught.value.code == "scene.failed"
    assert list(tmp_path.iterdir()) == [song]


class GrowingState(NamedTuple):
    """An array that the scene must not write to."""

    size: NDArray[np.float32]


class Growing(Scene[GrowingState]):
    """Changes the state of the frame before."""

    def __init__(self, params: SceneParams, *, width: int, height: int, fps: Fraction) -> None:
        pass

    def start(self) -> GrowingState:
        return GrowingState(np.zeros(1, np.float32))

    def step(self, state: GrowingState, frame: Frame) -> GrowingState:
        state.size[:] += 1
        return state

    def paint(self, state: GrowingState, frame: Frame, canvas: Canvas) -> None:
        canvas[:] = 0


growing = NumpyRenderer(f"{__name__}:Growing", SceneParams)


def test_a_scene_cannot_change_an_older_state(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """A poster would show another moment than its frame, and a snapshot would be of another frame."""
    with pytest.raises(SceneError, match=r"frame 0: ValueError: .*read-only"):
        render(growing, write_wav(tmp_path / "a.wav", noise(44_100)))


def test_a_sound_shorter_than_a_frame_is_refused(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Less than half a frame is no video: ``audio.too-short``."""
    with pytest.raises(AudioError) as caught:
        render(flash, write_wav(tmp_path / "a.wav", noise(500)))
    assert caught.value.code == "audio.too-short"


def test_the_smallest_video_has_one_frame(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Half a frame and more of sound is a frame."""
    _, stats = render(flash, write_wav(tmp_path / "a.wav", noise(1000)))
    assert stats.frames == 1


def test_silence_is_a_video_too(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """A silent song is rendered like any other."""
    _, stats = render(bars, write_wav(tmp_path / "a.wav", np.zeros(44_100)))
    assert stats.frames == 30


def test_a_full_disk_is_told_as_such(tmp_path: Path, small_disk: Path, order: Order) -> None:
    """No space is ``disk.full``, a fault of the infrastructure; what was written is removed."""
    song = tmp_path / "a.wav"
    compose(song, seconds=30)
    big = order(output=Output(width=1280, height=720))
    with pytest.raises(RenderError) as caught:
        bars.render(big, song, small_disk / "video.mp4", lambda done, total: None)
    assert (caught.value.code, caught.value.fault) == ("disk.full", "infrastructure")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_is_too_small_for_the_sound_is_told_as_such(tmp_path: Path, small_disk: Path, order: Order) -> None:
    """The disk may also be full before the first frame is drawn, or only when the file is completed."""
    song = tmp_path / "a.wav"
    compose(song, seconds=10)
    filler = small_disk / "filler"
    for free in (20_000, 150_000, 350_000):
        filler.write_bytes(b"\0" * (2 * 1024 * 1024 - free))
        with pytest.raises(RenderError) as caught:
            bars.render(order(), song, small_disk / "video.mp4", lambda done, total: None)
        assert caught.value.code == "disk.full"
    assert list(small_disk.iterdir()) == [filler]


def test_an_output_that_cannot_be_written_is_told_as_such(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """A missing folder is ``output.unwritable``."""
    song = write_wav(tmp_path / "a.wav", noise(44_100))
    with pytest.raises(RenderError) as caught:
        flash.render(order(), song, tmp_path / "missing" / "video.mp4", lambda done, total: None)
    assert caught.value.code == "output.unwritable"

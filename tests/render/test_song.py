"""Whose fault is it if a song cannot be read, and how long may it be?"""

from __future__ import annotations

import errno
import io
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import AudioError, InvalidRequestError, RenderError, RenderStopped, SceneError, StorageError
from renderdispatch.messages import FaultDomain, JobStatus, Limits, Output, RenderOrder, RenderStats
from renderdispatch.plumbing.failures import job_error
from renderdispatch.render import bars
from renderdispatch.render.params import SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene
from renderdispatch.render.song import blamed_on_the_audio, read_song
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore

WriteWav = Callable[..., Path]
Order = Callable[..., RenderOrder]
Render = Callable[..., tuple[Path, RenderStats]]

_SMALL = Output(width=16, height=16, fps=Fraction(1))


def wav(*, rate: int, channels: int, frames: int) -> bytes:
    """Return silence as 16-bit WAV, with any header."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * channels * frames))
    return buffer.getvalue()


# --- whose fault ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (av.error.ArgumentError(errno.EINVAL, "the resampler refused"), "audio.undecodable"),
        (av.error.InvalidDataError(1, "garbage"), "audio.undecodable"),
        (ValueError("unknown channel layout"), "audio.undecodable"),
        (IndexError("no such plane"), "audio.undecodable"),
        (OSError(errno.EIO, "the file cannot be read"), "audio.undecodable"),
        (av.error.MemoryError(errno.ENOMEM, "absurd buffer"), "memory.full"),
        (np.exceptions.AxisError("no such axis"), "audio.undecodable"),
        (MemoryError(), "memory.full"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_whichever_library_fails_while_a_song_is_read_the_song_is_blamed(error: Exception, code: str) -> None:
    """Errors of FFmpeg, NumPy and Python alike are the audio's fault: the next attempt would read the same bytes."""
    with pytest.raises(AudioError) as caught, blamed_on_the_audio():
        raise error
    described = job_error(caught.value, otherwise=FaultDomain.INFRASTRUCTURE)
    assert (described.code, described.fault) == (code, FaultDomain.AUDIO)


@pytest.mark.parametrize("error", [RenderStopped("cancelled"), StorageError("away"), AudioError("silent")], ids=repr)
def test_our_own_errors_keep_their_meaning(error: Exception) -> None:
    """An error that already says whose fault it was is left alone."""
    with pytest.raises(type(error)) as caught, blamed_on_the_audio():
        raise error
    assert caught.value is error


@pytest.mark.parametrize(("rate", "channels", "frames"), [(1, 1, 20), (8000, 255, 800), (2**31 - 1, 1, 800)])
def test_absurd_audio_is_tried_once(rate: int, channels: int, frames: int) -> None:
    """What can be heard is rendered; for anything else the audio is blamed. Neither takes a second attempt."""
    with RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(slots=1)) as service:
        job = service.submit(wav(rate=rate, channels=channels, frames=frames), output=_SMALL).wait(30)
    assert len(job.attempts) == 1
    assert job.status is JobStatus.COMPLETE or (job.error is not None and job.error.fault is FaultDomain.AUDIO)


def test_a_size_that_no_encoder_takes_is_the_requests_fault(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """libx264 refuses 16384 x 16384 pixels each time: there is no second attempt."""
    song = write_wav(tmp_path / "a.wav", np.zeros(44_100))
    asked = order(output=Output(width=16_384, height=16_384))
    with pytest.raises(InvalidRequestError, match="16384x16384") as caught:
        bars.render(asked, song, tmp_path / "video.mp4", lambda done, total: None)
    assert job_error(caught.value, otherwise=FaultDomain.SCENE).fault is FaultDomain.REQUEST
    assert caught.value.code == "output.unsupported"


class Broken(Scene):
    """Raises what its class says."""

    error: Exception

    def __init__(self, params: Any, *, width: int, height: int, fps: Any) -> None:
        pass

    def paint(self, state: Any, frame: Any, canvas: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("a bug"), FaultDomain.SCENE),
        (FileNotFoundError("a picture"), FaultDomain.SCENE),
        (SceneError("no such colour"), FaultDomain.SCENE),
        (AudioError("not loud enough"), FaultDomain.AUDIO),
        (RenderError("the driver is gone"), FaultDomain.INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "full"), FaultDomain.INFRASTRUCTURE),
        (MemoryError(), FaultDomain.INFRASTRUCTURE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_scene_is_blamed_unless_its_error_says_otherwise(
    tmp_path: Path, write_wav: WriteWav, order: Order, error: Exception, fault: FaultDomain
) -> None:
    """A scene's exception is the scene's fault; a full disk, no memory, or an error with a fault of its own is not."""
    Broken.error = error
    song = write_wav(tmp_path / "a.wav", np.zeros(4410))
    renderer = NumpyRenderer(f"{__name__}:Broken", SceneParams)
    with pytest.raises(Exception) as caught:
        renderer.render(order(), song, tmp_path / "video.mp4", lambda done, total: None)
    assert job_error(caught.value, otherwise=FaultDomain.SCENE).fault is fault


def test_what_the_reader_finds_goes_into_the_result(tmp_path: Path, encode: WriteWav, render: Render) -> None:
    """A damaged song is a video with a warning; a track that it lacks is its fault."""
    song = encode(tmp_path / "a.flac", "flac", np.random.default_rng(3).uniform(-0.5, 0.5, 4 * 44_100), 44_100)
    data = bytearray(song.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    song.write_bytes(data)
    found = [warning.code for warning in render(bars, song, output=_SMALL)[1].warnings]
    assert found and all(code.startswith("audio.") for code in found)
    with pytest.raises(AudioError) as caught:
        render(bars, song, output=_SMALL, audio_track=1)
    assert caught.value.code == "audio.no-track"


# --- how long -------------------------------------------------------------------------------------


def test_a_song_that_says_that_it_is_too_long_is_not_decoded(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """The container's duration is enough: the job fails before anything is decoded or drawn."""
    song = write_wav(tmp_path / "a.wav", np.zeros(3 * 8000), 8000)
    reports: list[int] = []
    with pytest.raises(AudioError, match="longer than 1 s") as caught:
        bars.render(order(max_duration=1), song, tmp_path / "v.mp4", lambda done, total: reports.append(done))
    assert (caught.value.code, caught.value.fault, reports) == ("audio.too-long", "audio", [])


class Endless:
    """A stream that does not say how long it is, as `SoundReader` reads it."""

    rate = 1000

    def __init__(self) -> None:
        self.read = 0

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        while True:
            self.read += 1
            yield np.zeros((1, 500), np.float32)


def test_a_song_of_unknown_length_is_counted() -> None:
    """Where the container does not tell the duration, the song fails when it passes the limit."""
    sound: Any = Endless()
    with pytest.raises(AudioError) as caught:
        list(read_song(sound, longest_s=60))
    assert caught.value.code == "audio.too-long"
    assert sound.read == 121


def test_a_range_within_the_limit_of_a_longer_song_is_rendered(
    tmp_path: Path, write_wav: WriteWav, render: Render
) -> None:
    """What is asked for counts, not the rest of the file; a range of exactly the limit passes."""
    song = write_wav(tmp_path / "a.wav", np.zeros(10 * 8000), 8000)
    assert render(bars, song, output=_SMALL, start=5, duration=2, max_duration=2)[1].duration_s == 2
    assert render(bars, song, output=_SMALL, start=8, max_duration=2)[1].duration_s == 2


def test_an_album_is_within_the_default_limit() -> None:
    """80 minutes of music need no option."""
    assert Limits().max_duration.total_seconds() > 2 * 80 * 60


def test_submit_refuses_a_duration_beyond_the_limit() -> None:
    """A range that can never be rendered is no job."""
    service = RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(slots=1), worker=False)
    with pytest.raises(InvalidRequestError, match="duration: at most 14400 s"):
        service.submit(b"RIFF", duration=14_401)
    longer = Limits.model_validate({"max_duration": 20_000})
    assert service.submit(b"RIFF", duration=14_401, limits=longer).job.request.duration == 14_401

"""Is a local song read where it is, and does a change of it never go unseen?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import AudioError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Output, RenderOrder, RenderStats, SignedPut, StoredAudio
from renderdispatch.protocols import Report
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore

TINY = Output(width=64, height=36)
_GIB = 1 << 30


class Listener:
    """A renderer that reads a little of the song, and does something to it then.

    Args:
        ahead: Whether it says that it reads before it draws.
    """

    def __init__(self, *, ahead: bool = True) -> None:
        self.reads_audio_first = ahead
        self.heard: list[Path] = []
        self.while_reading: Callable[[Path], object] = lambda song: None
        self.while_drawing: Callable[[Path], object] = lambda song: None

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        self.heard.append(audio)
        with audio.open("rb") as file:
            file.read(16)
            self.while_reading(audio)
        report(1, 2)
        self.while_drawing(audio)
        report(2, 2)
        output.write_bytes(b"a video")
        return RenderStats(**dict(TINY), frames=2, duration_s=0.1, rendered_by="listener", encoded_by="none")


class Meddling(FsspecStorage):
    """A folder that does something to the song when an order is made, after the song was last checked."""

    meddle: Callable[[], object] | None = None

    def sign_put(self, key: str, **options: Any) -> SignedPut:
        if self.meddle is not None:
            self.meddle()
        return super().sign_put(key, **options)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "a song, 100%? #1.wav"
    path.write_bytes(b"RIFF, a song")
    return path


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def storage(tmp_path: Path) -> Meddling:
    return Meddling(tmp_path / "objects")


@pytest.fixture
def service(listener: Listener, storage: Meddling) -> Iterator[RenderService]:
    backend = InlineBackend({"listener": listener})
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as opened:
        yield opened


def rendered(service: RenderService, song: Path) -> Job:
    return service.submit(song, scene="listener", output=TINY).wait(30)


def append(song: Path) -> None:
    """Change the song in place."""
    with song.open("ab") as file:
        file.write(b"!")


def failed_once(job: Job, code: str) -> None:
    assert (job.status, len(job.attempts)) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert (job.error.code, job.error.fault) == (code, "audio")


def test_five_gibibytes_are_not_copied(tmp_path: Path, listener: Listener, service: RenderService) -> None:
    """Song, storage and renderer on one machine: neither submit nor render copies the file."""
    song = tmp_path / "long.wav"
    song.write_bytes(b"RIFF")
    os.truncate(song, 5 * _GIB)
    began = time.process_time()
    job = rendered(service, song)
    assert (job.status, job.audio) == (JobStatus.COMPLETE, None)
    assert listener.heard == [song]
    assert time.process_time() - began < 2
    stored = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in stored) < 10_000


def test_the_song_itself_stays(song: Path, service: RenderService) -> None:
    """The clean-up of a job, and its deletion, leave the submitted file alone."""
    job = rendered(service, song)
    assert job.audio_clean_up == "none"
    service.delete(job.id)
    assert song.read_bytes() == b"RIFF, a song"


def test_a_song_that_changed_before_it_is_read(
    song: Path, listener: Listener, storage: Meddling, service: RenderService
) -> None:
    """The renderer is not called with a file that is not the submitted one."""
    storage.meddle = lambda: append(song)
    failed_once(rendered(service, song), "audio.changed")
    assert listener.heard == []


@pytest.mark.parametrize("ahead", [True, False])
def test_a_song_that_changes_while_it_is_read(
    song: Path, listener: Listener, service: RenderService, ahead: bool
) -> None:
    """A video of half the old song and half the new one is not delivered."""
    listener.reads_audio_first = ahead
    listener.while_reading = append
    failed_once(rendered(service, song), "audio.changed")


def test_a_change_may_be_why_it_cannot_be_decoded(song: Path, listener: Listener, service: RenderService) -> None:
    """The cause is told, not its consequence."""

    def spoil(song: Path) -> None:
        append(song)
        raise AudioError("garbage", code="audio.undecodable")

    listener.while_reading = spoil
    failed_once(rendered(service, song), "audio.changed")


def test_a_song_that_changes_after_it_was_read(song: Path, listener: Listener, service: RenderService) -> None:
    """Players write their tags into files: once the sound is read, hours of drawing are not lost to it."""
    listener.while_drawing = append
    assert rendered(service, song).status is JobStatus.COMPLETE


def test_a_song_that_changes_while_a_renderer_may_still_read(
    song: Path, listener: Listener, service: RenderService
) -> None:
    """A renderer that does not say when it reads may read until its end."""
    listener.reads_audio_first = False
    listener.while_drawing = append
    failed_once(rendered(service, song), "audio.changed")


@pytest.mark.parametrize("ahead", [True, False])
def test_a_song_that_is_removed_while_it_is_rendered(
    song: Path, listener: Listener, service: RenderService, ahead: bool
) -> None:
    """A renderer that has it open reads it to its end."""
    listener.reads_audio_first = ahead
    listener.while_reading = Path.unlink
    assert rendered(service, song).status is JobStatus.COMPLETE


def test_a_song_that_vanished_before_it_is_read(song: Path, storage: Meddling, service: RenderService) -> None:
    """What is not there any more cannot be rendered, and is not tried again."""
    storage.meddle = lambda: song.unlink(missing_ok=True)
    failed_once(rendered(service, song), "audio.missing")


def test_a_song_below_a_very_long_path_is_copied(tmp_path: Path, listener: Listener, service: RenderService) -> None:
    """An order has little room for URLs."""
    folder = tmp_path.joinpath(*["é" * 100] * 5)
    folder.mkdir(parents=True)
    song = folder / "song.wav"
    song.write_bytes(b"RIFF")
    assert rendered(service, song).status is JobStatus.COMPLETE
    assert listener.heard != [song]


def test_storage_elsewhere_gets_a_copy(song: Path, listener: Listener) -> None:
    """Storage that is not a folder of this machine may serve a worker of another one after this one is gone."""
    backend = InlineBackend({"listener": listener})
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        job = rendered(service, song)
    assert job.status is JobStatus.COMPLETE
    assert [path for path in listener.heard if path != song]


def test_a_song_is_copied_for_a_worker_in_another_process(
    tmp_path: Path, song: Path, storage: Meddling, listener: Listener
) -> None:
    """Without a worker in this process the file belongs to the application again when submit returns."""
    backend = InlineBackend({"listener": listener})
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend], worker=False) as service:
        handle = service.submit(song, scene="listener", output=TINY)
        song.unlink()
        assert isinstance(handle.job.request.audio, StoredAudio)
        with service.open_object(handle.job.request.audio.key) as file:
            assert file.read() == b"RIFF, a song"

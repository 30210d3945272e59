"""Does a cover reach the renderer as it was submitted, and the poster the client?

The poster of `FakeRenderer` is the cover that it was given.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import RenderService, StorageKey
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine import layout
from renderdispatch.engine.records import dump_job
from renderdispatch.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotCompleteError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_COVER_BYTES,
    JobStatus,
    LocalAudio,
    Output,
    RenderOrder,
    RenderStats,
    SignedPut,
    StoredAudio,
)
from renderdispatch.plumbing import local_urls
from renderdispatch.protocols import ObjectInfo, Report
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer, eventually, in_threads, make_job, make_request
from tests.support.rounds import finished

TINY = Output(width=64, height=36)
PNG = b"\x89PNG\r\n\x1a\n, a cover"
JPEG = b"\xff\xd8\xff\xe0, another cover"


class Meddling(FsspecStorage):
    """A folder that does something when an order is made, after the cover was last checked there."""

    meddle: Callable[[], object] = staticmethod(lambda: None)

    def sign_put(self, key: str, **options: Any) -> SignedPut:
        self.meddle()
        return super().sign_put(key, **options)


class Deleting(MemoryStorage):
    """A storage during whose upload of a cover the job is deleted."""

    store: MemoryJobStore
    deleted: Callable[[], object] = staticmethod(lambda: None)

    def put(self, key: str, source: Any, **options: Any) -> ObjectInfo:
        if "/cover-" in key:
            job = self.store.get(layout.job_of(key) or "")
            self.store.delete(job.id, expected_revision=job.revision)
            self.deleted()
        return super().put(key, source, **options)


@pytest.fixture
def cover(tmp_path: Path) -> Path:
    path = tmp_path / "front, 100%.jpg"  # whatever its name says, it is a PNG
    path.write_bytes(PNG)
    return path


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def idle(storage: MemoryStorage) -> Iterator[RenderService]:
    """A service that works only when it is told to, so that `submit` stores files."""
    backend = InlineBackend({"fake": FakeRenderer()})
    with RenderService(MemoryJobStore(), storage, backend, machine="here", worker=False, owned=[backend]) as opened:
        yield opened


@pytest.fixture(params=["memory", "folder"])
def service(request: pytest.FixtureRequest, tmp_path: Path, storage: MemoryStorage) -> Iterator[RenderService]:
    """A service with a worker, which reads files later. With a folder they are read in place."""
    backend = InlineBackend({"fake": FakeRenderer()})
    chosen = storage if request.param == "memory" else Meddling(tmp_path / "objects")
    with RenderService(MemoryJobStore(), chosen, backend, owned=[backend]) as opened:
        yield opened


def left(service: RenderService, cover: Path, machine: str = "here") -> Job:
    """Record a job whose cover is left to a worker of that machine, as `submit` does where a worker runs."""
    found = cover.stat()
    file = LocalAudio(path=str(cover), machine=machine, size=found.st_size, mtime_ns=found.st_mtime_ns)
    parts = service._engine.parts
    parts.storage.put("song.wav", b"RIFF")
    audio = StoredAudio(key="song.wav", size=4)
    request = make_request(audio=audio, cover=file, poster=True, scene="fake", backend="default", output=TINY)
    return parts.store.create(make_job(request=request))


def poster_of(service: RenderService, job: Job) -> bytes:
    with local_urls.open_get(service.poster_url(job.id)) as file:
        return file.read()


def stored(service: RenderService) -> list[str]:
    """Return the last parts of all keys."""
    return sorted(info.key.rpartition("/")[2] for info in service._engine.parts.storage.list(""))


# --- the whole way


def test_a_cover_and_a_poster(service: RenderService, cover: Path) -> None:
    """The renderer gets the cover's bytes and the song's names; the client gets the poster by key, URL and file."""
    handle = service.submit(b"RIFF", scene="fake", output=TINY, title="A", artist="B", cover=cover, poster=True)
    job = handle.wait(30)
    assert (job.status, job.request.title, job.request.artist) == (JobStatus.COMPLETE, "A", "B")
    assert job.artifact is not None and job.artifact.warnings == ()
    polled = handle.poll()
    assert polled.result is not None and polled.result.poster_key == job.artifact.poster_key
    assert polled.poster_url is not None
    assert {"posterKey", "posterUrl"} <= set(polled.to_json().replace('"', " ").split())
    assert poster_of(service, job) == PNG
    assert handle.save_poster(cover.with_name("saved.jpg")).read_bytes() == PNG
    assert not any(part in text for text in (repr(polled), dump_job(job)) for part in ("memory:", "file:"))


def test_a_storage_key_is_a_cover(idle: RenderService, storage: MemoryStorage) -> None:
    """An object of the tenant's own is used where it stands, and stays when the job is deleted."""
    storage.put("tenants/acme/front.jpg", JPEG)
    acme = idle.for_tenant("acme")
    handle = acme.submit(b"RIFF", scene="fake", output=TINY, cover=StorageKey("tenants/acme/front.jpg"), poster=True)
    assert poster_of(acme, finished(idle, handle.id)) == JPEG
    acme.delete(handle.id)
    assert stored(idle) == ["front.jpg"]


def test_a_file_in_place_is_not_stored(service: RenderService, song_and_cover: tuple[Path, Path]) -> None:
    """Where storage and renderer are on this machine a cover is not stored; elsewhere it is, until `delete`."""
    song, cover = song_and_cover
    handle = service.submit(song, scene="fake", output=TINY, cover=cover)
    job = handle.wait(30)
    eventually(lambda: not handle.job.owes_clean_up)
    in_place = isinstance(service._engine.parts.storage, FsspecStorage)
    kept = [] if in_place else ["cover"]
    assert [name.partition("-")[0] for name in stored(service)] == [*kept, "result.json", "video.mp4"]
    assert (job.attachments == {}) == in_place
    service.delete(handle.id)
    assert stored(service) == []
    assert cover.read_bytes() == PNG


@pytest.fixture
def song_and_cover(tmp_path: Path, cover: Path) -> tuple[Path, Path]:
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF, a song")
    return song, cover


def test_a_job_without_either(service: RenderService) -> None:
    """A job that asked for no poster has none, and says so; its answer has no such fields."""
    handle = service.submit(b"RIFF", scene="fake", output=TINY)
    with pytest.raises(JobNotCompleteError):
        handle.poster_url()
    handle.wait(30)
    assert "poster" not in handle.poll().to_json()
    for call in (handle.poster_url, handle.save_poster):
        with pytest.raises(ObjectNotFoundError, match="poster=True") as refused:
            call()
        assert refused.value.code == "poster.missing"


def test_a_scene_without_a_poster(storage: MemoryStorage) -> None:
    """A video without the poster that was asked for is delivered, with a warning."""

    class Plain:
        def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
            output.write_bytes(b"a video")
            return RenderStats(**dict(TINY), frames=2, duration_s=0.1, rendered_by="plain", encoded_by="none")

    backend = InlineBackend({"plain": Plain()})
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        handle = service.submit(b"RIFF", scene="plain", output=TINY, poster=True)
        assert handle.wait(30).status is JobStatus.COMPLETE
        polled = handle.poll()
    assert [warning.code for warning in polled.warnings] == ["poster.missing"]
    assert polled.poster_url is None


# --- what is no cover


@pytest.mark.parametrize(
    ("cover", "code"),
    [
        ("front.jpg", "cover.invalid"),
        (PNG, "cover.invalid"),
        (io.BytesIO(PNG), "cover.invalid"),
        (Path("missing.jpg"), "cover.missing"),
        (Path("/"), "cover.directory"),
        (Path("/dev/null"), "cover.invalid"),
        (Path("a\0b"), "cover.invalid"),
        (StorageKey("missing.jpg"), "cover.missing"),
        (StorageKey("tenants/acme/front.jpg"), "cover.denied"),
        (StorageKey("../front.jpg"), "cover.denied"),
        (StorageKey("uploads/20200101/" + "0" * 32), "cover.expired"),
    ],
    ids=lambda value: repr(value).partition(" object")[0][:30],
)
@pytest.mark.parametrize("worker", [True, False])
def test_what_cannot_be_a_cover(cover: Any, code: str, worker: bool, storage: MemoryStorage) -> None:
    """It is refused with a code, and leaves neither a job nor an object. A bare string is never a path."""
    backend = InlineBackend({"fake": FakeRenderer()})
    with RenderService(MemoryJobStore(), storage, backend, worker=worker, owned=[backend]) as service:
        with pytest.raises(InvalidRequestError) as refused:
            service.submit(b"RIFF", scene="fake", cover=cover)
        assert refused.value.code == code
        assert service.jobs().items == ()
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "cover.empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cover.invalid"),
        (b"RIFF\0\0\0\0WAVE", "cover.invalid"),
        (b"GIF8", "cover.invalid"),
        (PNG.ljust(MAX_COVER_BYTES + 1), "cover.too-large"),
    ],
    ids=["empty", "svg", "wave", "short", "large"],
)
def test_what_is_no_picture(
    idle: RenderService, service: RenderService, storage: MemoryStorage, cover: Path, data: bytes, code: str
) -> None:
    """Files and objects are refused by their size and first bytes, wherever they would be read."""
    cover.write_bytes(data)
    storage.put("front.jpg", data)
    for submitted, given in ((idle, cover), (service, cover), (idle, StorageKey("front.jpg"))):
        with pytest.raises(InvalidRequestError) as refused:
            submitted.submit(b"RIFF", scene="fake", cover=given)
        assert refused.value.code == code
    assert stored(idle) == ["front.jpg"]


@pytest.mark.parametrize("data", [PNG, JPEG, b"RIFF\0\n\0\0WEBP", b"GIF89a", b"BM6\0"])
def test_kinds_of_pictures(idle: RenderService, cover: Path, data: bytes) -> None:
    """JPEG, PNG, WebP, GIF and BMP are taken; the largest that is allowed, too."""
    cover.write_bytes(data)
    assert idle.submit(b"RIFF", scene="fake", cover=cover).job.request.cover is not None
    cover.write_bytes(data.ljust(MAX_COVER_BYTES))
    assert idle.submit(b"RIFF", scene="fake", cover=cover).job.request.cover is not None


def test_audio_that_fails_leaves_no_cover(idle: RenderService, cover: Path) -> None:
    """Nothing stays stored of a submit that was refused, or that came second with its key."""
    with pytest.raises(InvalidRequestError, match="the audio is empty"):
        idle.submit(io.BytesIO(b""), scene="fake", cover=cover)
    assert stored(idle) == []
    in_threads(4, lambda _: idle.submit(b"RIFF", scene="fake", cover=cover, idempotency_key="once"))
    assert [name.partition("-")[0] for name in stored(idle)] == ["audio", "cover"]


# --- what changes after submit


@pytest.mark.parametrize("change", ["modified", "touched", "vanished", "directory"])
def test_a_file_that_changed_since_submit(idle: RenderService, cover: Path, change: str) -> None:
    """A cover that is not the submitted one any more fails the job as the request's fault, at its first attempt."""
    job = left(idle, cover)
    match change:
        case "modified":
            cover.write_bytes(PNG + b"!")
        case "touched":
            os.utime(cover, ns=(1, 1))
        case "vanished":
            cover.unlink()
        case _:
            cover.unlink()
            cover.mkdir()
    job = finished(idle, job.id)
    assert job.error is not None
    assert (job.error.code, job.error.fault, len(job.attempts)) == ("cover.changed", "request", 1)
    assert stored(idle) == ["song.wav"]


@pytest.mark.parametrize(("data", "code"), [(None, "cover.missing"), (JPEG + b"!", "cover.changed")])
def test_an_object_that_changed_since_submit(
    idle: RenderService, storage: MemoryStorage, data: bytes | None, code: str
) -> None:
    """The same for a storage key."""
    storage.put("front.jpg", JPEG)
    handle = idle.submit(b"RIFF", scene="fake", cover=StorageKey("front.jpg"))
    if data is None:
        storage.delete("front.jpg")
    else:
        storage.put("front.jpg", data)
    job = finished(idle, handle.id)
    assert job.error is not None
    assert (job.error.code, job.error.fault, len(job.attempts)) == (code, "request", 1)


def test_a_cover_that_changes_after_the_last_check(tmp_path: Path, cover: Path) -> None:
    """A file that is read in place is checked once more by the run, behind its copy."""
    storage, backend = Meddling(tmp_path / "objects"), InlineBackend({"fake": FakeRenderer()})
    storage.meddle = lambda: os.utime(cover, ns=(1, 1))
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        job = service.submit(b"RIFF", scene="fake", output=TINY, cover=cover).wait(30)
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("cover.changed", "request")


def test_a_cover_waits_for_its_machine(idle: RenderService, cover: Path) -> None:
    """A job whose cover lies on a machine is claimed there alone, until an attempt has stored it."""
    job = left(idle, cover, machine="elsewhere")
    for _ in range(3):
        idle.tick()
    assert idle.get(job.id).status is JobStatus.PENDING
    parts = idle._engine.parts
    backend = InlineBackend({"fake": FakeRenderer()})
    with RenderService(parts.store, parts.storage, backend, machine="elsewhere", worker=False) as there:
        done = finished(there, job.id)
    backend.close()
    assert isinstance(done.attached()["cover"], StoredAudio) and done.machine is None
    assert poster_of(idle, done) == PNG


@pytest.mark.parametrize("noticed", [False, True])
def test_a_job_that_is_deleted_while_its_cover_is_stored(cover: Path, noticed: bool) -> None:
    """What a late attempt stores is removed with it, also if its holder knows by then: no later delete finds it."""
    storage, backend = Deleting(), InlineBackend({"fake": FakeRenderer()})
    storage.store = MemoryJobStore()
    with RenderService(storage.store, storage, backend, machine="here", worker=False, owned=[backend]) as service:
        left(service, cover)
        if noticed:
            storage.deleted = service._engine.worker().keeper.tick  # renews the lease
        service.tick()
        eventually(lambda: not service.jobs().items and stored(service) == ["song.wav"])


# --- idempotency and retry


def test_j9_a_cover_counts_by_its_content(service: RenderService, cover: Path) -> None:
    """With a key the same picture is the same request wherever it lies; another or none is a conflict."""

    def submit(**changes: Any) -> str:
        return service.submit(b"RIFF", scene="fake", output=TINY, idempotency_key="k", **changes).id

    first = submit(cover=cover, title="A")
    copy = cover.with_name("copy.png")
    copy.write_bytes(PNG)
    assert submit(cover=copy, title="A") == submit(cover=copy, title=" A\n") == first
    copy.write_bytes(JPEG)
    for changes in ({"cover": copy, "title": "A"}, {"title": "A"}, {"cover": cover}):
        with pytest.raises(IdempotencyConflictError):
            submit(**changes)
    with pytest.raises(IdempotencyConflictError):
        submit(cover=cover, title="A", poster=True)


def test_retry_keeps_the_cover(idle: RenderService, cover: Path) -> None:
    """A new job has a copy of its own of a cover that goes with the old one; one that is gone is refused."""
    fail = {"fail": "no"}
    first = idle.submit(b"RIFF", scene="fake", output=TINY, cover=cover, title="A", poster=True, params=fail)
    finished(idle, first.id)
    again = first.retry()
    idle.delete(first.id)
    assert isinstance(again.job.request.cover, StoredAudio)
    assert again.job.request.cover.key.startswith(layout.prefix_of(again.job))
    assert (again.job.request.title, again.job.request.poster) == ("A", True)
    finished(idle, again.id)
    idle._engine.parts.storage.delete(again.job.request.cover.key)
    with pytest.raises(InvalidRequestError) as refused:
        again.retry()
    assert refused.value.code == "cover.missing"
    assert [name for name in stored(idle) if name.startswith("audio")] == ["audio"]


# --- names


def test_files_are_saved_under_the_song_s_name(
    service: RenderService, song_and_cover: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`save` without a path takes the title, else the file's name, in the working directory; nothing is replaced."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    song, _ = song_and_cover
    named = service.submit(song, scene="fake", output=TINY, title="Back/Black", artist="AC", poster=True)
    plain = service.submit(song, scene="fake", output=TINY)
    with song.open("rb") as file:
        streamed = service.submit(file, scene="fake", output=TINY)
        for handle in (named, plain, streamed):
            handle.wait(30)
    assert [named.save(), named.save_poster(), plain.save()] == [
        Path("AC - Back_Black.mp4"),
        Path("AC - Back_Black.jpg"),
        Path("song.mp4"),
    ]
    with pytest.raises(ObjectExistsError):
        streamed.save()
    assert streamed.save(overwrite=True) == Path("song.mp4")

"""Does the facade do what its docstrings say?"""

from __future__ import annotations

import io
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

from renderdispatch import (
    AudioUrl,
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    JobNotCompleteError,
    JobNotFoundError,
    JobStatus,
    Limits,
    Output,
    RenderService,
    Stage,
    StorageKey,
    WaitTimeoutError,
)
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.engine import layout
from renderdispatch.engine.audio import AudioSource
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import CancelRequested
from renderdispatch.engine.records import dump_job
from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError, UnknownNameError
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import LocalAudio, StoredAudio
from renderdispatch.protocols import JobQuery
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer, eventually, in_threads, make_job, make_request

TINY = Output(width=64, height=36)
LONG = {"frames": 3000, "frame_s": 0.01}


@pytest.fixture
def idle() -> Iterator[RenderService]:
    """A service that works only when it is told to `tick`."""
    backend = InlineBackend({"fake": FakeRenderer()}, slots=2)
    service = RenderService(MemoryJobStore(), MemoryStorage(), {"inline": backend}, worker=False, owned=[backend])
    yield service
    service.close()


def tick_to_the_end(service: RenderService, job_id: str) -> None:
    def ended() -> bool:
        service.tick()
        return service.get(job_id).ended

    eventually(ended)


# --- the whole way


def test_from_a_song_to_a_video(service: RenderService, song: Path, tmp_path: Path) -> None:
    """A job goes from submit to a video that can be saved, and each answer on the way fits."""
    handle = service.submit(song, scene="fake", output=TINY, metadata={"mine": 1})
    assert handle.job.status in JobStatus
    job = handle.wait(timeout=30)
    assert (job.status, job.stage, job.progress) == (JobStatus.COMPLETE, Stage.FINALIZING, 100)
    assert job.request.metadata == {"mine": 1}
    poll = handle.poll()
    assert poll.result is not None and poll.download_url is not None
    assert poll.download_url == handle.download_url() or "signature" in poll.download_url
    assert (poll.result.width, poll.result.height, poll.result.frames) == (64, 36, 3)
    path = handle.save(tmp_path / "out.mp4")
    assert path.read_bytes() == b"a video of nothing"
    with pytest.raises(ObjectExistsError, match=r"out\.mp4 exists, and overwrite was not asked"):
        handle.save(path)
    handle.save(path, overwrite=True)
    assert "video" in handle._repr_html_()


def test_bytes_files_and_keys(service: RenderService) -> None:
    """Bytes, an open file and a storage key are audio as well as a path is."""
    storage = service._engine.parts.storage
    storage.put("mine/song.wav", b"RIFF")
    sources: list[AudioSource] = [b"RIFF", io.BytesIO(b"RIFF"), StorageKey("mine/song.wav")]
    handles = [service.submit(source, scene="fake", output=TINY) for source in sources]
    assert [h.wait(timeout=60).status for h in handles] == ["complete"] * 3
    assert storage.stat("mine/song.wav").size == 4


def test_a_failure_is_told(service: RenderService) -> None:
    """A scene that fails makes a failed job, with its code and words; no other attempt is made."""
    handle = service.submit(b"RIFF", scene="fake", output=TINY, params={"fail": "no such star"})
    job = handle.wait(timeout=30)
    assert job.status is JobStatus.FAILED and len(job.attempts) == 1
    poll = handle.poll()
    assert poll.error is not None
    assert (poll.error.code, poll.error.message) == ("scene.fake", "no such star")
    with pytest.raises(JobFailedError, match="no such star") as failed:
        handle.download_url()
    assert failed.value.code == "scene.fake"


def test_stages_in_order(idle: RenderService, song: Path) -> None:
    """Every stage of the reference is entered once, in order, each with its percentage; progress never falls."""
    handle = idle.submit(song, scene="fake", output=TINY, params={"frames": 50, "frame_s": 0.005})
    seen: list[tuple[float, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            job = handle.job
            seen.append((job.progress, len(job.attempts)))

    thread = threading.Thread(target=watch)
    thread.start()
    tick_to_the_end(idle, handle.id)
    done.set()
    thread.join()
    attempt = handle.job.attempt
    assert attempt is not None
    assert [str(stage) for stage in attempt.stage_times][:5] == [
        "resolving-audio",
        "uploading-audio",
        "generating-url",
        "dispatching",
        "dispatched",
    ]
    assert list(attempt.stage_times)[-1] is Stage.FINALIZING
    times = list(attempt.stage_times.values())
    assert times == sorted(times)
    assert [p for p, _ in seen] == sorted(p for p, _ in seen)


def test_poll_on_the_wire(idle: RenderService) -> None:
    """A poll is camelCase JSON with the reference's names; fields that hold nothing are left out."""
    handle = idle.submit(b"RIFF", scene="fake")
    body = handle.poll().model_dump(mode="json", exclude_none=True)
    assert list(body) == [
        "jobId", "status", "stage", "progress", "attempt", "queuePosition", "createdAt", "updatedAt",
    ]  # fmt: skip
    assert (body["status"], body["stage"], body["progress"], body["queuePosition"]) == ("pending", "queued", 0, 1)
    tick_to_the_end(idle, handle.id)
    body = handle.poll().model_dump(mode="json", exclude_none=True)
    assert body["status"] == "complete"
    assert body["result"]["videoKey"].endswith("/video.mp4")
    assert "downloadUrl" in body


def test_the_queue(idle: RenderService) -> None:
    """Higher priorities go first, then the oldest; the position says so."""
    low, first, second = (idle.submit(b"RIFF", scene="fake", priority=p).id for p in (-1, 5, 5))
    assert [idle.poll(i).queue_position for i in (first, second, low)] == [1, 2, 3]
    idle.tick()
    assert idle.get(low).status is JobStatus.PENDING
    assert idle.poll(low).queue_position == 1
    for job_id in (low, first, second):
        tick_to_the_end(idle, job_id)
    assert idle.poll(low).queue_position is None


def test_jobs_and_counts(idle: RenderService) -> None:
    """Jobs are listed newest first, page by page and by status; counts name every status."""
    ids = [idle.submit(b"RIFF", scene="fake").id for _ in range(5)]
    idle.cancel(ids[0])
    page = idle.jobs(limit=3)
    rest = idle.jobs(limit=3, cursor=page.cursor)
    assert sorted(j.id for j in (*page.items, *rest.items)) == sorted(ids)
    assert rest.cursor is None
    assert [j.id for j in idle.jobs(status="cancelled").items] == [ids[0]]  # type: ignore[arg-type]
    assert len(idle.jobs(status=[JobStatus.PENDING, JobStatus.CANCELLED]).items) == 5
    assert idle.counts() == {**dict.fromkeys(JobStatus, 0), JobStatus.PENDING: 4, JobStatus.CANCELLED: 1}


def test_no_such_job(idle: RenderService) -> None:
    """A job that never was is not found, by any method."""
    handle = idle.handle("nobody")
    for call in (handle.poll, handle.cancel, handle.retry, handle.download_url, lambda: idle.delete("nobody")):
        with pytest.raises(JobNotFoundError):
            call()


@pytest.mark.parametrize(
    "job_id",
    ["\ud800", "a\x00b", "x" * 10_000, "", "a/b", "ü"],
    ids=["a surrogate", "a null", "endless", "empty", "a path", "no ASCII"],
)
def test_what_can_be_no_id(service: RenderService, job_id: str) -> None:
    """Text that no job's id can be is not found, whatever the store would say to it."""
    for call in (service.get, service.poll, service.cancel, service.delete, service.retry, service.download_url):
        with pytest.raises(JobNotFoundError) as missing:
            call(job_id)
        assert len(str(missing.value)) < 200


# --- what is refused at submit


def nested(levels: int) -> object:
    """Return so many arrays in one another."""
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scene": "brs"}, "scene.unknown"),
        ({"scene": Path("/tmp/scene.glsl")}, "scene-file.missing"),
        ({"scene": None}, "request.invalid"),
        ({"output": "flat-1080p-landscap"}, "preset.unknown"),
        ({"backend": "inlin"}, "backend.unknown"),
        ({"duration": 0}, "request.invalid"),
        ({"duration": float("nan")}, "request.invalid"),
        ({"start": -1}, "request.invalid"),
        ({"start": float("inf")}, "request.invalid"),
        ({"params": {"x": "y" * 3000}}, "request.invalid"),
        pytest.param({"params": {"x": object()}}, "request.invalid", id="params-no-json"),
        ({"metadata": {"x": "y" * 5000}}, "request.invalid"),
        pytest.param({"metadata": {"x": nested(210)}}, "request.invalid", id="metadata-deep"),
        pytest.param({"params": {"x": nested(1000)}}, "request.invalid", id="params-endless"),
        pytest.param({"params": {"x": "\ud800"}}, "request.invalid", id="params-no-text"),
        ({"require_gpu": True}, "gpu.unavailable"),
        ({"priority": "high"}, "request.invalid"),
        ({"priority": 1.5}, "request.invalid"),
        ({"priority": 1 << 70}, "request.invalid"),
        ({"idempotency_key": ""}, "idempotency-key.invalid"),
        ({"idempotency_key": "x" * 2000}, "idempotency-key.invalid"),
        pytest.param({"idempotency_key": "\ud800"}, "idempotency-key.invalid", id="idempotency-key-no-text"),
    ],
    ids=str,
)
def test_requests_that_can_never_be_served(idle: RenderService, changes: dict[str, object], code: str) -> None:
    """What can never be rendered is refused at submit, and nothing is recorded or stored."""
    with pytest.raises(InvalidRequestError) as refused:
        idle.submit(b"RIFF", **{"scene": "fake", **changes})  # type: ignore[arg-type]
    assert refused.value.code == code
    assert idle.jobs().items == ()
    assert list(idle._engine.parts.storage.list("")) == []


def test_near_names_are_told(idle: RenderService) -> None:
    """A refusal of a name holds the near ones."""
    with pytest.raises(UnknownNameError, match="bars"):
        idle.submit(b"RIFF", scene="brs")
    with pytest.raises(UnknownNameError, match="flat-1080p-square"):
        idle.submit(b"RIFF", scene="fake", output="flat-1080-square")


@pytest.mark.parametrize(
    ("audio", "code"),
    [
        ("song.wav", "audio.invalid"),
        (None, "audio.invalid"),
        (7, "audio.invalid"),
        (b"", "audio.empty"),
        pytest.param(io.BytesIO(), "audio.empty", id="an empty file"),
        pytest.param(io.StringIO("text"), "audio.invalid", id="text"),
        (Path("/no/such/song.wav"), "audio.missing"),
        (Path("/tmp"), "audio.directory"),
        (Path("/dev/null"), "audio.invalid"),
        (Path("nul\0"), "audio.invalid"),
        (Path("x" * 5000), "audio.invalid"),
        (AudioUrl("https://example.com/song.wav?signature=do-not-tell"), "audio.url-unsupported"),
        (StorageKey("no/such/key"), "audio.missing"),
        (StorageKey("tenants/acme/song.wav"), "audio.denied"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("worker", [True, False])
def test_audio_that_is_none(audio: AudioSource, code: str, worker: bool) -> None:
    """What is no audio is refused with a code, and leaves neither a job nor an object."""
    backend, storage = InlineBackend({"fake": FakeRenderer()}), MemoryStorage()
    with RenderService(MemoryJobStore(), storage, backend, worker=worker) as service:
        with pytest.raises(InvalidRequestError) as refused:
            service.submit(audio, scene="fake", idempotency_key="key")
        assert refused.value.code == code
        assert "do-not-tell" not in str(refused.value)
        assert service.jobs().items == ()
    assert list(storage.list("")) == []


def test_an_empty_file(idle: RenderService, tmp_path: Path) -> None:
    """An empty file is refused by its path."""
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InvalidRequestError) as refused:
        idle.submit(tmp_path / "empty.wav", scene="fake")
    assert refused.value.code == "audio.empty"


def test_a_file_without_permission(idle: RenderService, song: Path) -> None:
    """A file that this user may not read is refused."""
    song.chmod(0)
    try:
        if os.geteuid() == 0:  # root may read everything: look as somebody else
            song.parent.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(InvalidRequestError) as refused:
            idle.submit(song, scene="fake")
    finally:
        os.seteuid(os.getuid())
    assert refused.value.code in {"audio.denied", "audio.missing"}


def test_a_path_is_left_to_a_worker_of_this_machine(idle: RenderService, song: Path) -> None:
    """With a worker here a path is recorded, not read; without one it is streamed before `submit` returns."""
    streamed = idle.submit(song, scene="fake").job.request.audio
    assert isinstance(streamed, StoredAudio) and streamed.sha256 is not None
    song.unlink()
    storage = idle._engine.parts.storage
    assert storage.stat(streamed.key).size == streamed.size


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes no file name that is not UTF-8")
def test_a_file_whose_name_is_no_text(embedded_service: RenderService, tmp_path: Path) -> None:
    """A path that no record can hold is read at submit, also where a worker is here, and renders like any other."""
    song = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    song.write_bytes(b"RIFF, a song")
    handle = embedded_service.submit(song, scene="fake", output=TINY)
    assert handle.wait(timeout=30).status is JobStatus.COMPLETE


def test_only_workers_of_that_machine_claim_it(song: Path) -> None:
    """A job whose audio lies on a machine waits for a worker of that machine."""
    store, storage = MemoryJobStore(), MemoryStorage()
    backend = InlineBackend({"fake": FakeRenderer()})
    job = store.create(left_on("elsewhere", song))
    here = RenderService(store, storage, backend, machine="here")
    for _ in range(3):
        here.tick()
    assert here.get(job.id).status is JobStatus.PENDING
    there = RenderService(store, storage, backend, machine="elsewhere")
    tick_to_the_end(there, job.id)
    assert here.get(job.id).status is JobStatus.COMPLETE
    here.close()
    there.close()
    backend.close()


def left_on(machine: str, song: Path) -> Job:
    """Return a job whose audio lies on a machine, as `submit` of a path makes it."""
    found = song.stat()
    audio = LocalAudio(path=str(song), machine=machine, size=found.st_size, mtime_ns=found.st_mtime_ns)
    return make_job(request=make_request(audio=audio, scene="fake", backend="default"))


@pytest.mark.parametrize("change", ["modified", "touched", "vanished", "directory"])
def test_a_file_that_changed_since_submit(song: Path, change: str) -> None:
    """A file that is not the submitted one any more fails the job as ``audio.changed``, without another attempt."""
    backend, store = InlineBackend({"fake": FakeRenderer()}), MemoryJobStore()
    service = RenderService(store, MemoryStorage(), backend, machine="here", worker=False)
    handle = service.handle(store.create(left_on("here", song)).id)
    match change:
        case "modified":
            song.write_bytes(b"another song")
        case "touched":
            os.utime(song, ns=(1, 1))
        case "vanished":
            song.unlink()
        case _:
            song.unlink()
            song.mkdir()
    tick_to_the_end(service, handle.id)
    job = handle.job
    assert job.error is not None
    assert (job.error.code, len(job.attempts)) == ("audio.changed", 1)
    service.close()
    backend.close()


# --- idempotency (J9)


def test_j9_the_same_key_is_the_same_job(service: RenderService, song: Path) -> None:
    """The same key gives the same job back, while it runs and after its end."""
    first = service.submit(song, scene="fake", output=TINY, idempotency_key="order-7")
    again = service.submit(song, scene="fake", output=TINY, idempotency_key="order-7")
    assert first.id == again.id
    first.wait(timeout=30)
    assert service.submit(song, scene="fake", output=TINY, idempotency_key="order-7").id == first.id
    assert len(service.jobs().items) == 1


def test_j9_another_request_is_a_conflict(idle: RenderService) -> None:
    """The same key with anything else asked for is refused; the job stays as it is."""
    idle.submit(b"RIFF", scene="fake", idempotency_key="k")
    for changes in ({"params": {"a": 1}}, {"start": 1.0}, {"limits": Limits(max_attempts=1)}, {"metadata": {"a": 1}}):
        with pytest.raises(IdempotencyConflictError):
            idle.submit(b"RIFF", scene="fake", idempotency_key="k", **changes)
    with pytest.raises(IdempotencyConflictError):
        idle.submit(b"another", scene="fake", idempotency_key="k")
    assert idle.submit(io.BytesIO(b"RIFF"), scene="fake", idempotency_key="k").id
    assert len(idle.jobs().items) == 1


def test_j9_at_once(idle: RenderService) -> None:
    """Of several submits with one key at once, all get the one job, and one copy of the audio is kept."""
    ids = in_threads(8, lambda _: idle.submit(b"RIFF", scene="fake", idempotency_key="k").id)
    assert len(set(ids)) == 1
    assert len(idle.jobs().items) == 1
    assert len(list(idle._engine.parts.storage.list(""))) == 1


def test_j9_keys_belong_to_tenants(idle: RenderService) -> None:
    """Two tenants may use the same key; pairs that would run together do not."""
    ids = {
        service.submit(b"RIFF", scene="fake", idempotency_key=key).id
        for service, key in [
            (idle, "k"),
            (idle.for_tenant("a"), "k"),
            (idle.for_tenant("b"), "k"),
            (idle.for_tenant("a"), "bk"),
            (idle.for_tenant("ab"), "k"),
        ]
    }
    assert len(ids) == 5


def test_j9_whatever_a_route_chooses() -> None:
    """A key holds although the route chooses another backend each time; another one that is named is a conflict."""
    turns = itertools.cycle(["a", "b"])
    backends = {name: InlineBackend({"fake": FakeRenderer()}) for name in ("a", "b")}
    service = RenderService(
        MemoryJobStore(), MemoryStorage(), backends, route=lambda _request: next(turns), worker=False
    )
    first = service.submit(b"RIFF", scene="fake", idempotency_key="k")
    assert service.submit(b"RIFF", scene="fake", idempotency_key="k").id == first.id
    assert service.submit(b"RIFF", scene="fake", idempotency_key="k", backend="a").id == first.id
    with pytest.raises(IdempotencyConflictError):
        service.submit(b"RIFF", scene="fake", idempotency_key="k", backend="b")
    assert [job.request.backend for job in service.jobs().items] == ["a"]
    service.close()


class Forgetful(MemoryJobStore):
    """Its first create stands, but the answer is lost."""

    lost = False

    def create(self, job: Job) -> Job:
        stored = super().create(job)
        if not self.lost:
            self.lost = True
            raise StoreUnavailableError("the answer was lost")
        return stored


def test_j9_after_a_create_whose_answer_was_lost() -> None:
    """A second submit with the key gives the job that stands all the same, and it completes: its audio was kept."""
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(Forgetful(), MemoryStorage(), backend, worker=False, owned=[backend])
    with pytest.raises(StoreUnavailableError):
        service.submit(b"RIFF", scene="fake", idempotency_key="k")
    handle = service.submit(b"RIFF", scene="fake", idempotency_key="k")
    tick_to_the_end(service, handle.id)
    assert (handle.job.status, handle.job.error) == (JobStatus.COMPLETE, None)
    assert len(service.jobs().items) == 1
    service.close()


# --- tenants


def test_tenants_see_their_own(idle: RenderService) -> None:
    """A tenant sees, changes and reads its own jobs and objects alone."""
    acme, other = idle.for_tenant("acme"), idle.for_tenant("other")
    handle = acme.submit(b"RIFF", scene="fake")
    for call in (other.get, other.poll, other.cancel, other.retry, other.delete, other.download_url):
        with pytest.raises(JobNotFoundError):
            call(handle.id)
    assert other.jobs().items == () and other.counts()[JobStatus.PENDING] == 0
    assert acme.counts()[JobStatus.PENDING] == 1
    tick_to_the_end(idle, handle.id)
    key = acme.poll(handle.id).result.video_key  # type: ignore[union-attr]
    assert key.startswith("tenants/acme/")
    for stranger in (other, idle):
        with pytest.raises(ObjectNotFoundError):
            stranger.open_object(key)
        with pytest.raises(InvalidRequestError) as refused:
            stranger.submit(StorageKey(key), scene="fake")
        assert refused.value.code == "audio.denied"
    assert acme.submit(StorageKey(key), scene="fake").job.tenant == "acme"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x" * 40, ".hidden", "é"])
def test_names_that_are_no_tenants(idle: RenderService, name: str) -> None:
    """A tenant's name cannot leave its folder."""
    with pytest.raises(InvalidRequestError):
        idle.for_tenant(name)


# --- retry and delete


def test_retry_is_a_new_job(idle: RenderService) -> None:
    """A failed job is tried again as a new one, with audio of its own, in the tenant of the old one."""
    acme = idle.for_tenant("acme")
    failed = acme.submit(b"RIFF", scene="fake", params={"fail": "no"}, priority=3)
    tick_to_the_end(idle, failed.id)
    again = idle.retry(failed.id)  # by the service without tenants, which sees them all
    job = again.job
    assert (job.retry_of, job.tenant, job.priority, job.attempts) == (failed.id, "acme", 3, ())
    acme.delete(failed.id)
    tick_to_the_end(idle, again.id)
    assert acme.poll(again.id).error is not None
    assert acme.poll(again.id).error.message == "no"  # type: ignore[union-attr]


def test_retry_of_what_did_not_fail(idle: RenderService) -> None:
    """A job that runs, or is complete, cannot be tried again."""
    handle = idle.submit(b"RIFF", scene="fake")
    with pytest.raises(InvalidRequestError) as refused:
        handle.retry()
    assert refused.value.code == "job.not-retryable"
    tick_to_the_end(idle, handle.id)
    with pytest.raises(InvalidRequestError):
        handle.retry()


def test_delete_leaves_nothing(service: RenderService, song: Path) -> None:
    """A deleted job is not found any more, and none of its objects stands; a running one is not deleted."""
    handle = service.submit(song, scene="fake", output=TINY, params=LONG)
    with pytest.raises(InvalidRequestError) as refused:
        service.delete(handle.id)
    assert refused.value.code == "job.running"
    handle.cancel()
    handle.wait(timeout=30)
    service.delete(handle.id)
    with pytest.raises(JobNotFoundError):
        service.get(handle.id)
    with pytest.raises(JobNotFoundError):
        service.delete(handle.id)
    eventually(lambda: list(service._engine.parts.storage.list("jobs/")) == [])
    assert song.exists()


def test_a_late_delete_leaves_a_later_job_alone(idle: RenderService, song: Path) -> None:
    """A delete that read the deleted job does not touch the job that has its idempotency key since."""
    first = idle.submit(b"RIFF", scene="fake", idempotency_key="k")
    ended = evolve(first.cancel(), audio_clean_up=CleanUp.OWED)
    idle.delete(first.id)
    later = idle.submit(b"RIFF", scene="fake", idempotency_key="k")
    with pytest.raises(JobNotFoundError):
        idle._engine.delete(ended)
    with pytest.raises(JobNotFoundError):
        idle.delete(first.id, incarnation=ended.incarnation)
    assert later.job.status is JobStatus.PENDING
    assert [info.key for info in idle._engine.parts.storage.list("jobs/")] != []


def test_a_local_files_copy_goes_with_the_job(service: RenderService, song: Path) -> None:
    """The stored copy of a local file is dropped once the job has ended; its video stays."""
    handle = service.submit(song, scene="fake", output=TINY)
    handle.wait(timeout=30)
    eventually(lambda: handle.job.audio is None)
    keys = [info.key for info in service._engine.parts.storage.list("")]
    assert [key.rpartition("/")[2] for key in keys] == ["result.json", "video.mp4"]


# --- waiting


def test_wait_and_its_timeout(memory_service: RenderService) -> None:
    """A wait that runs out leaves the job going; one without end returns the ended job."""
    handle = memory_service.submit(b"RIFF", scene="fake", params=LONG)
    for timeout in (0, 0.05, timedelta(milliseconds=50)):
        with pytest.raises(WaitTimeoutError):
            handle.wait(timeout=timeout)
    with pytest.raises(JobNotCompleteError):
        handle.download_url()
    handle.cancel()
    assert handle.wait().status is JobStatus.CANCELLED
    with pytest.raises(JobCancelledError):
        handle.download_url()


def test_watch(memory_service: RenderService) -> None:
    """Watching yields each state that shows once, and ends with the job."""
    handle = memory_service.submit(b"RIFF", scene="fake", params={"frames": 40, "frame_s": 0.01})
    jobs = list(handle.watch(timeout=30))
    assert jobs[-1].ended and not any(job.ended for job in jobs[:-1])
    shown = [(j.status, j.stage, j.progress, j.attempt and j.attempt.frames) for j in jobs]
    assert len(set(shown)) == len(shown)
    assert [j.revision for j in jobs] == sorted(j.revision for j in jobs)
    with pytest.raises(WaitTimeoutError):
        list(memory_service.submit(b"RIFF", scene="fake", params=LONG).watch(timeout=0.05))


# --- life


def test_constructing_starts_no_thread() -> None:
    """A service that was only made has no thread; `start`, ``with`` or the first submit start them once."""
    before = set(threading.enumerate())
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend)
    assert set(threading.enumerate()) <= before  # others may end meanwhile
    service.start()
    service.start()
    names = ["renderdispatch-leases", "renderdispatch-reconciler", "renderdispatch-worker"]
    started = [thread.name for thread in set(threading.enumerate()) - before]
    assert sorted(name for name in started if name in names) == names  # those that work in lanes come and go
    service.close()
    service.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("thread", ["worker", "reconciler", "leases"])
def test_a_worker_for_which_there_was_no_room(thread: str, refuse_thread: Callable[[str], None]) -> None:
    """A thread that could not be started is started by the next call; `submit` returns the job, which waits for it."""
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend])
    refuse_thread(f"renderdispatch-{thread}")
    first = service.submit(b"RIFF", scene="fake")
    assert "renderdispatch-worker" not in {t.name for t in threading.enumerate()}
    again = service.submit(b"RIFF", scene="fake")
    assert [handle.wait(timeout=30).status for handle in (first, again)] == [JobStatus.COMPLETE] * 2
    refuse_thread(f"renderdispatch-{thread}")
    other = RenderService(MemoryJobStore(), MemoryStorage(), backend)
    with pytest.raises(RuntimeError, match="thread"):
        other.start()
    other.close()
    service.close()


def test_a_closed_service(idle: RenderService) -> None:
    """A closed service takes nothing more, and records nothing."""
    store = idle._engine.parts.store
    idle.close()
    for call in (lambda: idle.submit(b"RIFF", scene="fake"), idle.tick):
        with pytest.raises(ConfigurationError):
            call()
    assert store.query(JobQuery()).items == ()


def test_parts_that_do_not_fit() -> None:
    """A storage that the backend cannot reach, no backend, or a lease of nothing are refused at once."""
    with pytest.raises(ConfigurationError, match="FsspecStorage"):
        RenderService(MemoryJobStore(), MemoryStorage(), LocalGpuBackend())
    with pytest.raises(ConfigurationError):
        RenderService(MemoryJobStore(), MemoryStorage(), {})
    with pytest.raises(ConfigurationError):
        RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(), lease=timedelta(0))


def test_a_route_chooses(song: Path) -> None:
    """A route picks the backend of requests that name none; a wrong name is refused."""
    backends = {name: InlineBackend({"fake": FakeRenderer()}) for name in ("a", "b")}
    chosen = ["b"]
    with RenderService(MemoryJobStore(), MemoryStorage(), backends, route=lambda _request: chosen[0]) as service:
        handle = service.submit(song, scene="fake")
        assert handle.job.request.backend == "b"
        assert service.submit(song, scene="fake", backend="a").job.request.backend == "a"
        chosen[0] = "c"
        with pytest.raises(UnknownNameError):
            service.submit(song, scene="fake")
        handle.wait(timeout=10)


def test_jobs_follow_each_other(embedded_service: RenderService) -> None:
    """With one slot, jobs go one after the other at their first attempt: none meets a slot that is still taken."""
    handles = [embedded_service.submit(b"RIFF", scene="fake", output=TINY) for _ in range(4)]
    jobs = [handle.wait(timeout=60) for handle in handles]
    assert [(job.status.value, len(job.attempts)) for job in jobs] == [("complete", 1)] * 4


# --- secrets


def test_secrets_stay_secret(service: RenderService, song: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No signed URL and no token in logs, reprs, polls (but ``downloadUrl``) or errors; no URL in the record."""
    caplog.set_level(logging.DEBUG)
    good = service.submit(song, scene="fake", output=TINY)
    bad = service.submit(song, scene="fake", output=TINY, params={"fail": "no"})
    for handle in (good, bad):
        job = handle.wait(timeout=60)
        tokens = [a.token for a in job.attempts]
        told = [caplog.text, repr(job), repr(handle), repr(handle.poll()), repr(service)]
        for text in told:
            without_keys = text.replace("/", " ")
            assert "memory://" not in text and "file://" not in text and "signature=" not in text
            if text is not caplog.text:
                assert not any(f"token='{token}'" in without_keys for token in tokens)
        assert "memory://" not in dump_job(job) and "file://" not in dump_job(job)
        body = handle.poll().model_copy(update={"download_url": None}).to_json()
        assert "memory://" not in body and "file://" not in body


def test_a_wait_can_be_interrupted(memory_service: RenderService) -> None:
    """Ctrl-C ends a wait at once; the job goes on."""
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
    handle = memory_service.submit(b"RIFF", scene="fake", params=LONG)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            handle.wait(timeout=20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 5
    assert not handle.job.ended


def test_a_later_job_of_the_same_id_is_not_touched(idle: RenderService) -> None:
    """Each life of an idempotency key has keys of its own; a delete removes the objects of the life that it read."""
    storage = idle._engine.parts.storage

    def render() -> Job:
        handle = idle.submit(b"RIFF", scene="fake", output=TINY, idempotency_key="once")
        tick_to_the_end(idle, handle.id)
        return handle.job

    first = render()
    old = {info.key for info in storage.list("jobs/")}
    assert all(key.startswith(f"jobs/{first.id}/{first.incarnation}/") for key in old)
    read_before = first
    idle.delete(first.id)
    assert list(storage.list("jobs/")) == []

    second = render()
    assert second.id == first.id and second.incarnation != first.incarnation
    standing = {info.key for info in storage.list("jobs/")}
    assert not standing & old
    storage.delete_prefix(layout.prefix_of(read_before))
    assert {info.key for info in storage.list("jobs/")} == standing
    with pytest.raises(JobNotFoundError):
        commit(idle._engine.parts.store, read_before, CancelRequested())


def test_a_lost_race_leaves_the_winners_audio(idle: RenderService) -> None:
    """Of two submits with one key, the one that comes second removes its own audio and no other."""
    handles = in_threads(4, lambda _: idle.submit(b"RIFF", scene="fake", output=TINY, idempotency_key="once"))
    job = handles[0].job
    assert {handle.id for handle in handles} == {job.id}
    assert isinstance(job.request.audio, StoredAudio)
    assert [info.key for info in idle._engine.parts.storage.list("jobs/")] == [job.request.audio.key]
    assert job.request.audio.key.startswith(f"jobs/{job.id}/{job.incarnation}/")

"""Does every failure wait for the bucket, no order or deadline for I/O, and does each effect keep to its own job?"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import JobStatus, Limits, RenderService, Stage
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine import layout
from renderdispatch.engine.commit import commit, forget
from renderdispatch.engine.events import AudioStored, Claimed, LeaseLapsed, ResultMissing
from renderdispatch.engine.records import dump_job
from renderdispatch.engine.rules import MAX_RUNS, MAX_UNCOUNTED
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import BackendError, JobNotFoundError
from renderdispatch.jobs import CleanUp
from renderdispatch.messages import (
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    JobError,
    RemoteAudio,
    RenderEvent,
    RenderOrder,
    StoredAudio,
)
from renderdispatch.protocols import BackendCall, CallState, CallStatus, JobStore, OnEvent
from renderdispatch.runner import InProcessRender, RunnerIO, run_order
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeClock, FakeRenderer, eventually, make_artifact, make_job, make_request
from renderdispatch.testing.world import (
    PACE,
    FindingRemote,
    Paused,
    Remote,
    SilentStorage,
    SlowStorage,
    Stuck,
    World,
    event_of,
    keep_time,
    outlast_leases,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
LIMITS = Limits(total_timeout=HOUR, start_timeout=timedelta(minutes=10), max_attempts=1)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="renderdispatch")


@pytest.fixture
def storage() -> SilentStorage:
    return SilentStorage()


@pytest.fixture
def world(storage: SilentStorage) -> Iterator[World]:
    world = World(FindingRemote(), storage)
    yield world
    world.service.close()


def lost(code: str = "gpu.lost") -> JobError:
    return JobError(code=code, message="lost", fault=FaultDomain.INFRASTRUCTURE)


def deliver(world: World, order: RenderOrder, run_id: str = "run-1") -> None:
    """Store a video and its result object, as a run does whose reports are lost."""
    world.storage.put(order.video.key, b"video")
    artifact = make_artifact(key=order.video.key, bytes=5, etag=None)
    done = event_of(order, Completed, run_id, artifact=artifact)
    world.storage.put(order.result.key, done.model_dump_json().encode())


# --- J14: orders and deadlines never wait behind I/O


def test_j14_a_cancel_reaches_the_backend_while_storage_is_silent(world: World, storage: SilentStorage) -> None:
    """Storage that cannot be read keeps no cancel from the backend, and its confirmation ends the job."""
    job_id = world.submit()
    world.tick()
    storage.silent = True
    world.service.cancel(job_id)
    world.tick()
    assert world.backend.cancelled == ["call-1"]
    job = world.job(job_id)
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is not None


def test_j14_a_deadline_stops_the_render_while_storage_is_silent(world: World, storage: SilentStorage) -> None:
    """At the deadline the backend is told at once; the job fails an hour later, for it may have been delivered."""
    job_id = world.submit(limits=LIMITS)
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    storage.silent = True
    world.clock.advance(HOUR + timedelta(minutes=2))
    world.tick()
    assert world.backend.cancelled == ["call-1"]
    assert not world.job(job_id).ended
    world.clock.advance(HOUR)
    world.tick()
    job = world.job(job_id)
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "deadline.total")


def test_j14_a_silent_backend_keeps_no_delivery_and_no_deadline(world: World) -> None:
    """A backend that raises whatever it is asked fails only what needs it: the result object completes the job."""
    world.backend.poll = world.backend.cancel = _raising(KeyError("odd"))  # type: ignore[method-assign]
    delivered, forgotten = world.submit(limits=LIMITS), world.submit(limits=LIMITS)
    world.tick()
    deliver(world, next(order for order in world.backend.orders if order.job_id == delivered))
    world.clock.advance(HOUR + timedelta(minutes=2))
    world.tick()
    assert world.job(delivered).status is JobStatus.COMPLETE
    assert world.job(forgotten).status is JobStatus.FAILED


# --- J6, J7: the verdict, and its end


def _by_the_deadline(world: World) -> None:
    world.clock.advance(HOUR + timedelta(minutes=2))


def _by_the_start_deadline(world: World) -> None:
    world.clock.advance(timedelta(minutes=12))


def _by_the_backend(world: World) -> None:
    world.backend.states["call-1"] = CallState(status=CallStatus.ENDED, error=lost())
    world.clock.advance(20 * SECOND)


def _by_the_missing_call(world: World) -> None:
    world.backend.states.clear()
    world.clock.advance(20 * SECOND)


def _by_one_of_two_runs(world: World) -> None:
    order = world.backend.orders[0]
    for run_id in ("run-1", "run-2"):
        world.send(event_of(order, CheckedIn, run_id))
    world.send(event_of(order, Failed, "run-2", error=lost("memory.full")))


def _by_a_crash_loop(world: World) -> None:
    for number in range(MAX_RUNS + 1):
        world.send(event_of(world.backend.orders[0], CheckedIn, f"run-{number}"))


_WAYS = [
    _by_the_deadline,
    _by_the_start_deadline,
    _by_the_backend,
    _by_the_missing_call,
    _by_one_of_two_runs,
    _by_a_crash_loop,
]


@pytest.mark.parametrize("fail", _WAYS)
def test_j6_a_delivered_attempt_does_not_fail(world: World, fail: Callable[[World], None]) -> None:
    """By whichever way a failure comes, the bucket is asked first: what stands there completes the job, and stays."""
    job_id = world.submit(limits=LIMITS)
    world.tick()
    order = world.backend.orders[0]
    deliver(world, order)
    fail(world)
    world.tick()
    world.clock.advance(timedelta(minutes=5))
    world.tick(3)
    assert world.job(job_id).status is JobStatus.COMPLETE
    assert world.storage.stat(order.video.key).size == 5


@pytest.mark.parametrize("fail", _WAYS)
def test_j6_a_verdict_outlasts_a_storage_that_is_silent_for_a_while(
    world: World, storage: SilentStorage, fail: Callable[[World], None]
) -> None:
    """While storage does not respond, the verdict waits, and runs are told to stop; then the delivery completes it."""
    job_id = world.submit(limits=LIMITS)
    world.tick()
    order = world.backend.orders[0]
    deliver(world, order)
    storage.silent = True
    fail(world)
    world.tick(3)
    job = world.job(job_id)
    assert not job.ended and job.status is JobStatus.PROCESSING
    assert world.send(event_of(order, CheckedIn, "late")).reply.stop
    storage.silent = False
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


@pytest.mark.parametrize("fail", _WAYS)
def test_j6_an_attempt_that_delivered_nothing_fails(world: World, fail: Callable[[World], None]) -> None:
    """Where no result object stands, the failure takes effect in the same round."""
    job_id = world.submit(limits=LIMITS)
    world.tick()
    fail(world)
    world.tick()
    assert world.job(job_id).status is JobStatus.FAILED


def test_j6_the_webhook_never_asks_the_bucket(world: World, storage: SilentStorage) -> None:
    """The handler of reports answers while storage is silent, and does not touch it."""
    world.submit(limits=LIMITS)
    world.tick()
    storage.open = storage.stat = _raising(AssertionError("asked"))  # type: ignore[method-assign]
    _by_one_of_two_runs(world)


def test_j6_a_lapsed_holder_that_delivered_has_delivered() -> None:
    """A worker that died after its delivery costs no second render, also if storage is silent at first."""
    clock = FakeClock(datetime.now(UTC))
    store, storage, stuck = MemoryJobStore(clock=clock), SilentStorage(), Stuck()
    dead = RenderService(store, storage, stuck, worker=False)
    handle = dead.submit(b"RIFF", scene="fake")
    dead.tick()
    render_late(stuck.orders[0])
    storage.silent = True
    alive = RenderService(store, storage, Stuck(), worker=False)
    outlast_leases(alive, clock)
    alive.tick()
    assert not handle.job.ended and handle.job.attempt_number == 1
    storage.silent = False
    for _ in range(3):
        clock.advance(SECOND)
        alive.tick()
    assert (handle.job.status, handle.job.attempt_number) == (JobStatus.COMPLETE, 1)


def test_j8_a_cancel_ends_what_a_lost_holder_left() -> None:
    """A job whose holder is gone, and which waits for storage alone, is cancelled at once: nothing could confirm it."""
    clock = FakeClock(datetime.now(UTC))
    store, storage = MemoryJobStore(clock=clock), SilentStorage()
    dead = RenderService(store, storage, Stuck(), worker=False)
    handle = dead.submit(b"RIFF", scene="fake")
    dead.tick()
    storage.silent = True
    alive = RenderService(store, storage, Stuck(), worker=False)
    outlast_leases(alive, clock)
    alive.tick()
    assert not handle.job.ended and handle.job.attempts[0].verdict is not None
    job = alive.cancel(handle.id)
    assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, None)
    assert job.owes_clean_up


def test_j7_a_delivery_that_is_never_seen_ends_and_is_kept(world: World, storage: SilentStorage) -> None:
    """``finalizing`` ends an hour after the deadline as ``artifact.unseen``; its objects stay until `delete`."""
    job_id = world.submit(limits=LIMITS)
    world.tick()
    order = world.backend.orders[0]
    deliver(world, order)
    world.send(event_of(order, CheckedIn))
    world.send(event_of(order, Completed, artifact=make_artifact(bytes=5, etag=None)))
    storage.silent = True
    world.clock.advance(2 * HOUR - SECOND)
    world.tick()
    assert world.job(job_id).stage is Stage.FINALIZING and not world.job(job_id).ended
    world.clock.advance(SECOND)
    world.tick()
    job = world.job(job_id)
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "artifact.unseen")
    storage.silent = False
    world.clock.advance(24 * HOUR)
    world.tick(3)
    assert storage.stat(order.video.key).size == 5
    world.service.delete(job_id)
    assert not list(storage.list("jobs/"))


# --- J2: unknown is not failed


class _Unfinished(BackendError):
    def __init__(self) -> None:
        """Say nothing of the outcome."""


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


_ODD_STARTS: list[Any] = [
    TimeoutError("read timed out"),
    asyncio.CancelledError(),
    _Unfinished(),
    ValueError("https://example.com/?secret"),
    None,
    "call-1",
    BackendCall(7),  # type: ignore[arg-type]
    BackendCall(""),
    BackendCall("x" * 5000),
    BackendCall("\ud800"),
]


class _OddStart(Remote):
    """Starts each order, then raises or returns what it was given."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        super().start(order, on_event=on_event)
        if isinstance(self.result, BaseException):
            raise self.result
        call: BackendCall = self.result
        return call


@pytest.mark.parametrize("result", _ODD_STARTS, ids=repr)
def test_j2_a_start_that_says_nothing_is_unknown(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a start raises or returns, its render may run: no second one begins before the start deadline."""
    caplog.set_level(logging.WARNING, logger="renderdispatch")
    world = World(_OddStart(result))
    job_id = world.submit(limits=Limits(start_timeout=HOUR))
    for _ in range(5):
        world.tick()
        world.clock.advance(timedelta(minutes=10))
    assert (len(world.backend.orders), world.job(job_id).stage) == (1, Stage.DISPATCHED)
    world.render(world.backend.orders[0])
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE
    assert "secret" not in caplog.text
    world.service.close()


def test_j2_a_local_start_that_says_nothing_ends_with_its_lease() -> None:
    """A start on this machine whose outcome is not known is superseded when its lease has lapsed, not before."""

    class Odd(Stuck):
        def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
            super().start(order, on_event=on_event)
            raise OSError("odd")

    clock, backend = FakeClock(datetime.now(UTC)), Odd()
    service = RenderService(MemoryJobStore(clock=clock), MemoryStorage(), backend, worker=False)
    handle = service.submit(b"RIFF", scene="fake")
    keep_time(service, clock)
    for _ in range(4):
        service.tick()
        clock.advance(9 * SECOND)
    assert len(backend.orders) == 1
    service.tick()
    assert handle.job.attempts[0].error is not None
    assert handle.job.attempts[0].error.code == "worker.lost"
    service.close()


_NONSENSE: list[Any] = [
    KeyError("odd"),
    asyncio.CancelledError(),
    None,
    {"status": "running"},
    CallState(status="ended"),  # type: ignore[arg-type]
    CallState(status=CallStatus.ENDED, outcome="done"),  # type: ignore[arg-type]
    CallState(status=CallStatus.ENDED, error=ValueError("odd")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("result", _NONSENSE, ids=repr)
@pytest.mark.parametrize("asked", ["poll", "cancel", "find"])
def test_j2_a_strange_backend_harms_no_other_job(asked: str, result: Any) -> None:
    """Whatever a poll, a cancel or a find raises or returns, it says nothing of its job, and the others go on."""
    world = World(FindingRemote())
    jobs = [world.submit(limits=LIMITS) for _ in range(3)]
    world.tick()
    odd = next(n for n, order in enumerate(world.backend.orders, 1) if order.job_id == jobs[0])
    regular = getattr(world.backend, asked)

    def strange(*args: Any, **kwargs: Any) -> Any:
        if args != (BackendCall(f"call-{odd}"),) and kwargs.get("job_id") != jobs[0]:
            return regular(*args, **kwargs)
        if isinstance(result, BaseException):
            raise result
        return result

    setattr(world.backend, asked, strange)
    world.service.cancel(jobs[1])
    deliver(world, next(order for order in world.backend.orders if order.job_id == jobs[2]))
    world.clock.advance(20 * SECOND)
    world.tick()
    assert [world.job(job_id).status for job_id in jobs] == [
        JobStatus.PROCESSING,
        JobStatus.CANCELLED,
        JobStatus.COMPLETE,
    ]
    world.clock.advance(HOUR + timedelta(minutes=2))
    world.tick()
    assert world.job(jobs[0]).status is JobStatus.FAILED
    world.service.close()


def test_j2_a_local_backend_that_answers_nonsense_harms_no_other_backend() -> None:
    """A poll that returns nonsense keeps its own slot; renders of another backend of the process go on."""

    class Odd(Stuck):
        state: Any = None
        cancel = _raising(KeyError("odd"))

        def poll(self, call: BackendCall) -> CallState:
            state: CallState = self.state
            return state

    odd, good = Odd(), InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    with RenderService(MemoryJobStore(), MemoryStorage(), {"odd": odd, "good": good}, owned=[good]) as service:
        stuck = service.submit(b"RIFF", scene="fake", backend="odd")
        eventually(lambda: stuck.job.stage is Stage.DISPATCHED)
        stuck.cancel()
        for _ in range(2):
            job = service.submit(b"RIFF", scene="fake", backend="good").wait(timeout=30)
            assert job.status is JobStatus.COMPLETE
        odd.state = CallState(status=CallStatus.ENDED)
        assert stuck.wait(timeout=30).status is JobStatus.CANCELLED


@pytest.mark.parametrize("number", [KeyError("odd"), "4", True, 2.5], ids=repr)
def test_j2_a_backend_without_a_number_of_slots_harms_no_other_backend(number: Any) -> None:
    """A backend that raises for its slots, or returns nonsense, gets no orders; the jobs of others are started."""

    class Odd(Remote):
        @property
        def slots(self) -> Any:  # type: ignore[override]
            if isinstance(number, Exception):
                raise number
            return number

    odd, good = Odd(), Remote()
    service = RenderService(MemoryJobStore(), SilentStorage(), {"odd": odd, "good": good}, worker=False)
    jobs = [service.submit(b"RIFF", scene="fake", backend=name) for name in ("odd", "good")]
    service.tick()
    assert [handle.job.stage for handle in jobs] == [Stage.QUEUED, Stage.DISPATCHED]
    service.close()


# --- J15: effects name what was read


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    store: JobStore = (
        MemoryJobStore() if request.param == "memory" else SqlJobStore(f"sqlite:///{tmp_path / 'jobs.db'}")
    )
    yield store
    store.close()


class _SlowDelete(MemoryStorage):
    """A storage whose deletes by prefix wait in the thread ``slow`` until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.let_go = threading.Event(), threading.Event()

    def delete_prefix(self, prefix: str) -> int:
        if threading.current_thread().name == "slow":
            self.reached.set()
            assert self.let_go.wait(30)
        return super().delete_prefix(prefix)


def test_j15_a_late_delete_leaves_the_next_job_of_the_key_alone(store: JobStore) -> None:
    """A delete that is repeated, and overtaken by a new submit with the same key, removes nothing of the new job."""
    storage = _SlowDelete()
    service = RenderService(store, storage, Stuck(), worker=False)
    first = service.submit(b"RIFF", scene="fake", idempotency_key="order-1")
    first.cancel()
    late = threading.Thread(target=service.delete, args=[first.id], name="slow")
    late.start()
    assert storage.reached.wait(30)
    service.delete(first.id)
    second = service.submit(b"RIFF", scene="fake", idempotency_key="order-1")
    assert second.id == first.id
    storage.let_go.set()
    late.join()
    assert isinstance(second.job.request.audio, StoredAudio)
    assert storage.stat(second.job.request.audio.key).size == 4
    service.close()


def test_j15_a_delete_that_is_overtaken_by_a_clean_up_is_done(store: JobStore) -> None:
    """A record that changed since it was read, but is the same job's, is deleted all the same."""
    service = RenderService(store, MemoryStorage(), Stuck(), worker=False)
    handle = service.submit(b"RIFF", scene="fake")
    read = handle.cancel()
    store.replace(read, expected_revision=read.revision)
    forget(store, read)
    with pytest.raises(JobNotFoundError):
        _ = handle.job
    service.close()


def test_j15_a_crash_in_a_delete_leaves_what_a_second_one_finds(store: JobStore) -> None:
    """The record goes last: if the objects cannot be removed, it stays, and the delete can be repeated."""
    storage = MemoryStorage()
    service = RenderService(store, storage, Stuck(), worker=False)
    handle = service.submit(b"RIFF", scene="fake")
    handle.cancel()
    remove, storage.delete_prefix = storage.delete_prefix, _raising(OSError("gone"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        service.delete(handle.id)
    storage.delete_prefix = remove  # type: ignore[method-assign]
    service.delete(handle.id)
    assert list(storage.list("")) == []
    service.close()


@pytest.mark.parametrize("again", [False, True])
def test_j15_audio_that_comes_back_after_a_delete_is_removed(tmp_path: Path, again: bool) -> None:
    """An upload that ends when its job is deleted leaves nothing behind, and nothing of a later job of the id."""
    song = tmp_path / "song.wav"
    song.write_bytes(bytes(3 << 20))
    storage, store, scene = SlowStorage(), MemoryJobStore(), Paused()
    with RenderService(store, storage, InlineBackend({"fake": scene})) as service:
        handle = service.submit(song, scene="fake", idempotency_key="k")
        assert storage.began.wait(30)
        forget(store, handle.job)
        expected = 0
        if again:
            service.submit(b"RIFF", scene="fake", idempotency_key="k")
            expected = 1
        eventually(lambda: storage.chunks >= 3)
        eventually(lambda: len(list(storage.list(""))) == expected)
        scene.let_go.set()


# --- what is slow only, and what is restarted


def render_late(order: RenderOrder) -> None:
    """Render an order all of whose reports are lost."""

    def lost(event: RenderEvent) -> EventReply:
        raise ConnectionError("lost")

    run_order(order, io=RunnerIO(send=lost, render=InProcessRender({"fake": FakeRenderer()}), pace=PACE))


def test_j11_what_a_slow_holder_delivers_too_late_is_removed() -> None:
    """A holder that was only slow delivers after its attempt was cleaned up: a later sweep removes its objects."""
    clock = FakeClock(datetime.now(UTC))
    store, storage, stuck = MemoryJobStore(clock=clock), MemoryStorage(clock=clock), Stuck()
    slow = RenderService(store, storage, stuck, worker=False)
    handle = slow.submit(b"RIFF", scene="fake")
    slow.tick()
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    with RenderService(store, storage, backend, worker=False, owned=[backend]) as service:
        outlast_leases(service, clock)
        eventually(lambda: service.tick() is not None and handle.job.ended)
        assert (handle.job.status, handle.job.attempts[0].clean_up) == (JobStatus.COMPLETE, CleanUp.OWED)
        render_late(stuck.orders[0])
        video = stuck.orders[0].video.key
        assert storage.stat(video).size
        clock.advance(30 * SECOND)
        service.tick()
        assert [info.key for info in storage.list("") if info.key == video] == []
        sweeps = 0
        while handle.job.owes_clean_up:
            clock.advance(timedelta(minutes=1))
            before = handle.job.revision
            service.tick()
            sweeps += handle.job.revision != before
        assert clock() < handle.job.finish_by + timedelta(minutes=13)
        assert sweeps < 40, "it is swept ever less often"


def test_j11_audio_that_a_slow_holder_stores_too_late_is_removed() -> None:
    """An upload that ends after its attempt lapsed, and that its holder cannot record, is removed; the job's stays."""
    world = World(Remote())
    audio = RemoteAudio.model_validate({"url": "https://example.com/song.wav"})
    request = make_request(audio=audio, backend="default", duration=5)
    job = world.store.create(make_job(created_at=world.clock(), request=request))
    for token in ("slow", "quick"):
        now = world.store.now()
        claim = Claimed(token=token, holder="h", lease_until=now + SECOND, backend="default", local=False)
        assert commit(world.store, job.id, claim).verdict is Verdict.APPLIED
        key = layout.audio_key(layout.prefix_of(job), layout.attempt_upload(token), "song.wav")
        world.storage.put(key, b"RIFF")
        if token == "quick":
            commit(world.store, job.id, AudioStored(token=token, audio=StoredAudio(key=key, size=4)))
        commit(world.store, job.id, LeaseLapsed(token=token, lease_until=now + SECOND))
    world.tick()
    assert [info.key for info in world.storage.list("")] == [key]
    world.service.close()


def test_j11_a_holder_that_was_slow_says_when_it_stopped() -> None:
    """A holder that learns that it is superseded stops, and its attempt is cleaned up for good."""
    store, storage, scene = MemoryJobStore(), MemoryStorage(), Paused()
    backend = InlineBackend({"fake": scene}, pace=PACE)
    with RenderService(store, storage, backend, owned=[backend], lease=SECOND) as service:
        handle = service.submit(b"RIFF", scene="fake")
        assert scene.began.wait(30)
        attempt = handle.job.attempts[0]
        assert attempt.lease_until is not None
        _lapse(store, handle.id)
        scene.let_go.set()
        assert handle.wait(timeout=30).status is JobStatus.COMPLETE
        eventually(lambda: not handle.job.owes_clean_up)
        assert handle.job.attempts[0].stopped


def _lapse(store: MemoryJobStore, job_id: str) -> None:
    """End the job's attempt as another worker does that takes its holder for dead."""

    def lapsed() -> bool:
        job = store.get(job_id)
        attempt = job.attempts[0]
        assert attempt.lease_until is not None
        commit(store, job, LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until))
        commit(store, job, ResultMissing(token=attempt.token))
        return store.get(job_id).attempts[0].ended_at is not None

    eventually(lapsed)


def test_j15_what_a_slow_holder_delivers_to_a_deleted_job_is_removed() -> None:
    """A render on this machine that delivers after its job was deleted leaves no object."""
    store, storage, scene = MemoryJobStore(), MemoryStorage(), Paused()
    backend = InlineBackend({"fake": scene}, pace=PACE)
    with RenderService(store, storage, backend, owned=[backend]) as service:
        handle = service.submit(b"RIFF", scene="fake")
        assert scene.began.wait(30)
        token = handle.job.attempts[0].token
        forget(store, handle.job)
        scene.let_go.set()
        keeper = service._engine.worker().keeper
        eventually(lambda: not keeper.count("default"))
        eventually(lambda: not [info for info in storage.list("") if token in info.key and "audio" not in info.key])


@pytest.mark.long
def test_j11_restarts_do_not_make_a_record_grow() -> None:
    """A job that many closing workers handed back keeps a few attempts, and nothing else of the others."""
    store, storage = MemoryJobStore(), MemoryStorage()
    with RenderService(store, storage, Stuck(), worker=False) as service:
        job_id = service.submit(b"RIFF", scene="fake", limits=Limits(max_attempts=1), backend="default").id
    closed = MAX_UNCOUNTED + 8
    sizes: dict[int, list[int]] = {}  # by the number of attempts: one may be owed its clean-up when a worker closes
    for _ in range(closed):
        backend = InlineBackend({"fake": FakeRenderer(frames=3000, frame_s=0.01)}, pace=PACE)
        service = RenderService(store, storage, backend, owned=[backend])
        service.start()
        eventually(lambda: store.get(job_id).stage is Stage.RENDERING)
        eventually(lambda: not store.get(job_id).owes_clean_up)
        service.close()
        job = store.get(job_id)
        sizes.setdefault(len(job.attempts), []).append(len(dump_job(job)))
    assert job.attempt_number == closed
    assert max(sizes) <= MAX_UNCOUNTED + 3
    assert sum(len(alike) for alike in sizes.values()) > len(sizes)  # some can be compared
    for alike in sizes.values():
        assert max(alike) < min(alike) + 200

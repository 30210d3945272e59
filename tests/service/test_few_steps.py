"""How many steps does a job take, and who waits for whom?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from renderdispatch import AudioUrl, Failover, JobStatus, Limits, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine import waking
from renderdispatch.engine import worker as worker_module
from renderdispatch.engine.bulkheads import Bulkheads
from renderdispatch.engine.commit import commit
from renderdispatch.engine.dispatch import _PASSED
from renderdispatch.engine.events import AttemptFailed, ResultMissing
from renderdispatch.engine.reconcile import Reconciler
from renderdispatch.engine.waking import Polls
from renderdispatch.errors import StoreUnavailableError
from renderdispatch.fetch import GuardedFetcher
from renderdispatch.jobs import Job
from renderdispatch.messages import Failed, FaultDomain, JobError, Stage
from renderdispatch.protocols import Claim, Locality, RenderBackend
from renderdispatch.runner import Pace
from renderdispatch.service import JobHandle
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeClock, FakeRenderer, eventually
from renderdispatch.testing.world import Paused, Remote, WorldStorage, event_of
from tests.support.statements import executed_statements

MOST_STATEMENTS = 14
PREPARATION = {Stage.RESOLVING_AUDIO, Stage.UPLOADING_AUDIO, Stage.GENERATING_URL, Stage.DISPATCHING, Stage.DISPATCHED}
FOREVER_S = 1e6


@pytest.fixture
def home() -> InlineBackend:
    return InlineBackend({"fake": FakeRenderer(frames=1)})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


def wait_for_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers made from now on do nothing at intervals but renew leases."""
    monkeypatch.setattr(waking, "POLL_S", FOREVER_S)
    monkeypatch.setattr(waking, "POLL_WOKEN_S", FOREVER_S)
    monkeypatch.setattr(worker_module, "_RECONCILE_S", FOREVER_S)


class Ending(SqlJobStore):
    """A store that releases ``ended`` when it writes that a job has ended."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ended = threading.Semaphore(0)

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        stored = super().replace(job, expected_revision=expected_revision)
        if stored.ended:
            self.ended.release()
        return stored


# --- the steps of a job


def test_a_trivial_job_takes_few_statements(url: str, home: InlineBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its submit to its end, with all that the worker does meanwhile, but for what it does at intervals."""
    wait_for_no_round(monkeypatch)
    with executed_statements() as statements:
        store = Ending(url)
        with RenderService(store, MemoryStorage(), home, owned=[home, store]) as service:
            service.submit(b"RIFF", scene="fake")
            assert store.ended.acquire(timeout=60)
            eventually(lambda: service._engine.worker().keeper.count("default") == 0)
            statements.clear()
            handle = service.submit(b"RIFF", scene="fake")
            assert store.ended.acquire(timeout=60)
            taken = list(statements)
            assert handle.job.status is JobStatus.COMPLETE
    assert len(taken) <= MOST_STATEMENTS, "\n".join(statement[:80] for statement in taken)


def test_stages_that_follow_each_other_at_once_each_have_their_time(home: InlineBackend) -> None:
    """One write records them all."""
    with RenderService(MemoryJobStore(), MemoryStorage(), home, owned=[home]) as service:
        job = service.submit(b"RIFF", scene="fake").wait(timeout=60)
    assert set(job.attempts[0].stage_times) >= PREPARATION
    assert job.revision <= 10


def test_what_ends_a_job_waits_for_no_round(home: InlineBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion, a failure, a second attempt and a cancel are followed up at once by the process that wrote them."""
    wait_for_no_round(monkeypatch)
    far, storage = Remote(), WorldStorage()
    with RenderService(MemoryJobStore(), storage, {"home": home, "far": far}, owned=[home]) as service:
        assert service.submit(b"RIFF", scene="fake").wait(timeout=60).status is JobStatus.COMPLETE
        cancelled = service.submit(b"RIFF", scene="fake", backend="far")
        eventually(lambda: cancelled.job.stage is Stage.DISPATCHED)
        cancelled.cancel()
        assert cancelled.wait(timeout=60).status is JobStatus.CANCELLED
        failing = service.submit(b"RIFF", scene="fake", backend="far")
        eventually(lambda: failing.job.stage is Stage.DISPATCHED)
        preempted = JobError(code="preempted", message="the machine was taken", fault=FaultDomain.PREEMPTION)
        service._engine.worker().inbox.take(event_of(far.orders[-1], Failed, error=preempted))
        eventually(lambda: failing.job.attempt_number == 2)
        assert eventually(lambda: failing.job.stage is Stage.DISPATCHED)


def test_progress_that_nothing_follows_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports soon after a write wait for the next write; where none comes, they are written all the same."""
    wait_for_no_round(monkeypatch)
    scene = Paused()
    backend = InlineBackend({"paused": scene}, pace=Pace(heartbeat_s=FOREVER_S))
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        handle = service.submit(b"RIFF", scene="paused")
        assert scene.began.wait(60)
        eventually(lambda: handle.job.stage is Stage.RENDERING)
        scene.let_go.set()
        assert handle.wait(timeout=60).status is JobStatus.COMPLETE


# --- when the store is asked


def test_a_store_is_asked_when_a_wait_is_over() -> None:
    """A process that wrote a retry knows when it is ready: the next question to the store is then, or sooner."""
    now = [1000.0]
    polls = Polls(MemoryJobStore(), lambda: now[0])
    assert polls.due()
    assert not polls.due()
    assert polls.left_s == waking.POLL_S
    polls.at(timedelta(seconds=waking.POLL_S / 4))
    polls.at(timedelta(seconds=waking.POLL_S / 2))
    now[0] += waking.POLL_S / 4
    assert polls.due()
    assert polls.left_s == waking.POLL_S / 4
    now[0] += waking.POLL_S / 4
    assert polls.due()
    assert polls.left_s == waking.POLL_S


class Counting(MemoryJobStore):
    """A store that counts the questions for ready jobs, and the claims."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.claims = 0

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        self.asked += 1
        return super().claimable(backends, machine=machine)

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        self.claims += 1
        return super().claim(claim, limit=limit)


def test_one_question_is_for_all_backends(home: InlineBackend) -> None:
    """A round asks the store once for all backends, and claims only where it names jobs."""
    backends: dict[str, RenderBackend] = {"home": home, **{f"far{number}": Remote() for number in range(5)}}
    store = Counting()
    service = RenderService(store, WorldStorage(), backends, worker=False)
    assert service.tick() == 0
    assert (store.asked, store.claims) == (1, 0)
    service.submit(b"RIFF", scene="fake", backend="far3")
    assert service.tick() == 1
    assert (store.asked, store.claims) == (2, 1)
    service.close()


def test_rounds_without_a_reason_ask_nothing(home: InlineBackend) -> None:
    """A round that begins because a slot became free claims nothing if the queue was empty."""
    store = Counting()
    service = RenderService(store, MemoryStorage(), home, worker=False, owned=[home])
    dispatcher = service._engine.worker().dispatcher
    dispatcher.tick()
    for _ in range(10):
        dispatcher.round()
    assert store.asked == 1
    service.close()


class Waking(MemoryJobStore):
    """A store that wakes workers, through a list of callbacks."""

    notifies = True

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Callable[[], None]] = []

    def notify(self) -> None:
        for wake in tuple(self.listeners):
            wake()

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        self.listeners.append(wake)
        return lambda: self.listeners.remove(wake)


def test_a_submit_wakes_the_workers_of_other_processes(home: InlineBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that notifies tells them of a new job, from the start of a worker until it is closed."""
    wait_for_no_round(monkeypatch)
    store, storage = Waking(), MemoryStorage()
    web = RenderService(store, storage, home, worker=False)
    with RenderService(store, storage, home, owned=[home]) as service:
        service.start()
        eventually(lambda: store.listeners)
        for _ in range(2):
            handle = web.submit(b"RIFF", scene="fake")
            eventually(partial(_has_ended, handle))
    assert store.listeners == []
    web.close()


def _has_ended(handle: JobHandle) -> bool:
    return handle.job.ended


# --- what is claimed


class Losing(MemoryJobStore):
    """A store that loses the answer to its first claim that gets a job."""

    lost: tuple[str, ...] = ()

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        jobs = super().claim(claim, limit=limit)
        if jobs and not self.lost:
            self.lost = tuple(job.id for job in jobs)
            raise StoreUnavailableError("the answer was lost")
        return jobs


def test_a_claim_whose_answer_was_lost_costs_no_attempt(home: InlineBackend) -> None:
    """Its lease lapses, and another attempt follows, also where the limits allow a single one."""
    store = Losing()
    with RenderService(store, MemoryStorage(), home, lease=timedelta(seconds=1), owned=[home]) as service:
        job = service.submit(b"RIFF", scene="fake", limits=Limits(max_attempts=1)).wait(timeout=60)
    assert store.lost == (job.id,)
    assert job.status is JobStatus.COMPLETE
    assert [a.error and a.error.code for a in job.attempts] == ["worker.never-began", None]


def test_attempts_that_wait_for_a_fetch_are_held(home: InlineBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed jobs beyond the room of the lane of fetches stay held, up to a bound; the others wait a while."""
    service = RenderService(
        MemoryJobStore(), MemoryStorage(), home, fetcher=GuardedFetcher(), worker=False, owned=[home]
    )
    worker = service._engine.worker()
    monkeypatch.setattr("renderdispatch.plumbing.lanes.Lane.submit", lambda *_args, **_options: False)
    handles = [service.submit(AudioUrl("https://example.com/a.wav"), scene="fake") for _ in range(_PASSED + 5)]
    while worker.dispatcher.tick():
        pass
    jobs = [handle.job for handle in handles]
    held = [job for job in jobs if job.attempt is not None and worker.keeper.holds(job.attempt.token)]
    waiting = [job for job in jobs if job.stage is Stage.RETRY_WAIT]
    assert (len(held), len(waiting)) == (_PASSED, 5)
    assert all(job.ready_at is not None and job.ready_at > job.updated_at for job in waiting)
    assert worker.dispatcher.tick() == 0
    service.close()


# --- looks


def looks_of(workers: int, jobs: int) -> list[int]:
    """Return how often each live job is asked about in two minutes, by so many workers together."""
    clock = FakeClock(datetime.now(UTC))
    store, storage, backend = MemoryJobStore(clock=clock), WorldStorage(), Remote()
    service = RenderService(store, storage, backend, worker=False)
    for _ in range(jobs):
        service.submit(b"RIFF", scene="fake")
    while len(backend.orders) < jobs:
        service.tick()
    backend.asked.clear()
    reconcilers = []
    for _ in range(workers):
        lanes = Bulkheads.of(["default"])
        reconcilers.append((lanes, Reconciler(store, storage, {"default": backend}, lanes)))
    for _ in range(480):
        clock.advance(timedelta(seconds=0.25))
        for lanes, reconciler in reconcilers:
            reconciler.round()
            for lane in (*lanes.ask.values(), lanes.bucket):
                lane.drain(60)
    service.close()
    return sorted(backend.asked.count(f"call-{number}") for number in range(1, jobs + 1))


def test_many_workers_together_look_at_a_job_as_often_as_one() -> None:
    """Live jobs of a backend far away are asked about as often by five workers as by one."""
    alone = looks_of(1, 30)
    assert alone[0] > 3
    assert looks_of(5, 30) == alone


def test_a_worker_without_the_backend_leaves_the_look_to_others() -> None:
    """Of workers with different backends, one that can tell the backend to stop has the look, not whichever is first.

    A worker with the policy of failover has the look of a job that waits for its choice.
    """
    clock = FakeClock(datetime.now(UTC))
    store, storage, far = MemoryJobStore(clock=clock), WorldStorage(), Remote()
    here = InlineBackend({"fake": FakeRenderer(frames=1)})
    service = RenderService(store, storage, {"far": far, "here": here}, worker=False, failover=Failover("far", "here"))
    box = RenderService(store, storage, {"here": here}, worker=False)
    cancelled, failed = (service.submit(b"RIFF", scene="fake") for _ in range(2))
    service.tick()
    cancelled_call = next(n for n, order in enumerate(far.orders, 1) if order.job_id == cancelled.id)
    service.cancel(cancelled.id)
    attempt = failed.job.attempts[-1]
    lost = JobError(code="worker.lost", message="lost", fault=FaultDomain.PREEMPTION)
    run = commit(store, failed.id, AttemptFailed(token=attempt.token, error=lost, stopped=True))
    commit(store, run.job, ResultMissing(token=attempt.token))
    box.tick()
    service.tick()
    assert far.cancelled == [f"call-{cancelled_call}"]
    assert (cancelled.job.status, failed.job.backend) == (JobStatus.CANCELLED, "here")
    service.close()
    box.close()


def test_a_holder_ends_its_late_attempt_whoever_has_the_look() -> None:
    """Only the holder may judge an attempt by the clock of this machine; another worker's look delays that in no way."""
    clock = FakeClock(datetime.now(UTC))
    store, storage, backend = MemoryJobStore(clock=clock), WorldStorage(), Remote()
    backend.locality = Locality.MACHINE
    service = RenderService(store, storage, backend, worker=False)
    other = RenderService(store, storage, backend, worker=False)
    handle = service.submit(b"RIFF", scene="fake")
    service.tick()
    assert handle.job.lease_until is not None
    clock.advance(timedelta(hours=1, minutes=2))
    for _ in range(2):  # the first one notes that the lease is doubted
        other.tick()
    assert not handle.job.attempts[-1].unwanted
    service._engine.worker().reconciler.round()
    assert handle.job.attempts[-1].unwanted
    service.close()
    other.close()

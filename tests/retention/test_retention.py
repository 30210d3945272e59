"""Does a job that is kept no longer go, in steps that hurt nobody who reads, whatever crashes?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from renderdispatch import ConfigurationError, JobStatus, RenderService
from renderdispatch.engine import layout
from renderdispatch.engine.retention import EXPIRED_AT_ONCE, may_remove
from renderdispatch.errors import (
    BackendError,
    JobExpiredError,
    JobNotFoundError,
    StorageUnavailableError,
    StoreUnavailableError,
)
from renderdispatch.jobs import EXPIRY_GRACE, CleanUp, Job
from renderdispatch.messages import CheckedIn, Failed, FaultDomain, JobError
from renderdispatch.protocols import JobQuery, walk
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeClock, in_threads, make_ended_job
from renderdispatch.testing.histories import START
from renderdispatch.testing.world import DeafRemote, FlakyStore, Remote, World, WorldStorage, event_of, keep_time

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
KEEP = {JobStatus.COMPLETE: 30 * DAY, JobStatus.FAILED: 7 * DAY, JobStatus.CANCELLED: timedelta(hours=1)}


class CrashingStorage(WorldStorage):
    """A storage whose deletes fail while ``crashes`` is set: before an object goes, or after all have gone."""

    crashes: str | None = None

    def delete_prefix(self, prefix: str) -> int:
        """Remove what begins with the prefix, or raise."""
        if self.crashes == "before":
            raise StorageUnavailableError("storage is away")
        removed = super().delete_prefix(prefix)
        if self.crashes == "after":
            raise StorageUnavailableError("the answer was lost")
        return removed


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Remote(), CrashingStorage(), keep=KEEP)
    yield world
    world.service.close()


def complete(world: World, **options: Any) -> str:
    """Have the world render a job, and return its id."""
    job_id = world.submit(**options)
    world.tick()
    world.render(world.backend.orders[-1])
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE
    return job_id


def objects(world: World) -> list[str]:
    """Return the keys of what jobs stored; tombstones of deleted jobs are empty."""
    return [info.key for info in world.storage.list("") if not info.key.startswith(layout.TOMBSTONES)]


def is_gone(world: World, job_id: str) -> bool:
    try:
        world.job(job_id)
    except JobNotFoundError:
        return True
    return False


def test_a_job_is_kept_as_long_as_its_status_says(world: World) -> None:
    """Before that nothing changes; then its URL is signed no more, and a while later it is gone with its objects."""
    job_id = complete(world)
    ended_at = world.job(job_id).ended_at
    assert ended_at is not None
    world.pass_time(ended_at + KEEP[JobStatus.COMPLETE] - world.clock() - SECOND)
    world.tick()
    assert world.service.poll(job_id).download_url is not None
    assert world.service.poll(job_id).expires_at == ended_at + KEEP[JobStatus.COMPLETE]
    world.pass_time(SECOND)
    world.tick()
    poll = world.service.poll(job_id)
    assert (poll.status, poll.download_url, poll.expires_at) == (JobStatus.COMPLETE, None, world.clock())
    assert poll.result is not None
    world.pass_time(EXPIRY_GRACE - SECOND)
    world.tick()
    assert objects(world)
    world.pass_time(SECOND)
    world.tick()
    assert is_gone(world, job_id)
    assert objects(world) == []


def test_an_expired_video_is_refused_by_name(world: World) -> None:
    """Whoever asks for it learns that it is kept no longer: ``job.expired``."""
    job_id = complete(world)
    world.pass_time(31 * DAY)
    world.tick()
    for ask in (world.service.download_url, world.service.open_video, world.service.save):
        with pytest.raises(JobExpiredError, match="kept no longer") as caught:
            ask(job_id)
        assert caught.value.code == "job.expired"


def test_a_poll_alone_removes_a_job_that_expired(world: World) -> None:
    """Where no worker runs, the polls of a client finish what a worker began."""
    job_id = complete(world)
    world.pass_time(31 * DAY)
    world.tick()
    world.pass_time(EXPIRY_GRACE)
    with pytest.raises(JobNotFoundError):
        world.service.poll(job_id)
    assert objects(world) == []


def test_a_status_that_is_not_named_is_kept() -> None:
    """And without ``keep`` every job is, until it is deleted."""
    world = World(Remote(), keep={JobStatus.FAILED: DAY})
    job_id = complete(world)
    world.pass_time(1000 * DAY)
    world.tick(3)
    assert world.service.poll(job_id).download_url is not None
    assert world.service.poll(job_id).expires_at is None
    world.service.close()


def test_a_job_that_runs_or_waits_is_kept(world: World) -> None:
    """Only what has ended expires, and its age counts from its end."""
    running = world.submit()
    world.tick()
    world.pass_time(timedelta(hours=2))
    world.service.cancel(running)
    waiting = world.submit()
    assert not world.job(running).ended
    world.tick()
    assert world.job(running).status is JobStatus.CANCELLED
    world.pass_time(timedelta(minutes=50))
    world.tick()
    assert world.job(running).expired_at is None
    assert world.job(waiting).expired_at is None


def test_a_job_that_never_began_goes_too(world: World) -> None:
    """A job that was cancelled in the queue has no attempt, but it has its audio."""
    job_id = world.submit()
    world.service.cancel(job_id)
    assert objects(world)
    world.pass_time(KEEP[JobStatus.CANCELLED])
    world.tick()
    world.pass_time(EXPIRY_GRACE)
    world.tick()
    assert is_gone(world, job_id)
    assert objects(world) == []


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from([1, 15, 30, 40, 59, 61]), min_size=8, max_size=12), early_s=st.integers(0, 60))
def test_a_fresh_url_reads_for_its_first_minute(steps: list[int], early_s: int) -> None:
    """Whenever a poll comes between two rounds of a worker: a URL that it returns is good for a minute at least."""
    world = World(Remote(), keep={JobStatus.COMPLETE: timedelta(minutes=10)})
    job_id = complete(world)
    key = world.service.poll(job_id).result
    assert key is not None
    world.pass_time(timedelta(minutes=10) - early_s * SECOND)
    fresh_until = world.clock()
    for step in steps:
        world.tick()
        if world.clock() <= fresh_until:
            assert world.storage.stat(key.video_key).size > 0
        if not is_gone(world, job_id) and world.service.poll(job_id).download_url is not None:
            fresh_until = world.clock() + timedelta(minutes=1)
        world.pass_time(step * SECOND)
    world.service.close()


@pytest.mark.parametrize("crashes", ["before", "after"])
def test_a_crash_between_objects_and_record_is_repaired(world: World, crashes: str) -> None:
    """The record goes last, so a later check finds the objects that are left."""
    job_id = complete(world)
    assert isinstance(world.storage, CrashingStorage)
    world.pass_time(31 * DAY)
    world.tick()
    world.storage.crashes = crashes
    world.pass_time(EXPIRY_GRACE)
    world.tick(2)
    assert not is_gone(world, job_id)
    assert bool(objects(world)) is (crashes == "before")
    world.storage.crashes = None
    world.pass_time(timedelta(minutes=1))
    world.tick()
    assert is_gone(world, job_id)
    assert objects(world) == []


def test_a_delete_that_fails_is_finished_by_a_worker(world: World) -> None:
    """A client's delete expires the job first: no URL of a half deleted video is signed, and nothing is left behind."""
    job_id = complete(world)
    assert isinstance(world.storage, CrashingStorage)
    world.storage.crashes = "before"
    with pytest.raises(StorageUnavailableError):
        world.service.delete(job_id)
    assert world.service.poll(job_id).download_url is None
    world.storage.crashes = None
    world.pass_time(EXPIRY_GRACE)
    world.tick()
    assert is_gone(world, job_id)
    assert objects(world) == []


def test_a_delete_of_a_client_is_at_once(world: World) -> None:
    """It waits for no grace."""
    job_id = complete(world)
    world.service.delete(job_id)
    assert is_gone(world, job_id)
    assert objects(world) == []


def test_a_retry_keeps_its_own_copy(world: World) -> None:
    """A job that repeats an older one reads nothing of it: the older one's end of retention does it no harm."""
    job_id = world.submit()
    world.service.cancel(job_id)
    retried = world.service.retry(job_id).id
    world.pass_time(KEEP[JobStatus.CANCELLED])
    world.tick()
    with pytest.raises(JobExpiredError, match="kept no longer"):
        world.service.retry(job_id)
    world.pass_time(EXPIRY_GRACE)
    world.tick()
    assert is_gone(world, job_id)
    audio = world.job(retried).request.audio
    assert audio.kind == "stored"
    assert world.storage.stat(audio.key).size == len(b"RIFF")


def test_an_attempt_that_may_still_write_keeps_the_job() -> None:
    """While the clean-up of a call that cannot be stopped is owed, its objects could come back: the record stays."""
    world = World(DeafRemote(BackendError("no", retryable=True)), keep={JobStatus.FAILED: timedelta(minutes=10)})
    job_id = world.submit()
    world.tick()
    world.pass_time(timedelta(hours=1, minutes=2))  # no sign of life: a second attempt begins
    world.tick()
    world.pass_time(timedelta(minutes=1))
    world.tick()
    first, second = world.backend.orders
    error = JobError(code="scene.failed", message="it broke", fault=FaultDomain.SCENE)
    world.send(event_of(second, CheckedIn))
    world.send(event_of(second, Failed, error=error))
    world.pass_time(timedelta(minutes=10))
    world.tick()
    world.pass_time(timedelta(hours=4))
    world.tick(2)
    job = world.job(job_id)
    assert job.expired_at is not None
    assert job.owes_clean_up
    world.storage.put(first.video.key, b"a late video")
    world.pass_time(timedelta(hours=1))
    world.tick(3)
    assert is_gone(world, job_id)
    assert objects(world) == []
    world.service.close()


def test_a_job_with_clean_up_to_do_has_its_grace_too() -> None:
    """A check that comes for another reason removes nothing early, and none removes what is kept."""
    job, now = make_ended_job(expired_at=START), START + EXPIRY_GRACE
    tidy = evolve(job, attempts=(), audio_clean_up=CleanUp.NONE)
    assert may_remove(tidy, now)
    assert not may_remove(tidy, now - timedelta(microseconds=1))
    assert not may_remove(job, now)
    assert not may_remove(evolve(tidy, expired_at=None), now)


def test_a_later_job_of_the_same_key_is_left_alone(world: World) -> None:
    """After a removal the key makes a new job; the objects of the two are apart, and nothing of the new one goes."""
    first = complete(world, idempotency_key="song-1")
    world.pass_time(31 * DAY)
    world.tick()
    assert world.submit(idempotency_key="song-1") == first  # its record is still there
    world.pass_time(EXPIRY_GRACE)
    world.tick()
    assert is_gone(world, first)
    second = complete(world, idempotency_key="song-1")
    assert second == first
    world.tick(2)
    assert world.service.poll(second).download_url is not None


class CountingStore(MemoryJobStore):
    """A store that counts what was written and deleted, by job."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.written: Counter[str] = Counter()
        self.deleted: Counter[str] = Counter()

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store a job over a revision."""
        stored = super().replace(job, expected_revision=expected_revision)
        self.written[job.id] += 1
        return stored

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget a job."""
        deleted = super().delete(job_id, expected_revision=expected_revision)
        self.deleted[job_id] += deleted
        return deleted


def _cancelled(service: RenderService, count: int) -> list[str]:
    ids = [service.submit(b"RIFF").id for _ in range(count)]
    for job_id in ids:
        service.cancel(job_id)
    return ids


def test_several_workers_expire_each_job_once(clock: FakeClock) -> None:
    """Four services that sweep the same store at once write each record once, and delete each job once."""
    store, storage = CountingStore(clock), WorldStorage()
    keep = {JobStatus.CANCELLED: timedelta(minutes=10)}
    with_threads = [RenderService(store, storage, Remote(), worker=False, keep=keep) for _ in range(4)]
    for service in with_threads:
        keep_time(service, clock)
    ids = _cancelled(with_threads[0], 30)
    store.written.clear()
    for wait in (timedelta(minutes=10), EXPIRY_GRACE, timedelta(minutes=1)):
        clock.advance(wait)
        in_threads(4, lambda number: with_threads[number].tick())
    assert store.written == dict.fromkeys(ids, 1)
    assert store.deleted == dict.fromkeys(ids, 1)
    assert list(storage.list("")) == []
    for service in with_threads:
        service.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_many_old_jobs_go_in_small_steps(clock: FakeClock) -> None:
    """A sweep gives up a bounded number of jobs; the next one follows at once while there are more."""
    store = CountingStore(clock)
    service = RenderService(store, WorldStorage(), Remote(), worker=False, keep={JobStatus.CANCELLED: DAY})
    keep_time(service, clock)
    service.tick()
    ids = _cancelled(service, 2 * EXPIRED_AT_ONCE + 5)
    store.written.clear()
    clock.advance(DAY)
    steps = []
    for _ in range(3):
        service.tick()
        steps.append(len(store.written))
    assert steps == [EXPIRED_AT_ONCE, 2 * EXPIRED_AT_ONCE, len(ids)]
    service.tick()
    assert set(store.written.values()) == {1}
    service.close()


def test_a_sweep_outlasts_a_store_that_is_away_now_and_then(clock: FakeClock) -> None:
    """Calls that fail before or after they took effect leave no job behind, and remove none that is kept."""
    real = MemoryJobStore(clock=clock)
    made = RenderService(real, WorldStorage(), Remote(), worker=False)
    old = _cancelled(made, 20)
    clock.advance(DAY)
    young = _cancelled(made, 5)
    flaky = FlakyStore(real, 0.2, seed=7)
    keep = {JobStatus.CANCELLED: timedelta(hours=12)}
    service = RenderService(flaky, made._engine.parts.storage, Remote(), worker=False, keep=keep)
    keep_time(service, clock)
    for _ in range(60):
        clock.advance(timedelta(minutes=2))
        _despite_outages(service.tick)
    left = {job.id for job in walk(real, JobQuery())}
    assert flaky.failures > 0
    assert left == set(young)
    assert not left & set(old)
    service.close()
    made.close()


def _despite_outages(work: Callable[[], object]) -> None:
    try:
        work()
    except StoreUnavailableError:
        return


@pytest.mark.parametrize(
    "keep",
    [
        {JobStatus.PENDING: DAY},
        {"done": DAY},
        {JobStatus.COMPLETE: timedelta(minutes=9)},
        {JobStatus.COMPLETE: 30},
        {JobStatus.COMPLETE: timedelta.max},
        [JobStatus.COMPLETE],
    ],
    ids=str,
)
def test_nonsense_is_refused_at_once(keep: Any) -> None:
    """A status that is not an end, a time without a unit or out of bounds, a list."""
    with pytest.raises(ConfigurationError, match="keep"):
        RenderService(MemoryJobStore(), WorldStorage(), Remote(), worker=False, keep=keep)

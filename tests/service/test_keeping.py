"""Are plans, segments and grants kept as long as they are needed, and no longer?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from renderdispatch import JobStatus
from renderdispatch.engine import layout, loans
from renderdispatch.errors import JobNotFoundError, StorageUnavailableError
from renderdispatch.jobs import EXPIRY_GRACE, PIECES_KEPT, URLS_EXPIRED, CleanUp, Helper, HelperState, Job, evolve
from renderdispatch.messages import CheckedIn, Failed, FaultDomain, JobError, Limits
from renderdispatch.testing.world import DeafRemote, Remote, World, WorldStorage, event_of

LOST = JobError(code="runner.lost", message="it is gone", fault=FaultDomain.INFRASTRUCTURE)
BROKEN = JobError(code="scene.failed", message="it broke", fault=FaultDomain.SCENE)
SECOND = timedelta(seconds=1)
ONCE = {"limits": Limits(max_attempts=1)}
PICTURE = "cpu"


class FailingStorage(WorldStorage):
    """A storage that removes nothing while ``fails`` is set."""

    fails = False

    def delete_prefix(self, prefix: str) -> int:
        """Remove what begins with the prefix, or raise."""
        if self.fails:
            raise StorageUnavailableError("storage is away")
        return super().delete_prefix(prefix)


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Remote(), FailingStorage())
    yield world
    world.service.close()


def started(world: World, job_id: str | None = None, **options: Any) -> Job:
    """Have the world start a job, by default a new one; it has a plan, two segments and grants."""
    job_id = job_id or world.submit(**{**ONCE, **options})
    world.tick()
    return with_pieces(world, job_id)


def with_pieces(world: World, job_id: str) -> Job:
    job = world.job(job_id)
    prefix = layout.prefix_of(job)
    pieces = layout.pieces_prefix(prefix, PICTURE)
    # both counts are the same, so that a failure ends the job
    attempt = evolve(job.attempts[-1], pieces=pieces, segments_before=2, segments_standing=2)
    changes: dict[str, Any] = {"attempts": (*job.attempts[:-1], attempt), "pieces_clean_up": CleanUp.OWED}
    stored = world.store.replace(evolve(job, **changes), expected_revision=job.revision)
    for name in ("plan.0", "000.0", "001.0"):
        world.storage.put(f"{pieces}{name}", b"a piece")
    for helpers in (False, True):
        world.storage.put(layout.grants_key(prefix, attempt.token, helpers=helpers), b"grants")
    world.storage.put(layout.stop_key(prefix, attempt.token), b"")
    return stored


def failed(world: World, error: JobError, job_id: str | None = None) -> Job:
    """Have the world start a job whose run fails."""
    job = started(world, job_id)
    order = world.backend.orders[-1]
    world.send(event_of(order, CheckedIn))
    world.send(event_of(order, Failed, error=error))
    if not world.job(job.id).ended:
        world.tick()  # storage is asked whether it drew something
    assert world.job(job.id).status is JobStatus.FAILED
    return world.job(job.id)


def complete(world: World, job: Job) -> Job:
    world.render(world.backend.orders[-1])
    world.tick()
    assert world.job(job.id).status is JobStatus.COMPLETE
    return world.job(job.id)


def keys(world: World, job: Job) -> set[str]:
    """Return the keys of a job's objects, below its prefix."""
    prefix = layout.prefix_of(job)
    return {info.key.removeprefix(prefix) for info in world.storage.list(prefix)}


def pieces_of(world: World, job: Job) -> set[str]:
    return {key for key in keys(world, job) if key.startswith("pieces/")}


def wait_for(world: World, time: timedelta) -> None:
    world.pass_time(time)
    world.tick(2)


# --- sweeps


def test_what_a_complete_job_was_drawn_from_goes_at_its_end(world: World) -> None:
    """Video and result stay. The word to stop stays too: a helper may look for it until its URLs expire."""
    job = complete(world, started(world))
    world.tick()
    token = job.attempts[-1].token
    assert keys(world, job) >= {f"{token}/video.mp4", f"{token}/result.json", f"{token}/stop"}
    assert not any("pieces/" in key or key.endswith(".grants") for key in keys(world, job))
    assert world.job(job.id).owes_pieces


def test_what_came_after_the_first_sweep_goes_when_urls_expired(world: World) -> None:
    """A helper that hangs may upload a segment until then. Afterwards the job owes nothing, and is due no more."""
    job = complete(world, started(world))
    world.tick()
    late = f"{job.attempts[-1].pieces}002.0"
    world.storage.put(late, b"a late segment")
    wait_for(world, job.finish_by + URLS_EXPIRED - world.clock() - SECOND)
    assert pieces_of(world, job)
    wait_for(world, SECOND)
    assert not pieces_of(world, job)
    token = job.attempts[-1].token
    assert {key for key in keys(world, job) if token in key} == {f"{token}/video.mp4", f"{token}/result.json"}
    assert world.job(job.id).pieces_clean_up is CleanUp.DONE
    assert world.job(job.id).due_at is None


def test_the_pieces_of_a_lost_render_are_kept_for_a_day(world: World) -> None:
    """A retry goes on from them. One sweep is then enough, for all URLs expired before."""
    job = failed(world, LOST)
    wait_for(world, PIECES_KEPT - SECOND)
    assert len(pieces_of(world, job)) == 3
    wait_for(world, SECOND)
    assert not pieces_of(world, job)
    assert world.job(job.id).pieces_clean_up is CleanUp.DONE


def test_the_pieces_of_a_broken_scene_go_at_once(world: World) -> None:
    """A retry would meet the same fault."""
    job = failed(world, BROKEN)
    world.tick()
    assert not pieces_of(world, job)


def test_the_pieces_of_a_cancelled_job_go_at_its_end(world: World) -> None:
    """It is not wanted any more."""
    job = started(world)
    world.service.cancel(job.id)
    world.tick(2)
    assert world.job(job.id).status is JobStatus.CANCELLED
    assert not pieces_of(world, job)


def test_a_running_job_keeps_its_pieces(world: World) -> None:
    """Also while an attempt of it that was lost is cleaned up: the next one goes on from them."""
    job = started(world, limits=Limits(max_attempts=2))
    order = world.backend.orders[-1]
    world.send(event_of(order, CheckedIn))
    world.send(event_of(order, Failed, error=LOST))
    wait_for(world, timedelta(minutes=5))
    found = world.job(job.id)
    assert (found.attempt_number, found.attempts[0].clean_up) == (2, CleanUp.DONE)
    assert len(pieces_of(world, job)) == 3


def test_a_sweep_that_failed_is_repeated(world: World) -> None:
    """Storage that is away loses nothing: what stayed goes with the sweep after the URLs expired."""
    assert isinstance(world.storage, FailingStorage)
    job = complete(world, started(world))
    world.storage.put(f"{job.attempts[-1].pieces}000.0", b"a piece")
    world.storage.fails = True
    wait_for(world, job.finish_by + URLS_EXPIRED - world.clock())
    assert pieces_of(world, job)
    world.storage.fails = False
    wait_for(world, timedelta(minutes=1))
    assert not pieces_of(world, job)
    assert not world.job(job.id).owes_pieces


def test_a_job_without_pieces_is_swept_by_nothing(world: World) -> None:
    """A short song is drawn again as soon. It is due no more once it has ended."""
    job_id = world.submit(duration=5)
    world.tick()
    world.render(world.backend.orders[-1])
    world.tick(2)
    job = world.job(job_id)
    assert (job.status, job.due_at, job.pieces_clean_up) == (JobStatus.COMPLETE, None, CleanUp.NONE)


def test_helpers_that_may_draw_find_the_word_to_stop() -> None:
    """It outlives the other objects of an attempt that is cleaned up, until no helper can look for it any more."""
    world = World(Remote())
    job = started(world)
    helper = Helper(share=1, token="helper", state=HelperState.STARTING)
    attempts = (evolve(job.attempts[-1], helpers=(helper,)),)
    world.store.replace(evolve(job, attempts=attempts), expected_revision=job.revision)
    order = world.backend.orders[-1]
    world.send(event_of(order, CheckedIn))
    world.send(event_of(order, Failed, error=LOST))
    token = job.attempts[-1].token
    stop = f"{token}/stop"
    wait_for(world, timedelta(minutes=5))
    assert {key for key in keys(world, job) if token in key} == {stop}
    wait_for(world, PIECES_KEPT)
    assert stop not in keys(world, job)
    world.service.close()


# --- a delete


def test_a_delete_leaves_a_tombstone_for_what_comes_later(world: World) -> None:
    """The job is gone at once. A segment that a helper uploads afterwards goes when its URLs expired."""
    job = complete(world, started(world))
    world.service.delete(job.id)
    with pytest.raises(JobNotFoundError):
        world.job(job.id)
    assert not keys(world, job)
    late = f"{job.attempts[-1].pieces}002.0"
    world.storage.put(late, b"a late segment")
    wait_for(world, job.finish_by + URLS_EXPIRED - world.clock() - timedelta(minutes=1))
    assert keys(world, job)
    wait_for(world, timedelta(hours=1, minutes=1))
    assert list(world.storage.list("")) == []


def test_a_delete_while_storage_is_away_loses_nothing(world: World) -> None:
    """The record stays until the objects are gone; the tombstone stays until the late ones are."""
    assert isinstance(world.storage, FailingStorage)
    job = complete(world, started(world))
    world.storage.fails = True
    with pytest.raises(StorageUnavailableError):
        world.service.delete(job.id)
    world.storage.fails = False
    wait_for(world, EXPIRY_GRACE)
    with pytest.raises(JobNotFoundError):
        world.job(job.id)
    world.storage.put(f"{job.attempts[-1].pieces}002.0", b"a late segment")
    wait_for(world, timedelta(hours=8))
    assert list(world.storage.list("")) == []


def test_helpers_of_a_deleted_job_find_the_word_to_stop(world: World) -> None:
    """One that was lost may still draw; the tombstone has the word deleted with all the rest."""
    job = complete(world, started(world))
    helper = Helper(share=1, token="helper", state=HelperState.STARTING)
    attempts = (evolve(job.attempts[-1], helpers=(helper,)),)
    world.store.replace(evolve(job, attempts=attempts), expected_revision=job.revision)
    world.service.delete(job.id)
    assert keys(world, job) == {f"{job.attempts[-1].token}/stop"}
    wait_for(world, timedelta(hours=8))
    assert list(world.storage.list("")) == []


def test_helpers_of_a_machine_that_went_away_are_told_nothing(world: World) -> None:
    """They ended with it, though the record does not say so: a delete leaves nothing behind that nothing removes."""
    job = complete(world, started(world))
    helper = Helper(share=1, token="helper", state=HelperState.STARTED, call_id="helper-1")
    attempts = (evolve(job.attempts[-1], local=True, helpers=(helper,)),)
    world.store.replace(evolve(job, attempts=attempts), expected_revision=job.revision)
    wait_for(world, timedelta(hours=7))
    world.service.delete(job.id)
    assert list(world.storage.list("")) == []


def test_helpers_of_a_backend_that_is_gone_for_good_keep_no_job(world: World) -> None:
    """When their URLs have expired they count as stopped; then nothing is owed."""
    job = complete(world, started(world))
    helper = Helper(share=1, token="helper", state=HelperState.STARTED, call_id="helper-1")
    attempts = (evolve(job.attempts[-1], backend="gone", helpers=(helper,)),)
    world.store.replace(evolve(job, attempts=attempts), expected_revision=job.revision)
    world.tick()
    assert world.job(job.id).owes_clean_up
    wait_for(world, timedelta(hours=7))
    assert world.job(job.id).due_at is None
    assert not [key for key in keys(world, job) if key.endswith("/stop")]


def test_a_later_job_of_the_same_key_is_not_swept(world: World) -> None:
    """A tombstone names one life of the job's id (rule J15)."""
    first = complete(world, started(world, idempotency_key="song"))
    world.service.delete(first.id)
    second = started(world, idempotency_key="song")
    assert second.id == first.id
    world.storage.put(f"{first.attempts[-1].pieces}002.0", b"a late segment")
    wait_for(world, first.finish_by + URLS_EXPIRED - world.clock() + timedelta(hours=1))
    assert not keys(world, first)
    assert keys(world, second)


def test_a_job_that_owes_nothing_leaves_no_tombstone(world: World) -> None:
    """A delete then leaves the storage as it was."""
    job = complete(world, started(world))
    wait_for(world, timedelta(hours=7))
    world.service.delete(job.id)
    assert list(world.storage.list("")) == []


def test_retention_does_not_wait_for_urls() -> None:
    """A job whose time is over goes with its record, and what comes later goes by its tombstone."""
    world = World(Remote(), keep={JobStatus.COMPLETE: timedelta(minutes=10)})
    job = complete(world, started(world))
    wait_for(world, timedelta(minutes=10))
    wait_for(world, EXPIRY_GRACE)
    with pytest.raises(JobNotFoundError):
        world.job(job.id)
    world.storage.put(f"{job.attempts[-1].pieces}002.0", b"a late segment")
    wait_for(world, timedelta(hours=8))
    assert list(world.storage.list("")) == []
    world.service.close()


# --- loans


def retry(world: World, job: Job) -> Job:
    return world.job(world.service.retry(job.id).id)


def lent(world: World, job: Job) -> set[str]:
    """Return the keys of what a job may borrow."""
    return set(loans.borrowed_keys(world.storage, loans.borrowed(world.store, job), PICTURE).values())


def test_a_retry_borrows_what_was_drawn(world: World) -> None:
    """It knows where the pieces are, and the older job knows who needs them."""
    first = failed(world, LOST)
    second = retry(world, first)
    assert second.borrows == layout.all_pieces(layout.prefix_of(first))
    assert world.job(first.id).lent_to == second.id
    assert lent(world, second) == {f"{first.attempts[-1].pieces}{name}" for name in ("plan.0", "000.0", "001.0")}


def test_a_retry_draws_with_as_many(world: World) -> None:
    """How many draw is not part of the request, and is kept all the same."""
    first = failed(world, LOST)
    world.store.replace(evolve(first, parallel=4), expected_revision=first.revision)
    assert retry(world, first).parallel == 4


def test_a_sweep_waits_for_the_borrower(world: World) -> None:
    """However long that runs; soon after its end the pieces go."""
    first = failed(world, LOST)
    wait_for(world, PIECES_KEPT - timedelta(minutes=30))
    second = started(world, retry(world, first).id)
    world.send(event_of(world.backend.orders[-1], CheckedIn))
    wait_for(world, timedelta(hours=1))
    assert not world.job(second.id).ended
    assert len(pieces_of(world, first)) == 3
    complete(world, second)
    wait_for(world, timedelta(minutes=10))
    assert not pieces_of(world, first)
    assert not pieces_of(world, second)


def test_pieces_that_are_lent_are_looked_at_seldom(world: World) -> None:
    """A borrower may wait or render for days, and there may be many: that costs a look in ten minutes each."""
    first = failed(world, LOST)
    wait_for(world, PIECES_KEPT - timedelta(minutes=30))
    retry(world, first)
    wait_for(world, timedelta(minutes=30))
    assert world.job(first.id).due_at == world.clock() + timedelta(minutes=10)


def test_a_cancelled_borrower_lets_go(world: World) -> None:
    """Its loan ends with it."""
    first = failed(world, LOST)
    second = retry(world, first)
    world.service.cancel(second.id)
    wait_for(world, PIECES_KEPT)
    assert not pieces_of(world, first)


def test_a_retry_of_a_retry_borrows_from_both(world: World) -> None:
    """A segment may have been drawn by either; the sweeps of both wait for the last one."""
    first = failed(world, LOST)
    wait_for(world, timedelta(hours=20))
    second = failed(world, LOST, retry(world, first).id)
    wait_for(world, timedelta(hours=20))
    third = started(world, retry(world, second).id)
    expected = {f"{job.attempts[-1].pieces}{name}" for job in (first, second) for name in ("plan.0", "000.0", "001.0")}
    assert lent(world, third) == expected
    names = loans.borrowed_keys(world.storage, loans.borrowed(world.store, third), PICTURE)
    assert set(names) == {f"{piece}.{generation}" for piece in ("plan", "000", "001") for generation in (0, 1)}
    world.send(event_of(world.backend.orders[-1], CheckedIn))
    wait_for(world, timedelta(hours=5))
    assert len(pieces_of(world, first)) == len(pieces_of(world, second)) == 3
    complete(world, third)
    wait_for(world, timedelta(hours=1))
    assert not pieces_of(world, first)
    assert not pieces_of(world, second)


def test_what_a_failed_borrower_needs_is_kept_as_long_as_its_own_pieces(world: World) -> None:
    """A retry of it would go on from both."""
    first = failed(world, LOST)
    wait_for(world, timedelta(hours=20))
    second = failed(world, LOST, retry(world, first).id)
    wait_for(world, PIECES_KEPT - SECOND)
    assert len(pieces_of(world, first)) == 3
    wait_for(world, SECOND)
    assert not pieces_of(world, first)
    assert not pieces_of(world, second)


def test_a_retry_that_never_began_passes_the_loan_on(world: World) -> None:
    """It drew nothing, so the next one borrows from the first job alone."""
    first = failed(world, LOST)
    second = retry(world, first)
    world.service.cancel(second.id)
    third = retry(world, second)
    assert world.job(first.id).lent_to == third.id
    assert len(lent(world, third)) == 3


def test_two_retries_at_once_do_not_share(world: World) -> None:
    """The second one draws everything itself: the first one's loan is not taken away."""
    first = failed(world, LOST)
    second = retry(world, first)
    third = retry(world, first)
    assert third.borrows is None
    assert world.job(first.id).lent_to == second.id


def test_a_retry_after_the_sweep_borrows_nothing(world: World) -> None:
    """It is a job like any other."""
    first = failed(world, BROKEN)
    world.tick()
    second = retry(world, first)
    assert (second.borrows, world.job(first.id).lent_to) == (None, None)


def test_a_deleted_job_is_read_by_its_borrower_to_the_end(world: World) -> None:
    """Its record and its other objects go at once; the segments that it lent go when no URL of them is good any more."""
    first = failed(world, LOST)
    wait_for(world, timedelta(hours=5))
    second = started(world, retry(world, first).id)
    world.service.delete(first.id)
    assert keys(world, first) == {f"pieces/{PICTURE}/{name}" for name in ("plan.0", "000.0", "001.0")}
    wait_for(world, first.finish_by + URLS_EXPIRED - world.clock() + timedelta(hours=2))
    assert len(pieces_of(world, first)) == 3
    wait_for(world, second.finish_by + URLS_EXPIRED - world.clock() + timedelta(hours=1))
    assert not keys(world, first)


def test_a_call_that_cannot_be_stopped_does_not_hold_up_the_sweep() -> None:
    """What it uploads later goes with the sweep after its URLs expired."""
    world = World(DeafRemote(RuntimeError("no")))
    job = started(world)
    wait_for(world, job.finish_by - world.clock() + timedelta(minutes=2))
    assert world.job(job.id).status is JobStatus.FAILED
    wait_for(world, PIECES_KEPT)
    assert not pieces_of(world, job)
    assert not world.job(job.id).owes_pieces
    world.service.close()

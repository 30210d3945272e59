"""Does `commit` write what an event decides, once, whoever else writes?"""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from attrs import evolve

from renderdispatch.engine.commit import commit, forget
from renderdispatch.engine.events import CancelRequested, Claimed
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import JobNotFoundError, RevisionConflictError, StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import Stage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeClock, in_threads
from renderdispatch.testing.histories import HISTORIES, START, after, checked_in, claimed, intended, new_job, progressed


class LossyStore(MemoryJobStore):
    """A store whose next replaces are refused, lost before they were written, or after."""

    def __init__(self, *troubles: str) -> None:
        super().__init__(clock=FakeClock(START + timedelta(hours=1)))
        self.troubles = list(troubles)
        self.reads = 0

    def get(self, job_id: str) -> Job:
        self.reads += 1
        return super().get(job_id)

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        match self.troubles.pop(0) if self.troubles else None:
            case "conflict":
                raise RevisionConflictError("somebody was faster")
            case "lost":
                raise StoreUnavailableError("gone")
            case "answer lost":
                super().replace(job, expected_revision=expected_revision)
                raise StoreUnavailableError("gone")
        return super().replace(job, expected_revision=expected_revision)


def _stored(store: MemoryJobStore, name: str = "queued") -> Job:
    return store.create(after(new_job(), HISTORIES[name]))


def test_an_event_is_decided_and_written() -> None:
    """The decision comes back with the job as it is stored now, one revision on, by the store's time."""
    store = LossyStore()
    job = _stored(store)
    decision = commit(store, job.id, claimed())
    assert decision.verdict is Verdict.APPLIED
    assert decision.job == store.get(job.id)
    assert (decision.job.revision, decision.job.stage) == (job.revision + 1, Stage.RESOLVING_AUDIO)
    assert decision.job.updated_at == store.now()


def test_what_changes_nothing_is_not_written() -> None:
    """An event that is ignored or superseded leaves the revision as it was."""
    store = LossyStore()
    job = _stored(store, "rendering")
    for event, verdict in (
        (progressed(Stage.RENDERING, 0.5), Verdict.IGNORED),
        (progressed(Stage.RENDERING, 0.9, token="token-9"), Verdict.SUPERSEDED),
    ):
        assert commit(store, job.id, event).verdict is verdict
        assert store.get(job.id) == job


def test_a_job_that_was_just_read_is_not_read_again() -> None:
    """Who hands over the job saves a read."""
    store = LossyStore()
    commit(store, _stored(store), claimed())
    assert store.reads == 0


def test_a_stale_job_refuses_nothing() -> None:
    """Where the job at hand would refuse the event, what the store says now decides."""
    store = LossyStore()
    stale = _stored(store)
    commit(store, stale.id, claimed())
    commit(store, stale.id, intended())
    assert commit(store, stale, checked_in()).verdict is Verdict.APPLIED


def test_a_stale_job_overwrites_nothing() -> None:
    """Where the job at hand would take the event, but moved on, the event is decided anew."""
    store = LossyStore()
    stale = _stored(store)
    commit(store, stale.id, claimed("token-1"))
    assert commit(store, stale, claimed("token-2")).verdict is Verdict.IGNORED
    attempt = store.get(stale.id).attempt
    assert attempt is not None
    assert attempt.token == "token-1"


def test_others_may_be_faster() -> None:
    """A conflict is met by reading and deciding again."""
    store = LossyStore(*["conflict"] * 20)
    assert commit(store, _stored(store).id, claimed()).verdict is Verdict.APPLIED


@pytest.mark.long
def test_there_is_an_end_to_being_slower() -> None:
    """After a great many conflicts in a row it is an error that says so."""
    store = LossyStore(*["conflict"] * 1000)
    with pytest.raises(RevisionConflictError, match="others wrote first"):
        commit(store, _stored(store).id, claimed())


def test_a_second_call_after_a_lost_answer_is_safe() -> None:
    """Whether the write happened before the store went away or not, the same commit again ends in the same place."""
    for trouble in ("lost", "answer lost"):
        store = LossyStore(trouble)
        job = _stored(store)
        with pytest.raises(StoreUnavailableError):
            commit(store, job.id, claimed())
        commit(store, job.id, claimed())
        assert len(store.get(job.id).attempts) == 1


def test_a_job_that_is_gone() -> None:
    """An event of a deleted job is `JobNotFoundError`, by id and by value."""
    store = LossyStore()
    job = _stored(store)
    forget(store, job)
    for given in (job.id, job):
        with pytest.raises(JobNotFoundError):
            commit(store, given, claimed())


def test_of_concurrent_claims_one_is_applied() -> None:
    """Of eight dispatchers that claim one job at once, one begins an attempt."""
    store = LossyStore()
    job = _stored(store)
    decisions = in_threads(8, lambda number: commit(store, job, claimed(f"token-{number}")))
    assert [decision.verdict for decision in decisions].count(Verdict.APPLIED) == 1
    assert len(store.get(job.id).attempts) == 1


def test_no_event_is_lost_in_a_crowd() -> None:
    """Progress from eight threads at once: all are answered, the furthest stands, the revision counts the writes."""
    store = LossyStore()
    job = _stored(store, "dispatched")
    decisions = in_threads(8, lambda number: commit(store, job.id, progressed(Stage.RENDERING, (number + 1) / 8)))
    applied = sum(decision.verdict is Verdict.APPLIED for decision in decisions)
    assert store.get(job.id).progress == 95.0
    assert store.get(job.id).revision == job.revision + applied


def test_a_cancel_beside_a_claim_is_not_lost() -> None:
    """A cancel and a claim at once end in ``cancelling``, or in a job that was cancelled before it began."""
    for _ in range(20):
        store = LossyStore()
        job = _stored(store)
        events: tuple[Claimed, CancelRequested] = (claimed(), CancelRequested())
        in_threads(2, lambda number: commit(store, job.id, events[number]))  # noqa: B023
        ended = store.get(job.id)
        assert ended.cancel_requested_at is not None
        assert ended.ended or ended.stage is Stage.CANCELLING


def test_logs_hold_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged of an event holds no token."""
    caplog.set_level(logging.DEBUG)
    store = LossyStore()
    job = _stored(store)
    commit(store, job.id, evolve(claimed(), token="s3cret"))
    commit(store, job.id, evolve(claimed(), token="s3cret-too"))
    assert "queued -> resolving-audio" in caplog.text
    assert "s3cret" not in caplog.text

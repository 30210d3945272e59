"""How does an event change a stored job?

Read, `decide`, replace if the revision is still the same, else read again. Nothing else writes jobs, so a webhook, a
poll, a dispatcher and a crash all end in the same place. Effects come after the commit. Events that follow each other
at once are one write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from renderdispatch.engine.events import JobEvent
from renderdispatch.engine.transitions import Decision, Verdict, decide
from renderdispatch.errors import JobNotFoundError, RevisionConflictError, StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import JobStore

_log: Final = logging.getLogger("renderdispatch.engine.commit")

_TRIES: Final = 200
_CROWD: Final = Backoff(failures=_TRIES, pause_s=0.001, longest_pause_s=0.05)


def commit(store: JobStore, job: str | Job, *happened: JobEvent) -> Decision:
    """Apply events to the stored job and return the decision, with the job as it is stored now.

    Several events are decided one after another and written at once. The decision is ``applied`` if any of them was.

    Args:
        store: Where the job lives.
        job: Its id; or the job as just read, which saves a read if it has not changed since.
        happened: What happened, in this order.

    Raises:
        JobNotFoundError: There is no such job (any more); a later job of the same id is another one.
        StoreUnavailableError: The store is away; whether the write happened is not known, and a second call is safe.
        RevisionConflictError: Others wrote first a great many times in a row.
    """
    if isinstance(job, str):
        job_id = job
    else:
        job_id = job.id
        try:
            if (decision := _write(store, job, happened)).verdict is Verdict.APPLIED:
                return decision
        except RevisionConflictError:
            pass  # what was read may be stale: only what the store has now may refuse an event

    def attempt() -> Decision:
        current = store.get(job_id)
        if not isinstance(job, str) and current.incarnation != job.incarnation:  # rule J15
            raise JobNotFoundError(f"job {job_id} was deleted, and a later job has its id")
        return _write(store, current, happened)

    try:
        decision = retry(attempt, _CROWD, trouble=_conflict)
    except RevisionConflictError:
        message = f"job {job_id}: others wrote first {_TRIES} times in a row; try again"
        raise RevisionConflictError(message) from None
    if decision.verdict is not Verdict.APPLIED:
        names = ", ".join(type(event).__name__ for event in happened)
        _log.debug("job %s: %s %s", job_id, names, decision.verdict)
    return decision


def commit_patiently(store: JobStore, job: str | Job, *happened: JobEvent, patience_s: float, stop: Stop) -> Decision:
    """Commit as `commit` does, and try again while the store is away: a hiccup costs no attempt.

    Args:
        store: Where the job lives.
        job: As of `commit`.
        happened: As of `commit`.
        patience_s: Seconds to go on trying.
        stop: Ends the waiting: then what the next try raises passes.
    """

    return patiently(lambda: commit(store, job, *happened), patience_s=patience_s, stop=stop)


def patiently(write: Callable[[], Decision], *, patience_s: float, stop: Stop) -> Decision:
    """Write something, and try again while the store is away, as `commit_patiently`."""

    def trouble(error: Exception) -> Trouble:
        again = isinstance(error, StoreUnavailableError) and not stop.requested
        return Trouble.FAILED if again else Trouble.FATAL

    backoff = Backoff(patience_s=patience_s, pause_s=0.1, longest_pause_s=1.0)
    return retry(write, backoff, trouble=trouble, sleep=stop.wait)


def forget(store: JobStore, job: Job) -> None:
    """Delete the record of exactly this job, at whichever revision; a later job of the same id stays (rule J15).

    Raises:
        StoreUnavailableError: The store is away; a second call is safe.
        RevisionConflictError: Others wrote first a great many times in a row.
    """
    revision = job.revision

    def attempt() -> None:
        try:
            store.delete(job.id, expected_revision=revision)
        except RevisionConflictError:
            reread()
            raise

    def reread() -> None:
        nonlocal revision
        current = store.get(job.id)
        if current.incarnation != job.incarnation:
            raise JobNotFoundError(f"job {job.id} was deleted, and a later job has its id")
        revision = current.revision

    with suppress(JobNotFoundError):
        retry(attempt, _CROWD, trouble=_conflict)


def _write(store: JobStore, current: Job, happened: Sequence[JobEvent]) -> Decision:
    """Decide on one revision of the job; replace it where that changes something."""
    now = store.now()
    decisions = [decide(current, happened[0], now)]
    for event in happened[1:]:
        decisions.append(decide(decisions[-1].job, event, now))
    decision = decisions[-1]
    if all(each.verdict is not Verdict.APPLIED for each in decisions):
        return decision
    stored = store.replace(decision.job, expected_revision=current.revision)
    if stored.stage is not current.stage or stored.status is not current.status:
        _log.info("job %s: %s -> %s (%s)", stored.id, current.stage, stored.stage, stored.status)
    if stored.status is JobStatus.COMPLETE and current.status is not JobStatus.COMPLETE and stored.artifact is not None:
        for warning in stored.artifact.warnings:
            _log.info("job %s: %s: %s", stored.id, warning.code, warning.message)
    return Decision(stored, Verdict.APPLIED, decision.reply)


def _conflict(error: Exception) -> Trouble:
    return Trouble.FAILED if isinstance(error, RevisionConflictError) else Trouble.FATAL

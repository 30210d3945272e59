"""How does an event change a stored job?

Read, `decide`, replace if the revision still stands, else read again. Nothing else writes jobs, so a
webhook, a poll, a dispatcher and a crash all end in the same place. Effects come after the commit.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Final

from attrs import evolve

from renderdispatch.engine.events import JobEvent
from renderdispatch.engine.transitions import Decision, Verdict, decide
from renderdispatch.errors import JobNotFoundError, RevisionConflictError
from renderdispatch.jobs import Job
from renderdispatch.protocols import JobStore

_log: Final = logging.getLogger("renderdispatch.engine.commit")

_TRIES: Final = 200


def commit(store: JobStore, job: str | Job, event: JobEvent) -> Decision:
    """Apply ``event`` to the stored job and return the decision, with the job as it is stored now.

    Args:
        store: Where the job lives.
        job: Its id; or the job as just read, which saves a read where nobody wrote since.
        event: What happened.

    Raises:
        JobNotFoundError: There is no such job (any more); a later job of the same id is another one.
        StoreUnavailableError: The store is away; whether the write happened is not known, and a second call is safe.
        RevisionConflictError: Others wrote first a great many times in a row.
    """
    job_id = job if isinstance(job, str) else job.id
    known = None if isinstance(job, str) else job
    for attempt in range(_TRIES):
        given, known = known, None
        current = given if given is not None else store.get(job_id)
        if isinstance(job, Job) and current.incarnation != job.incarnation:  # rule J15
            raise JobNotFoundError(f"job {job_id} was deleted, and a later job has its id")
        decision = decide(current, event, store.now())
        if decision.verdict is not Verdict.APPLIED:
            if given is not None:  # it may be stale: only what the store says now may refuse an event
                continue
            _log.debug("job %s: %s %s", job_id, type(event).__name__, decision.verdict)
            return decision
        try:
            stored = store.replace(decision.job, expected_revision=current.revision)
        except RevisionConflictError:
            if attempt > 2:
                time.sleep(random.uniform(0, min(0.05, 0.001 * attempt)))
            continue
        if stored.stage is not current.stage or stored.status is not current.status:
            _log.info("job %s: %s -> %s (%s)", job_id, current.stage, stored.stage, stored.status)
        return evolve(decision, job=stored)
    raise RevisionConflictError(f"job {job_id}: others wrote first {_TRIES} times in a row; try again")

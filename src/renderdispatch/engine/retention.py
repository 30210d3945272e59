"""For how long are ended jobs and their objects kept?

As long as the service was told, by status; else until they are deleted. A job goes in three steps, and a crash between
two of them leaves a record by which a later step goes on:

1. `RetentionSweep` commits that the job has expired. From then on no URL is signed and no video is opened.
2. `EXPIRY_GRACE` later a check of the job finds it due, and `remove` deletes its objects. Downloads that had a fresh
   URL have begun by then.
3. `remove` deletes the record, of exactly this life of the job's id (rule J15). If uploads of segments may still be
   under way, or a borrower reads them, a tombstone has what is left deleted later.

A client's delete takes the same steps without the grace.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import define, field

from renderdispatch.engine import layout, loans, tombstones
from renderdispatch.engine.commit import commit, forget
from renderdispatch.engine.events import Expired
from renderdispatch.errors import JobNotFoundError, JobUnreadableError, RevisionConflictError
from renderdispatch.jobs import URLS_EXPIRED, Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import JobQuery, JobStore, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.retention")

SWEEP_S: Final = 60.0
"""How often ended jobs are searched for those whose retention is over."""

EXPIRED_AT_ONCE: Final = 100
"""How many jobs of one status a sweep gives up; if there are more, the next sweep follows at once."""


def expire(store: JobStore, job: Job) -> Job:
    """Record that an ended job is given up; return it as it is then.

    Raises:
        JobNotFoundError: The job was removed already.
    """
    return commit(store, job, Expired()).job


def may_remove(job: Job, now: datetime) -> bool:
    """Return whether the objects and the record of an expired job are to go now.

    An attempt that may still compute or write keeps them: its clean-up is owed, until the URLs of its order expired.
    """
    return job.removal_at is not None and job.removal_at <= now and not job.owes_clean_up


def remove(store: JobStore, storage: StorageAdapter, job: Job) -> None:
    """Delete the objects of an expired job, then its record: after a crash, the record leads back to the objects.

    Raises:
        StorageError: Storage is away; a second call is safe.
        StoreUnavailableError: The store is away; a second call is safe.
    """
    now, prefix = store.now(), layout.prefix_of(job)
    needed_until = loans.needed_until(store, job, now) if job.owes_pieces and job.pieces_swept_at is None else None
    urls_expire_at = job.finish_by + URLS_EXPIRED
    used_until = max(urls_expire_at, needed_until or now)
    if job.owes_pieces and used_until > now:
        tombstones.leave(storage, prefix, used_until)
    if needed_until is None:
        storage.delete_prefix(prefix)
    else:
        _delete_all_but(storage, prefix, layout.all_pieces(prefix))
    for attempt in job.attempts:
        if job.helpers_to_stop(attempt) and now < urls_expire_at:  # they may look for it; the tombstone is for it too
            storage.put(layout.stop_key(prefix, attempt.token), b"stop")
    forget(store, job)


def _delete_all_but(storage: StorageAdapter, prefix: str, kept: str) -> None:
    for info in list(storage.list(prefix)):
        if not info.key.startswith(kept):
            storage.delete(info.key)


@define
class RetentionSweep:
    """Gives up the jobs that ended long enough ago, at most once a minute while there are few.

    Several processes may sweep at once: each job expires once.

    Args:
        keep: For how long to keep jobs, by status.
        next_s: When the next sweep is due, on the clock that `sweep` is given. The first one is due at once.
        shuffle: Puts the jobs of a step into another order in each process, so that they seldom take the same one.
    """

    store: JobStore
    keep: Mapping[JobStatus, timedelta]
    next_s: float = -math.inf
    shuffle: Callable[[list[Any]], None] = field(default=random.shuffle)

    def due(self, monotonic_s: float) -> bool:
        """Return whether a sweep is due."""
        return bool(self.keep) and monotonic_s >= self.next_s

    def sweep(self, now: datetime, monotonic_s: float) -> None:
        """Give up old jobs, if a sweep is due.

        Raises:
            StoreUnavailableError: The store is away; the next sweep is due in a minute.
        """
        if not self.due(monotonic_s):
            return
        self.next_s = monotonic_s + SWEEP_S
        found = [self._expire_old(status, now - keep) for status, keep in self.keep.items()]
        if max(found) == EXPIRED_AT_ONCE:  # more are waiting: let jobs go first
            self.next_s = monotonic_s

    def _expire_old(self, status: JobStatus, ended_by: datetime) -> int:
        """Give up jobs that ended by then; return how many were found."""
        query = JobQuery(order="ended", statuses=frozenset({status}), due_by=ended_by, limit=EXPIRED_AT_ONCE)
        old = list(self.store.query(query).items)
        self.shuffle(old)
        for job in old:
            try:
                expire(self.store, job)
            except (JobNotFoundError, JobUnreadableError):  # another process was faster, or is newer
                continue
            except RevisionConflictError as error:
                _log.warning("job %s: it expires at a later sweep: %s", job.id, error)
        return len(old)

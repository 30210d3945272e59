"""What ends a job when nothing reports how it went?

The reconciler checks every job that is due, ever less often while nothing changes; `checks` says what a check is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from attrs import define, field

from renderdispatch import errors
from renderdispatch.engine.checks import Checks
from renderdispatch.engine.cleanup import UploadSweep
from renderdispatch.jobs import Job
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import JobQuery, JobStore, RenderBackend, StorageAdapter, walk

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_PAGE: Final = 100
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
_REMEMBERED: Final = 10_000


@define
class _Check:
    revision: int
    count: int
    next_s: float


@define(eq=False)
class _Schedule:
    """When a job that did not change is worth another check: ever less often."""

    _checks: dict[str, _Check] = field(factory=dict)

    def due(self, job: Job, now_s: float) -> bool:
        """Return whether to check the job now; if so, the next check is due after a pause."""
        check = self._checks.get(job.id)
        if check is None or check.revision != job.revision:
            check = self._checks[job.id] = _Check(job.revision, 0, now_s)
        if now_s < check.next_s:
            return False
        check.next_s = now_s + _PAUSES_S[min(check.count, len(_PAUSES_S) - 1)]
        check.count += 1
        return True

    def keep(self, job_ids: Collection[str]) -> None:
        """Forget every other job."""
        self._checks = {job_id: check for job_id, check in list(self._checks.items()) if job_id in job_ids}

    def bound(self) -> None:
        """Forget all jobs once they are very many, for callers that never `keep`."""
        if len(self._checks) > _REMEMBERED:
            self._checks.clear()


@define(eq=False)
class Reconciler:
    """Ends what nothing else ends.

    Args:
        stop: Has a round in progress end after the job that it checks.
        monotonic: The clock that spaces repeated checks of one job, and sweeps of the uploads; seconds.
    """

    _store: JobStore
    _storage: StorageAdapter
    _backends: Mapping[str, RenderBackend]
    _stop: Stop = field(factory=Stop, kw_only=True)
    _monotonic: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _schedule: _Schedule = field(factory=_Schedule, init=False)
    _checks: Checks = field(init=False)
    _sweep: UploadSweep = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._checks = Checks(self._store, self._storage, self._backends)
        self._sweep = UploadSweep(self._storage, self._monotonic())

    def tick(self) -> int:
        """Check every job that is due; return how many were changed."""
        changed = 0
        seen: set[str] = set()
        for job in walk(self._store, JobQuery(order="due", due_by=self._store.now(), limit=_PAGE)):
            if self._stop.requested:
                return changed
            seen.add(job.id)
            if self._schedule.due(job, self._monotonic()):
                changed += self.reconcile(job)
        self._schedule.keep(seen)
        self._sweep.sweep(self._store.now(), self._monotonic())
        return changed

    def reconcile_if_due(self, job: Job) -> Job:
        """Reconcile one job that a client asks about, if it is due for a check; return it as it is then."""
        due_at = job.due_at
        if due_at is None or due_at > self._store.now() or not self._schedule.due(job, self._monotonic()):
            return job
        self._schedule.bound()
        return self._store.get(job.id) if self.reconcile(job) else job

    def reconcile(self, job: Job) -> bool:
        """Check one job; return whether it changed. What is away is tried again at a later check."""
        revision = job.revision
        try:
            job = self._checks.check(job)
        except errors.JobNotFoundError:
            return False
        except (errors.StorageError, errors.BackendError, errors.StoreUnavailableError) as error:
            _log.warning("job %s: will be checked again: %s", job.id, error)
            return False
        except Exception:  # noqa: BLE001 - one broken record must not keep the others waiting
            _log.exception("job %s: could not be reconciled", job.id)
            return False
        return job.revision != revision

"""What ends a job when nothing reports how it went?

The reconciler checks every job that is due: it lets lapsed leases go, enforces deadlines, asks the backend and the
bucket where a webhook may have been lost, confirms cancels, sees a finished video in storage, and clears up what ended
attempts left. Everything that it finds becomes an event; several reconcilers never harm each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from attrs import define, field
from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine import events
from renderdispatch.engine.cleanup import SILENCE, CleanUps, UploadSweep, find_call
from renderdispatch.engine.commit import commit
from renderdispatch.engine.outcomes import call_event
from renderdispatch.engine.rules import CLOCK_SLACK
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import Completed, Stage
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import JobQuery, JobStore, RenderBackend, StorageAdapter, walk

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_PAGE: Final = 100
_MAX_RESULT_BYTES: Final = 1 << 20
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
_REMEMBERED: Final = 10_000
_RECORD_ERRORS: Final = (errors.JobNotFoundError, errors.StoreUnavailableError)


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
    _clean_ups: CleanUps = field(init=False)
    _sweep: UploadSweep = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._clean_ups = CleanUps(self._store, self._storage, self._backends)
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
            job = self._check(job)
        except errors.JobNotFoundError:
            return False
        except (errors.StorageError, errors.BackendError, errors.StoreUnavailableError) as error:
            _log.warning("job %s: will be checked again: %s", job.id, error)
            return False
        except Exception:  # noqa: BLE001 - one broken record must not keep the others waiting
            _log.exception("job %s: could not be reconciled", job.id)
            return False
        return job.revision != revision

    def _commit(self, job: Job, event: events.JobEvent) -> Job:
        return commit(self._store, job, event).job

    def _check_clock(self, job: Job) -> Job:
        return self._commit(job, events.ClockAdvanced())

    # --- one job

    def _check(self, job: Job) -> Job:
        if job.owes_clean_up:
            try:
                job = self._clean_ups.clean_up(job)
            except _RECORD_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - it stays owed; what runs now is not to wait for it
                _log_error(error, "job %s: its clean-up is tried again", job.id)
        if job.ended:
            return job
        attempt = job.attempt
        if attempt is None or attempt.ended_at is not None:
            return self._check_clock(job)
        if job.stage is Stage.FINALIZING:
            return self._finalize(job, attempt)
        if attempt.lease_until is not None:
            if self._store.now() <= attempt.lease_until:
                return self._check_clock(job)
            if attempt.called:
                job = self._find_result(job, attempt)
            return self._commit(job, events.LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until))
        return self._check_call(job, attempt) if attempt.called else self._check_clock(job)

    def _check_call(self, job: Job, attempt: Attempt) -> Job:
        try:
            job = self._ask(job, attempt)
        except (*_RECORD_ERRORS, errors.StorageError):  # storage may hold the result
            raise
        except Exception as error:  # noqa: BLE001 - a backend that never answers must not outlast the deadline
            _log_error(error, "job %s: its backend is asked again", job.id)
        return self._finalize(job, attempt) if job.stage is Stage.FINALIZING else self._check_clock(job)

    def _finalize(self, job: Job, attempt: Attempt) -> Job:
        """Complete the job once storage shows its video (rule J7)."""
        assert job.artifact is not None
        try:
            found = self._storage.stat(job.artifact.key)
        except errors.ObjectNotFoundError:
            return self._commit(job, events.VideoMissing(token=attempt.token))
        job = self._commit(job, events.VideoSeen(token=attempt.token, size=found.size, etag=found.etag))
        return self._clean_ups.clean_up(job) if job.ended and job.owes_clean_up else job

    def _ask(self, job: Job, attempt: Attempt) -> Job:
        """Ask the bucket and the backend how a remote attempt goes (rule J12)."""
        found = self._find_result(job, attempt)
        if found is not job:
            return found
        event = self._ask_backend(job, attempt)
        # The result may have come while the backend was asked.
        if isinstance(event, events.CallMissing | events.AttemptFailed):
            found = self._find_result(job, attempt)
            if found is not job:
                return found
        return job if event is None else self._commit(job, event)

    def _ask_backend(self, job: Job, attempt: Attempt) -> events.AttemptEvent | None:
        """Return what the backend knows of the attempt's call, as an event; tell it to stop if the job is cancelled."""
        backend = self._backends.get(attempt.backend)
        if backend is None:
            return None
        cancelling = job.stage is Stage.CANCELLING
        now = self._store.now()
        call, missing = find_call(backend, job.id, attempt)
        if missing:
            return events.CallMissing(token=attempt.token)
        if call is None:
            never_came = attempt.start_by is not None and now > attempt.start_by + CLOCK_SLACK
            return events.CancelConfirmed(token=attempt.token, stopped=False) if cancelling and never_came else None
        if cancelling:
            backend.cancel(call)
        silent = now - job.updated_at > SILENCE
        return call_event(attempt, backend.poll(call), cancelling=cancelling, silent=silent)

    def _find_result(self, job: Job, attempt: Attempt) -> Job:
        """Apply the result object, if it is there: the attempt was delivered, whatever else is silent."""
        assert attempt.result_key is not None
        try:
            with self._storage.open(attempt.result_key) as file:
                artifact = Completed.model_validate_json(file.read(_MAX_RESULT_BYTES)).artifact
        except errors.ObjectNotFoundError:
            return job
        except ValidationError:
            _log.warning("the object at %s is not a result", attempt.result_key)
            return job
        return self._commit(job, events.ResultFound(token=attempt.token, artifact=artifact))


def _log_error(error: Exception, message: str, job_id: str) -> None:
    """Log what failed; with its traceback unless adapters raise such errors."""
    known = isinstance(error, (errors.StorageError, errors.BackendError))
    _log.log(logging.WARNING if known else logging.ERROR, f"{message}: %s", job_id, error, exc_info=not known)

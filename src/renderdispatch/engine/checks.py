"""What does one look at a job find out?

`Checks.check` lets a lapsed lease go, enforces deadlines, asks the backend and the bucket where a webhook may have been
lost, confirms a cancel, sees a finished video in storage, and clears up what ended attempts left. Everything that it
finds becomes an event, so several processes that check one job never harm each other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from attrs import define, field
from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine import events
from renderdispatch.engine.cleanup import SILENCE, CleanUps, find_call
from renderdispatch.engine.commit import commit
from renderdispatch.engine.outcomes import call_event
from renderdispatch.engine.rules import CLOCK_SLACK
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import Completed, Stage
from renderdispatch.protocols import JobStore, RenderBackend, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_MAX_RESULT_BYTES: Final = 1 << 20
_RECORD_ERRORS: Final = (errors.JobNotFoundError, errors.StoreUnavailableError)


@define(eq=False)
class Checks:
    """Finds out how one job stands, and commits it."""

    _store: JobStore
    _storage: StorageAdapter
    _backends: Mapping[str, RenderBackend]
    _clean_ups: CleanUps = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._clean_ups = CleanUps(self._store, self._storage, self._backends)

    def check(self, job: Job) -> Job:
        """Check everything about the job; return it as it is then.

        Raises:
            JobNotFoundError: It was deleted.
            StorageError, BackendError, StoreUnavailableError: One of them is away: check again later.
        """
        for part in (self.clock, self.orders, self.tidy, self.look):
            job = part(job)
        return job

    def clock(self, job: Job) -> Job:
        """Enforce leases and deadlines; only the store is asked."""
        attempt = job.attempt
        if job.ended or job.stage is Stage.FINALIZING:
            return job
        lapsed = attempt is not None and attempt.lease_until is not None and self._store.now() > attempt.lease_until
        if not lapsed:
            return job if self._is_called(job) else self._check_clock(job)
        assert attempt is not None and attempt.lease_until is not None
        if attempt.called:
            job = self._find_result(job, attempt)
        return self._commit(job, events.LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until))

    def orders(self, job: Job) -> Job:
        """Tell the backend to stop what is not wanted any more."""
        return job

    def look(self, job: Job) -> Job:
        """Ask the bucket and the backend how the running attempt goes; complete a delivered one."""
        attempt = job.attempt
        if attempt is None or job.ended:
            return job
        if job.stage is Stage.FINALIZING:
            return self._finalize(job, attempt)
        return self._check_call(job, attempt) if self._is_called(job) else job

    def tidy(self, job: Job) -> Job:
        """Clear up what ended attempts left."""
        if job.owes_clean_up:
            try:
                job = self._clean_ups.clean_up(job)
            except _RECORD_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001 - it stays owed; what runs now is not to wait for it
                _log_error(error, "job %s: its clean-up is tried again", job.id)
        return job

    @staticmethod
    def _is_called(job: Job) -> bool:
        """Return whether the current attempt runs without a holder: then its backend is to be asked."""
        attempt = job.attempt
        return attempt is not None and attempt.ended_at is None and attempt.called and attempt.lease_until is None

    def _commit(self, job: Job, event: events.JobEvent) -> Job:
        return commit(self._store, job, event).job

    def _check_clock(self, job: Job) -> Job:
        return self._commit(job, events.ClockAdvanced())

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

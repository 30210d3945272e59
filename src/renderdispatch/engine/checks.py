"""What does one check of a job find out?

`Checks.check` makes a check of one job, in four parts: it lets a lapsed lease go and enforces deadlines (`clock`, which
asks the store alone), tells the backend to stop what is not wanted (`orders`), asks the backend and the bucket how the
running attempt goes (`look`), and clears up what ended attempts left (`tidy`). The parts may run apart from each other:
none relies on another one, and what is away fails only what needs it. Everything that they find becomes an event, so
several processes that check one job never harm each other.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Final

from attrs import define, field
from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine import calls, events, retention
from renderdispatch.engine.cleanup import SILENCE, CleanUps
from renderdispatch.engine.clocks import Clocks
from renderdispatch.engine.commit import commit
from renderdispatch.engine.helpers import Chunk, Helpers
from renderdispatch.engine.outcomes import call_event
from renderdispatch.engine.rules import CLOCK_SLACK
from renderdispatch.engine.transitions import Verdict, decide
from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import Completed, Stage
from renderdispatch.plumbing import pieces
from renderdispatch.protocols import JobStore, RenderBackend, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_MAX_RESULT_BYTES: Final = 1 << 20
_RECORD_ERRORS: Final = (
    errors.JobNotFoundError,
    errors.JobUnreadableError,
    errors.RevisionConflictError,
    errors.StoreUnavailableError,
)


@define(eq=False)
class Checks:
    """Finds out the state of one job, and commits it.

    Each part returns the job as it is then. Storage or a backend that is away is logged, and asked at a later check.
    Every part raises `JobNotFoundError` if the job was deleted, and `StoreUnavailableError`.
    """

    _store: JobStore
    _storage: StorageAdapter
    _backends: Mapping[str, RenderBackend]
    _clocks: Clocks
    helpers: Helpers = field(init=False)
    _clean_ups: CleanUps = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.helpers = Helpers(self._store, self._storage, self._backends)
        self._clean_ups = CleanUps(self._store, self._storage, self._backends)

    def check(self, job: Job) -> Job:
        """Check everything about the job, in an order in which each part sees what the one before it found."""
        job = self.orders(self.clock(job))
        for chunk in self.helpers.to_stop(job):
            job = self.stop_helpers(job, chunk)
        self.tell_helpers(job)
        job = self.questions(job)
        for chunk in self.helpers.to_start(job):
            job = self.start_helpers(job, chunk)
        return job

    def questions(self, job: Job) -> Job:
        """Check everything but what is to be told to stop, in such an order."""
        for part in (self.clock, self.ask, self.look, self.tidy):
            job = part(job)
        return job

    def clock(self, job: Job) -> Job:
        """Enforce leases and deadlines. No backend and no storage is asked, so nothing delays this (rule J14)."""
        if job.ended:
            return job
        attempt = job.attempt
        if attempt is not None and attempt.lease_until is not None:
            if self._clocks.lapsed(job):
                job = self._commit(job, events.LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until))
            elif not self._clocks.may_judge(attempt.token):
                return job
        if (by := self._clocks.behind(job)) is not None:
            return self.step(job, by=by)
        event = events.ClockAdvanced()
        due = decide(job, event, self._store.now()).verdict is Verdict.APPLIED  # else a commit would read the job again
        return self._commit(job, event) if due else job

    def doubt(self, job: Job, *, seen: str) -> Job:
        """Note for later processes since when the lease of the job's attempt is over by the clock."""
        attempt = job.attempts[-1]
        assert attempt.lease_until is not None
        return self._commit(job, events.LeaseDoubted(token=attempt.token, lease_until=attempt.lease_until, seen=seen))

    def step(self, job: Job, *, by: timedelta) -> Job:
        """Move the deadlines along with the clock, which was set."""
        return self._commit(job, events.ClockStepped(by=by))

    def orders_of(self, job: Job) -> set[str]:
        """Return the backends that `orders` has something to tell."""
        return {attempt.backend for attempt in job.attempts if job.is_to_stop(attempt)}

    def orders(self, job: Job, *, backends: Collection[str] | None = None) -> Job:
        """Tell the backends to stop what is not wanted any more. Local computing is stopped by its holder.

        Args:
            job: The job.
            backends: Only these are told; None tells all.
        """
        for attempt in job.attempts:
            if backends is not None and attempt.backend not in backends:
                continue
            if not job.is_to_stop(attempt):
                continue
            ended = attempt.clean_up is CleanUp.OWED
            job = self._stop_ended(job, attempt) if ended else self._ask_backend(job, attempt)
        return job

    def ask(self, job: Job) -> Job:
        """Ask the backend how the running attempt goes. Of what is unwanted, `orders` asks."""
        attempt = job.attempt
        if attempt is None or not job.is_out or job.stage is Stage.FINALIZING or job.is_unwanted(attempt):
            return job
        return self._ask_backend(job, attempt)

    def look(self, job: Job) -> Job:
        """Ask the bucket how the running attempt goes (rule J12); complete a delivered one."""
        if job.is_out and job.stage is not Stage.FINALIZING:
            job = self._see_plan(self._ask_bucket(job))
        return self._finalize(job) if job.is_out and job.stage is Stage.FINALIZING else job

    def tidy(self, job: Job) -> Job:
        """Clear up what ended attempts left; remove an expired job."""
        try:
            if job.owes_clean_up:
                job = self._clean_ups.clean_up(job)
            job = self._clean_ups.sweep_pieces(job)
            if retention.may_remove(job, self._store.now()):
                retention.remove(self._store, self._storage, job)
        except _RECORD_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - it stays owed
            _log_error(error, "job %s: its clean-up is tried again", job.id)
        return job

    # --- helpers

    def start_helpers(self, job: Job, chunk: Chunk) -> Job:
        """Start helpers of the running attempt. If storage is away, they are started at a later check."""
        try:
            self.helpers.start(job, chunk.helpers)
        except _RECORD_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - no job depends on its helpers
            _log_error(error, "job %s: its helpers are started later", job.id)
            return job
        return self._store.get(job.id)

    def stop_helpers(self, job: Job, chunk: Chunk) -> Job:
        """Tell helpers to stop that are not wanted any more."""
        return self.helpers.stop(job, chunk)

    def tell_helpers(self, job: Job) -> Job:
        """Store the objects that tell helpers to stop, for those whose backend is away or does not know them."""
        try:
            for attempt in self.helpers.to_write(job):
                self.helpers.write_stop(job, attempt)
        except Exception as error:  # noqa: BLE001 - storage of a third party
            _log_error(error, "job %s: its helpers are told to stop again", job.id)
        return job

    # --- the backend

    def _stop_ended(self, job: Job, attempt: Attempt) -> Job:
        try:
            return self._clean_ups.stop(job, attempt)
        except errors.BackendError as error:
            _log.warning("job %s: the backend of an ended attempt is told to stop again: %s", job.id, error)
            return job

    def _ask_backend(self, job: Job, attempt: Attempt) -> Job:
        try:
            event = self._answer(job, attempt)
        except errors.BackendError as error:
            _log.warning("job %s: its backend is asked again: %s", job.id, error)
            return job
        return job if event is None else self._commit(job, event)

    def _answer(self, job: Job, attempt: Attempt) -> events.AttemptEvent | None:
        """Return what the backend knows of the attempt's call, as an event; tell it to stop what is not wanted."""
        backend = self._backends.get(attempt.backend)
        if backend is None:
            return None
        cancelling = job.stage is Stage.CANCELLING
        now = self._store.now()
        call, missing = calls.find(backend, job.id, token=attempt.token, call_id=attempt.call_id)
        if missing:
            return events.CallMissing(token=attempt.token)
        if call is None:
            never_came = attempt.start_by is not None and now > attempt.start_by + CLOCK_SLACK
            return events.CancelConfirmed(token=attempt.token, stopped=False) if cancelling and never_came else None
        if job.is_unwanted(attempt):
            calls.cancel(backend, call)
        silent = now - job.updated_at > SILENCE
        return call_event(attempt, calls.poll(backend, call), cancelling=cancelling, silent=silent)

    # --- the bucket

    def _ask_bucket(self, job: Job) -> Job:
        """Apply the result object if there is one: the attempt was delivered, whatever else failed or is silent.

        If there is none, an attempt with a verdict ends (rule J6).
        """
        attempt = job.attempts[-1]
        assert attempt.result_key is not None
        try:
            with self._storage.open(attempt.result_key) as file:
                artifact = Completed.model_validate_json(file.read(_MAX_RESULT_BYTES)).artifact
        except errors.ObjectNotFoundError:
            pass
        except ValidationError:
            _log.warning("the object at %s is not a result", attempt.result_key)
        except Exception as error:  # noqa: BLE001 - storage of a third party
            return self._unanswered(job, attempt, error)
        else:
            return self._commit(job, events.ResultFound(token=attempt.token, artifact=artifact))
        return job if attempt.verdict is None else self._conclude(job, attempt)

    def _conclude(self, job: Job, attempt: Attempt) -> Job:
        """End an attempt with a verdict, which delivered nothing; if it drew segments, it does not count (rule J17)."""
        happened: list[events.JobEvent] = []
        if attempt.pieces is not None:
            try:
                keys = [info.key.removeprefix(attempt.pieces) for info in self._storage.list(attempt.pieces)]
            except Exception as error:  # noqa: BLE001 - storage of a third party
                return self._unanswered(job, attempt, error)
            standing = len({index for key in keys if (index := pieces.index_of(key)) is not None})
            happened.append(events.SegmentsSeen(token=attempt.token, standing=standing))
        happened.append(events.ResultMissing(token=attempt.token))
        return commit(self._store, job, *happened).job

    def _see_plan(self, job: Job) -> Job:
        """See whether the plan of the running attempt is kept, so that its helpers can be started (rule J12)."""
        attempt = job.attempt
        if job.parallel < 2 or attempt is None or not job.is_out or job.is_unwanted(attempt):
            return job
        if attempt.planned or attempt.pieces is None:
            return job
        try:
            self._storage.stat(attempt.pieces + pieces.plan_name(0))
        except errors.ObjectNotFoundError:
            return job
        except Exception as error:  # noqa: BLE001 - storage of a third party
            _log_error(error, "job %s: its plan is looked for again", job.id)
            return job
        return self._commit(job, events.PlanSeen(token=attempt.token))

    def _finalize(self, job: Job) -> Job:
        """Complete the job once storage shows its video (rule J7)."""
        attempt = job.attempts[-1]
        assert job.artifact is not None
        try:
            found = self._storage.stat(job.artifact.key)
        except errors.ObjectNotFoundError:
            return self._commit(job, events.VideoMissing(token=attempt.token))
        except Exception as error:  # noqa: BLE001 - storage of a third party
            return self._unanswered(job, attempt, error)
        return self._commit(job, events.VideoSeen(token=attempt.token, size=found.size, etag=found.etag))

    def _unanswered(self, job: Job, attempt: Attempt, error: Exception) -> Job:
        _log_error(error, "job %s: storage is asked again", job.id)
        overdue = job.answer_by is not None and self._store.now() >= job.answer_by
        return self._commit(job, events.StorageSilent(token=attempt.token)) if overdue else job

    def _commit(self, job: Job, event: events.JobEvent) -> Job:
        return commit(self._store, job, event).job


def _log_error(error: Exception, message: str, job_id: str) -> None:
    """Log what failed; with its traceback unless adapters raise such errors."""
    known = isinstance(error, (errors.StorageError, errors.BackendError))
    _log.log(logging.WARNING if known else logging.ERROR, f"{message}: %s", job_id, error, exc_info=not known)

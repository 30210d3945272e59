"""What ends a job when nobody says how it went?

The reconciler looks at every job that is due: it lets lapsed leases go, holds deadlines, asks the backend and the
bucket where a webhook may have been lost, confirms cancels, sees a finished video in storage, and clears away what
ended attempts left. Everything it finds becomes an event; several reconcilers never harm each other. Now and then it
deletes the uploads of clients that no job can need any more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from attrs import define
from pydantic import ValidationError

from renderdispatch.engine import layout
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import (
    AttemptFailed,
    AudioDropped,
    CallMissing,
    CancelConfirmed,
    CleanedUp,
    ClockAdvanced,
    JobEvent,
    LeaseLapsed,
    ResultFound,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.engine.rules import CLOCK_SLACK
from renderdispatch.errors import (
    BackendError,
    JobNotFoundError,
    ObjectNotFoundError,
    StorageError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import Artifact, Completed, Failed, FaultDomain, JobError, Stage
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    JobQuery,
    JobStore,
    RenderBackend,
    StorageAdapter,
    SupportsFind,
)

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_PAGE: Final = 100
_MAX_RESULT_BYTES: Final = 1 << 20
_SWEEP_S: Final = 3600.0
_SWEPT_AT_ONCE: Final = 200
_SILENCE: Final = timedelta(minutes=2)
"""How long the newest run of a call that has already ended may show no progress, for nobody would start it again; and
how long other runs of an attempt are given to hear that it has ended."""
_UPLOADS_KEPT: Final = timedelta(days=layout.UPLOAD_DAYS + 6) + 11 * CLOCK_SLACK
"""An upload is submitted within its days, and a job ends within six days; the order's URLs end 10 minutes later."""
_LOOK_AGAIN_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
_LOOKS_KEPT: Final = 10_000


@define
class _Look:
    """When a job that did not change is worth another look."""

    revision: int
    looks: int
    next_at: float


class Reconciler:
    """Ends what nobody else ends.

    Args:
        monotonic: The clock that spaces repeated looks at one job, and sweeps of the uploads; seconds.
    """

    def __init__(
        self,
        store: JobStore,
        storage: StorageAdapter,
        backends: Mapping[str, RenderBackend],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._storage = storage
        self._backends = backends
        self._monotonic = monotonic
        self._looks: dict[str, _Look] = {}
        self._sweep_at = monotonic()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have a round in progress end with the job that it looks at."""
        self._stopped.set()

    def tick(self) -> int:
        """Look at every job that is due; return how many were changed."""
        changed = 0
        cursor = None
        seen: set[str] = set()
        due_by = self._store.now()
        while True:
            page = self._store.query(JobQuery(order="due", due_by=due_by, limit=_PAGE, cursor=cursor))
            for job in page.items:
                if self._stopped.is_set():
                    return changed
                seen.add(job.id)
                if self._worth_a_look(job):
                    changed += self.reconcile(job)
            cursor = page.cursor
            if cursor is None:
                break
        self._looks = {job_id: look for job_id, look in list(self._looks.items()) if job_id in seen}
        self._sweep_uploads()
        return changed

    def look(self, job: Job) -> Job:
        """Reconcile one job that somebody asks about, where it is due and worth a look; return it as it is then."""
        due_at = job.due_at
        if due_at is None or due_at > self._store.now() or not self._worth_a_look(job):
            return job
        if len(self._looks) > _LOOKS_KEPT:  # nobody ticks here, which is what forgets them
            self._looks.clear()
        return self._store.get(job.id) if self.reconcile(job) else job

    def reconcile(self, job: Job) -> bool:
        """Look at one job; return whether it changed. What is away is tried again at a later look."""
        revision = job.revision
        try:
            job = self._look_at(job)
        except JobNotFoundError:
            return False
        except (StorageError, BackendError, StoreUnavailableError) as error:
            _log.warning("job %s: will look again: %s", job.id, error)
            return False
        except Exception:  # noqa: BLE001 - one broken record must not keep the others waiting
            _log.exception("job %s: could not be reconciled", job.id)
            return False
        return job.revision != revision

    def _sweep_uploads(self) -> None:
        """Delete uploads that are too old for any job to need them, at most once an hour while there are few.

        Their keys say how old they are and sort by it, so nobody is asked, and no younger one is listed.
        """
        if self._monotonic() < self._sweep_at:
            return
        self._sweep_at = self._monotonic() + _SWEEP_S
        now = self._store.now()
        try:
            old = list(islice(self._old_uploads(now), _SWEPT_AT_ONCE))
            for key in old:
                self._storage.delete(key)
        except StorageError as error:
            _log.warning("old uploads: will look again: %s", error)
            return
        if len(old) == _SWEPT_AT_ONCE:  # more are waiting: let jobs go first
            self._sweep_at = self._monotonic()

    def _old_uploads(self, now: datetime) -> Iterator[str]:
        for info in self._storage.list(layout.UPLOADS):
            age = layout.upload_age(info.key, now)
            if age is not None and age <= _UPLOADS_KEPT:
                return
            if age is not None:
                yield info.key

    def _worth_a_look(self, job: Job) -> bool:
        now = self._monotonic()
        look = self._looks.get(job.id)
        if look is None or look.revision != job.revision:
            look = self._looks[job.id] = _Look(job.revision, 0, now)
        if now < look.next_at:
            return False
        look.next_at = now + _LOOK_AGAIN_S[min(look.looks, len(_LOOK_AGAIN_S) - 1)]
        look.looks += 1
        return True

    def _commit(self, job: Job, event: JobEvent) -> Job:
        return commit(self._store, job, event).job

    # --- one job

    def _look_at(self, job: Job) -> Job:
        if job.owes_clean_up:
            try:
                job = self._clean_up(job)
            except (JobNotFoundError, StoreUnavailableError):
                raise
            except Exception as error:  # noqa: BLE001 - it stays owed; what runs now is not to wait for it
                _tell(error, "job %s: its clean-up is tried again", job.id)
        if job.ended:
            return job
        attempt = job.attempt
        if attempt is None or attempt.ended_at is not None:
            return self._commit(job, ClockAdvanced())
        if job.stage is Stage.FINALIZING:
            return self._finalize(job, attempt)
        if attempt.lease_until is not None:
            if self._store.now() <= attempt.lease_until:
                return self._commit(job, ClockAdvanced())
            if attempt.called:
                job = self._find_result(job, attempt)
            return self._commit(job, LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until))
        if attempt.called:
            try:
                job = self._ask(job, attempt)
            except (JobNotFoundError, StoreUnavailableError, StorageError):  # the result may stand there
                raise
            except Exception as error:  # noqa: BLE001 - a backend that never answers must not outlast the deadline
                _tell(error, "job %s: its backend is asked again", job.id)
            if job.stage is Stage.FINALIZING:
                return self._finalize(job, attempt)
        return self._commit(job, ClockAdvanced())

    def _finalize(self, job: Job, attempt: Attempt) -> Job:
        """Complete the job once storage shows its video (rule J7)."""
        assert job.artifact is not None
        try:
            found = self._storage.stat(job.artifact.key)
        except ObjectNotFoundError:
            return self._commit(job, VideoMissing(token=attempt.token))
        job = self._commit(job, VideoSeen(token=attempt.token, size=found.size, etag=found.etag))
        return self._clean_up(job) if job.ended and job.owes_clean_up else job

    def _ask(self, job: Job, attempt: Attempt) -> Job:
        """Ask the backend how a remote attempt goes, and the bucket where that says nothing (rule J12)."""
        found = self._find_result(job, attempt)
        if found is not job:
            return found
        backend = self._backends.get(attempt.backend)
        call = self._call_of(attempt)
        if backend is None:
            return job
        if call is None:
            if isinstance(backend, SupportsFind):
                call = backend.find(job_id=job.id, token=attempt.token)
                if call is None:
                    return self._commit(job, CallMissing(token=attempt.token))
            elif job.stage is Stage.CANCELLING and self._start_passed(attempt):
                return self._commit(job, CancelConfirmed(token=attempt.token, stopped=False))
            else:
                return job
        if job.stage is Stage.CANCELLING:
            backend.cancel(call)
        silent = self._store.now() - job.updated_at > _SILENCE
        event = _what_it_says(attempt, backend.poll(call), cancelling=job.stage is Stage.CANCELLING, silent=silent)
        if isinstance(event, CallMissing | AttemptFailed):  # the result may have come while the backend was asked
            found = self._find_result(job, attempt)
            if found is not job:
                return found
        return job if event is None else self._commit(job, event)

    def _call_of(self, attempt: Attempt) -> BackendCall | None:
        return None if attempt.call_id is None else BackendCall(attempt.call_id)

    def _start_passed(self, attempt: Attempt) -> bool:
        return attempt.start_by is not None and self._store.now() > attempt.start_by + CLOCK_SLACK

    def _find_result(self, job: Job, attempt: Attempt) -> Job:
        """Apply the result object, where it stands: the attempt was delivered, whatever else is silent."""
        assert attempt.result_key is not None
        artifact = self._read_result(attempt.result_key)
        return job if artifact is None else self._commit(job, ResultFound(token=attempt.token, artifact=artifact))

    def _read_result(self, key: str) -> Artifact | None:
        try:
            with self._storage.open(key) as file:
                return Completed.model_validate_json(file.read(_MAX_RESULT_BYTES)).artifact
        except ObjectNotFoundError:
            return None
        except ValidationError:
            _log.warning("the object at %s is no result", key)
            return None

    # --- clean-up

    def _clean_up(self, job: Job) -> Job:
        """Stop the calls of ended attempts, remove their objects, and the stored copy of a local file."""
        for attempt in job.attempts:
            if attempt.clean_up is CleanUp.OWED and self._is_stopped(job, attempt):
                self._storage.delete_prefix(layout.attempt_prefix(layout.prefix_of(job), attempt.token))
                job = self._commit(job, CleanedUp(token=attempt.token))
        if job.audio_clean_up is CleanUp.OWED:
            if job.audio is not None:
                self._storage.delete(job.audio.key)
            job = self._commit(job, AudioDropped())
        return job

    def _is_stopped(self, job: Job, attempt: Attempt) -> bool:
        """Return whether nothing of an ended attempt can compute or write any more; tell it to stop if it can."""
        assert attempt.ended_at is not None
        # what is known to have stopped is one run: of an input delivered twice, the other hears it at its next report
        heard = len(attempt.runs) < 2 or self._store.now() > attempt.ended_at + _SILENCE
        if attempt.local or (attempt.stopped and heard):  # local computing ended with its holder, at the latest
            return True
        backend = self._backends.get(attempt.backend)
        call = self._call_of(attempt)
        if call is None and isinstance(backend, SupportsFind):
            call = backend.find(job_id=job.id, token=attempt.token)
            if call is None:
                return True
        if call is not None and backend is not None:
            backend.cancel(call)
            if backend.poll(call).status is not CallStatus.RUNNING:
                return heard
        # Out of reach: the order's own URLs end with the job's deadline.
        return self._store.now() > job.finish_by + 11 * CLOCK_SLACK


def _tell(error: Exception, message: str, job_id: str) -> None:
    """Log what failed; with its traceback where it is no error that adapters raise."""
    known = isinstance(error, (StorageError, BackendError))
    _log.log(logging.WARNING if known else logging.ERROR, f"{message}: %s", job_id, error, exc_info=not known)


def _what_it_says(attempt: Attempt, state: CallState, *, cancelling: bool, silent: bool) -> JobEvent | None:
    """Turn a backend's answer into an event; None when it says nothing new."""
    if state.status is CallStatus.RUNNING:
        return None
    # of an input that was delivered twice the call's answer is the first run's to end; the newest one may go on (J6)
    older = isinstance(state.outcome, Failed) and state.outcome.run_id in attempt.runs[:-1]
    if cancelling:
        return CancelConfirmed(token=attempt.token, stopped=not older)
    if older and silent:
        message = "the call ended with the answer of an older run, and the newest one gives no sign of life"
        lost = JobError(code="runner.silent", message=message, fault=FaultDomain.INFRASTRUCTURE)
        return AttemptFailed(token=attempt.token, error=lost, stopped=False)
    if older:
        return None
    if state.status is CallStatus.MISSING:
        return CallMissing(token=attempt.token)
    if isinstance(state.outcome, Completed):
        return ResultFound(token=attempt.token, artifact=state.outcome.artifact)
    error = state.outcome.error if state.outcome is not None else state.error
    if error is None:
        error = JobError(
            code="runner.died", message="the render ended without a word", fault=FaultDomain.INFRASTRUCTURE
        )
    return AttemptFailed(token=attempt.token, error=error, stopped=True)

"""What do ended attempts and unused uploads leave behind, and when may it go?

`CleanUps` stops the calls of ended attempts and removes their objects, once nothing can write them any more. It removes
plans, segments and grants of an ended job twice: when no retry can need them, and when no upload can be under way.
`UploadSweep` deletes what came after a job was deleted, and the uploads of clients that no job can need any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from attrs import define, frozen

from renderdispatch.engine import calls, layout, loans, tombstones
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import (
    AudioDropped,
    CallStopped,
    CleanedUp,
    PiecesGone,
    PiecesNeeded,
    PiecesSwept,
    Swept,
)
from renderdispatch.errors import StorageError
from renderdispatch.jobs import URLS_EXPIRED, Attempt, CleanUp, Job
from renderdispatch.protocols import CallStatus, JobStore, RenderBackend, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

SILENCE: Final = timedelta(minutes=2)
"""How long the newest run of a call that has already ended may show no progress: no backend would start it again. And
how long other runs of an attempt may take to learn that it has ended."""

_LENT: Final = timedelta(minutes=10)
"""How long pieces that are lent are left alone before their borrower is looked at again."""

_SWEEP_S: Final = 3600.0
_SWEPT_AT_ONCE: Final = 200
_UPLOADS_KEPT: Final = timedelta(days=layout.UPLOAD_DAYS + 6) + URLS_EXPIRED
"""An upload is submitted within its days, and a job ends within six days."""


def _prefixes(job: Job, attempt: Attempt) -> Iterator[str]:
    """Yield the prefixes of what the attempt stored, except for a copy of the audio that the job has."""
    prefix = layout.prefix_of(job)
    yield layout.attempt_prefix(prefix, attempt.token)
    copies = f"{prefix}{layout.attempt_upload(attempt.token)}/"
    if attempt.may_write and not (job.audio is not None and job.audio.key.startswith(copies)):
        yield copies


def _stop_keys(job: Job, attempt: Attempt, now: datetime) -> frozenset[str]:
    """Return what is to outlive an attempt's other objects: the word to stop, while a helper may still look for it."""
    draws = any(helper.may_compute for helper in attempt.helpers)
    if not draws or now > job.finish_by + URLS_EXPIRED:
        return frozenset()
    return frozenset({layout.stop_key(layout.prefix_of(job), attempt.token)})


@frozen
class CleanUps:
    """Clears up what ended attempts left."""

    store: JobStore
    storage: StorageAdapter
    backends: Mapping[str, RenderBackend]

    def stop(self, job: Job, attempt: Attempt) -> Job:
        """Tell the call of an ended remote attempt to stop; record it where its backend says that it has.

        Raises:
            BackendError: The backend is away.
        """
        backend = self.backends.get(attempt.backend)
        call, missing = calls.find(backend, job.id, token=attempt.token, call_id=attempt.call_id)
        if call is not None and backend is not None:
            calls.cancel(backend, call)
            missing = calls.poll(backend, call).status is not CallStatus.RUNNING
        return commit(self.store, job, CallStopped(token=attempt.token)).job if missing else job

    def clean_up(self, job: Job) -> Job:
        """Remove the objects of ended attempts, and the stored copy of a local file.

        Raises:
            StorageError: Storage is away; the rest stays owed.
        """
        for attempt in job.attempts:
            if attempt.clean_up is not CleanUp.OWED:
                continue
            now = self.store.now()
            over = self._is_over(job, attempt, now)
            if over or (attempt.may_write and now >= (attempt.sweep_at or now)):
                for prefix in _prefixes(job, attempt):
                    self._delete(prefix, kept=_stop_keys(job, attempt, now))
                done = CleanedUp(token=attempt.token) if over else Swept(token=attempt.token)
                job = commit(self.store, job, done).job
        if job.audio_clean_up is CleanUp.OWED and job.audio is not None:
            self.storage.delete(job.audio.key)
            job = commit(self.store, job, AudioDropped(key=job.audio.key)).job
        return job

    def sweep_pieces(self, job: Job) -> Job:
        """Delete plans, segments and grants of an ended job, if that is due and no borrower needs them.

        The first sweep is recorded before it begins: what is about to go can be lent no more. The last one is recorded
        when it is done.

        Raises:
            StorageError: Storage is away; the rest stays owed.
            StoreUnavailableError: The store is away.
        """
        now = self.store.now()
        if job.pieces_sweep_at is None or job.pieces_sweep_at > now:
            return job
        if job.pieces_swept_at is None:
            if (needed_until := loans.needed_until(self.store, job, now)) is not None:
                return commit(self.store, job, PiecesNeeded(until=min(needed_until, now + _LENT))).job
            job = commit(self.store, job, PiecesSwept(lent_to=job.lent_to)).job
            if job.pieces_swept_at is None:  # it was lent meanwhile
                return job
        last, prefix = now >= job.finish_by + URLS_EXPIRED, layout.prefix_of(job)
        self.storage.delete_prefix(layout.all_pieces(prefix))
        for attempt in job.attempts:
            for key in layout.passing_keys(prefix, attempt.token, stop=last) if attempt.pieces is not None else ():
                self.storage.delete(key)
        return commit(self.store, job, PiecesGone()).job if last else job

    def _delete(self, prefix: str, *, kept: frozenset[str]) -> None:
        """Delete all objects below a prefix but those that are kept."""
        if not kept:
            self.storage.delete_prefix(prefix)
            return
        for info in list(self.storage.list(prefix)):
            if info.key not in kept:
                self.storage.delete(info.key)

    def _is_over(self, job: Job, attempt: Attempt, now: datetime) -> bool:
        """Return whether nothing of an ended attempt can write any more."""
        assert attempt.ended_at is not None
        # Only one run is known to have stopped. Another run of the same input learns this at its next report.
        heard = len(attempt.runs) < 2 or now > attempt.ended_at + SILENCE
        # Out of reach: the order's own URLs end with the job's deadline.
        return (attempt.stopped and heard) or now > job.finish_by + URLS_EXPIRED


@define
class UploadSweep:
    """Deletes uploads that are too old for any job to need them, at most once an hour while there are few.

    Their keys hold their age and sort by it, so no upload is opened, and no younger one is listed. The objects of
    tombstones are deleted likewise.

    Args:
        next_s: When the next sweep is due, on the clock that `sweep` is given.
    """

    storage: StorageAdapter
    next_s: float

    def sweep(self, now: datetime, monotonic_s: float) -> None:
        """Delete old uploads and the objects of tombstones, if a sweep is due."""
        if monotonic_s < self.next_s:
            return
        self.next_s = monotonic_s + _SWEEP_S
        try:
            old = list(islice(self._old(now), _SWEPT_AT_ONCE))
            for key in old:
                self.storage.delete(key)
            buried = tombstones.bury(self.storage, now, limit=_SWEPT_AT_ONCE)
        except StorageError as error:
            _log.warning("old uploads: the sweep is repeated later: %s", error)
            return
        if _SWEPT_AT_ONCE in (len(old), buried):  # more are waiting: let jobs go first
            self.next_s = monotonic_s

    def _old(self, now: datetime) -> Iterator[str]:
        for info in self.storage.list(layout.UPLOADS):
            age = layout.upload_age(info.key, now)
            if age is not None and age <= _UPLOADS_KEPT:
                return
            if age is not None:
                yield info.key

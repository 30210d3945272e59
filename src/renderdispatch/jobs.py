"""What is a job?

A value: the request, the stage, the attempts and the end. `renderdispatch.engine.transitions` says what may happen to
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attrs import field, frozen

from renderdispatch import messages

CHECK_INTERVAL: Final = timedelta(seconds=15)
"""How long a remote attempt may be silent before the reconciler polls its backend."""

ANSWER_LIMIT: Final = timedelta(hours=1)
"""How long a job waits for a storage that does not respond, beyond its total deadline (rule J7)."""

URLS_EXPIRED: Final = timedelta(minutes=11)
"""How long after a job's deadline its orders' URLs are surely dead: they outlive it by 10 minutes (rule J13: 60 s)."""

PIECES_KEPT: Final = timedelta(hours=24)
"""How long the segments of a job that failed by no fault of its request are kept, for a retry to go on with."""

FAILOVER: Final = "*failover"
"""In `Job.look_needs`: the policy that chooses where a job is tried again. No backend can have this name."""

EXPIRY_GRACE: Final = timedelta(minutes=2) + messages.CLOCK_SLACK
"""How long the objects of an expired job stay: a URL that was signed just before is still good for that long."""

_DRAWING: Final = frozenset(
    {
        *(messages.Stage.DISPATCHING, messages.Stage.DISPATCHED),
        *(messages.Stage.DOWNLOADING_AUDIO, messages.Stage.RENDERING),
    }
)
"""The stages in which a helper may still have something to draw."""

_SWEEPS: Final = 4
"""An attempt that may still write is swept again after a quarter of the time since it ended: 50 times in 6 hours."""

_SPOILT: Final = frozenset({messages.FaultDomain.REQUEST, messages.FaultDomain.AUDIO, messages.FaultDomain.SCENE})
"""Faults that a retry meets again."""


if TYPE_CHECKING:
    from attrs import evolve as evolve  # noqa: PLC0414 - exported: type checkers know what it takes
else:
    _T = TypeVar("_T")

    def evolve(record: _T, **changes: Any) -> _T:
        """Return a job or an attempt with changes, as `attrs.evolve` does, in a fifth of its time."""
        new = object.__new__(type(record))
        fields = new.__dict__
        fields.update(record.__dict__)
        known = len(fields)
        fields.update(changes)
        if len(fields) != known:
            unknown = sorted(changes.keys() - record.__dict__.keys())
            raise TypeError(f"{type(record).__name__} has no field {', '.join(unknown)}")
        return new


class CleanUp(StrEnum):
    """Whether an ended attempt may still compute, or has objects that are to be deleted."""

    NONE = "none"
    OWED = "owed"
    DONE = "done"


class HelperState(StrEnum):
    """How far a helper of an attempt has come."""

    INTENDED = "intended"
    """It may be started."""

    STARTING = "starting"
    """Its backend may have been called. It is found, or left alone; it is never started again."""

    STARTED = "started"
    """Its call is known."""

    STOPPED = "stopped"
    """Its computing is known to have stopped, or it was never started and never will be."""


@frozen(kw_only=True, slots=False)
class Helper:
    """A call that draws segments beside the lead of an attempt. Nothing depends on it.

    Args:
        share: Which segments it draws first; see `messages.HelperOrder`.
        token: Its own; it keys its start.
        state: How far it has come.
        call_id: The backend's id of its call; None while unknown.
    """

    share: int
    token: str = field(repr=False)
    state: HelperState = HelperState.INTENDED
    call_id: str | None = None

    @property
    def may_compute(self) -> bool:
        """Whether it was started, or perhaps was, and is not known to have stopped."""
        return self.state in {HelperState.STARTING, HelperState.STARTED}


class Holding(NamedTuple):
    """Units of a backend's limit that a job holds until its computing there is known to have stopped.

    Args:
        backend: Where it computes, or may still compute.
        units: How many.
        until: When they end at the latest: the URLs of the orders are dead then.
    """

    backend: str
    units: int
    until: datetime


@frozen(kw_only=True, slots=False)
class Attempt:
    """One try at a job, fenced by a token of its own.

    Args:
        number: 1 for the first.
        token: The fence. Events with another token are superseded.
        backend: The name of the backend that renders it.
        local: Whether computing ends with its holder (inline and local backends).
        claimed_at: When it began.
        holder: Who holds the lease; None if no holder is needed (remote, after dispatch).
        lease_until: When the lease lapses unless it is renewed, by the store's clock.
        doubted: Since when a process that does not hold it waits for a renewal, on a clock that is never set.
        called: Whether the backend may have been called. Committed before the call (rule J2).
        call_id: The backend's id of the call; None while unknown.
        runs: The ids of the runs that checked in, oldest first. The last one owns the attempt.
        runs_advanced: During how many of its older runs the count of standing segments rose.
        start_by: When the first check-in is due.
        video_key: Where the run stores the video; None before the dispatch.
        result_key: Where the run stores the result object; None before the dispatch.
        pieces: The prefix of the plan and the segments that its runs keep; None: they keep nothing.
        frames: Frames rendered so far.
        frames_total: Frames in all.
        planned: Whether its plan was seen, so that helpers may draw.
        helpers: Its helpers; all of them are intended at once, when the plan was seen.
        segments: How many segments its video has; None while that is not known, or if nothing is kept.
        segments_standing: How many were seen to be drawn and kept, whoever drew them.
        segments_own: How many of them its newest run drew.
        segments_before: How many were known to be kept when it began.
        segments_then: How many were known to be kept when its newest run began.
        stage_times: When each stage was first entered.
        verdict: Why it fails as soon as storage was asked for its result (rule J6); None while nothing has failed.
        verdict_at: When the verdict was given.
        overdue_at: When storage was found not to have responded in time (rule J7).
        ended_at: When it ended; None while it runs.
        error: Why it failed.
        refused: Whether its backend refused to start it, so that nothing was ever started.
        stopped: Whether the computing of its runs is known to have stopped; before the call, its preparation.
        cancelled: Whether its cancel reached its backend, so that the job ends once its helpers have stopped.
        clean_up: Whether its call and its objects are still to be cleaned up.
        swept_at: When its objects were last removed although it may still write more.
    """

    number: int
    token: str = field(repr=False)
    backend: str
    local: bool
    claimed_at: datetime
    holder: str | None = None
    lease_until: datetime | None = None
    doubted: str | None = None
    called: bool = False
    call_id: str | None = None
    runs: tuple[str, ...] = ()
    runs_advanced: int = 0
    start_by: datetime | None = None
    video_key: str | None = None
    result_key: str | None = None
    pieces: str | None = None
    frames: int | None = None
    frames_total: int | None = None
    planned: bool = False
    helpers: tuple[Helper, ...] = ()
    segments: int | None = None
    segments_standing: int = 0
    segments_own: int = 0
    segments_before: int = 0
    segments_then: int = 0
    stage_times: Mapping[messages.Stage, datetime] = field(factory=dict)
    verdict: messages.JobError | None = None
    verdict_at: datetime | None = None
    overdue_at: datetime | None = None
    ended_at: datetime | None = None
    error: messages.JobError | None = None
    refused: bool = False
    stopped: bool = False
    cancelled: bool = False
    clean_up: CleanUp = CleanUp.NONE
    swept_at: datetime | None = None

    @property
    def unwanted(self) -> bool:
        """Whether its computing is to stop: it has ended, or ends as soon as storage was asked for its result."""
        return self.ended_at is not None or self.verdict is not None

    @property
    def holds_unit(self) -> bool:
        """Whether its run counts against the limits of running attempts: it runs, or its call may still compute.

        A call of this machine ends with the process that holds it (rule J2), so it needs no word that it stopped.
        """
        if self.ended_at is None:
            return True
        return self.called and not self.local and not self.stopped and self.clean_up is CleanUp.OWED

    @property
    def units(self) -> int:
        """How many units of its backend's limit it holds: one for its run, and one for each helper that may compute."""
        helpers = () if self.local and self.ended_at is not None else self.helpers
        return self.holds_unit + sum(helper.may_compute for helper in helpers)

    @property
    def shares_pieces(self) -> bool:
        """Whether another attempt can go on from the segments that it keeps."""
        return self.pieces is not None and self.token not in self.pieces

    @property
    def advanced(self) -> bool:
        """Whether it drew segments from which another attempt can go on: then it does not count as a try."""
        return self.shares_pieces and self.segments_standing > self.segments_before

    @property
    def may_write(self) -> bool:
        """Whether it ended because its holder went silent: a holder that is only slow may still store something."""
        return self.ended_at is not None and not self.stopped and (self.local or not self.called)

    @property
    def sweep_at(self) -> datetime | None:
        """When to remove again what it may have written since the last sweep; None: at the next check."""
        if not self.may_write or self.swept_at is None or self.ended_at is None:
            return None
        return self.swept_at + (self.swept_at - self.ended_at) / _SWEEPS


@frozen(kw_only=True, slots=False)
class Job:
    """The record of a job; a value, so a change is a new `Job`.

    Args:
        incarnation: A random name for this life of the id: if the job is deleted and its id is created again, the new
            job has another one. The keys of the job's objects hold it (rule J15).
        fingerprint: Identifies the request: a repeated idempotency key must come with the same one (rule J9).
        parallel: How many calls of the backend draw its video at once, with the lead. It is not part of the request.
        retry_of: The id of the job that this one repeats.
        progress: 0 to 100; never falls within an attempt.
        batch: The id of the batch that it was submitted with.
        reroutes: Whether a policy of the service chooses the backend of each attempt, by what ended the last one.
        rerouted_to: The backend that the policy chose; None: the one of the request.
        retry_at: When its next attempt may begin on the backend of the last one. It is set while the policy has yet to
            choose a backend; until then the job cannot be claimed.
        ready_at: The earliest time at which a dispatcher may claim it; None if it is not claimable.
        finish_by: When it fails unless it has ended.
        audio: The audio in storage; None before it is stored.
        audio_clean_up: Whether the stored copy of a local file is still to be deleted.
        attachments: The stored copies of files beside the audio, by the names of `RenderRequest.attached`. They are
            kept until the job is deleted.
        pieces_clean_up: Whether plans, segments and grants of its attempts are still to be deleted.
        pieces_swept_at: When they were first deleted after its end. They are deleted once more when no upload of them
            can be under way.
        pieces_kept_until: Before then they are not deleted, because a borrower reads them.
        borrows: The prefix of the pieces of the job that this one repeats.
        lent_to: The id of the job that repeats this one and reads its pieces.
        compute_stopped_at: When a cancelled job's computing stopped; None if that is not known.
        finalizing_at: When a delivery was reported; None before that.
        expired_at: When the job was given up, after its retention or by a delete: no URL is signed any more, and its
            objects and its record are removed soon. None: it is kept.
        revision: Rises by one at each write; set by the store.
        protocol: The protocol of the version that wrote the record; set by the store. Older versions leave it alone.
    """

    id: str
    incarnation: str
    tenant: str | None = None
    request: messages.RenderRequest
    fingerprint: str
    priority: int = 0
    parallel: int = 1
    retry_of: str | None = None
    batch: str | None = None
    reroutes: bool = False
    rerouted_to: str | None = None
    retry_at: datetime | None = None
    created_at: datetime
    updated_at: datetime
    finish_by: datetime
    ready_at: datetime | None
    status: messages.JobStatus = messages.JobStatus.PENDING
    stage: messages.Stage = messages.Stage.QUEUED
    progress: float = 0.0
    audio: messages.StoredAudio | None = None
    audio_clean_up: CleanUp = CleanUp.NONE
    attachments: Mapping[str, messages.StoredAudio] = field(factory=dict)
    pieces_clean_up: CleanUp = CleanUp.NONE
    pieces_swept_at: datetime | None = None
    pieces_kept_until: datetime | None = None
    borrows: str | None = None
    lent_to: str | None = None
    attempts: tuple[Attempt, ...] = ()
    error: messages.JobError | None = None
    artifact: messages.Artifact | None = None
    cancel_requested_at: datetime | None = None
    compute_stopped_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    expired_at: datetime | None = None
    revision: int = 0
    protocol: int = messages.PROTOCOL

    @property
    def backend(self) -> str:
        """The backend that its next attempt waits for."""
        return self.rerouted_to or self.request.backend

    @property
    def lease_until(self) -> datetime | None:
        """When the lease of its attempt lapses; None if it has none."""
        attempt = self.attempt
        return None if self.ended or attempt is None else attempt.lease_until

    def holdings(self) -> tuple[Holding, ...]:
        """Return the units of running attempts that it holds, those of the current attempt last."""
        until = self.finish_by + URLS_EXPIRED
        return tuple(Holding(attempt.backend, units, until) for attempt in self.attempts if (units := attempt.units))

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt: the newest one, running or ended."""
        return self.attempts[-1] if self.attempts else None

    @property
    def attempt_number(self) -> int:
        """The number of the current attempt; 0 before the first. A record may have forgotten earlier ones."""
        return self.attempts[-1].number if self.attempts else 0

    @property
    def ended(self) -> bool:
        """Whether the job has ended, however it ended."""
        return self.status.terminal

    def attached(self) -> dict[str, messages.StoredAudio | messages.LocalAudio]:
        """Return where the files beside the audio are now, by the names of `RenderRequest.attached`."""
        return {**self.request.attached(), **self.attachments}

    @property
    def machine(self) -> str | None:
        """The only machine whose workers may claim this job, because a file of it lies there. None: any machine."""
        audio = self.audio or self.request.audio
        if isinstance(audio, messages.LocalAudio):
            return audio.machine
        files = self.attached().values()
        return next((file.machine for file in files if isinstance(file, messages.LocalAudio)), None)

    @property
    def owes_clean_up(self) -> bool:
        """Whether an ended attempt or the copy of a local file is still to be cleaned up, or a helper may compute.

        Plans and segments are kept for longer, and are not part of this: see `owes_pieces`.
        """
        return self.audio_clean_up is CleanUp.OWED or any(
            attempt.clean_up is CleanUp.OWED or (attempt.ended_at is not None and self.helpers_to_stop(attempt))
            for attempt in self.attempts
        )

    @property
    def owes_pieces(self) -> bool:
        """Whether it has ended, and plans, segments and grants of it are still to be deleted, now or later."""
        return self.ended and self.pieces_clean_up is CleanUp.OWED

    @property
    def pieces_sweep_at(self) -> datetime | None:
        """When plans, segments and grants are to be deleted next; None: not now, or never again. A loan delays it."""
        if not self.owes_pieces or self.ended_at is None:
            return None
        if self.pieces_swept_at is not None:
            return max(self.pieces_swept_at, self.finish_by + URLS_EXPIRED)
        spoilt = self.error is None or self.error.fault in _SPOILT
        sweep_at = self.ended_at if spoilt else self.ended_at + PIECES_KEPT
        if self.expired_at is not None:
            sweep_at = self.expired_at
        return sweep_at if self.pieces_kept_until is None else max(sweep_at, self.pieces_kept_until)

    @property
    def removal_at(self) -> datetime | None:
        """When its objects and its record are to be removed; None: they are kept."""
        return None if self.expired_at is None else self.expired_at + EXPIRY_GRACE

    @property
    def answer_by(self) -> datetime | None:
        """When a job that waits for storage ends without its answer; None: it does not wait for storage (rule J7)."""
        attempt = self.attempt
        if self.ended or attempt is None:
            return None
        began = self.finalizing_at if self.stage is messages.Stage.FINALIZING else attempt.verdict_at
        return None if began is None else max(began, self.finish_by) + ANSWER_LIMIT

    @property
    def due_at(self) -> datetime | None:
        """When to check this job next; None: never."""
        progress = self._progress_due()
        clean_up = min(self._clean_up_due(), default=None)
        if clean_up is None or progress is None:
            return progress if clean_up is None else clean_up
        return min(clean_up, progress)

    @property
    def deadline_at(self) -> datetime | None:
        """The first time at which the clock alone may end its attempt, its lease or itself; None once it has ended."""
        if self.ended:
            return None
        attempt = self.attempt
        if attempt is None:
            return self.finish_by
        times = [self.finish_by, attempt.lease_until, self.answer_by]
        if not attempt.runs and attempt.ended_at is None:
            times.append(attempt.start_by)
        return min([time for time in times if time is not None])

    @property
    def look_needs(self) -> str | None:
        """What a process must have so that a look gets on: a backend, by its name, or `FAILOVER`. None: nothing."""
        if self.retry_at is not None and not self.ended:
            return FAILOVER
        stops = (a.backend for a in self.attempts if self.is_to_stop(a) or self.helpers_to_stop(a))
        stopping = next(stops, None)
        if stopping is not None or not self.is_out or self.stage is messages.Stage.FINALIZING:
            return stopping
        attempt = self.attempts[-1]
        return None if attempt.unwanted else attempt.backend

    @property
    def is_out(self) -> bool:
        """Whether an attempt was called and runs, by the record, and no holder asks how it goes."""
        attempt = self.attempt
        if self.ended or attempt is None or attempt.ended_at is not None or not attempt.called:
            return False
        return attempt.lease_until is None or attempt.verdict is not None

    def is_to_stop(self, attempt: Attempt) -> bool:
        """Return whether an attempt's own call may compute elsewhere, and nothing of it is wanted."""
        if attempt.local or attempt.stopped or not attempt.called or attempt.lease_until is not None:
            return False
        return attempt.clean_up is CleanUp.OWED or (attempt.ended_at is None and self.is_unwanted(attempt))

    def helpers_to_start(self) -> tuple[Helper, ...]:
        """Return the helpers that may be started now: of a local attempt by its holder, else by any reconciler."""
        attempt = self.attempt
        drawing = self.stage in _DRAWING and not self.ended
        if attempt is None or not drawing or attempt.unwanted or not attempt.called:
            return ()
        return tuple(helper for helper in attempt.helpers if helper.state is HelperState.INTENDED)

    def helpers_to_stop(self, attempt: Attempt) -> tuple[Helper, ...]:
        """Return the helpers of an attempt that may compute elsewhere, and of which nothing is wanted.

        Those of a local attempt are stopped by its holder, and end with it.
        """
        if attempt.local or not attempt.helpers:
            return ()
        if not self.is_unwanted(attempt) and self.stage is not messages.Stage.FINALIZING:
            return ()
        return tuple(helper for helper in attempt.helpers if helper.may_compute)

    def is_unwanted(self, attempt: Attempt) -> bool:
        """Return whether an attempt is to stop, or the whole job."""
        return attempt.unwanted or self.stage is messages.Stage.CANCELLING

    def _clean_up_due(self) -> Iterator[datetime]:
        if self.removal_at is not None:
            yield self.removal_at
        if self.audio_clean_up is CleanUp.OWED:
            yield self.updated_at
        if self.pieces_sweep_at is not None:
            yield self.pieces_sweep_at
        for attempt in self.attempts:
            if attempt.clean_up is CleanUp.OWED:
                sweep_at = attempt.sweep_at
                yield self.updated_at if sweep_at is None else min(sweep_at, self.finish_by + URLS_EXPIRED)
            if attempt.ended_at is not None and self.helpers_to_stop(attempt):
                yield self.updated_at

    def _progress_due(self) -> datetime | None:
        if self.ended:
            return None
        attempt = self.attempt
        if self.stage is messages.Stage.CANCELLING or self.retry_at is not None or self.answer_by is not None:
            return self.updated_at
        if self.ready_at is not None or attempt is None:
            return self.finish_by
        if attempt.lease_until is not None:
            return min(attempt.lease_until, self.finish_by)
        if self.helpers_to_start():
            return self.updated_at
        return min(self.updated_at + CHECK_INTERVAL, self.finish_by)

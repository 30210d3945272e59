"""What is a job, and what may happen to it?

A job is a value, and `transition` is the one function that moves it: pure, total, table-driven. Four
kinds of makers send events: clients (submit, cancel), the dispatcher (stages), the GPU side (the
messages `CheckedIn`, `Progressed`, `Completed` and `Failed`) and the reconciler (what it found by asking
the backend or the bucket). Whatever transport brings an event, and however often, it ends here.

`decide` looks at an event through three gates before the table is asked:

1. **Terminal absorbs.** An ended job changes no more; only its clean-up is still ticked off.
2. **The fence.** An event speaks for one attempt, by its token. Another attempt's event changes nothing
   and is answered "stop".
3. **The run.** A preempted container starts the same attempt again. Each start has a run id, sent at
   check-in; the newest run owns the attempt, older ones change nothing and are answered "stop".

Then ``TRANSITIONS[event type, stage]`` names the rule; a pair that is not in the table changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from attrs import evolve, field, frozen

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import (
    Action,
    Artifact,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    JobError,
    JobStatus,
    LocalAudio,
    Progressed,
    RemoteAudio,
    RenderRequest,
    Stage,
    StoredAudio,
)

CLOCK_SLACK: Final = timedelta(seconds=60)
"""What deadlines allow for clocks that differ between machines (rule J13)."""

VIDEO_GRACE: Final = timedelta(minutes=2)
"""How long a reported video may be invisible in storage before that is a failure (rule J7)."""

MAX_RUNS: Final = 8
"""A container that crashes is started again without end; this many starts of one attempt are enough."""

HANDED_BACK: Final = "worker.closed"
"""The code of an attempt that a closing worker gave back: a deploy costs a job none of its attempts."""

CHECK_INTERVAL: Final = timedelta(seconds=15)
"""How long a remote attempt may be silent before the reconciler asks its backend."""


class CleanUp(StrEnum):
    """Whether something of an ended attempt may still run or lie about."""

    NONE = "none"
    OWED = "owed"
    DONE = "done"


@frozen(kw_only=True)
class Attempt:
    """One try at a job, fenced by a token of its own.

    Args:
        number: 1 for the first.
        token: The fence; events of another attempt are superseded.
        backend: The name of the backend that renders it.
        local: Whether computing ends with its holder (inline and local backends).
        holder: Who holds the lease, None where nobody has to (remote, after dispatch).
        lease_until: When the lease lapses unless it is renewed, by the store's clock.
        called: Whether the backend may have been called: committed before it is (rule J2).
        call_id: The backend's name for the call, None while unknown.
        runs: The run ids that checked in, oldest first; the last one owns the attempt.
        start_by: When the first check-in is due.
        frames: Frames rendered so far.
        frames_total: Frames in all.
        stage_times: When each stage was first entered.
        error: Why it failed.
        stopped: Whether it is known that nothing of it computes any more.
    """

    number: int
    token: str = field(repr=False)
    backend: str
    local: bool
    claimed_at: datetime
    holder: str | None = None
    lease_until: datetime | None = None
    called: bool = False
    call_id: str | None = None
    runs: tuple[str, ...] = ()
    start_by: datetime | None = None
    video_key: str | None = None
    result_key: str | None = None
    frames: int | None = None
    frames_total: int | None = None
    stage_times: Mapping[Stage, datetime] = field(factory=dict)
    ended_at: datetime | None = None
    error: JobError | None = None
    stopped: bool = False
    clean_up: CleanUp = CleanUp.NONE


@frozen(kw_only=True)
class Job:
    """The record of a job; a value, so a change is a new `Job`.

    Args:
        progress: 0 to 100; never falls within an attempt.
        ready_at: From when a dispatcher may claim it; None when it is not claimable.
        finish_by: When it fails unless it has ended.
        audio: The audio in storage, once it is there.
        audio_clean_up: Whether the stored copy of a local file is still to be deleted.
        compute_stopped_at: When a cancelled job's computing stopped; None where that is not known.
        revision: Rises by one at each write; set by the store.
    """

    id: str
    tenant: str | None = None
    request: RenderRequest
    fingerprint: str
    priority: int = 0
    retry_of: str | None = None
    created_at: datetime
    updated_at: datetime
    finish_by: datetime
    ready_at: datetime | None
    status: JobStatus = JobStatus.PENDING
    stage: Stage = Stage.QUEUED
    progress: float = 0.0
    audio: StoredAudio | None = None
    audio_clean_up: CleanUp = CleanUp.NONE
    attempts: tuple[Attempt, ...] = ()
    error: JobError | None = None
    artifact: Artifact | None = None
    cancel_requested_at: datetime | None = None
    compute_stopped_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    revision: int = 0

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt: the newest one, running or ended."""
        return self.attempts[-1] if self.attempts else None

    @property
    def ended(self) -> bool:
        return self.status.terminal

    @property
    def machine(self) -> str | None:
        """The machine whose workers alone may claim this job, for they alone can read its file."""
        audio = self.request.audio
        return audio.machine if isinstance(audio, LocalAudio) and self.audio is None else None

    @property
    def owes_clean_up(self) -> bool:
        return self.audio_clean_up is CleanUp.OWED or any(a.clean_up is CleanUp.OWED for a in self.attempts)

    @property
    def due_at(self) -> datetime | None:
        """When the reconciler should look at this job; None when it never needs to."""
        if self.ended:
            return self.updated_at if self.owes_clean_up else None
        if self.owes_clean_up or self.stage in {Stage.FINALIZING, Stage.CANCELLING}:
            return self.updated_at
        attempt = self.attempt
        if self.ready_at is not None or attempt is None:
            return self.finish_by
        if attempt.lease_until is not None:
            return min(attempt.lease_until, self.finish_by)
        return min(self.updated_at + CHECK_INTERVAL, self.finish_by)


# --- events ---------------------------------------------------------------------------------------
# What the GPU side says is in `messages`; these are the events that never leave the process.


@frozen(kw_only=True)
class CancelRequested:
    """A client wants the job to end."""


@frozen(kw_only=True)
class Claimed:
    """A dispatcher takes a ready job: a new attempt begins."""

    token: str = field(repr=False)
    holder: str
    lease_until: datetime
    backend: str
    local: bool


@frozen(kw_only=True)
class LeaseRenewed:
    """The holder is alive."""

    token: str = field(repr=False)
    holder: str
    lease_until: datetime


@frozen(kw_only=True)
class StageEntered:
    """The dispatcher moves on: ``uploading-audio`` or ``generating-url``."""

    token: str = field(repr=False)
    stage: Stage


@frozen(kw_only=True)
class AudioStored:
    """The audio stands in storage; a URL it came from is forgotten (rule J10)."""

    token: str = field(repr=False)
    audio: StoredAudio


@frozen(kw_only=True)
class DispatchIntended:
    """The backend is about to be called (rule J2)."""

    token: str = field(repr=False)
    video_key: str
    result_key: str
    start_by: datetime


@frozen(kw_only=True)
class Dispatched:
    """The backend took the order."""

    token: str = field(repr=False)
    call_id: str | None


@frozen(kw_only=True)
class AttemptFailed:
    """The attempt is over, and no event of the GPU side said so.

    ``stopped`` says that nothing of it computes any more.
    """

    token: str = field(repr=False)
    error: JobError
    stopped: bool


@frozen(kw_only=True)
class LeaseLapsed:
    """The lease that was seen as ``lease_until`` was not renewed in time.

    The rule compares no clocks: it applies only while that very lease stands (rule J13).
    """

    token: str = field(repr=False)
    lease_until: datetime


@frozen(kw_only=True)
class CallMissing:
    """The backend can say, and says, that the call does not exist."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class ResultFound:
    """The result object stands in storage: the attempt's commit point, whichever run wrote it."""

    token: str = field(repr=False)
    artifact: Artifact


@frozen(kw_only=True)
class VideoSeen:
    """Storage shows the video with this size in bytes (and etag, where it has one)."""

    token: str = field(repr=False)
    size: int
    etag: str | None = None


@frozen(kw_only=True)
class VideoMissing:
    """Storage answers, and has no such video."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class CancelConfirmed:
    """The cancel reached the backend; ``stopped`` says that nothing computes any more."""

    token: str = field(repr=False)
    stopped: bool


@frozen(kw_only=True)
class CleanedUp:
    """An ended attempt's call is stopped and its objects are gone."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class AudioDropped:
    """The stored copy of a local file is gone."""


@frozen(kw_only=True)
class ClockAdvanced:
    """Time passed: deadlines are looked at."""


RunEvent = CheckedIn | Progressed | Completed | Failed
AttemptEvent = (
    LeaseRenewed
    | StageEntered
    | AudioStored
    | DispatchIntended
    | Dispatched
    | AttemptFailed
    | LeaseLapsed
    | CallMissing
    | ResultFound
    | VideoSeen
    | VideoMissing
    | CancelConfirmed
)
JobEvent = RunEvent | AttemptEvent | CancelRequested | Claimed | CleanedUp | AudioDropped | ClockAdvanced


class Verdict(StrEnum):
    """What became of an event."""

    APPLIED = "applied"
    IGNORED = "ignored"
    """A replay, or too late or too early to matter."""
    SUPERSEDED = "superseded"
    """From another attempt, or an older run."""


@frozen
class Decision:
    """The job after the event (the very same object where nothing changed), and the answer."""

    job: Job
    verdict: Verdict
    reply: EventReply


# --- progress -------------------------------------------------------------------------------------

STAGE_PROGRESS: Final[Mapping[Stage, tuple[float, float]]] = {
    Stage.QUEUED: (0, 0),
    Stage.RETRY_WAIT: (0, 0),
    Stage.RESOLVING_AUDIO: (10, 10),
    Stage.UPLOADING_AUDIO: (20, 20),
    Stage.GENERATING_URL: (25, 25),
    Stage.DISPATCHING: (27, 27),
    Stage.DISPATCHED: (30, 30),
    Stage.DOWNLOADING_AUDIO: (30, 35),
    Stage.RENDERING: (35, 95),
    Stage.UPLOADING_VIDEO: (95, 99),
    Stage.FINALIZING: (99, 99),
}
"""Where each stage begins and ends, in percent."""

_ORDER: Final = list(STAGE_PROGRESS)


def stage_progress(stage: Stage, fraction: float = 0.0) -> float:
    """Return the job's progress in percent, one decimal, at ``fraction`` of ``stage``."""
    low, high = STAGE_PROGRESS[stage]
    return round(low + (high - low) * fraction, 1)


def retry_delay(failed_attempts: int, error: JobError) -> timedelta:
    """Return how long to wait before the next attempt.

    A lost worker and a preemption say nothing about the render: go on at once. Everything else backs
    off, 2 s, 8 s, 32 s, at most 5 min.
    """
    if error.fault is FaultDomain.PREEMPTION or error.code in {"worker.lost", HANDED_BACK}:
        return timedelta(0)
    return timedelta(seconds=min(300.0, 2.0 * 4.0 ** min(failed_attempts - 1, 8)))


# --- the rules: each returns the new job, or the same one when nothing changes --------------------


def _with_attempt(job: Job, **changes: Any) -> Job:
    assert job.attempt is not None
    return evolve(job, attempts=(*job.attempts[:-1], evolve(job.attempt, **changes)))


def _enter(job: Job, stage: Stage, now: datetime, *, fraction: float = 0.0) -> Job:
    """Move on to ``stage``, never back; progress never falls."""
    attempt = job.attempt
    assert attempt is not None
    if _ORDER.index(stage) < _ORDER.index(job.stage):
        stage = job.stage
        fraction = 0.0
    if stage not in attempt.stage_times:
        job = _with_attempt(job, stage_times={**attempt.stage_times, stage: now})
    progress = max(job.progress, stage_progress(stage, fraction))
    return evolve(job, stage=stage, status=JobStatus.PROCESSING, progress=progress)


def _end(job: Job, status: JobStatus, now: datetime) -> Job:
    request = job.request
    if isinstance(request.audio, RemoteAudio):
        request = request.model_copy(update={"audio": StoredAudio(key="", size=0)})
    copied = isinstance(request.audio, LocalAudio) and job.audio is not None
    return evolve(
        job,
        request=request,
        status=status,
        ready_at=None,
        ended_at=now,
        audio_clean_up=CleanUp.OWED if copied else job.audio_clean_up,
    )


def _close_attempt(job: Job, now: datetime, *, stopped: bool, error: JobError | None = None) -> Job:
    """End the attempt without a delivery; once called, its call and objects are to be cleaned up."""
    attempt = job.attempt
    assert attempt is not None
    return _with_attempt(
        job,
        holder=None,
        lease_until=None,
        ended_at=now,
        error=error,
        stopped=stopped,
        clean_up=CleanUp.OWED if attempt.called else CleanUp.NONE,
    )


def _infrastructure(code: str, message: str) -> JobError:
    return JobError(code=code, message=message, fault=FaultDomain.INFRASTRUCTURE)


def _fail(job: Job, error: JobError, now: datetime, *, stopped: bool) -> Job:
    """End the attempt; wait for another one where that makes sense, else the job failed."""
    if job.attempt is not None and job.attempt.ended_at is None:
        job = _close_attempt(job, now, error=error, stopped=stopped)
    if job.cancel_requested_at is not None and error.fault.retryable:
        return evolve(_cancelled(job, now, stopped=stopped), artifact=None)
    tried = sum(1 for a in job.attempts if a.error is None or a.error.code != HANDED_BACK)
    delay = retry_delay(tried, error)
    may_retry = error.fault.retryable and tried < job.request.limits.max_attempts
    if may_retry and now + delay < job.finish_by:
        return evolve(
            job,
            stage=Stage.RETRY_WAIT,
            status=JobStatus.PROCESSING,
            progress=0.0,
            ready_at=now + delay,
            finalizing_at=None,
            artifact=None,
        )
    return evolve(_end(job, JobStatus.FAILED, now), error=error, artifact=None)


def _cancelled(job: Job, now: datetime, *, stopped: bool) -> Job:
    if job.attempt is not None and job.attempt.ended_at is None:
        job = _close_attempt(job, now, stopped=stopped)
    return evolve(_end(job, JobStatus.CANCELLED, now), compute_stopped_at=now if stopped else None)


def _request_cancel(job: Job, event: CancelRequested, now: datetime) -> Job:
    job = evolve(job, cancel_requested_at=now)
    if job.stage in _WAITING:
        return _cancelled(job, now, stopped=True)
    return evolve(job, stage=Stage.CANCELLING)


def _note_cancel(job: Job, event: CancelRequested, now: datetime) -> Job:
    """Let the completion win; but where its video never shows, nothing is rendered again."""
    return job if job.cancel_requested_at is not None else evolve(job, cancel_requested_at=now)


def _claim(job: Job, event: Claimed, now: datetime) -> Job:
    if any(a.token == event.token for a in job.attempts):  # a replay: the token would fence nothing
        return job
    attempt = Attempt(
        number=len(job.attempts) + 1,
        token=event.token,
        backend=event.backend,
        local=event.local,
        claimed_at=now,
        holder=event.holder,
        lease_until=event.lease_until,
    )
    job = evolve(job, attempts=(*job.attempts, attempt), ready_at=None, progress=0.0)
    return _enter(job, Stage.RESOLVING_AUDIO, now)


def _renew(job: Job, event: LeaseRenewed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if attempt.holder != event.holder or attempt.lease_until is None or event.lease_until <= attempt.lease_until:
        return job
    return _with_attempt(job, lease_until=event.lease_until)


def _advance(job: Job, event: StageEntered, now: datetime) -> Job:
    forward = event.stage in _PREPARING and _ORDER.index(event.stage) > _ORDER.index(job.stage)
    return _enter(job, event.stage, now) if forward else job


def _store_audio(job: Job, event: AudioStored, now: datetime) -> Job:
    if job.audio is not None:
        return job
    request = job.request
    if isinstance(request.audio, RemoteAudio):
        request = request.model_copy(update={"audio": event.audio})
    return evolve(job, audio=event.audio, request=request)


def _intend(job: Job, event: DispatchIntended, now: datetime) -> Job:
    job = _with_attempt(
        job,
        called=True,
        video_key=event.video_key,
        result_key=event.result_key,
        start_by=event.start_by,
    )
    return _enter(job, Stage.DISPATCHING, now)


def _dispatched(job: Job, event: Dispatched, now: datetime) -> Job:
    """Note the call; a check-in may have been faster, then only what it could not know is noted."""
    attempt = job.attempt
    assert attempt is not None
    if not attempt.called:
        return job
    call_id = attempt.call_id or event.call_id
    held = attempt.local or attempt.holder is None
    if call_id == attempt.call_id and held and job.stage is not Stage.DISPATCHING:
        return job
    if not attempt.local:
        job = _with_attempt(job, holder=None, lease_until=None)
    job = _with_attempt(job, call_id=call_id)
    return job if job.stage is Stage.CANCELLING else _enter(job, Stage.DISPATCHED, now)


def _check_in(job: Job, event: CheckedIn, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if not attempt.called:  # cancelled before its intent: there is no such run
        return job
    runs = attempt.runs if event.run_id in attempt.runs else (*attempt.runs, event.run_id)
    if len(runs) > MAX_RUNS:
        return _crash_loop(job, now)
    call_id = attempt.call_id or event.call_id
    if runs == attempt.runs and call_id == attempt.call_id:
        return job
    job = _with_attempt(job, runs=runs, call_id=call_id)
    return job if job.stage is Stage.CANCELLING else _enter(job, Stage.DISPATCHED, now)


def _crash_loop(job: Job, now: datetime) -> Job:
    if job.stage is Stage.CANCELLING:
        return job
    message = f"the render was started {MAX_RUNS} times and never came to an end"
    return _fail(job, _infrastructure("runner.crash-loop", message), now, stopped=False)


def _progress(job: Job, event: Progressed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    forward = _ORDER.index(event.stage) - _ORDER.index(job.stage)
    percent = stage_progress(event.stage, event.fraction)
    if percent < job.progress or forward < 0 or (percent == job.progress and forward == 0):
        return job
    if attempt.runs[-1:] != (event.run_id,):
        job = _with_attempt(job, runs=(*attempt.runs, event.run_id))
    if event.frames is not None:
        job = _with_attempt(job, frames=event.frames, frames_total=event.frames_total)
    return _enter(job, event.stage, now, fraction=event.fraction)


def _complete(job: Job, event: Completed | ResultFound, now: datetime) -> Job:
    """Believe what a run says of its video, but not where it stands: a URL is signed for that key alone."""
    job = _with_attempt(_enter(job, Stage.FINALIZING, now), holder=None, lease_until=None)
    assert job.attempt is not None
    artifact = event.artifact.model_copy(update={"key": job.attempt.video_key})
    return evolve(job, artifact=artifact, finalizing_at=now)


def _run_failed(job: Job, event: Failed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if event.error.code == RenderStopped.code and event.run_id not in attempt.runs:
        return job  # of another call, and so it was told to stop before it was one of the attempt's runs
    return _fail(job, event.error, now, stopped=True)


def _attempt_failed(job: Job, event: AttemptFailed, now: datetime) -> Job:
    return _fail(job, event.error, now, stopped=event.stopped)


def _run_ended_in_cancel(job: Job, event: Completed | Failed | ResultFound, now: datetime) -> Job:
    return _cancelled(job, now, stopped=True)


def _attempt_ended_in_cancel(job: Job, event: AttemptFailed, now: datetime) -> Job:
    return _cancelled(job, now, stopped=event.stopped)


def _confirm_cancel(job: Job, event: CancelConfirmed, now: datetime) -> Job:
    return _cancelled(job, now, stopped=event.stopped)


def _lapse(job: Job, event: LeaseLapsed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if attempt.lease_until != event.lease_until:
        return job
    if attempt.called and not attempt.local:  # it may run on: remote attempts need no holder
        return _with_attempt(job, holder=None, lease_until=None)
    if job.stage is Stage.CANCELLING:
        return _cancelled(job, now, stopped=True)
    message = f"the worker that held attempt {attempt.number} went away"
    return _fail(job, _infrastructure("worker.lost", message), now, stopped=True)


def _call_missing(job: Job, event: CallMissing, now: datetime) -> Job:
    if job.stage is Stage.CANCELLING:
        return _cancelled(job, now, stopped=True)
    return _fail(job, _infrastructure("backend.call-missing", "the backend has no such call"), now, stopped=True)


def _video_seen(job: Job, event: VideoSeen, now: datetime) -> Job:
    artifact = job.artifact
    assert artifact is not None
    same_etag = artifact.etag is None or event.etag is None or artifact.etag == event.etag
    if event.size != artifact.bytes or not same_etag:
        message = f"the video in storage has {event.size} bytes where {artifact.bytes} were reported"
        return _fail(job, _infrastructure("artifact.mismatch", message), now, stopped=True)
    return evolve(_end(_with_attempt(job, ended_at=now), JobStatus.COMPLETE, now), progress=100.0)


def _video_missing(job: Job, event: VideoMissing, now: datetime) -> Job:
    assert job.finalizing_at is not None
    if now < job.finalizing_at + VIDEO_GRACE:
        return job
    message = "the render was reported complete, but its video is not in storage"
    return _fail(job, _infrastructure("artifact.missing", message), now, stopped=True)


def _check_deadlines(job: Job, event: ClockAdvanced, now: datetime) -> Job:
    attempt = job.attempt
    running = attempt is not None and attempt.called and attempt.ended_at is None
    if now > job.finish_by + (CLOCK_SLACK if running else timedelta(0)):
        if job.stage is Stage.CANCELLING:
            return _cancelled(job, now, stopped=not running)
        total = job.request.limits.total_timeout
        message = f"not finished within {total} of being submitted (stage {job.stage})"
        error = JobError(code="deadline.total", message=message, fault=FaultDomain.DEADLINE)
        return _fail(job, error, now, stopped=not running)
    if not running or job.stage is Stage.CANCELLING:
        return job
    assert attempt is not None and attempt.start_by is not None
    if not attempt.runs and now > attempt.start_by + CLOCK_SLACK:
        message = f"attempt {attempt.number} gave no sign of life within {job.request.limits.start_timeout}"
        error = JobError(code="deadline.start", message=message, fault=FaultDomain.START_TIMEOUT)
        return _fail(job, error, now, stopped=False)
    return job


def _cleaned_up(job: Job, event: CleanedUp, now: datetime) -> Job:
    def tick_off(attempt: Attempt) -> Attempt:
        owed = attempt.token == event.token and attempt.clean_up is CleanUp.OWED
        return evolve(attempt, clean_up=CleanUp.DONE) if owed else attempt

    attempts = tuple(tick_off(a) for a in job.attempts)
    return job if attempts == job.attempts else evolve(job, attempts=attempts)


def _audio_dropped(job: Job, event: AudioDropped, now: datetime) -> Job:
    if job.audio_clean_up is not CleanUp.OWED:
        return job
    return evolve(job, audio=None, audio_clean_up=CleanUp.DONE)


# --- the table ------------------------------------------------------------------------------------

_WAITING: Final = frozenset({Stage.QUEUED, Stage.RETRY_WAIT})
_PREPARING: Final = frozenset({Stage.RESOLVING_AUDIO, Stage.UPLOADING_AUDIO, Stage.GENERATING_URL})
_OUT: Final = frozenset(
    {Stage.DISPATCHING, Stage.DISPATCHED, Stage.DOWNLOADING_AUDIO, Stage.RENDERING, Stage.UPLOADING_VIDEO}
)
_ACTIVE: Final = _PREPARING | _OUT
_FINALIZING: Final = frozenset({Stage.FINALIZING})
_CANCELLING: Final = frozenset({Stage.CANCELLING})

Rule = Callable[[Job, Any, datetime], Job]

_ROWS: Final[tuple[tuple[type, frozenset[Stage], Rule], ...]] = (
    # clients
    (CancelRequested, _WAITING | _ACTIVE, _request_cancel),
    (CancelRequested, _FINALIZING, _note_cancel),
    # the dispatcher
    (Claimed, _WAITING, _claim),
    (LeaseRenewed, _ACTIVE | _CANCELLING, _renew),
    (StageEntered, _PREPARING, _advance),
    (AudioStored, _PREPARING | _CANCELLING, _store_audio),
    (DispatchIntended, _PREPARING, _intend),
    (Dispatched, _OUT | _FINALIZING | _CANCELLING, _dispatched),
    (AttemptFailed, _ACTIVE, _attempt_failed),
    (AttemptFailed, _CANCELLING, _attempt_ended_in_cancel),
    # the GPU side
    (CheckedIn, _OUT | _CANCELLING, _check_in),
    (Progressed, _OUT, _progress),
    (Completed, _OUT, _complete),
    (Completed, _CANCELLING, _run_ended_in_cancel),
    (Failed, _OUT, _run_failed),
    (Failed, _CANCELLING, _run_ended_in_cancel),
    # the reconciler
    (LeaseLapsed, _ACTIVE | _CANCELLING, _lapse),
    (CallMissing, _OUT | _CANCELLING, _call_missing),
    (ResultFound, _OUT, _complete),
    (ResultFound, _CANCELLING, _run_ended_in_cancel),
    (VideoSeen, _FINALIZING, _video_seen),
    (VideoMissing, _FINALIZING, _video_missing),
    (CancelConfirmed, _CANCELLING, _confirm_cancel),
    (ClockAdvanced, _WAITING | _ACTIVE | _CANCELLING, _check_deadlines),
    (CleanedUp, frozenset(Stage), _cleaned_up),
    (AudioDropped, frozenset(Stage), _audio_dropped),
)

TRANSITIONS: Final[Mapping[tuple[type, Stage], Rule]] = {
    (event, stage): rule for event, stages, rule in _ROWS for stage in stages
}
"""Which rule moves a job in this stage at this event. Pairs that are absent change nothing."""

_AFTER_THE_END: Final = (CleanedUp, AudioDropped)
_NO_FENCE: Final = (CancelRequested, Claimed, CleanedUp, AudioDropped, ClockAdvanced)
_FROM_A_RUN: Final = (CheckedIn, Progressed, Completed, Failed)


def decide(job: Job, event: JobEvent, now: datetime) -> Decision:
    """Return the job after ``event``, what became of the event, and the answer to its sender.

    Total: any job and any event give a decision, never an exception. Pure: ``now`` is the store's.
    """
    if not _fence_holds(job, event):
        return Decision(job, Verdict.SUPERSEDED, EventReply(action=Action.STOP, reason="superseded"))
    rule = None
    if not job.ended or isinstance(event, _AFTER_THE_END):
        rule = TRANSITIONS.get((type(event), job.stage))
    after = rule(job, event, now) if rule is not None else job
    if after == job:
        return Decision(job, Verdict.IGNORED, _reply(job))
    after = evolve(after, updated_at=max(now, job.updated_at))
    return Decision(after, Verdict.APPLIED, _reply(after))


def transition(job: Job, event: JobEvent, now: datetime) -> Job:
    """Return the job after ``event``: the very same object where the event changes nothing."""
    return decide(job, event, now).job


def _fence_holds(job: Job, event: JobEvent) -> bool:
    if isinstance(event, _NO_FENCE):
        return True
    attempt = job.attempt
    if attempt is None or attempt.token != event.token or (attempt.ended_at is not None and not job.ended):
        return False
    if isinstance(event, CheckedIn) and _of_another_call(attempt, event):
        return False
    if not isinstance(event, _FROM_A_RUN) or not attempt.runs or event.run_id == attempt.runs[-1]:
        return True
    return isinstance(event, CheckedIn) and event.run_id not in attempt.runs


def _of_another_call(attempt: Attempt, event: CheckedIn) -> bool:
    """Return whether a lost answer made the backend start the order twice: the call that is known goes on, alone."""
    return None not in (attempt.call_id, event.call_id) and attempt.call_id != event.call_id


def _reply(job: Job) -> EventReply:
    if job.stage is Stage.CANCELLING or job.status is JobStatus.CANCELLED:
        return EventReply(action=Action.STOP, reason="cancelled")
    if job.ended or job.stage in _WAITING:
        return EventReply(action=Action.STOP, reason="ended")
    return EventReply()

"""How does each event change a job?

One rule for each row of the table in `renderdispatch.engine.transitions`. A rule gets the job, the event and the
store's time. It returns the new job, or the very same one where nothing changes. Rules are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import evolve

from renderdispatch.engine.events import (
    AttemptFailed,
    AudioDropped,
    AudioStored,
    CallMissing,
    CancelConfirmed,
    CancelRequested,
    Claimed,
    CleanedUp,
    ClockAdvanced,
    Dispatched,
    DispatchIntended,
    LeaseLapsed,
    LeaseRenewed,
    ResultFound,
    StageEntered,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.errors import RenderStopped
from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import (
    CheckedIn,
    Completed,
    Failed,
    FaultDomain,
    JobError,
    JobStatus,
    LocalAudio,
    Progressed,
    RemoteAudio,
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


WAITING: Final = frozenset({Stage.QUEUED, Stage.RETRY_WAIT})
PREPARING: Final = frozenset({Stage.RESOLVING_AUDIO, Stage.UPLOADING_AUDIO, Stage.GENERATING_URL})
OUT: Final = frozenset(
    {Stage.DISPATCHING, Stage.DISPATCHED, Stage.DOWNLOADING_AUDIO, Stage.RENDERING, Stage.UPLOADING_VIDEO}
)
ACTIVE: Final = PREPARING | OUT
FINALIZING: Final = frozenset({Stage.FINALIZING})
CANCELLING: Final = frozenset({Stage.CANCELLING})

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


# --- the rules ------------------------------------------------------------------------------------


def _with_attempt(job: Job, **changes: Any) -> Job:
    assert job.attempt is not None
    return evolve(job, attempts=(*job.attempts[:-1], evolve(job.attempt, **changes)))


def _enter(job: Job, stage: Stage, now: datetime, *, fraction: float = 0.0, **changes: Any) -> Job:
    """Move on to ``stage``, never back, with these changes of the attempt; progress never falls."""
    attempt = job.attempt
    assert attempt is not None
    if _ORDER.index(stage) < _ORDER.index(job.stage):
        stage = job.stage
        fraction = 0.0
    if stage not in attempt.stage_times:
        changes["stage_times"] = {**attempt.stage_times, stage: now}
    attempts = (*job.attempts[:-1], evolve(attempt, **changes)) if changes else job.attempts
    progress = max(job.progress, stage_progress(stage, fraction))
    return evolve(job, attempts=attempts, stage=stage, status=JobStatus.PROCESSING, progress=progress)


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


def request_cancel(job: Job, event: CancelRequested, now: datetime) -> Job:
    job = evolve(job, cancel_requested_at=now)
    if job.stage in WAITING:
        return _cancelled(job, now, stopped=True)
    return evolve(job, stage=Stage.CANCELLING)


def note_cancel(job: Job, event: CancelRequested, now: datetime) -> Job:
    """Let the completion win; but where its video never shows, nothing is rendered again."""
    return job if job.cancel_requested_at is not None else evolve(job, cancel_requested_at=now)


def claim(job: Job, event: Claimed, now: datetime) -> Job:
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


def renew(job: Job, event: LeaseRenewed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if attempt.holder != event.holder or attempt.lease_until is None or event.lease_until <= attempt.lease_until:
        return job
    return _with_attempt(job, lease_until=event.lease_until)


def advance(job: Job, event: StageEntered, now: datetime) -> Job:
    forward = event.stage in PREPARING and _ORDER.index(event.stage) > _ORDER.index(job.stage)
    return _enter(job, event.stage, now) if forward else job


def store_audio(job: Job, event: AudioStored, now: datetime) -> Job:
    if job.audio is not None:
        return job
    request = job.request
    if isinstance(request.audio, RemoteAudio):
        request = request.model_copy(update={"audio": event.audio})
    return evolve(job, audio=event.audio, request=request)


def intend(job: Job, event: DispatchIntended, now: datetime) -> Job:
    job = _with_attempt(
        job,
        called=True,
        video_key=event.video_key,
        result_key=event.result_key,
        start_by=event.start_by,
    )
    return _enter(job, Stage.DISPATCHING, now)


def dispatched(job: Job, event: Dispatched, now: datetime) -> Job:
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


def check_in(job: Job, event: CheckedIn, now: datetime) -> Job:
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


def progress(job: Job, event: Progressed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    forward = _ORDER.index(event.stage) - _ORDER.index(job.stage)
    percent = stage_progress(event.stage, event.fraction)
    if percent < job.progress or forward < 0 or (percent == job.progress and forward == 0):
        return job
    changes: dict[str, Any] = {}
    if attempt.runs[-1:] != (event.run_id,):
        changes["runs"] = (*attempt.runs, event.run_id)
    if event.frames is not None:
        changes.update(frames=event.frames, frames_total=event.frames_total)
    return _enter(job, event.stage, now, fraction=event.fraction, **changes)


def complete(job: Job, event: Completed | ResultFound, now: datetime) -> Job:
    """Believe what a run says of its video, but not where it stands: a URL is signed for that key alone."""
    job = _with_attempt(_enter(job, Stage.FINALIZING, now), holder=None, lease_until=None)
    assert job.attempt is not None
    artifact = event.artifact.model_copy(update={"key": job.attempt.video_key})
    return evolve(job, artifact=artifact, finalizing_at=now)


def run_failed(job: Job, event: Failed, now: datetime) -> Job:
    attempt = job.attempt
    assert attempt is not None
    if event.error.code == RenderStopped.code and event.run_id not in attempt.runs:
        return job  # of another call, and so it was told to stop before it was one of the attempt's runs
    return _fail(job, event.error, now, stopped=True)


def attempt_failed(job: Job, event: AttemptFailed, now: datetime) -> Job:
    return _fail(job, event.error, now, stopped=event.stopped)


def run_ended_in_cancel(job: Job, event: Completed | Failed | ResultFound, now: datetime) -> Job:
    return _cancelled(job, now, stopped=True)


def attempt_ended_in_cancel(job: Job, event: AttemptFailed, now: datetime) -> Job:
    return _cancelled(job, now, stopped=event.stopped)


def confirm_cancel(job: Job, event: CancelConfirmed, now: datetime) -> Job:
    return _cancelled(job, now, stopped=event.stopped)


def lapse(job: Job, event: LeaseLapsed, now: datetime) -> Job:
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


def call_missing(job: Job, event: CallMissing, now: datetime) -> Job:
    if job.stage is Stage.CANCELLING:
        return _cancelled(job, now, stopped=True)
    return _fail(job, _infrastructure("backend.call-missing", "the backend has no such call"), now, stopped=True)


def video_seen(job: Job, event: VideoSeen, now: datetime) -> Job:
    artifact = job.artifact
    assert artifact is not None
    same_etag = artifact.etag is None or event.etag is None or artifact.etag == event.etag
    if event.size != artifact.bytes or not same_etag:
        message = f"the video in storage has {event.size} bytes where {artifact.bytes} were reported"
        return _fail(job, _infrastructure("artifact.mismatch", message), now, stopped=True)
    return evolve(_end(_with_attempt(job, ended_at=now), JobStatus.COMPLETE, now), progress=100.0)


def video_missing(job: Job, event: VideoMissing, now: datetime) -> Job:
    assert job.finalizing_at is not None
    if now < job.finalizing_at + VIDEO_GRACE:
        return job
    message = "the render was reported complete, but its video is not in storage"
    return _fail(job, _infrastructure("artifact.missing", message), now, stopped=True)


def check_deadlines(job: Job, event: ClockAdvanced, now: datetime) -> Job:
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


def cleaned_up(job: Job, event: CleanedUp, now: datetime) -> Job:
    def tick_off(attempt: Attempt) -> Attempt:
        owed = attempt.token == event.token and attempt.clean_up is CleanUp.OWED
        return evolve(attempt, clean_up=CleanUp.DONE) if owed else attempt

    attempts = tuple(tick_off(a) for a in job.attempts)
    return job if attempts == job.attempts else evolve(job, attempts=attempts)


def audio_dropped(job: Job, event: AudioDropped, now: datetime) -> Job:
    if job.audio_clean_up is not CleanUp.OWED:
        return job
    return evolve(job, audio=None, audio_clean_up=CleanUp.DONE)

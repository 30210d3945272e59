"""How does each event change a job?

By the rule that the table in `renderdispatch.engine.transitions` names. A rule takes the job, the event and the store's
time. It returns the new job, or an equal one if nothing changes. Rules are pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from renderdispatch import messages
from renderdispatch.engine import events, layout
from renderdispatch.errors import RenderStalled, RenderStopped
from renderdispatch.jobs import ANSWER_LIMIT, URLS_EXPIRED, Attempt, CleanUp, Helper, HelperState, Job, evolve
from renderdispatch.messages import JobStatus, Stage

CLOCK_SLACK: Final = messages.CLOCK_SLACK

VIDEO_GRACE: Final = timedelta(minutes=2)
"""How long a reported video may be missing from storage before the attempt fails (rule J7)."""

LAST_CHANCE: Final = timedelta(minutes=2)
"""How long storage may be asked once more when its time is over: no service may have been there to ask it."""

MAX_RUNS: Final = 8
"""How often one attempt may start and draw nothing. A platform restarts a container that crashes without end."""

HANDED_BACK: Final = "worker.closed"
"""The error code of an attempt that a closing worker handed back. It does not count against ``max_attempts``."""

BUSY: Final = "backend.busy"
"""The error code of an attempt that its backend refused because all slots are taken. It does not count either."""

WAITED: Final = "backend.waited"
"""The error code of an attempt that waited for a slot of its backend in vain. It does not count either."""

CLAIM_LOST: Final = "worker.never-began"
"""The error code of an attempt that a worker claimed and did not begin, perhaps because the answer to the claim was
lost. It does not count either."""

UNCOUNTED: Final = frozenset({HANDED_BACK, BUSY, WAITED, CLAIM_LOST})

MAX_UNCOUNTED: Final = 3
"""How many attempts that do not count a record keeps: restarts without end must not make it grow without end."""

MAX_ADVANCED: Final = 16
"""How many attempts that drew something and may still compute a record has room for."""

WAITING: Final = frozenset({Stage.QUEUED, Stage.RETRY_WAIT})
RERUN: Final = frozenset({Stage.RETRY_WAIT})
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
"""The percentages at which each stage begins and ends."""

_ORDER: Final = {stage: place for place, stage in enumerate(STAGE_PROGRESS)}


def stage_progress(stage: Stage, fraction: float = 0.0) -> float:
    """Return the job's progress in percent, one decimal, at ``fraction`` of ``stage``."""
    low, high = STAGE_PROGRESS[stage]
    return round(low + (high - low) * fraction, 1)


def retry_delay(failed_attempts: int, error: messages.JobError) -> timedelta:
    """Return how long to wait before the next attempt.

    A lost worker or a preemption says nothing about the render: the next attempt follows at once. So does one after a
    wait for a slot. After other errors the delay is 2 s, 8 s, 32 s and so on, at most 5 min.
    """
    if error.fault is messages.FaultDomain.PREEMPTION or error.code in {"worker.lost", HANDED_BACK, WAITED, CLAIM_LOST}:
        return timedelta(0)
    return timedelta(seconds=min(300.0, 2.0 * 4.0 ** min(failed_attempts - 1, 8)))


# --- the rules ------------------------------------------------------------------------------------


def _current(job: Job) -> Attempt:
    """Return the current attempt. The table applies most rules only in stages that have one."""
    return job.attempts[-1]


def _with_attempt(job: Job, **changes: Any) -> Job:
    return evolve(job, attempts=(*job.attempts[:-1], evolve(_current(job), **changes)))


def _enter(job: Job, stage: Stage, now: datetime, *, fraction: float = 0.0, **changes: Any) -> Job:
    """Enter ``stage``, or stay in a later one; change the attempt. Progress never falls."""
    attempt = _current(job)
    if _ORDER[stage] < _ORDER[job.stage]:
        stage, fraction = job.stage, 0.0
    if stage not in attempt.stage_times:
        changes["stage_times"] = {**attempt.stage_times, stage: now}
    attempts = (*job.attempts[:-1], evolve(attempt, **changes)) if changes else job.attempts
    progress = max(job.progress, stage_progress(stage, fraction))
    return evolve(job, attempts=attempts, stage=stage, status=JobStatus.PROCESSING, progress=progress)


def _end(job: Job, status: JobStatus, now: datetime) -> Job:
    """End the job. Forget a submitted URL; the stored copy of a local file is no longer needed."""
    if job.attempts:
        job = _with_attempt(job, helpers=_never_started(_current(job).helpers))
    request = job.request
    if isinstance(request.audio, messages.RemoteAudio):
        request = request.model_copy(update={"audio": messages.StoredAudio(key="", size=0)})
    copied = isinstance(request.audio, messages.LocalAudio) and job.audio is not None
    return evolve(
        job,
        request=request,
        status=status,
        ready_at=None,
        retry_at=None,
        ended_at=now,
        audio_clean_up=CleanUp.OWED if copied else job.audio_clean_up,
    )


def _close_attempt(job: Job, now: datetime, *, stopped: bool, error: messages.JobError | None = None) -> Job:
    """End a running attempt without a delivery. Its clean-up is owed if its backend may have been called.

    It is owed too if its preparation may go on: a slow holder may still store a copy of the audio.
    """
    attempt = job.attempt
    if attempt is None or attempt.ended_at is not None:
        return job
    return _with_attempt(
        job,
        holder=None,
        lease_until=None,
        verdict=None,
        verdict_at=None,
        overdue_at=None,
        ended_at=now,
        error=error,
        stopped=stopped,
        helpers=_never_started(attempt.helpers),
        clean_up=CleanUp.OWED if attempt.called or not stopped else CleanUp.NONE,
    )


def infrastructure_error(code: str, message: str) -> messages.JobError:
    """Return an error that is the fault of the infrastructure."""
    return messages.JobError(code=code, message=message, fault=messages.FaultDomain.INFRASTRUCTURE)


def _blamed(job: Job, error: messages.JobError) -> messages.JobError:
    """Blame the scene where a second attempt stalls (rule J16): two machines do not hang at the same place."""
    before = {a.error.code for a in job.attempts if a.error is not None}
    if error.code == RenderStalled.code and RenderStalled.code in before:
        return error.model_copy(update={"fault": messages.FaultDomain.SCENE})
    return error


def _fail(job: Job, error: messages.JobError, now: datetime, *, stopped: bool) -> Job:
    """End the attempt. Another one follows if the fault and the limits allow it; otherwise the job fails.

    If a policy chooses the backends, the job first waits for its choice (`reroute`). A backend's refusal for good then
    need not be the end: another backend may take the job.
    """
    error = _blamed(job, error)
    job = _close_attempt(job, now, error=error, stopped=stopped)
    if job.cancel_requested_at is not None and error.fault.retryable:
        return evolve(_cancelled(job, now, stopped=stopped), artifact=None)
    tried = sum(1 for a in job.attempts if not _is_uncounted(a))
    refused = sum(1 for a in job.attempts if _was_handed_back(a) and a.error is not None and a.error.code == BUSY)
    delay = retry_delay(refused if refused and error.code == BUSY else max(1, tried), error)
    full = sum(a.advanced for a in _remembered(job.attempts)) >= MAX_ADVANCED
    may_retry = (error.fault.retryable or _may_start_elsewhere(job)) and tried < job.request.limits.max_attempts
    if may_retry and not full and now + delay < job.finish_by:
        awaits_choice = job.reroutes and error.code != HANDED_BACK
        return evolve(
            job,
            stage=Stage.RETRY_WAIT,
            status=JobStatus.PROCESSING,
            progress=0.0,
            ready_at=None if awaits_choice else now + delay,
            retry_at=now + delay if awaits_choice else None,
            finalizing_at=None,
            artifact=None,
        )
    return evolve(_end(job, JobStatus.FAILED, now), error=error, artifact=None)


def _may_start_elsewhere(job: Job) -> bool:
    attempt = job.attempt
    return job.reroutes and attempt is not None and attempt.refused and not attempt.runs


def _condemn(job: Job, error: messages.JobError, now: datetime, *, stopped: bool, **changes: Any) -> Job:
    """Give the verdict that the attempt has failed; it ends once storage was asked for its result (rule J6).

    An attempt that was never called has no result, and ends now. The first verdict counts.
    """
    attempt = _current(job)
    if not attempt.called:
        return _fail(job, error, now, stopped=stopped)
    if attempt.verdict is None:
        changes.update(verdict=error, verdict_at=now)
    return _with_attempt(job, stopped=stopped or attempt.stopped, **changes)


def _cancelled(job: Job, now: datetime, *, stopped: bool) -> Job:
    job = _close_attempt(job, now, stopped=stopped)
    attempt = job.attempt
    stopped = stopped and (attempt is None or not any(helper.may_compute for helper in attempt.helpers))
    return evolve(_end(job, JobStatus.CANCELLED, now), compute_stopped_at=now if stopped else None)


def _confirmed(job: Job, now: datetime, *, stopped: bool) -> Job:
    """Cancel the job once those helpers have stopped whose calls are known."""
    attempt = _current(job)
    if any(helper.state is HelperState.STARTED for helper in attempt.helpers):
        return _with_attempt(job, cancelled=True, stopped=stopped or attempt.stopped)
    return _cancelled(job, now, stopped=stopped)


def cancel_waiting(job: Job, event: events.CancelRequested, now: datetime) -> Job:
    """Cancel a job that no attempt renders."""
    return evolve(_cancelled(job, now, stopped=True), cancel_requested_at=now)


def request_cancel(job: Job, event: events.CancelRequested, now: datetime) -> Job:
    """Record the intent; the backend is told next (rule J8). A verdict needs no result any more: the cancel wins.

    If the attempt has stopped, or its holder is gone, nothing can confirm the cancel: the job ends now.
    """
    attempt = _current(job)
    gone = attempt.stopped or (attempt.local and attempt.lease_until is None)
    ends = attempt.verdict is not None and gone
    if ends and (attempt.local or not any(helper.state is HelperState.STARTED for helper in attempt.helpers)):
        return evolve(_cancelled(job, now, stopped=attempt.stopped), cancel_requested_at=now)
    job = _with_attempt(job, verdict=None, verdict_at=None, overdue_at=None, cancelled=ends)
    return evolve(job, cancel_requested_at=now, stage=Stage.CANCELLING)


def note_cancel(job: Job, event: events.CancelRequested, now: datetime) -> Job:
    """Let the completion win. If its video never appears, the cancel keeps the job from being rendered again."""
    return job if job.cancel_requested_at is not None else evolve(job, cancel_requested_at=now)


def claim(job: Job, event: events.Claimed, now: datetime) -> Job:
    """Begin an attempt."""
    replayed = any(a.token == event.token for a in job.attempts)  # a used token would fence nothing
    if replayed or job.retry_at is not None:  # or where it is to run is not known yet
        return job
    attempt = Attempt(
        number=job.attempt_number + 1,
        token=event.token,
        backend=event.backend,
        local=event.local,
        claimed_at=now,
        holder=event.holder,
        lease_until=event.lease_until,
    )
    job = evolve(job, attempts=(*_remembered(job.attempts), attempt), ready_at=None, progress=0.0)
    return _enter(job, Stage.RESOLVING_AUDIO, now)


def reroute(job: Job, event: events.Rerouted, now: datetime) -> Job:
    """Let the next attempt begin on the backend that the policy chose.

    A backend that has had no attempt yet gets it at once; any other one after the usual delay. If the backend of the
    last attempt refused it for good, and the policy has no other one, the job fails.
    """
    last = _current(job)
    if job.retry_at is None or last.token != event.after:
        return job
    if event.backend == last.backend and last.error is not None and not last.error.fault.retryable:
        return evolve(_end(job, JobStatus.FAILED, now), error=last.error)
    tried = any(attempt.backend == event.backend for attempt in job.attempts)
    ready_at = max(now, job.retry_at) if tried else now
    return evolve(job, rerouted_to=event.backend, retry_at=None, ready_at=ready_at)


def _remembered(attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """Forget the oldest attempts that do not count and are cleaned up. Their events are superseded all the same."""
    newest = {attempt.pieces: attempt.number for attempt in attempts if attempt.advanced}  # they know what was drawn
    spare = [a.number for a in attempts if _is_uncounted(a) and _is_over(a) and a.number not in newest.values()]
    return tuple(a for a in attempts if a.number not in spare[:-MAX_UNCOUNTED])


def _is_over(attempt: Attempt) -> bool:
    helps = not attempt.local and any(helper.may_compute for helper in attempt.helpers)
    return attempt.clean_up is not CleanUp.OWED and not helps


def _is_uncounted(attempt: Attempt) -> bool:
    """Return whether it does not count against ``max_attempts``: it was handed back, or the video grew (rule J17)."""
    return attempt.advanced or _was_handed_back(attempt)


def _was_handed_back(attempt: Attempt) -> bool:
    """Return whether it was given back undone. One that began had a slot, whatever the code of its error."""
    code = None if attempt.error is None else attempt.error.code
    return code == HANDED_BACK or (code in UNCOUNTED and not attempt.runs)


def renew(job: Job, event: events.LeaseRenewed, now: datetime) -> Job:
    """Renew the lease of its holder. It may end earlier then: the clock was set back."""
    attempt = _current(job)
    if attempt.holder != event.holder or attempt.lease_until is None or event.lease_until == attempt.lease_until:
        return job
    return _with_attempt(job, lease_until=event.lease_until, doubted=None)


def doubt(job: Job, event: events.LeaseDoubted, now: datetime) -> Job:
    """Note since when the lease is doubted; a renewal clears it."""
    if _current(job).lease_until != event.lease_until:
        return job
    return _with_attempt(job, doubted=event.seen)


def advance(job: Job, event: events.StageEntered, now: datetime) -> Job:
    """Enter a later stage of the preparation."""
    forward = event.stage in PREPARING and _ORDER[event.stage] > _ORDER[job.stage]
    return _enter(job, event.stage, now) if forward else job


def store_audio(job: Job, event: events.AudioStored, now: datetime) -> Job:
    """Record where the audio is stored, once. The URL that it came from is forgotten (rule J10)."""
    if job.audio is not None:
        return job
    request = job.request
    if isinstance(request.audio, messages.RemoteAudio):
        request = request.model_copy(update={"audio": event.audio})
    return evolve(job, audio=event.audio, request=request)


def store_attachments(job: Job, event: events.AttachmentsStored, now: datetime) -> Job:
    """Record where the files beside the audio are stored, each once."""
    attachments = {**event.stored, **job.attachments}
    return job if attachments == job.attachments else evolve(job, attachments=attachments)


def intend(job: Job, event: events.DispatchIntended, now: datetime) -> Job:
    """Record that the backend is about to be called (rule J2)."""
    changes: dict[str, Any] = {"video_key": event.video_key, "result_key": event.result_key}
    if event.pieces is not None:
        same = [a for a in job.attempts if a.pieces == event.pieces]
        before = max((a.segments_standing for a in same), default=0)
        changes.update(pieces=event.pieces, segments_before=before, segments_then=before, segments_standing=before)
        job = evolve(job, pieces_clean_up=CleanUp.OWED)
    return _enter(job, Stage.DISPATCHING, now, called=True, start_by=event.start_by, **changes)


def dispatched(job: Job, event: events.Dispatched, now: datetime) -> Job:
    """Record the call. A check-in may have come first (rule J3): then record only what it did not bring."""
    attempt = _current(job)
    if not attempt.called:
        return job
    if not attempt.local:
        job = _with_attempt(job, holder=None, lease_until=None)
    job = _with_attempt(job, call_id=attempt.call_id or event.call_id)
    return job if _is_stopping(job) else _enter(job, Stage.DISPATCHED, now)


def _is_stopping(job: Job) -> bool:
    return job.stage is Stage.CANCELLING or _current(job).verdict is not None


def check_in(job: Job, event: messages.CheckedIn, now: datetime) -> Job:
    """Record the run and its call. The newest run owns the attempt (rule J6)."""
    attempt = _current(job)
    if not attempt.called:  # cancelled before its intent: no such run exists
        return job
    known = event.run_id in attempt.runs
    rose = attempt.segments_standing > attempt.segments_then and bool(attempt.runs)
    if not known and len(attempt.runs) - attempt.runs_advanced - rose >= MAX_RUNS:
        if _is_stopping(job):
            return job
        message = f"the render was started {MAX_RUNS} times and never came to an end"
        return _condemn(job, infrastructure_error("runner.crash-loop", message), now, stopped=False)
    begun: dict[str, Any] = {
        "runs": (*attempt.runs, event.run_id),
        "runs_advanced": attempt.runs_advanced + rose,
        "segments_then": attempt.segments_standing,
        "segments_own": 0,
        "stopped": False,
        "cancelled": False,
    }
    job = _with_attempt(job, call_id=attempt.call_id or event.call_id, **({} if known else begun))
    return job if _is_stopping(job) else _enter(job, Stage.DISPATCHED, now)


def progress(job: Job, event: messages.Progressed, now: datetime) -> Job:
    """Record how far the run is. Reports that are late or bring nothing new change nothing."""
    attempt = _current(job)
    if attempt.verdict is not None:
        return job
    changes = _news_of_segments(job, attempt, event)
    forward = _ORDER[event.stage] - _ORDER[job.stage]
    percent = stage_progress(event.stage, event.fraction)
    late = percent < job.progress or forward < 0 or (percent == job.progress and forward == 0)
    if late and not changes:
        return job
    if attempt.runs[-1:] != (event.run_id,):
        changes["runs"] = (*attempt.runs, event.run_id)
    if late:
        return _with_attempt(job, **changes)
    if event.frames is not None:
        changes.update(frames=event.frames, frames_total=event.frames_total)
    return _enter(job, event.stage, now, fraction=event.fraction, **changes)


def _news_of_segments(job: Job, attempt: Attempt, event: messages.Progressed) -> dict[str, Any]:
    """Return what a report says of plan and segments beyond what is known. Counts never fall, so late ones say less."""
    news = _planned(job, attempt, event.segments) if event.planned else {}
    if (counts := event.segments) is not None:
        total = attempt.segments or counts.total
        found = {
            "segments": total,
            "segments_standing": max(attempt.segments_standing, min(counts.standing, total)),
            "segments_own": max(attempt.segments_own, min(counts.own, total)),
        }
        news.update({name: value for name, value in found.items() if getattr(attempt, name) != value})
    return news


def _planned(job: Job, attempt: Attempt, counts: messages.SegmentCounts | None = None) -> dict[str, Any]:
    """Return what changes once the plan of an attempt was seen: all its helpers are intended, once.

    They are no more than there are segments left for them, as far as that is known: the lead draws one itself.
    """
    if attempt.planned:
        return {}
    left = job.parallel if counts is None else max(1, counts.total - counts.standing)
    shares = range(1, min(job.parallel, left)) if attempt.pieces is not None else ()
    helpers = tuple(Helper(share=share, token=helper_token(attempt.token, share)) for share in shares)
    return {"planned": True, "helpers": helpers}


def helper_token(token: str, share: int) -> str:
    """Return the token of a helper of the attempt with this token: 32 hexadecimal digits, unlike any other."""
    return hashlib.sha256(f"{token}\nhelper\n{share}".encode()).hexdigest()[:32]


def plan_seen(job: Job, event: events.PlanSeen, now: datetime) -> Job:
    """Record that the plan is kept, and intend the helpers."""
    attempt = _current(job)
    return job if attempt.verdict is not None else _with_attempt(job, **_planned(job, attempt))


def segments_seen(job: Job, event: events.SegmentsSeen, now: datetime) -> Job:
    """Record how many segments storage has; after a verdict too, for it tells whether the attempt counts."""
    attempt = _current(job)
    standing = min(event.standing, attempt.segments or messages.MAX_SEGMENTS)
    return job if standing <= attempt.segments_standing else _with_attempt(job, segments_standing=standing)


def helper_starting(job: Job, event: events.HelperStarting, now: datetime) -> Job:
    """Record that the backend is about to be called for a helper (rule J2), once, unless the attempt is to stop."""
    if not any(helper.token == event.helper for helper in job.helpers_to_start()):
        return job
    return _with_helper(job, event.token, event.helper, {HelperState.INTENDED}, state=HelperState.STARTING)


def helper_started(job: Job, event: events.HelperStarted, now: datetime) -> Job:
    """Record the call of a helper."""
    starting = {HelperState.STARTING}
    return _with_helper(job, event.token, event.helper, starting, state=HelperState.STARTED, call_id=event.call_id)


def helper_stopped(job: Job, event: events.HelperStopped, now: datetime) -> Job:
    """Record that a helper computes no more. A cancelled job may have waited for it."""
    going = frozenset(HelperState) - {HelperState.STOPPED}
    job = _with_helper(job, event.token, event.helper, going, state=HelperState.STOPPED)
    attempt = job.attempt
    if job.ended or job.stage is not Stage.CANCELLING or attempt is None or not attempt.cancelled:
        return job
    return _confirmed(job, now, stopped=attempt.stopped)


def _with_helper(job: Job, token: str, helper: str, states: Collection[HelperState], **changes: Any) -> Job:
    """Change a helper that is in one of these states, of any attempt of the job."""

    def changed(attempt: Attempt) -> Attempt:
        if attempt.token != token or not any(h.token == helper and h.state in states for h in attempt.helpers):
            return attempt
        helpers = tuple(evolve(h, **changes) if h.token == helper else h for h in attempt.helpers)
        return evolve(attempt, helpers=helpers)

    return evolve(job, attempts=tuple(map(changed, job.attempts)))


def _never_started(helpers: tuple[Helper, ...]) -> tuple[Helper, ...]:
    """Return the helpers of an attempt that ends: those that were only intended never start."""
    return tuple(
        evolve(helper, state=HelperState.STOPPED) if helper.state is HelperState.INTENDED else helper
        for helper in helpers
    )


def complete(job: Job, event: messages.Completed | events.ResultFound, now: datetime) -> Job:
    """Record the artifact. A run describes its video; the keys are the attempt's own, whatever the run reports."""
    free: dict[str, Any] = {"holder": None, "lease_until": None, "verdict": None, "verdict_at": None}
    job = _enter(job, Stage.FINALIZING, now, overdue_at=None, **free)
    posted = job.request.poster and event.artifact.poster_key is not None
    poster_key = layout.poster_key(layout.prefix_of(job), _current(job).token) if posted else None
    keys = {"key": _current(job).video_key, "poster_key": poster_key}
    artifact = event.artifact.model_copy(update=keys)
    if _lacked_helpers(job, artifact):
        artifact = artifact.drawn_alone(
            "one call drew the video: its backend has none for helpers, or had none in time"
        )
    return evolve(job, artifact=artifact, finalizing_at=now)


def _lacked_helpers(job: Job, artifact: messages.Artifact) -> bool:
    """Return whether helpers were asked for in vain; there is nothing to share in a video of one segment."""
    helped = any(helper.call_id is not None for helper in _current(job).helpers)
    return job.parallel > 1 and artifact.segments != 1 and not helped


def run_failed(job: Job, event: messages.Failed, now: datetime) -> Job:
    """End the attempt with the error of its run, unless storage is to be asked before.

    If it had other runs, one of them may have delivered (rule J6). And the last attempt that the limits allow may have
    kept more than it came to report: then it does not count, and another one follows (rule J17).
    """
    attempt = _current(job)
    if event.error.code == RenderStopped.code and event.run_id not in attempt.runs:
        return job  # a run of another call, which was told to stop at its check-in
    unsure = bool(attempt.runs) and attempt.shares_pieces and not attempt.advanced
    tries = 1 + sum(1 for a in job.attempts[:-1] if not _is_uncounted(a))
    last = tries >= job.request.limits.max_attempts and event.error.fault.retryable
    if len(attempt.runs) > 1 or (unsure and last):
        return _condemn(job, event.error, now, stopped=True)
    return _fail(job, attempt.verdict or event.error, now, stopped=True)


def attempt_failed(job: Job, event: events.AttemptFailed, now: datetime) -> Job:
    """Fail the attempt with an error that its run did not report."""
    changes = {"refused": True} if event.refused else {}
    return _condemn(job, event.error, now, stopped=event.stopped, **changes)


def confirm_cancel_by_run(job: Job, event: events.JobEvent, now: datetime) -> Job:
    """Cancel the job: its run has ended, or does not exist (rule J5: cancel wins over a late completion)."""
    return _confirmed(job, now, stopped=True)


def confirm_cancel(job: Job, event: events.AttemptFailed | events.CancelConfirmed, now: datetime) -> Job:
    """Cancel the job."""
    return _confirmed(job, now, stopped=event.stopped)


def lapse(job: Job, event: events.LeaseLapsed, now: datetime) -> Job:
    """End an attempt whose holder is gone, unless it renders elsewhere: then it goes on without a holder."""
    attempt = _current(job)
    if attempt.lease_until != event.lease_until:
        return job
    if attempt.called and not attempt.local:
        return _with_attempt(job, holder=None, lease_until=None)
    if job.stage is Stage.CANCELLING:  # its holder may only be slow: nothing is known to have stopped
        job = _cancelled(job, now, stopped=False)
        return job if attempt.called else evolve(job, compute_stopped_at=now)
    message = f"the worker that held attempt {attempt.number} went away"
    lost = infrastructure_error(CLAIM_LOST if job.stage is Stage.RESOLVING_AUDIO else "worker.lost", message)
    return _condemn(job, lost, now, stopped=False, holder=None, lease_until=None)


def call_missing(job: Job, event: events.CallMissing, now: datetime) -> Job:
    """Fail an attempt that nothing computes."""
    missing = infrastructure_error("backend.call-missing", "the backend has no such call")
    return _condemn(job, missing, now, stopped=True)


def result_missing(job: Job, event: events.ResultMissing, now: datetime) -> Job:
    """End the attempt as its verdict says: it delivered nothing (rule J6)."""
    attempt = _current(job)
    return job if attempt.verdict is None else _fail(job, attempt.verdict, now, stopped=attempt.stopped)


def storage_silent(job: Job, event: events.StorageSilent, now: datetime) -> Job:
    """End the wait for a storage that did not respond in time (rule J7)."""
    return job if job.answer_by is None or now < job.answer_by else _unanswered(job, now)


def _unanswered(job: Job, now: datetime) -> Job:
    """End the job without storage's answer; a delivery is not cleaned up, for storage may show it later."""
    attempt = _current(job)
    if attempt.verdict is not None:
        return _fail(job, attempt.verdict, now, stopped=attempt.stopped)
    message = (
        f"the render was delivered, but storage did not respond for {ANSWER_LIMIT} past the deadline. "
        "Its objects are kept until the job is deleted; check the storage's credentials, then retry the job"
    )
    error = infrastructure_error("artifact.unseen", message)
    job = _with_attempt(job, ended_at=now, error=error, stopped=True, overdue_at=None)
    return evolve(_end(job, JobStatus.FAILED, now), error=error, artifact=None)


def video_seen(job: Job, event: events.VideoSeen, now: datetime) -> Job:
    """Complete the job if the stored video is the reported one."""
    artifact = job.artifact
    assert artifact is not None
    same_etag = artifact.etag is None or event.etag is None or artifact.etag == event.etag
    if event.size != artifact.bytes or not same_etag:
        message = f"the video in storage has {event.size} bytes where {artifact.bytes} were reported"
        return _fail(job, infrastructure_error("artifact.mismatch", message), now, stopped=True)
    return evolve(_end(_with_attempt(job, ended_at=now), JobStatus.COMPLETE, now), progress=100.0)


def video_missing(job: Job, event: events.VideoMissing, now: datetime) -> Job:
    """Fail the attempt if its video is still missing after the grace time (rule J7)."""
    assert job.finalizing_at is not None
    if now < job.finalizing_at + VIDEO_GRACE:
        return job
    message = "the render was reported complete, but its video is not in storage"
    return _fail(job, infrastructure_error("artifact.missing", message), now, stopped=True)


def check_deadlines(job: Job, event: events.ClockAdvanced, now: datetime) -> Job:
    """End what is past its deadline."""
    if job.answer_by is not None:
        return _check_answer(job, job.answer_by, now)
    attempt = job.attempt
    running = attempt is not None and attempt.called and attempt.ended_at is None
    if now > job.finish_by + (CLOCK_SLACK if running else timedelta(0)):
        if job.stage is Stage.CANCELLING:
            return _cancelled(job, now, stopped=not running)
        total = job.request.limits.total_timeout
        message = f"not finished within {total} of being submitted (stage {job.stage})"
        error = messages.JobError(code="deadline.total", message=message, fault=messages.FaultDomain.DEADLINE)
        return _condemn(job, error, now, stopped=False) if running else _fail(job, error, now, stopped=True)
    if not running:
        return job
    assert attempt is not None and attempt.start_by is not None
    silent = not attempt.runs and now > attempt.start_by + CLOCK_SLACK
    if job.stage is Stage.CANCELLING:  # while its holder's call of the backend hangs, nothing confirms the cancel
        hangs = silent and attempt.call_id is None and attempt.lease_until is not None
        return _cancelled(job, now, stopped=False) if hangs else job
    if silent:
        message = f"attempt {attempt.number} gave no sign of life within {job.request.limits.start_timeout}"
        error = messages.JobError(code="deadline.start", message=message, fault=messages.FaultDomain.START_TIMEOUT)
        return _condemn(job, error, now, stopped=False)
    return job


def _check_answer(job: Job, answer_by: datetime, now: datetime) -> Job:
    """End a wait for storage whose time is over, after a last chance to ask it: even a call that hangs holds no job."""
    if now < answer_by:
        return job
    overdue_at = _current(job).overdue_at
    if overdue_at is None:
        return _with_attempt(job, overdue_at=now)
    return job if now < overdue_at + LAST_CHANCE else _unanswered(job, now)


def _with_owing(job: Job, token: str, **changes: Any) -> Job:
    """Change the attempt with this token if its clean-up is owed."""

    def changed(attempt: Attempt) -> Attempt:
        owes = attempt.token == token and attempt.clean_up is CleanUp.OWED
        return evolve(attempt, **changes) if owes else attempt

    return evolve(job, attempts=tuple(map(changed, job.attempts)))


def call_stopped(job: Job, event: events.CallStopped, now: datetime) -> Job:
    """Record that an attempt that failed computes no more."""
    attempt = job.attempt
    if attempt is not None and attempt.token == event.token and attempt.verdict is not None:
        return _with_attempt(job, stopped=True)
    return _with_owing(job, event.token, stopped=True)


def swept(job: Job, event: events.Swept, now: datetime) -> Job:
    """Record when the objects of an attempt that may write more were removed."""
    return _with_owing(job, event.token, swept_at=now)


def move_deadlines(job: Job, event: events.ClockStepped, now: datetime) -> Job:
    """Move the deadlines of a job along with the clock, which was set."""
    attempt = job.attempt
    if job.finalizing_at is not None:
        job = evolve(job, finalizing_at=job.finalizing_at + event.by)
    if attempt is not None and attempt.start_by is not None and attempt.ended_at is None:
        job = _with_attempt(job, start_by=attempt.start_by + event.by)
    return evolve(job, finish_by=job.finish_by + event.by)


def cleaned_up(job: Job, event: events.CleanedUp, now: datetime) -> Job:
    """Record that an attempt is cleaned up."""
    return _with_owing(job, event.token, clean_up=CleanUp.DONE)


def audio_dropped(job: Job, event: events.AudioDropped, now: datetime) -> Job:
    """Record that the stored copy of a local file is deleted."""
    if job.audio_clean_up is not CleanUp.OWED or job.audio is None or job.audio.key != event.key:
        return job
    return evolve(job, audio=None, audio_clean_up=CleanUp.DONE)


def expire(job: Job, event: events.Expired, now: datetime) -> Job:
    """Give up an ended job: no URL of its objects is signed any more. A job that has not ended is kept."""
    return job if not job.ended or job.expired_at is not None else evolve(job, expired_at=now)


def lend_pieces(job: Job, event: events.PiecesLent, now: datetime) -> Job:
    """Lend plan and segments to the job that repeats this one, unless they are gone or lent to another one."""
    kept = job.owes_pieces and job.pieces_swept_at is None and job.expired_at is None
    if not kept or job.lent_to != event.instead_of or event.to == event.instead_of:
        return job
    return evolve(job, lent_to=event.to)


def pieces_needed(job: Job, event: events.PiecesNeeded, now: datetime) -> Job:
    """Put off their first sweep, because a borrower still reads them."""
    later = job.pieces_sweep_at is not None and job.pieces_sweep_at < event.until
    lent = job.lent_to is not None and job.pieces_swept_at is None
    return evolve(job, pieces_kept_until=event.until) if later and lent else job


def pieces_swept(job: Job, event: events.PiecesSwept, now: datetime) -> Job:
    """Record that plans, segments and grants are deleted: they cannot be lent any more. A newer loan keeps them."""
    due = job.pieces_sweep_at is not None and job.pieces_sweep_at <= now
    if not due or job.pieces_swept_at is not None or job.lent_to != event.lent_to:
        return job
    return evolve(job, pieces_swept_at=now)


def pieces_gone(job: Job, event: events.PiecesGone, now: datetime) -> Job:
    """Record that nothing is left of them, for nothing can write them any more."""
    over = job.pieces_swept_at is not None and now >= job.finish_by + URLS_EXPIRED
    return evolve(job, pieces_clean_up=CleanUp.DONE) if over and job.owes_pieces else job

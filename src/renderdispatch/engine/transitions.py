"""What may happen to a job, and when?

`decide` is the one function that moves a job: pure, total, and driven by the table below. Clients (submit, cancel), the
dispatcher (stages), the GPU side (`CheckedIn`, `Progressed`, `Completed`, `Failed`) and the reconciler (what it learned
from the backend or the bucket) send events. Whatever brings an event, and however often, it ends here.

Before the table is asked, an event passes three gates:

1. **Terminal absorbs.** An ended job changes no more; only its clean-up is still ticked off.
2. **The fence.** An event speaks for one attempt, by its token. An event of another attempt changes nothing and is
   answered "stop".
3. **The run.** A preempted container starts the same attempt again. Each start has a run id, sent at check-in. The
   newest run owns the attempt; older ones change nothing and are answered "stop".

Then ``TRANSITIONS[event type, stage]`` names the rule; a pair that is not in the table changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Final

from attrs import evolve, frozen

from renderdispatch.engine import rules
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
    JobEvent,
    LeaseLapsed,
    LeaseRenewed,
    ResultFound,
    StageEntered,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import (
    Action,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    JobStatus,
    Progressed,
    Stage,
)

Rule = Callable[[Job, Any, datetime], Job]

_ROWS: Final[tuple[tuple[type, frozenset[Stage], Rule], ...]] = (
    # clients
    (CancelRequested, rules.WAITING | rules.ACTIVE, rules.request_cancel),
    (CancelRequested, rules.FINALIZING, rules.note_cancel),
    # the dispatcher
    (Claimed, rules.WAITING, rules.claim),
    (LeaseRenewed, rules.ACTIVE | rules.CANCELLING, rules.renew),
    (StageEntered, rules.PREPARING, rules.advance),
    (AudioStored, rules.PREPARING | rules.CANCELLING, rules.store_audio),
    (DispatchIntended, rules.PREPARING, rules.intend),
    (Dispatched, rules.OUT | rules.FINALIZING | rules.CANCELLING, rules.dispatched),
    (AttemptFailed, rules.ACTIVE, rules.attempt_failed),
    (AttemptFailed, rules.CANCELLING, rules.attempt_ended_in_cancel),
    # the GPU side
    (CheckedIn, rules.OUT | rules.CANCELLING, rules.check_in),
    (Progressed, rules.OUT, rules.progress),
    (Completed, rules.OUT, rules.complete),
    (Completed, rules.CANCELLING, rules.run_ended_in_cancel),
    (Failed, rules.OUT, rules.run_failed),
    (Failed, rules.CANCELLING, rules.run_ended_in_cancel),
    # the reconciler
    (LeaseLapsed, rules.ACTIVE | rules.CANCELLING, rules.lapse),
    (CallMissing, rules.OUT | rules.CANCELLING, rules.call_missing),
    (ResultFound, rules.OUT, rules.complete),
    (ResultFound, rules.CANCELLING, rules.run_ended_in_cancel),
    (VideoSeen, rules.FINALIZING, rules.video_seen),
    (VideoMissing, rules.FINALIZING, rules.video_missing),
    (CancelConfirmed, rules.CANCELLING, rules.confirm_cancel),
    (ClockAdvanced, rules.WAITING | rules.ACTIVE | rules.CANCELLING, rules.check_deadlines),
    (CleanedUp, frozenset(Stage), rules.cleaned_up),
    (AudioDropped, frozenset(Stage), rules.audio_dropped),
)

TRANSITIONS: Final[Mapping[tuple[type, Stage], Rule]] = {
    (event, stage): rule for event, stages, rule in _ROWS for stage in stages
}
"""Which rule moves a job in this stage at this event. Pairs that are absent change nothing."""

_AFTER_THE_END: Final = (CleanedUp, AudioDropped)
_NO_FENCE: Final = (CancelRequested, Claimed, CleanedUp, AudioDropped, ClockAdvanced)
_FROM_A_RUN: Final = (CheckedIn, Progressed, Completed, Failed)


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


def decide(job: Job, event: JobEvent, now: datetime) -> Decision:
    """Return the job after ``event``, what became of the event, and the answer to its sender.

    Total: any job and any event give a decision, never an exception. Pure: ``now`` is the store's.
    """
    if not _fence_holds(job, event):
        return Decision(job, Verdict.SUPERSEDED, _stop("superseded"))
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


@cache
def _stop(reason: str) -> EventReply:
    return EventReply(action=Action.STOP, reason=reason)


@cache
def _go_on() -> EventReply:
    return EventReply()


def _reply(job: Job) -> EventReply:
    if job.stage is Stage.CANCELLING or job.status is JobStatus.CANCELLED:
        return _stop("cancelled")
    return _stop("ended") if job.ended or job.stage in rules.WAITING else _go_on()

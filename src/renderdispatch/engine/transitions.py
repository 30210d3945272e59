"""What may happen to a job, and when?

`decide` is the one function that moves a job. It is pure, total, and driven by the table below. Clients (submit,
cancel), the dispatcher (stages), the GPU side (`CheckedIn`, `Progressed`, `Completed`, `Failed`) and the reconciler
(what it learned from the backend or the bucket) make events. However an event arrives, and however often, it ends here.

An event passes three gates before the table is read:

1. **Terminal absorbs.** A job that has ended changes no more, except that its clean-up and its expiry are recorded, and
   that a retry reads its segments.
2. **The fence.** An event names one attempt by its token. An event of another attempt changes nothing, and its sender
   is told to stop.
3. **The run.** A preempted container starts the same attempt again. Each start has a run id, sent at check-in. The
   newest run owns the attempt; an older one changes nothing and is told to stop.

Then the row of the event and the job's stage names the rule. A pair without a row changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple

from attrs import frozen

from renderdispatch.engine import events, rules
from renderdispatch.engine.rules import ACTIVE, CANCELLING, FINALIZING, OUT, PREPARING, RERUN, WAITING
from renderdispatch.jobs import Attempt, Job, evolve
from renderdispatch.messages import Action, CheckedIn, Completed, EventReply, Failed, JobStatus, Progressed, Stage
from renderdispatch.protocols import CLOCK_STEP


class Row(NamedTuple):
    """One row of the table.

    Args:
        event: The event's type.
        stages: The stages in which the row applies.
        rule: What changes the job.
        to: The stages and ends to which the rule may lead, beside the stage that the job has.
    """

    event: type
    stages: frozenset[Stage]
    rule: Callable[[Job, Any, datetime], Job]
    to: tuple[Stage | JobStatus, ...] = ()


_CANCELLED: Final = (JobStatus.CANCELLED,)
_FAILED: Final = (JobStatus.FAILED,)
_RETRIED: Final = (Stage.RETRY_WAIT, JobStatus.FAILED)

TABLE: Final = (
    # clients
    Row(events.CancelRequested, WAITING, rules.cancel_waiting, _CANCELLED),
    Row(events.CancelRequested, PREPARING, rules.request_cancel, (Stage.CANCELLING,)),
    Row(events.CancelRequested, OUT, rules.request_cancel, (Stage.CANCELLING, *_CANCELLED)),
    Row(events.CancelRequested, FINALIZING, rules.note_cancel),
    # the dispatcher
    Row(events.Claimed, WAITING, rules.claim, (Stage.RESOLVING_AUDIO,)),
    Row(events.LeaseRenewed, ACTIVE | CANCELLING, rules.renew),
    Row(events.StageEntered, PREPARING, rules.advance, (Stage.UPLOADING_AUDIO, Stage.GENERATING_URL)),
    Row(events.AudioStored, PREPARING | CANCELLING, rules.store_audio),
    Row(events.AttachmentsStored, PREPARING | CANCELLING, rules.store_attachments),
    Row(events.DispatchIntended, PREPARING, rules.intend, (Stage.DISPATCHING,)),
    Row(events.Dispatched, OUT, rules.dispatched, (Stage.DISPATCHED,)),
    Row(events.Dispatched, FINALIZING | CANCELLING, rules.dispatched),
    Row(events.AttemptFailed, PREPARING, rules.attempt_failed, _RETRIED),
    Row(events.AttemptFailed, OUT, rules.attempt_failed),
    Row(events.AttemptFailed, CANCELLING, rules.confirm_cancel, _CANCELLED),
    # helpers
    Row(events.PlanSeen, OUT, rules.plan_seen),
    Row(events.SegmentsSeen, OUT, rules.segments_seen),
    Row(events.HelperStarting, OUT, rules.helper_starting),
    Row(events.HelperStarted, frozenset(Stage), rules.helper_started),
    Row(events.HelperStopped, frozenset(Stage) - CANCELLING, rules.helper_stopped),
    Row(events.HelperStopped, CANCELLING, rules.helper_stopped, _CANCELLED),
    # the GPU side
    Row(CheckedIn, OUT, rules.check_in, (Stage.DISPATCHED,)),
    Row(CheckedIn, CANCELLING, rules.check_in),
    Row(Progressed, OUT, rules.progress, (Stage.DOWNLOADING_AUDIO, Stage.RENDERING, Stage.UPLOADING_VIDEO)),
    Row(Completed, OUT, rules.complete, (Stage.FINALIZING,)),
    Row(Completed, CANCELLING, rules.confirm_cancel_by_run, _CANCELLED),
    Row(Failed, OUT, rules.run_failed, _RETRIED),
    Row(Failed, CANCELLING, rules.confirm_cancel_by_run, _CANCELLED),
    # the reconciler
    Row(events.Rerouted, RERUN, rules.reroute, _FAILED),
    Row(events.LeaseDoubted, ACTIVE | CANCELLING, rules.doubt),
    Row(events.LeaseLapsed, PREPARING, rules.lapse, _RETRIED),
    Row(events.LeaseLapsed, OUT, rules.lapse),
    Row(events.LeaseLapsed, CANCELLING, rules.lapse, _CANCELLED),
    Row(events.CallMissing, OUT, rules.call_missing),
    Row(events.CallMissing, CANCELLING, rules.confirm_cancel_by_run, _CANCELLED),
    Row(events.ResultFound, OUT, rules.complete, (Stage.FINALIZING,)),
    Row(events.ResultFound, CANCELLING, rules.confirm_cancel_by_run, _CANCELLED),
    Row(events.ResultMissing, OUT, rules.result_missing, _RETRIED),
    Row(events.StorageSilent, OUT | FINALIZING, rules.storage_silent, _FAILED),
    Row(events.VideoSeen, FINALIZING, rules.video_seen, (JobStatus.COMPLETE, *_RETRIED, *_CANCELLED)),
    Row(events.VideoMissing, FINALIZING, rules.video_missing, (*_RETRIED, *_CANCELLED)),
    Row(events.CancelConfirmed, CANCELLING, rules.confirm_cancel, _CANCELLED),
    Row(events.ClockStepped, frozenset(Stage), rules.move_deadlines),
    Row(events.ClockAdvanced, WAITING | PREPARING | OUT | FINALIZING, rules.check_deadlines, _FAILED),
    Row(events.ClockAdvanced, CANCELLING, rules.check_deadlines, _CANCELLED),
    Row(events.CallStopped, frozenset(Stage), rules.call_stopped),
    Row(events.Swept, frozenset(Stage), rules.swept),
    Row(events.CleanedUp, frozenset(Stage), rules.cleaned_up),
    Row(events.AudioDropped, frozenset(Stage), rules.audio_dropped),
    Row(events.Expired, frozenset(Stage), rules.expire),
    Row(events.PiecesLent, frozenset(Stage), rules.lend_pieces),
    Row(events.PiecesNeeded, frozenset(Stage), rules.pieces_needed),
    Row(events.PiecesSwept, frozenset(Stage), rules.pieces_swept),
    Row(events.PiecesGone, frozenset(Stage), rules.pieces_gone),
)

TRANSITIONS: Final[Mapping[tuple[type, Stage], Row]] = {
    (row.event, stage): row for row in TABLE for stage in row.stages
}
"""The row of each event and stage. A pair that is absent changes nothing."""


_AFTER_THE_END: Final = events.CleanUpEvent
_FROM_A_RUN: Final = (CheckedIn, Progressed, Completed, Failed)
_OF_AN_ATTEMPT: Final = (*_FROM_A_RUN, events.AttemptEvent)


class Verdict(StrEnum):
    """What happened to an event."""

    APPLIED = "applied"
    IGNORED = "ignored"
    """A replay, or too late or too early to change anything."""
    SUPERSEDED = "superseded"
    """It came from another attempt or from an older run."""


@frozen
class Decision:
    """The job after the event (the same object if nothing changed), and the reply to the sender."""

    job: Job
    verdict: Verdict
    reply: EventReply


def decide(job: Job, event: events.JobEvent, now: datetime) -> Decision:
    """Return the job after ``event``, what happened to the event, and the reply to its sender.

    Total: any job and any event give a decision, never an exception. Pure: ``now`` is the store's time.
    """
    if not _fence_holds(job, event):
        return Decision(job, Verdict.SUPERSEDED, _reply_of("superseded"))
    row = TRANSITIONS.get((type(event), job.stage))
    absorbed = job.ended and not isinstance(event, _AFTER_THE_END)
    after = job if row is None or absorbed else row.rule(job, event, now)
    if after == job:
        return Decision(job, Verdict.IGNORED, _reply(job))
    set_back = job.updated_at > now + CLOCK_STEP
    after = evolve(after, updated_at=now if set_back else max(now, job.updated_at))
    return Decision(after, Verdict.APPLIED, _reply(after))


def _fence_holds(job: Job, event: events.JobEvent) -> bool:
    if not isinstance(event, _OF_AN_ATTEMPT):
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
    """Return whether the run belongs to a second call. A lost response can make a backend start an order twice."""
    return None not in (attempt.call_id, event.call_id) and attempt.call_id != event.call_id


@cache
def _reply_of(reason: str | None) -> EventReply:
    return EventReply() if reason is None else EventReply(action=Action.STOP, reason=reason)


def _reply(job: Job) -> EventReply:
    if job.stage is Stage.CANCELLING or job.status is JobStatus.CANCELLED:
        return _reply_of("cancelled")
    failing = job.attempt is not None and job.attempt.verdict is not None
    return _reply_of("ended" if job.ended or failing or job.stage in rules.WAITING else None)

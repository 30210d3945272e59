"""Do the rules J1 to J11 hold, as far as a job by itself can hold them?"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from renderdispatch.engine import layout
from renderdispatch.engine.events import (
    AttachmentsStored,
    AttemptFailed,
    AudioDropped,
    AudioStored,
    CallMissing,
    CallStopped,
    CancelConfirmed,
    CancelRequested,
    CleanedUp,
    ClockAdvanced,
    ClockStepped,
    Dispatched,
    JobEvent,
    LeaseDoubted,
    LeaseLapsed,
    LeaseRenewed,
    ResultFound,
    ResultMissing,
    StageEntered,
    StorageSilent,
    Swept,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.engine.records import dump_job
from renderdispatch.engine.rules import (
    BUSY,
    CLOCK_SLACK,
    HANDED_BACK,
    LAST_CHANCE,
    MAX_RUNS,
    MAX_UNCOUNTED,
    VIDEO_GRACE,
    WAITED,
    retry_delay,
)
from renderdispatch.engine.transitions import Verdict, decide
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import (
    Action,
    FaultDomain,
    JobError,
    JobStatus,
    Limits,
    LocalAudio,
    RemoteAudio,
    Stage,
    StoredAudio,
)
from renderdispatch.testing import make_artifact, make_job, make_request
from renderdispatch.testing.histories import (
    HISTORIES,
    START,
    after,
    checked_in,
    claimed,
    completed,
    failed,
    intended,
    lost,
    new_job,
    progressed,
    video_seen,
)

_MINUTE = timedelta(minutes=1)
_MICROSECOND = timedelta(microseconds=1)
_LATER = START + _MINUTE
_ERROR = JobError(code="backend.error", message="it broke", fault=FaultDomain.INFRASTRUCTURE)


def _at(name: str) -> Job:
    return after(new_job(), HISTORIES[name])


def _without_result(job: Job) -> Job:
    """Return the job once storage was asked for a result that is not there."""
    attempt = job.attempt
    if attempt is None:
        return job
    return decide(job, ResultMissing(token=attempt.token), job.updated_at).job


def _attempt(job: Job, number: int = 1) -> Any:  # any: what may be None is looked at right away
    return job.attempts[number - 1]


# --- J1: the fence --------------------------------------------------------------------------------


def test_j1_each_claim_begins_an_attempt_with_a_token_of_its_own() -> None:
    """A claim of a waiting job begins the next attempt, at 10 %, held by the claimer."""
    job = after(_at("retry-wait"), [claimed("token-2", now=_LATER)], start=_LATER)
    assert [(a.number, a.token) for a in job.attempts] == [(1, "token-1"), (2, "token-2")]
    assert (job.stage, job.progress, job.ready_at) == (Stage.RESOLVING_AUDIO, 10.0, None)
    assert _attempt(job, 2).holder == "worker"


def test_j1_a_zombie_is_told_to_stop_and_changes_nothing() -> None:
    """The first attempt's success comes when the second runs: superseded."""
    job = _at("second attempt")
    decision = decide(job, completed(), _LATER)
    assert (decision.job, decision.verdict) == (job, Verdict.SUPERSEDED)
    assert (decision.reply.action, decision.reply.reason) == (Action.STOP, "superseded")


def test_j1_a_used_token_begins_no_attempt() -> None:
    """A claim that comes again after its attempt failed would fence nothing, and begins none."""
    job = _at("retry-wait")
    assert decide(job, claimed("token-1"), _LATER).job is job


def test_j1_a_second_claimer_is_too_late() -> None:
    """Of two claims of one job, the second changes nothing."""
    job = _at("resolving-audio")
    assert decide(job, claimed("token-2"), _LATER).verdict is Verdict.IGNORED


# --- J2: intent before effect ---------------------------------------------------------------------


def test_j2_the_intent_says_all_that_a_lost_call_needs() -> None:
    """Before the backend is called, the record says so, with the keys and the start deadline."""
    attempt = _attempt(_at("dispatching"))
    assert attempt.called
    assert attempt.call_id is None
    assert (attempt.video_key, attempt.result_key) == ("videos/token-1.mp4", "results/token-1.json")
    assert attempt.start_by == START + timedelta(hours=1)


def test_j2_an_unknown_call_is_superseded_only_after_its_start_deadline() -> None:
    """A remote call without a sign of life fails its attempt a minute after the start deadline, not before."""
    job = evolve(_at("dispatching"), finish_by=START + timedelta(days=1))
    deadline = START + timedelta(hours=1) + CLOCK_SLACK
    assert decide(job, ClockAdvanced(), deadline).job is job
    late = _without_result(decide(job, ClockAdvanced(), deadline + timedelta(microseconds=1)).job)
    assert late.stage is Stage.RETRY_WAIT
    assert _attempt(late).error.fault is FaultDomain.START_TIMEOUT
    assert _attempt(late).clean_up is CleanUp.OWED


def test_j2_a_call_that_does_not_exist_is_tried_again() -> None:
    """Where the backend can say that there is no such call, the attempt is over as soon as storage was asked."""
    job = _without_result(decide(_at("dispatching"), CallMissing(token="token-1"), _LATER).job)
    assert job.stage is Stage.RETRY_WAIT
    assert _attempt(job).error.code == "backend.call-missing"


def test_j2_a_lapsed_lease_ends_what_ends_with_its_holder() -> None:
    """A local attempt, and a remote one that was not called yet, end with their holder, and retry at once."""
    local = after(new_job(), [claimed(local=True), intended()])
    for job in (local, _at("generating-url")):
        lapsed = decide(job, LeaseLapsed(token="token-1", lease_until=_attempt(job).lease_until), _LATER).job
        lapsed = _without_result(lapsed)
        assert (lapsed.stage, lapsed.ready_at) == (Stage.RETRY_WAIT, _LATER)
        assert _attempt(lapsed).error.code == "worker.lost"


def test_j2_a_lapsed_lease_leaves_a_remote_call_alone() -> None:
    """A remote call may run on without its dispatcher: only the lease goes."""
    job = _at("dispatching")
    lapsed = decide(job, LeaseLapsed(token="token-1", lease_until=_attempt(job).lease_until), _LATER).job
    assert (lapsed.stage, _attempt(lapsed).holder) == (Stage.DISPATCHING, None)
    assert decide(lapsed, checked_in(), _LATER).job.stage is Stage.DISPATCHED


def test_j13_a_renewed_lease_does_not_lapse() -> None:
    """A lapse speaks of one very lease: where the holder renewed it meanwhile, nothing happens."""
    job = after(new_job(), [claimed(local=True), intended()])
    seen = _attempt(job).lease_until
    renewed = decide(job, LeaseRenewed(token="token-1", holder="worker", lease_until=seen + _MINUTE), _LATER).job
    assert decide(renewed, LeaseLapsed(token="token-1", lease_until=seen), _LATER).job is renewed


def test_j13_a_renewal_ends_the_doubt() -> None:
    """A lease is doubted once, as it is; a renewal forgets the doubt, and a lease that was renewed is not doubted."""
    job = after(new_job(), [claimed(local=True), intended()])
    seen = _attempt(job).lease_until
    doubt = LeaseDoubted(token="token-1", lease_until=seen, seen="boot 1.000 30.000")
    doubted = decide(job, doubt, _LATER).job
    assert _attempt(doubted).doubted == "boot 1.000 30.000"
    renewal = LeaseRenewed(token="token-1", holder="worker", lease_until=seen + _MINUTE)
    renewed = decide(doubted, renewal, _LATER).job
    assert _attempt(renewed).doubted is None
    assert decide(renewed, doubt, _LATER).job is renewed


def test_only_the_holder_renews() -> None:
    """Another's renewal changes nothing; the holder's counts also where the clock was set back."""
    job = _at("resolving-audio")
    until = _attempt(job).lease_until
    for event in (
        LeaseRenewed(token="token-1", holder="other", lease_until=until + _MINUTE),
        LeaseRenewed(token="token-1", holder="worker", lease_until=until),
    ):
        assert decide(job, event, _LATER).job is job
    earlier = LeaseRenewed(token="token-1", holder="worker", lease_until=until - _MINUTE)
    assert _attempt(decide(job, earlier, _LATER).job).lease_until == until - _MINUTE


def test_a_step_of_the_clock_moves_the_deadlines() -> None:
    """The total deadline and that of the start move by as much, forward and back; an ended job keeps its own."""
    job = _at("dispatching")
    for by in (timedelta(hours=3), timedelta(hours=-3)):
        moved = decide(job, ClockStepped(by=by), _LATER).job
        assert moved.finish_by == job.finish_by + by
        start_by = _attempt(job).start_by
        assert start_by is not None and _attempt(moved).start_by == start_by + by
    ended = _at("complete")
    assert decide(ended, ClockStepped(by=timedelta(hours=3)), _LATER).job is ended


# --- J3: callbacks are welcome from `dispatching` on ----------------------------------------------


def test_j3_a_check_in_may_beat_the_dispatcher() -> None:
    """A check-in at ``dispatching`` brings the call id; the dispatcher's own news then frees the lease alone."""
    job = decide(_at("dispatching"), checked_in(call_id="call"), _LATER).job
    assert (job.stage, _attempt(job).call_id, _attempt(job).runs) == (Stage.DISPATCHED, "call", ("run-1",))
    told = decide(job, Dispatched(token="token-1", call_id="call"), _LATER).job
    assert (told.stage, told.progress, _attempt(told).holder) == (Stage.DISPATCHED, 30.0, None)


@pytest.mark.parametrize("name", ["downloading-audio", "rendering", "uploading-video", "finalizing"])
def test_j3_the_dispatchers_news_takes_nothing_back(name: str) -> None:
    """However late the dispatcher commits, stage and progress stay where the run brought them."""
    job = _at(name)
    told = decide(job, Dispatched(token="token-1", call_id="call"), _LATER).job
    assert (told.stage, told.progress) == (job.stage, job.progress)


@pytest.mark.parametrize("name", ["dispatching", "dispatched"])
def test_j3_progress_may_come_before_the_check_in(name: str) -> None:
    """A lost check-in is no harm: the run is known by its first word."""
    job = decide(_at(name), progressed(Stage.RENDERING, 0.5), _LATER).job
    assert (job.stage, _attempt(job).runs) == (Stage.RENDERING, ("run-1",))
    assert decide(_at(name), completed(), _LATER).job.stage is Stage.FINALIZING


@pytest.mark.parametrize("name", ["resolving-audio", "uploading-audio", "generating-url"])
def test_j3_before_the_intent_there_is_no_run(name: str) -> None:
    """An event of a run before its attempt was dispatched changes nothing."""
    job = _at(name)
    for event in (checked_in(), progressed(Stage.RENDERING), completed(), failed()):
        assert decide(job, event, _LATER).job is job


def test_j3_a_cancel_before_the_intent_welcomes_no_run() -> None:
    """An attempt that is cancelled before it was dispatched has no run to check in."""
    job = decide(_at("resolving-audio"), CancelRequested(), _LATER).job
    assert decide(job, checked_in(), _LATER).job is job


# --- J5: terminal absorbs; cancel and completion --------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "failed", "cancelled", "cancelled in the queue"])
def test_j5_nothing_revives_an_ended_job(end: str) -> None:
    """Late progress, failure, success, check-in, claim and cancel change nothing, and runs are told to stop."""
    job = _at(end)
    for event in (progressed(Stage.UPLOADING_VIDEO, 1.0), failed(), completed(), checked_in("run-2")):
        decision = decide(job, event, _LATER)
        assert decision.job is job
        assert decision.reply.stop
    others = (claimed("token-9"), CancelRequested(), ClockAdvanced(), video_seen(), CallMissing(token="token-1"))
    for other in others:
        assert decide(job, other, START + timedelta(days=9)).job is job


def test_j5_cancel_wins_before_a_completion() -> None:
    """A completion that comes in ``cancelling`` ends the job as cancelled."""
    job = decide(_at("cancelling"), completed(), _LATER).job
    assert (job.status, job.artifact, job.compute_stopped_at) == (JobStatus.CANCELLED, None, _LATER)


def test_j5_completion_wins_in_finalizing() -> None:
    """A cancel that comes in ``finalizing`` is only noted, and the job completes."""
    job = _at("finalizing")
    decision = decide(job, CancelRequested(), _LATER)
    assert (decision.job.stage, decision.reply.stop) == (Stage.FINALIZING, False)
    assert decide(decision.job, CancelRequested(), _LATER).job is decision.job
    assert decide(decision.job, video_seen(), _LATER).job.status is JobStatus.COMPLETE


def test_j5_a_completion_that_falls_through_wins_nothing() -> None:
    """Where the video of a job that was to be cancelled never shows, nothing is rendered again."""
    job = decide(_at("finalizing"), CancelRequested(), _LATER).job
    assert job.finalizing_at is not None
    ended = decide(job, VideoMissing(token=_attempt(job).token), job.finalizing_at + VIDEO_GRACE).job
    assert (ended.status, ended.artifact) == (JobStatus.CANCELLED, None)
    assert _attempt(ended).clean_up is CleanUp.OWED


# --- J6: runs -------------------------------------------------------------------------------------


def test_j6_the_newest_run_owns_the_attempt() -> None:
    """A container that was preempted starts again; its first run is told to stop, the second goes on."""
    job = decide(_at("rendering"), checked_in("run-2"), _LATER).job
    assert _attempt(job).runs == ("run-1", "run-2")
    for event in (progressed(Stage.RENDERING, 0.9), completed(), failed(), checked_in("run-1")):
        decision = decide(job, event, _LATER)
        assert (decision.job, decision.verdict) == (job, Verdict.SUPERSEDED)
        assert decision.reply.stop
    assert decide(job, completed("run-2"), _LATER).job.stage is Stage.FINALIZING


def test_j6_a_new_run_takes_no_progress_back() -> None:
    """What a new run does again shows only once it is further than the one before."""
    job = decide(_at("rendering"), checked_in("run-2"), _LATER).job
    assert job.progress == _at("rendering").progress == 65.0
    assert decide(job, progressed(Stage.RENDERING, 0.1, "run-2"), _LATER).job.progress == 65.0
    assert decide(job, progressed(Stage.RENDERING, 0.9, "run-2"), _LATER).job.progress == 89.0


def test_j6_a_crash_loop_ends() -> None:
    """Eight starts of one attempt are enough; the ninth fails it."""
    job = _at("dispatching")
    for number in range(MAX_RUNS):
        job = decide(job, checked_in(f"run-{number}"), _LATER).job
        assert job.stage is Stage.DISPATCHED
    decision = decide(job, checked_in("one-too-many"), _LATER)
    assert decision.reply.stop
    job = _without_result(decision.job)
    assert (job.stage, _attempt(job).error.code) == (Stage.RETRY_WAIT, "runner.crash-loop")
    assert _attempt(job).clean_up is CleanUp.OWED


def test_j6_a_second_call_of_an_attempt_stops() -> None:
    """An order that a lost answer started twice: the call that is known goes on, the other is told to stop."""
    job = decide(_at("dispatched"), checked_in("run-1", call_id="call"), _LATER).job
    decision = decide(job, checked_in("run-2", call_id="another"), _LATER)
    assert (decision.job, decision.verdict, decision.reply.stop) == (job, Verdict.SUPERSEDED, True)
    assert decide(job, checked_in("run-2", call_id="call"), _LATER).verdict is Verdict.APPLIED


def test_j6_a_second_call_that_stopped_fails_nothing() -> None:
    """That a run of another call stopped, as it was told to, says nothing of the call that is known."""
    job = _at("dispatched")
    assert decide(job, checked_in("run-2", call_id="another"), _LATER).reply.stop
    assert decide(job, failed(run="run-2", code="render.stopped"), _LATER).job is job
    job = decide(job, checked_in("run-1"), _LATER).job
    assert decide(job, failed(run="run-1", code="render.stopped"), _LATER).job.stage is Stage.RETRY_WAIT


# --- J7: finalizing -------------------------------------------------------------------------------


def test_j7_complete_follows_when_the_video_was_seen() -> None:
    """A completion is ``finalizing`` at 99 %; the sight of the video, as reported, is ``complete`` at 100 %."""
    job = _at("finalizing")
    ours = make_artifact(key="videos/token-1.mp4")  # the key that the order named, whatever the run says
    assert (job.status, job.progress, job.artifact) == (JobStatus.PROCESSING, 99.0, ours)
    done = decide(job, video_seen(), _LATER).job
    assert (done.status, done.progress, done.ended_at, done.due_at) == (JobStatus.COMPLETE, 100.0, _LATER, None)
    assert done.artifact == ours


@pytest.mark.parametrize(("asked", "reported"), [(True, True), (True, False), (False, True)])
def test_a_poster_is_the_attempt_s_own(asked: bool, reported: bool) -> None:
    """Whatever key a run reports, it is that of the order; a poster that was not asked for, or not made, has none."""
    job = evolve(new_job(), request=make_request(poster=asked, backend="modal"))
    artifact = make_artifact(poster_key="tenants/other/secret.jpg" if reported else None)
    done = after(job, [*HISTORIES["rendering"], completed(artifact=artifact)])
    assert done.artifact is not None
    own = layout.poster_key(layout.prefix_of(job), "token-1")
    assert done.artifact.poster_key == (own if asked and reported else None)


def test_a_file_beside_the_audio_is_stored_once() -> None:
    """The first stored copy of each is recorded, by the attempt that has the job, until the render is dispatched."""
    a, b, c = (StoredAudio(key=key, size=5) for key in "abc")
    first = AttachmentsStored(token="token-1", stored={"cover": a})
    second = AttachmentsStored(token="token-1", stored={"cover": b, "image_1": c})
    job = after(new_job(), [claimed(), first, second])
    assert job.attachments == {"cover": a, "image_1": c}
    assert decide(after(new_job(), [claimed()]), evolve(first, token="another"), _LATER).job.attachments == {}
    assert after(new_job(), [*HISTORIES["dispatching"], first]).attachments == {}


@pytest.mark.parametrize(("size", "etag"), [(1, make_artifact().etag), (make_artifact().bytes, "another")])
def test_j7_another_video_is_an_infrastructure_failure(size: int, etag: str | None) -> None:
    """A video of another size or etag than the reported one is not delivered."""
    job = decide(_at("finalizing"), VideoSeen(token="token-1", size=size, etag=etag), _LATER).job
    assert (job.stage, job.artifact, _attempt(job).error.code) == (Stage.RETRY_WAIT, None, "artifact.mismatch")


def test_j7_a_storage_without_etags_is_believed() -> None:
    """Where either side has no etag, the size alone decides."""
    seen = VideoSeen(token="token-1", size=make_artifact().bytes, etag=None)
    assert decide(_at("finalizing"), seen, _LATER).job.status is JobStatus.COMPLETE


def test_j7_a_missing_video_has_a_grace_time() -> None:
    """A video may be invisible for a while; then the attempt failed."""
    job = _at("finalizing")
    assert job.finalizing_at is not None
    missing = VideoMissing(token="token-1")
    assert decide(job, missing, job.finalizing_at + VIDEO_GRACE - timedelta(seconds=1)).job is job
    assert decide(job, missing, job.finalizing_at + VIDEO_GRACE).job.stage is Stage.RETRY_WAIT


@pytest.mark.parametrize("cancelled", [False, True])
def test_j7_a_storage_that_never_responds_ends_the_wait_an_hour_after_the_deadline(cancelled: bool) -> None:
    """A delivery that storage does not show within the hour is ``artifact.unseen``, and its objects are kept."""
    job = _at("finalizing")
    if cancelled:
        job = decide(job, CancelRequested(), _LATER).job
    limit = job.finish_by + timedelta(hours=1)
    silent = StorageSilent(token="token-1")
    assert job.answer_by == limit
    assert decide(job, silent, limit - _MICROSECOND).job is job
    ended = decide(job, silent, limit).job
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "artifact.unseen")
    assert not ended.owes_clean_up


def test_j7_the_hour_begins_with_the_delivery_where_that_is_later() -> None:
    """A delivery that is found long after the deadline, as after a night without a service, has its hour too."""
    late = START + timedelta(days=2)
    job = decide(_at("rendering"), ResultFound(token="token-1", artifact=make_artifact()), late).job
    assert job.answer_by == late + timedelta(hours=1)


def test_j7_a_storage_call_that_hangs_holds_no_job() -> None:
    """The clock ends the wait by itself, after a last chance to ask: the service may have been down until now."""
    job = _at("finalizing")
    late = START + timedelta(days=9)
    job = decide(job, ClockAdvanced(), late).job
    assert not job.ended
    assert decide(job, video_seen(), late).job.status is JobStatus.COMPLETE
    assert decide(job, ClockAdvanced(), late + LAST_CHANCE - _MICROSECOND).job is job
    ended = decide(job, ClockAdvanced(), late + LAST_CHANCE).job
    assert ended.error is not None
    assert ended.error.code == "artifact.unseen"


# --- J6: storage is asked before an attempt fails -------------------------------------------------

_LAPSED = LeaseLapsed(token="token-1", lease_until=START + timedelta(seconds=30))
_VERDICTS: dict[str, tuple[Job, JobEvent]] = {
    "the backend's word": (_at("rendering"), lost()),
    "no such call": (_at("dispatched"), CallMissing(token="token-1")),
    "the total deadline": (_at("rendering"), ClockAdvanced()),
    "the start deadline": (evolve(_at("dispatched"), finish_by=START + timedelta(days=9)), ClockAdvanced()),
    "a lapsed lease": (after(new_job(), [claimed(local=True), intended(), checked_in()]), _LAPSED),
    "one of two runs": (after(_at("rendering"), [checked_in("run-2")]), failed(run="run-2")),
}


@pytest.mark.parametrize("way", _VERDICTS)
@pytest.mark.parametrize("delivered", [False, True])
def test_j6_storage_is_asked_before_an_attempt_fails(way: str, delivered: bool) -> None:
    """By whichever way a failure comes, it is a verdict first: the result object, if there is one, completes the job."""
    job, event = _VERDICTS[way]
    late = START + timedelta(hours=7)
    decision = decide(job, event, late)
    judged = decision.job
    assert (judged.stage, judged.progress, judged.due_at) == (job.stage, job.progress, judged.updated_at)
    assert decision.reply.stop
    assert decide(judged, progressed(Stage.UPLOADING_VIDEO, 0.5), late).reply.stop
    if delivered:
        judged = decide(judged, ResultFound(token="token-1", artifact=make_artifact()), late).job
        assert decide(judged, video_seen(), late).job.status is JobStatus.COMPLETE
    else:
        ended = _without_result(judged)
        assert _attempt(ended).error is not None
        assert ended.ended or ended.stage is Stage.RETRY_WAIT


def test_j6_the_first_verdict_counts() -> None:
    """What is learned after a verdict does not change it; only that computing stopped is noted."""
    job = _at("failing")
    job = decide(job, CallMissing(token="token-1"), _LATER).job
    job = decide(job, ClockAdvanced(), START + timedelta(hours=6, minutes=2)).job
    assert (_attempt(job).verdict.code, _attempt(job).stopped) == ("gpu.lost", True)


def test_j6_the_failure_of_an_only_run_needs_no_look() -> None:
    """What the attempt's only run reports ends it at once; after a verdict, with the verdict's error."""
    assert decide(_at("rendering"), failed(), _LATER).job.stage is Stage.RETRY_WAIT
    stopped = decide(_at("failing"), failed(code="render.stopped"), _LATER).job
    assert (stopped.stage, _attempt(stopped).error.code, _attempt(stopped).stopped) == (
        Stage.RETRY_WAIT,
        "gpu.lost",
        True,
    )


def test_j6_a_success_after_a_verdict_is_a_success() -> None:
    """A run that delivers while its verdict is pending has delivered."""
    assert decide(_at("failing"), completed(), _LATER).job.stage is Stage.FINALIZING


def test_j6_a_run_that_comes_after_the_verdict_is_told_to_stop_and_noted() -> None:
    """A late check-in brings its call, so that the call can be told to stop; it is not taken for stopped."""
    job = decide(_at("dispatching"), CallMissing(token="token-1"), _LATER).job
    decision = decide(job, checked_in(), _LATER)
    assert decision.reply.stop
    attempt = _attempt(decision.job)
    assert (decision.job.stage, attempt.call_id, attempt.stopped) == (Stage.DISPATCHING, "call", False)


def test_j6_a_verdict_waits_an_hour_for_storage() -> None:
    """Where storage never responds, the verdict takes effect an hour after the deadline, and nothing is retried."""
    job = _at("failing")
    limit = job.finish_by + timedelta(hours=1)
    silent = StorageSilent(token="token-1")
    assert decide(job, silent, limit - _MICROSECOND).job is job
    ended = decide(job, silent, limit).job
    assert (ended.status, ended.error) == (JobStatus.FAILED, lost().error)


@pytest.mark.parametrize(("name", "end"), [("failing", Stage.CANCELLING), ("failing, stopped", JobStatus.CANCELLED)])
def test_j6_a_cancel_needs_no_look(name: str, end: Stage | JobStatus) -> None:
    """A cancel during a verdict wins: the job is cancelled as soon as its computing is known to have stopped."""
    job = decide(_at(name), CancelRequested(), _LATER).job
    assert end in {job.stage, job.status}
    assert _attempt(job).verdict is None


# --- J8: cancel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["queued", "retry-wait"])
def test_j8_a_waiting_job_is_cancelled_at_once(name: str) -> None:
    """Where nothing computes, nothing is to be confirmed."""
    job = decide(_at(name), CancelRequested(), _LATER).job
    assert (job.status, job.compute_stopped_at, job.ready_at) == (JobStatus.CANCELLED, _LATER, None)


@pytest.mark.parametrize(
    "name", ["resolving-audio", "generating-url", "dispatching", "dispatched", "rendering", "uploading-video"]
)
def test_j8_cancel_is_intent_first(name: str) -> None:
    """A running job is ``cancelling`` and keeps its progress; a run that asks is told to stop."""
    before = _at(name)
    job = decide(before, CancelRequested(), _LATER).job
    assert (job.stage, job.status, job.progress) == (Stage.CANCELLING, JobStatus.PROCESSING, before.progress)
    assert job.cancel_requested_at == _LATER
    assert decide(job, progressed(Stage.UPLOADING_VIDEO, 1.0), _LATER).reply.reason == "cancelled"
    assert decide(job, CancelRequested(), _LATER + _MINUTE).job is job


@pytest.mark.parametrize("stopped", [True, False])
def test_j8_the_job_keeps_when_computing_stopped(stopped: bool) -> None:
    """A confirmed cancel ends the job; when computing stopped is kept only where that is known."""
    job = decide(_at("cancelling"), CancelConfirmed(token="token-1", stopped=stopped), _LATER).job
    assert job.status is JobStatus.CANCELLED
    assert job.compute_stopped_at == (_LATER if stopped else None)
    assert _attempt(job).clean_up is CleanUp.OWED


def test_j8_a_cancelled_call_may_still_say_its_name() -> None:
    """In ``cancelling``, the dispatcher's news and a check-in bring the call id, so that the call can be told."""
    job = decide(_at("dispatching"), CancelRequested(), _LATER).job
    for event in (Dispatched(token="token-1", call_id="call"), checked_in()):
        told = decide(job, event, _LATER).job
        assert (told.stage, _attempt(told).call_id) == (Stage.CANCELLING, "call")


def test_j8_a_cancel_that_nobody_confirms_ends_by_the_deadline() -> None:
    """The total deadline ends ``cancelling`` as cancelled."""
    job = _at("cancelling")
    ended = decide(job, ClockAdvanced(), job.finish_by + 2 * CLOCK_SLACK).job
    assert (ended.status, ended.compute_stopped_at) == (JobStatus.CANCELLED, None)


# --- J10: secrets ---------------------------------------------------------------------------------


def test_j10_a_url_goes_once_the_audio_is_stored() -> None:
    """The submitted URL stands in the record until the audio is stored, and never in a repr."""
    audio = RemoteAudio.model_validate({"url": "https://example.com/song.wav?s3cret"})
    job = evolve(new_job(), request=make_request(audio=audio))
    assert "s3cret" in dump_job(job)
    assert "s3cret" not in repr(job)
    stored = after(job, [claimed(), AudioStored(token="token-1", audio=StoredAudio(key="copy", size=4))])
    assert "s3cret" not in dump_job(stored)
    assert "s3cret" not in dump_job(decide(job, CancelRequested(), _LATER).job)


def test_j10_tokens_are_in_no_repr() -> None:
    """Neither jobs nor events show a fence token."""
    for shown in (
        _at("resolving-audio"),
        claimed(),
        intended(),
        checked_in(),
        StageEntered(token="token-1", stage=Stage.QUEUED),
    ):
        assert "token-1'" not in repr(shown)


# --- J11: retries by fault domain -----------------------------------------------------------------


@pytest.mark.parametrize("fault", FaultDomain)
def test_j11_only_some_faults_are_tried_again(fault: FaultDomain) -> None:
    """Infrastructure, preemption and start timeouts retry; requests, audio, scenes and deadlines never do."""
    job = decide(_at("rendering"), failed(fault), _LATER).job
    retried = fault in {FaultDomain.INFRASTRUCTURE, FaultDomain.PREEMPTION, FaultDomain.START_TIMEOUT}
    assert (job.stage is Stage.RETRY_WAIT and not job.ended) is retried
    assert (job.status is JobStatus.FAILED) is not retried
    assert (job.error is None) is retried
    assert _attempt(job).error.fault is fault


def test_j11_attempts_are_counted() -> None:
    """After ``max_attempts`` attempts the job failed, with the last error."""
    job = evolve(new_job(), request=make_request(limits=Limits(max_attempts=2)))
    job = after(job, [claimed(), intended(), failed()])
    assert job.stage is Stage.RETRY_WAIT
    job = after(job, [claimed("token-2"), intended("token-2"), failed(token="token-2")], start=_LATER)
    assert (job.status, job.error) == (JobStatus.FAILED, failed().error)


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("between", [False, True])
def test_j16_a_second_stall_is_the_scenes_fault(between: bool, reported: bool) -> None:
    """A render that stalls is tried again, once, also where all webhooks are lost and the backend tells how it ended."""

    def stalled(token: str) -> list[Any]:
        event = failed(token=token, code="render.stalled")
        told = AttemptFailed(token=token, error=event.error, stopped=True)
        return [event] if reported else [told, ResultMissing(token=token)]

    job = after(new_job(), [claimed(), intended(), *stalled("token-1")])
    assert job.stage is Stage.RETRY_WAIT
    if between:  # another failure between the two changes nothing
        job = after(job, [claimed("token-2"), intended("token-2"), failed(token="token-2")], start=_LATER)
    job = after(job, [claimed("token-3"), intended("token-3")], start=_LATER)
    job = after(job, stalled("token-3"), start=job.updated_at)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("render.stalled", FaultDomain.SCENE)
    assert _attempt(job).error.fault is FaultDomain.INFRASTRUCTURE


def test_j11_an_attempt_that_was_handed_back_does_not_count() -> None:
    """A worker that closes gives its attempts back: a deploy costs a job none of them."""
    job = evolve(new_job(), request=make_request(limits=Limits(max_attempts=1)))
    error = JobError(code=HANDED_BACK, message="the worker closed", fault=FaultDomain.INFRASTRUCTURE)
    job = after(job, [claimed(), AttemptFailed(token="token-1", error=error, stopped=True)])
    assert (job.stage, job.ready_at) == (Stage.RETRY_WAIT, job.updated_at)


@pytest.mark.parametrize("code", [BUSY, WAITED])
def test_j11_an_attempt_that_got_no_slot_does_not_count(code: str) -> None:
    """It costs none of the job's attempts. A refused one is tried ever less often, one that waited at once."""
    job = evolve(new_job(), request=make_request(limits=Limits(max_attempts=1)))
    error = JobError(code=code, message="all slots are taken", fault=FaultDomain.INFRASTRUCTURE)
    delays = []
    for number in range(1, 7):
        token = f"token-{number}"
        refused = AttemptFailed(token=token, error=error, stopped=True)
        job = _without_result(after(job, [claimed(token), intended(token), refused], start=_LATER))
        assert job.stage is Stage.RETRY_WAIT and job.ready_at is not None
        delays.append((job.ready_at - job.updated_at).total_seconds())
    assert delays == ([2, 8, 32, 128, 300, 300] if code == BUSY else [0] * 6)


@pytest.mark.parametrize("code", [BUSY, WAITED])
def test_j11_a_run_that_began_had_a_slot(code: str) -> None:
    """A render that fails counts, also if its error has the code of one that got no slot."""
    job = evolve(new_job(), request=make_request(limits=Limits(max_attempts=1)))
    error = JobError(code=code, message="an API of the scene's", fault=FaultDomain.INFRASTRUCTURE)
    report = failed().model_copy(update={"error": error})
    job = after(job, [claimed(), intended(), checked_in(), report])
    assert (job.status, job.error) == (JobStatus.FAILED, error)


@pytest.mark.parametrize("code", [BUSY, WAITED])
def test_j11_a_job_that_never_gets_a_slot_ends_by_its_deadline(code: str) -> None:
    """It goes back again and again, its record stays as large as after a few times, and it ends in time."""
    error = JobError(code=code, message="all slots are taken", fault=FaultDomain.INFRASTRUCTURE)
    job, number, sizes = new_job(), 0, []
    while not job.ended:
        number += 1
        token = f"token-{number}"
        begin = max(job.ready_at or job.updated_at, job.updated_at)
        if begin > job.finish_by:
            job = after(job, [ClockAdvanced()], start=begin)
            break
        job = after(job, [claimed(token, local=True, now=begin), intended(token, now=begin)], start=begin)
        waited = job.updated_at + (timedelta(minutes=5) if code == WAITED else timedelta(0))
        job = _without_result(after(job, [AttemptFailed(token=token, error=error, stopped=True)], start=waited))
        job = after(job, [CleanedUp(token=token)], start=job.updated_at)
        sizes.append(len(dump_job(job)))
    assert job.status is JobStatus.FAILED
    assert number > 50
    assert len(job.attempts) <= MAX_UNCOUNTED + 1
    assert max(sizes) <= sizes[MAX_UNCOUNTED] + 300
    assert job.updated_at <= job.finish_by + timedelta(minutes=6)


@pytest.mark.parametrize("called", [False, True])
def test_j11_a_record_does_not_grow_with_restarts(called: bool) -> None:
    """The oldest attempts that were handed back are forgotten once they are cleaned up; the numbers go on."""
    error = JobError(code=HANDED_BACK, message="the worker closed", fault=FaultDomain.INFRASTRUCTURE)
    job = after(_at("rendering"), [failed()])
    sizes = []
    for number in range(2, 102):
        token = f"token-{number}"
        job = after(job, [claimed(token, local=True)], start=_LATER)
        if called:
            job = after(job, [intended(token), AttemptFailed(token=token, error=error, stopped=True)], start=_LATER)
            job = after(_without_result(job), [CleanedUp(token=token)], start=_LATER)
        else:
            job = after(job, [AttemptFailed(token=token, error=error, stopped=True)], start=_LATER)
        sizes.append(len(dump_job(job)))
    assert job.attempt_number == 101
    assert len(job.attempts) == MAX_UNCOUNTED + 2
    assert _attempt(job).error.code == "some.code", "an attempt that counts is kept"
    assert sizes[-1] <= sizes[MAX_UNCOUNTED] + 100
    decision = decide(job, progressed(Stage.RENDERING, token="token-2"), _LATER)
    assert (decision.job, decision.verdict) == (job, Verdict.SUPERSEDED)


def test_j11_an_attempt_that_is_not_cleaned_up_is_remembered() -> None:
    """While the clean-up of an attempt is owed, its record is kept, however many restarts follow."""
    error = JobError(code=HANDED_BACK, message="the worker closed", fault=FaultDomain.INFRASTRUCTURE)
    job = new_job()
    for number in range(1, 21):
        token = f"token-{number}"
        handed_back = AttemptFailed(token=token, error=error, stopped=True)
        job = _without_result(after(job, [claimed(token), intended(token), handed_back], start=_LATER))
    assert len(job.attempts) == 20


@pytest.mark.parametrize("local", [True, False])
def test_j11_a_slow_preparation_owes_a_clean_up_too(local: bool) -> None:
    """A holder that went silent before it called the backend may still store a copy of the audio."""
    job = after(new_job(), [claimed(local=local), _LAPSED])
    assert (job.stage, _attempt(job).clean_up, _attempt(job).may_write) == (Stage.RETRY_WAIT, CleanUp.OWED, True)


def test_j11_an_attempt_whose_holder_went_silent_is_swept_ever_less_often() -> None:
    """Its holder may only be slow: what it writes later is removed at sweeps whose distance grows, until it is known."""
    job = after(new_job(), [claimed(local=True), intended(), _LAPSED])
    job = _without_result(job)
    ended_at = job.updated_at
    assert _attempt(job).may_write
    assert job.due_at == ended_at
    for seconds in (4, 100):
        job = decide(job, Swept(token="token-1"), ended_at + timedelta(seconds=seconds)).job
        assert _attempt(job).sweep_at == ended_at + timedelta(seconds=1.25 * seconds)
    job = decide(job, CallStopped(token="token-1"), _LATER).job
    assert (_attempt(job).may_write, _attempt(job).clean_up) == (False, CleanUp.OWED)
    job = decide(job, CleanedUp(token="token-1"), _LATER).job
    assert not job.owes_clean_up


def test_j11_retries_back_off() -> None:
    """2 s, 8 s, 32 s, at most 5 min; at once after a preemption or a lost worker."""
    assert [retry_delay(n, _ERROR).total_seconds() for n in (1, 2, 3, 4, 5, 20)] == [2, 8, 32, 128, 300, 300]
    preempted = JobError(code="any", message="", fault=FaultDomain.PREEMPTION)
    lost = JobError(code="worker.lost", message="", fault=FaultDomain.INFRASTRUCTURE)
    assert retry_delay(3, preempted) == retry_delay(3, lost) == timedelta(0)


def test_j11_no_retry_begins_after_the_deadline() -> None:
    """A retry that could only begin after the total deadline is no retry: the job failed."""
    job = _at("rendering")
    assert decide(job, failed(), job.finish_by - timedelta(seconds=1)).job.status is JobStatus.FAILED


def test_j11_clean_up_keeps_an_ended_job_in_sight() -> None:
    """A job that owes clean-up is due until every call is stopped and every copy is gone."""
    audio = LocalAudio(path="/music/song.wav", machine="here", size=44, mtime_ns=1)
    job = make_job(id="job", created_at=START, request=make_request(audio=audio))
    copied = AudioStored(token="token-1", audio=StoredAudio(key="copy", size=44))
    job = after(job, [claimed(), copied, intended(), failed(FaultDomain.SCENE)])
    assert job.owes_clean_up
    assert job.due_at == job.updated_at
    job = decide(job, CleanedUp(token="token-1"), _LATER).job
    assert job.due_at == job.updated_at == _LATER
    assert decide(job, AudioDropped(key="another"), _LATER).job is job
    job = decide(job, AudioDropped(key="copy"), _LATER).job
    assert (job.audio, job.audio_clean_up, job.due_at) == (None, CleanUp.DONE, None)


def test_j11_an_attempt_that_was_never_called_owes_nothing() -> None:
    """Only what may have been called is to be stopped."""
    failure = AttemptFailed(token="token-1", error=_ERROR, stopped=True)
    assert not decide(_at("generating-url"), failure, _LATER).job.owes_clean_up


# --- J12: the webhook is optional -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["dispatching", "dispatched", "rendering"])
def test_j12_the_result_object_alone_completes(name: str) -> None:
    """With every callback lost, the result object and the video in storage complete the job."""
    job = decide(_at(name), ResultFound(token="token-1", artifact=make_artifact()), _LATER).job
    assert job.stage is Stage.FINALIZING
    assert decide(job, video_seen(), _LATER).job.status is JobStatus.COMPLETE


# --- stages and deadlines -------------------------------------------------------------------------


def test_the_stages_show_the_progress_of_the_reference_app() -> None:
    """10, 20, 25, 27 and 30 %, then 30 to 99 by what the GPU side reports."""
    names = ["queued", "resolving-audio", "uploading-audio", "generating-url", "dispatching", "dispatched"]
    assert [_at(name).progress for name in names] == [0, 10, 20, 25, 27, 30]
    names = ["downloading-audio", "rendering", "uploading-video", "finalizing", "complete", "retry-wait"]
    assert [_at(name).progress for name in names] == [32.5, 65, 97, 99, 100, 0]


@pytest.mark.parametrize("stage", [Stage.QUEUED, Stage.DISPATCHED, Stage.FINALIZING, Stage.CANCELLING])
def test_the_dispatcher_enters_only_its_own_stages(stage: Stage) -> None:
    """`StageEntered` with a stage that has an event of its own changes nothing."""
    job = _at("resolving-audio")
    assert decide(job, StageEntered(token="token-1", stage=stage), _LATER).job is job


@pytest.mark.parametrize("name", ["queued", "retry-wait", "resolving-audio", "rendering", "uploading-video"])
def test_the_total_deadline_ends_every_wait(name: str) -> None:
    """A job that is not finished in time failed with ``deadline.total``; a running one is allowed a minute more."""
    job = _at(name)
    assert decide(job, ClockAdvanced(), job.finish_by).job is job
    late = _without_result(decide(job, ClockAdvanced(), job.finish_by + 2 * CLOCK_SLACK).job)
    assert late.status is JobStatus.FAILED
    assert late.error is not None
    assert late.error.code == "deadline.total"


def test_only_the_files_own_machine_may_claim() -> None:
    """A job whose audio is a file belongs to that machine until the audio is stored."""
    job = make_job(id="job", machine="here")
    assert job.machine == "here"
    stored = after(job, [claimed(), AudioStored(token="token-1", audio=StoredAudio(key="copy", size=44))])
    assert stored.machine is None


def test_when_the_reconciler_should_look() -> None:
    """A leased attempt when its lease lapses, a remote one every 15 s, a waiting job at its deadline."""
    assert _at("queued").due_at == _at("queued").finish_by
    assert _at("resolving-audio").due_at == START + timedelta(seconds=30)
    dispatched = _at("dispatched")
    assert dispatched.due_at == dispatched.updated_at + timedelta(seconds=15)
    for name in ("finalizing", "cancelling", "retry-wait"):
        assert _at(name).due_at == _at(name).updated_at
    assert _at("complete").due_at is None

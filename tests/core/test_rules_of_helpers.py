"""Do the rules of plans, segments and helpers hold, as far as a job by itself can hold them (J11, J17)?"""

from __future__ import annotations

from datetime import timedelta

import pytest

from renderdispatch.engine.events import (
    CallStopped,
    CancelConfirmed,
    CancelRequested,
    CleanedUp,
    ClockAdvanced,
    Dispatched,
    HelperStarted,
    JobEvent,
    LeaseLapsed,
    PlanSeen,
    ResultMissing,
    SegmentsSeen,
)
from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.engine.rules import MAX_ADVANCED, MAX_RUNS, MAX_UNCOUNTED
from renderdispatch.engine.transitions import Verdict, decide
from renderdispatch.jobs import Attempt, CleanUp, HelperState, Job, evolve
from renderdispatch.messages import FaultDomain, JobStatus, Limits, SegmentCounts, Stage
from renderdispatch.testing import make_request
from renderdispatch.testing.histories import (
    HISTORIES,
    PIECES,
    START,
    after,
    checked_in,
    claimed,
    completed,
    failed,
    helper,
    helper_started,
    helper_starting,
    helper_stopped,
    intended,
    lost,
    new_job,
    progressed,
    video_seen,
)

_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_LATER = START + _MINUTE
_BEGUN = (claimed(), intended(pieces=PIECES), Dispatched(token="token-1", call_id="call"), checked_in())


def _at(name: str, *, parallel: int = 3) -> Job:
    return after(new_job(parallel=parallel), HISTORIES[name])


def _attempt(job: Job) -> Attempt:
    assert job.attempt is not None
    return job.attempt


def _states(job: Job) -> list[HelperState]:
    return [helper.state for helper in _attempt(job).helpers]


def _drawing(*, parallel: int = 3, **changes: object) -> Job:
    return after(evolve(new_job(parallel=parallel), **changes), _BEGUN)  # type: ignore[arg-type]  # fields of a job


# --- the plan and the intents ---------------------------------------------------------------------


@pytest.mark.parametrize("event", [PlanSeen(token="token-1"), progressed(Stage.RENDERING, 0.1, standing=0)])
def test_the_plan_brings_the_intents_of_all_helpers(event: JobEvent) -> None:
    """A report that the plan is kept, or a look that finds it, intends all helpers at once, with tokens of their own."""
    job = after(_drawing(), [event])
    assert [(h.share, h.token, h.state) for h in _attempt(job).helpers] == [
        (share, helper(share), HelperState.INTENDED) for share in (1, 2)
    ]
    assert job.helpers_to_start() == _attempt(job).helpers
    assert job.due_at == job.updated_at


@pytest.mark.parametrize(("total", "standing", "helpers"), [(1, 0, 0), (2, 0, 1), (9, 0, 7), (9, 6, 2), (9, 9, 0)])
def test_there_are_no_more_helpers_than_segments_are_left(total: int, standing: int, helpers: int) -> None:
    """The lead draws one of the segments that are missing itself, so a short video starts few helpers."""
    counts = SegmentCounts(total=total, standing=standing, own=0)
    report = progressed(Stage.RENDERING, 0.1, standing=standing).model_copy(update={"segments": counts})
    job = after(_drawing(parallel=8), [report])
    assert len(_attempt(job).helpers) == helpers


def test_a_plan_that_is_seen_again_brings_no_more_helpers() -> None:
    """The intents are made once an attempt, whatever says that the plan is kept, and however often."""
    job = after(_drawing(), [progressed(Stage.RENDERING, 0.1, standing=0), helper_starting()])
    again = after(job, [PlanSeen(token="token-1"), progressed(Stage.RENDERING, 0.2, standing=1)])
    assert _states(again) == _states(job)


def test_a_report_that_is_behind_may_still_bring_the_plan() -> None:
    """A report whose progress comes too late says all the same that the plan is kept."""
    job = after(_drawing(), [progressed(Stage.RENDERING, 0.5), progressed(Stage.RENDERING, 0.1, standing=1)])
    assert (job.progress, len(_attempt(job).helpers)) == (65.0, 2)
    assert _attempt(job).segments_standing == 1


@pytest.mark.parametrize(("parallel", "pieces"), [(1, PIECES), (3, None)])
def test_no_helpers_are_intended_in_vain(parallel: int, pieces: str | None) -> None:
    """One that draws alone has no helpers, and nor has an attempt that keeps nothing."""
    job = after(new_job(parallel=parallel), [claimed(), intended(pieces=pieces), PlanSeen(token="token-1")])
    assert (_attempt(job).planned, _attempt(job).helpers) == (True, ())


# --- starts and stops -----------------------------------------------------------------------------


def test_a_helper_is_started_once() -> None:
    """What was committed as starting is found or left alone: a second intent to start it changes nothing (rule J2)."""
    job = after(_drawing(), [PlanSeen(token="token-1"), helper_starting()])
    assert _states(job) == [HelperState.STARTING, HelperState.INTENDED]
    assert decide(job, helper_starting(), _LATER).verdict is Verdict.IGNORED
    assert [h.share for h in job.helpers_to_start()] == [2]


@pytest.mark.parametrize("name", ["helped, failing", "helped, finalizing", "helped, cancelling", "helped, retry-wait"])
def test_no_helper_starts_for_what_is_not_wanted(name: str) -> None:
    """Once an attempt is to stop, has delivered or has ended, none of its helpers is started."""
    events = HISTORIES[name][:5] + HISTORIES[name][8:]  # without the starts
    job = after(new_job(parallel=3), events)
    assert job.helpers_to_start() == ()
    assert decide(job, helper_starting(), _LATER).job is job


def test_a_start_that_is_known_late_is_recorded() -> None:
    """A call that becomes known after its attempt has ended is recorded, so that it is told to stop."""
    job = after(_at("helped, retry-wait"), [helper_started(2)])
    assert [h.call_id for h in job.attempts[0].helpers] == ["helper-1", "helper-2"]
    assert [h.share for h in job.helpers_to_stop(job.attempts[0])] == [1, 2]
    ended = after(_at("helped, complete"), [helper_started(2)])
    assert [h.share for h in ended.helpers_to_stop(_attempt(ended))] == [1, 2]


def test_what_was_never_started_never_starts() -> None:
    """The end of an attempt stops the helpers that were only intended."""
    job = after(_drawing(), [PlanSeen(token="token-1"), helper_starting(), failed()])
    assert [h.state for h in job.attempts[0].helpers] == [HelperState.STARTING, HelperState.STOPPED]


def test_helpers_keep_an_ended_job_in_sight() -> None:
    """A job is complete at once; it stays due, at its backend, until its helpers are known to have stopped."""
    job = _at("helped, complete")
    assert (job.status, job.owes_clean_up, job.look_needs) == (JobStatus.COMPLETE, True, "modal")
    assert job.due_at == job.updated_at
    stopped = after(job, [helper_stopped(), helper_stopped(2)])
    assert (stopped.owes_clean_up, stopped.look_needs, stopped.holdings()) == (False, None, ())


def test_helpers_hold_units_until_they_have_stopped() -> None:
    """Each helper that may compute holds a unit beside the run's own; one of an ended attempt too."""
    assert [unit.units for unit in _at("helped").holdings()] == [3]
    assert [unit.units for unit in after(_at("helped"), [helper_stopped()]).holdings()] == [2]
    ended = after(_at("helped, retry-wait"), [CallStopped(token="token-1")])
    assert [unit.units for unit in ended.holdings()] == [2]


def test_local_helpers_end_with_their_holder() -> None:
    """Helpers of this machine hold nothing once their attempt has ended, and no other machine is to stop them."""
    job = after(new_job(parallel=3), [claimed(local=True), *HISTORIES["helped"][1:], failed()])
    assert (job.holdings(), job.helpers_to_stop(job.attempts[0])) == ((), ())


# --- cancels --------------------------------------------------------------------------------------


def test_a_cancel_waits_for_known_helpers() -> None:
    """The run has stopped, and a helper has not: the job is cancelled when that one has stopped too."""
    job = _at("helped, lead stopped")
    assert (job.stage, job.ended, _attempt(job).stopped) == (Stage.CANCELLING, False, True)
    assert not job.is_to_stop(_attempt(job))
    assert (job.look_needs, job.due_at) == ("modal", job.updated_at)
    job = after(job, [helper_stopped(2)])
    assert not job.ended
    job = after(job, [helper_stopped()], start=_LATER)
    assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, job.ended_at)


def test_a_cancel_does_not_wait_for_a_helper_whose_start_is_unknown() -> None:
    """It ends once the known ones have stopped, and does not say when computing stopped."""
    job = after(_at("helped, lead stopped"), [helper_stopped()])
    assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, None)
    assert [h.share for h in job.helpers_to_stop(_attempt(job))] == [2]


def test_helpers_that_stop_first_end_no_cancel() -> None:
    """The run is waited for, whichever helpers have stopped before it."""
    job = after(_at("helped, cancelling"), [helper_stopped(), helper_stopped(2)])
    assert not job.ended
    job = after(job, [CancelConfirmed(token="token-1", stopped=True)])
    assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, job.ended_at)


def test_a_cancel_ends_by_its_deadline() -> None:
    """A helper that nothing can stop holds up a cancel until the job's deadline, and no longer."""
    job = decide(_at("helped, lead stopped"), ClockAdvanced(), START + timedelta(hours=7)).job
    assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, None)


def test_a_cancel_of_a_failing_attempt_waits_for_its_helpers() -> None:
    """Where a verdict was given and the run has stopped, a cancel still waits for the known helpers."""
    job = after(_at("helped, failing"), [CallStopped(token="token-1"), CancelRequested()])
    assert (job.stage, job.ended) == (Stage.CANCELLING, False)
    assert after(job, [helper_stopped()]).status is JobStatus.CANCELLED


def test_a_run_that_starts_again_is_waited_for() -> None:
    """A run that begins while only helpers are waited for is to stop as well."""
    job = after(_at("helped, lead stopped"), [checked_in("run-2"), helper_stopped(), helper_stopped(2)])
    assert not job.ended
    assert job.is_to_stop(_attempt(job))


# --- what counts ----------------------------------------------------------------------------------


def _again(job: Job, number: int, *events: JobEvent, error: JobEvent | None = None) -> Job:
    """Return the job after another attempt, whose events get the token."""
    token = f"token-{number}"
    begun = (claimed(token), intended(token, pieces=PIECES), checked_in(f"run-{number}", token))
    end = error or failed(run=f"run-{number}", token=token)
    job = after(job, [*begun, *events, end, ResultMissing(token=token)], start=job.updated_at)
    return after(job, [CallStopped(token=token), CleanedUp(token=token)], start=job.updated_at)


def _job(*, max_attempts: int = 2) -> Job:
    request = make_request(backend="modal", limits=Limits(max_attempts=max_attempts))
    return evolve(new_job(), request=request)


def test_attempts_that_drew_something_do_not_count() -> None:
    """As long as each attempt adds a segment, another follows; then `max_attempts` of them fail the job."""
    job = _job()
    for number in range(1, 9):
        report = progressed(Stage.RENDERING, 0.5, f"run-{number}", f"token-{number}", standing=number, own=1)
        job = _again(job, number, report)
        assert job.stage is Stage.RETRY_WAIT
    assert len(job.attempts) <= MAX_UNCOUNTED + 2
    job = _again(job, 9, progressed(Stage.RENDERING, 0.5, "run-9", "token-9", standing=8))
    assert job.stage is Stage.RETRY_WAIT
    assert _again(job, 10).status is JobStatus.FAILED


def test_segments_that_storage_lists_count_too() -> None:
    """With every report lost, what storage lists before the verdict tells that an attempt drew something."""
    job = after(_job(max_attempts=1), [*_BEGUN, lost(), SegmentsSeen(token="token-1", standing=2)])
    assert after(job, [ResultMissing(token="token-1")]).stage is Stage.RETRY_WAIT
    without = after(_job(max_attempts=1), [*_BEGUN, lost(), SegmentsSeen(token="token-1", standing=0)])
    assert after(without, [ResultMissing(token="token-1")]).status is JobStatus.FAILED


def test_the_last_attempt_is_not_failed_before_storage_was_asked() -> None:
    """A run that dies may have kept segments that it did not come to report: then another attempt follows."""
    job = after(_job(max_attempts=1), [*_BEGUN, failed()])
    assert not job.ended
    drew = after(job, [SegmentsSeen(token="token-1", standing=1), ResultMissing(token="token-1")])
    assert drew.stage is Stage.RETRY_WAIT
    assert after(job, [ResultMissing(token="token-1")]).status is JobStatus.FAILED


def test_what_no_other_attempt_can_use_counts() -> None:
    """Segments below an attempt's own token are of no use to the next one: such an attempt counts as a try."""
    own = (claimed(), intended(pieces="jobs/job/life/pieces/token-1/"), checked_in())
    job = after(_job(max_attempts=1), [*own, progressed(Stage.RENDERING, 0.5, standing=2, own=2), failed()])
    assert job.status is JobStatus.FAILED


def test_segments_do_not_excuse_a_scene() -> None:
    """A fault that is not retried ends the job, whatever was drawn."""
    job = after(_job(), [*_BEGUN, progressed(Stage.RENDERING, 0.5, standing=2), failed(FaultDomain.SCENE)])
    assert job.status is JobStatus.FAILED


def test_runs_that_drew_something_do_not_count() -> None:
    """A container that is preempted at each segment goes on; one that draws nothing any more is a crash loop."""
    job = after(_job(), _BEGUN[:2])
    for number in range(1, 9):
        run = f"run-{number}"
        report = progressed(Stage.RENDERING, number / 50, run, standing=number, own=1)
        job = after(job, [checked_in(run), report], start=job.updated_at)
    for number in range(9, 9 + MAX_RUNS):
        job = after(job, [checked_in(f"run-{number}")], start=job.updated_at)
        assert _attempt(job).verdict is None
    job = after(job, [checked_in("one too many")], start=job.updated_at)
    verdict = _attempt(job).verdict
    assert verdict is not None
    assert verdict.code == "runner.crash-loop"


def test_a_record_has_room_for_so_many_attempts_that_may_compute() -> None:
    """Attempts that drew something and cannot be cleaned up fill the record; then the job fails."""
    job = _job()
    for number in range(1, MAX_ADVANCED + 1):
        assert not job.ended
        token, run = f"token-{number}", f"run-{number}"
        begun = (claimed(token), intended(token, pieces=PIECES), checked_in(run, token))
        seen = SegmentsSeen(token=token, standing=number)
        job = after(job, [*begun, seen, lost(token), ResultMissing(token=token)], start=job.updated_at)
    assert job.status is JobStatus.FAILED


def test_each_run_draws_segments_of_its_own() -> None:
    """What the newest run drew is counted from its start; what is kept never falls."""
    job = after(_drawing(), [progressed(Stage.RENDERING, 0.4, standing=4, own=3), checked_in("run-2")])
    attempt = _attempt(after(job, [progressed(Stage.RENDERING, 0.5, "run-2", standing=3, own=0)]))
    assert (attempt.segments, attempt.segments_standing, attempt.segments_own) == (10, 4, 0)


def test_the_next_attempt_begins_with_what_is_kept() -> None:
    """What earlier attempts of the same class of device drew is known from its dispatch on."""
    attempt = _attempt(_at("helped, second attempt"))
    assert (attempt.segments_before, attempt.segments_standing) == (3, 3)


# --- the record -----------------------------------------------------------------------------------


def test_an_intent_to_keep_pieces_owes_their_clean_up() -> None:
    """From the dispatch intent on plans and segments may be stored, and are to be deleted some day."""
    assert after(new_job(), [claimed(), intended()]).pieces_clean_up is CleanUp.NONE
    assert after(new_job(), [claimed(), intended(pieces=PIECES)]).pieces_clean_up is CleanUp.OWED


def test_a_record_of_a_job_without_segments_costs_nothing_more() -> None:
    """What few jobs set is not written while it holds its default."""
    assert not any(word in dump_job(_at("rendering", parallel=1)) for word in ("helpers", "segments", "pieces", "lent"))


def test_a_record_with_many_helpers_stays_small() -> None:
    """A job that 64 draw has a record of less than 16 KiB, and comes back from it."""
    job = after(new_job(parallel=64), [*_BEGUN, PlanSeen(token="token-1")])
    for share in range(1, 64):
        started = HelperStarted(token="token-1", helper=helper(share), call_id=f"fc-01H{share:023}")
        job = after(job, [helper_starting(share), started], start=job.updated_at)
    assert all(state is HelperState.STARTED for state in _states(job))
    assert len(dump_job(job)) < 16 << 10
    assert load_job(dump_job(job)) == job


def test_a_lapse_of_the_lease_changes_no_remote_helper() -> None:
    """A holder that dies right after the dispatch leaves run and helpers to the reconciler."""
    held = [event for event in HISTORIES["helped"] if not isinstance(event, Dispatched)]
    job = after(new_job(parallel=3), held)
    lease = _attempt(job).lease_until
    assert lease is not None
    later = after(job, [LeaseLapsed(token="token-1", lease_until=lease)])
    assert (_states(later), _attempt(later).lease_until) == (_states(job), None)
    assert after(later, [completed(), video_seen()]).status is JobStatus.COMPLETE

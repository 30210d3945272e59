"""What holds for every job and every event, whatever happened before?"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.engine.events import (
    AttemptFailed,
    CallMissing,
    CancelConfirmed,
    CancelRequested,
    Claimed,
    CleanUpEvent,
    ClockAdvanced,
    Dispatched,
    JobEvent,
    LeaseLapsed,
    ResultFound,
    ResultMissing,
    StageEntered,
    StorageSilent,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.engine.rules import OUT, STAGE_PROGRESS
from renderdispatch.engine.transitions import TABLE, TRANSITIONS, Verdict, decide
from renderdispatch.jobs import Attempt, CleanUp, HelperState, Job
from renderdispatch.messages import CheckedIn, Failed, FaultDomain, JobError, JobStatus, Limits, Stage
from renderdispatch.testing import make_artifact, make_request
from renderdispatch.testing.histories import (
    HISTORIES,
    RUN_STAGES,
    START,
    TOKENS,
    Step,
    after,
    attempt_events,
    checked_in,
    claimed,
    completed,
    events,
    failed,
    helper_stopped,
    intended,
    jobs,
    lives,
    new_job,
    progressed,
    rerouted,
    run_events,
)


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_lead_where_they_say(name: str) -> None:
    """Every stage and every end can be reached: the properties below are about all of them."""
    job = after(new_job(), HISTORIES[name])
    others = {"failing", "failing, stopped", "second attempt", "cancelled in the queue", "expired"}
    helped = {name for name in HISTORIES if name.startswith("helped")}
    assert name in {job.stage, job.status, *others, *helped}


def test_every_stage_and_end_is_reached() -> None:
    """The histories leave no stage and no status out."""
    reached = [after(new_job(), history) for history in HISTORIES.values()]
    assert {job.stage for job in reached} == set(Stage)
    assert {job.status for job in reached} == set(JobStatus)


@given(jobs(), st.data())
def test_transition_is_total(job: Job, data: st.DataObject) -> None:
    """Any event at any job, at any time, gives a decision; nothing is raised."""
    now = START + data.draw(st.sampled_from([timedelta(0), timedelta(hours=2), timedelta(days=30), -timedelta(days=1)]))
    decision = decide(job, data.draw(events(now)), now)
    assert (decision.job is job) is (decision.verdict is not Verdict.APPLIED)


@given(lives(max_steps=30))
def test_any_life_is_total(life: list[Step]) -> None:
    """Any events in any order give a job that keeps the rules of a record."""
    for step in life:
        _check_record(step.after)


def _check_record(job: Job) -> None:
    assert 0 <= job.progress <= 100
    assert job.ended is (job.ended_at is not None)
    assert (job.status is JobStatus.COMPLETE) is (job.progress == 100)
    assert (job.status is JobStatus.PENDING) is (job.stage is Stage.QUEUED and not job.ended)
    waits = job.ready_at is not None or job.retry_at is not None
    assert waits is (job.stage in {Stage.QUEUED, Stage.RETRY_WAIT} and not job.ended)
    assert job.retry_at is None or (job.reroutes and job.stage is Stage.RETRY_WAIT and job.ready_at is None)
    assert (job.error is not None) is (job.status is JobStatus.FAILED)
    if job.status is JobStatus.COMPLETE or (job.stage is Stage.FINALIZING and not job.ended):
        assert job.artifact is not None
        assert job.finalizing_at is not None
    assert [attempt.number for attempt in job.attempts] == list(range(1, len(job.attempts) + 1))
    assert job.attempt_number == len(job.attempts)
    assert len({attempt.token for attempt in job.attempts}) == len(job.attempts)
    assert all(attempt.ended_at is not None for attempt in job.attempts[:-1])
    for attempt in job.attempts:
        assert len(set(attempt.runs)) == len(attempt.runs)
        if attempt.ended_at is not None:
            assert attempt.holder is None
            assert attempt.lease_until is None
            assert attempt.verdict is None
        assert (attempt.verdict is None) is (attempt.verdict_at is None)
        if attempt.verdict is not None:
            assert attempt.called
            assert job.stage in OUT
        if attempt.runs or attempt.call_id:
            assert attempt.called
        _check_helpers(job, attempt)
    if not job.ended and not waits:
        assert job.attempt is not None
        assert job.attempt.ended_at is None
    if job.ended:
        assert job.attempt is None or job.attempt.ended_at is not None
    if job.expired_at is not None:
        assert job.ended
    if job.ended and not job.owes_clean_up and not job.owes_pieces and job.expired_at is None:
        assert job.due_at is None
    else:
        assert job.due_at is not None


def _check_helpers(job: Job, attempt: Attempt) -> None:
    """Assert that an attempt has all its helpers or none, and that none can start once it has ended."""
    intended = attempt.planned and attempt.pieces is not None
    assert [helper.share for helper in attempt.helpers] == (list(range(1, job.parallel)) if intended else [])
    assert len({attempt.token, *(helper.token for helper in attempt.helpers)}) == 1 + len(attempt.helpers)
    for helper in attempt.helpers:
        assert (helper.call_id is None) or helper.state in {HelperState.STARTED, HelperState.STOPPED}
        assert attempt.ended_at is None or helper.state is not HelperState.INTENDED
    assert attempt.units <= job.parallel
    assert attempt.segments_before <= attempt.segments_then <= attempt.segments_standing
    assert attempt.runs_advanced <= len(attempt.runs)
    if attempt.pieces is not None:
        assert job.pieces_clean_up is not CleanUp.NONE


_STATES: Final = list(HelperState)


@given(lives(max_steps=20))
def test_helpers_go_forward(life: list[Step]) -> None:
    """No helper is started twice, and none that has stopped comes back."""
    for step in life:
        before = {helper.token: helper for attempt in step.before.attempts for helper in attempt.helpers}
        for helper in [helper for attempt in step.after.attempts for helper in attempt.helpers]:
            if (older := before.get(helper.token)) is not None:
                assert _STATES.index(helper.state) >= _STATES.index(older.state)
                assert older.call_id in {None, helper.call_id}


@given(lives(max_steps=20))
def test_a_job_is_cancelled_once_its_known_helpers_have_stopped(life: list[Step]) -> None:
    """The end of a cancel says when computing stopped only if no helper may compute."""
    for step in life:
        job = step.after
        if job.compute_stopped_at is not None and not step.before.ended:
            assert not any(helper.may_compute for helper in job.attempts[-1].helpers) if job.attempts else True


@given(lives(max_steps=20))
def test_helpers_that_are_not_wanted_are_stopped(life: list[Step]) -> None:
    """What may compute elsewhere for an attempt that has ended keeps the job in the reconciler's sight."""
    for step in life:
        job = step.after
        left = [a for a in job.attempts if a.ended_at is not None and not a.local]
        if any(helper.may_compute for attempt in left for helper in attempt.helpers):
            assert job.owes_clean_up
            assert job.look_needs is not None
            assert job.due_at is not None


@given(lives())
def test_replays_change_nothing(life: list[Step]) -> None:
    """An event that comes twice in a row is applied once, and the second time the very same job is answered."""
    for step in life:
        assert decide(step.after, step.event, step.now).job is step.after


@given(lives(max_steps=20), st.data())
def test_late_replays_of_a_run_change_nothing(life: list[Step], data: st.DataObject) -> None:
    """An event of a run that was applied once is never applied again, however much later it comes."""
    applied = [step.event for step in life if step.after is not step.before and hasattr(step.event, "run_id")]
    last = life[-1]
    for event in applied:
        assert decide(last.after, event, last.now + timedelta(minutes=1)).job is last.after


@given(lives(max_steps=20))
def test_late_replays_of_a_claim_change_nothing(life: list[Step]) -> None:
    """A claim that was applied once begins no second attempt: its token would not be fresh."""
    last = life[-1]
    for step in life:
        if isinstance(step.event, Claimed) and step.after is not step.before:
            assert decide(last.after, step.event, last.now).job is last.after


@given(lives(max_steps=20))
def test_terminal_absorbs(life: list[Step]) -> None:
    """An ended job never changes, except that its clean-up is ticked off, and that it expires."""
    for step in life:
        if step.before.ended and step.after is not step.before:
            assert isinstance(step.event, CleanUpEvent)
            if step.before.expired_at is not None:
                assert step.after.expired_at == step.before.expired_at
            assert _without_clean_up(step.after) == _without_clean_up(step.before)


def _without_clean_up(job: Job) -> Job:
    attempts = tuple(evolve(a, clean_up=CleanUp.NONE, stopped=False, swept_at=None, helpers=()) for a in job.attempts)
    job = evolve(job, pieces_clean_up=CleanUp.NONE, pieces_swept_at=None, pieces_kept_until=None, lent_to=None)
    return evolve(
        job, attempts=attempts, audio_clean_up=CleanUp.NONE, audio=None, updated_at=job.created_at, expired_at=None
    )


@given(lives(max_steps=20))
def test_progress_never_falls_within_an_attempt(life: list[Step]) -> None:
    """Only the end of an attempt takes progress back."""
    for step in life:
        same = len(step.after.attempts) == len(step.before.attempts)
        if same and step.after.stage is not Stage.RETRY_WAIT:
            assert step.after.progress >= step.before.progress


@given(lives(max_steps=20))
def test_stages_never_go_back_within_an_attempt(life: list[Step]) -> None:
    """Within an attempt the stages come in their order, then perhaps ``cancelling``."""
    order = [*STAGE_PROGRESS, Stage.CANCELLING]
    for step in life:
        same = len(step.after.attempts) == len(step.before.attempts)
        if same and step.after.stage is not Stage.RETRY_WAIT:
            assert order.index(step.after.stage) >= order.index(step.before.stage)


@given(jobs(), st.data())
def test_events_of_another_attempt_change_nothing(job: Job, data: st.DataObject) -> None:
    """An event with another token than the running attempt's is superseded, and its sender is told to stop."""
    mine = job.attempt.token if job.attempt is not None and job.attempt.ended_at is None else None
    others = [token for token in TOKENS if token != mine]
    now = job.updated_at + timedelta(hours=2)
    decision = decide(job, data.draw(run_events(others) | attempt_events(now, others)), now)
    assert decision.job is job
    if not job.ended:
        assert decision.verdict is Verdict.SUPERSEDED
    assert decision.reply.stop


@given(lives(max_steps=20), st.data())
def test_events_of_an_older_run_change_nothing(life: list[Step], data: st.DataObject) -> None:
    """Once a newer run checked in, no event of an older one changes anything, and it is told to stop."""
    job = life[-1].after
    attempt = job.attempt
    if attempt is None or len(attempt.runs) < 2:
        return
    older = run_events([attempt.token], attempt.runs[:-1])
    decision = decide(job, data.draw(older), life[-1].now)
    assert decision.job is job
    assert decision.verdict is Verdict.SUPERSEDED
    assert decision.reply.stop


@given(lives(max_steps=20))
def test_updates_go_forward(life: list[Step]) -> None:
    """``updated_at`` never falls, unless the clock was set back by more than a minute: then it is the clock's."""
    for step in life:
        earlier = step.before.updated_at - timedelta(minutes=1)
        assert step.after.updated_at >= step.before.updated_at
        assert decide(step.before, step.event, earlier).job.updated_at >= step.before.updated_at
        backwards = decide(step.before, step.event, earlier - timedelta(days=1))
        assert backwards.job.updated_at in {step.before.updated_at, earlier - timedelta(days=1)}


@given(lives(max_steps=20))
def test_deadlines_always_end_the_job(life: list[Step]) -> None:
    """A job that nobody speaks for any more ends by its deadline; an hour later where storage is still to be asked."""
    job, now = life[-1].after, max(life[-1].now, life[-1].after.finish_by)
    for wait in (timedelta(minutes=2), timedelta(hours=1, seconds=1), timedelta(minutes=2)):
        now += wait
        job = decide(job, ClockAdvanced(), now).job
    assert job.ended


@given(lives(max_steps=20))
def test_only_a_failure_that_needs_no_look_ends_an_attempt_unseen(life: list[Step]) -> None:
    """A called attempt fails when its only run says so, or when storage was asked (rule J6), or never responded."""
    seen = (ResultMissing, StorageSilent, VideoSeen, VideoMissing)
    for step in life:
        before, after = step.before.attempt, step.after.attempt
        if before is None or after is None or not before.called or before.ended_at is not None:
            continue
        if after.ended_at is not None and after.error is not None:
            alone = isinstance(step.event, Failed) and len(before.runs) < 2
            late = isinstance(step.event, ClockAdvanced) and step.before.answer_by is not None
            assert alone or late or isinstance(step.event, seen)


@given(lives(max_steps=20))
def test_ids_and_requests_stay(life: list[Step]) -> None:
    """No event changes what was asked for, or when; only a secret URL is forgotten."""
    first, last = life[0].before, life[-1].after
    names = ("id", "tenant", "fingerprint", "priority", "parallel", "borrows", "created_at", "finish_by", "revision")
    for name in names:
        assert getattr(first, name) == getattr(last, name)
    assert first.request.model_copy(update={"audio": None}) == last.request.model_copy(update={"audio": None})


@given(lives(max_steps=20))
def test_secrets_end_with_the_job(life: list[Step]) -> None:
    """An ended job's record holds no submitted URL, and no repr ever does."""
    for step in life:
        assert "s3cret" not in repr(step.after)
        if step.after.ended:
            assert "s3cret" not in dump_job(step.after)


@given(lives())
def test_records_round_trip(life: list[Step]) -> None:
    """Any job, written down and read again, is the same."""
    job = life[-1].after
    assert load_job(dump_job(job)) == job


# --- the table ------------------------------------------------------------------------------------


def _where(job: Job) -> Stage | JobStatus:
    return job.status if job.ended else job.stage


@given(lives(max_steps=20))
def test_rules_lead_where_the_table_says(life: list[Step]) -> None:
    """A rule leaves a job in its stage, or moves it to a stage or an end that its row names."""
    for step in life:
        if step.after is not step.before:
            row = TRANSITIONS[type(step.event), step.before.stage]
            assert _where(step.after) in {_where(step.before), *row.to}


def _moves() -> Iterator[tuple[type, Stage, Stage | JobStatus]]:
    """Yield event, stage and new place of every move that the shipped histories and a set of events can make."""
    errors = [JobError(code="some.code", message="it broke", fault=fault) for fault in FaultDomain]
    refused = (claimed(), intended(), AttemptFailed(token="token-1", error=errors[0], stopped=True, refused=True))
    histories = [*HISTORIES.values(), (*refused, ResultMissing(token="token-1"))]
    kinds = itertools.product(histories, (True, False), (0, 1), (1, 9), (True, False))
    for history, local, cancelled, limits, reroutes in kinds:
        request = make_request(backend="modal", limits=Limits(max_attempts=limits))
        job = evolve(new_job(parallel=3), request=request, reroutes=reroutes)
        for event in history:
            if isinstance(event, Claimed):
                event = evolve(event, local=local)  # noqa: PLW2901
            job = decide(job, event, START).job
        if job.ended:
            continue
        if job.stage is Stage.FINALIZING and cancelled:
            job = decide(job, CancelRequested(), START).job
        attempt = job.attempt
        token = attempt.token if attempt is not None else "token-9"
        run = attempt.runs[-1] if attempt is not None and attempt.runs else "run-1"
        single: list[JobEvent] = [
            CancelRequested(),
            claimed("token-9"),
            *(rerouted(token, backend) for backend in ("modal", "local")),
            *(StageEntered(token=token, stage=stage) for stage in Stage),
            intended(token),
            Dispatched(token=token, call_id="call"),
            *(AttemptFailed(token=token, error=error, stopped=True) for error in errors),
            LeaseLapsed(token=token, lease_until=(attempt and attempt.lease_until) or START),
            CallMissing(token=token),
            ResultFound(token=token, artifact=make_artifact()),
            ResultMissing(token=token),
            StorageSilent(token=token),
            VideoSeen(token=token, size=make_artifact().bytes),
            VideoSeen(token=token, size=1),
            VideoMissing(token=token),
            CancelConfirmed(token=token, stopped=True),
            helper_stopped(1, token),
            ClockAdvanced(),
            checked_in(run, token),
            *(progressed(stage, 0.5, run, token) for stage in RUN_STAGES),
            completed(run, token),
            *(failed(fault, run, token) for fault in FaultDomain),
        ]
        chains: list[list[JobEvent]] = [*([event] for event in single), [ClockAdvanced()] * 4]
        for hours, chain in itertools.product((0, 2, 24), chains):
            after = job
            for number, event in enumerate(chain):
                before, after = after, decide(after, event, START + timedelta(hours=hours + 2 * number)).job
                if _where(before) != _where(after):
                    yield type(event), before.stage, _where(after)


def test_the_table_promises_no_move_that_is_never_made() -> None:
    """For each stage or end that a row names there is a job that gets there, from one of the row's stages."""
    made = set(_moves())
    for row in TABLE:
        for to in row.to:
            assert any((row.event, stage, to) in made for stage in row.stages), (row.event.__name__, to)


def test_no_pair_has_two_rows() -> None:
    """Each event has at most one rule in each stage."""
    assert sum(len(row.stages) for row in TABLE) == len(TRANSITIONS)


def test_the_diagram_is_the_tables() -> None:
    """The page about the design shows the table as it is; ``make diagram`` draws it anew."""
    script = Path(__file__).parents[2] / "docs/state_diagram.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_the_table_names_events_and_stages() -> None:
    """The table is total in its own way: a pair that is not in it changes nothing."""
    assert (CheckedIn, Stage.QUEUED) not in TRANSITIONS
    assert {stage for _, stage in TRANSITIONS} == set(Stage)

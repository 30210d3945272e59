"""What holds for every job and every event, whatever happened before?"""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.engine.events import AudioDropped, Claimed, CleanedUp, ClockAdvanced
from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.engine.rules import STAGE_PROGRESS
from renderdispatch.engine.transitions import TRANSITIONS, Verdict, decide, transition
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import CheckedIn, JobStatus, Stage
from renderdispatch.testing.histories import (
    HISTORIES,
    START,
    TOKENS,
    Step,
    after,
    attempt_events,
    events,
    jobs,
    lives,
    new_job,
    run_events,
)


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_lead_where_they_say(name: str) -> None:
    """Every stage and every end can be reached: the properties below are about all of them."""
    job = after(new_job(), HISTORIES[name])
    assert name in {job.stage, job.status, "second attempt", "cancelled in the queue"}


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
    assert (job.ready_at is not None) is (job.stage in {Stage.QUEUED, Stage.RETRY_WAIT} and not job.ended)
    assert (job.error is not None) is (job.status is JobStatus.FAILED)
    if job.status is JobStatus.COMPLETE or (job.stage is Stage.FINALIZING and not job.ended):
        assert job.artifact is not None
        assert job.finalizing_at is not None
    assert [attempt.number for attempt in job.attempts] == list(range(1, len(job.attempts) + 1))
    assert len({attempt.token for attempt in job.attempts}) == len(job.attempts)
    assert all(attempt.ended_at is not None for attempt in job.attempts[:-1])
    for attempt in job.attempts:
        assert len(set(attempt.runs)) == len(attempt.runs)
        if attempt.ended_at is not None:
            assert attempt.holder is None
            assert attempt.lease_until is None
        if attempt.runs or attempt.call_id:
            assert attempt.called
    if not job.ended and job.ready_at is None:
        assert job.attempt is not None
        assert job.attempt.ended_at is None
    if job.ended:
        assert job.attempt is None or job.attempt.ended_at is not None
    if job.ended and not job.owes_clean_up:
        assert job.due_at is None
    else:
        assert job.due_at is not None


@given(lives())
def test_replays_change_nothing(life: list[Step]) -> None:
    """An event that comes twice in a row is applied once, and the second time the very same job is answered."""
    for step in life:
        assert transition(step.after, step.event, step.now) is step.after


@given(lives(max_steps=20), st.data())
def test_late_replays_of_a_run_change_nothing(life: list[Step], data: st.DataObject) -> None:
    """An event of a run that was applied once is never applied again, however much later it comes."""
    applied = [step.event for step in life if step.after is not step.before and hasattr(step.event, "run_id")]
    last = life[-1]
    for event in applied:
        assert transition(last.after, event, last.now + timedelta(minutes=1)) is last.after


@given(lives(max_steps=20))
def test_late_replays_of_a_claim_change_nothing(life: list[Step]) -> None:
    """A claim that was applied once begins no second attempt: its token would not be fresh."""
    last = life[-1]
    for step in life:
        if isinstance(step.event, Claimed) and step.after is not step.before:
            assert transition(last.after, step.event, last.now) is last.after


@given(lives(max_steps=20))
def test_terminal_absorbs(life: list[Step]) -> None:
    """An ended job never changes, except that its clean-up is ticked off."""
    for step in life:
        if step.before.ended and step.after is not step.before:
            assert isinstance(step.event, (CleanedUp, AudioDropped))
            assert _without_clean_up(step.after) == _without_clean_up(step.before)


def _without_clean_up(job: Job) -> Job:
    attempts = tuple(evolve(attempt, clean_up=CleanUp.NONE) for attempt in job.attempts)
    return evolve(job, attempts=attempts, audio_clean_up=CleanUp.NONE, audio=None, updated_at=job.created_at)


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
    """``updated_at`` never falls, even where the clock does."""
    for step in life:
        backwards = transition(step.before, step.event, step.now - timedelta(days=1))
        assert step.after.updated_at >= step.before.updated_at
        assert backwards.updated_at >= step.before.updated_at


@given(lives(max_steps=20))
def test_deadlines_always_end_the_job(life: list[Step]) -> None:
    """A job that nobody speaks for any more ends by its deadline, unless only storage is still to be asked."""
    job, now = life[-1].after, life[-1].now
    if job.stage is not Stage.FINALIZING:
        assert transition(job, ClockAdvanced(), max(now, job.finish_by) + timedelta(minutes=2)).ended


@given(lives(max_steps=20))
def test_ids_and_requests_stay(life: list[Step]) -> None:
    """No event changes what was asked for, or when; only a secret URL is forgotten."""
    first, last = life[0].before, life[-1].after
    for name in ("id", "tenant", "fingerprint", "priority", "created_at", "finish_by", "revision"):
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


def test_the_table_names_events_and_stages() -> None:
    """The table is total in its own way: a pair that is not in it changes nothing."""
    assert (CheckedIn, Stage.QUEUED) not in TRANSITIONS
    assert {stage for _, stage in TRANSITIONS} == set(Stage)

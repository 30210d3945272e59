"""What happens to a job when Modal accepts its call and the response is lost?

The Modal client retries three times by itself, with one idempotency key. If Modal honours the key, one call exists, whose
id the service does not know; if Modal does not, four exist. Both are tested.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from renderdispatch.messages import CLOCK_SLACK, CallResult, Failed, JobStatus, Limits, RenderEvent
from renderdispatch.testing.modal import CallStatus
from tests.support.mishaps import CONTAINERS, Render, Rig

TRIES = 4
SOON = CLOCK_SLACK + timedelta(seconds=10)
"""How long a run may take to know that its deadline has passed by every clock, to end its processes and to report it
once, on a slow machine."""


def _lose_every_answer(rig: Rig, *, forget_keys: bool) -> None:
    rig.modal.faults.lose_spawn_answers = 1.0
    rig.modal.faults.forget_idempotency_keys = forget_keys


def _assert_nothing_was_billed_past_its_deadline(render: Render) -> None:
    calls = render.calls  # one that the client repeated late may have come since others were looked at
    for call in calls:
        render.rig.modal.wait_for_end(call.id)
    for call in calls:
        for start in render.rig.modal.call(call.id).starts:
            assert start.ended_at is not None
            assert start.ended_at <= render.job.finish_by + SOON


def _assert_adopted_and_delivered_once(render: Render, *, duplicates: bool) -> None:
    """One call checked in first, is the job's, and delivered; the others ended before they rendered."""
    render.assert_delivered_once()
    (attempt,) = render.job.attempts
    assert (len(render.calls) > 1) is duplicates  # how many retries the client has time for, the machine's load decides
    assert attempt.call_id in {call.id for call in render.calls}
    assert len(attempt.runs) == 1
    assert render.starts == 1
    for call in render.calls:
        assert render.rig.modal.wait_for_end(call.id).status is CallStatus.SUCCEEDED
        answer = CallResult.model_validate_json(render.rig.modal.call_handle(call.id).get(timeout=30))
        if call.id != attempt.call_id:
            assert isinstance(answer.outcome, Failed)
            assert answer.outcome.error.code == "render.stopped"
    _assert_nothing_was_billed_past_its_deadline(render)


@pytest.mark.parametrize(
    ("jobs", "forget_keys"),
    [
        (6, False),
        (3, True),
        pytest.param(100, False, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
        pytest.param(100, True, marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
def test_lost_answers(rig: Rig, jobs: int, forget_keys: bool) -> None:
    """A check-in tells the service of the call; any other call of the attempt is told to stop."""
    _lose_every_answer(rig, forget_keys=forget_keys)
    renders = [rig.submit() for _ in range(jobs)]
    for render in renders:
        _assert_adopted_and_delivered_once(render, duplicates=forget_keys)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_calls_that_cannot_check_in(rig: Rig) -> None:
    """When no report arrives, every call of an attempt ends by itself at the job's deadline."""
    _lose_every_answer(rig, forget_keys=True)
    rig.gate.shut = lambda _event: True
    render = rig.submit(hold=True, limits=Limits(total_timeout=timedelta(seconds=20)))
    rig.modal.wait(lambda: len(render.calls) == TRIES)
    rig.modal.wait(lambda: render.starts == CONTAINERS)
    rig.modal.wait(lambda: all(call.status.ended for call in render.calls), timeout=150)
    assert render.starts == CONTAINERS, "the fourth one came too late to begin"
    render.assert_stopped()
    _assert_nothing_was_billed_past_its_deadline(render)
    assert render.job.attempt is not None
    assert render.job.attempt.runs == ()


@pytest.mark.long
def test_duplicates_that_cannot_check_in(rig: Rig) -> None:
    """Duplicates that cannot be stopped render too; the first one delivers, and the others report its video."""
    _lose_every_answer(rig, forget_keys=True)
    heard: list[str] = []

    def is_another(event: RenderEvent) -> bool:
        heard.append(event.run_id)
        return event.run_id != heard[0]

    rig.gate.shut = is_another
    render = rig.submit(hold=True)
    render.wait_for_renders(CONTAINERS)
    render.go()
    job = render.wait_for(JobStatus.COMPLETE)
    rig.gate.shut = lambda _event: False
    render.assert_delivered_once()
    assert len(render.calls) == TRIES
    (attempt,) = job.attempts
    assert attempt.runs == (heard[0],)
    assert render.starts == CONTAINERS, "the fourth one found the result"
    _assert_nothing_was_billed_past_its_deadline(render)

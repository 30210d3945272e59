"""What does the state of a call mean for its job?"""

from __future__ import annotations

import pytest
from attrs import evolve

from renderdispatch.engine.events import AttemptFailed, CallMissing, CancelConfirmed, ResultFound
from renderdispatch.engine.outcomes import call_event
from renderdispatch.jobs import Attempt
from renderdispatch.messages import Completed, Failed, FaultDomain, JobError
from renderdispatch.protocols import CallState, CallStatus
from renderdispatch.testing import make_artifact
from renderdispatch.testing.histories import HISTORIES, after, new_job

ERROR = JobError(code="scene.failed", message="it broke", fault=FaultDomain.SCENE)
RUNNING, MISSING = CallState(status=CallStatus.RUNNING), CallState(status=CallStatus.MISSING)
SILENT_END = CallState(status=CallStatus.ENDED)


def attempt_with(*runs: str) -> Attempt:
    attempt = after(new_job(), HISTORIES["rendering"]).attempt
    assert attempt is not None
    return evolve(attempt, runs=runs)


def ended(kind: type[Completed] | type[Failed], run_id: str = "run-1") -> CallState:
    common = {"event_id": "event", "job_id": "job", "token": "token", "run_id": run_id}
    detail = {"artifact": make_artifact()} if kind is Completed else {"error": ERROR}
    return CallState(status=CallStatus.ENDED, outcome=kind.model_validate({**common, **detail}))


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("silent", [False, True])
def test_a_running_call_means_nothing(cancelling: bool, silent: bool) -> None:
    """A call that runs says nothing new."""
    assert call_event(attempt_with("run-1"), RUNNING, cancelling=cancelling, silent=silent) is None


def test_each_end_is_an_event() -> None:
    """A result, a failure, a call that ended without a word and one that is not known are told apart."""
    attempt = attempt_with("run-1")
    events = [
        call_event(attempt, state, cancelling=False, silent=False)
        for state in (ended(Completed), ended(Failed), SILENT_END, MISSING)
    ]
    assert [type(event) for event in events] == [ResultFound, AttemptFailed, AttemptFailed, CallMissing]
    codes = [event.error.code for event in events if isinstance(event, AttemptFailed)]
    assert codes == ["scene.failed", "runner.died"]
    assert all(event is not None and event.token == attempt.token for event in events)


def test_what_the_backend_knows_of_a_failure_is_kept() -> None:
    """An error without an outcome is the backend's own."""
    state = CallState(status=CallStatus.ENDED, error=ERROR)
    event = call_event(attempt_with(), state, cancelling=False, silent=False)
    assert isinstance(event, AttemptFailed) and (event.error, event.stopped) == (ERROR, True)


@pytest.mark.parametrize("state", [ended(Completed), ended(Failed), SILENT_END, MISSING])
def test_any_end_confirms_a_cancel(state: CallState) -> None:
    """A cancelled job needs to know one thing: that nothing computes any more."""
    event = call_event(attempt_with("run-1"), state, cancelling=True, silent=False)
    assert isinstance(event, CancelConfirmed) and event.stopped


def test_the_failure_of_an_older_run_is_no_end() -> None:
    """While a newer run may go on, the older one's failure ends neither the attempt nor the computing of a cancel."""
    attempt, state = attempt_with("run-1", "run-2"), ended(Failed, "run-1")
    assert call_event(attempt, state, cancelling=False, silent=False) is None
    confirmed = call_event(attempt, state, cancelling=True, silent=False)
    assert isinstance(confirmed, CancelConfirmed) and not confirmed.stopped


def test_a_newest_run_that_is_silent_is_lost() -> None:
    """After a silence the attempt fails, and its computing is not known to have stopped."""
    attempt, state = attempt_with("run-1", "run-2"), ended(Failed, "run-1")
    event = call_event(attempt, state, cancelling=False, silent=True)
    assert isinstance(event, AttemptFailed)
    assert (event.error.code, event.stopped) == ("runner.silent", False)

"""How did the call of an attempt end, as far as its backend knows?

`call_event` is the one translation of a backend's answer into an event of the table in `transitions`. Holders of local
attempts and the reconciler use it alike. It is pure.
"""

from __future__ import annotations

from renderdispatch.engine.events import AttemptEvent, AttemptFailed, CallMissing, CancelConfirmed, ResultFound
from renderdispatch.engine.rules import infrastructure_error
from renderdispatch.jobs import Attempt
from renderdispatch.messages import Completed, Failed
from renderdispatch.protocols import CallState, CallStatus


def call_event(attempt: Attempt, state: CallState, *, cancelling: bool, silent: bool) -> AttemptEvent | None:
    """Return what the state of an attempt's call means for its job; None where it means nothing new.

    Args:
        attempt: The attempt as its record has it.
        state: What the backend says of the call.
        cancelling: Whether the job is to be cancelled.
        silent: Whether the newest run has shown no progress for so long that it counts as lost.
    """
    if state.status is CallStatus.RUNNING:
        return None
    # An input that was delivered twice has two runs. The call ends with the first one's, and the newest may go on (J6).
    older = isinstance(state.outcome, Failed) and state.outcome.run_id in attempt.runs[:-1]
    if cancelling:
        return CancelConfirmed(token=attempt.token, stopped=not older)
    if older:
        message = "the call ended with the answer of an older run, and the newest one gives no sign of life"
        lost = infrastructure_error("runner.silent", message)
        return AttemptFailed(token=attempt.token, error=lost, stopped=False) if silent else None
    if state.status is CallStatus.MISSING:
        return CallMissing(token=attempt.token)
    if isinstance(state.outcome, Completed):
        return ResultFound(token=attempt.token, artifact=state.outcome.artifact)
    error = state.outcome.error if state.outcome is not None else state.error
    if error is None:
        error = infrastructure_error("runner.died", "the render ended without a word")
    return AttemptFailed(token=attempt.token, error=error, stopped=True)

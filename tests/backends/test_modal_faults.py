"""What does each exception of the Modal client mean? One test a row, with the client's own classes."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("modal")

from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError
from modal import exception

from renderdispatch.backends.modal_faults import (
    LinkClosed,
    Unanswered,
    UnknownCall,
    meaning_of,
    meanings,
    readable,
    refusal,
    state_of,
)
from renderdispatch.messages import FaultDomain
from renderdispatch.protocols import CallStatus

Polled = tuple[CallStatus, FaultDomain | None] | None
Asked = tuple[str, bool, bool]

RUNNING: Polled = (CallStatus.RUNNING, None)
MISSING: Polled = (CallStatus.MISSING, None)
INFRASTRUCTURE: Polled = (CallStatus.ENDED, FaultDomain.INFRASTRUCTURE)
DEADLINE: Polled = (CallStatus.ENDED, FaultDomain.DEADLINE)
PREEMPTION: Polled = (CallStatus.ENDED, FaultDomain.PREEMPTION)

# exception; what it says of a polled call; as the answer to a start: code, retryable, outcome known
ROWS: list[tuple[BaseException, Polled, Asked]] = [
    (TimeoutError(), RUNNING, ("modal.running", True, False)),
    (exception.OutputExpiredError(), MISSING, ("modal.expired", True, False)),
    (exception.NotFoundError("no fc-1"), MISSING, ("modal.not-deployed", False, True)),
    (UnknownCall(), MISSING, ("modal.unknown-call", False, False)),
    (exception.FunctionTimeoutError("900 s"), DEADLINE, ("modal.timeout", True, False)),
    (exception.InternalFailure("lost"), INFRASTRUCTURE, ("modal.worker-lost", True, False)),
    (exception.RemoteError(""), INFRASTRUCTURE, ("modal.ended", True, False)),
    (exception.ImageBuildError("no", "im-1"), INFRASTRUCTURE, ("modal.ended", True, False)),
    (exception.ExecutionError("cannot be deserialized"), INFRASTRUCTURE, ("modal.unreadable", True, False)),
    (exception.DeserializationError("no module"), INFRASTRUCTURE, ("modal.unreadable", True, False)),
    (exception.InputCancellation(), INFRASTRUCTURE, ("modal.cancelled", True, False)),
    (KeyboardInterrupt(), PREEMPTION, ("modal.preempted", True, False)),
    (Unanswered("within 10 s"), None, ("modal.unreachable", True, False)),
    (exception.ConnectionError("no"), None, ("modal.unreachable", True, False)),
    (exception.ServiceError("UNAVAILABLE"), None, ("modal.unreachable", True, False)),
    (exception.TimeoutError("late"), None, ("modal.unreachable", True, False)),
    (StreamTerminatedError("lost"), None, ("modal.unreachable", True, False)),
    (GRPCError(Status.UNAVAILABLE), None, ("modal.unreachable", True, False)),
    (exception.ClientClosed(), None, ("modal.closed", True, False)),
    (LinkClosed(), None, ("backend.closed", True, False)),
    (exception.InternalError("bug"), None, ("modal.trouble", True, False)),
    (exception.DataLossError("lost"), None, ("modal.trouble", True, False)),
    (exception.ConflictError("stopping"), None, ("modal.conflict", True, True)),
    (exception.ResourceExhaustedError("quota"), None, ("modal.busy", True, True)),
    (exception.AuthError("no token"), None, ("modal.credentials", False, True)),
    (exception.PermissionDeniedError("no"), None, ("modal.denied", False, True)),
    (exception.InvalidError("gpu"), None, ("modal.refused", False, True)),
    (exception.AlreadyExistsError("there"), None, ("modal.refused", False, True)),
    (exception.RequestSizeError("large"), None, ("modal.refused", False, True)),
    (exception.SerializationError("no"), None, ("modal.refused", False, True)),
    (exception.UnimplementedError("old"), None, ("modal.version", False, True)),
    (exception.VersionError("old"), None, ("modal.version", False, True)),
    (ValueError("a bug of the client"), None, ("modal.unexpected", True, False)),
]


@pytest.fixture(params=ROWS, ids=lambda row: type(row[0]).__name__)
def row(request: pytest.FixtureRequest) -> tuple[BaseException, Polled, Asked]:
    """A row of the table."""
    found: tuple[BaseException, Polled, Asked] = request.param
    return found


def test_of_a_polled_call(row: tuple[BaseException, Polled, Asked]) -> None:
    """It runs, is missing, ended by somebody's fault, or nothing is said of it."""
    error, polled, _ = row
    state = state_of(error)
    found = None if state is None else (state.status, state.error and state.error.fault)
    assert found == polled
    if state is not None and state.status is CallStatus.ENDED:
        assert state.error is not None and state.error.message


def test_of_a_start(row: tuple[BaseException, Polled, Asked]) -> None:
    """Whether a later start may succeed, and whether this one surely did not."""
    error, _, (code, retryable, known) = row
    refused = refusal(error, "job 1 was not started", sent=True)
    assert (refused.code, refused.retryable, refused.outcome_known) == (code, retryable, known)
    assert str(refused).startswith("job 1 was not started: ")


def test_before_anything_was_sent(row: tuple[BaseException, Polled, Asked]) -> None:
    """The outcome of a start that never left is known, whatever failed."""
    assert refusal(row[0], "job 1 was not started", sent=False).outcome_known


def test_the_table_is_whole() -> None:
    """Every exception that the client can raise at a call has a row of its own, or that of its parent."""
    elsewhere = ("Sandbox", "Image", "Mount", "Volume", "Logs", "Snapshot", "Workspace", "Exec", "Interactive")
    for name, kind in inspect.getmembers(exception, inspect.isclass):
        if not issubclass(kind, exception.Error) or kind is exception.Error or name.startswith((*elsewhere, "_")):
            continue
        assert any(parent in meanings() for parent in kind.__mro__), name
    assert {type(error) for error, _, _ in ROWS} >= set(meanings())


def test_what_the_function_raised_is_its_end() -> None:
    """An exception that came as the result ended the call, also where its class means another thing here.

    The client unpacks results in `_process_result`: the end-to-end tests see the real one.
    """
    unpacking = {"__name__": "modal._utils.function_utils"}
    exec("def _process_result(error):\n    raise error", unpacking)
    for error in (TimeoutError("by the scene"), ValueError("no"), exception.AuthError("elsewhere"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            unpacking["_process_result"](error)  # type: ignore[operator]
        assert meaning_of(raised.value).code == "modal.raised"
        state = state_of(raised.value)
        assert state is not None and state.status is CallStatus.ENDED


# --- messages


def test_a_message_without_secrets() -> None:
    """The token's secret, the queries of URLs and their users are left out of what Modal said."""
    said = "as-1234 may not GET https://me:pw@bucket.example/key?X-Amz-Signature=abc#here, see https://modal.com/docs"
    refused = refusal(exception.AuthError(said), "job 1 was not started", sent=True, secret="as-1234")
    assert "as-1234" not in str(refused)
    assert "abc" not in str(refused)
    assert "pw" not in str(refused)
    assert "https://bucket.example/key?..." in str(refused)
    assert "https://modal.com/docs" in str(refused)


def test_a_message_of_one_line() -> None:
    """Of a remote traceback the first line and the last one, which names the exception, are kept."""
    lines = ["Traceback (most recent call last):", *(f"  frame {n}" for n in range(50)), "x.Broken: no such star"]
    assert readable(exception.ExecutionError("\n".join(lines))).endswith("... x.Broken: no such star")
    assert len(readable(exception.RemoteError("x" * 100_000))) < 600


def test_no_message_at_all() -> None:
    """An exception without words, or one that cannot be shown, is named by its class."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert readable(exception.RemoteError("")) == "RemoteError"
    assert readable(Mute()) == "Mute"
    assert readable(ValueError("\ud800")) == "ValueError: ?"


def test_missing_credentials_say_the_next_step() -> None:
    """Whoever has no token reads how to get one."""
    assert "modal token new" in str(refusal(exception.AuthError("Token missing"), "job 1 was not started", sent=False))

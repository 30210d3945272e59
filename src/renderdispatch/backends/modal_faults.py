"""What does an exception of the Modal client mean?

One table, `meanings`, from exception class to meaning; the nearest class in an exception's ancestry counts. Two
questions are put to it: what does this say of a call that was polled (`state_of`), and what of something that was
asked of Modal (`refusal`)?
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Final

from attrs import frozen

from renderdispatch.errors import BackendError
from renderdispatch.messages import FaultDomain, JobError
from renderdispatch.protocols import CallState, CallStatus

LOG_IN: Final = "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
DEPLOY: Final = "run `renderdispatch modal deploy`"


def how_to_deploy(app: str, *, environment: str | None = None, version: int | None = None) -> str:
    """Return the next step where this app is not deployed, or not in this version."""
    if version is not None:
        return "name a version that is deployed, or none for the newest"
    options = "" if app == "renderdispatch" else f" --app {app}"
    options += "" if environment is None else f" --environment {environment}"
    return f"run `renderdispatch modal deploy{options}`"


class Unanswered(Exception):
    """Modal did not answer within the time that it was given."""


class UnknownCall(Exception):
    """What was asked about is no id of a Modal call."""


class LinkClosed(Exception):
    """The backend was closed, here, while it waited for Modal."""


class Says(StrEnum):
    """What an exception says of a call that is polled."""

    RUNNING = "running"
    MISSING = "missing"
    ENDED = "ended"
    NOTHING = "nothing"
    """Modal answered, but not about the call."""
    SILENCE = "silence"
    """No answer came: the connection is to be doubted."""


@frozen(kw_only=True)
class Meaning:
    """A row of the table.

    Args:
        says: What it says of a call that is polled.
        code: Of the error that it becomes.
        what: The error in words; what Modal said is added.
        fault: Where it ended the call: whose fault that was.
        retryable: Where something was asked: whether to ask again later may help.
        outcome_known: Where a start was asked: whether it surely did not happen. Before anything was sent, it always
            is known.
    """

    says: Says
    code: str
    what: str
    fault: FaultDomain = FaultDomain.INFRASTRUCTURE
    retryable: bool = True
    outcome_known: bool = False


_SILENCE: Final = Meaning(
    says=Says.SILENCE, code="modal.unreachable", what="Modal did not answer, or cannot be reached from here"
)
_TROUBLE: Final = Meaning(says=Says.NOTHING, code="modal.trouble", what="Modal is in trouble")
_REFUSED: Final = Meaning(
    says=Says.NOTHING, code="modal.refused", what="Modal refused", retryable=False, outcome_known=True
)
_OLD: Final = Meaning(
    says=Says.NOTHING,
    code="modal.version",
    what="Modal does not speak with this version of its client; install another one of `modal`",
    retryable=False,
    outcome_known=True,
)
_LOGGED_OUT: Final = Meaning(
    says=Says.NOTHING,
    code="modal.credentials",
    what=f"Modal knows no valid credentials; {LOG_IN}",
    retryable=False,
    outcome_known=True,
)
_RAISED: Final = Meaning(says=Says.ENDED, code="modal.raised", what="the function raised instead of answering")
_UNREADABLE: Final = Meaning(
    says=Says.ENDED, code="modal.unreadable", what="what the function raised or answered cannot be read here"
)
_UNKNOWN: Final = Meaning(says=Says.SILENCE, code="modal.unexpected", what="the Modal client failed")


@cache
def meanings() -> Mapping[type[BaseException], Meaning]:
    """Return the table. Imports modal."""
    from grpclib.exceptions import GRPCError, StreamTerminatedError
    from modal import exception as modal

    return {
        # of the call
        TimeoutError: Meaning(says=Says.RUNNING, code="modal.running", what="the call has not ended"),
        modal.OutputExpiredError: Meaning(says=Says.MISSING, code="modal.expired", what="the result is no longer kept"),
        modal.NotFoundError: Meaning(
            says=Says.MISSING,
            code="modal.not-deployed",
            what="Modal finds nothing of this name",
            retryable=False,
            outcome_known=True,
        ),
        UnknownCall: Meaning(
            says=Says.MISSING, code="modal.unknown-call", what="no id of a Modal call", retryable=False
        ),
        modal.FunctionTimeoutError: Meaning(
            says=Says.ENDED,
            code="modal.timeout",
            what="the function ran into the time that it was given",
            fault=FaultDomain.DEADLINE,
        ),
        modal.InternalFailure: Meaning(says=Says.ENDED, code="modal.worker-lost", what="Modal lost the container"),
        modal.RemoteError: Meaning(
            says=Says.ENDED,
            code="modal.ended",
            what="Modal ended the call: it was cancelled, or its container could not start",
        ),
        modal.ExecutionError: _UNREADABLE,
        modal.DeserializationError: _UNREADABLE,
        modal.InputCancellation: Meaning(says=Says.ENDED, code="modal.cancelled", what="Modal cancelled the call"),
        KeyboardInterrupt: Meaning(
            says=Says.ENDED,
            code="modal.preempted",
            what="the container was taken away",
            fault=FaultDomain.PREEMPTION,
        ),
        # of the way to Modal
        Unanswered: _SILENCE,
        modal.ConnectionError: _SILENCE,
        modal.ServiceError: _SILENCE,
        modal.TimeoutError: _SILENCE,
        StreamTerminatedError: _SILENCE,
        GRPCError: _SILENCE,
        modal.ClientClosed: Meaning(says=Says.SILENCE, code="modal.closed", what="the Modal client was closed"),
        LinkClosed: Meaning(says=Says.SILENCE, code="backend.closed", what="the backend was closed"),
        # of what was asked
        modal.InternalError: _TROUBLE,
        modal.DataLossError: _TROUBLE,
        modal.ConflictError: Meaning(
            says=Says.NOTHING, code="modal.conflict", what="Modal cannot do this now", outcome_known=True
        ),
        modal.ResourceExhaustedError: Meaning(
            says=Says.NOTHING, code="modal.busy", what="a limit or quota of Modal is reached", outcome_known=True
        ),
        modal.AuthError: _LOGGED_OUT,
        modal.PermissionDeniedError: Meaning(
            says=Says.NOTHING,
            code="modal.denied",
            what=f"these Modal credentials may not do this; {LOG_IN} of the right workspace",
            retryable=False,
            outcome_known=True,
        ),
        modal.InvalidError: _REFUSED,
        modal.AlreadyExistsError: _REFUSED,
        modal.RequestSizeError: _REFUSED,
        modal.SerializationError: _REFUSED,
        modal.UnimplementedError: _OLD,
        modal.VersionError: _OLD,
    }


def meaning_of(error: BaseException) -> Meaning:
    """Return the row of the nearest class; what a call raised by itself is `_RAISED`, whatever its class.

    A class alone does not say whether a call still runs (`TimeoutError`) or a function raised it: the frame in which
    the client unpacks a result does. Without a known class and that frame, nothing is said of the call.
    """
    table = meanings()
    found = next((table[kind] for kind in type(error).__mro__ if kind in table), None)
    if _came_as_result(error) and (found is None or found.says is not Says.ENDED):
        return _RAISED
    return found or _UNKNOWN


def _came_as_result(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_name == "_process_result" and frame.tb_frame.f_globals.get("__name__", "").startswith("modal."):
            return True
        frame = frame.tb_next
    return False


def state_of(error: BaseException, *, secret: str | None = None) -> CallState | None:
    """Return what an exception says of the call that was polled; None when it says nothing of it."""
    meaning = meaning_of(error)
    match meaning.says:
        case Says.RUNNING:
            return CallState(status=CallStatus.RUNNING)
        case Says.MISSING:
            return CallState(status=CallStatus.MISSING)
        case Says.ENDED:
            message = _sentence(meaning, error, secret)
            return CallState(
                status=CallStatus.ENDED, error=JobError(code=meaning.code, message=message, fault=meaning.fault)
            )
    return None


def refusal(
    error: BaseException, what: str, *, sent: bool, unknown: str | None = None, secret: str | None = None
) -> BackendError:
    """Return the error of something that was asked of Modal.

    Args:
        error: What the client raised.
        what: What is the case now, as ``"job 17 was not started"``.
        sent: Whether it can have been done all the same; before it was sent, it cannot.
        unknown: What is the case where the outcome is not known, as ``"job 17 may have been started"``.
        secret: Is not to be seen in the message.
    """
    meaning = meaning_of(error)
    known = meaning.outcome_known or not sent
    return BackendError(
        f"{what if known or unknown is None else unknown}: {_sentence(meaning, error, secret)}",
        retryable=meaning.retryable,
        outcome_known=known,
        code=meaning.code,
    )


_URL_SECRETS: Final = re.compile(r"(\bhttps?://[^\s?#'\"<>]*)[?#][^\s'\"<>]*")
_USER: Final = re.compile(r"(\bhttps?://)[^\s/@'\"<>]*@")
_MOST: Final = 500


def _sentence(meaning: Meaning, error: BaseException, secret: str | None) -> str:
    said = readable(error, secret=secret)
    return f"{meaning.what} ({said})" if said else meaning.what


def readable(error: BaseException, *, secret: str | None = None) -> str:
    """Return an exception's class and words on one line, without the queries of URLs and without ``secret``.

    Of a remote traceback the last line is kept: it names the exception.
    """
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    except Exception:  # noqa: BLE001 - whatever its author did
        lines = []
    said = " ".join(lines) if len(lines) <= 3 else f"{lines[0]} ... {lines[-1]}"
    said = _USER.sub(r"\1", _URL_SECRETS.sub(r"\1?...", said))
    if secret:
        said = said.replace(secret, "...")
    said = said.encode(errors="replace").decode()
    if len(said) > _MOST:
        said = f"{said[: _MOST - 3]}..."
    name = type(error).__name__
    if isinstance(error, Unanswered | LinkClosed | UnknownCall):
        return said
    return f"{name}: {said}" if said else name

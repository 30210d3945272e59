"""What does an exception of the Modal client mean?

One table says it, `meanings`; the nearest class in an exception's ancestry counts. It is used in two ways: `state_of`
tells the state of a call that was polled, `refusal` the error of any other request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache, partial
from typing import Final

from attrs import field, frozen

from renderdispatch.errors import BackendError
from renderdispatch.messages import FaultDomain, JobError
from renderdispatch.plumbing.failures import nearest, text_of
from renderdispatch.protocols import CallState, CallStatus

LOG_IN: Final = "run `modal token new`, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"
DEPLOY: Final = "run `renderdispatch modal deploy`"


def how_to_deploy(app: str, *, environment: str | None = None, version: int | None = None) -> str:
    """Return the next step for an app that is not deployed, or not in this version."""
    if version is not None:
        return "name a deployed version, or none for the newest"
    options = "" if app == "renderdispatch" else f" --app {app}"
    options += "" if environment is None else f" --environment {environment}"
    return f"run `renderdispatch modal deploy{options}`"


class Unanswered(Exception):
    """Modal did not respond within the time that it was given."""


class UnknownCall(Exception):
    """The given id is not an id of a Modal call."""


class LinkClosed(Exception):
    """The backend was closed, here, while it waited for Modal."""


class Evidence(StrEnum):
    """What an exception proves about a call that was polled."""

    RUNNING = "running"
    MISSING = "missing"
    ENDED = "ended"
    NONE = "none"
    """Modal responded, but not about the call."""
    SILENCE = "silence"
    """Modal did not respond: the connection may be broken."""


@frozen
class Meaning:
    """A row of the table.

    Args:
        evidence: What the exception proves about a call that was polled.
        code: Of the error that it becomes.
        text: The error in words; what Modal said is added.
        fault: If it ended the call, whose fault that was.
        retryable: Of a request: whether the same request may succeed later.
        outcome_known: Of a start: whether it surely did not happen. Before anything was sent, that is always known.
    """

    evidence: Evidence
    code: str
    text: str
    fault: FaultDomain = field(default=FaultDomain.INFRASTRUCTURE, kw_only=True)
    retryable: bool = field(default=True, kw_only=True)
    outcome_known: bool = field(default=False, kw_only=True)


_ended: Final = partial(Meaning, Evidence.ENDED)
_missing: Final = partial(Meaning, Evidence.MISSING)
_silence: Final = partial(Meaning, Evidence.SILENCE)
_later: Final = partial(Meaning, Evidence.NONE, outcome_known=True)
_never: Final = partial(Meaning, Evidence.NONE, retryable=False, outcome_known=True)

_RAISED: Final = _ended("modal.raised", "the function raised instead of answering")
_UNKNOWN: Final = _silence("modal.unexpected", "the Modal client failed")


@cache
def meanings() -> Mapping[type[BaseException], Meaning]:
    """Return the table. Imports modal."""
    from grpclib.exceptions import GRPCError, StreamTerminatedError
    from modal import exception as modal

    unreadable = _ended("modal.unreadable", "the function's result or exception cannot be read here")
    unreachable = _silence("modal.unreachable", "Modal did not answer, or cannot be reached from here")
    trouble = Meaning(Evidence.NONE, "modal.trouble", "Modal is in trouble")
    refused = _never("modal.refused", "Modal refused")
    old = _never("modal.version", "Modal does not support this version of its client; install another one of `modal`")
    denied = f"these Modal credentials may not do this; {LOG_IN} of the right workspace"
    ended = "Modal ended the call: it was cancelled, or its container could not start"
    timeout = "the function exceeded the time that it was given"
    taken = "the container was taken away"
    return {
        # about the call
        TimeoutError: Meaning(Evidence.RUNNING, "modal.running", "the call has not ended"),
        modal.OutputExpiredError: _missing("modal.expired", "the result is no longer kept"),
        modal.NotFoundError: _missing(
            "modal.not-deployed", "Modal finds nothing of this name", retryable=False, outcome_known=True
        ),
        UnknownCall: _missing("modal.unknown-call", "not an id of a Modal call", retryable=False),
        modal.FunctionTimeoutError: _ended("modal.timeout", timeout, fault=FaultDomain.DEADLINE),
        modal.InternalFailure: _ended("modal.worker-lost", "Modal lost the container"),
        modal.RemoteError: _ended("modal.ended", ended),
        modal.ExecutionError: unreadable,
        modal.DeserializationError: unreadable,
        modal.InputCancellation: _ended("modal.cancelled", "Modal cancelled the call"),
        KeyboardInterrupt: _ended("modal.preempted", taken, fault=FaultDomain.PREEMPTION),
        # about the connection
        Unanswered: unreachable,
        modal.ConnectionError: unreachable,
        modal.ServiceError: unreachable,
        modal.TimeoutError: unreachable,
        StreamTerminatedError: unreachable,
        GRPCError: unreachable,
        modal.ClientClosed: _silence("modal.closed", "the Modal client was closed"),
        LinkClosed: _silence("backend.closed", "the backend was closed"),
        # about the request
        modal.InternalError: trouble,
        modal.DataLossError: trouble,
        modal.ConflictError: _later("modal.conflict", "Modal cannot do this now"),
        modal.ResourceExhaustedError: _later("modal.busy", "a limit or quota of Modal is reached"),
        modal.AuthError: _never("modal.credentials", f"Modal knows no valid credentials; {LOG_IN}"),
        modal.PermissionDeniedError: _never("modal.denied", denied),
        modal.InvalidError: refused,
        modal.AlreadyExistsError: refused,
        modal.RequestSizeError: refused,
        modal.SerializationError: refused,
        modal.UnimplementedError: old,
        modal.VersionError: old,
    }


def meaning_of(error: BaseException) -> Meaning:
    """Return the row of the nearest class. What a call raised by itself is `_RAISED`, whatever its class.

    A class alone does not tell whether a call still runs (`TimeoutError`) or a function raised it. The frame in which
    the client unpacks a result does. Without a known class and that frame, the error proves nothing about the call.
    """
    found = nearest(error, meanings())
    if _came_as_result(error) and (found is None or found.evidence is not Evidence.ENDED):
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
    """Return what an exception proves about the call that was polled; None if it proves nothing."""
    meaning = meaning_of(error)
    if meaning.evidence in {Evidence.NONE, Evidence.SILENCE}:
        return None
    ended = meaning.evidence is Evidence.ENDED
    message = _sentence(meaning, error, secret)
    failure = JobError(code=meaning.code, message=message, fault=meaning.fault) if ended else None
    return CallState(status=CallStatus(meaning.evidence.value), error=failure)


def refusal(
    error: BaseException, what: str, *, sent: bool, unknown: str | None = None, secret: str | None = None
) -> BackendError:
    """Return the error of a request.

    Args:
        error: What the client raised.
        what: The state now, such as ``"job 17 was not started"``.
        sent: Whether the request was sent. If not, it surely had no effect.
        unknown: The state if the outcome is not known, such as ``"job 17 may have been started"``.
        secret: Is removed from the message.
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
    return f"{meaning.text} ({said})" if said else meaning.text


def readable(error: BaseException, *, secret: str | None = None) -> str:
    """Return an exception's class and words on one line, without the queries of URLs and without ``secret``.

    The last line of a remote traceback is kept, because it names the exception.
    """
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    said = " ".join(lines) if len(lines) <= 3 else f"{lines[0]} ... {lines[-1]}"
    said = _USER.sub(r"\1", _URL_SECRETS.sub(r"\1?...", said))
    if secret:
        said = said.replace(secret, "...")
    if len(said) > _MOST:
        said = f"{said[: _MOST - 3]}..."
    if isinstance(error, Unanswered | LinkClosed | UnknownCall):
        return said
    return ": ".join(filter(None, [type(error).__name__, said]))

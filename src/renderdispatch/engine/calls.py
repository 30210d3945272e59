"""What does a backend do with a call, whatever its author made of the protocol?

Backends of third parties raise and return what they like. Every call of a backend in this package goes through here and
raises nothing but `BackendError`, so that one backend's fault stays with its own jobs. What a backend raises without
stating that the outcome is known leaves the outcome unknown (rule J2). So does a result of another type.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any, Final

from renderdispatch.errors import BackendError, ConfigurationError, InvalidRequestError
from renderdispatch.messages import Completed, Failed, HelperOrder, JobError, RenderOrder
from renderdispatch.plumbing.failures import Translation, translated
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    OnEvent,
    RenderBackend,
    SupportsFind,
    SupportsHelpers,
)

_log: Final = logging.getLogger("renderdispatch.engine.calls")

_MAX_ID: Final = 1000
_STATE: Final[tuple[tuple[str, Any], ...]] = (
    ("status", CallStatus),
    ("outcome", Completed | Failed | None),
    ("error", JobError | None),
)
"""What the fields of a `CallState` may be."""


def start(backend: RenderBackend, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
    """Start an order, as `RenderBackend.start` says.

    Raises:
        BackendError: It was not started; or it is not known whether it was.
        InvalidRequestError, ConfigurationError: It can never be started.
    """
    with translated({**_FOREIGN, InvalidRequestError: _same, ConfigurationError: _same}):
        return _checked_call(backend.start(order, on_event=on_event), "start")


def poll(backend: RenderBackend, call: BackendCall) -> CallState:
    """Return the state of a call, as `RenderBackend.poll` says. Raises `BackendError`."""
    with translated(_FOREIGN):
        state: object = backend.poll(call)
        if isinstance(state, CallState) and all(isinstance(getattr(state, name), kind) for name, kind in _STATE):
            return state
        raise _nonsense("poll", state)


def cancel(backend: RenderBackend, call: BackendCall) -> None:
    """Tell a call to stop, as `RenderBackend.cancel` says. Raises `BackendError`."""
    with translated(_FOREIGN):
        backend.cancel(call)


def start_helper(backend: SupportsHelpers, order: HelperOrder) -> BackendCall:
    """Start a helper, as `SupportsHelpers.start_helper` says. Raises as `start` does."""
    with translated({**_FOREIGN, InvalidRequestError: _same, ConfigurationError: _same}):
        return _checked_call(backend.start_helper(order), "start_helper")


def find(
    backend: RenderBackend | None, job_id: str, *, token: str, call_id: str | None
) -> tuple[BackendCall | None, bool]:
    """Return the call of a run or a helper, None while it is unknown; and whether there surely is none.

    Args:
        backend: What may compute it.
        job_id: Its job's.
        token: The attempt's, or the helper's.
        call_id: What its record says; None asks the backend, if it can say.

    Raises:
        BackendError: The backend was asked, and is away.
    """
    if call_id is not None:
        return BackendCall(call_id), False
    if not isinstance(backend, SupportsFind):
        return None, False
    with translated(_FOREIGN):
        call = backend.find(job_id=job_id, token=token)
        return (None, True) if call is None else (_checked_call(call, "find"), False)


def slots(backend: RenderBackend) -> int | None:
    """Return how many orders a backend takes at once; 0 if it does not say."""
    try:
        with translated(_FOREIGN):
            number: Any = backend.slots
            if number is None or (isinstance(number, int) and not isinstance(number, bool)):
                return number
            raise _nonsense("slots", number)
    except BackendError as error:
        _log.warning("no order is given to a backend: %s", error)
        return 0


def _checked_call(call: object, asked: str) -> BackendCall:
    call_id: Any = getattr(call, "id", None)
    sound = isinstance(call_id, str) and 0 < len(call_id) <= _MAX_ID and call_id.isprintable()
    if sound and isinstance(call, BackendCall):
        return call
    raise _nonsense(asked, call)


def _nonsense(asked: str, result: object) -> BackendError:
    message = f"the backend's {asked} returned what the protocol does not allow ({type(result).__name__})"
    return BackendError(message, retryable=True, outcome_known=False, code="backend.unexpected")


def _same(error: BaseException) -> BaseException:
    return error


def _ours(error: BackendError) -> BackendError:
    """Return the error if it states all that one has to state; a subclass may have skipped its base's constructor."""
    stated = all(isinstance(getattr(error, name, None), bool) for name in ("retryable", "outcome_known"))
    return error if stated else _foreign(error)


def _foreign(error: BaseException) -> BackendError:
    """Return the error for one that says nothing. Its text is left out, because it may quote a signed URL."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    message = f"the backend raised {type(error).__name__}{where}; a backend raises BackendError"
    return BackendError(message, retryable=True, outcome_known=False, code="backend.unexpected")


_FOREIGN: Final[Translation] = {
    BackendError: _ours,
    BaseException: _foreign,  # `asyncio.CancelledError` is no `Exception`
    KeyboardInterrupt: _same,
    SystemExit: _same,
}

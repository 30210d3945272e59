"""Which HTTP answer does each error get?

One table for every framework. What is not in it (a wrong configuration, a bug) is no answer to a client: the framework
logs it and answers 500, as it does with any other exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from renderdispatch.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotCompleteError,
    JobNotFoundError,
    JobUnreadableError,
    ObjectNotFoundError,
    RenderDispatchError,
    RevisionConflictError,
    StorageFullError,
    StorageUnavailableError,
    StoreUnavailableError,
)

ANSWERED: Final[Mapping[type[RenderDispatchError], int]] = {
    JobNotFoundError: 404,
    ObjectNotFoundError: 404,
    JobNotCompleteError: 409,
    InvalidRequestError: 422,
    IdempotencyConflictError: 422,  # draft-ietf-httpapi-idempotency-key-header-07, section 2.7
    RevisionConflictError: 503,
    StoreUnavailableError: 503,
    JobUnreadableError: 503,  # another process of a rolling deployment can read it
    StorageUnavailableError: 503,
    StorageFullError: 507,
}
"""The status of each error, and of those below it."""

RETRY_AFTER_S: Final = 5
"""When a client that heard 503 may come back."""

_OF_THE_JOB: Final = "job."


@frozen(kw_only=True)
class ErrorAnswer:
    """An HTTP answer: ``body`` is to be sent as JSON."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(factory=dict)


def refusal(status: int, code: str, message: str) -> ErrorAnswer:
    """Return the answer with this status, in the shape that all refusals have."""
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    return ErrorAnswer(status=status, body={"error": {"code": code, "message": message}}, headers=headers)


def answer(error: RenderDispatchError) -> ErrorAnswer:
    """Return what a client is told.

    A request that only the job's state forbids (delete while it runs, retry of what did not fail) is 409, not 422.

    Raises:
        RenderDispatchError: This very error, where it is none of `ANSWERED`.
    """
    found = next((ANSWERED[kind] for kind in type(error).__mro__ if kind in ANSWERED), None)
    if found is None:
        raise error
    if isinstance(error, InvalidRequestError) and error.code.startswith(_OF_THE_JOB):
        found = 409
    return refusal(found, error.code, str(error))

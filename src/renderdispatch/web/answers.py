"""Which HTTP response does each error get?

This table serves every framework. Errors that are not in it (a wrong configuration, a bug) do not concern the client:
the framework logs them and answers 500, as it does for any other exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from renderdispatch import errors
from renderdispatch.web.clients import BusyError
from renderdispatch.web.http import IncompleteBodyError, Response, SlowBodyError

ANSWERED: Final[Mapping[type[errors.RenderDispatchError], int]] = {
    errors.JobNotFoundError: 404,
    errors.ObjectNotFoundError: 404,
    errors.JobNotCompleteError: 409,
    errors.JobExpiredError: 410,
    errors.InvalidRequestError: 422,
    errors.IdempotencyConflictError: 422,  # draft-ietf-httpapi-idempotency-key-header-07, section 2.7
    errors.QueueLimitError: 429,
    errors.RevisionConflictError: 503,
    errors.StoreUnavailableError: 503,
    errors.JobUnreadableError: 503,  # another process of a rolling deployment can read it
    errors.StorageUnavailableError: 503,
    errors.StorageFullError: 507,
}
"""The status of each error and of its subclasses."""

RETRY_AFTER_S: Final = 5
"""Seconds after which a client that received a 503 may try again."""


def refusal(status: int, code: str, message: str, **headers: str) -> Response:
    """Return a response with this status, in the shape that all refusals have."""
    retry = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    return Response(status, {**retry, **headers}, {"error": {"code": code, "message": message}})


def unread(error: IncompleteBodyError | BusyError) -> Response:
    """Return the response to a request whose body was not read to its end."""
    if isinstance(error, BusyError):
        return refusal(503, "request.busy", "too many clients send at once; try again")
    if isinstance(error, SlowBodyError):
        return refusal(408, "request.too-slow", "the body comes too slowly")
    return refusal(400, "request.incomplete", "the body ended too soon")


def answer(error: errors.RenderDispatchError) -> Response:
    """Return the response to a request that raised ``error``; its body is to be sent as JSON.

    The status is 409, not 422, if only the job's state forbids the request: deleting a job that runs, or retrying one
    that did not fail. A 429 says how many seconds later a submit may succeed (``Retry-After``, RFC 9110, 10.2.3).

    Raises:
        RenderDispatchError: ``error`` itself, if it is not one of `ANSWERED`.
    """
    status = next((ANSWERED[kind] for kind in type(error).__mro__ if kind in ANSWERED), None)
    if status is None:
        raise error
    if isinstance(error, errors.QueueLimitError):
        wait_s = max(1, math.ceil(error.retry_after.total_seconds()))
        return refusal(status, error.code, str(error), **{"retry-after": str(wait_s)})
    if isinstance(error, errors.InvalidRequestError) and error.code.startswith("job."):
        status = 409
    return refusal(status, error.code, str(error))

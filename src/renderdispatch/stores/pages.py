"""Which jobs does a query mean, in which order, and where does the next page begin?

Every store gives the same result. A cursor holds the place of its page's last job and a digest of its query, so a
cursor of another query is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Final

from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL
from renderdispatch.protocols import JobQuery

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MAX_LIMIT: Final = 1000
_ORDERS: Final = {
    "newest": ("created_at", "id"),
    "ready": ("priority", "ready_at", "id"),
    "due": ("due_at", "id"),
    "leased": ("lease_until", "id"),
    "ended": ("created_at", "id"),
}
"""The fields of a job that each order sorts by."""

Place = tuple[int | str, ...]
"""A job's place in an order: the values that the order sorts by, then the id. Times are integer microseconds."""


def micros(time: datetime) -> int:
    """Return the microseconds since 1970, exactly: no float rounds them."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the time, aware and in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def place(query: JobQuery, job: Job) -> Place:
    """Return the place of ``job`` in the order of ``query``."""
    values = [getattr(job, name) for name in _ORDERS[query.order]]
    return tuple(micros(value) if isinstance(value, datetime) else value for value in values)


def rank(query: JobQuery, where: Place) -> Place:
    """Return ``where`` as a key that sorts ascending, with the newest or the highest priority first."""
    first, *rest = where
    return (-first, *rest) if isinstance(first, int) and query.order in {"newest", "ready"} else where


def matches(query: JobQuery, job: Job) -> bool:
    """Return whether ``job`` meets every condition of ``query``, apart from its cursor."""
    if job.protocol > PROTOCOL:  # a newer version wrote it
        return False
    wanted = ((query.tenant, job.tenant), (query.batch, job.batch))
    sets = ((query.statuses, job.status), (query.backends, job.backend))
    if any(want is not None and want != found for want, found in wanted):
        return False
    if any(wants is not None and found not in wants for wants, found in sets):
        return False
    match query.order:
        case "newest":
            return True
        case "ready":
            return job.machine in {None, query.machine} and _is_by(job.ready_at, query.ready_by)
        case "due":
            return _is_by(job.due_at, query.due_by)
        case "leased":
            return _is_by(job.lease_until, query.due_by)
        case "ended":
            return job.expired_at is None and all(_is_by(at, query.due_by) for at in (job.created_at, job.ended_at))


def _is_by(time: datetime | None, latest: datetime | None) -> bool:
    return time is not None and (latest is None or time <= latest)


def check_limit(query: JobQuery) -> None:
    """Raise `InvalidRequestError` for a limit outside 1 to 1000."""
    if not 1 <= query.limit <= _MAX_LIMIT:
        raise InvalidRequestError(f"a page has 1 to {_MAX_LIMIT} items, not {query.limit}")


def write_cursor(query: JobQuery, last: Place) -> str:
    """Return the cursor of the page that begins after the place ``last``."""
    text = json.dumps([_digest(query), *last], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(query: JobQuery) -> Place | None:
    """Return the place after which the page begins; None without a cursor.

    Raises:
        InvalidRequestError: The cursor belongs to another query, or is not a cursor.
    """
    if query.cursor is None:
        return None
    refusal = InvalidRequestError("the cursor does not belong to this query; begin again without one")
    try:
        padded = query.cursor + "=" * (-len(query.cursor) % 4)
        digest, *where = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise refusal from None
    kinds = [str if kind == "id" else int for kind in _ORDERS[query.order]]
    if digest != _digest(query) or [type(part) for part in where] != kinds or not all(map(_fits, where)):
        raise refusal
    return tuple(where)


def _fits(part: int | str) -> bool:
    """Return whether a database can store it: an integer of 64 bits, or text without half a surrogate pair."""
    return -(1 << 63) <= part < 1 << 63 if isinstance(part, int) else part.encode(errors="replace").decode() == part


def _digest(query: JobQuery) -> str:
    sets, times = (query.statuses, query.backends), (query.ready_by, query.due_by)
    text = json.dumps([query.order, query.tenant, query.batch, *sets, query.machine, *times], default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: datetime | Collection[str]) -> int | list[str]:
    return micros(value) if isinstance(value, datetime) else sorted(value)

"""Which statements does every job need, and every page?"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from renderdispatch.protocols import JobQuery
from renderdispatch.stores.pages import Place, micros
from renderdispatch.stores.sql.tables import JOBS, LIVE, OURS, VALUES

_c: Final = JOBS.c

RECORD: Final = (_c.id, _c.revision, _c.document, _c.claim)
_NO_NAME: Final = sa.literal_column("''", sa.Text)

ORDERS: Final = {
    "newest": (_c.created_at.desc(), _c.id.asc()),
    "ready": (_c.priority.desc(), _c.ready_at.asc(), _c.id.asc()),
    "due": (_c.look_at.asc(), _c.id.asc()),
    "leased": (_c.lease_until.asc(), _c.id.asc()),
    "ended": (_c.created_at.asc(), _c.id.asc()),
}

GET: Final = sa.select(*RECORD).where(_c.id == sa.bindparam("job_id"), LIVE)
REPLACE: Final = (
    sa.update(JOBS)
    .where(_c.id == sa.bindparam("job_id"), _c.revision == sa.bindparam("expected"), LIVE, OURS)
    .values(revision=_c.revision + 1, claim=None, looks=0, **{name: sa.bindparam(name) for name in VALUES})
)
DELETE: Final = (
    sa.update(JOBS)
    .where(_c.id == sa.bindparam("job_id"), _c.revision == sa.bindparam("expected"), LIVE, OURS)
    .values(revision=_c.revision + 1, deleted_at=sa.bindparam("now"), claim=None, **dict.fromkeys(VALUES))
)
PURGE: Final = sa.delete(JOBS).where(_c.deleted_at.is_not(None), _c.deleted_at < sa.bindparam("before"))


def conditions(query: JobQuery) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a query, apart from its cursor."""
    found: list[sa.ColumnElement[bool]] = []
    if query.tenant is not None:
        found.append(_c.tenant == query.tenant)
    if query.statuses is not None:
        found.append(_c.status.in_([status.value for status in query.statuses]))
    if query.backends is not None:
        found.append(_c.backend.in_(list(query.backends)))
    if query.batch is not None:
        found.append(_c.batch == query.batch)
    match query.order:
        case "newest":
            found.append(LIVE)
        case "ready":
            found += [OURS, _c.ready_at.is_not(None), sa.or_(_c.machine.is_(None), _c.machine == query.machine)]
            if query.ready_by is not None:
                found.append(_c.ready_at <= micros(query.ready_by))
        case "due" | "leased" | "ended":
            first = ORDERS[query.order][0].element
            times = (first, _c.ended_at) if query.order == "ended" else (first,)
            found += [OURS, *(time.is_not(None) for time in times)]
            if query.order == "leased":
                found.append(_c.held_on > _NO_NAME)  # a leased attempt holds a unit, and the index of those is short
            if query.due_by is not None:
                found += [time <= micros(query.due_by) for time in times]
    return found


def beyond(order: str, where: Place) -> sa.ColumnElement[bool]:
    """Return the condition for rows after ``where``: the lexicographic order, column by column.

    Each step begins with a bound that an index can start from: no database starts a scan from an OR.
    """
    condition: sa.ColumnElement[bool] = sa.false()
    for term, value in reversed(list(zip(ORDERS[order], where, strict=True))):
        column: Any = term.element
        falling = term.modifier is sa.sql.operators.desc_op
        if isinstance(condition, sa.sql.elements.False_):
            condition = column < value if falling else column > value
        elif falling:
            condition = sa.and_(column <= value, sa.or_(column < value, condition))
        else:
            condition = sa.and_(column >= value, sa.or_(column > value, condition))
    return condition

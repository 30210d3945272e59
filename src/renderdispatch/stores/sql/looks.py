"""How do many processes look at each due job once?

The next look is a column, by an index. To put it off writes no record and spends no revision.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from attrs import frozen

from renderdispatch.jobs import Job
from renderdispatch.protocols import LOOK_PAUSES
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.database import Database
from renderdispatch.stores.sql.listing import Readable
from renderdispatch.stores.sql.statements import RECORD
from renderdispatch.stores.sql.tables import JOBS, OURS

_c: Final = JOBS.c
_NOW: Final = sa.bindparam("now", type_=sa.BigInteger)
_PAUSES: Final = [sa.literal_column(str(p // timedelta(microseconds=1)), sa.BigInteger) for p in LOOK_PAUSES]


@frozen
class Looks:
    """Claims jobs that are due for a look."""

    _database: Database
    _now: Callable[[], datetime]
    _readable: Readable

    def claim(self, *, limit: int, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        if limit <= 0:
            return []
        values: dict[str, Any] = {"now": micros(self._now())}
        if job_id is not None:
            values["job_id"] = job_id
        return list(self._readable(self._claimed(values, min(limit, 1000), one=job_id is not None)))

    def _claimed(self, values: dict[str, Any], limit: int, *, one: bool) -> list[Any]:
        due = due_statement(limit, one=one)
        if self._database.dialect == "postgresql":
            rows = self._database.step(put_off_at_once(limit, one=one), values)[0]
            return sorted(rows, key=lambda row: (row[-1], row[0]))
        # SQLite returns no value from before an update. A look at nothing shall not be a write.
        if not self._database.step(due, values)[0]:
            return []
        with self._database.transaction() as transaction:
            order = {row[0]: number for number, row in enumerate(transaction.step(due, values)[0])}
            rows = transaction.step(put_off(limit, one=one), values)[0]
        return sorted(rows, key=lambda row: order[row[0]])


@cache
def due_statement(limit: int, *, one: bool) -> Any:
    """Return what finds the jobs that are due."""
    due = sa.select(_c.id, _c.look_at).where(OURS, _c.look_at.is_not(None), _c.look_at <= _NOW)
    if one:
        return due.where(_c.id == sa.bindparam("job_id"))
    return due.order_by(_c.look_at, _c.id).limit(sa.literal_column(str(limit), sa.Integer))


def _next_look() -> dict[str, Any]:
    first = [(_c.looks == sa.literal_column(str(number)), pause) for number, pause in enumerate(_PAUSES[:-1])]
    pause = sa.case(*first, else_=_PAUSES[-1])
    soon = sa.and_(_c.deadline_at > _NOW, _c.deadline_at < _NOW + pause)
    return {"looks": _c.looks + 1, "look_at": sa.case((soon, _c.deadline_at), else_=_NOW + pause)}


@cache
def put_off(limit: int, *, one: bool) -> Any:
    """Return what puts the next look of the due jobs off, on SQLite."""
    due = due_statement(limit, one=one).subquery()
    return sa.update(JOBS).where(_c.id.in_(sa.select(due.c.id))).values(_next_look()).returning(*RECORD)


@cache
def put_off_at_once(limit: int, *, one: bool) -> Any:
    """Return the same for PostgreSQL, where each row comes with when it was due."""
    due = due_statement(limit, one=one).with_for_update(skip_locked=True).cte("due")
    return sa.update(JOBS).where(_c.id == due.c.id).values(_next_look()).returning(*RECORD, due.c.look_at.label("due"))

"""How do many processes look at each due job once?

The next look is a column, by an index. To put it off writes no record and spends no revision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, field, frozen

from renderdispatch.jobs import Job
from renderdispatch.protocols import CLOCK_STEP, LOOK_LEFT, LOOK_PAUSES
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.database import Database
from renderdispatch.stores.sql.listing import Readable
from renderdispatch.stores.sql.statements import RECORD
from renderdispatch.stores.sql.tables import JOBS, OURS

_c: Final = JOBS.c
_NOW: Final = sa.bindparam("now", type_=sa.BigInteger)
_MICROSECOND: Final = timedelta(microseconds=1)


def _span(time: timedelta) -> sa.ColumnElement[int]:
    return sa.literal_column(str(time // _MICROSECOND), sa.BigInteger)


_PAUSES: Final = [_span(pause) for pause in LOOK_PAUSES]
_SET_BACK: Final = (
    sa.update(JOBS)
    .where(
        OURS,
        _c.look_at > _NOW + _span(LOOK_PAUSES[-1] + CLOCK_STEP),
        sa.or_(_c.looks > sa.literal_column("0"), _c.held_on.is_not(None)),
        sa.or_(_c.deadline_at.is_(None), _c.look_at != _c.deadline_at),
    )
    .values(look_at=_NOW)
)
"""What makes jobs due that no right clock put off so far. They were put off, or written, before the clock was set."""


@frozen
class Due:
    """Which jobs to find: how many at most; how many things the process has, None finds all; whether one by its id."""

    limit: int
    able: int | None
    one: bool


@define
class Looks:
    """Claims jobs that are due for a look."""

    _database: Database
    _now: Callable[[], datetime]
    _readable: Readable
    _last_us: int = field(default=0, init=False)
    """The time of the last call."""

    def claim(self, *, limit: int, able: Collection[str] | None = None, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        if limit <= 0:
            return []
        values: dict[str, Any] = {"now": micros(self._now())}
        self._notice_step(values["now"])
        if job_id is not None:
            values["job_id"] = job_id
        if able is not None:
            values |= {f"able_{number}": name for number, name in enumerate(sorted(able))}
        due = Due(min(limit, 1000), None if able is None else len(able), one=job_id is not None)
        return list(self._readable(self._claimed(values, due)))

    def _notice_step(self, now_us: int) -> None:
        """Let no job wait until the clock gets to where it was before it was set back."""
        if now_us < self._last_us - CLOCK_STEP // _MICROSECOND:
            self._database.execute(_SET_BACK, {"now": now_us})
        self._last_us = now_us

    def _claimed(self, values: dict[str, Any], due: Due) -> list[Any]:
        if self._database.dialect == "postgresql":
            rows = self._database.step(put_off_at_once(due), values)[0]
            return sorted(rows, key=lambda row: (row[-1], row[0]))
        # SQLite returns no value from before an update. A look at nothing shall not be a write.
        if not self._database.step(due_statement(due), values)[0]:
            return []
        with self._database.transaction() as transaction:
            order = {row[0]: number for number, row in enumerate(transaction.step(due_statement(due), values)[0])}
            rows = transaction.step(put_off(due), values)[0]
        return sorted(rows, key=lambda row: order[row[0]])


@cache
def due_statement(due: Due) -> Any:
    """Return what finds the jobs that are due."""
    found = sa.select(_c.id, _c.look_at).where(OURS, _c.look_at.is_not(None), _c.look_at <= _NOW)
    if due.able is not None:
        able = [sa.bindparam(f"able_{number}", type_=sa.Text) for number in range(due.able)]
        needs = (_c.look_needs.is_(None), *(_c.look_needs == name for name in able))
        found = found.where(sa.or_(*needs, _c.deadline_at <= _NOW, _c.look_at <= _NOW - _span(LOOK_LEFT)))
    if due.one:
        return found.where(_c.id == sa.bindparam("job_id"))
    return found.order_by(_c.look_at, _c.id).limit(sa.literal_column(str(due.limit), sa.Integer))


def _next_look() -> dict[str, Any]:
    first = [(_c.looks == sa.literal_column(str(number)), pause) for number, pause in enumerate(_PAUSES[:-1])]
    pause = sa.case(*first, else_=_PAUSES[-1])
    soon = sa.and_(_c.deadline_at > _NOW, _c.deadline_at < _NOW + pause)
    return {"looks": _c.looks + 1, "look_at": sa.case((soon, _c.deadline_at), else_=_NOW + pause)}


@cache
def put_off(due: Due) -> Any:
    """Return what puts the next look of the due jobs off, on SQLite."""
    found = due_statement(due).subquery()
    return sa.update(JOBS).where(_c.id.in_(sa.select(found.c.id))).values(_next_look()).returning(*RECORD)


@cache
def put_off_at_once(due: Due) -> Any:
    """Return the same for PostgreSQL, where each row comes with when it was due."""
    found = due_statement(due).with_for_update(skip_locked=True).cte("due")
    returned = (*RECORD, found.c.look_at.label("due"))
    return sa.update(JOBS).where(_c.id == found.c.id).values(_next_look()).returning(*returned)

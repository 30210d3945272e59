"""How is a page of jobs read, at the same cost however many jobs there are?

A page that may hold several statuses is merged from one ordered scan for each: every index that lists jobs leads with
the status, so that a scan begins at the cursor and reads no job of another status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import sqlalchemy as sa
from attrs import frozen

from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import JobQuery, Page
from renderdispatch.stores.pages import Place, check_limit, read_cursor, write_cursor
from renderdispatch.stores.sql.database import Database
from renderdispatch.stores.sql.statements import ORDERS, RECORD, beyond, conditions
from renderdispatch.stores.sql.tables import JOBS

Readable = Callable[[Iterable[Any]], Iterator[Job]]
"""Reads rows that begin with `RECORD`, and leaves out what this version cannot read."""

_c: Final = JOBS.c
_BY_STATUS: Final = {"newest": tuple(JobStatus), "ended": tuple(status for status in JobStatus if status.terminal)}
"""By order: the statuses that its jobs may have, where an index leads with the status."""


@frozen
class Listing:
    """Reads pages of jobs."""

    _database: Database
    _readable: Readable

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of jobs, as `JobStore.query` says."""
        check_limit(query)
        statement = page_statement(query, read_cursor(query))
        rows, _ = self._database.execute(statement)
        items = tuple(self._readable(rows[: query.limit]))
        last = tuple(rows[query.limit - 1][len(RECORD) :]) if len(rows) > query.limit else None
        return Page(items, None if last is None else write_cursor(query, last))


def page_statement(query: JobQuery, after: Place | None) -> sa.Select[Any]:
    """Return what reads a page and one row more: each row is a `RECORD` and its place."""
    where = conditions(query)
    if after is not None:
        where.append(beyond(query.order, after))
    order = ORDERS[query.order]
    number = sa.literal_column(str(query.limit + 1), sa.Integer)
    statuses = _BY_STATUS.get(query.order, ())
    if query.statuses is not None:
        statuses = tuple(status for status in statuses if status in query.statuses)
    places = [term.element.label(f"place_{index}") for index, term in enumerate(order)]
    if len(statuses) <= 1:
        if statuses and query.statuses is None:
            where.append(_c.status == statuses[0].value)
        return sa.select(*RECORD, *places).where(*where).order_by(*order).limit(number)
    # `conditions` has the set of statuses too, which changes nothing once one of them is named
    scans = [
        sa.select(*(term.element for term in order))
        .where(*where, _c.status == status.value)
        .order_by(*order)
        .limit(number)
        .subquery()
        for status in statuses
    ]
    found = sa.union_all(*(sa.select(scan) for scan in scans)).subquery()
    first = sa.select(found.c.id).order_by(*(_as_in(term, found) for term in order)).limit(number).subquery()
    return sa.select(*RECORD, *places).join_from(JOBS, first, _c.id == first.c.id).order_by(*order)


def _as_in(term: Any, found: sa.Subquery) -> Any:
    column = found.c[term.element.name]
    return column.desc() if term.modifier is sa.sql.operators.desc_op else column.asc()

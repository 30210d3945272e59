"""Which parts do the statements of the queue share?"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from renderdispatch.protocols import CLOCK_STEP
from renderdispatch.stores.sql.database import Transaction
from renderdispatch.stores.sql.statements import ORDERS
from renderdispatch.stores.sql.tables import CLAIMABLE, JOBS, MACHINE, OURS, TENANT, WAITING

_c: Final = JOBS.c
NOW: Final = sa.bindparam("now", type_=sa.BigInteger)
BACKEND: Final = sa.bindparam("backend", type_=sa.Text)
_STEP: Final = sa.literal_column(str(CLOCK_STEP // timedelta(microseconds=1)), sa.BigInteger)

_LATEST: Final = sa.literal_column(str(2**63 - 1), sa.BigInteger)


_MACHINES: Final = """
    WITH RECURSIVE machines (name) AS (
        SELECT min(coalesce(machine, '')) FROM renderdispatch_jobs
        WHERE ready_at IS NOT NULL AND waits_since IS NULL AND backend = :backend
        UNION ALL
        SELECT (
            SELECT min(coalesce(machine, '')) FROM renderdispatch_jobs
            WHERE ready_at IS NOT NULL AND waits_since IS NULL AND backend = :backend
                AND coalesce(machine, '') > machines.name
        ) FROM machines WHERE machines.name IS NOT NULL
    )
"""

_MOST_WAITS: Final = sa.literal_column("1000", sa.Integer)
"""How many waits one claim ends at most; the next one ends others."""


def with_machines(statement: str) -> str:
    """Return a statement that may read ``machines``: those whose ready jobs a backend has, "" for any machine.

    It takes one step in an index for each of them, however many jobs there are.
    """
    return _MACHINES + statement


def _of_waits(value: Any, without: Any) -> sa.ColumnElement[int]:
    """Return what reads one end of an index; EXISTS may read the table, where many jobs waited at the last ANALYZE."""
    return sa.func.coalesce(sa.select(value).where(WAITING).correlate(None).scalar_subquery(), without)


OVER: Final = (
    _of_waits(sa.func.min(_c.ready_at), _LATEST) <= NOW,
    _of_waits(sa.func.max(_c.waits_since), sa.literal_column("0", sa.BigInteger)) > NOW + _STEP,
)
"""Whether waits are over: by the clock, or because it was set back. One index each."""

_ENDED_WAITS: Final = tuple(
    sa.update(JOBS)
    .where(
        _c.id.in_(
            sa.select(_c.id).where(WAITING, over).order_by(time).limit(_MOST_WAITS).with_for_update(skip_locked=True)
        )
    )
    .values(waits_since=None)
    for time, over in ((_c.ready_at, _c.ready_at <= NOW), (_c.waits_since, _c.waits_since > NOW + _STEP))
)


def end_waits(transaction: Transaction, now: int) -> None:
    """Let the jobs be claimed whose waits are over."""
    for statement in _ENDED_WAITS:
        transaction.step(statement, {"now": now})


def first_jobs(tenant: Any, machine: Any, limit: int) -> sa.Select[Any]:
    """Return what reads the first ready jobs of a tenant, for one machine or for any, and locks them."""
    ready = (CLAIMABLE, OURS, _c.backend == BACKEND, machine == MACHINE, tenant == TENANT, _c.deadline_at >= NOW)
    return (
        sa.select(_c.id, _c.priority, _c.ready_at, _c.attempted)
        .where(*ready)
        .order_by(*ORDERS["ready"])
        .limit(sa.literal_column(str(limit), sa.Integer))
        .with_for_update(skip_locked=True)
    )


def listed(dialect: str, name: str) -> sa.Select[Any]:
    """Return the texts of a parameter that is a JSON list, as rows of a column ``value``."""
    texts = sa.bindparam(name, type_=sa.Text)
    if dialect == "postgresql":
        return sa.select(sa.func.json_array_elements_text(sa.cast(texts, sa.JSON)).table_valued("value").c.value)
    return sa.select(sa.func.json_each(texts).table_valued("value").c.value)

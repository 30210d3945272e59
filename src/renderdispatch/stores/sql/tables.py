"""Which tables does the job store have, and what does each column hold?

One row a job. The columns are authoritative; the record is JSON text in one of them. Times are integer microseconds.
``ready_at`` and ``look_at`` are NULL unless a dispatcher or a reconciler has to act on the job, and their indexes
hold only rows where they are set. These indexes stay small, however many finished jobs there are.

A claim writes no record: ``claim`` holds what it says, and each reader of the row applies it (`engine.claims.begin`).
The next write of the record empties it.

Jobs that have to wait (a retry) have ``waits_since``, and are in another index than those that can be claimed. A claim
first moves the waits that are over. Of a claimed job, ``waits_since`` is the time at which it became ready.

A deleted job leaves a row without a record, so that a new job of the same id starts at a higher revision. After a week
no process can still hold a revision of the deleted job, and the row is removed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from pydantic_core import PydanticSerializationError

from renderdispatch.engine.records import dump_job
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.texts import unstorable
from renderdispatch.stores.turns import turns_of

METADATA: Final = sa.MetaData()
"""Every table of this package."""

SCHEMA: Final = sa.Table(
    "renderdispatch_schema",
    METADATA,
    sa.Column("version", sa.BigInteger, nullable=False),  # of all the tables: `schema.VERSION`
    sa.Column("name", sa.Text, nullable=False),  # random: no other database has it
)

SUBMITS: Final = sa.Table(
    "renderdispatch_submits",  # of the last minute, of tenants whose submits are limited
    METADATA,
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("jobs", sa.BigInteger, nullable=False),
)

JOBS: Final = sa.Table(
    "renderdispatch_jobs",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("protocol", sa.BigInteger),
    sa.Column("document", sa.Text),  # not a JSON type: those would encode the text a second time
    sa.Column("claim", sa.Text),  # JSON of `Begun`, where a claim began an attempt that the record does not have yet
    *(sa.Column(name, sa.Text) for name in ("tenant", "status", "backend", "machine", "batch")),
    *(sa.Column(name, sa.BigInteger) for name in ("priority", "created_at", "ready_at")),
    sa.Column("waits_since", sa.BigInteger),  # while it waits until ready_at: the time of the write
    sa.Column("attempted", sa.BigInteger),  # 1 less the turns that its next claim costs its tenant: 1 after the first
    sa.Column("look_at", sa.BigInteger),  # when it is due for a look
    sa.Column("look_needs", sa.Text),  # what a process must have so that a look gets on
    sa.Column("looks", sa.BigInteger),  # how many looks there were since the last write
    sa.Column("deadline_at", sa.BigInteger),
    sa.Column("lease_until", sa.BigInteger),
    sa.Column("held_on", sa.Text),  # the backend of which its running attempt holds units
    sa.Column("held", sa.BigInteger),  # how many units
    sa.Column("held_until", sa.BigInteger),
    sa.Column("leftovers", sa.Text),  # JSON of the units that its ended attempts hold: backend, units, until
    sa.Column("ended_at", sa.BigInteger),  # of a job that has not expired
    sa.Column("deleted_at", sa.BigInteger),
)

_c: Final = JOBS.c
LIVE: Final = _c.created_at.is_not(None)
CLAIMABLE: Final = sa.and_(_c.ready_at.is_not(None), _c.waits_since.is_(None))
WAITING: Final = sa.and_(_c.ready_at.is_not(None), _c.waits_since.is_not(None))
OURS: Final = _c.protocol <= PROTOCOL
"""Rows that no newer version wrote; such rows are left to that version."""


ANY_MACHINE: Final = sa.literal_column("''", sa.Text)
MACHINE: Final = sa.func.coalesce(_c.machine, ANY_MACHINE)
"""What a claim compares: PostgreSQL keeps the order of an index behind ``=``, but not behind ``IS NULL``."""

NO_TENANT: Final = sa.literal_column("''", sa.Text)
TENANT: Final = sa.func.coalesce(_c.tenant, NO_TENANT)

_INDEXES: Final[Mapping[str, tuple[Sequence[sa.ColumnElement[Any]], Any]]] = {
    "claims": ((_c.backend, MACHINE, TENANT, _c.priority.desc(), _c.ready_at, _c.id, _c.attempted), CLAIMABLE),
    "waits": ((_c.ready_at,), WAITING),
    "steps": ((_c.waits_since,), WAITING),
    "looks": ((_c.look_at, _c.id), _c.look_at.is_not(None)),
    "held": ((_c.held_on, TENANT, _c.held_until, _c.held, _c.lease_until), _c.held_on.is_not(None)),
    "status": ((_c.status, _c.created_at.desc(), _c.id, _c.ended_at), LIVE),
    "tenant": ((_c.tenant, _c.status, _c.created_at.desc(), _c.id), sa.and_(LIVE, _c.tenant.is_not(None))),
    "batch": ((_c.batch, _c.status, _c.created_at.desc(), _c.id), _c.batch.is_not(None)),
    "queued": ((_c.tenant,), sa.and_(_c.ready_at.is_not(None), _c.tenant.is_not(None))),
    "deleted": ((_c.deleted_at,), _c.deleted_at.is_not(None)),
}
"""By name: the columns of each index, and the rows that it holds."""

_SUBMITS_INDEX: Final = sa.Index("renderdispatch_submits_tenant", SUBMITS.c.tenant, SUBMITS.c.at, SUBMITS.c.jobs)


@cache
def indexes(dialect: str) -> list[sa.Index]:
    """Return the indexes; to name the other dialect here would import it."""
    jobs = [
        sa.Index(f"renderdispatch_jobs_{name}", *columns, **{f"{dialect}_where": only})
        for name, (columns, only) in _INDEXES.items()
    ]
    return [*jobs, _SUBMITS_INDEX]


def _micros(time: datetime | None) -> int | None:
    return None if time is None else micros(time)


VALUES: Final = (
    *("protocol", "document", "tenant", "status", "backend", "machine", "batch", "priority", "created_at"),
    *("ready_at", "waits_since", "attempted", "look_at", "look_needs", "deadline_at", "lease_until"),
    *("held_on", "held", "held_until", "leftovers", "ended_at"),
)
"""What each write of a record sets, beside the revision; it empties ``claim`` and sets ``looks`` to 0."""


def columns(job: Job) -> dict[str, Any]:
    """Return what a write of a job's record sets, by the names of `VALUES`.

    Raises:
        InvalidRequestError: A text of the job cannot be stored.
    """
    held_on, held, held_until, leftovers = _held(job)
    waits = job.ready_at is not None and job.ready_at > job.updated_at
    return {
        "protocol": job.protocol,
        "document": _document(job),
        "tenant": job.tenant,
        "status": job.status.value,
        "backend": job.backend,
        "machine": job.machine,
        "batch": job.batch,
        "priority": job.priority,
        "created_at": micros(job.created_at),
        "ready_at": _micros(job.ready_at),
        "waits_since": micros(job.updated_at) if waits else None,
        "attempted": 1 - turns_of(job),
        "look_at": _micros(job.due_at),
        "look_needs": job.look_needs,
        "deadline_at": _micros(job.deadline_at),
        "lease_until": _micros(job.lease_until),
        "held_on": held_on,
        "held": held,
        "held_until": held_until,
        "leftovers": leftovers,
        "ended_at": _micros(job.ended_at) if job.expired_at is None else None,
    }


def _document(job: Job) -> str:
    try:
        return dump_job(job)
    except PydanticSerializationError:  # its text would quote the record
        raise unstorable() from None


def _held(job: Job) -> tuple[str | None, int | None, int | None, str | None]:
    """Return the units of the running attempt, and as JSON those of ended ones: a claim can begin another attempt."""
    holdings = job.holdings()
    attempt = job.attempt
    running = holdings[-1] if holdings and attempt is not None and attempt.ended_at is None else None
    left = holdings if running is None else holdings[:-1]
    leftovers = json.dumps([[unit.backend, unit.units, micros(unit.until)] for unit in left]) if left else None
    if running is None:
        return None, None, None, leftovers
    return running.backend, running.units, micros(running.until), leftovers

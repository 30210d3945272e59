"""How are jobs created: one, many in one transaction, and within a transaction of the application?

A tenant's quota is exact under concurrency: creates of one tenant that have a quota run one after the other. SQLite has
one writer anyway; PostgreSQL takes a lock of the tenant's name until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, Final, Protocol

import sqlalchemy as sa
from attrs import define, frozen

from renderdispatch.errors import (
    ConfigurationError,
    InvalidRequestError,
    JobExistsError,
    QueueLimitError,
    RenderDispatchError,
)
from renderdispatch.jobs import Job, evolve
from renderdispatch.protocols import Quota
from renderdispatch.stores.sql.database import NAME, Database, Ran
from renderdispatch.stores.sql.database_errors import driver_code
from renderdispatch.stores.sql.tables import JOBS, LIVE, SUBMITS, VALUES, columns
from renderdispatch.stores.sql.texts import check_texts
from renderdispatch.stores.turns import queue_full, too_many_submits

_c: Final = JOBS.c
_CHUNK: Final = 50
_MINUTE_US: Final = 60_000_000


class Runner(Protocol):
    """A transaction: of this store's own, or the application's."""

    def step(self, statement: Any, values: dict[str, Any]) -> Ran:
        """Execute a statement; return its rows, and how many it wrote."""


# --- statements


@cache
def create_statement(dialect: str, number: int = 1) -> Any:
    """Return what creates so many jobs, except those whose ids are taken; over a tombstone the revision rises.

    The values of the second one have the suffix ``_1``, and so on.
    """
    insert = import_module(f"sqlalchemy.dialects.{dialect}").insert
    new = insert(JOBS).values(
        [
            {
                **{name: sa.bindparam(_name(name, row), type_=_c[name].type) for name in _WRITTEN},
                "revision": 1,
                "looks": 0,
            }
            for row in range(number)
        ]
    )
    fresh = {**{name: new.excluded[name] for name in VALUES}, "revision": _c.revision + 1}
    return new.on_conflict_do_update(
        index_elements=[_c.id],
        set_={**fresh, "claim": None, "looks": 0, "deleted_at": None},
        where=_c.created_at.is_(None),
    ).returning(_c.revision, _c.id)


_WRITTEN: Final = ("id", *VALUES)


def _name(column: str, row: int) -> str:
    return f"{column}_{row}" if row else column


_LOCK: Final = sa.select(
    sa.func.current_setting("transaction_isolation", type_=sa.Text),
    sa.cast(
        sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(sa.bindparam("tenant", type_=sa.Text), 0x7375626D6974)),
        sa.Text,
    ),
)
_QUEUED: Final = sa.select(sa.func.count()).select_from(
    sa.select(sa.literal(1))
    .where(_c.tenant == sa.bindparam("tenant"), _c.ready_at.is_not(None))
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .subquery()
)
_s: Final = SUBMITS.c
_RECENT: Final = sa.select(sa.cast(sa.func.coalesce(sa.func.sum(_s.jobs), 0), sa.BigInteger), sa.func.min(_s.at)).where(
    _s.tenant == sa.bindparam("for_tenant"), _s.at > sa.bindparam("since")
)
_FORGET: Final = sa.delete(SUBMITS).where(_s.tenant == sa.bindparam("for_tenant"), _s.at <= sa.bindparam("since"))
_REMEMBER: Final = sa.insert(SUBMITS).values(
    tenant=sa.bindparam("for_tenant"), at=sa.bindparam("time"), jobs=sa.bindparam("number")
)


@cache
def _taken(number: int) -> Any:
    ids = [sa.bindparam(f"id_{index}", type_=sa.Text) for index in range(number)]
    return sa.select(_c.id).where(_c.id.in_(ids), LIVE)


# --- quotas


@define
class _Room:
    """How many jobs may still be created, None for any number, and what is said to the others."""

    jobs: int | None
    refusal: QueueLimitError | None


def _room(run: Runner, tenant: str | None, quota: Quota, now_us: int) -> _Room:
    rooms: list[tuple[int, Callable[[], QueueLimitError]]] = []
    if (most := quota.queued) is not None:
        ((queued, *_),) = run.step(_QUEUED, {"tenant": tenant, "most": most})[0]
        rooms.append((most - queued, lambda: queue_full(most)))
    if (rate := quota.submits_per_minute) is not None:
        window = {"for_tenant": tenant or "", "since": now_us - _MINUTE_US}
        run.step(_FORGET, window)
        ((recent, first, *_),) = run.step(_RECENT, window)[0]
        wait_us = (now_us if first is None else first) + _MINUTE_US - now_us
        rooms.append((rate - recent, lambda: too_many_submits(rate, timedelta(microseconds=wait_us))))
    if not rooms:
        return _Room(None, None)
    least, refusal = min(rooms, key=lambda room: room[0])
    return _Room(max(0, least), refusal())


# --- creation


def create_within(
    run: Runner, dialect: str, jobs: Sequence[Job], quota: Quota | None, now_us: Callable[[Runner], int]
) -> list[Job | RenderDispatchError]:
    """Create jobs in a transaction, as `SupportsCreateMany.create_many` says."""
    if not jobs:
        return []
    tenant = jobs[0].tenant
    if any(job.tenant != tenant for job in jobs):
        raise InvalidRequestError("jobs that are created together belong to one tenant; call once for each tenant")
    if quota is None or quota == Quota():
        return _insert(run, dialect, jobs, room=_Room(None, None))
    if dialect != "sqlite":
        ((isolation, *_),), _ = run.step(_LOCK, {"tenant": tenant or ""})
        if isolation != "read committed":  # it would not see what others committed before it got the lock
            message = (
                "the tenant has a quota, which can only be counted in a transaction of the isolation level "
                f"READ COMMITTED, and this one is {isolation.upper()}; change its level, or submit without connection="
            )
            raise ConfigurationError(message)
    now = now_us(run)  # after the wait for the lock
    results = _insert(run, dialect, jobs, room=_room(run, tenant, quota, now))
    number = sum(isinstance(result, Job) for result in results)
    if quota.submits_per_minute is not None and number:
        run.step(_REMEMBER, {"for_tenant": tenant or "", "time": now, "number": number})
    return results


def _insert(run: Runner, dialect: str, jobs: Sequence[Job], room: _Room) -> list[Job | RenderDispatchError]:
    seen: set[str] = set()
    verdicts: list[Job | RenderDispatchError] = []
    for start in range(0, len(jobs), _CHUNK):
        chunk = jobs[start : start + _CHUNK]
        seen |= _taken_ids(run, [job.id for job in chunk]) if room.jobs is not None else set()
        verdicts += [_verdict(job, seen, room) for job in chunk]
    # always in the order of their ids: two that create the same jobs never wait for each other
    accepted = sorted((verdict for verdict in verdicts if isinstance(verdict, Job)), key=lambda job: job.id)
    revisions: dict[str, int] = {}
    for start in range(0, len(accepted), _CHUNK):
        revisions |= _insert_chunk(run, dialect, accepted[start : start + _CHUNK])
    return [_result(verdict, revisions) for verdict in verdicts]


def _verdict(job: Job, seen: set[str], room: _Room) -> Job | RenderDispatchError:
    """Return the job, if it is to be inserted; note its id."""
    if job.id in seen:
        return job_exists(job.id)
    if room.jobs is not None and room.refusal is not None:
        if room.jobs <= 0:
            return room.refusal
        room.jobs -= 1
    seen.add(job.id)
    return job


def _result(verdict: Job | RenderDispatchError, revisions: dict[str, int]) -> Job | RenderDispatchError:
    if not isinstance(verdict, Job):
        return verdict
    revision = revisions.get(verdict.id)
    return job_exists(verdict.id) if revision is None else evolve(verdict, revision=revision)


def _taken_ids(run: Runner, ids: Sequence[str]) -> set[str]:
    rows, _ = run.step(_taken(len(ids)), {f"id_{index}": job_id for index, job_id in enumerate(ids)})
    return {row[0] for row in rows}


def _insert_chunk(run: Runner, dialect: str, jobs: Sequence[Job]) -> dict[str, int]:
    """Insert jobs; return the revisions of those whose ids were free."""
    found: dict[str, int] = {}
    # a statement is compiled for whole chunks, and for one: other numbers are seldom the same twice
    sizes = [len(jobs)] if len(jobs) == _CHUNK else [1] * len(jobs)
    start = 0
    for size in sizes:
        values = {
            _name(name, row): value
            for row, job in enumerate(jobs[start : start + size])
            for name, value in row_of(job).items()
        }
        rows, _ = run.step(create_statement(dialect, size), values)
        found.update((job_id, revision) for revision, job_id, *_ in rows)
        start += size
    return found


def row_of(job: Job) -> dict[str, Any]:
    """Return what a new row of a job holds, beside the revision.

    Raises:
        InvalidRequestError: A text of the job cannot be stored.
    """
    return {"id": job.id, **columns(job)}


def job_exists(job_id: str) -> JobExistsError:
    """Return the refusal of a create."""
    return JobExistsError(f"job {job_id} exists")


# --- the application's transaction


@contextmanager
def joined(database: Database, connection: object) -> Iterator[Runner]:
    """Run statements in a transaction of the application, which alone commits it or rolls it back.

    If the block raises, the transaction is as it was before it.

    Raises:
        ConfigurationError: It is not an SQLAlchemy `Connection` or `Session` of this store's database that can be used.
    """
    with database.translated:
        try:
            theirs = _core_connection(connection)
            _check_same(database, theirs)
            nested = theirs.begin_nested()
        except sa.exc.InvalidRequestError as error:  # it is closed, not bound, or waits for a rollback
            raise ConfigurationError(f"the connection cannot be used now: {error.args[0]}") from None
        with nested:
            yield _Joined(theirs)


def _core_connection(connection: object) -> sa.Connection:
    from sqlalchemy.orm import Session, scoped_session

    match connection:
        case sa.Connection():
            return connection
        case Session() | scoped_session():
            return connection.connection()
        case _:
            message = (
                f"connection= takes an SQLAlchemy Connection or Session, not {type(connection).__name__}; "
                "of an async one give its sync_connection or sync_session, within run_sync"
            )
            raise ConfigurationError(message)


def _check_same(database: Database, theirs: sa.Connection) -> None:
    if theirs.dialect.name != database.dialect:
        message = f"the connection is one to {theirs.dialect.name}, and the job store is on {database.dialect}"
        raise ConfigurationError(message)
    raw: Any = theirs.connection.dbapi_connection
    no_transaction = ConfigurationError(
        "the connection is in AUTOCOMMIT mode: it has no transaction that could be joined"
    )
    if database.dialect != "sqlite" and getattr(raw, "autocommit", False):
        raise no_transaction
    ours = database.name()  # first: it makes the tables if there are none
    if _name_of(theirs) != ours:
        raise ConfigurationError("the connection is one to another database than the job store's; use the same URL")
    if database.dialect == "sqlite" and not raw.in_transaction:
        if raw.isolation_level is None:
            raise no_transaction
        # pysqlite begins a transaction only before it writes; a savepoint outside of one would commit by itself
        theirs.exec_driver_sql("BEGIN IMMEDIATE")


_NO_TABLE: Final = frozenset({"SQLITE_ERROR", "42P01"})


def _name_of(theirs: sa.Connection) -> str | None:
    """Return the name of a database; None if it has no tables of a job store."""
    try:
        with theirs.begin_nested():
            return theirs.execute(NAME).scalar()
    except sa.exc.DBAPIError as error:
        if driver_code(error) not in _NO_TABLE:
            raise
        return None


@frozen
class _Joined:
    _connection: sa.Connection

    def step(self, statement: Any, values: dict[str, Any]) -> Ran:
        check_texts(values.values())
        try:
            result = self._connection.execute(statement, values)
        except UnicodeEncodeError:
            message = "the connection has a client_encoding that cannot express every text; set it to UTF8"
            raise ConfigurationError(message) from None
        return [tuple(row) for row in result.all()] if result.returns_rows else [], result.rowcount

"""How are the tables of a job store made, and brought up to date?

A row says which version of the tables a database has. Any number of processes may set up, or upgrade, one database at
once: each step is a transaction behind one lock, looks first whether it is still needed, and can be repeated.

An upgrade first removes the columns that only the earlier version writes. A process of that version then stops with an
error and writes nothing that this version would misread.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import sqlalchemy as sa
from attrs import frozen
from pydantic import ValidationError
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.schema import CreateIndex, CreateTable

from renderdispatch import errors
from renderdispatch.engine.records import load_job
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.stores.sql.connections import begin
from renderdispatch.stores.sql.database_errors import driver_code
from renderdispatch.stores.sql.queues import FILL, SET_UP
from renderdispatch.stores.sql.tables import JOBS, METADATA, SCHEMA, VALUES, columns, indexes

VERSION: Final = 2
"""The version of the tables. Version 1 had no row that says it."""

_FIRST: Final = 1
_NEW: Final = 0
_GONE: Final = ("was_ready_at", "due_at")
"""Columns of version 1 that this one has no use for."""

_OLD_INDEXES: Final = ("ready", "claimable", "waiting", "due", "newest", "tenant", "deleted")
"""Of version 1; this one may have another index of the same name."""

_STEP_ROWS: Final = 500
_LOCK: Final = 0x72656E646572  # any number that other programs do not lock by
_c: Final = JOBS.c


@frozen
class _State:
    version: int
    columns: frozenset[str]


def prepare(engine: Engine, *, patience_s: float) -> None:
    """Make the tables unless they are there; bring those of an earlier version up to date.

    A user who may not create tables can call this once they are there.

    Raises:
        ConfigurationError: Another program or a newer version made the tables.
    """

    def attempt() -> None:
        if engine.dialect.name == "sqlite":
            _choose_journal(str(engine.url.database), patience_s)
        with engine.connect() as connection:
            state = _state(connection)
        if state.version < VERSION:
            _set_up(engine)

    def trouble(error: Exception) -> Trouble:
        return Trouble.FAILED if driver_code(error) in _MET_ANOTHER else Trouble.FATAL

    retry(attempt, Backoff(patience_s=patience_s, pause_s=0.02, longest_pause_s=0.02), trouble=trouble)


_MET_ANOTHER: Final = frozenset({"SQLITE_BUSY"})
"""SQLite does not wait for the lock that begins a write-ahead log."""


def _state(connection: Connection) -> _State:
    """Return what there is now.

    Raises:
        ConfigurationError: It is not ours, or newer.
    """
    if not _exists(connection, JOBS):
        return _State(_NEW, frozenset())
    nothing = connection.execute(sa.select(sa.text("*")).select_from(JOBS).where(sa.false()))
    found = frozenset(nothing.keys())
    version = _FIRST
    if _exists(connection, SCHEMA):
        version = connection.execute(sa.select(sa.func.max(SCHEMA.c.version))).scalar() or _FIRST
    if version > VERSION:
        message = (
            "a newer version of renderdispatch made the tables of this job store "
            f"(version {version}; this process knows {VERSION}): update this process"
        )
        raise errors.ConfigurationError(message, code="store.unusable")
    expected = {column.name for column in JOBS.c} if version == VERSION else {"id", "revision", "protocol", "document"}
    if missing := expected - found:
        message = (
            f"another version made the table {JOBS.name}: it has no column {', '.join(sorted(missing))}. "
            "Use another database, or drop the table if you no longer need its jobs"
        )
        raise errors.ConfigurationError(message, code="store.unusable")
    return _State(version, found)


def _exists(connection: Connection, table: sa.Table) -> bool:
    """Return whether there is a table, or something else of its name."""
    if connection.dialect.name == "sqlite":
        query = sa.text("SELECT name FROM sqlite_schema WHERE name = :name")
    else:  # to_regclass may answer from a cache what was true before the wait for the lock
        query = sa.text("SELECT relname::text FROM pg_class WHERE relname = :name AND pg_table_is_visible(oid)")
    return connection.execute(query, {"name": table.name}).scalar() is not None


def _set_up(engine: Engine) -> None:
    with _locked(engine) as connection:
        state = _state(connection)
        if state.version == _NEW:
            _make(connection)
            return
        if state.version == _FIRST:
            _change_columns(connection, state.columns)
    if state.version == _FIRST:
        _fill(engine)


@contextmanager
def _locked(engine: Engine) -> Iterator[Connection]:
    """Run a transaction while no other process sets up the same database."""
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        with closing(raw.cursor()) as cursor:
            cursor.execute(begin(engine.dialect.name))
            try:
                if engine.dialect.name != "sqlite":
                    cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                yield connection
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")


def _make(connection: Connection) -> None:
    dialect = connection.dialect.name
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
    for index in indexes(dialect):
        connection.execute(CreateIndex(index, if_not_exists=True))
    for statement in (*SET_UP[dialect], *FILL):
        connection.exec_driver_sql(statement)
    # the name tells this database from all others, whatever its address is
    connection.execute(sa.insert(SCHEMA).values(version=VERSION, name=secrets.token_hex(16)))


# --- from version 1


def _change_columns(connection: Connection, found: frozenset[str]) -> None:
    for index in _OLD_INDEXES:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS renderdispatch_jobs_{index}")
    for name in sorted(found.intersection(_GONE)):
        connection.exec_driver_sql(f"ALTER TABLE {JOBS.name} DROP COLUMN {name}")
    for column in JOBS.c:
        if column.name not in found:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {JOBS.name} ADD COLUMN {column.name} {kind}")


def _fill(engine: Engine) -> None:
    """Fill the new columns from the records, in steps that hold the lock for a moment; then note the version."""
    after = ""
    while True:
        with _locked(engine) as connection:
            if _state(connection).version == VERSION:
                return
            query = sa.select(_c.id, _c.document, _c.looks, _c.created_at).where(_c.id > after)
            rows = connection.execute(query.order_by(_c.id).limit(_STEP_ROWS)).all()
            _fill_rows(connection, rows)
            if len(rows) < _STEP_ROWS:
                _make(connection)
                return
            after = rows[-1][0]


def _fill_rows(connection: Connection, rows: Sequence[Any]) -> None:
    names = [name for name in VALUES if name not in {"protocol", "document"}]
    update = (
        sa.update(JOBS)
        .where(_c.id == sa.bindparam("job_id"))
        .values(looks=0, **{name: sa.bindparam(f"new_{name}") for name in names})
    )
    filled = list(_filled(rows, names))
    if filled:
        connection.execute(update, filled)


def _filled(rows: Iterable[Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for job_id, document, looks, created_at in rows:
        if created_at is None or looks is not None:
            continue
        try:
            values = columns(load_job(document))
        except ValidationError:  # it cannot be read now, and is left alone
            continue
        yield {"job_id": job_id, **{f"new_{name}": values[name] for name in names}}


# --- SQLite's journal


def _choose_journal(file: str, patience_s: float) -> None:
    """Turn on the write-ahead log of a new database. Where that cannot be, a rollback journal serves.

    The log needs memory that processes share by way of a file, which many file systems in user space do not have.
    """
    ours = "SELECT 1 FROM sqlite_schema WHERE name = ?"
    try:
        with closing(sqlite3.connect(file, timeout=patience_s)) as connection:
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
            if journal == "delete" and connection.execute(ours, (JOBS.name,)).fetchone():
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(ours, (JOBS.name,))
    except sqlite3.OperationalError as error:
        if not driver_code(error).startswith("SQLITE_IOERR_SHM"):
            raise
        with closing(sqlite3.connect(file, timeout=patience_s)) as alone:
            alone.execute("PRAGMA locking_mode = EXCLUSIVE")  # needs no shared memory
            alone.execute("PRAGMA journal_mode = DELETE")

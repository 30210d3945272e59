"""How is the database of a job store opened, and its tables made?"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.schema import CreateIndex, CreateTable

from renderdispatch import errors
from renderdispatch.plumbing.files import obstacle
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.stores.sql.database_errors import driver_code, unusable
from renderdispatch.stores.sql.queues import FILL, SET_UP
from renderdispatch.stores.sql.tables import JOBS, indexes

_DIALECTS: Final = frozenset({"sqlite", "postgresql"})
_BUSY_TIMEOUT_S: Final = 15.0
_ADDED: Final = frozenset(JOBS.c.keys()) - {"id", "revision", "protocol", "document"}
"""Columns that tables of earlier versions lack; they are added, and hold NULL at first."""


def read_url(text: str | Path) -> URL:
    try:
        # in a path, '?', '%' and '#' mean themselves
        url = URL.create("sqlite", database=str(text)) if isinstance(text, Path) else make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        hint = "sqlite:///relative/path.db, sqlite:////absolute/path.db or postgresql+psycopg://user:password@host/name"
        raise errors.ConfigurationError(f"cannot read the database URL of the job store; write {hint}") from None
    message = f"unsupported database URL '{url.drivername}://...'; use sqlite:///path.db or postgresql+psycopg://..."
    unsupported = errors.ConfigurationError(message)
    if url.get_backend_name() not in _DIALECTS:
        raise unsupported
    try:
        url.get_dialect().import_dbapi()
    except sa.exc.NoSuchModuleError:
        raise unsupported from None
    except ImportError:
        raise errors.MissingExtraError.of("a job store on PostgreSQL", "postgres") from None
    return _read_sqlite_url(url) if url.get_backend_name() == "sqlite" else url


def _read_sqlite_url(url: URL) -> URL:
    if sqlite3.sqlite_version_info < (3, 35):
        message = f"SQLite {sqlite3.sqlite_version} is too old; the job store needs 3.35 or later"
        raise errors.ConfigurationError(message)
    if url.host or url.username or url.password or url.port:
        message = "a SQLite URL has three slashes before a relative path, four before an absolute one"
        raise errors.ConfigurationError(message)
    if not url.database or url.database == ":memory:":
        raise errors.ConfigurationError("threads cannot share a SQLite database in memory; use MemoryJobStore")
    try:
        timeout = float(str(url.query.get("timeout", _BUSY_TIMEOUT_S)))
    except ValueError:
        timeout = -1.0
    if timeout < 0 or url.query.keys() - {"timeout"}:
        raise errors.ConfigurationError("the only option of a SQLite URL is a number of seconds, such as ?timeout=5")
    try:
        path = Path(url.database).absolute()
    except FileNotFoundError:
        message = "the path of the job store is relative, and the working directory is gone; write an absolute path"
        raise errors.ConfigurationError(message) from None
    return url.set(database=str(path), query={"timeout": str(timeout)})


def new_engine(url: URL) -> Engine:
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "hide_parameters": True}
    if url.get_backend_name() == "sqlite":
        file = Path(str(url.database))
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # SQLite would take a pipe for a disk that fails
            raise unusable(str(file), str(obstacle(file)))
        engine = sa.create_engine(url, **options)
        sa.event.listen(engine, "connect", _set_up_sqlite)
    else:
        engine = sa.create_engine(url, pool_pre_ping=True, **options)
    try:
        _prepare(engine, patience_s=float(str(url.query.get("timeout", _BUSY_TIMEOUT_S))))
    except BaseException:
        engine.dispose()
        raise
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")


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


_MET_ANOTHER: Final = frozenset({"SQLITE_BUSY", "23505", "42P07", "42710"})
"""SQLite does not wait for the lock that begins a write-ahead log; PostgreSQL's IF NOT EXISTS is not atomic."""


def _prepare(engine: Engine, *, patience_s: float) -> None:
    """Create the table unless it exists. Other processes may be doing the same."""

    def create() -> None:
        if engine.dialect.name == "sqlite":
            _choose_journal(str(engine.url.database), patience_s)
        with engine.connect() as connection:
            connection.execute(CreateTable(JOBS, if_not_exists=True))
            _check_columns(connection)
            for index in indexes(engine.dialect.name):
                connection.execute(CreateIndex(index, if_not_exists=True))
            _set_up_queues(connection)

    def trouble(error: Exception) -> Trouble:
        return Trouble.FAILED if driver_code(error) in _MET_ANOTHER else Trouble.FATAL

    retry(create, Backoff(patience_s=patience_s, pause_s=0.02, longest_pause_s=0.02), trouble=trouble)


def _set_up_queues(connection: Connection) -> None:
    """Make the tables and triggers of the queue, and fill them from the jobs if they are new: all or nothing."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.dialect.name == "sqlite" else "BEGIN")
    try:
        new = not sa.inspect(connection).has_table("renderdispatch_counts")
        for statement in (*SET_UP[connection.dialect.name], *(FILL if new else ())):
            connection.exec_driver_sql(statement)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _check_columns(connection: Connection) -> None:
    """Add the columns that tables of earlier versions lack.

    Raises:
        ConfigurationError: Another version made the table, with other columns.
    """
    missing = _missing_columns(connection)
    if foreign := missing - _ADDED:
        message = (
            f"another version made the table {JOBS.name}: it has no column {', '.join(sorted(foreign))}. "
            "Use another database, or drop the table if you no longer need its jobs"
        )
        raise errors.ConfigurationError(message, code="store.unusable")
    for name in missing:
        try:
            kind = JOBS.c[name].type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {JOBS.name} ADD COLUMN {name} {kind}")
        except sa.exc.DBAPIError:
            if name in _missing_columns(connection):  # else another process was faster
                raise


def _missing_columns(connection: Connection) -> set[str]:
    found = connection.execute(sa.select(sa.text("*")).select_from(JOBS).where(sa.false())).keys()
    return {column.name for column in JOBS.c} - set(found)

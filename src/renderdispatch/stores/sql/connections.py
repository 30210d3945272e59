"""How is the database of a job store connected to?

On PostgreSQL no call waits for ever, whatever happens to the server or the network. A statement that does not answer
in time breaks its connection. Connections are tested before use only if they were idle for long, or if another one
broke since they were used: a ping before each statement would double its round trips.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from renderdispatch.errors import ConfigurationError
from renderdispatch.plumbing.files import obstacle
from renderdispatch.stores.sql.addresses import Address
from renderdispatch.stores.sql.database_errors import unusable
from renderdispatch.stores.sql.server_clock import elapsed_s

_IDLE_S: Final = 30.0
"""A connection that was idle for longer is tested before it is used."""

_CONNECT_S: Final = 10
_LONGEST_SILENCE_S: Final = 30
"""How long a peer may not acknowledge what was sent, or a probe, before the connection counts as broken."""

_ISOLATION: Final = r"-c default_transaction_isolation=read\ committed"
"""For statements outside of transactions, whatever the server's, the database's or the user's default is."""

_WHOLE_ENCODINGS: Final = frozenset({"UTF8", "SQL_ASCII"})
"""Encodings in which a database holds every text. (In ``SQL_ASCII`` it stores the bytes that it is sent.)"""


def begin(dialect: str) -> str:
    """Return what begins a transaction.

    SQLite has one writer. On PostgreSQL each statement has to see what was committed before it, so that what is read
    after the wait for a lock is true; a server's default may be another one.
    """
    return "BEGIN IMMEDIATE" if dialect == "sqlite" else "BEGIN ISOLATION LEVEL READ COMMITTED"


class Connections:
    """An engine, and what is known of its connections."""

    def __init__(self, address: Address) -> None:
        self._broke_at = -float("inf")
        self._sqlite = address.dialect == "sqlite"
        self._idle: deque[Any] = deque()
        self._disposed = False
        self._writer = threading.Lock()  # of this process: one that forks makes its own `Connections`
        self._patience_s = address.timeout_s
        self.engine: Final = _sqlite_engine(address) if address.dialect == "sqlite" else _postgresql_engine(address)
        if address.dialect != "sqlite":
            sa.event.listen(self.engine, "checkout", self._test)
            sa.event.listen(self.engine, "checkin", self._note_use)

    def borrow(self) -> Any:
        """Lend a connection; give it back, or drop it.

        Those to SQLite are kept here: SQLAlchemy's pool would take a third of a statement's time.
        """
        if not self._sqlite:
            return self.engine.raw_connection()
        with suppress(IndexError):
            return self._idle.pop()
        connection = self.engine.raw_connection()
        connection.detach()
        return connection.dbapi_connection

    def give_back(self, connection: Any) -> None:
        """Take a connection back that is outside any transaction."""
        if self._sqlite and not self._disposed:
            self._idle.append(connection)
        else:
            connection.close()

    def drop(self, connection: Any) -> None:
        """Take a connection back after an error. If it broke, the others are tested before they are used."""
        if not self._sqlite and getattr(connection.dbapi_connection, "closed", False):
            self._broke_at = elapsed_s()
            connection.invalidate()
        connection.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let the threads of this process write to SQLite in turn: it would have them sleep instead, longer and longer.

        A thread that waits for long asks SQLite all the same, which knows best what to say.
        """
        held = self._sqlite and self._writer.acquire(timeout=self._patience_s)
        try:
            yield
        finally:
            if held:
                self._writer.release()

    def dispose(self) -> None:
        """Close every connection that is not lent; those are closed when they are given back."""
        self._disposed = True
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()
        self.engine.dispose()

    def _test(self, connection: Any, record: Any, _: object) -> None:
        used_at = record.info.get("used_at")
        if used_at is None or (used_at > self._broke_at and elapsed_s() - used_at < _IDLE_S):
            return
        try:
            connection.execute("")  # PostgreSQL answers an empty query
        except Exception as error:
            raise sa.exc.InvalidatePoolError from error  # this one, and all that are older, are connected anew

    @staticmethod
    def _note_use(_: object, record: Any) -> None:
        record.info["used_at"] = elapsed_s()


def _sqlite_engine(address: Address) -> Engine:
    file = Path(str(address.url.database))
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():  # SQLite would take a pipe for a disk that fails
        raise unusable(str(file), str(obstacle(file)))
    # a connection for each thread that needs one: there is no server whose connections could run out
    engine = sa.create_engine(
        address.url, isolation_level="AUTOCOMMIT", hide_parameters=True, max_overflow=-1, pool_use_lifo=True
    )
    sa.event.listen(engine, "connect", _set_up_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: each checkpoint waits for the disk
    connection.execute("PRAGMA cache_size = -16384")  # KiB: beside a million jobs a claim takes a fifth less time


def _postgresql_engine(address: Address) -> Engine:
    engine = sa.create_engine(
        address.url,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=address.pool_size,
        max_overflow=0,
        pool_timeout=address.timeout_s,
        pool_use_lifo=True,
    )
    sa.event.listen(engine, "do_connect", _connector(address))
    sa.event.listen(engine, "connect", _check_encoding)
    return engine


def _check_encoding(connection: Any, _: object) -> None:
    """Refuse a database that cannot hold every text; the server says its encoding when a connection is opened."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in _WHOLE_ENCODINGS:
        message = (
            f"the database of the job store has the encoding {encoding}, which cannot hold every text; "
            "make one by CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
        connection.close()
        raise ConfigurationError(message, code="store.unusable")


def connect_arguments(address: Address, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what a connection to PostgreSQL is opened with: what the URL chose, and our choice of the rest."""
    arguments: dict[str, Any] = {
        "application_name": "renderdispatch",
        "connect_timeout": min(_CONNECT_S, max(2, int(address.timeout_s))),
        "tcp_user_timeout": _LONGEST_SILENCE_S * 1000,
        "keepalives_idle": _LONGEST_SILENCE_S // 2,
        "keepalives_interval": _LONGEST_SILENCE_S // 6,
        "keepalives_count": 3,
    }
    chosen = {**chosen, "client_encoding": "UTF8"}  # a server or a user may have another default
    if address.pooler:  # the next transaction may have another connection of the server
        return {**arguments, "prepare_threshold": None, **chosen}
    # The server's limit is the lower one: its answer leaves the connection as usable as before. A process that is
    # stopped within a transaction must not keep its locks.
    limit_ms = int(address.timeout_s * 900)
    limits = f"-c statement_timeout={limit_ms} -c idle_in_transaction_session_timeout={limit_ms}"
    # each statement looks again at rows for which it waited, whatever the default of the database is
    limits += r" -c default_transaction_isolation=read\ committed"
    # of two settings of one name the later one counts
    settings = (limits, chosen.get("options", ""), _ISOLATION)
    return {**arguments, **chosen, "options": " ".join(filter(None, settings))}


def _connector(address: Address) -> Callable[..., Any]:
    import psycopg

    class BoundedConnection(psycopg.Connection[Any]):
        """A connection that is closed if the server does not answer in time."""

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            return super().wait(self._bounded(gen), *args, **options)

        def _bounded(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            deadline = monotonic() + address.timeout_s
            try:
                wanted = next(steps)
                while True:
                    ready = yield wanted
                    if not ready and monotonic() > deadline:
                        self.close()
                        raise psycopg.OperationalError("the server did not answer in time")
                    wanted = steps.send(ready)
            except StopIteration as result:
                return result.value

    def connect(_dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> Any:
        return BoundedConnection.connect(*args, **connect_arguments(address, options))

    return connect

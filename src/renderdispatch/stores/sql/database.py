"""How is a statement run, and a transaction?

A `Database` is handed to everything in this package that reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from attrs import frozen

from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.per_process import ForkGate, PerProcess
from renderdispatch.stores.sql.addresses import Address
from renderdispatch.stores.sql.connections import Connections, begin
from renderdispatch.stores.sql.database_errors import cause, translation
from renderdispatch.stores.sql.schema import prepare
from renderdispatch.stores.sql.server_clock import ServerClock, elapsed_s
from renderdispatch.stores.sql.tables import SCHEMA
from renderdispatch.stores.sql.texts import check_texts

Ran = tuple[list[Any], int]
"""The rows that a statement returned, and how many it wrote."""

_SERVER_TIME: Final = sa.literal_column("(extract(epoch FROM statement_timestamp()) * 1000000)::bigint", sa.BigInteger)
ASK_TIME: Final = sa.select(_SERVER_TIME)
"""Asks PostgreSQL for the time, in microseconds since 1970."""
NAME: Final = sa.select(SCHEMA.c.name)
"""What tells this database from all others."""


class _Compiled(NamedTuple):
    text: str
    constants: Mapping[str, Any]
    places: Sequence[str] | None  # the name of each placeholder; None: placeholders have names
    returns: bool
    timed: bool  # whether a column was added that brings the server's time along


class Database:
    """The connections of one process to a database. Nothing is opened before the first call.

    Every call raises `StoreUnavailableError` while the database is away, `ConfigurationError` if it cannot be used, and
    `InvalidRequestError` for a text that no database stores.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.dialect: Final = address.dialect
        self.clock: Final = ServerClock()
        self._driver = address.url.get_dialect().import_dbapi()
        self.translated: Final = translated(translation(address.url, self._driver), chain=cause)
        """Raises our errors in the place of the driver's and SQLAlchemy's."""
        self._compiled: dict[Any, _Compiled] = {}
        self._name: str | None = None
        # forked by something that is not Python, a child keeps its parent's engine: to close it would harm the parent
        self._connections = PerProcess(self._connect)
        self._gate = ForkGate(self.close)

    def _connect(self) -> Connections:
        connections = Connections(self.address)
        try:
            prepare(connections.engine, patience_s=self.address.timeout_s)
        except BaseException:
            connections.dispose()
            raise
        sa.event.listen(connections.engine, "before_cursor_execute", _check_bound)
        return connections

    def set_up(self) -> None:
        """Make the tables, or bring them up to date, unless they are."""
        with self._gate.operation(), self.translated:
            self._connections.get()

    def step(self, statement: Any, values: Mapping[str, Any]) -> Ran:
        """Execute a statement that every job needs many times, in a transaction of its own.

        It is compiled once and runs on the driver's own connection, which takes half the time of an execution through
        Core. All values are integers and texts, which need no conversion. On PostgreSQL each row brings the server's
        time along, for `clock`; the caller does not see that column.
        """
        with self._gate.operation(), self.translated:
            connections = self._connections.get()
            connection = connections.borrow()
            try:
                if statement.is_select:
                    ran = self._run(connection, statement, values)
                else:
                    with connections.writing():
                        ran = self._run(connection, statement, values)
            except BaseException:
                connections.drop(connection)
                raise
            connections.give_back(connection)
            return ran

    def execute(self, statement: Any, values: Mapping[str, Any] | None = None) -> tuple[Sequence[Any], int]:
        """Execute any other statement, in a transaction of its own."""
        with (
            self._gate.operation(),
            self.translated,
            self._connections.get().engine.connect() as connection,
        ):
            result = connection.execute(statement, values)
            return result.all() if result.returns_rows else [], result.rowcount

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run several statements as one: all of them take effect, or, if the block raises, none.

        SQLite has one writer at a time, and this is it until the block ends. On PostgreSQL the isolation is READ
        COMMITTED, whatever the database's default is: each statement sees what was committed when it began.
        """
        with (
            self._gate.operation(),
            self.translated,
            self._borrowed() as connection,
            self._connections.get().writing(),
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute(begin(self.dialect))
            try:
                yield Transaction(self, connection)
            except BaseException:
                _roll_back(cursor)
                raise
            cursor.execute("COMMIT")

    @contextmanager
    def _borrowed(self) -> Iterator[Any]:
        """Lend a connection; one that broke is thrown away, and the others are tested before they are used."""
        connections = self._connections.get()
        connection = connections.borrow()
        try:
            yield connection
        except BaseException:
            connections.drop(connection)
            raise
        connections.give_back(connection)

    def _run(self, connection: Any, statement: Any, values: Mapping[str, Any]) -> Ran:
        compiled = self._compiled.get(statement)
        if compiled is None:
            compiled = self._compiled[statement] = self._compile(statement)
        check_texts(values.values())
        bound = {**compiled.constants, **values}
        asked_at = elapsed_s() if compiled.timed else 0.0
        with closing(connection.cursor()) as cursor:
            cursor.execute(
                compiled.text, bound if compiled.places is None else [bound[name] for name in compiled.places]
            )
            rows, written = cursor.fetchall() if cursor.description else [], cursor.rowcount
        if not compiled.timed or not rows:
            return rows, written
        self.clock.note(rows[-1][-1], asked_at=asked_at)
        return [row[:-1] for row in rows] if compiled.returns else [], written

    def _compile(self, statement: Any) -> _Compiled:
        returns, timed = True, False
        if self.dialect != "sqlite":
            if isinstance(statement, sa.Insert | sa.Update | sa.Delete):
                returns, timed = bool(statement._returning), True  # noqa: SLF001 - SQLAlchemy has no other way to ask
                statement = statement.returning(_SERVER_TIME)
            elif isinstance(statement, sa.Select):
                timed = True
                statement = statement.add_columns(_SERVER_TIME)
        sql = statement.compile(dialect=self._connections.get().engine.dialect)
        return _Compiled(sql.string, sql.params, sql.positiontup, returns, timed)

    def server_time_us(self, transaction: Transaction | None = None) -> int:
        """Return the time of PostgreSQL's server, in microseconds since 1970; it is asked only now and then.

        Args:
            transaction: Where to ask. Within a transaction give it: a second connection may not be free.
        """
        known = self.clock.now_us()
        if known is None:
            known = int((transaction or self).step(ASK_TIME, {})[0][0][0])
        return known

    def name(self) -> str:
        """Return what tells this database from all others, whatever its address is."""
        if self._name is None:
            self._name = str(self.step(NAME, {})[0][0][0])
        return self._name

    def close(self) -> None:
        """Close every connection. A later call connects again."""
        if (connections := self._connections.take()) is not None:
            connections.dispose()


@frozen
class Transaction:
    """A transaction that runs; see `Database.transaction`."""

    _database: Database
    _connection: Any

    def step(self, statement: Any, values: Mapping[str, Any]) -> Ran:
        """Execute a statement within the transaction, compiled once as `Database.step` does it."""
        return self._database._run(self._connection, statement, values)  # noqa: SLF001 - two halves of one thing


def _roll_back(cursor: Any) -> None:
    """Undo a transaction. Where the connection is gone the database does so itself."""
    with suppress(Exception):
        cursor.execute("ROLLBACK")


def _check_bound(_c: object, _cursor: object, _sql: str, bound: Any, _context: object, many: bool) -> None:
    for values in bound if many else [bound]:
        check_texts(values.values() if isinstance(values, Mapping) else values)

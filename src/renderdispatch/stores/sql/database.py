"""How is a statement run, and a transaction?

A `Database` is handed to everything in this package that reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, NamedTuple

from attrs import frozen
from sqlalchemy.engine import URL

from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.per_process import ForkGate, PerProcess
from renderdispatch.stores.sql.connections import new_engine
from renderdispatch.stores.sql.database_errors import cause, translation

Ran = tuple[list[Any], int]
"""The rows that a statement returned, and how many it wrote."""


class _Compiled(NamedTuple):
    text: str
    constants: Mapping[str, Any]
    places: Sequence[str] | None  # the name of each placeholder; None: placeholders have names


class Database:
    """The connections of one process to the database of a URL. Nothing is opened before the first call.

    Every call raises `StoreUnavailableError` while the database is away, and `ConfigurationError` if it cannot be used.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.dialect: Final = url.get_backend_name()
        self._errors = translation(url, url.get_dialect().import_dbapi())
        self._compiled: dict[Any, _Compiled] = {}
        # forked by something that is not Python, a child keeps its parent's engine: to close it would harm the parent
        self._engines = PerProcess(lambda: new_engine(self.url))
        self._gate = ForkGate(self.close)

    def step(self, statement: Any, values: Mapping[str, Any]) -> Ran:
        """Execute a statement that every job needs many times, in a transaction of its own.

        It is compiled once and runs on the driver's own connection, which takes half the time of an execution through
        Core. All values are integers and texts, which need no conversion.
        """
        with self._gate.operation(), translated(self._errors, chain=cause):
            engine = self._engines.get()
            with closing(engine.raw_connection()) as connection:
                return self._run(connection, statement, values)

    def execute(self, statement: Any, values: Mapping[str, Any] | None = None) -> tuple[Sequence[Any], int]:
        """Execute any other statement, in a transaction of its own."""
        with (
            self._gate.operation(),
            translated(self._errors, chain=cause),
            self._engines.get().connect() as connection,
        ):
            result = connection.execute(statement, values)
            return result.all() if result.returns_rows else [], result.rowcount

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Run several statements as one: all of them take effect, or, if the block raises, none.

        SQLite has one writer at a time, and this is it until the block ends. On PostgreSQL the isolation is READ
        COMMITTED: each statement sees what was committed when it began.
        """
        with (
            self._gate.operation(),
            translated(self._errors, chain=cause),
            closing(self._engines.get().raw_connection()) as connection,
            closing(connection.cursor()) as cursor,
        ):
            cursor.execute("BEGIN IMMEDIATE" if self.dialect == "sqlite" else "BEGIN")
            try:
                yield Transaction(self, connection)
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def _run(self, connection: Any, statement: Any, values: Mapping[str, Any]) -> Ran:
        compiled = self._compiled.get(statement)
        if compiled is None:
            sql = statement.compile(dialect=self._engines.get().dialect)
            compiled = self._compiled[statement] = _Compiled(sql.string, sql.params, sql.positiontup)
        bound = {**compiled.constants, **values}
        with closing(connection.cursor()) as cursor:
            cursor.execute(
                compiled.text, bound if compiled.places is None else [bound[name] for name in compiled.places]
            )
            return cursor.fetchall() if cursor.description else [], cursor.rowcount

    def close(self) -> None:
        """Close every connection. A later call connects again."""
        if (engine := self._engines.take()) is not None:
            engine.dispose()


@frozen
class Transaction:
    """A transaction that runs; see `Database.transaction`."""

    _database: Database
    _connection: Any

    def step(self, statement: Any, values: Mapping[str, Any]) -> Ran:
        """Execute a statement within the transaction, compiled once as `Database.step` does it."""
        return self._database._run(self._connection, statement, values)  # noqa: SLF001 - two halves of one thing

"""Which statements do the job stores of this process execute, as their drivers see them?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


@contextmanager
def executed_statements() -> Iterator[list[str]]:
    """Yield a list that gets the text of each statement, of connections that are opened within the block."""
    statements: list[str] = []

    def watch(dialect: sa.Dialect, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        if dialect.name == "sqlite":
            options["factory"] = _watched_connection(statements)
        else:
            import psycopg

            options["cursor_factory"] = _watched(psycopg.Cursor, statements)

    sa.event.listen(sa.Engine, "do_connect", watch)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "do_connect", watch)


def _watched_connection(statements: list[str]) -> type[sqlite3.Connection]:
    class Watched(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            return super().cursor(_watched(sqlite3.Cursor, statements))

    return Watched


def _watched(kind: type[Any], statements: list[str]) -> type[Any]:
    """Return a kind of cursors that notes what it executes."""

    class Watched(kind):  # type: ignore[misc]  # the base is known at run time alone
        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            statements.append(str(query))
            return super().execute(query, *args, **options)

    return Watched

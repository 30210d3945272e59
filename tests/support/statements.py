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

    def watch(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(statements.append)
        else:
            connection.cursor_factory = _watched(connection.cursor_factory, statements)

    sa.event.listen(sa.pool.Pool, "connect", watch)
    try:
        yield statements
    finally:
        sa.event.remove(sa.pool.Pool, "connect", watch)


def _watched(kind: type[Any], statements: list[str]) -> type[Any]:
    """Return a kind of psycopg's cursors that notes what it executes."""

    class Watched(kind):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            statements.append(str(query))
            return super().execute(query, *args, **options)

    return Watched

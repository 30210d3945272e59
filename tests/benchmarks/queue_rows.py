"""How does a job store get a million rows in less than a minute?

By copies of a row that the store itself wrote, made by the database: all columns are those of a real job, and id, record
and times are the copy's own. Meanwhile there are no indexes and no triggers. Afterwards they are made again, and the
queue's books are filled from the jobs, as an upgrade does it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg

from renderdispatch.jobs import Job
from renderdispatch.stores.sql.queues import FILL

TABLE: Final = "renderdispatch_jobs"
_BOOKS: Final = ("renderdispatch_counts", "renderdispatch_woken")
_SPREAD_US: Final = 1000
"""Microseconds between two jobs."""

Run = Callable[..., list[tuple[Any, ...]]]
"""Executes a statement and returns its rows."""


def copy(url: str, model: Job, number: int) -> None:
    """Add copies of a job that the store has; nothing else may use the store meanwhile."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(Path(url.removeprefix("sqlite:///")), isolation_level=None)) as file:
            _copy_in_sqlite(lambda statement, *values: file.execute(statement, values).fetchall(), model, number)
    else:
        with psycopg.connect(url, autocommit=True) as connection:

            def run(statement: str, *values: object) -> list[tuple[Any, ...]]:
                cursor = connection.execute(statement.encode(), values or None)
                return cursor.fetchall() if cursor.description else []

            _copy_in_postgresql(run, model, number)


def _copied(columns: list[str], new_id: str) -> str:
    """Return the expressions of a copy's columns. It is a little older than the copy before, but as long ready."""
    own = {"id": new_id, "document": f"replace(document, id, {new_id})"}
    own |= {name: f"{name} - {_SPREAD_US} * number" for name in ("created_at", "ended_at")}
    return ", ".join(own.get(name, name) for name in columns)


def _fill_books(run: Run) -> None:
    for book in _BOOKS:
        run(f"DELETE FROM {book}")
    for statement in FILL:
        run(statement)


def _copy_in_sqlite(run: Run, model: Job, number: int) -> None:
    run("PRAGMA synchronous = OFF")
    run("PRAGMA cache_size = -200000")
    made = run("SELECT type, name, sql FROM sqlite_schema WHERE tbl_name = ? AND type <> 'table' AND sql > ''", TABLE)
    columns = [row[1] for row in run(f"PRAGMA table_info({TABLE})")]
    run("BEGIN")
    for kind, name, _ in made:
        run(f"DROP {kind} {name}")
    run(
        "WITH RECURSIVE copies(number, new) AS (SELECT 1, lower(hex(randomblob(16))) UNION ALL "
        "SELECT number + 1, lower(hex(randomblob(16))) FROM copies WHERE number < ?) "
        f"INSERT INTO {TABLE} ({', '.join(columns)}) SELECT {_copied(columns, 'new')} "
        f"FROM copies CROSS JOIN {TABLE} WHERE id = ?",
        *(number, model.id),
    )
    for _, _, statement in made:
        run(statement)
    _fill_books(run)
    run("COMMIT")
    run("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy_in_postgresql(run: Run, model: Job, number: int) -> None:
    made = run("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexname NOT LIKE '%%pkey'", TABLE)
    asked = "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"
    columns = [name for (name,) in run(asked, TABLE)]
    run("SET maintenance_work_mem = '256MB'")
    run("BEGIN")
    run(f"ALTER TABLE {TABLE} DISABLE TRIGGER USER")
    for name, _ in made:
        run(f"DROP INDEX {name}")
    run(
        f"INSERT INTO {TABLE} ({', '.join(columns)}) SELECT {_copied(columns, 'md5(id || number)')} "
        f"FROM generate_series(1, %s) AS number CROSS JOIN {TABLE} WHERE id = %s",
        *(number, model.id),
    )
    for _, definition in made:
        run(definition)
    run(f"ALTER TABLE {TABLE} ENABLE TRIGGER USER")
    _fill_books(run)
    run("COMMIT")


def settle(url: str) -> None:
    """Give the database what its own housekeeping would do in the minutes after so many writes."""
    if not url.startswith("sqlite"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

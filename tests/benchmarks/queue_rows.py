"""How does a job store get a million rows in less than a minute?

By copies of a row that the store itself wrote, made by the database: all columns are those of a real job, and id, record
and times are the copy's own. What the store keeps beside its table of jobs is dropped before, and so are the indexes;
the store makes them anew from the jobs, as it does with the table of an older version.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg

from renderdispatch.jobs import Job
from renderdispatch.stores.sql import SqlJobStore

TABLE: Final = "renderdispatch_jobs"
_SPREAD_US: Final = 1000
"""Microseconds between two jobs."""


def copy(url: str, model: Job, number: int) -> None:
    """Add copies of a job that the store has; no process may use the store meanwhile."""
    fill = _copy_sqlite if url.startswith("sqlite") else _copy_postgresql
    fill(url, model, number)
    with closing(SqlJobStore(url)) as store:
        store.get(model.id)  # makes the indexes


def _values(columns: list[str], new_id: str, number: str) -> str:
    """Return the expressions of a copy's columns. A copy is a little older than its model, except in `ready_at`."""
    own = {"id": new_id, "document": f"replace(document, id, {new_id})"}
    own |= {name: f"{name} - {_SPREAD_US} * {number}" for name in ("created_at", "ended_at")}
    return ", ".join(own.get(name, name) for name in columns)


def _copy_sqlite(url: str, model: Job, number: int) -> None:
    path = Path(url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        for kind in ("trigger", "index", "table"):
            for type_, name, table, sql in found:
                if type_ == kind and sql is not None and name != TABLE and (kind == "table" or table == TABLE):
                    connection.execute(f"DROP {kind} IF EXISTS {name}")
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({TABLE})")]
        connection.execute("BEGIN")
        connection.execute(
            f"WITH RECURSIVE copies(number, new) AS (SELECT 1, lower(hex(randomblob(16))) UNION ALL "
            f"SELECT number + 1, lower(hex(randomblob(16))) FROM copies WHERE number < ?) "
            f"INSERT INTO {TABLE} ({', '.join(columns)}) SELECT {_values(columns, 'new', 'number')} "
            f"FROM copies CROSS JOIN {TABLE} WHERE id = ?",
            (number, model.id),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy_postgresql(url: str, model: Job, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        triggers = connection.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal", (TABLE,)
        )
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'renderdispatch%%' AND tablename <> %s", (TABLE,)
        )
        indexes = connection.execute(
            "SELECT indexname FROM pg_indexes WHERE tablename = %s AND indexname NOT LIKE '%%pkey'", (TABLE,)
        )
        drops = [f"DROP TRIGGER {name} ON {TABLE}" for (name,) in triggers]
        drops += [f"DROP TABLE {name} CASCADE" for (name,) in tables] + [f"DROP INDEX {name}" for (name,) in indexes]
        for drop in drops:
            connection.execute(drop.encode())
        asked = connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
            (TABLE,),
        )
        columns = [name for (name,) in asked]
        new = "md5(id || number)"
        connection.execute(
            f"INSERT INTO {TABLE} ({', '.join(columns)}) SELECT {_values(columns, new, 'number')} "
            f"FROM generate_series(1, %s) AS number CROSS JOIN {TABLE} WHERE id = %s".encode(),
            (number, model.id),
        )


def settle(url: str) -> None:
    """Give the database what its own housekeeping would do in the minutes after so many writes."""
    if not url.startswith("sqlite"):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")

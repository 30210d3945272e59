"""What does the URL of a job store say?"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final, NoReturn

import sqlalchemy as sa
from attrs import frozen
from sqlalchemy.engine import URL, make_url

from renderdispatch import errors

_WAIT_S: Final = {"sqlite": 15.0, "postgresql": 30.0}
_POOL_SIZE: Final = 10
_POSTGRESQL: Final = "postgresql+psycopg"
_HINT: Final = "sqlite:///relative/path.db, sqlite:////absolute/path.db or postgresql://user:password@host/name"


@frozen(kw_only=True)
class Address:
    """Where the database is, and how it is used.

    Args:
        url: What the driver is told. Its text holds the password.
        timeout_s: How long a call waits: on SQLite for other writers, on PostgreSQL for the server and a connection.
        pool_size: How many connections a process has at most. PostgreSQL alone.
        pooler: Whether a pooler may give each transaction another connection of the server. PostgreSQL alone.
    """

    url: URL
    timeout_s: float
    pool_size: int = _POOL_SIZE
    pooler: bool = False

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.url.get_backend_name()


def read_address(text: str | Path) -> Address:
    """Read the URL of a job store, or the path of its SQLite file.

    Raises:
        ConfigurationError: It cannot be used. The error does not quote it.
        MissingExtraError: The database's driver is not installed.
    """
    try:
        # in a path, '?', '%' and '#' mean themselves
        url = URL.create("sqlite", database=str(text)) if isinstance(text, Path) else make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise errors.ConfigurationError(f"cannot read the database URL of the job store; write {_HINT}") from None
    match url.drivername:
        case "postgres" | "postgresql" | "postgresql+psycopg":
            return _postgresql(url.set(drivername=_POSTGRESQL))
        case "sqlite" | "sqlite+pysqlite":
            return _sqlite(url)
        case _:
            message = f"unsupported database URL '{url.drivername}://...'; use {_HINT}"
            raise errors.ConfigurationError(message)


def _refuse(why: str) -> NoReturn:
    raise errors.ConfigurationError(f"{why}; correct the URL of the job store")


def _sqlite(url: URL) -> Address:
    if sqlite3.sqlite_version_info < (3, 35):
        message = f"SQLite {sqlite3.sqlite_version} is too old; the job store needs 3.35 or later"
        raise errors.ConfigurationError(message)
    if url.host or url.username or url.password or url.port:
        _refuse("a SQLite URL has three slashes before a relative path, four before an absolute one")
    if not url.database or url.database == ":memory:":
        raise errors.ConfigurationError("threads cannot share a SQLite database in memory; use MemoryJobStore")
    timeout_s = _seconds(url, least=0.0)
    if url.query.keys() - {"timeout"}:
        _refuse("the only option of a SQLite URL is a number of seconds, such as ?timeout=5")
    try:
        path = Path(url.database).absolute()
    except FileNotFoundError:
        message = "the path of the job store is relative, and the working directory is gone; write an absolute path"
        raise errors.ConfigurationError(message) from None
    return Address(url=url.set(database=str(path), query={"timeout": str(timeout_s)}), timeout_s=timeout_s)


def _postgresql(url: URL) -> Address:
    try:
        from psycopg import Error
        from psycopg.conninfo import make_conninfo
    except ImportError:
        raise errors.MissingExtraError.of("a job store on PostgreSQL", "postgres") from None
    if (pooler := url.query.get("pooler", "none")) not in {"none", "transaction"}:
        _refuse("?pooler= says which pooler is between, 'none' or 'transaction'")
    if "@" in (url.host or ""):  # the rest of the password: errors would show it
        _refuse("the URL has two '@'; in a user name or a password write '@' as %40, ':' as %3A and '/' as %2F")
    size = str(url.query.get("pool_size", _POOL_SIZE))
    if not (size.isascii() and size.isdecimal() and 1 <= int(size) <= 1000):
        _refuse("?pool_size= is a number of connections, 1 to 1000")
    timeout_s = _seconds(url, least=1.0)
    plain = url.difference_update_query(["pooler", "pool_size", "timeout"])
    options: dict[str, Any] = dict(plain.query)
    try:
        make_conninfo(**{key: value if isinstance(value, str) else ",".join(value) for key, value in options.items()})
    except Error:
        known = "?timeout=, ?pool_size=, ?pooler=, and those of libpq, such as ?sslmode=require"
        raise errors.ConfigurationError(
            f"the URL of the job store has an option that PostgreSQL does not know; the options are {known}"
        ) from None
    return Address(url=plain, timeout_s=timeout_s, pool_size=int(size), pooler=pooler == "transaction")


def _seconds(url: URL, *, least: float) -> float:
    try:
        seconds = float(str(url.query.get("timeout", _WAIT_S[url.get_backend_name()])))
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= 3600:
        _refuse(f"?timeout= is a number of seconds, {least:g} to 3600, such as ?timeout=5")
    return seconds

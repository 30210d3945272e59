"""What do the errors of a database mean for its job store?

Some pass: it is locked, its disk is full, its server restarts. Those are `StoreUnavailableError`: try again. Others
stay until somebody acts: no right to write, a wrong password, a file or a table of another program. Those are
`ConfigurationError` with the code ``store.unusable``, so that no worker waits for ever.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL

from renderdispatch.errors import ConfigurationError, RenderDispatchError, StoreUnavailableError
from renderdispatch.plumbing.failures import Translation
from renderdispatch.plumbing.files import obstacle

_PASSING: Final = {
    "SQLITE_BUSY": "others kept it locked for too long",
    "SQLITE_LOCKED": "others kept it locked for too long",
    "SQLITE_FULL": "no space is left on its disk",
    "SQLITE_IOERR": "its disk fails, or is full",
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_READONLY": "it cannot be written",
    "SQLITE_PERM": "it cannot be opened",
    "53100": "no space is left on the server's disk",
    "53300": "the server has no connection left",
    "57P": "the server restarts, or ended the connection",
    "57014": "the server ended a statement that took too long",
    "25P02": "an earlier statement of this transaction failed: roll it back",
    "25P03": "the server ended a transaction that took too long",
    "25006": "the server is a standby, or was made read-only, and takes no writes",
    "40": "others wrote the same rows at the same time",
    "OperationalError": "the server cannot be reached, or does not answer",
}
"""By the beginnings of codes. If something is seen that keeps the file from being used, that is said instead."""

_FOREIGN: Final = "one of its tables, renderdispatch_..., is gone, or another program or version made it"

_LASTING: Final = {
    "SQLITE_NOTADB": "the file is not a SQLite database",
    "SQLITE_CORRUPT": "the file is damaged (restore a copy of it, or move it away)",
    "SQLITE_ERROR": _FOREIGN,
    "SQLITE_SCHEMA": _FOREIGN,
    "SQLITE_MISMATCH": _FOREIGN,
    "SQLITE_CONSTRAINT": _FOREIGN,
    "28": "the server refuses this user, or its password",
    "3D": "the server has no database of this name",
    "3F": "its search_path names no schema that exists and that this user may use (CREATE SCHEMA, GRANT USAGE)",
    "LIBPQ": "an option of its URL, such as sslmode or sslrootcert, has a value that does not work here",
    "pooler": "a pooler is between, which refuses settings of a connection (add ?pooler=transaction to the URL)",
    "42501": "this user may not use, or may not make, its tables (their owner makes them by SqlJobStore(url).set_up())",
    "42P": _FOREIGN,
    "427": _FOREIGN,  # a column that is missing
    "428": _FOREIGN,  # columns of other types
    "23": _FOREIGN,
}
"""By the beginnings of codes: SQLite's names, and SQLSTATE."""

_REFUSED_CONNECTIONS: Final = {
    r"password authentication failed|no password supplied|pg_hba\.conf|permission denied for database": "28",
    r'role ".*" does not exist|no such user': "28",
    r'database ".*" does not exist|no such database': "3D",
    r"unsupported startup parameter": "pooler",
    r"invalid \S+ value|invalid port number|does not support SSL|certificate file .* does not exist": "LIBPQ",
    r"unrecognized configuration parameter|definition of service": "LIBPQ",
}
"""What PostgreSQL's server and library, or PgBouncer, say when they refuse a connection: drivers give no SQLSTATE."""

_BRIEF: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR}
)


def unusable(where: str, why: str) -> ConfigurationError:
    """Return the error of a job store that stays as it is until somebody acts."""
    step = "change that, or name another place with RENDERDISPATCH_HOME or RENDERDISPATCH_STORE"
    return ConfigurationError(f"the job store {where} cannot be used: {why}; {step}", code="store.unusable")


def place_of(url: URL) -> str:
    """Return what messages call the database: a file's path, or a URL without its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def translation(url: URL, driver: Any) -> Translation:
    """Return what the driver's errors become. Those that tell of a mistake in a statement stay as they are."""
    where = place_of(url)
    file = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None

    def away(how: str) -> RenderDispatchError:
        return StoreUnavailableError(f"the job store {where} {how}")

    def seen() -> str | None:
        if file is None:
            return None
        found = {suffix: obstacle(file.with_name(file.name + suffix)) for suffix in ("", "-wal", "-shm", "-journal")}
        return next((f"{why} ({file.name}{suffix})" for suffix, why in found.items() if why is not None), None)

    def trouble(error: Exception) -> RenderDispatchError:
        code = driver_code(error)
        if (why := _by_code(_LASTING, code)) is not None:
            return unusable(where, why)
        known = _by_code(_PASSING, code)
        if known is not None and (why := seen()) is not None:
            return unusable(where, why)
        return away(f"is away: {known or f'the driver says {code}'}; try again")

    def mistake(error: Exception) -> Exception:
        why = _by_code(_LASTING, driver_code(error))
        return error if why is None else unusable(where, why)

    def system(error: OSError) -> RenderDispatchError:
        if error.errno in _BRIEF:
            return away(f"cannot be opened: {error.strerror}; try again")
        return unusable(where, seen() or str(error.strerror))

    mistakes = {
        kind: mistake
        for module in (sa.exc, driver)
        for kind in (module.ProgrammingError, module.IntegrityError, module.DataError)
    }
    return {
        RenderDispatchError: lambda error: error,
        **mistakes,
        sa.exc.DBAPIError: trouble,
        driver.Error: trouble,
        sa.exc.TimeoutError: lambda _: away("does not answer: all connections are busy; try again"),
        OSError: system,
    }


def driver_code(error: Exception) -> str:
    """Return the driver's own code. It is safe to show; the driver's message may hold a part of the URL."""
    origin = getattr(error, "orig", error)
    # psycopg2, with which an application may have connected, says pgcode
    code = next(
        filter(None, (getattr(origin, name, None) for name in ("sqlite_errorname", "sqlstate", "pgcode"))), None
    )
    return code or _refused_connection(str(origin)) or type(origin).__name__


def cause(error: Exception) -> BaseException | None:
    """Return the driver's error: the text of SQLAlchemy's quotes the statement."""
    return None if isinstance(error, sa.exc.TimeoutError) else getattr(error, "orig", error)


def _refused_connection(said: str) -> str | None:
    return next((code for pattern, code in _REFUSED_CONNECTIONS.items() if re.search(pattern, said)), None)


def _by_code(table: dict[str, str], code: str) -> str | None:
    return next((text for beginning, text in table.items() if code.startswith(beginning)), None)

"""How does a test get a PostgreSQL server of its own?

A server runs on loopback as an ordinary user, on a port and in a folder of its own. It ends with the process that
started it, however that process ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from renderdispatch.testing import eventually
from tests.support.needs import lacking
from tests.support.ports import ReservedPort

_DEBIAN: Final = Path("/usr/lib/postgresql")
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
}
_LIFELINE: Final = 'exec 3<&0 </dev/null; ( (read -r _ <&3; kill -INT $$) & ); exec "$@" 3<&-'
"""The shell becomes the server; beside it a process ends it once the pipe on its input ends, as it does at a kill."""


def _programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``: Debian keeps them beside PATH, the newest version last."""
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def need_postgres() -> Path:
    """Return the folder of the server's programs; skip where they are not installed."""
    if (programs := _programs()) is None:
        lacking("PostgreSQL is not installed: apt-get install postgresql")
    return programs


def _as_ordinary_user() -> dict[str, Any]:
    """Return arguments of `subprocess`: PostgreSQL refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started, where the system tells."""
    told = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in told.read_text().split()] if told.exists() else []


class PostgresServer:
    """A server with a fresh cluster of databases. Nothing is started before `start`; `close` deletes the cluster.

    Everybody on this machine may connect to it, as the user ``postgres`` and without a password.
    """

    def __init__(self) -> None:
        self._programs = need_postgres()
        self._port = ReservedPort()
        self._folder = Path(tempfile.mkdtemp(prefix="renderdispatch-postgres-", dir=_reachable()))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The folder of the cluster."""
        return self._folder / "data"

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1; the same after a restart."""
        return self._port.number

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, and wait until it answers. After a kill it recovers first."""
        if not self.data.exists():
            self._make_cluster()
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process is None or self._process.poll() is not None:
                # right after a kill the last processes of the one before may still hold its memory
                assert time.monotonic() < deadline, self.log()
                self._launch()

    def _make_cluster(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody", "nogroup")
        command = [self._programs / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*map(str, command), "--locale=C", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            **_as_ordinary_user(),
        )

    def _launch(self) -> None:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        server = [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(self.port), *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LIFELINE, "sh", *server],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_as_ordinary_user(),
            )

    def _answers(self) -> bool:
        """Wait until the server answers or ends; return whether it answers."""
        import psycopg

        def state() -> str:
            if self._process is None or self._process.poll() is not None:
                return "ended"
            with contextlib.suppress(psycopg.Error), psycopg.connect(self.url(), connect_timeout=5):
                return "answers"
            return ""

        return eventually(state) == "answers"

    def stop(self) -> None:
        """End every connection and shut the server down in order."""
        if self._process is not None:
            self._process.communicate(timeout=60)
            self._process = None

    def kill(self) -> None:
        """Kill the server with SIGKILL; its connections break. `start` brings it back with what was committed."""
        if self._process is not None:
            # each connection has a process of its own, in a group of its own, which would serve on for a moment
            pids = _children(self._process.pid)
            os.killpg(self._process.pid, 9)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            self._process.communicate(timeout=60)
            self._process = None

    def log(self) -> str:
        """Return what the server wrote to its log."""
        return (self._folder / "log").read_text(errors="replace")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, outside any transaction; return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Make an empty database, and drop it at the end whatever still uses it; yields its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            if self._process is not None:
                self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def close(self) -> None:
        """Stop the server and delete its cluster."""
        self.stop()
        self._port.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _reachable() -> str | None:
    """Return where another user can reach a folder; None: where temporary folders are made."""
    return "/tmp" if os.geteuid() == 0 else None


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server of this test's own, which it may stop and kill."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()

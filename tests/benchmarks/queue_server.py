"""Which PostgreSQL do the benchmarks of the queue run on?

One of their own, on loopback, with the settings that PostgreSQL comes with: ``fsync``, ``synchronous_commit`` and
``full_page_writes`` are on. It runs as an ordinary user and ends with the block that started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg

from renderdispatch.testing import eventually

_DEBIAN: Final = Path("/usr/lib/postgresql")


class Server:
    """A PostgreSQL server that runs."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._port, self._process = port, process

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def create(self, database: str) -> str:
        """Make an empty database; return its URL."""
        self.execute(f"CREATE DATABASE {database}")
        return self.url(database)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Execute a statement outside any transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def cpu_s(self) -> float:
        """Return the seconds of CPU that its processes have taken, those that have ended included. Linux alone."""
        ticks, pages = 0, list(Path("/proc").glob("[0-9]*/stat"))
        for page in pages:
            with suppress(OSError):
                _, parent, *_ = fields = page.read_text().rpartition(")")[2].split()
                if str(self._process.pid) in {parent, page.parent.name}:
                    ticks += sum(
                        map(int, fields[11:15] if page.parent.name == str(self._process.pid) else fields[11:13])
                    )
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def postgresql() -> Iterator[Server]:
    """Run a server."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        raise SystemExit("PostgreSQL is not installed: apt-get install postgresql")
    root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if root else {}
    with tempfile.TemporaryDirectory(dir="/tmp" if root else None) as name, socket.socket() as free:
        if root:
            shutil.chown(name, "nobody", "nogroup")
        data = f"{name}/data"
        command = [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **user)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200"]
        program = [str(Path(initdb).resolve().with_name("postgres")), "-D", data, "-p", str(port), *settings]
        with subprocess.Popen(program, stderr=subprocess.DEVNULL, cwd="/", **user) as process:
            try:
                server = Server(port, process)
                eventually(lambda: _answers(server) or process.poll() is not None)
                yield server
            finally:
                process.send_signal(signal.SIGINT)  # it ends connections and stops


def _answers(server: Server) -> bool:
    with suppress(psycopg.OperationalError):
        server.execute("SELECT 1")
        return True
    return False

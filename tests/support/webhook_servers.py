"""Real servers for the tests of webhooks: what they load, and how a test starts one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from renderdispatch.web.webhook import asgi_app, wsgi_app
from tests.support import ROOT
from tests.support.ports import free_port
from tests.support.webhooks import SECRET

HOME: Final = "WEBHOOK_TEST_HOME"
ENVIRONMENT: Final = {
    "RENDERDISPATCH_SECRETS": SECRET,
    "RENDERDISPATCH_WEBHOOK_URL": "https://app.example.com/webhooks/",
}

SERVERS: Final = {
    "uvicorn": ["uvicorn", "--port", "{port}", "--log-level", "warning", "tests.support.webhook_servers:asgi"],
    "gunicorn": [
        "gunicorn",
        "--bind",
        "127.0.0.1:{port}",
        "--workers",
        "2",
        "--log-level",
        "warning",
        "tests.support.webhook_servers:wsgi",
    ],
    "gunicorn-threads": [
        *("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--log-level", "warning"),
        *("--worker-class", "gthread", "--threads", "4", "--preload", "tests.support.webhook_servers:wsgi"),
    ],
}
"""uvicorn; two preforked processes; two preforked processes of four threads, the application loaded before the fork."""


class FileFlaggedStore(SqlJobStore):
    """A store that answers nobody while the file ``away`` lies beside its database."""

    def get(self, job_id: str) -> Job:
        if (Path(os.environ[HOME]) / "away").exists():
            raise StoreUnavailableError("the store does not answer")
        return super().get(job_id)


def store_in(home: Path) -> SqlJobStore:
    return SqlJobStore(f"sqlite:///{home / 'jobs.db'}")


def _service() -> RenderService:
    home = Path(os.environ[HOME])
    store = FileFlaggedStore(f"sqlite:///{home / 'jobs.db'}")
    return RenderService(store, FsspecStorage(home / "objects"), {"far": InlineBackend()}, secrets=SECRET, worker=False)


def __getattr__(name: str) -> Any:
    """Make the application that a server asks for."""
    makers: dict[str, Callable[[RenderService], Any]] = {"asgi": asgi_app, "wsgi": wsgi_app}
    if name not in makers:
        raise AttributeError(name)
    app = globals()[name] = makers[name](_service())
    return app


@frozen
class Server:
    """A server that runs."""

    port: int
    pid: int
    home: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webhooks"

    @property
    def pids(self) -> list[int]:
        """The processes that answer."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return [int(pid) for pid in children] or [self.pid]


@contextmanager
def serving(command: list[str], home: Path) -> Iterator[Server]:
    """Run one of `SERVERS`, or another command, on a store in ``home``; when it ends, nothing went wrong in it."""
    log = home / "server.log"
    port = free_port()
    arguments = [part.format(port=port) for part in command]
    path = os.pathsep.join([str(home), str(ROOT)])
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=home,
            env={**os.environ, **ENVIRONMENT, HOME: str(home), "RENDERDISPATCH_HOME": str(home), "PYTHONPATH": path},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Server(port, process.pid, home)
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

"""Real servers, each in a process of its own, over a folder that the test sees too."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from attrs import frozen

from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls

SECRET = "a secret of at least 24 bytes"
KINDS = ("uvicorn", "gunicorn")


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@frozen
class ObjectServer:
    """A server that runs: where its objects lie, where it answers, and its process."""

    folder: Path
    base: str
    process: subprocess.Popen[bytes]

    def urls(self, **options: Any) -> SignedUrls:
        return SignedUrls(self.base, SECRET, **options)

    def storage(self, **options: Any) -> FsspecStorage:
        return FsspecStorage(self.folder, urls=self.urls(**options))

    def peak_mib(self) -> float:
        """The most memory that any of its processes ever held."""
        return max(_peak_mib(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        """Return its processes: the one that was started, and its children."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextmanager
def object_server(kind: str, folder: Path) -> Iterator[ObjectServer]:
    """Run a server for the length of the block; connections wait in the backlog until it is up."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}/objects"
        descriptor = listener.fileno()
        script = str(Path(__file__).with_name("serve_objects.py"))
        command = [sys.executable, script, kind, str(descriptor), base, SECRET, str(folder)]
        with subprocess.Popen(command, pass_fds=[descriptor]) as process:
            try:
                yield ObjectServer(folder, base, process)
            finally:
                process.send_signal(signal.SIGINT if kind == "gunicorn" else signal.SIGTERM)  # at once

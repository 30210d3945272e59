"""What tests of `ModalBackend` stand on: a deployed function, and a storage that containers reach."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.web.objects import wsgi_app
from tests.support.ports import ReservedPort

SECRET = "a secret of at least 24 bytes"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served_storage(folder: Path) -> Iterator[FsspecStorage]:
    """A folder whose signed URLs work from every process of this machine."""
    with make_server("127.0.0.1", 0, lambda *_: [], _Server, _Silent) as server:
        urls = SignedUrls(f"http://127.0.0.1:{server.server_port}", SECRET)
        storage = FsspecStorage(folder, urls=urls)
        server.set_app(wsgi_app(storage, urls))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield storage
        server.shutdown()
        thread.join()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for as long as the block runs, and none of Modal's but these."""
    before = dict(os.environ)
    for name in before:
        if name.startswith("MODAL_"):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    """The URL of a server that is not there: its port refuses connections, and no other process is given it."""
    with ReservedPort() as port:
        yield f"http://127.0.0.1:{port.number}"

"""Render services on loopback: one that does as the test says, and ones that render."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import uvicorn
from attrs import define, field, frozen

from renderdispatch.messages import RenderOrder
from renderdispatch.protocols import Locality
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.testing import make_order
from renderdispatch.web import objects, renders
from renderdispatch.web.asgi import AsgiApp

TOKEN = "a token that is a secret".replace(" ", "-")
SECRET = "a secret of at least 24 bytes"


@frozen
class Asked:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


Behaviour = Callable[[socket.socket, Asked], None]


@define
class Service:
    """A service that answers each request as ``behaviour`` does."""

    port: int
    behaviour: Behaviour
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http{'s' * bool(self.tls)}://127.0.0.1:{self.port}/renders"


@contextmanager
def service(behaviour: Behaviour, *, tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    """Serve for as long as the block runs; the behaviour may be changed meanwhile."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        served = Service(server.getsockname()[1], behaviour, tls)
        threading.Thread(target=_accept, args=(server, served), daemon=True).start()
        try:
            yield served
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, served: Service) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        served.connections += 1
        threading.Thread(target=_serve, args=(connection, served), daemon=True).start()


def _serve(connection: socket.socket, served: Service) -> None:
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
        if served.tls is not None:
            connection = served.tls.wrap_socket(connection, server_side=True)
        file = stack.enter_context(stack.enter_context(connection).makefile("rb"))
        while (asked := _read(file)) is not None:
            served.asked.append(asked)
            served.behaviour(connection, asked)


def _read(file: BinaryIO) -> Asked | None:
    line = file.readline().decode().strip()
    if not line:
        return None
    headers = {}
    while pair := file.readline().decode().strip():
        name, _, value = pair.partition(":")
        headers[name.lower()] = value.strip()
    return Asked(line, headers, file.read(int(headers.get("content-length", "0"))))


def answering(status: int, said: Any = None, *, kind: str = "application/json", **headers: str) -> Behaviour:
    """Answer with a status and JSON, or bytes as they are; underscores in header names become dashes."""
    body = said if isinstance(said, bytes) else json.dumps(said if said is not None else {}).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", f"content-type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return saying("\r\n".join([*lines, "", ""]).encode() + body, close=False)


def saying(message: bytes, *, close: bool = True) -> Behaviour:
    """Send these bytes, whatever they are."""

    def behave(connection: socket.socket, _asked: Asked) -> None:
        connection.sendall(message)
        if close:
            connection.shutdown(socket.SHUT_RDWR)

    return behave


def dripping(head: bytes, chunk: bytes, *, every_s: float, until: threading.Event) -> Behaviour:
    """Send ``head``, and then ``chunk`` again and again, until nobody listens."""

    def behave(connection: socket.socket, _asked: Asked) -> None:
        connection.sendall(head)
        while not until.wait(every_s):
            connection.sendall(chunk)

    return behave


@contextmanager
def uvicorn_in_a_thread(app: Callable[[str], AsgiApp]) -> Iterator[str]:
    """Serve ``app(base)``, which may know its own base URL; yield that."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(app(base), log_level="warning", lifespan="off", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield base
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def stored_behind_http(folder: Path) -> Iterator[FsspecStorage]:
    """A folder whose signed URLs are http; they reach the world, as far as the backends of these tests go."""
    made: list[FsspecStorage] = []

    def app(base: str) -> AsgiApp:
        urls = SignedUrls(base, SECRET, locality=Locality.WORLD)
        made.append(FsspecStorage(folder, urls=urls))
        return objects.asgi_app(made[0], urls)

    with uvicorn_in_a_thread(app):
        yield made[0]


@contextmanager
def rendering(backend: Any) -> Iterator[str]:
    """A render service around a backend; yield its URL."""
    with uvicorn_in_a_thread(lambda _base: renders.asgi_app(backend, token=TOKEN)) as base:
        yield base


def far_order(storage: FsspecStorage, **changes: Any) -> RenderOrder:
    """An order that leaves its machine."""
    return make_order(storage, **{"local": False, **changes})

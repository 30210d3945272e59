"""A callback that misbehaves: a loopback server that answers each connection as the test says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import BinaryIO

from attrs import define, field

Answer = Callable[[socket.socket, "Request"], None]


@define
class Request:
    """One request, as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


@define
class Callback:
    """What was seen so far."""

    port: int
    answer: Answer
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(factory=list)
    at_once: int = 0
    most_at_once: int = 0
    closing: threading.Event = field(factory=threading.Event)
    lock: threading.Lock = field(factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http{'s' * bool(self.tls)}://127.0.0.1:{self.port}/callback?secret=do-not-log"


@contextmanager
def callback(answer: Answer, *, tls: ssl.SSLContext | None = None) -> Iterator[Callback]:
    """Serve a callback on loopback for as long as the block runs; ``answer`` may be changed meanwhile."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        seen = Callback(server.getsockname()[1], answer, tls)
        threading.Thread(target=_accept, args=(server, seen), daemon=True).start()
        try:
            yield seen
        finally:
            seen.closing.set()
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, seen: Callback) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(connection, seen), daemon=True).start()


def _serve(connection: socket.socket, seen: Callback) -> None:
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as stack:
        if seen.tls is not None:
            connection = seen.tls.wrap_socket(connection, server_side=True)
        file = stack.enter_context(stack.enter_context(connection).makefile("rb"))
        while (request := _read(file)) is not None:
            with seen.lock:
                seen.requests.append(request)
                seen.at_once += 1
                seen.most_at_once = max(seen.most_at_once, seen.at_once)
            try:
                seen.answer(connection, request)
            finally:
                with seen.lock:
                    seen.at_once -= 1


def _read(file: BinaryIO) -> Request | None:
    line = file.readline().decode().strip()
    if not line:
        return None
    headers = {}
    while pair := file.readline().decode().strip():
        name, _, value = pair.partition(":")
        headers[name.lower()] = value.strip()
    return Request(line, headers, file.read(int(headers.get("content-length", "0"))))


def answering(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    """Answer with a status, headers (underscores become dashes) and a body, and keep the connection."""
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    message = "\r\n".join([*lines, "", ""]).encode() + body

    def answer(connection: socket.socket, _request: Request) -> None:
        connection.sendall(message)

    return answer


def saying(message: bytes) -> Answer:
    """Send these bytes, whatever they are, and close."""

    def answer(connection: socket.socket, _request: Request) -> None:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


def endless(head: bytes, chunk: bytes, *, every_s: float = 0.0, stop_after: int = 10 << 30) -> Answer:
    """Send ``head``, then ``chunk`` again and again, up to ten gigabytes or until nobody listens."""

    def answer(connection: socket.socket, _request: Request) -> None:
        connection.sendall(head)
        sent = 0
        while sent < stop_after:
            connection.sendall(chunk)
            sent += len(chunk)
            if every_s:
                time.sleep(every_s)

    return answer


def hanging(connection: socket.socket, _request: Request) -> None:
    """Accept the request and say nothing until the other side goes away."""
    connection.recv(1)


def closing(connection: socket.socket, _request: Request) -> None:
    """Close without a word."""
    connection.shutdown(socket.SHUT_RDWR)


class PeakMemory:
    """The most resident memory of a process while the block ran, over what it had before; bytes (Linux)."""

    def __init__(self, pid: int | str = "self") -> None:
        self._pid = pid
        self.grown = 0
        self._done = threading.Event()

    def __enter__(self) -> PeakMemory:
        self._before = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _now(self) -> int:
        with open(f"/proc/{self._pid}/status", encoding="ascii") as file:  # noqa: PTH123 - small
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.grown = max(self.grown, self._now() - self._before)

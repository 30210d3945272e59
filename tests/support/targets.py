"""Hosts on loopback that count who connects to them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = Callable[[socket.socket, bytes], None]


class Target:
    """A host that answers each connection once, and counts them."""

    def __init__(self, listener: socket.socket, answer: Answer, tls: ssl.SSLContext | None) -> None:
        self.address, self.port = listener.getsockname()[:2]
        self.hits = 0
        self.requests: list[bytes] = []
        self._listener = listener
        self._answer = answer
        self._tls = tls

    def serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self.hits += 1
            threading.Thread(target=self._handle, args=(raw,), daemon=True).start()

    def _handle(self, raw: socket.socket) -> None:
        raw.settimeout(20)
        with contextlib.suppress(OSError), raw:
            connection = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
            with connection:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    if not (piece := connection.recv(65536)):
                        return
                    request += piece
                self.requests.append(request)
                self._answer(connection, request)


def says(body: bytes = b"RIFF, a song", *, status: str = "200 OK", **headers: str) -> Answer:
    """Return an answer with a body and its length."""
    given = {"content-length": str(len(body)), "connection": "close"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(connection: socket.socket, _: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in given.items() if value), "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)

    return answer


def redirects(to: str, status: str = "302 Found") -> Answer:
    """Return an answer that leads elsewhere."""
    return says(b"", status=status, location=to)


@contextmanager
def target(
    answer: Answer | None = None, *, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Target]:
    """Run a host for the length of the block."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family, backlog=32) as listener:
        found = Target(listener, answer or says(), tls)
        thread = threading.Thread(target=found.serve, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()

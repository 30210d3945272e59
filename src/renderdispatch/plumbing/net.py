"""How do bytes travel over HTTP, fast and in bounded memory?

What the runner's transfers and the storages behind S3 share: one kind of client, the size of the pieces that it is
fed with, and how its connections are cut.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx

PIECE_BYTES: Final = 1 << 16
"""httpx copies what the socket did not take of a piece, again and again: pieces of 1 MiB take 1.7 times as long."""

STALL_S: Final = 30.0
"""After how long a transfer on which nothing moves has failed."""

_CONNECT_S: Final = 10.0
_IDLE: Final = 16

_QUIET: Final = ("httpx", "httpcore")


def new_client(*, stall_s: float = STALL_S, wire: Wire | None = None) -> httpx.Client:
    """Return a client whose transfers stop when nothing moves for ``stall_s``. It keeps no cookies and logs no URLs.

    Args:
        wire: Learns of every connection, so that it can cut them.
    """
    import httpx

    for name in _QUIET:  # they log URLs
        logging.getLogger(name).setLevel(logging.WARNING)

    def watched(request: httpx.Request) -> None:
        if wire is not None:
            request.extensions = {**request.extensions, "trace": wire.watch}

    return httpx.Client(
        event_hooks={"request": [watched]},
        timeout=httpx.Timeout(stall_s, connect=_CONNECT_S),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE),
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"accept-encoding": "identity"},  # sizes and ranges count the object's own bytes
    )


def etag_of(value: str | None) -> str | None:
    """Return the etag that a header says, without quotes."""
    return value.removeprefix("W/").strip('"') if value else None


class Wire:
    """Cuts connections from another thread: the timeouts of sockets begin anew with every byte."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._up = False

    @contextlib.contextmanager
    def cut_after(self, seconds: float) -> Iterator[Callable[[str, Mapping[str, object]], None]]:
        """Cut what the yielded function (for httpcore's "trace" extension) sees, unless the block ends in time."""
        with self._lock:
            self._up = False
        timer = threading.Timer(seconds, self.cut)
        timer.name, timer.daemon = "renderdispatch-deadline", True
        timer.start()
        try:
            yield self.watch
        finally:
            timer.cancel()

    def cut(self) -> None:
        """Cut now, and every later connection as soon as it stands."""
        with self._lock:
            self._up = True
            for connected in self._sockets:
                with contextlib.suppress(OSError):
                    # not `SSLSocket.shutdown`: it drops the TLS layer first, and what another thread sends at that
                    # moment would leave in the clear
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def watch(self, event: str, info: Mapping[str, object]) -> None:
        """Follow connections from plain to TLS, as httpcore's trace extension tells of them."""
        if event == "http11.send_request_body.complete" and hasattr(socket, "TCP_QUICKACK"):
            # A server whose sockets lack TCP_NODELAY (uvicorn's, with several workers) sends the body of a response
            # once its headers were acknowledged, which Linux else delays by 40 ms.
            with self._lock, contextlib.suppress(OSError):
                for connected in self._sockets:
                    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            with self._lock:
                self._sockets = [known for known in self._sockets if known.fileno() != -1]
                self._sockets.append(info["return_value"].get_extra_info("socket"))  # type: ignore[attr-defined]
                up = self._up
            if up:
                self.cut()

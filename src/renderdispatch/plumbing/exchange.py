"""How does one small request to a service surely end, and what is known when it failed?

With a bound on everything: a `Client` gives an exchange one time for the look-up of the name, every address, TLS, the
request and the last byte of the answer, however slowly that trickles, and one size, whatever the service declares.
Redirects are not followed, cookies not kept, proxies of the environment not used. A failure says whether anything was
sent, for nothing else tells a call that surely was not made from one that may have been. Connections are shared
between threads, and never between processes: after a fork each side has its own.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpcore
import httpx
from attrs import define, field, frozen

_IDLE: Final = 16
_IDLE_S: Final = 20.0
_MAX_ADDRESSES: Final = 4


class NotSentError(Exception):
    """Not a byte left: the service never heard of the request. Its text holds no secret."""


class NoAnswerError(Exception):
    """The request, or a part of it, was sent, and no whole answer came. Its text holds no secret."""


@frozen
class Answer:
    """What the service said; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@define
class _Turn:
    """The exchange that a thread is in: its end, whether anything was sent, whether the certificate was any good."""

    give_up_at: float
    sent: bool = False
    certified: bool = True

    def left(self, timeout: float | None, error: type[Exception]) -> float:
        left = self.give_up_at - time.monotonic()
        if left <= 0:
            raise error
        return left if timeout is None else min(left, timeout)


class Client:
    """Makes small requests to one service.

    Args:
        headers: Sent with every request; they may hold secrets.
        total_s: Seconds for an exchange, from the look-up of the name to the last byte of the answer.
        connect_s: Seconds of these until the connection stands.
        max_bytes: How large an answer may be.
        ssl_context: What judges certificates; by default the usual authorities.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        total_s: float,
        connect_s: float,
        max_bytes: int,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        logging.getLogger("httpcore").setLevel(logging.WARNING)  # it logs headers
        self._headers = dict(headers)
        self._total_s = total_s
        self._connect_s = min(connect_s, total_s)
        self._max_bytes = max_bytes
        self._ssl_context = ssl_context
        self._network = _Network()
        self._pools: dict[tuple[int, int], httpcore.ConnectionPool] = {}

    def __call__(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        fresh: bool = False,
    ) -> Answer:
        """Make one request, once.

        Args:
            fresh: Over a connection of its own: an idle one that the service closes at this very moment would cost the
                knowledge whether the request arrived.

        Raises:
            NotSentError: The service never heard of it.
            NoAnswerError: It may have.
        """
        turn = _Turn(time.monotonic() + self._total_s)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        waits = {"connect": self._connect_s, "read": self._total_s, "write": self._total_s, "pool": self._total_s}
        sent: list[tuple[bytes | str, bytes | str]] = [
            ("Host", url.netloc),
            ("User-Agent", "renderdispatch"),
            ("Accept", "application/json"),
            ("Accept-Encoding", "identity"),
            *self._headers.items(),
            *(headers or {}).items(),
        ]
        if body is not None:
            sent += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        with (
            self._network.turn(turn),
            _translated(turn),
            self._pool(url, idle=0 if fresh else _IDLE).stream(
                method, target, headers=sent, content=body, extensions={"timeout": waits}
            ) as said,
        ):
            return Answer(
                said.status,
                {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in said.headers},
                self._read(said),
            )

    def close(self) -> None:
        """Close the connections of this process."""
        for key in [key for key in list(self._pools) if key[0] == os.getpid()]:
            self._pools.pop(key).close()

    def _read(self, said: httpcore.Response) -> bytes:
        body = bytearray()
        for chunk in said.iter_stream():
            body += chunk
            if len(body) > self._max_bytes:
                raise NoAnswerError(f"its answer has more than {self._max_bytes} bytes")
        return bytes(body)

    def _pool(self, url: httpx.URL, *, idle: int) -> httpcore.ConnectionPool:
        """Return connections of this process, of which up to ``idle`` are kept."""
        pid = os.getpid()
        pool = self._pools.get((pid, idle))
        if pool is None:
            self._drop_inherited(pid)
            if self._ssl_context is None and url.scheme == "https":
                self._ssl_context = httpx.create_ssl_context()
            new = httpcore.ConnectionPool(
                self._ssl_context,
                max_connections=None,
                max_keepalive_connections=idle,
                keepalive_expiry=_IDLE_S,
                network_backend=self._network,
            )
            pool = self._pools.setdefault((pid, idle), new)  # of two threads that come at once, one made it in vain
        return pool

    def _drop_inherited(self, pid: int) -> None:
        """Close what came along in a fork: this process's descriptors; the parent's connections go on.

        Not by the pool's own `close`, whose lock another thread of the parent may have held at the fork.
        """
        for key in [key for key in list(self._pools) if key[0] != pid]:
            pool = self._pools.pop(key, None)
            for connection in pool.connections if pool is not None else ():
                connection.close()


@contextmanager
def _translated(turn: _Turn) -> Iterator[None]:
    """Say what is known; the texts and causes of httpcore's errors, which may hold anything, are left out."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        if isinstance(error, httpcore.TimeoutException):
            why = "it did not answer in time" if turn.sent else "no connection stood in time"
        elif turn.sent:
            why = "it broke off"
        else:
            why = "it cannot be reached" if turn.certified else "it has no valid certificate"
        raise (NoAnswerError(why) if turn.sent else NotSentError(why)) from None


# --- the connection -------------------------------------------------------------------------------


class _Network(httpcore.NetworkBackend):
    """Connects, reads and writes within the time of the exchange that the calling thread is in."""

    def __init__(self) -> None:
        self._tcp = httpcore.SyncBackend()
        self._turns = threading.local()

    @contextmanager
    def turn(self, turn: _Turn) -> Iterator[None]:
        self._turns.now = turn
        try:
            yield
        finally:
            del self._turns.now

    @property
    def now(self) -> _Turn:
        turn: _Turn = self._turns.now
        return turn

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        turn = self.now
        give_up_at = time.monotonic() + turn.left(timeout, httpcore.ConnectTimeout)
        addresses = _look_up(host, port, give_up_at)
        failure: Exception = httpcore.ConnectError()
        for number, address in enumerate(addresses):
            share_s = (give_up_at - time.monotonic()) / (len(addresses) - number)
            if share_s <= 0:
                raise httpcore.ConnectTimeout
            try:
                stream = self._tcp.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Stream(stream, self)
        raise failure


@frozen(eq=False)
class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends with the exchange."""

    _stream: httpcore.NetworkStream
    _network: _Network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.now.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        turn = self._network.now
        wait_s = turn.left(timeout, httpcore.WriteTimeout)
        turn.sent = turn.sent or bool(buffer)
        self._stream.write(buffer, wait_s)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        turn = self._network.now
        wait_s = turn.left(timeout, httpcore.ConnectTimeout)
        try:
            return _Stream(self._stream.start_tls(ssl_context, server_hostname, wait_s), self._network)
        except httpcore.ConnectError as error:
            turn.certified = not isinstance(error.__cause__, ssl.SSLCertVerificationError)
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _look_up(host: str, port: int, give_up_at: float) -> list[str]:
    """Return the host's addresses in time: resolvers take none of their own."""
    answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def work() -> None:
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            found = []
        answers.put(list(dict.fromkeys(found))[:_MAX_ADDRESSES])

    threading.Thread(target=work, name="renderdispatch-resolve", daemon=True).start()
    try:
        addresses = answers.get(timeout=max(0.0, give_up_at - time.monotonic()))
    except queue.Empty:
        raise httpcore.ConnectTimeout from None
    if not addresses:
        raise httpcore.ConnectError
    return addresses

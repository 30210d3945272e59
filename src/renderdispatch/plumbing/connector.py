"""How is a host reached, and how does each wait for it end?

`Connector` opens every connection of this library, as a network backend of httpcore. Each request is an `Exchange` with
a `Stop`. The stop's deadline bounds name resolution, connecting, TLS, and each read and write, however slowly bytes
trickle. A request to stop ends the wait that is in progress, from another thread. The exchange also knows whether
anything was sent: only that tells a request that was surely not made from one that may have been.

httpcore hands the timeouts of a request to the connection as they are. So a timeout that knows its exchange
(`Exchange.timeouts`) is how a connection learns which exchange it serves, whichever thread reads.
"""

from __future__ import annotations

import errno
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any, Final

import httpcore
from attrs import define, field

from renderdispatch.plumbing.stop import Stop

Resolver = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host, as text; raises `OSError` if there are none."""

_MAX_ADDRESSES: Final = 4
_LONGEST_WAIT_S: Final = 86_400.0
_CONNECTING: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR})


@define(eq=False)
class Exchange:
    """One request and its response.

    Args:
        stop: Its deadline bounds each wait. Register `cut` with it, so that a request to stop ends the wait.
    """

    stop: Stop = field(factory=Stop)
    sent: bool = False
    """Whether anything may have been sent."""
    certified: bool = True
    """False once the host showed a certificate that is not valid."""
    was_cut: bool = False
    _end_wait: Callable[[], object] = field(default=lambda: None)

    def timeouts(self, *, connect_s: float, stall_s: float) -> dict[str, float]:
        """Return the timeouts that bind a request to this exchange, as httpcore's extension takes them."""
        connect, stall = _Timeout(connect_s), _Timeout(stall_s)
        connect.exchange = stall.exchange = self
        return {"connect": connect, "read": stall, "write": stall, "pool": stall}

    def cut(self) -> None:
        """End the wait that another thread is in, and let no other begin. It takes no lock; see `Stop`."""
        self.was_cut = True
        self._end_wait()

    def begin(self, end_wait: Callable[[], object]) -> None:
        """Begin a wait that ``end_wait`` ends.

        Raises:
            httpcore.NetworkError: The exchange was cut.
        """
        self._end_wait = end_wait
        if self.was_cut:  # asked only after `cut` can see the wait: one of the two notices the other
            raise httpcore.NetworkError("it was cut off")

    def left_s(self, timeout: float | None, late: type[Exception]) -> float:
        """Return how many seconds a wait may take, at most ``timeout``; raise ``late`` if none are left."""
        left = min(self.stop.remaining_s, _LONGEST_WAIT_S if timeout is None else timeout)
        if left <= 0:
            raise late
        return left


class _Timeout(float):
    """Seconds that know the exchange which they bound."""

    exchange: Exchange


class Connection(httpcore.NetworkStream):
    """A TCP connection, later with TLS, whose every wait is bounded by the exchange that it serves.

    Args:
        connected: The socket; it is closed with the connection.
        exchange: The one that it serves first; a request that reuses the connection brings its own.
    """

    def __init__(self, connected: socket.socket, exchange: Exchange) -> None:
        self._socket = connected
        self._exchange = exchange
        self._asked = False

    @classmethod
    def open(cls, address: str, port: int, timeout: float, exchange: Exchange) -> Connection:
        """Connect to an address; raise `httpcore.ConnectError` or `httpcore.ConnectTimeout` if that fails."""
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            family, kind, protocol, _, target = found[0]
            connection = cls(socket.socket(family, kind, protocol), exchange)
        except OSError as error:
            raise httpcore.ConnectError from error
        try:
            connection._connect(target, timeout)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, target: Any, timeout: float) -> None:
        with self._wait(timeout, httpcore.ConnectTimeout, httpcore.ConnectError) as exchange:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wait_s = self._socket.gettimeout()
            self._socket.setblocking(False)
            code = self._socket.connect_ex(target)
            exchange.begin(self.shut_down)  # a cut before `connect_ex` met a socket that did nothing yet
            if code in _CONNECTING:
                if not _poll(self._socket, select.POLLOUT, wait_s or 0.0):
                    raise TimeoutError
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "cannot connect")

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what arrives next; empty at the end."""
        with self._wait(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            if self._asked and hasattr(socket, "TCP_QUICKACK"):
                # A server whose sockets lack TCP_NODELAY (uvicorn's, with several workers) sends the body of a response
                # only once its headers were acknowledged, and Linux delays that by 40 ms.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self._asked = False
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``; ``timeout`` bounds the time in which nothing moves."""
        with self._wait(timeout, httpcore.WriteTimeout, httpcore.WriteError) as exchange:
            exchange.sent, self._asked = exchange.sent or bool(buffer), True
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._socket.send(rest) :]
                if rest:
                    self._socket.settimeout(exchange.left_s(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Shake hands, and go on encrypted."""
        try:
            with self._wait(timeout, httpcore.ConnectTimeout, httpcore.ConnectError) as exchange:
                encrypted = ssl_context.wrap_socket(
                    self._socket, server_hostname=server_hostname, do_handshake_on_connect=False
                )
                self._socket = encrypted
                exchange.begin(self.shut_down)  # a cut meanwhile may have met the socket that is no longer used
                try:
                    encrypted.do_handshake()
                except ssl.SSLCertVerificationError:
                    exchange.certified = False
                    raise
        except BaseException:
            self.close()
            raise
        return self

    def shut_down(self) -> None:
        """End a wait of another thread on this connection; the connection is of no use afterwards."""
        with suppress(OSError):
            # not `SSLSocket.shutdown`: it drops the TLS layer first, and what another thread sends at that moment
            # would leave in the clear
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks of an idle connection: whether it is readable, which means that it ended."""
        if info == "is_readable":
            return self._socket.fileno() < 0 or _poll(self._socket, select.POLLIN, 0.0)
        return None

    @contextmanager
    def _wait(self, timeout: float | None, late: type[Exception], broken: type[Exception]) -> Iterator[Exchange]:
        """Bound the block's waits by ``timeout`` and by the exchange; name what is raised as httpcore does."""
        exchange = self._exchange = getattr(timeout, "exchange", self._exchange)
        exchange.begin(self.shut_down)
        try:
            self._socket.settimeout(exchange.left_s(timeout, late))
            yield exchange
        except TimeoutError:
            raise late from None
        except (OSError, ValueError) as error:  # ssl raises ValueErrors for names that no certificate can have
            raise broken from error
        if exchange.was_cut:  # a cut reads like the end of a body that has no declared length
            raise httpcore.NetworkError("it was cut off")


class Connector(httpcore.NetworkBackend):
    """Finds the addresses of a host, has them judged, and connects to the first that answers.

    Args:
        resolve: Finds a host's addresses; by default the system's resolver.
        judge: Called with each address of a host before anything is sent to any of them, not even a SYN. It raises to
            refuse the host.
    """

    def __init__(self, *, resolve: Resolver | None = None, judge: Callable[[str], None] | None = None) -> None:
        self._resolve = resolve or _resolve
        self._judge = judge

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> Connection:
        """Connect within ``timeout`` and the exchange that it belongs to; addresses share the time.

        httpcore's other arguments, a local address and socket options, are never set here.
        """
        exchange: Exchange = getattr(timeout, "exchange", None) or Exchange()
        until = time.monotonic() + exchange.left_s(timeout, httpcore.ConnectTimeout)
        addresses = self._addresses(host, port, until, exchange)
        failure: Exception = httpcore.ConnectError()
        for number, address in enumerate(addresses):
            share_s = (until - time.monotonic()) / (len(addresses) - number)
            try:
                return Connection.open(address, port, share_s, exchange)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int, until: float, exchange: Exchange) -> list[str]:
        try:
            found: Sequence[str] = [str(ip_address(host))]
        except ValueError:
            found = self._look_up(host, port, until, exchange)
        if self._judge is not None:
            for address in found:
                self._judge(address)
        return list(dict.fromkeys(found))[:_MAX_ADDRESSES]

    def _look_up(self, host: str, port: int, until: float, exchange: Exchange) -> Sequence[str]:
        """Resolve a name in a thread of its own: resolvers take no timeout and cannot be interrupted."""
        answers: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()

        def work() -> None:
            found: Sequence[str] = ()
            with suppress(OSError, UnicodeError):
                found = self._resolve(host, port)
            answers.put(found)

        exchange.begin(lambda: answers.put(()))
        try:
            threading.Thread(target=work, name="renderdispatch-resolve", daemon=True).start()
        except RuntimeError:  # the process has as many threads as it may; nothing was sent
            raise httpcore.ConnectError from None
        try:
            found = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise httpcore.ConnectTimeout from None
        if not found:
            raise httpcore.ConnectError
        return found


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _poll(connected: socket.socket, event: int, seconds: float) -> bool:
    """Wait until a socket is ready, or broken; not by `select`, which knows no descriptors above 1023."""
    poll = select.poll()
    poll.register(connected, event)
    return bool(poll.poll(seconds * 1000))

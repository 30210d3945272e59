"""How are requests made over HTTP, so that each surely ends?

By a `Client`, which stands on the one `connector.Connector`. A request has one time for name resolution, every address,
TLS, the headers and the last byte of the body. Redirects are not followed and cookies are not kept. A failure says
whether anything was sent, and its text holds no secret. Connections are shared between threads, and never between
processes: after a fork each side has its own.

This module loads httpcore at the first request, so that its constants cost nothing.
"""

from __future__ import annotations

import base64
import logging
import os
import ssl
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

from attrs import evolve, field, frozen

from renderdispatch.plumbing.failures import Translation, translated
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.plumbing.stop import Stop

if TYPE_CHECKING:
    import httpcore
    import httpx

    from renderdispatch.plumbing.connector import Exchange

PIECE_BYTES: Final = 1 << 18
"""The size of the pieces that bodies are sent in; 64 KiB cost a third more CPU, and 1 MiB saves none."""

STALL_S: Final = 30.0
"""After how long a transfer on which nothing moves has failed."""

CONNECT_S: Final = 10.0
_IDLE: Final = 16
_IDLE_S: Final = 20.0
_PORTS: Final = {"http": 80, "https": 443}
_PROXIES: Final = frozenset({"http", "socks5", "socks5h"})  # TLS to a proxy would need TLS within TLS
_URL_CHARS: Final = "!#$%&'()*+,/:;=?@[]~"


class NetError(Exception):
    """There is no whole response. The text continues a sentence that names the host, and holds no secret."""


class NotSentError(NetError):
    """Nothing was sent: the service never heard of the request."""


class BadUrlError(NotSentError):
    """The URL, or a header, is not valid; nothing was sent."""


class BadCertificateError(NotSentError):
    """The host has no valid certificate; nothing was sent."""


class NoResponseError(NetError):
    """The request, or a part of it, was sent, and no whole response came."""


@frozen
class Response:
    """A response; header names are in lower case.

    Args:
        headers: Each byte of a value is one character, as in Latin-1. Values of a repeated header are joined by commas.
        pieces: The body, as it comes.
        body: What `read` read of it.
        whole: Whether ``body`` is all of it.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    pieces: Iterator[bytes] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    whole: bool = False

    def read(self, max_bytes: int) -> Response:
        """Return the response with at most ``max_bytes`` of its body."""
        body = bytearray()
        for piece in self.pieces:
            body += piece
            if len(body) > max_bytes:
                break
        return evolve(self, body=bytes(body[:max_bytes]), whole=len(body) <= max_bytes)


@frozen
class _Connections:
    """What one process has open."""

    pools: dict[tuple[bytes, bytes, bool], httpcore.ConnectionPool] = field(factory=dict)
    closing: Stop = field(factory=Stop)

    def close_inherited(self) -> None:
        """Close this process's descriptors of what came along in a fork; the parent's connections go on.

        Not by the pool's own `close`, whose lock another thread of the parent may have held at the fork.
        """
        for pool in self.pools.values():
            for connection in pool.connections:
                connection.close()


class Client:
    """Makes requests. Safe to share between threads, and across forks.

    Args:
        headers: Sent with every request; they may hold secrets.
        total_s: Seconds for a request, from name resolution to the last byte of the body; None is no limit but the
            request's ``stop``.
        connect_s: Seconds of these until the connection is made.
        stall_s: Seconds in which nothing moves.
        proxies: Whether proxies of the environment are used.
        resolve: As of `Connector`.
        judge: As of `Connector`.
        ssl_context: Judges certificates; by default the usual authorities, or those of ``SSL_CERT_FILE``.
    """

    def __init__(
        self,
        headers: Mapping[str, str] | None = None,
        *,
        total_s: float | None = None,
        connect_s: float = CONNECT_S,
        stall_s: float = STALL_S,
        proxies: bool = False,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
        judge: Callable[[str], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        logging.getLogger("httpcore").setLevel(logging.WARNING)  # it logs headers and URLs
        self._headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "renderdispatch"}
        self._headers |= _lowered(headers)
        self._total_s = total_s
        self._waits = {"connect_s": connect_s, "stall_s": stall_s}
        self._proxies = proxies
        self._resolve, self._judge = resolve, judge
        self._ssl_context = ssl_context
        self._connections = PerProcess(_Connections, inherited=_Connections.close_inherited)

    def request(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        fresh: bool = False,
        stop: Stop | None = None,
        max_bytes: int = 1 << 20,
    ) -> Response:
        """Make one request, once, and return the response with at most ``max_bytes`` of its body; see `stream`."""
        with self.stream(method, url, headers=headers, body=body, fresh=fresh, stop=stop) as response:
            return response.read(max_bytes)

    @contextmanager
    def stream(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        fresh: bool = False,
        stop: Stop | None = None,
    ) -> Iterator[Response]:
        """Make one request, once, and yield the response once its headers are here.

        Args:
            method: Of HTTP.
            url: Where to.
            headers: Sent beside the client's.
            body: What is sent; what its iterator raises passes. Without a ``content-length`` pieces go in chunks.
            fresh: Whether to use a new connection. A service may close an idle one at this very moment; then it would
                not be known whether the request arrived.
            stop: Bounds every wait by its deadline; a request to stop cuts the connection.

        Raises:
            NotSentError: The service never heard of it.
            NoResponseError: It may have.
        """
        import httpcore

        from renderdispatch.plumbing.connector import Exchange

        target, login = _read_url(url)
        sent = {**self._headers, **_lowered(headers)}
        if not all(name.isascii() and value.isascii() for name, value in sent.items()):
            raise BadUrlError("cannot be asked: a header is not valid")
        if login is not None:
            sent["authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        closing = self._connections.get().closing
        with ExitStack() as stack:
            exchange = Exchange(stack.enter_context(Stop(timeout_s=self._total_s, parent=stop)))
            stack.callback(closing.forget, exchange.cut)
            for stopping in (exchange.stop, closing):
                stopping.on_request(exchange.cut)
            kinds = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)
            table: Translation = dict.fromkeys(kinds, lambda error: _failure(error, exchange))
            stack.enter_context(translated(table))
            response = stack.enter_context(
                self._pool(target, fresh=fresh).stream(
                    method,
                    target,
                    headers=[("Host", _host_of(target)), *sent.items()],
                    content=body,
                    extensions={"timeout": exchange.timeouts(**self._waits)},
                )
            )
            yield Response(response.status, _received(response.headers), _pieces(response, table))

    def close(self) -> None:
        """Cut off what is running in this process, and close its connections. A later request opens others."""
        if (connections := self._connections.take()) is not None:
            connections.closing.request("the client is closed")
            for pool in connections.pools.values():
                pool.close()

    def _pool(self, url: httpcore.URL, *, fresh: bool) -> httpcore.ConnectionPool:
        """Return this process's connections for ``url``; those of a ``fresh`` pool are used once."""
        pools = self._connections.get().pools
        key = (url.scheme, url.host if self._proxies else b"", fresh)
        if (pool := pools.get(key)) is None:
            pool = pools.setdefault(key, self._new_pool(url, fresh=fresh))  # of two at once, one is not used
        return pool

    def _new_pool(self, url: httpcore.URL, *, fresh: bool) -> httpcore.ConnectionPool:
        import httpcore

        from renderdispatch.plumbing.connector import Connector

        options: dict[str, Any] = {
            "ssl_context": (self._ssl_context or _authorities()) if url.scheme == b"https" else None,
            "max_connections": None,
            "max_keepalive_connections": 0 if fresh else _IDLE,
            "keepalive_expiry": _IDLE_S,
            "network_backend": Connector(resolve=self._resolve, judge=self._judge),
        }
        proxy = _proxy_for(url) if self._proxies else None
        if proxy is None:
            return httpcore.ConnectionPool(**options)
        kind = httpcore.SOCKSProxy if proxy.startswith("socks") else httpcore.HTTPProxy
        try:
            target, login = _read_url(proxy, schemes=_PROXIES)
            return cast("httpcore.ConnectionPool", kind(proxy_url=target, proxy_auth=login, **options))
        except (BadUrlError, RuntimeError):  # httpcore raises the latter without socksio
            why = "cannot be asked: the proxy of the environment must be http://, or socks5:// with the package socksio"
            raise BadUrlError(why) from None


def plain_url(url: str) -> SplitResult | None:
    """Return the parts of an http or https URL without user name, query and fragment; None for any other text."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if valid and "@" not in parts.netloc and not parts.query and not parts.fragment else None


def is_loopback(host: str) -> bool:
    """Return whether a host is, on every machine, that machine itself."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def etag_of(value: str | None) -> str | None:
    """Return the etag that a header holds, without quotes."""
    return value.removeprefix("W/").strip('"') if value else None


# --- parts ----------------------------------------------------------------------------------------


def _failure(error: Exception, exchange: Exchange) -> NetError:
    """Say what is known. The text and the cause of httpcore's error are left out, for they may hold anything."""
    import httpcore

    if exchange.was_cut:
        why = "was cut off"
    elif isinstance(error, httpcore.TimeoutException):
        why = "did not answer in time" if exchange.sent else "could not be connected to in time"
    elif exchange.sent:
        why = "broke off"
    elif exchange.certified:
        why = "cannot be reached"
    else:
        return BadCertificateError("has no valid certificate")
    return NoResponseError(why) if exchange.sent else NotSentError(why)


def _pieces(response: httpcore.Response, table: Translation) -> Iterator[bytes]:
    with translated(table):
        yield from response.iter_stream()


def _received(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    received: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip(" \t")  # A0 may end a letter of UTF-8
        received[key] = f"{received[key]}, {text}" if received.get(key, text) != text else text
    return received


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _read_url(
    url: str | httpx.URL, *, schemes: Collection[str] = _PORTS.keys()
) -> tuple[httpcore.URL, tuple[str, str] | None]:
    """Return the URL as httpcore takes it, and the user name and password that it holds.

    Raises:
        BadUrlError: It is not an HTTP URL.
    """
    import httpcore

    if not isinstance(url, str):
        return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path), None
    try:
        parts = urlsplit(url)
        port = None if parts.port == _PORTS.get(parts.scheme) else parts.port  # signatures leave the default one out
        host = (parts.hostname or "").encode("idna" if not url.isascii() else "ascii")
    except ValueError:
        raise BadUrlError("cannot be asked: its URL is not valid") from None
    if parts.scheme not in schemes or not host:
        raise BadUrlError("cannot be asked: its URL is not valid")
    target = quote(f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}", safe=_URL_CHARS)
    login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    return httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target), login


def _host_of(url: httpcore.URL) -> str:
    """Return what the ``Host`` header says."""
    host = url.host.decode()
    return (f"[{host}]" if ":" in host else host) + (f":{url.port}" if url.port is not None else "")


def _proxy_for(url: httpcore.URL) -> str | None:
    """Return the proxy that the environment, or the system's settings, name for a URL."""
    if sys.platform == "linux" and not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # loads much

    proxies = {} if proxy_bypass(url.host.decode()) else getproxies()
    found = proxies.get(url.scheme.decode()) or proxies.get("all")
    return found if not found or "://" in found else f"http://{found}"


def _authorities() -> ssl.SSLContext:
    """Return what judges certificates: certifi's authorities, or those that the environment names."""
    import certifi

    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=None if file else folder)
    return ssl.create_default_context(cafile=certifi.where())

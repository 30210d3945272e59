"""How is audio read from a URL that a stranger gave?

Under guard, for a server that fetches what it is told is a way into the network behind it (SSRF). `GuardedFetcher`
decides about addresses, not about names: a host's name is resolved once, every address that it has is judged, and the
connection goes to such an address and to no other. TLS and the ``Host`` header still use the name. Redirects are
followed by hand, and each target is judged like the first. Nothing is sent to a refused address, not even a SYN.

**Why not a library's address check.** httpx-secure 2.0 is the best kept one: it hooks the same place, the network
backend of httpcore. But it is for asynchronous clients alone, it reaches into private attributes, it connects to find
out the address that it then judges (so refused addresses do see a SYN), and it trusts `ipaddress.is_global`, which is
True for 6to4 (``2002:7f00:1::`` is 127.0.0.1) and varies with Python's patch release. So the decision is `is_global`
*and* the networks below, which are IANA's special-purpose registries: of IPv6 only 2000::/3 is public at all, without
those parts of it that carry IPv4 addresses; mapped, NAT64, link-local and local addresses lie outside of it. The
transport is httpcore's, through its public interface.

What it cannot know: a NAT64 prefix of the operator's own. Proxies of the environment are not used, for a proxy would
resolve names by itself.
"""

from __future__ import annotations

import ipaddress
import logging
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from email.message import Message
from typing import Any, Final
from urllib.parse import unquote

import httpcore
import httpx
from attrs import frozen

from renderdispatch.errors import AudioError, ConfigurationError, InvalidRequestError, StorageUnavailableError
from renderdispatch.protocols import FetchedAudio

Resolver = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host, as text; raises `OSError` where there are none."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARS: Final = 8192
_MAX_ADDRESSES: Final = 4
_CONNECT_S: Final = 10.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN: Final = frozenset({408, 425, 429})

_PRINTABLE: Final = re.compile(r"[^\s\\\x00-\x20\x7f-\xa0]+")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_PATTERN: Final = re.compile(rf"(?:\*\.)?{_NAME.pattern}|[0-9a-f:.]+")

_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by carriers, and metadata of Alibaba
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's wire server
            "169.254.0.0/16",  # link-local, and metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments, and metadata of Oracle
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)
_UNICAST: Final = ipaddress.ip_network("2000::/3")
_PRIVATE: Final = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128")
"""What ``allow_private`` allows: no link-local address, where metadata lies, and no other way to spell one."""


def is_public(address: str) -> bool:
    """Return whether an address is one that anybody on the internet may be asked to fetch from."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return _is_public(found)


def _is_public(address: _Address) -> bool:
    if address.version == 6 and address not in _UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class GuardedFetcher:
    """Reads audio from URLs of strangers: an `AudioFetcher`.

    Args:
        allow_hosts: The only hosts that may be fetched from: names, or ``*.example.com`` for every name below one.
            Empty allows every public host. The best guard there is, where the hosts are known.
        allow_http: Also http, for development. A redirect from https to http is refused all the same.
        allow_private: Also loopback and private networks, for development; metadata addresses are refused all the same.
        allow_networks: Also these, such as ``10.1.2.3/32``: a host of one's own.
        max_bytes: How large audio may be.
        total_s: Seconds for everything, from the look-up of the name to the last byte.
        stall_s: Seconds without a byte.
        max_redirects: How many redirects are followed.
        resolve: Finds a host's addresses.
        ssl_context: What judges certificates; by default the usual authorities.

    Raises:
        ConfigurationError: A host pattern or a network makes no sense.
    """

    def __init__(
        self,
        *,
        allow_hosts: Iterable[str] = (),
        allow_http: bool = False,
        allow_private: bool = False,
        allow_networks: Iterable[str] = (),
        max_bytes: int = 2 << 30,
        total_s: float = 900.0,
        stall_s: float = 20.0,
        max_redirects: int = 3,
        resolve: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts = tuple(host.strip().lower() for host in allow_hosts)
        if any(_PATTERN.fullmatch(host) is None for host in self._hosts):
            raise ConfigurationError("an allowed host is a name such as media.example.com, or *.example.com")
        self._schemes = ("https", "http") if allow_http else ("https",)
        try:
            self._networks = [*map(ipaddress.ip_network, (*allow_networks, *(_PRIVATE if allow_private else ())))]
        except ValueError:
            raise ConfigurationError("an allowed network is one such as 10.1.2.3/32") from None
        self._max_bytes = max_bytes
        self._total_s = total_s
        self._stall_s = stall_s
        self._max_redirects = max_redirects
        self._resolve = resolve or _getaddrinfo
        self._ssl_context = ssl_context

    def check(self, url: str) -> None:
        """Refuse what can be refused without looking up a name.

        Raises:
            InvalidRequestError: ``audio.url-refused``; the message never quotes the URL.
        """
        self._read(url)

    @contextmanager
    def fetch(self, url: str) -> Iterator[FetchedAudio]:
        """Open the URL for streamed reading.

        Raises:
            InvalidRequestError: ``audio.url-refused``: by the guard; ``audio.url-answer``: by the host.
            AudioError: ``audio.too-large``, ``audio.empty``, or ``audio.invalid`` where it is surely none.
            StorageUnavailableError: The host does not answer, breaks off, or is too slow.
        """
        logging.getLogger("httpcore").setLevel(logging.WARNING)  # it logs headers, and so redirects
        backend = _GuardedBackend(self._addresses, give_up_at=time.monotonic() + self._total_s)
        context = self._ssl_context or httpx.create_ssl_context(trust_env=False)
        with ExitStack() as stack:
            pool = stack.enter_context(httpcore.ConnectionPool(context, network_backend=backend, max_connections=1))
            response, found = self._follow(pool, self._read(url), stack)
            headers = _headers(response)
            self._check_answer(response.status, headers)
            yield FetchedAudio(
                chunks=self._chunks(response),
                content_type=headers.get("content-type"),
                filename=_filename(headers, found),
            )

    def _follow(
        self, pool: httpcore.ConnectionPool, url: httpx.URL, stack: ExitStack
    ) -> tuple[httpcore.Response, httpx.URL]:
        """Return the first answer that is no redirect, and where it came from; ``stack`` closes it."""
        for _ in range(self._max_redirects + 1):
            with ExitStack() as hop, _translated():
                response = hop.enter_context(self._get(pool, url))
                location = _headers(response).get("location")
                if response.status not in _REDIRECTS or location is None:
                    stack.push(hop.pop_all())
                    return response, url
            url = self._redirected(url, location)
        raise _refused(f"it redirects more than {self._max_redirects} times")

    def _get(self, pool: httpcore.ConnectionPool, url: httpx.URL) -> Any:
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        headers: list[tuple[bytes | str, bytes | str]] = [
            ("Host", url.netloc),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "renderdispatch"),
        ]
        waits = {"connect": _CONNECT_S, "read": self._stall_s, "write": self._stall_s, "pool": self._stall_s}
        return pool.stream("GET", target, headers=headers, extensions={"timeout": waits})

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            joined = str(url.join(location))
        except httpx.InvalidURL:
            raise _refused("it redirects to what is no URL") from None
        found = self._read(joined)
        if url.scheme == "https" and found.scheme != "https":
            raise _refused("it redirects from https to http")
        return found

    # --- the guard

    def _read(self, url: str) -> httpx.URL:
        """Return the URL, once scheme, host and shape are allowed; a host that is an address is judged here."""
        if len(url) > MAX_URL_CHARS or _PRINTABLE.fullmatch(url) is None:
            raise _refused("it is no URL, is too long, or holds spaces, backslashes or control characters")
        if "@" in url.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]:
            raise _refused("it holds a user name")
        try:
            read = httpx.URL(url)
            host = read.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError):
            raise _refused("it is no URL") from None
        if read.port is not None and not 0 < read.port < 65536:
            raise _refused("its port is none")
        if read.scheme not in self._schemes:
            raise _refused(f"only {' and '.join(self._schemes)} URLs are taken")
        address = _literal(host)
        if self._hosts and not any(_matches(host, allowed) for allowed in self._hosts):
            raise _refused("its host is not on the list of allowed hosts")
        if address is not None:
            self._judge(address)
        return read

    def _judge(self, address: _Address) -> None:
        if not _is_public(address) and not any(address in network for network in self._networks):
            raise _refused("its host is no public address")

    def _addresses(self, host: str, port: int, give_up_at: float) -> list[str]:
        """Return the host's addresses. One of them that is not allowed is enough to refuse them all."""
        literal = _literal(host)
        if literal is not None:
            found = [literal]
        else:
            said = _within(give_up_at, lambda: self._resolve(host, port))
            try:
                found = [ipaddress.ip_address(address) for address in dict.fromkeys(said)]
            except ValueError:
                raise _refused("its host has an address that is none") from None
        for address in found:
            self._judge(address)
        return [str(address) for address in found[:_MAX_ADDRESSES]]

    # --- the answer

    def _check_answer(self, status: int, headers: dict[str, str]) -> None:
        if status in _TRY_AGAIN or status >= 500:
            raise StorageUnavailableError(f"the host of the audio's URL answered {status}")
        if status != 200:
            raise InvalidRequestError(f"the host of the audio's URL answered {status}", code="audio.url-answer")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise AudioError("the host of the audio's URL sends it compressed, unasked", code="audio.invalid")
        if headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            raise AudioError("the audio's URL leads to a web page, not to audio", code="audio.invalid")

    def _chunks(self, response: httpcore.Response) -> Iterator[bytes]:
        received = 0
        with _translated():
            for chunk in response.iter_stream():
                received += len(chunk)
                if received > self._max_bytes:
                    raise self._too_large()
                yield chunk
        if not received:
            raise AudioError("the audio's URL leads to nothing: its answer is empty", code="audio.empty")

    def _too_large(self) -> AudioError:
        return AudioError(f"the audio behind the URL has more than {self._max_bytes} bytes", code="audio.too-large")


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the audio's URL is refused: {why}", code="audio.url-refused")


def _literal(host: str) -> _Address | None:
    """Return the address that a host is, None for a name.

    Raises:
        InvalidRequestError: It is neither: an address that is spelled as only some resolvers read it (``0x7f.1``,
            ``2130706433``, ``127.1``), one with a zone, a name with a trailing dot or other characters than names have.
    """
    try:
        if ":" in host and "%" not in host:
            return ipaddress.IPv6Address(host)
        if _NUMBER.fullmatch(host):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise _refused("its host is a number that is no address") from None
    if len(host) > 253 or _NAME.fullmatch(host) is None:
        raise _refused("its host is no name")
    return None


def _matches(host: str, allowed: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _within(give_up_at: float, look_up: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Return what a look-up says, in time: resolvers take none of their own."""
    answers: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(look_up())
        except (OSError, UnicodeError) as error:
            answers.put(OSError(type(error).__name__))

    threading.Thread(target=work, name="renderdispatch-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(0.0, min(_CONNECT_S, give_up_at - time.monotonic())))
    except queue.Empty:
        raise httpcore.ConnectTimeout from None
    if isinstance(answer, OSError) or not answer:
        raise httpcore.ConnectError
    return answer


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1").strip() for name, value in response.headers}


def _filename(headers: dict[str, str], url: httpx.URL) -> str | None:
    """Return the name that the answer gives itself, or the last part of its path."""
    message = Message()
    message["content-disposition"] = headers.get("content-disposition", "")
    named = None
    with suppress(ValueError, TypeError):  # an absurd charset, or number of a part, in what a stranger sent
        named = message.get_filename()
    return named or unquote(url.raw_path.decode("ascii").partition("?")[0]).rpartition("/")[2] or None


@contextmanager
def _translated() -> Iterator[None]:
    """Name httpcore's errors as this library does; their texts and causes, which may hold the URL, are left out."""
    try:
        yield
    except httpcore.TimeoutException:
        raise StorageUnavailableError("the host of the audio's URL did not answer in time") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
        what = "cannot be reached" if isinstance(error, httpcore.ConnectError) else "broke off its answer"
        raise StorageUnavailableError(f"the host of the audio's URL {what}") from None


# --- the connection -------------------------------------------------------------------------------


class _GuardedBackend(httpcore.NetworkBackend):
    """Connects to addresses that were judged, and to nothing else; everything ends at ``give_up_at``."""

    def __init__(self, addresses: Callable[[str, int, float], list[str]], *, give_up_at: float) -> None:
        self._addresses = addresses
        self._give_up_at = give_up_at
        self._tcp = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError()
        for address in self._addresses(host, port, self._give_up_at):
            try:
                stream = self._tcp.connect_tcp(
                    address, port, _left(self._give_up_at, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._give_up_at)
        raise failure


@frozen
class _TimedStream(httpcore.NetworkStream):
    """A connection that ends in time, also where a host sends a byte every now and then."""

    _stream: httpcore.NetworkStream
    _give_up_at: float

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._give_up_at, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._give_up_at, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._give_up_at, timeout))
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise _refused("its host has no valid certificate") from None
            raise
        return _TimedStream(stream, self._give_up_at)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(give_up_at: float, timeout: float | None) -> float:
    """Return how long an operation may take, at most ``timeout``."""
    left = give_up_at - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if timeout is None else min(left, timeout)

"""How is audio read from a URL that a stranger gave?

Under guard: a server that fetches any URL it is given is a way into the network behind it (SSRF). `GuardedFetcher`
decides about addresses, not about names. It resolves a host's name once and judges every address of the host; the
connection goes to such an address and to no other. TLS and the ``Host`` header still use the name. It follows redirects
itself, and judges each target like the first. Nothing is sent to a refused address, not even a SYN.

**Why not a library's address check.** httpx-secure 2.0 is the best one: it hooks the same place, the network backend of
httpcore. But it is for asynchronous clients only, it uses private attributes, it connects to find out the address that
it then judges (so refused addresses do see a SYN), and it trusts `ipaddress.is_global`, which is True for 6to4
(``2002:7f00:1::`` is 127.0.0.1) and varies with Python's patch release. So an address must be `is_global` *and* outside
of the networks below, which are IANA's special-purpose registries. Of IPv6 only 2000::/3 is public at all, without
those parts of it that carry IPv4 addresses; mapped, NAT64, link-local and local addresses are outside of it. The
connection is that of `plumbing.connector`, with a judge of addresses.

It cannot know a NAT64 prefix of the operator's own. It does not use proxies of the environment, because a proxy would
resolve names by itself.
"""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from email.message import Message
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from renderdispatch.errors import AudioError, ConfigurationError, InvalidRequestError, StorageUnavailableError
from renderdispatch.plumbing.failures import Translation, translated
from renderdispatch.plumbing.net import BadCertificateError, Client, NetError, Response
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import FetchedAudio, StopSignal

if TYPE_CHECKING:
    import httpx

    from renderdispatch.plumbing.connector import Resolver

MAX_URL_CHARS: Final = 8192
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_TRY_AGAIN: Final = frozenset({408, 425, 429})

_COMPRESSED: Final = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
"""Other values (``utf-8``, ``none``, ``aws-chunked``) are mistakes of hosts that send the bytes as they are."""
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
_WHOLE: Final = re.compile(r"bytes 0-(\d{1,18})/(\d{1,18})", re.ASCII)

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
"""What ``allow_private`` allows: no link-local address, because metadata is there, and no other spelling of one."""


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet. Text that is not an address does not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    public = found.is_global and (found.version == 4 or found in _UNICAST)
    return public and not any(found in network for network in _NOT_PUBLIC)


class _Pace(Stop):
    """A stop with one more deadline, which moves on while the host sends fast enough.

    Only the time in which the host is waited for counts: the reader may be slow itself.

    Args:
        timeout_s: As of `Stop`.
        least_bytes: How much must arrive in each window; with 0, anything.
        window_s: Seconds of waiting.
    """

    def __init__(self, *, timeout_s: float, least_bytes: float, window_s: float) -> None:
        super().__init__(timeout_s=timeout_s)
        self._least_bytes, self._window_s = least_bytes, window_s
        self._arrived_bytes, self._left_s = 0, window_s
        self._since_s: float | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until the nearest deadline."""
        if self._since_s is None:
            return super().remaining_s
        return max(0.0, min(super().remaining_s, self._left_s - (time.monotonic() - self._since_s)))

    def begin(self) -> None:
        """Begin to wait for the host, for its response or for more of it."""
        self._since_s = time.monotonic()

    def arrived(self, size: int) -> None:
        """End a wait: so many bytes arrived."""
        if self._since_s is not None:
            self._left_s -= time.monotonic() - self._since_s
            self._since_s = None
        self._arrived_bytes += size
        if self._arrived_bytes >= self._least_bytes:
            self.renew()

    def renew(self) -> None:
        """Begin a new window."""
        self._arrived_bytes, self._left_s, self._since_s = 0, self._window_s, None


class GuardedFetcher:
    """Reads audio from URLs of strangers: an `AudioFetcher`.

    Args:
        allow_hosts: The only hosts that may be fetched from: names, or ``*.example.com`` for every name below one.
            Empty allows every public host. This is the best guard if the hosts are known.
        allow_http: Also http, for development. A redirect from https to http is still refused.
        allow_private: Also loopback and private networks, for development. Metadata addresses are still refused.
        allow_networks: Also these, such as ``10.1.2.3/32`` for a host of your own.
        max_bytes: How large audio may be.
        total_s: Seconds for everything, from name resolution to the last byte.
        stall_s: Seconds without a byte.
        least_bytes_s: How many bytes a second the host must send, on average over every window. A response's headers
            must come within a window. 0: any number.
        window_s: Seconds of such a window. The time in which the audio is stored does not count.
        max_redirects: How many redirects are followed.
        resolve: Finds a host's addresses.
        ssl_context: Judges certificates; by default the usual authorities.

    Raises:
        ConfigurationError: A host pattern or a network is not valid.
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
        least_bytes_s: float = 8192.0,
        window_s: float = 30.0,
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
        self._window_s, self._least_bytes = window_s, least_bytes_s * window_s
        self._max_redirects = max_redirects
        self._client = Client(stall_s=stall_s, resolve=resolve, judge=self._judge, ssl_context=ssl_context)

    def check(self, url: str) -> None:
        """Refuse a URL if that is possible without resolving its name.

        Raises:
            InvalidRequestError: ``audio.url-refused``; the message never quotes the URL.
        """
        self._read(url)

    @contextmanager
    def fetch(self, url: str, *, stop: StopSignal | None = None) -> Iterator[FetchedAudio]:
        """Open the URL for streamed reading.

        Args:
            url: Where the audio is.
            stop: Bounds the fetch by its deadline too; a request to stop cuts the connection.

        Raises:
            InvalidRequestError: ``audio.url-refused``: by the guard; ``audio.url-answer``: by the host.
            AudioError: ``audio.too-large``, ``audio.empty``, or ``audio.invalid`` if it is surely not audio.
            StorageUnavailableError: The host does not answer, breaks off, or is too slow.
        """
        timeout_s = min(self._total_s, math.inf if stop is None else stop.remaining_s)
        bound = _Pace(timeout_s=timeout_s, least_bytes=self._least_bytes, window_s=self._window_s)

        def end() -> None:
            bound.request("told to stop")

        with ExitStack() as stack:
            if stop is not None:
                stack.callback(stop.forget, end)
                stop.on_request(end)
            response, found = self._follow(self._read(url), bound, stack)
            self._check_response(response)
            yield FetchedAudio(
                chunks=self._chunks(response, bound),
                content_type=response.headers.get("content-type"),
                filename=_filename(response.headers, found),
            )

    def _follow(self, url: httpx.URL, stop: _Pace, stack: ExitStack) -> tuple[Response, httpx.URL]:
        """Return the first response that is not a redirect, and where it came from; ``stack`` closes it."""
        for _ in range(self._max_redirects + 1):
            with ExitStack() as hop:
                stop.begin()
                with translated(_FAILURES):
                    response = hop.enter_context(self._client.stream("GET", url, fresh=True, stop=stop))
                stop.renew()
                location = response.headers.get("location")
                if response.status not in _REDIRECTS or location is None:
                    stack.push(hop.pop_all())
                    return response, url
            url = self._redirected(url, location)
        raise _refused(f"it redirects more than {self._max_redirects} times")

    def _redirected(self, url: httpx.URL, location: str) -> httpx.URL:
        import httpx

        try:
            joined = str(url.join(_reference(location)))
        except httpx.InvalidURL:
            raise _refused("it redirects to something that is not a URL") from None
        found = self._read(joined)
        if url.scheme == "https" and found.scheme != "https":
            raise _refused("it redirects from https to http")
        return found

    # --- the guard

    def _read(self, url: str) -> httpx.URL:
        """Return the URL if its scheme, host and shape are allowed; a host that is an address is judged here."""
        import httpx

        if len(url) > MAX_URL_CHARS or _PRINTABLE.fullmatch(url) is None:
            raise _refused("it is not a URL, is too long, or holds spaces, backslashes or control characters")
        if "@" in url.partition("://")[2].partition("/")[0].partition("?")[0].partition("#")[0]:
            raise _refused("it holds a user name")
        try:
            read = httpx.URL(url)
            host = read.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError):
            raise _refused("it is not a URL") from None
        if read.port is not None and not 0 < read.port < 65536:
            raise _refused("its port is not valid")
        if read.scheme not in self._schemes:
            raise _refused(f"only {' and '.join(self._schemes)} URLs are accepted")
        address = _literal(host)
        if self._hosts and not any(fnmatchcase(host, allowed) for allowed in self._hosts):
            raise _refused("its host is not on the list of allowed hosts")
        if address is not None:
            self._judge(address)
        return read

    def _judge(self, address: str) -> None:
        allowed = is_public(address)
        with suppress(ValueError):
            allowed = allowed or any(ipaddress.ip_address(address) in network for network in self._networks)
        if not allowed:
            raise _refused("its host is not a public address")

    # --- the response

    def _check_response(self, response: Response) -> None:
        status, headers = response.status, response.headers
        if status in _TRY_AGAIN or status >= 500:
            raise StorageUnavailableError(f"the host of the audio's URL answered {status}")
        if status != 200 and not (status == 206 and _is_whole(headers.get("content-range", ""))):
            raise InvalidRequestError(f"the host of the audio's URL answered {status}", code="audio.url-answer")
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        if not _COMPRESSED.isdisjoint(map(str.strip, headers.get("content-encoding", "").lower().split(","))):
            raise AudioError("the host of the audio's URL sends it compressed, unasked", code="audio.invalid")
        if headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            raise AudioError("the audio's URL leads to a web page, not to audio", code="audio.invalid")

    def _chunks(self, response: Response, pace: _Pace) -> Iterator[bytes]:
        received = 0
        with translated(_FAILURES):
            pace.begin()
            for chunk in response.pieces:
                pace.arrived(len(chunk))
                received += len(chunk)
                if received > self._max_bytes:
                    raise self._too_large()
                yield chunk
                pace.begin()
        if not received:
            raise AudioError("the audio's URL leads to an empty response", code="audio.empty")

    def _too_large(self) -> AudioError:
        return AudioError(f"the audio behind the URL has more than {self._max_bytes} bytes", code="audio.too-large")


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the audio's URL is refused: {why}", code="audio.url-refused")


def _literal(host: str) -> str | None:
    """Return the address if the host is one, None for a name.

    Raises:
        InvalidRequestError: It is neither: an address that is spelled as only some resolvers read it (``0x7f.1``,
            ``2130706433``, ``127.1``), one with a zone, a name with a trailing dot or with characters that names lack.
    """
    try:
        if ":" in host and "%" not in host:
            return str(ipaddress.IPv6Address(host))
        if _NUMBER.fullmatch(host):
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise _refused("its host is a number that is not an address") from None
    if len(host) > 253 or _NAME.fullmatch(host) is None:
        raise _refused("its host is not a valid name")
    return None


def _reference(location: str) -> str:
    """Return a redirect's target as a URL: servers also send it as raw UTF-8, or in another charset."""
    sent = location.encode("latin-1")
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return quote(sent, safe=_ASCII)


def _is_whole(content_range: str) -> bool:
    """Return whether a host that was not asked for a range sent one that is the whole object."""
    found = _WHOLE.fullmatch(content_range)
    return found is not None and int(found[1]) + 1 == int(found[2])


def _filename(headers: Mapping[str, str], url: httpx.URL) -> str | None:
    """Return the name that the response gives, or the last part of the URL's path."""
    message = Message()
    message["content-disposition"] = headers.get("content-disposition", "")
    named = None
    with suppress(ValueError, TypeError):  # an absurd charset, or number of a part, in what a stranger sent
        named = message.get_filename()
    return named or unquote(url.raw_path.decode("ascii").partition("?")[0]).rpartition("/")[2] or None


_FAILURES: Final[Translation] = {
    BadCertificateError: lambda _: _refused("its host has no valid certificate"),
    NetError: lambda error: StorageUnavailableError(f"the host of the audio's URL {error}"),
}

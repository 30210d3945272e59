"""How is audio read from a URL?"""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from renderdispatch.errors import AudioError, InvalidRequestError, RenderDispatchError, StorageUnavailableError
from renderdispatch.plumbing.fetch import GuardedFetcher
from tests.support.targets import Answer, Target, redirects, says, target

_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def _fetcher(**options: object) -> GuardedFetcher:
    return GuardedFetcher(**{"allow_http": True, "allow_private": True, **options})  # type: ignore[arg-type]


def _url(host: Target, path: str = "/song.wav?signature=secret") -> str:
    return f"http://127.0.0.1:{host.port}{path}"


def _fetch(answer: Answer, **options: object) -> bytes:
    with target(answer) as host, _fetcher(**options).fetch(_url(host)) as fetched:
        return b"".join(fetched.chunks)


def _failure(answer: Answer, **options: object) -> RenderDispatchError:
    with pytest.raises(RenderDispatchError) as failure:
        _fetch(answer, **options)
    assert "secret" not in repr(failure.value)
    assert "127.0.0.1" not in str(failure.value)
    return failure.value


def test_audio_is_streamed() -> None:
    """The audio comes in chunks, with what the answer says of itself."""
    audio = bytes(range(256)) * 4000
    with (
        target(says(audio, content_type="audio/wav", content_disposition='attachment; filename="a song.flac"')) as host,
        _fetcher().fetch(_url(host)) as fetched,
    ):
        chunks = list(fetched.chunks)
        assert b"".join(chunks) == audio
        assert len(chunks) > 1
        assert fetched.content_type == "audio/wav"
        assert fetched.filename == "a song.flac"


def test_a_name_is_found_in_the_path() -> None:
    """Without another name, the last part of the path is one."""
    with target() as host, _fetcher().fetch(_url(host, "/a/b%20c.mp3?x=/y.exe")) as fetched:
        assert fetched.filename == "b c.mp3"


@pytest.mark.parametrize(
    "named",
    [
        "filename*=idna''%ff%ff",
        "filename*=undefined''abc",
        "filename*=utf-8%00''%ff",
        f"filename*{'9' * 5000}*=utf-8''a.wav",
        "filename*=a; filename*0=b",
    ],
    ids=[
        "not-in-its-charset",
        "a-charset-that-only-raises",
        "a-charset-with-a-null",
        "a-part-without-end",
        "whole-and-in-parts",
    ],
)
def test_an_absurd_name_is_passed_over(named: str) -> None:
    """A name that cannot be read costs nothing but the name: the path has another one."""
    answer = says(b"audio", content_disposition=f"attachment; {named}")
    with target(answer) as host, _fetcher().fetch(_url(host)) as fetched:
        assert b"".join(fetched.chunks) == b"audio"
        assert fetched.filename == "song.wav"


def test_the_request_gives_nothing_away() -> None:
    """A request carries no cookies, no credentials and no referrer, and asks for the bytes as they are."""
    with target() as host:
        with _fetcher().fetch(_url(host)):
            pass
        lines = host.requests[0].decode().lower().splitlines()
    assert lines[0] == "get /song.wav?signature=secret http/1.1"
    assert {line.partition(":")[0] for line in lines[1:] if line} == {"host", "accept", "accept-encoding", "user-agent"}
    assert "accept-encoding: identity" in lines


def test_redirects_are_followed() -> None:
    """A few redirects are followed, relative ones too."""
    with target(says(b"audio")) as last, target(redirects(_url(last))) as middle:
        path = _url(middle, "/moved")
        with target(redirects(path)) as first, _fetcher().fetch(_url(first)) as fetched:
            assert b"".join(fetched.chunks) == b"audio"
            assert fetched.filename == "song.wav"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/grüße/à".encode(), b"/gr%C3%BC%C3%9Fe/%C3%A0"),
        ("/grüße à".encode("latin-1"), b"/gr%FC%DFe%20%E0"),
        (b"/a song.wav?q=a b", b"/a%20song.wav?q=a%20b"),
        (b"?signature=%2fa+b%", b"/song.wav?signature=%2fa+b%"),
        (b" ./x#part ", b"/x"),
    ],
    ids=["utf-8", "latin-1", "spaces", "a query alone", "a fragment"],
)
def test_a_redirect_is_read_as_browsers_do(location: bytes, path: bytes) -> None:
    """Servers send the target raw: its bytes are escaped as they are, and what is escaped already stays so."""

    def answer(connection: socket.socket, request: bytes) -> None:
        if b" /song.wav?signature=secret " in request:
            connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: " + location + b"\r\ncontent-length: 0\r\n\r\n")
        else:
            says(b"audio")(connection, request)

    with target(answer) as host, _fetcher().fetch(_url(host)) as fetched:
        assert b"".join(fetched.chunks) == b"audio"
        assert host.requests[1].split(b" ")[1] == path


@pytest.mark.parametrize("coding", ["", "identity", "Identity, none", "aws-chunked", "utf-8"])
def test_bytes_that_come_as_they_are(coding: str) -> None:
    """A content coding that changes nothing, or that is none, is passed over."""
    said = f"HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\nCONTENT-ENCODING:identity\r\n\r\naudio".encode()
    assert _fetch(lambda connection, _: connection.sendall(said)) == b"audio"


def test_a_compressed_answer() -> None:
    """A host that compresses, whatever else its headers say, sends no audio."""
    said = b"HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\ncontent-encoding: x-GZIP\r\n\r\naudio"
    assert _failure(lambda connection, _: connection.sendall(said)).code == "audio.invalid"


def test_a_range_that_is_everything() -> None:
    """A host that answers with the range of the whole object, unasked, has sent the object; a part is refused."""
    assert _fetch(says(b"audio", status="206 Partial Content", content_range="bytes 0-4/5")) == b"audio"
    for part in ("bytes 0-4/6", "bytes 1-5/6", "bytes 0-4/*", ""):
        assert _failure(says(b"audio", status="206 Partial", content_range=part)).code == "audio.url-answer"


def test_redirects_without_end() -> None:
    """More redirects than allowed are refused."""
    with target(redirects("/song.wav")) as host:
        with pytest.raises(InvalidRequestError) as failure, _fetcher(max_redirects=2).fetch(_url(host)):
            pass
        assert failure.value.code == "audio.url-refused"
        assert host.hits == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206, 304])
def test_an_answer_without_audio(status: int) -> None:
    """What another try would not change is the request's fault."""
    failure = _failure(says(b"", status=f"{status} Said"))
    assert isinstance(failure, InvalidRequestError)
    assert failure.code == "audio.url-answer"
    assert str(status) in str(failure)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_asks_to_come_again(status: int) -> None:
    """What another try may change is nobody's fault."""
    assert isinstance(_failure(says(b"", status=f"{status} Said")), StorageUnavailableError)


def test_a_declared_length_that_is_too_large() -> None:
    """Audio that says it is too large is refused before a byte of it is read."""
    failure = _failure(says(b"x" * 101), max_bytes=100)
    assert isinstance(failure, AudioError)
    assert failure.code == "audio.too-large"
    assert _fetch(says(b"x" * 100), max_bytes=100) == b"x" * 100


def test_an_actual_length_that_is_too_large() -> None:
    """Audio that does not say how large it is, is cut off once it is too large."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(_CHUNKED)
        while True:  # until the other side has had enough
            connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")

    failure = _failure(answer, max_bytes=100_000)
    assert (type(failure), failure.code) == (AudioError, "audio.too-large")


def test_no_audio_at_all() -> None:
    """An empty answer and a web page are no audio."""
    assert _failure(says(b"")).code == "audio.empty"
    assert _failure(says(b"<html>", content_type="text/html; charset=utf-8")).code == "audio.invalid"
    assert _failure(says(b"\x1f\x8b", content_encoding="gzip")).code == "audio.invalid"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        _CHUNKED + b"5\r\nab",
    ],
)
def test_an_answer_that_breaks_off(said: bytes) -> None:
    """What is cut short is never taken for whole audio."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(said)

    assert isinstance(_failure(answer), StorageUnavailableError)


def test_a_host_that_does_not_answer() -> None:
    """Nobody listening, and a name without addresses, are hosts that do not answer."""
    with target() as host:
        pass
    for url, fetcher in (
        (_url(host), _fetcher()),
        ("http://audio.example/", _fetcher(resolve=lambda host, port: [])),
        ("http://audio.example/", _fetcher(resolve=_raise)),
    ):
        with pytest.raises(StorageUnavailableError), fetcher.fetch(url):
            pass


def _raise(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "audio.example")


def test_the_next_address_is_tried() -> None:
    """A host of which one address does not answer is reached by another."""
    with target(says(b"audio"), address="127.0.0.2") as host:
        fetcher = _fetcher(resolve=lambda host, port: ["127.0.0.1", "127.0.0.2"])
        with fetcher.fetch(f"http://audio.example:{host.port}/") as fetched:
            assert b"".join(fetched.chunks) == b"audio"


def test_a_stall_ends() -> None:
    """A host that stops sending is given up."""
    ended = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        ended.wait(20)

    try:
        assert isinstance(_failure(answer, stall_s=0.2), StorageUnavailableError)
    finally:
        ended.set()


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n"]
)
def test_a_trickle_ends(start: bytes) -> None:
    """A host that sends a byte every now and then, in its headers or its body, is given up when time is over."""
    ended = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        while not ended.wait(0.02):
            connection.sendall(b"x")

    try:
        assert isinstance(_failure(answer, stall_s=5, total_s=0.5), StorageUnavailableError)
    finally:
        ended.set()


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n"]
)
def test_a_host_that_is_too_slow_is_left(start: bytes) -> None:
    """A host that sends less than the least rate is given up after one window, long before all time is over."""
    ended = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        while not ended.wait(0.02):
            connection.sendall(b"x")

    began = time.monotonic()
    try:
        assert isinstance(_failure(answer, least_bytes_s=1000, window_s=0.3), StorageUnavailableError)
    finally:
        ended.set()
    assert time.monotonic() - began < 10


def test_a_host_that_is_just_fast_enough_is_read() -> None:
    """The least rate is asked of each window anew, and the end of the audio may be shorter than one."""
    ended = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 41\r\n\r\n")
        for _piece in range(8):
            connection.sendall(b"12345")
            ended.wait(0.05)
        connection.sendall(b"!")

    assert len(_fetch(answer, least_bytes_s=5, window_s=0.4)) == 41


def test_a_slow_reader_is_not_the_hosts_fault() -> None:
    """The time that the reader takes between two pieces counts against no window."""
    with target(says(b"x" * 300_000)) as host, _fetcher(least_bytes_s=1e6, window_s=0.2).fetch(_url(host)) as fetched:
        chunks = iter(fetched.chunks)
        first = next(chunks)
        threading.Event().wait(0.3)  # a storage that takes its time
        assert len(first) + sum(map(len, chunks)) == 300_000


def test_a_look_up_that_stalls_ends() -> None:
    """A resolver that does not answer is given up when time is over."""
    ended = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        ended.wait(20)
        return []

    try:
        with (
            pytest.raises(StorageUnavailableError),
            _fetcher(resolve=resolve, total_s=0.2).fetch("http://audio.example/"),
        ):
            pass
    finally:
        ended.set()


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would look names up by itself, unguarded."""
    with target(says(b"from a proxy")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert _fetch(says(b"audio")) == b"audio"
        assert proxy.hits == 0


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No log holds the URL, at any level."""
    with caplog.at_level(logging.DEBUG), target(says(b"audio")) as last, target(redirects(_url(last))) as first:
        fetching = _fetcher().fetch(_url(first))
        with fetching as fetched:
            assert b"".join(fetched.chunks) == b"audio"
            assert "secret" not in repr(fetched)
    assert "secret" not in caplog.text
    assert "song.wav" not in caplog.text


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate, and its key, for audio.example."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=audio.example", "-addext", "subjectAltName=DNS:audio.example"]
    command += ["-keyout", str(path), "-out", str(path.with_suffix(".crt"))]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def _tls(certificate: Path, names: list[str | None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _, name, __: names.append(name)
    return context


def _tls_fetcher(certificate: Path | None, **options: object) -> GuardedFetcher:
    trusted = ssl.create_default_context(cafile=certificate) if certificate else None
    return _fetcher(ssl_context=trusted, allow_http=False, resolve=lambda host, port: ["127.0.0.1"], **options)


def test_tls_speaks_to_the_name(certificate: Path) -> None:
    """The connection goes to the address; SNI, certificate and Host go by the name."""
    names: list[str | None] = []
    with target(says(b"audio"), tls=_tls(certificate, names)) as host:
        with _tls_fetcher(certificate).fetch(f"https://audio.example:{host.port}/") as fetched:
            assert b"".join(fetched.chunks) == b"audio"
        assert names == ["audio.example"]
        assert f"Host: audio.example:{host.port}\r\n".encode() in host.requests[0]


def test_a_certificate_is_judged(certificate: Path) -> None:
    """A certificate for another name, or of no authority, is refused; the request is never sent."""
    names: list[str | None] = []
    with target(says(b"audio"), tls=_tls(certificate, names)) as host:
        for fetcher, name in ((_tls_fetcher(certificate), "other.example"), (_tls_fetcher(None), "audio.example")):
            with pytest.raises(InvalidRequestError) as failure, fetcher.fetch(f"https://{name}:{host.port}/"):
                pass
            assert failure.value.code == "audio.url-refused"
        assert host.requests == []


def test_https_leads_to_no_http(certificate: Path) -> None:
    """A redirect from https to http is refused, also where http is allowed."""
    with target(says(b"audio")) as plain, target(redirects(_url(plain)), tls=_tls(certificate, [])) as host:
        fetcher = GuardedFetcher(
            allow_http=True,
            allow_private=True,
            resolve=lambda host, port: ["127.0.0.1"],
            ssl_context=ssl.create_default_context(cafile=certificate),
        )
        with pytest.raises(InvalidRequestError), fetcher.fetch(f"https://audio.example:{host.port}/"):
            pass
        assert plain.hits == 0

"""Does a request go where its URL says, by the proxy that the environment names, and with the right headers?"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from renderdispatch.plumbing import net
from renderdispatch.plumbing.net import BadUrlError, Client, NetError, NotSentError
from tests.support.targets import Target, says, target


@pytest.fixture
def client() -> Iterator[Client]:
    with closing(Client(proxies=True, total_s=20)) as client:
        yield client


def _by_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)


def _tunnel(connection: socket.socket, request: bytes) -> None:
    """Do what a proxy does for CONNECT."""
    host, _, port = request.split()[1].decode().rpartition(":")
    with socket.create_connection((host, int(port))) as there:
        connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        threading.Thread(target=_pump, args=(there, connection), daemon=True).start()
        _pump(connection, there)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate for 127.0.0.1, whose authority the environment names."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _lines(host: Target) -> list[str]:
    return host.requests[0].decode().splitlines()


def test_a_proxy_of_the_environment_is_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets the whole URL, and its own login."""
    with target(says(b"from the proxy")) as proxy:
        _by_proxy(monkeypatch, f"http://user:secret@127.0.0.1:{proxy.port}")
        assert client.request("GET", "http://storage.invalid/key?a=b").body == b"from the proxy"
    lines = _lines(proxy)
    assert lines[0] == "GET http://storage.invalid/key?a=b HTTP/1.1"
    assert "host: storage.invalid" in [line.lower() for line in lines]
    assert "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in lines


def test_a_proxy_tunnels_tls(client: Client, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext) -> None:
    """An https request goes through a tunnel, and the host's certificate is judged within it."""
    with target(says(b"secretly"), tls=tls) as host, target(_tunnel) as proxy:
        _by_proxy(monkeypatch, f"127.0.0.1:{proxy.port}")
        assert client.request("GET", f"https://127.0.0.1:{host.port}/key").body == b"secretly"
        assert proxy.requests[0].startswith(f"CONNECT 127.0.0.1:{host.port} ".encode())


def test_hosts_without_a_proxy(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that the environment excludes is asked directly; so is every host by a client without proxies."""
    with target(says(b"from the proxy")) as proxy, target(says(b"direct")) as host:
        _by_proxy(monkeypatch, f"http://127.0.0.1:{proxy.port}")
        url = f"http://127.0.0.1:{host.port}/"
        with closing(Client()) as plain:
            assert plain.request("GET", url).body == b"direct"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert client.request("GET", url).body == b"direct"
        assert proxy.hits == 0


def test_what_a_url_holds_is_sent(client: Client) -> None:
    """A user name becomes a header; characters that URLs do not have are escaped, escapes stay, a fragment is dropped."""
    with target() as host:
        client.request("GET", f"http://user:pa%20ss@127.0.0.1:{host.port}/a b/ü%2F?q=<x>&y=%20#part")
    lines = _lines(host)
    assert lines[0] == "GET /a%20b/%C3%BC%2F?q=%3Cx%3E&y=%20 HTTP/1.1"
    assert f"Host: 127.0.0.1:{host.port}" in lines
    assert "authorization: Basic dXNlcjpwYSBzcw==" in lines


def test_an_ipv6_host(client: Client) -> None:
    """An IPv6 address has brackets in the Host header."""
    try:
        with target(address="::1") as host:
            client.request("GET", f"http://[::1]:{host.port}/")
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert f"Host: [::1]:{host.port}" in _lines(host)


@pytest.mark.parametrize("url", ["", "storage", "ftp://storage/", "http://", "http://[::1", "http://a:99999999/"])
def test_a_url_that_is_none(client: Client, url: str) -> None:
    """Nothing is sent, and the error does not quote it."""
    with pytest.raises(BadUrlError, match="not valid") as caught:
        client.request("GET", url)
    assert not url or url not in str(caught.value)


def test_a_name_that_cannot_exist(client: Client) -> None:
    """A host name with a label that is too long is a host that cannot be reached."""
    with pytest.raises(NotSentError):
        client.request("GET", f"http://{'a' * 64}.example/")


def test_a_name_for_which_no_thread_can_be_started(client: Client, refuse_thread: Callable[[str], None]) -> None:
    """Where no thread can be started, it is known that nothing was sent, and the next request is."""
    refuse_thread("renderdispatch-resolve")
    with target(says(b"hello")) as host:
        url = f"http://localhost:{host.port}/"
        with pytest.raises(NotSentError):
            client.request("GET", url)
        assert client.request("GET", url).status == 200


def test_a_body_is_read_up_to_a_bound(client: Client) -> None:
    """Of a large body the beginning is returned, and that it is not whole."""
    with target(says(b"x" * 100_000)) as host:
        response = client.request("GET", f"http://127.0.0.1:{host.port}/", max_bytes=10)
    assert (response.body, response.whole) == (b"x" * 10, False)


def test_close_cuts_off_what_is_running() -> None:
    """A request that waits in another thread ends when the client is closed; the next one opens another connection."""
    asked, over = threading.Event(), threading.Event()

    def hang(_: socket.socket, __: bytes) -> None:
        asked.set()
        over.wait(30)

    failures: list[NetError] = []
    client = Client()

    def work(url: str) -> None:
        try:
            client.request("GET", url)
        except NetError as error:
            failures.append(error)

    with target(hang) as host, target(says(b"again")) as other:
        thread = threading.Thread(target=work, args=(f"http://127.0.0.1:{host.port}/",))
        thread.start()
        assert asked.wait(10)
        client.close()
        thread.join(10)
        over.set()
        assert [str(error) for error in failures] == ["was cut off"]
        assert client.request("GET", f"http://127.0.0.1:{other.port}/").body == b"again"
    client.close()


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_the_default_port_is_left_out(scheme: str, port: int) -> None:
    """The ``Host`` header names no default port, also if the URL does: signatures leave it out too."""
    url, _ = net._read_url(f"{scheme}://storage.invalid:{port}/key")
    assert net._host_of(url) == "storage.invalid"
    url, _ = net._read_url(f"{scheme}://storage.invalid:8080/key")
    assert net._host_of(url) == "storage.invalid:8080"


@pytest.mark.parametrize("proxy", ["https://proxy.invalid:8443", "socks5://127.0.0.1:9", "nonsense://proxy.invalid"])
def test_a_proxy_that_cannot_be_used(client: Client, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """The error blames the proxy of the environment, not the URL that was asked for; nothing is sent."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    _by_proxy(monkeypatch, proxy)
    with pytest.raises(NotSentError, match="the proxy of the environment must be"):
        client.request("GET", "http://storage.invalid/key")

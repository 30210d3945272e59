"""Is a host behind the guard ever reached?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from renderdispatch.errors import ConfigurationError, InvalidRequestError, StorageUnavailableError
from renderdispatch.plumbing.fetch import GuardedFetcher, is_public
from tests.support.targets import Target, redirects, says, target

PORT = "{port}"

SPELLINGS = {
    "plain": "127.0.0.1",
    "another-loopback": "127.1.2.3",
    "decimal": "2130706433",
    "hex": "0x7f000001",
    "hex-capitals": "0X7F000001",
    "dotted-hex": "0x7f.0x0.0x0.0x1",
    "octal": "017700000001",
    "dotted-octal": "0177.0.0.01",
    "short": "127.1",
    "shorter": "127.0.1",
    "mixed": "0x7f.1",
    "zero": "0",
    "any": "0.0.0.0",
    "leading-zeros": "127.000.000.001",
    "overflow": "127.0.0.257",
    "decimal-overflow": "6425673729",
    "trailing-dot": "127.0.0.1.",
    "trailing-dots": "127.0.0.1..",
    "name": "localhost",
    "name-capitals": "LOCALHOST",
    "name-trailing-dot": "localhost.",
    "name-below": "a.localhost",
    "percent": "%31%32%37.0.0.1",
    "percent-name": "localhos%74",
    "full-width": "１２７.０.０.１",
    "full-width-stop": "127。0。0。1",
    "half-width-stop": "127｡0｡0｡1",
    "circled": "①②⑦.⓪.⓪.①",
    "circled-name": "ⓛocalhost",
    "superscript": "¹²⁷.0.0.1",
    "soft-hyphen": "127.0.0.1\u00ad",
    "arabic-digits": "١٢٧.٠.٠.١",
    "userinfo": "audio.example@127.0.0.1",
    "userinfo-port": "audio.example:443@127.0.0.1",
    "userinfo-empty": "@127.0.0.1",
    "userinfo-twice": "a@b@127.0.0.1",
    "backslash": "audio.example\\@127.0.0.1",
    "backslash-before": "127.0.0.1\\@audio.example",
    "fragment": "127.0.0.1#@audio.example",
    "tab": "127.0.0\t.1",
    "newline": "127.0.0.1\n",
    "nul": "127.0.0.1\0.audio.example",
    "v6": "[::1]",
    "v6-long": "[0:0:0:0:0:0:0:1]",
    "v6-any": "[::]",
    "v6-zone": "[::1%25lo]",
    "v6-zone-plain": "[::1%lo]",
    "v6-link-local": "[fe80::1]",
    "v6-unique-local": "[fc00::1]",
    "v6-unique-local-d": "[fd00:ec2::254]",
    "v6-multicast": "[ff02::1]",
    "v6-site-local": "[fec0::1]",
    "v6-mapped": "[::ffff:127.0.0.1]",
    "v6-mapped-hex": "[::ffff:7f00:1]",
    "v6-translated": "[::ffff:0:127.0.0.1]",
    "v6-compatible": "[::127.0.0.1]",
    "nat64": "[64:ff9b::127.0.0.1]",
    "nat64-hex": "[64:ff9b::7f00:1]",
    "nat64-local": "[64:ff9b:1::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "teredo": "[2001:0:7f00:1::]",
    "documentation-v6": "[2001:db8::1]",
    "private-10": "10.0.0.1",
    "private-172": "172.16.0.1",
    "private-192": "192.168.0.1",
    "shared": "100.64.0.1",
    "alibaba-metadata": "100.100.100.200",
    "metadata": "169.254.169.254",
    "metadata-decimal": "2852039166",
    "azure": "168.63.129.16",
    "oracle-metadata": "192.0.0.192",
    "benchmark": "198.18.0.1",
    "documentation": "192.0.2.1",
    "relay": "192.88.99.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "empty": "",
    "space": " 127.0.0.1",
}
"""Ways to name a host that nobody outside may have fetched from, most of them this very machine."""


@pytest.fixture(scope="module")
def listening() -> Iterator[list[Target]]:
    """Hosts on the loopback addresses that spellings could end at, all on one port."""
    with ExitStack() as stack:
        first = stack.enter_context(target())
        others = [stack.enter_context(target(address=a, port=first.port)) for a in ("::1", "127.1.2.3")]
        yield [first, *others]


def _resolver(answers: dict[str, Sequence[str]], asked: list[str]) -> Callable[[str, int], Sequence[str]]:
    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers.get(host, ["127.0.0.1", "::1"] if "localhost" in host else [])

    return resolve


def _refusal(fetcher: GuardedFetcher, url: str) -> str:
    with pytest.raises(InvalidRequestError) as refusal, fetcher.fetch(url):
        pass
    assert refusal.value.code == "audio.url-refused"
    return str(refusal.value)


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_reaches_this_machine(listening: list[Target], name: str) -> None:
    """Each spelling is refused, nothing is connected to, and the refusal quotes nothing of the URL."""
    port = listening[0].port
    host = SPELLINGS[name]
    fetcher = GuardedFetcher(allow_http=True, resolve=_resolver({}, []))
    for url in (f"http://{host}:{port}/private-path?token=secret", f"https://{host}:{port}/"):
        message = _refusal(fetcher, url)
        assert not host or host not in message
        assert "private-path" not in message
    assert [host.hits for host in listening] == [0, 0, 0]


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_redirect_reaches_this_machine(listening: list[Target], name: str) -> None:
    """A host that may be fetched from leads nowhere that may not."""
    host = SPELLINGS[name]
    location = f"http://{host}:{listening[0].port}/" if name not in {"tab", "newline", "nul"} else f"//{host[:9]}"
    with target(redirects(location), address="127.0.0.2") as public:
        fetcher = GuardedFetcher(allow_http=True, allow_networks=["127.0.0.2/32"], resolve=_resolver({}, []))
        _refusal(fetcher, f"http://127.0.0.2:{public.port}/")
        assert public.hits == 1
    assert [host.hits for host in listening] == [0, 0, 0]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_every_kind_of_redirect_is_judged(listening: list[Target], status: str) -> None:
    """Whatever the status of a redirect, its target is judged."""
    with target(redirects(f"http://127.0.0.1:{listening[0].port}/", status), address="127.0.0.2") as public:
        fetcher = GuardedFetcher(allow_http=True, allow_networks=["127.0.0.2/32"])
        _refusal(fetcher, f"http://127.0.0.2:{public.port}/")
    assert listening[0].hits == 0


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["127.0.0.2", "127.0.0.1"],
        ["fe80::1%lo"],
        ["169.254.169.254"],
        ["nonsense"],
        ["127.0.0.2", "10.0.0.1"],
    ],
    ids=str,
)
def test_a_name_is_judged_by_all_its_addresses(listening: list[Target], addresses: list[str]) -> None:
    """A name with one address that is not allowed is refused, whatever its others are."""
    resolve = _resolver({"audio.example": addresses}, [])
    fetcher = GuardedFetcher(allow_http=True, allow_networks=["127.0.0.2/32"], resolve=resolve)
    _refusal(fetcher, f"http://audio.example:{listening[0].port}/")
    assert [host.hits for host in listening] == [0, 0, 0]


def test_a_name_that_changes_its_address_gains_nothing(listening: list[Target]) -> None:
    """A name is looked up once, and the connection goes to the very address that was judged."""
    asked: list[str] = []
    answers = iter([["127.0.0.2"]])

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return next(answers, ["127.0.0.1"])

    with target(says(b"audio"), address="127.0.0.2", port=listening[0].port) as public:
        fetcher = GuardedFetcher(allow_http=True, allow_networks=["127.0.0.2/32"], resolve=resolve)
        with fetcher.fetch(f"http://audio.example:{public.port}/song.wav") as fetched:
            assert b"".join(fetched.chunks) == b"audio"
        assert asked == ["audio.example"]
        assert b"Host: audio.example:" in public.requests[0]
    assert listening[0].hits == 0


def test_a_name_that_changes_its_address_during_a_redirect_is_refused(listening: list[Target]) -> None:
    """A redirect back to the same name is looked up and judged again."""
    answers = iter([["127.0.0.2"]])
    port = listening[0].port
    with target(redirects("/again"), address="127.0.0.2", port=port) as public:
        fetcher = GuardedFetcher(
            allow_http=True,
            allow_networks=["127.0.0.2/32"],
            resolve=lambda host, port: next(answers, ["127.0.0.1"]),
        )
        _refusal(fetcher, f"http://audio.example:{port}/")
        assert public.hits == 1
    assert listening[0].hits == 0


def test_the_systems_resolver_is_judged_too(listening: list[Target]) -> None:
    """With the resolver of the system, ``localhost`` is refused like any name with such an address."""
    _refusal(GuardedFetcher(allow_http=True), f"http://localhost:{listening[0].port}/")
    assert [host.hits for host in listening] == [0, 0, 0]


@pytest.mark.parametrize(
    "url",
    [
        "http://audio.example/a",
        "ftp://audio.example/a",
        "file:///etc/passwd",
        "data:audio/wav;base64,AAAA",
        "gopher://a/",
        "//audio.example/a",
        "audio.example/a",
        "",
        "https:/audio.example",
        "https:audio.example",
        "https://",
        "https:///a",
        "https://audio.example:0/",
        "https://audio.example:99999/",
        "https://audio.example:a/",
        "https://[::1/",
        "https://a" + "/b" * 5000,
        "https://-a.example/",
        "https://a..example/",
        f"https://{'a' * 64}.example/",
        "https://a,b.example/",
    ],
)
def test_what_is_no_https_url_is_refused(url: str) -> None:
    """Only https URLs of hosts with proper names are taken; nothing is looked up."""
    asked: list[str] = []
    fetcher = GuardedFetcher(resolve=_resolver({}, asked))
    with pytest.raises(InvalidRequestError) as refusal:
        fetcher.check(url)
    assert refusal.value.code == "audio.url-refused"
    assert asked == []


def test_only_allowed_hosts() -> None:
    """With a list of hosts, no other is looked up, addresses included; ``*.`` is every name below one."""
    asked: list[str] = []
    fetcher = GuardedFetcher(allow_hosts=["media.example", "*.cdn.example"], resolve=_resolver({}, asked))
    for url in (
        "https://media.example/",
        "https://MEDIA.example/a",
        "https://a.cdn.example/",
        "https://a.b.cdn.example/",
    ):
        fetcher.check(url)
        with pytest.raises(StorageUnavailableError), fetcher.fetch(url):
            pass
    looked_up = len(asked)
    for host in (
        "cdn.example",
        "media.example.evil.example",
        "amedia.example",
        "a.media.example",
        "8.8.8.8",
        "[2600::]",
    ):
        _refusal(fetcher, f"https://{host}/")
    assert len(asked) == looked_up == 4


@pytest.mark.parametrize("host", ["", "https://media.example", "a b", "*", "*.*.example", "media.example/a", "a*"])
def test_a_pattern_that_makes_no_sense(host: str) -> None:
    """A pattern that could never fit, or would fit everything, is refused."""
    with pytest.raises(ConfigurationError):
        GuardedFetcher(allow_hosts=[host])


def test_private_networks_for_development() -> None:
    """``allow_private`` opens loopback and private networks, and neither metadata nor other spellings."""
    fetcher = GuardedFetcher(allow_http=True, allow_private=True)
    for host in ("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "[::1]"):
        fetcher.check(f"http://{host}/")
    for host in ("169.254.169.254", "[fe80::1]", "[fd00:ec2::254]", "100.100.100.200", "2130706433", "[::ffff:7f00:1]"):
        with pytest.raises(InvalidRequestError):
            fetcher.check(f"http://{host}/")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::1"])
def test_public_addresses(address: str) -> None:
    """Ordinary addresses of the internet are public."""
    assert is_public(address)


@pytest.mark.parametrize("address", ["", "nonsense", "127.1", "0x7f.1", "localhost", "8.8.8.8/32", "::ffff:8.8.8.8"])
def test_what_is_no_public_address(address: str) -> None:
    """What is no address in its plain spelling is not public."""
    assert not is_public(address)

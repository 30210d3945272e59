"""What do signed URLs bind, and who honours them?"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch.errors import ConfigurationError, InvalidRequestError, StorageDeniedError
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.testing import FakeClock

_HOUR = timedelta(hours=1)
_BASE = "https://app.example/objects"
_OLD, _NEW = "the old secret, 24 bytes and more", "the new secret, 24 bytes and more"


def _check(urls: SignedUrls, url: str, *, method: str = "GET", key: str = "a/b", **headers: str) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return urls.check(method, key, url.partition("?")[2], named)


def test_a_url_says_a_file_s_name() -> None:
    """The name comes back from the check; a URL whose name was changed, added or left out is refused."""
    urls = SignedUrls(_BASE, _OLD)
    plain = urls.sign_get("a/b", expires_in=_HOUR)
    named = urls.sign_get("a/b", expires_in=_HOUR, file_name="Élan & 50%.mp4")
    assert (_check(urls, plain), _check(urls, named)) == (None, "Élan & 50%.mp4")
    cut = named.rpartition("&")[0]
    for changed in (cut, f"{cut}&file-name=other", f"{named}&file-name=other", f"{plain}&file-name=", f"{named}x"):
        with pytest.raises(StorageDeniedError) as refusal:
            _check(urls, changed)
        assert refusal.value.code == "url.wrong-signature"


def test_a_url_ends_to_the_second() -> None:
    """A URL is honoured up to its end, and refused from then on."""
    clock = FakeClock()
    urls = SignedUrls(_BASE, _OLD, clock=clock)
    url = urls.sign_get("a/b", expires_in=_HOUR)
    clock.advance(_HOUR - timedelta(microseconds=1))
    _check(urls, url)
    clock.advance(timedelta(microseconds=1))
    with pytest.raises(StorageDeniedError) as refusal:
        _check(urls, url)
    assert refusal.value.code == "url.expired"


def test_secrets_are_replaced_while_urls_live() -> None:
    """The first secret signs, each one is honoured, and one that was dropped is not."""
    url = SignedUrls(_BASE, _OLD).sign_get("a/b", expires_in=_HOUR)
    both = SignedUrls(_BASE, [_NEW, _OLD])
    _check(both, url)
    _check(SignedUrls(_BASE, _NEW), both.sign_get("a/b", expires_in=_HOUR))
    with pytest.raises(StorageDeniedError):
        _check(SignedUrls(_BASE, _NEW), url)


def test_a_url_is_good_at_one_place() -> None:
    """With the same secret, a URL for another base is refused."""
    url = SignedUrls(_BASE, _OLD).sign_get("a/b", expires_in=_HOUR)
    with pytest.raises(StorageDeniedError):
        _check(SignedUrls("https://app.example/others", _OLD), url)


@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (r"expires=(\d+)", r"expires=\g<1>0"),
        (r"expires=", "expires=00"),
        (r"headers=", "headers=range"),
        (r"&headers=", "&"),
        (r"signature=.", "signature="),
        (r"signature=.*", "signature=" + "0" * 64),
        (r"signature=.*", ""),
        (r"signature=", "signature=é"),
        (r"$", "&signature=" + "0" * 64),
        (r"$", "%00"),
        (r"\?.*", "?"),
        (r"\?", "?expires=9999999999&"),
    ],
)
def test_a_changed_url_is_refused(pattern: str, change: str) -> None:
    """A query that differs in anything is refused, and the refusal does not quote it."""
    urls = SignedUrls(_BASE, _OLD)
    url = urls.sign_get("a/b", expires_in=_HOUR)
    changed = re.sub(pattern, change, url, count=1)
    assert changed != url
    with pytest.raises(StorageDeniedError) as refusal:
        _check(urls, changed)
    assert refusal.value.code == "url.wrong-signature"
    assert "signature=" not in str(refusal.value)


@pytest.mark.parametrize(
    "spell",
    [
        lambda query: "&".join(reversed(query.split("&"))),
        lambda query: f"utm_source=mail&{query}&fbclid=%00&flag",
        lambda query: query.replace(".", "%2e").replace("signature", "%73ignature"),
        lambda query: query + "&",
    ],
    ids=["reordered", "with parameters of others", "escaped anew", "with an empty parameter"],
)
def test_a_query_may_be_spelled_anew(spell: Callable[[str], str]) -> None:
    """Proxies, mail programs and analytics reorder the parameters, escape them and add their own."""
    urls = SignedUrls(_BASE, _OLD)
    put = urls.sign_put("a/b", expires_in=_HOUR, content_type="video/mp4")
    path, _, query = put.url.partition("?")
    _check(urls, f"{path}?{spell(query)}", method="PUT", content_type="video/mp4", if_none_match="*")


def test_a_parameter_counts_once() -> None:
    """A query that names a parameter of the scheme twice is refused, even with the same value; so is an endless one."""
    urls = SignedUrls(_BASE, _OLD)
    url = urls.sign_get("a/b", expires_in=_HOUR)
    for parameter in url.partition("?")[2].split("&"):
        with pytest.raises(StorageDeniedError):
            _check(urls, f"{url}&{parameter}")
    with pytest.raises(StorageDeniedError):
        _check(urls, f"{url}&more={'x' * 10_000}")


@pytest.mark.parametrize("key", ["a/c", "a/b/", "/a/b", "a%2Fb", "A/b", ""])
def test_a_url_is_bound_to_its_key(key: str) -> None:
    """No other key is served, however alike."""
    urls = SignedUrls(_BASE, _OLD)
    with pytest.raises(StorageDeniedError):
        _check(urls, urls.sign_get("a/b", expires_in=_HOUR), key=key)


def test_an_upload_binds_its_headers() -> None:
    """Type, condition and, where it is given, length are bound; other headers are free."""
    urls = SignedUrls(_BASE, _OLD)
    put = urls.sign_put("a/b", expires_in=_HOUR, content_type="video/mp4", size=5)
    assert put.headers == {"content-type": "video/mp4", "if-none-match": "*", "content-length": "5"}
    sent = {"content_type": "video/mp4", "if_none_match": "*", "content_length": "5", "origin": "https://a.example"}
    _check(urls, put.url, method="PUT", **sent)
    for name in ("content_type", "if_none_match", "content_length"):
        with pytest.raises(StorageDeniedError):
            _check(urls, put.url, method="PUT", **{**sent, name: "6"})
        with pytest.raises(StorageDeniedError):
            _check(urls, put.url, method="PUT", **{n: v for n, v in sent.items() if n != name})


def test_a_url_for_head() -> None:
    """A URL can be signed for HEAD, and is then none for GET."""
    urls = SignedUrls(_BASE, _OLD)
    url = urls.sign_get("a/b", expires_in=_HOUR, method="HEAD")
    _check(urls, url, method="HEAD")
    with pytest.raises(StorageDeniedError):
        _check(urls, url)


def test_nothing_shows_a_secret() -> None:
    """Reprs show neither secrets nor URLs."""
    urls = SignedUrls(_BASE, [_NEW, _OLD])
    assert repr(urls) == "SignedUrls('https://app.example/objects', <2 secrets>)"
    put = MemoryStorage(urls=urls).sign_put("key", expires_in=_HOUR, content_type="video/mp4")
    assert "app.example" not in repr(put)


@pytest.mark.parametrize("secrets", ["", "x" * 23, [], [_OLD, "short"], b"x" * 23])
def test_short_secrets_are_refused(secrets: str | bytes | list[str | bytes]) -> None:
    """A secret has at least 24 bytes, and there is at least one; the refusal does not quote it."""
    with pytest.raises(ConfigurationError) as refusal:
        SignedUrls(_BASE, secrets)
    assert "short" not in str(refusal.value)


@pytest.mark.parametrize(
    "base",
    [
        "",
        "/objects",
        "ftp://app.example",
        "https://",
        "https://user:pass@app.example",
        "https://app.example/?a=b",
        "https://app.example/#a",
        "https://app.example/a b",
        "https://[::1",
        "https://app.example:99999",
    ],
)
def test_a_base_is_a_plain_url(base: str) -> None:
    """The base is an http or https URL, without credentials, query or fragment."""
    with pytest.raises(ConfigurationError):
        SignedUrls(base, _OLD)


def test_a_slash_at_the_end_of_the_base_is_free() -> None:
    """The base may end with a slash: URLs are the same."""
    clock = FakeClock()
    urls = [SignedUrls(base, _OLD, clock=clock) for base in (_BASE, _BASE + "/")]
    assert len({signer.sign_get("a/b", expires_in=_HOUR) for signer in urls}) == 1


def test_storages_that_cannot_write_once_sign_no_uploads(tmp_path: Path) -> None:
    """A file system without an atomic create signs reads, and refuses to sign uploads."""
    (tmp_path / "a.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    storage = FsspecStorage(f"zip://::{tmp_path / 'a.zip'}", urls=SignedUrls(_BASE, _OLD))
    assert storage.sign_get("a/b", expires_in=_HOUR).startswith(_BASE)
    with pytest.raises(ConfigurationError):
        storage.sign_put("a/b", expires_in=_HOUR, content_type="video/mp4")


def test_lifetimes_are_checked() -> None:
    """More than 7 days are refused before anything is signed."""
    with pytest.raises(InvalidRequestError):
        SignedUrls(_BASE, _OLD).sign_get("a/b", expires_in=timedelta(days=7, seconds=1))

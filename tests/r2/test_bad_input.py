"""Is it said in words what is wrong with an R2 that does not work?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore import auth

from renderdispatch.errors import ConfigurationError, StorageDeniedError, StorageUnavailableError
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing import in_threads
from renderdispatch.testing.local_r2 import LocalR2

_ACCOUNT = "0123456789abcdef" * 2
_HOUR = timedelta(hours=1)

CALLS: dict[str, Callable[[R2Storage], object]] = {
    "put": lambda storage: storage.put("key", b"x"),
    "put-parts": lambda storage: storage.put("key", (b"x" * (9 << 20) for _ in range(4))),
    "open": lambda storage: storage.open("key"),
    "stat": lambda storage: storage.stat("key"),
    "list": lambda storage: list(storage.list("")),
    "delete": lambda storage: storage.delete("key"),
    "delete_prefix": lambda storage: storage.delete_prefix("a"),
}


@contextmanager
def _opened(storage: R2Storage) -> Iterator[R2Storage]:
    try:
        yield storage
    finally:
        storage.close()


@pytest.mark.parametrize("call", CALLS)
class TestRefused:
    """Each call says why it is refused."""

    def test_wrong_secret(self, r2: LocalR2, call: str) -> None:
        """The secret access key is not the one of the access key id."""
        with (
            _opened(r2.storage(secret_access_key="not-the-secret")) as storage,
            pytest.raises(StorageDeniedError, match="secret access key does not belong") as caught,
        ):
            CALLS[call](storage)
        assert "not-the-secret" not in repr(caught.value)

    def test_wrong_key(self, r2: LocalR2, call: str) -> None:
        """Nobody knows the access key id."""
        with (
            _opened(r2.storage(access_key_id="nobody")) as storage,
            pytest.raises(StorageDeniedError, match="access key id is not known"),
        ):
            CALLS[call](storage)

    def test_wrong_bucket(self, r2: LocalR2, call: str) -> None:
        """There is no such bucket; that is not mistaken for an object that is missing."""
        with _opened(r2.storage("absent")) as storage, pytest.raises(StorageDeniedError, match="no bucket 'absent'"):
            CALLS[call](storage)

    @pytest.mark.parametrize("ahead_s", [7200, -7200])
    def test_wrong_clock(self, r2: LocalR2, call: str, ahead_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """This machine's clock is two hours wrong, and the error says by how much."""
        if ahead_s > 0 and call in {"put", "open"}:
            pytest.skip("Cloudflare's local R2 takes URLs that were signed in the future")

        def wrong() -> datetime:
            return datetime.now(UTC) + timedelta(seconds=ahead_s)

        monkeypatch.setattr(auth, "get_current_datetime", lambda *_: wrong().replace(tzinfo=None))  # of the commands
        storage = r2.storage(clock=wrong)
        with _opened(storage), pytest.raises(StorageDeniedError, match=r"clock .* by 7[12]\d\d s"):
            CALLS[call](storage)

    def test_a_public_domain_as_endpoint(self, website: str, call: str) -> None:
        """The host is a website, not an S3 API."""
        with _opened(_build(endpoint_url=website)) as storage, pytest.raises(StorageDeniedError, match="as public_url"):
            CALLS[call](storage)


def test_unreachable() -> None:
    """Nobody listens: `StorageUnavailableError`, after some tries."""

    def call(index: int) -> None:
        with pytest.raises(StorageUnavailableError, match="cannot be reached"):
            CALLS[["put", "stat", "open", "list"][index]](storage)

    with _opened(_build(endpoint_url="http://127.0.0.1:9")) as storage:
        in_threads(4, call)


def _build(**options: Any) -> R2Storage:
    return R2Storage(**{"bucket": "renders", "access_key_id": "a", "secret_access_key": "b", **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "either account_id"),
        ({"account_id": _ACCOUNT, "endpoint_url": "https://s3.example.com"}, "either account_id"),
        ({"account_id": f"https://{_ACCOUNT}.r2.cloudflarestorage.com"}, "32 hexadecimal digits"),
        ({"account_id": _ACCOUNT, "jurisdiction": "us"}, "jurisdiction is"),
        ({"endpoint_url": "https://s3.example.com", "jurisdiction": "eu"}, "names the jurisdiction itself"),
        ({"endpoint_url": f"https://{_ACCOUNT}.r2.cloudflarestorage.com/renders"}, "has a path, '/renders'"),
        ({"endpoint_url": f"https://renders.{_ACCOUNT}.r2.cloudflarestorage.com"}, "not an account's endpoint"),
        ({"endpoint_url": "https://pub-0123.r2.dev"}, "public address"),
        ({"endpoint_url": "s3.example.com"}, "http or https URL"),
        ({"endpoint_url": "https://user:word@s3.example.com"}, "http or https URL"),
        ({"endpoint_url": "https://s3.example.com:port"}, "http or https URL"),
        ({"account_id": _ACCOUNT, "bucket": "Renders"}, "not a bucket's name"),
        ({"account_id": _ACCOUNT, "bucket": "s3://renders"}, "not a bucket's name"),
        ({"account_id": _ACCOUNT, "access_key_id": ""}, "access_key_id is empty"),
        ({"account_id": _ACCOUNT, "secret_access_key": "hidden\n"}, "line break"),
        ({"account_id": _ACCOUNT, "prefix": "../up"}, "prefix"),
        ({"account_id": _ACCOUNT, "prefix": "/"}, "prefix"),
        ({"account_id": _ACCOUNT, "public_url": "videos.example.com"}, "public_url"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    """The constructor says what to give, and quotes no secret."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        _build(**options)
    assert "hidden" not in str(caught.value)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(("jurisdiction", "host"), [(None, ""), ("eu", ".eu"), ("fedramp", ".fedramp")])
def test_endpoints(jurisdiction: str | None, host: str) -> None:
    """A jurisdiction has an endpoint of its own."""
    storage = _build(account_id=_ACCOUNT, jurisdiction=jurisdiction)
    url = f"https://{_ACCOUNT}{host}.r2.cloudflarestorage.com"
    assert repr(storage) == f"R2Storage('renders', endpoint_url='{url}', prefix='')"
    with _opened(storage):
        assert storage.sign_get("a b", expires_in=_HOUR).startswith(
            f"{url}/renders/a%20b?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        )


def test_a_public_domain_gives_plain_urls() -> None:
    """With a public domain, `sign_get` gives a URL below it that nobody signed; lifetimes are checked all the same."""
    storage = _build(account_id=_ACCOUNT, public_url="https://videos.example.com/", prefix="a")
    assert storage.sign_get("b c/é.mp4", expires_in=_HOUR) == "https://videos.example.com/a/b%20c/%C3%A9.mp4"


def test_no_secret_is_logged(r2: LocalR2, caplog: pytest.LogCaptureFixture) -> None:
    """With every logger at DEBUG, neither the secret nor a signature is logged, in success and in trouble."""
    caplog.set_level(logging.DEBUG)
    for secret in (r2.secret_access_key, "not-the-secret"):
        with _opened(r2.storage(secret_access_key=secret)) as storage:
            signed = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4")
            url = storage.sign_get("key", expires_in=_HOUR)
            r2.fail("503", key="key")
            r2.fail("reset", key="key")
            for call in CALLS.values():
                try:
                    call(storage)
                except OSError as error:
                    logging.getLogger("test").error("failed", exc_info=error)
            text = caplog.text + repr(storage) + repr(signed)
        for secret_part in (secret, url.partition("X-Amz-Signature=")[2], signed.url.partition("X-Amz-Signature=")[2]):
            assert secret_part not in text
        assert "X-Amz-Signature=" not in text


class _Website(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b"<!doctype html><title>Not found</title>"
        self.send_response(404)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _refuse  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def website() -> Iterator[str]:
    """A host that answers everything with a page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Website)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()

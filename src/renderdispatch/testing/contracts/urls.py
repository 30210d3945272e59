"""What must every storage's signed http URLs do, whichever server serves them?

The statuses are those of R2, so a client that knows them behaves the same in development and in production::

    class TestMyUrls(SignedUrlContract):
        @pytest.fixture
        def storage(self):
            ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from urllib.parse import unquote

import httpx
import pytest

from renderdispatch.protocols import StorageAdapter, SupportsFileNames
from renderdispatch.testing.builders import eventually

_HOUR: Final = timedelta(hours=1)
_VIDEO: Final = bytes(range(256)) * 40


def _swap(pattern: str, url: str, change: str) -> str:
    changed, count = re.subn(pattern, change, url)
    assert count == 1
    return changed


def _other_hex(found: re.Match[str]) -> str:
    return found[1] + ("0" if found[2] != "0" else "1")


class SignedUrlContract:
    """Subclass it and override `storage`: its `sign_get` and `sign_put` give http URLs, which a server serves."""

    has_etags = True
    """Whether responses have an etag."""

    without_length = 411
    """The status of an upload that does not state its length."""

    another_parameter = 403
    """The status for a parameter that was not signed: S3 refuses it, and `SignedUrls` ignores it (200)."""

    @pytest.fixture
    def storage(self) -> StorageAdapter:
        """An empty storage whose URLs are served; override it."""
        raise NotImplementedError("override the fixture `storage`")

    @pytest.fixture
    def client(self) -> Iterator[httpx.Client]:
        """A client that ignores proxy settings of the environment."""
        limits = httpx.Limits(max_keepalive_connections=0)  # a server that refuses a body may close the connection
        with httpx.Client(trust_env=False, timeout=30, limits=limits) as client:
            yield client

    @pytest.fixture
    def url(self, storage: StorageAdapter) -> str:
        """A URL that reads 10,240 bytes."""
        storage.put("folder/video.mp4", _VIDEO, content_type="video/mp4")
        storage.put("folder/other.mp4", b"secret")
        return storage.sign_get("folder/video.mp4", expires_in=_HOUR)

    # --- reading

    def test_get(self, client: httpx.Client, url: str) -> None:
        """200, the object, its type and length, and that ranges are accepted."""
        answer = client.get(url)
        assert (answer.status_code, answer.content) == (200, _VIDEO)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["content-length"] == "10240"
        assert answer.headers["accept-ranges"] == "bytes"
        assert not self.has_etags or answer.headers["etag"]

    @pytest.mark.parametrize(
        ("asked", "start", "stop"),
        [("0-0", 0, 1), ("0-", 0, 10240), ("100-199", 100, 200), ("-5", 10235, 10240), ("10239-99999", 10239, 10240)],
    )
    def test_a_range(self, client: httpx.Client, url: str, asked: str, start: int, stop: int) -> None:
        """206, the requested bytes, and their position."""
        answer = client.get(url, headers={"range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, _VIDEO[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/10240"

    def test_a_range_beyond_the_end(self, client: httpx.Client, url: str) -> None:
        """416 if the range holds no byte."""
        assert client.get(url, headers={"range": "bytes=10240-"}).status_code == 416

    def test_absent(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """404 if the object does not exist."""
        assert client.get(storage.sign_get("absent", expires_in=_HOUR)).status_code == 404

    @pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE"])
    def test_another_method_than_get(self, client: httpx.Client, url: str, method: str) -> None:
        """403 for any other method than the one that was signed, and the object stays."""
        assert client.request(method, url).status_code == 403
        assert client.get(url).content == _VIDEO

    def test_another_key(self, client: httpx.Client, url: str) -> None:
        """403 for another key."""
        assert client.get(_swap(r"/video\.mp4\?", url, "/other.mp4?")).status_code == 403

    def test_another_signature(self, client: httpx.Client, url: str) -> None:
        """403 for another signature."""
        forged = re.sub(r"(?i)(signature=[0-9a-f]{63})([0-9a-f])", _other_hex, url)
        assert forged != url
        assert client.get(forged).status_code == 403

    def test_a_longer_life(self, client: httpx.Client, url: str) -> None:
        """403 for a lifetime that was not signed."""
        assert client.get(_swap(r"(?i)(expires=\d+)", url, r"\g<1>0")).status_code in {400, 403}

    def test_another_parameter(self, client: httpx.Client, url: str) -> None:
        """403 for a parameter that was not signed, or as `another_parameter` says."""
        assert client.get(f"{url}&more=1").status_code == self.another_parameter

    def test_expired(self, client: httpx.Client, storage: StorageAdapter, url: str) -> None:
        """403 for a URL that has expired."""
        assert client.get(url).status_code == 200
        get = storage.sign_get("folder/video.mp4", expires_in=timedelta(seconds=1))
        put = storage.sign_put("new", expires_in=timedelta(seconds=1), content_type="video/mp4")
        eventually(lambda: client.get(get).status_code != 200)
        assert client.get(get).status_code == 403
        assert client.put(put.url, headers=put.headers, content=b"x").status_code == 403

    @pytest.mark.parametrize("name", ["song.mp4", "a; b=c.mp4", 'Élan - 50% "日本".mp4'])
    def test_the_name_to_save_under(self, client: httpx.Client, storage: StorageAdapter, name: str) -> None:
        """A browser plays a video that was uploaded and is read under a name, and saves it under that name."""
        if not (isinstance(storage, SupportsFileNames) and storage.names_files):
            pytest.skip("the storage does not say under which name its objects are saved")
        put = storage.sign_put("new/video.mp4", expires_in=_HOUR, content_type="video/mp4", file_name=name)
        assert client.put(put.url, headers=put.headers, content=_VIDEO).status_code == 200
        answer = client.get(storage.sign_get("new/video.mp4", expires_in=_HOUR, file_name=name))
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, _VIDEO, "video/mp4")
        how, _, names = answer.headers["content-disposition"].partition("; ")
        extended = re.search(r"filename\*=UTF-8''([^;]+)$", names)  # RFC 6266: it goes before the plain one
        assert (how, unquote(extended[1]) if extended else names) == (
            "inline",
            name if extended else f'filename="{name}"',
        )

    # --- writing

    def test_put_once(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """200 the first time, 412 the second, and the first object stays."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4", size=5)
        assert client.put(put.url, headers=put.headers, content=b"first").status_code == 200
        assert client.put(put.url, headers=put.headers, content=b"other").status_code == 412
        with storage.open("new") as file:
            assert file.read() == b"first"

    @pytest.mark.parametrize(
        "change",
        [
            {"content-type": "text/html"},
            {"content-type": None},
            {"if-none-match": None},
            {"if-none-match": '"another"'},
            {"content-length": "4"},
            {"content-length": "6"},
        ],
        ids=str,
    )
    def test_other_headers(self, client: httpx.Client, storage: StorageAdapter, change: dict[str, str | None]) -> None:
        """403 for a type, a condition or a length that was not signed, and nothing is written."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4", size=5)
        headers = {**put.headers, "content-length": "5", **change}
        body = b"x" * int(headers["content-length"] or 0)
        sent = {name: value for name, value in headers.items() if value is not None}
        assert client.put(put.url, headers=sent, content=body).status_code == 403
        assert list(storage.list("")) == []

    def test_a_put_elsewhere(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """403 for an upload to another key, or by another method, and nothing is written."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4")
        elsewhere = _swap(r"/new\?", put.url, "/other?")
        assert client.put(elsewhere, headers=put.headers, content=b"x").status_code == 403
        assert client.post(put.url, headers=put.headers, content=b"x").status_code == 403
        assert client.get(put.url, headers=put.headers).status_code == 403
        assert list(storage.list("")) == []

    def test_an_upload_of_unknown_length(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """A body in chunks without a length is refused, by R2 with 411, and nothing is written."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4")
        assert client.put(put.url, headers=put.headers, content=iter([b"x"])).status_code == self.without_length
        assert list(storage.list("")) == []

    def test_an_empty_upload(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """An empty object is written and read; a range of its bytes is 416."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4", size=0)
        assert client.put(put.url, headers=put.headers, content=b"").status_code == 200
        get = storage.sign_get("new", expires_in=_HOUR)
        assert (client.get(get).status_code, client.get(get).content) == (200, b"")
        assert client.get(get, headers={"range": "bytes=0-0"}).status_code == 416

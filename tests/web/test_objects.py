"""How do the WSGI and ASGI handlers serve objects?"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer

import httpx
import pytest
import uvicorn

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import JobStatus, StorageKey
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Locality
from renderdispatch.runner.transfers import open_transfers
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import StorageContract, eventually, registered_scenes
from renderdispatch.testing.contracts.urls import SignedUrlContract
from renderdispatch.web.objects import asgi_app, wsgi_app
from tests.support.object_servers import KINDS, SECRET, ObjectServer, Quiet, object_server

_HOUR = timedelta(hours=1)
_MIB = 1 << 20


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(request.param, tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def storage(server: ObjectServer) -> Iterator[FsspecStorage]:
    """An empty storage over what the server serves."""
    yield server.storage()
    for path in server.folder.iterdir():
        if path.name != ".renderdispatch-tmp":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=60, verify=False) as client:
        yield client


_Served = tuple[MemoryStorage, SignedUrls]
"""A memory storage, and its URLs, which a thread of this process serves."""


@contextmanager
def _by_asgi() -> Iterator[_Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        urls = SignedUrls(f"http://127.0.0.1:{listener.getsockname()[1]}", SECRET)
        storage = MemoryStorage(urls=urls)
        config = uvicorn.Config(asgi_app(storage, urls), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield storage, urls
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _by_wsgi() -> Iterator[_Served]:
    with WSGIServer(("127.0.0.1", 0), Quiet) as server:
        urls = SignedUrls(f"http://127.0.0.1:{server.server_port}", SECRET)
        storage = MemoryStorage(urls=urls)
        server.set_app(wsgi_app(storage, urls))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield storage, urls
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def served() -> Iterator[MemoryStorage]:
    with _by_asgi() as (storage, _):
        yield storage


@pytest.fixture
def memory(served: MemoryStorage) -> MemoryStorage:
    """An empty memory storage whose URLs are served."""
    for info in served.list(""):
        served.delete(info.key)
    return served


class TestMemoryUrls(SignedUrlContract):
    another_parameter = 200

    @pytest.fixture
    def storage(self, memory: MemoryStorage) -> MemoryStorage:
        return memory


class TestFolderUrls(SignedUrlContract):
    has_etags = False
    another_parameter = 200

    @pytest.fixture
    def storage(
        self, server: ObjectServer, storage: FsspecStorage
    ) -> FsspecStorage:  # pytest 8 misses the server below
        return storage


@pytest.mark.parametrize("server", ["uvicorn"], indirect=True)
class TestFolderByHttp(StorageContract):
    @pytest.fixture
    def storage(self, server: ObjectServer, storage: FsspecStorage) -> FsspecStorage:
        return storage


def test_locality_is_what_the_urls_say(server: ObjectServer, tmp_path: Path) -> None:
    """A storage with signed URLs reaches as far as they do: the world, unless told otherwise."""
    assert FsspecStorage(tmp_path).locality is Locality.MACHINE
    assert server.storage().locality is Locality.WORLD
    assert server.storage(locality=Locality.MACHINE).locality is Locality.MACHINE


# --- ranges and conditions


@pytest.mark.parametrize("asked", ["bytes=0-1,3-4", "bytes=4-2", "bytes=a-b", "bytes=-", "lines=0-1", "bytes 0-1"])
def test_what_is_no_single_range_is_answered_whole(client: httpx.Client, memory: MemoryStorage, asked: str) -> None:
    """Several ranges, and what is no range of bytes, are answered by the whole object."""
    memory.put("key", b"0123456789")
    answer = client.get(memory.sign_get("key", expires_in=_HOUR), headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


def test_an_object_that_was_replaced_is_not_resumed(client: httpx.Client, memory: MemoryStorage) -> None:
    """``If-Range`` with another etag gives the whole object, ``If-Match`` refuses it; the right etag goes on."""
    memory.put("key", b"0123456789")
    url = memory.sign_get("key", expires_in=_HOUR)
    etag = client.get(url).headers["etag"]
    rest = {"range": "bytes=5-"}
    assert client.get(url, headers={**rest, "if-range": etag}).content == b"56789"
    assert client.get(url, headers={**rest, "if-match": etag}).content == b"56789"
    assert client.get(url, headers={**rest, "if-range": '"old"'}).content == b"0123456789"
    assert client.get(url, headers={**rest, "if-match": '"old"'}).status_code == 412


@pytest.fixture(params=[_by_asgi, _by_wsgi], ids=["asgi", "wsgi"])
def etags(request: pytest.FixtureRequest) -> Iterator[_Served]:
    """An empty storage with etags, and its URLs, which are served."""
    with request.param() as served:
        yield served


@pytest.mark.parametrize("method", ["GET", "HEAD"])
class TestIfNoneMatch:
    def test_what_the_client_has_is_not_sent(self, client: httpx.Client, etags: _Served, method: str) -> None:
        """The etag, alone or among others, and ``*`` are answered 304: the etag, and no body."""
        storage, urls = etags
        etag = storage.put("key", b"0123456789").etag
        url = urls.sign_get("key", expires_in=_HOUR, method=method)
        for named in (f'"{etag}"', f'"old", "{etag}"', f'"old","{etag}"', f'W/"{etag}"', "*"):
            answer = client.request(method, url, headers={"if-none-match": named})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == f'"{etag}"'
            assert "content-type" not in answer.headers

    def test_what_is_new_to_the_client_is_sent(self, client: httpx.Client, etags: _Served, method: str) -> None:
        """Another etag is answered as if none were named."""
        storage, urls = etags
        etag = storage.put("key", b"0123456789").etag
        url = urls.sign_get("key", expires_in=_HOUR, method=method)
        for named in ('"old"', 'W/"old"', '"old", "older"', str(etag), ""):
            answer = client.request(method, url, headers={"if-none-match": named})
            assert (answer.status_code, answer.headers["content-length"]) == (200, "10")
            assert answer.content == (b"0123456789" if method == "GET" else b"")

    def test_what_has_no_etag(
        self, client: httpx.Client, server: ObjectServer, storage: FsspecStorage, method: str
    ) -> None:
        """An object of a folder is met by ``*`` alone, and the connection goes on after the 304."""
        storage.put("key", b"0123456789")
        url = server.urls().sign_get("key", expires_in=_HOUR, method=method)
        for named, status in (("*", 304), ('"any"', 200), ("*", 304)):
            assert client.request(method, url, headers={"if-none-match": named}).status_code == status


def test_head(client: httpx.Client, server: ObjectServer, storage: FsspecStorage) -> None:
    """A URL signed for HEAD answers length and type, and no body."""
    storage.put("video.mp4", b"0123456789")
    answer = client.head(server.urls().sign_get("video.mp4", expires_in=_HOUR, method="HEAD"))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "10"
    assert answer.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize(
    ("key", "content_type", "disposition"),
    [
        ("a/video.mp4", "video/mp4", "inline; filename*=UTF-8''video.mp4"),
        ("a/é b.wav", "audio/", "inline; filename*=UTF-8''%C3%A9%20b.wav"),
        ("page.html", "application/octet-stream", "attachment; filename*=UTF-8''page.html"),
        ("image.svg", "application/octet-stream", "attachment; filename*=UTF-8''image.svg"),
        ("no-extension", "application/octet-stream", "attachment; filename*=UTF-8''no-extension"),
    ],
)
def test_only_media_are_shown(
    client: httpx.Client, memory: MemoryStorage, key: str, content_type: str, disposition: str
) -> None:
    """Media are shown with their type; what a browser could run is a download, and no type is guessed."""
    memory.put(key, b"x")
    answer = client.get(memory.sign_get(key, expires_in=_HOUR))
    assert answer.headers["content-type"].startswith(content_type)
    assert answer.headers["content-disposition"] == disposition
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_name_is_no_type(client: httpx.Client, memory: MemoryStorage) -> None:
    """The key alone says what an object is: a name cannot have a video shown as a page, or a page as a video."""
    for key, name, content_type in (
        ("a/video.mp4", "x.html", "video/mp4"),
        ("page.html", "x.mp4", "application/octet-stream"),
    ):
        memory.put(key, b"x")
        answer = client.get(memory.sign_get(key, expires_in=_HOUR, file_name=name))
        assert answer.headers["content-type"] == content_type
        assert answer.headers["content-disposition"].endswith(f"filename*=UTF-8''{name}")


def test_a_refusal_reads_as_s3_writes_it(client: httpx.Client, server: ObjectServer) -> None:
    """Refusals are S3's XML and quote nothing of the URL; what was never signed is refused alike."""
    for url in (server.base + "/key", server.base + "/key?expires=1", server.base + "/", server.base + "/%FF"):
        assert client.get(url).status_code == 403
    answer = client.get(server.base + "/key?expires=1&signature=top-secret")
    assert "<Code>SignatureDoesNotMatch</Code>" in answer.text
    assert "top-secret" not in answer.text


# --- streams


def test_large_objects_in_bounded_memory(
    client: httpx.Client, server: ObjectServer, storage: FsspecStorage, tmp_path: Path
) -> None:
    """200 MiB up and down leave the server below 64 MiB above what it held before."""
    size = 200 * _MIB
    source, block = tmp_path / "source", os.urandom(_MIB)
    with source.open("wb") as file:
        for _ in range(200):
            file.write(block)
    put = storage.sign_put("warm-up", expires_in=_HOUR, content_type="video/mp4", size=1)
    assert client.put(put.url, headers=put.headers, content=b"x").status_code == 200
    before = server.peak_mib()
    with open_transfers(local=True, stop=Stop()) as transfers:
        put = storage.sign_put("large", expires_in=_HOUR, content_type="video/mp4", size=size)
        transfers.upload(put, source, moved=lambda _: None)
        url = storage.sign_get("large", expires_in=_HOUR)
        found = transfers.download(url, tmp_path / "found", size=size, moved=lambda _: None)
    with found.open("rb") as file, source.open("rb") as original:
        assert hashlib.file_digest(file, "md5").digest() == hashlib.file_digest(original, "md5").digest()
    assert server.peak_mib() - before < 64


def test_a_large_replay_hears_that_it_is_one(client: httpx.Client, storage: FsspecStorage) -> None:
    """An upload of 20 MiB over an object that stands is answered 412, not cut off."""
    storage.put("key", b"first")
    put = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4")
    assert client.put(put.url, headers=put.headers, content=b"x" * (20 * _MIB)).status_code == 412


def test_an_upload_that_breaks_off_leaves_nothing(server: ObjectServer, storage: FsspecStorage) -> None:
    """A client that goes away in the middle leaves no object, and the upload can be tried again."""
    put = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4", size=_MIB)
    parts = urlsplit(put.url)
    head = [f"PUT {parts.path}?{parts.query} HTTP/1.1", f"host: {parts.netloc}"]
    head += [f"{name}: {value}" for name, value in put.headers.items()]
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as raw:
        raw.sendall("\r\n".join([*head, "", ""]).encode() + b"x" * 300_000)
        temporary = server.folder / ".renderdispatch-tmp"
        eventually(lambda: temporary.is_dir() and any(path.stat().st_size for path in temporary.iterdir()))
    eventually(lambda: not any(temporary.iterdir()))
    assert list(storage.list("")) == []
    assert httpx.put(put.url, headers=put.headers, content=b"x" * _MIB, trust_env=False).status_code == 200


def test_a_download_that_nobody_takes_ends(server: ObjectServer, storage: FsspecStorage) -> None:
    """A client that goes away in the middle of a download costs the server no open file."""
    storage.put("large", (b"x" * _MIB for _ in range(32)))
    with httpx.stream("GET", storage.sign_get("large", expires_in=_HOUR), trust_env=False) as answer:
        assert next(answer.iter_raw(1000))
    large = str(server.folder / "large")

    def closed() -> bool:
        files = [path for pid in server.pids() for path in Path(f"/proc/{pid}/fd").iterdir()]
        return large not in [os.path.realpath(path) for path in files]

    eventually(closed)


# --- the whole way


@pytest.mark.parametrize("kind", KINDS)
def test_a_render_goes_through_http_urls(kind: str, tmp_path: Path) -> None:
    """A client uploads audio, a local render reads it and writes its video, all by signed http URLs of this machine."""
    with object_server(kind, tmp_path / "objects") as server, registered_scenes(tmp_path / "scenes"):
        storage = _Seen(server)
        with RenderService(MemoryJobStore(), storage, LocalGpuBackend(slots=1), owned=()) as service:
            grant = service.create_upload(size=12, content_type="audio/wav")
            sent = httpx.put(grant.put.url, headers=grant.put.headers, content=b"RIFF, a song", trust_env=False)
            assert sent.status_code == 200
            handle = service.submit(StorageKey(grant.key), scene="fake")
            assert handle.wait(60).status is JobStatus.COMPLETE
            url = handle.download_url()
            assert url.startswith(server.base)
            assert httpx.get(url, trust_env=False, timeout=60).content == b"a video of nothing"
        assert storage.puts == 0  # everything came by URLs


class _Seen(FsspecStorage):
    """Counts what is written other than by URL."""

    def __init__(self, server: ObjectServer) -> None:
        super().__init__(server.folder, urls=server.urls(locality=Locality.MACHINE))
        self.puts = 0

    def put(self, *args: Any, **options: Any) -> Any:
        self.puts += 1
        return super().put(*args, **options)

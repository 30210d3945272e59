"""Does `MemoryStorage` keep the promises of a storage?"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.errors import StorageDeniedError
from renderdispatch.plumbing import local_urls
from renderdispatch.protocols import ObjectInfo
from renderdispatch.storage.memory import MemoryStorage, _Object
from renderdispatch.testing import FakeClock, StorageContract

_HOUR = timedelta(hours=1)


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()

    def raw_get(self, storage: Any, key: str) -> bytes | None:
        found = storage._objects._objects.get(key)
        return None if found is None else bytes(found.data)

    def raw_set(self, storage: Any, key: str, data: bytes) -> None:
        info = ObjectInfo(key=key, size=len(data), etag=hashlib.sha256(data).hexdigest())
        storage._objects._objects[key] = _Object(data, info)


def test_a_url_expires_to_the_microsecond() -> None:
    """A URL works until its lifetime is over, by the storage's clock."""
    clock = FakeClock()
    storage = MemoryStorage(clock=clock)
    storage.put("key", b"hello")
    url = storage.sign_get("key", expires_in=_HOUR)
    clock.advance(_HOUR - timedelta(microseconds=1))
    assert local_urls.open_get(url).read() == b"hello"
    clock.advance(timedelta(microseconds=1))
    with pytest.raises(StorageDeniedError, match="expired"):
        local_urls.open_get(url)


def test_a_url_is_bound_to_its_verb(tmp_path: Path) -> None:
    """A URL that reads cannot write, and the other way round."""
    storage = MemoryStorage()
    (tmp_path / "source").write_bytes(b"x")
    get = storage.sign_get("key", expires_in=_HOUR)
    put = storage.sign_put("key", expires_in=_HOUR, content_type="text/plain")
    with pytest.raises(StorageDeniedError):
        local_urls.put_once(get, tmp_path / "source")
    with pytest.raises(StorageDeniedError):
        local_urls.open_get(put.url)
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    "change",
    [
        ("/key", "/other"),
        ("headers=", "headers=x"),
        ("expires=", "expires=9"),
        ("&signature=", "&signature=0"),
        ("&signature=", "&expires=32472144000&signature="),
        ("&signature=", "&signature=é"),
        ("&signature=", "&x="),
        ("memory://", "memory://0"),
        ("memory://", "memory:"),
        ("memory://", "http://"),
        ("memory://", ""),
    ],
)
def test_a_forged_url_is_refused(change: tuple[str, str]) -> None:
    """A URL that was changed anywhere is refused, and the refusal does not quote it."""
    storage = MemoryStorage()
    storage.put("key", b"hello")
    storage.put("other", b"secret")
    url = storage.sign_get("key", expires_in=_HOUR)
    with pytest.raises(StorageDeniedError) as refusal:
        local_urls.open_get(url.replace(*change))
    assert "signature=" not in str(refusal.value)


def test_another_storage_does_not_honour_the_url() -> None:
    """A URL names an object of the storage that signed it, and no other's."""
    mine, theirs = MemoryStorage(), MemoryStorage()
    theirs.put("key", b"secret")
    host = theirs.sign_get("x", expires_in=_HOUR).split("/")[2]
    url = mine.sign_get("key", expires_in=_HOUR)
    with pytest.raises(StorageDeniedError):
        local_urls.open_get(url.replace(url.split("/")[2], host))


def test_urls_end_with_their_storage() -> None:
    """The registry of memory: URLs keeps no storage alive."""
    url = MemoryStorage().sign_get("key", expires_in=_HOUR)
    with pytest.raises(StorageDeniedError, match="storage is closed"):
        local_urls.open_get(url)

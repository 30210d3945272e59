"""How are objects kept in this process, for tests and notebooks?

In a dictionary. Signed URLs are ``memory:`` URLs that only this process can use. They are signed, they expire, and a
write-once upload is refused if the object exists, as with the storages that this one stands in for.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing import local_urls
from renderdispatch.plumbing.files import read_chunks
from renderdispatch.protocols import Locality, ObjectInfo
from renderdispatch.storage.objects import ObjectStorage
from renderdispatch.storage.signing import SignedUrls


class MemoryStorage(ObjectStorage):
    """Keeps objects in a dictionary.

    Args:
        clock: Returns the time, aware and in UTC; by it signed URLs expire.
        urls: Signs http URLs instead, which `renderdispatch.web.objects` serves; they expire by its own clock.
    """

    def __init__(
        self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC), urls: SignedUrls | None = None
    ) -> None:
        super().__init__(MemoryObjects(clock), urls)


@frozen
class _Object:
    data: bytes = field(repr=False)
    info: ObjectInfo


class MemoryObjects:
    """Keeps objects in a dictionary, and signs the ``memory:`` URLs that `renderdispatch.plumbing.local_urls` takes.

    Args:
        clock: Returns the time, aware and in UTC.
    """

    locality = Locality.PROCESS
    writes_once = True

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, _Object] = {}
        self._id = secrets.token_hex(8)
        self._urls = SignedUrls(f"memory://{self._id}", secrets.token_bytes(32), locality=self.locality, clock=clock)
        local_urls.register(self._id, self)

    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo:
        """Write an object, whole or not at all."""
        data = b"".join(chunks)
        etag = hashlib.sha256(data).hexdigest()
        info = ObjectInfo(key=key, size=len(data), etag=etag, modified_at=self._clock())
        with self._lock:
            if if_absent and key in self._objects:
                raise ObjectExistsError(f"{key!r} is write-once, and an object exists there")
            self._objects[key] = _Object(data, info)
        return info

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        return io.BytesIO(self._find(key).data)

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size and etag."""
        return self._find(key).info

    def _find(self, key: str) -> _Object:
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise ObjectNotFoundError(f"nothing is stored under {key!r}")
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects as they are now, sorted by key."""
        with self._lock:
            found = [self._objects[key].info for key in sorted(self._objects) if key.startswith(prefix)]
        yield from found

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with self._lock:
            self._objects.pop(key, None)

    # --- signed URLs

    def sign_get(self, key: str, expires_in: timedelta) -> str:
        """Return a URL for `open_url`."""
        return self._urls.sign_get(key, expires_in=expires_in)

    def sign_put(self, key: str, expires_in: timedelta, size: int | None) -> SignedPut:
        """Return a URL for `put_url`."""
        return SignedPut(url=self._urls.sign_put(key, expires_in=expires_in, content_type="", size=size).url)

    def open_url(self, url: str) -> BinaryIO:
        """Open the object that a URL of `sign_get` names."""
        return self.open(self._check("GET", url, {}))

    def put_url(self, url: str, source: Path) -> None:
        """Write a file to a URL of `sign_put`."""
        headers = {"if-none-match": "*", "content-length": str(source.stat().st_size)}
        self.write(self._check("PUT", url, headers), read_chunks(source), if_absent=True)

    def _check(self, method: str, url: str, headers: dict[str, str]) -> str:
        """Return the key of a URL that was signed here for this method and these headers, and has not expired."""
        parts = urlsplit(url)
        key = unquote(parts.path.removeprefix("/"))
        self._urls.check(method, key, parts.query, headers)
        return key

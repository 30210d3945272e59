"""How are objects kept in this process, for tests and notebooks?

In a dictionary. Signed URLs are ``memory:`` URLs that only this process can use. They are signed, they expire, and a
write-once upload is refused if the object exists, as with the storages that this one stands in for.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from attrs import field, frozen

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, StorageDeniedError
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
        self._secret = secrets.token_bytes(32)
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
        return self._sign("get", key, expires_in)

    def sign_put(self, key: str, expires_in: timedelta, size: int | None) -> SignedPut:
        """Return a URL for `put_url`."""
        bound = {} if size is None else {"size": str(size)}
        return SignedPut(url=self._sign("put", key, expires_in, **bound))

    def open_url(self, url: str) -> BinaryIO:
        """Open the object that a URL of `sign_get` names."""
        key, _ = self._admit("get", url)
        return self.open(key)

    def put_url(self, url: str, source: Path) -> None:
        """Write a file to a URL of `sign_put`."""
        key, bounds = self._admit("put", url)
        size = source.stat().st_size
        if "size" in bounds and size != int(bounds["size"]):
            raise StorageDeniedError(f"{key!r} was to be {bounds['size']} bytes, not {size}")
        self.write(key, read_chunks(source), if_absent=True)

    def _sign(self, verb: str, key: str, expires_in: timedelta, **bounds: str) -> str:
        query = urlencode({"op": verb, "until": (self._clock() + expires_in).isoformat(), **bounds})
        unsigned = f"memory://{self._id}/{quote(key, safe='/')}?{query}"
        return f"{unsigned}&signature={self._signature(unsigned)}"

    def _signature(self, unsigned: str) -> str:
        return hmac.digest(self._secret, unsigned.encode(), "sha256").hex()

    def _admit(self, verb: str, url: str) -> tuple[str, dict[str, str]]:
        """Return the key and the bounds of a URL that was signed here for ``verb`` and has not expired."""
        unsigned, _, signature = url.rpartition("&signature=")
        if not hmac.compare_digest(self._signature(unsigned).encode(), signature.encode(errors="replace")):
            raise StorageDeniedError("the signature of a memory: URL does not match")
        parts = urlsplit(unsigned)
        bounds = dict(parse_qsl(parts.query))
        if bounds["op"] != verb:
            raise StorageDeniedError(f"a memory: URL that was signed to {bounds['op']} cannot {verb}")
        if self._clock() >= datetime.fromisoformat(bounds["until"]):
            raise StorageDeniedError("a memory: URL has expired")
        return unquote(parts.path.removeprefix("/")), bounds

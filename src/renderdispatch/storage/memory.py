"""How are objects kept in this process, for tests and notebooks?

In a dictionary. Signed URLs are ``memory:`` URLs that only this process can use; they are signed, they expire, and a
write-once upload is refused where an object stands, as with the storages they stand in for.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from attrs import field, frozen

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, StorageDeniedError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing import local_urls
from renderdispatch.protocols import Locality, ObjectInfo, Source
from renderdispatch.storage.keys import check_expiry, check_key, check_prefix, check_put_size
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.storage.sources import chunks_of


@frozen
class _Object:
    data: bytes = field(repr=False)
    info: ObjectInfo


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryStorage:
    """Keeps objects in a dictionary.

    Args:
        clock: Returns the time, aware and in UTC; by it signed URLs expire.
        urls: Signs http URLs instead, which `renderdispatch.web.objects` serves; they expire by its own clock.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None, urls: SignedUrls | None = None) -> None:
        self._urls = urls
        self._clock = clock or _utc_now
        self._lock = threading.Lock()
        self._objects: dict[str, _Object] = {}
        self._id = secrets.token_hex(8)
        self._secret = secrets.token_bytes(32)
        local_urls.register(self._id, self)

    @property
    def locality(self) -> Locality:
        return Locality.PROCESS if self._urls is None else self._urls.locality

    def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - nobody is told
        if_absent: bool = False,
    ) -> ObjectInfo:
        check_key(key)
        data = b"".join(chunks_of(source))
        etag = hashlib.sha256(data).hexdigest()
        info = ObjectInfo(key=key, size=len(data), etag=etag, modified_at=self._clock())
        with self._lock:
            if if_absent and key in self._objects:
                raise ObjectExistsError(f"{key!r} is write-once, and an object stands there")
            self._objects[key] = _Object(data, info)
        return info

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        return io.BytesIO(self._find(key).data)

    def stat(self, key: str) -> ObjectInfo:
        return self._find(key).info

    def _find(self, key: str) -> _Object:
        with self._lock:
            found = self._objects.get(check_key(key))
        if found is None:
            raise ObjectNotFoundError(f"nothing is stored under {key!r}")
        return found

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            found = sorted(key for key in self._objects if key.startswith(prefix))
            infos = [self._objects[key].info for key in found]
        yield from infos

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def delete_prefix(self, prefix: str) -> int:
        check_prefix(prefix)
        with self._lock:
            doomed = [key for key in self._objects if key.startswith(prefix)]
            for key in doomed:
                del self._objects[key]
        return len(doomed)

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        if self._urls is not None:
            return self._urls.sign_get(key, expires_in=expires_in)
        return self._sign("get", key, expires_in)

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
    ) -> SignedPut:
        if self._urls is not None:
            return self._urls.sign_put(key, expires_in=expires_in, content_type=content_type, size=size)
        bound = {} if check_put_size(size) is None else {"size": str(size)}
        return SignedPut(url=self._sign("put", key, expires_in, **bound))

    def close(self) -> None:
        """Nothing was opened."""

    # --- signed URLs

    def _sign(self, verb: str, key: str, expires_in: timedelta, **bounds: str) -> str:
        until = self._clock() + check_expiry(expires_in)
        query = urlencode({"op": verb, "until": until.isoformat(), **bounds})
        unsigned = f"memory://{self._id}/{quote(check_key(key), safe='/')}?{query}"
        return f"{unsigned}&signature={self._signature(unsigned)}"

    def _signature(self, unsigned: str) -> str:
        return hmac.digest(self._secret, unsigned.encode(), "sha256").hex()

    def _admit(self, verb: str, url: str) -> tuple[str, dict[str, str]]:
        """Return the key and the bounds of a URL that was signed here for ``verb`` and has not expired."""
        unsigned, _, signature = url.rpartition("&signature=")
        if not hmac.compare_digest(self._signature(unsigned).encode(), signature.encode(errors="replace")):
            raise StorageDeniedError("the signature of a memory: URL does not fit")
        parts = urlsplit(unsigned)
        bounds = dict(parse_qsl(parts.query))
        if bounds["op"] != verb:
            raise StorageDeniedError(f"a memory: URL that was signed to {bounds['op']} cannot {verb}")
        if self._clock() >= datetime.fromisoformat(bounds["until"]):
            raise StorageDeniedError("a memory: URL has expired")
        return unquote(parts.path.removeprefix("/")), bounds

    def open_url(self, url: str) -> BinaryIO:
        """Open the object that a URL of `sign_get` names; see `renderdispatch.plumbing.local_urls`."""
        key, _ = self._admit("get", url)
        return io.BytesIO(self._find(key).data)

    def put_url(self, url: str, source: Path) -> None:
        """Write a file to a URL of `sign_put`."""
        key, bounds = self._admit("put", url)
        size = source.stat().st_size
        if "size" in bounds and size != int(bounds["size"]):
            raise StorageDeniedError(f"{key!r} was to be {bounds['size']} bytes, not {size}")
        self.put(key, source, if_absent=True)

"""What do the storages share that sign URLs themselves: a folder, another file system, memory?

Each keeps `Objects`, behind one `ObjectStorage`, which checks keys and lifetimes, reads sources, and gives signing to
`SignedUrls` where the application serves http URLs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import BinaryIO, Protocol

from renderdispatch.messages import SignedPut
from renderdispatch.protocols import Locality, ObjectInfo, Source
from renderdispatch.storage.keys import (
    check_expiry,
    check_file_name,
    check_key,
    check_prefix,
    check_put_size,
    check_text,
)
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.storage.sources import chunks_of


class Objects(Protocol):
    """Keeps objects by their keys, which are checked before. Errors are those of `StorageAdapter`."""

    locality: Locality
    """How far the URLs reach that it signs itself."""

    writes_once: bool
    """Whether it can write an object only if it is absent."""

    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo:
        """Write an object, whole or not at all."""

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for reading."""

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size, and its etag if it has one."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects, sorted by key."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    def sign_get(self, key: str, expires_in: timedelta) -> str:
        """Return a URL that reads an object."""

    def sign_put(self, key: str, expires_in: timedelta, size: int | None) -> SignedPut:
        """Return a write-once upload."""


class ObjectStorage:
    """A `StorageAdapter` over `Objects`.

    Args:
        objects: Keeps the objects.
        urls: Signs http URLs in place of the objects' own, which `renderdispatch.web.objects` serves.
    """

    names_files = True

    def __init__(self, objects: Objects, urls: SignedUrls | None) -> None:
        self._objects = objects
        self._urls = urls

    @property
    def locality(self) -> Locality:
        """How far signed URLs reach."""
        return self._objects.locality if self._urls is None else self._urls.locality

    def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - neither files nor memory keep one
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Write an object, whole or not at all. The content type is not kept."""
        return self._objects.write(check_key(key), chunks_of(source), if_absent=if_absent)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for reading."""
        return self._objects.open(check_key(key))

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size, and its etag if it has one."""
        return self._objects.stat(check_key(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose keys start with ``prefix``, sorted by key."""
        return self._objects.list(check_text(prefix))

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        self._objects.delete(check_key(key))

    def delete_prefix(self, prefix: str) -> int:
        """Remove the objects whose keys start with ``prefix``; return how many there were."""
        doomed = [info.key for info in self._objects.list(check_prefix(prefix))]
        for key in doomed:
            self._objects.delete(key)
        return len(doomed)

    def sign_get(self, key: str, *, expires_in: timedelta, file_name: str | None = None) -> str:
        """Return a URL that reads the object for a while; an http URL says the file's name."""
        check_file_name(file_name)
        if self._urls is not None:
            return self._urls.sign_get(key, expires_in=expires_in, file_name=file_name)
        return self._objects.sign_get(check_key(key), check_expiry(expires_in))

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
        file_name: str | None = None,
    ) -> SignedPut:
        """Return a write-once upload; the URL that reads says the file's name."""
        check_file_name(file_name)
        if self._urls is not None and self._objects.writes_once:
            return self._urls.sign_put(key, expires_in=expires_in, content_type=content_type, size=size)
        return self._objects.sign_put(check_key(key), check_expiry(expires_in), check_put_size(size))

    def close(self) -> None:
        """Do nothing: nothing stays open between two calls."""

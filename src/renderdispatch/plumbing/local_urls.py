"""Which object of this machine does a URL name?

``file:`` names a file. ``memory:`` names an object of a storage in this process, as a browser's ``blob:`` URLs do: the
storage registers itself here under a random id, and its URLs are signed and expire.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from renderdispatch.errors import StorageDeniedError
from renderdispatch.plumbing.files import read_chunks, storage_errors, write_file


class Endpoint(Protocol):
    """Serves the ``memory:`` URLs of one storage."""

    def open_url(self, url: str) -> BinaryIO:
        """Open the object that a signed URL reads."""

    def put_url(self, url: str, source: Path) -> None:
        """Write the object that a signed URL writes, once."""


_endpoints: Final[weakref.WeakValueDictionary[str, Endpoint]] = weakref.WeakValueDictionary()


def register(instance_id: str, endpoint: Endpoint) -> None:
    """Let ``memory://<instance_id>/...`` reach ``endpoint`` for as long as another object refers to it."""
    _endpoints[instance_id] = endpoint


def local_path(url: str) -> Path | None:
    """Return the path that a ``file:`` URL names, so that a reader may use the file in place; else None."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"} or "%00" in parts.path or "\0" in parts.path:
        return None
    return path_of(parts.path)


def path_of(quoted: str) -> Path:
    """Return a path that is quoted as in URLs; its bytes need not be text."""
    return Path(os.fsdecode(unquote_to_bytes(quoted)))


def open_get(url: str) -> BinaryIO:
    """Open the object behind a ``file:`` or ``memory:`` URL for reading.

    Raises:
        ObjectNotFoundError: There is no such object.
        StorageDeniedError: The URL is not valid, or has expired.
    """
    if (path := local_path(url)) is not None:
        with storage_errors(path.name):
            return path.open("rb")
    return _endpoint(url).open_url(url)


def put_once(url: str, source_path: Path) -> None:
    """Write a file to a write-once ``file:`` or ``memory:`` URL: whole, or not at all.

    A ``file:`` URL may bound the upload, as ``?size=<bytes>``.

    Raises:
        ObjectExistsError: The object exists.
        StorageDeniedError: The URL is not valid, or has expired, or the file has another size.
        StorageFullError: No space is left.
    """
    if (path := local_path(url)) is None:
        _endpoint(url).put_url(url, source_path)
        return
    size = parse_qs(urlsplit(url).query).get("size")
    bound = int(size[0]) if size and size[0].isdecimal() else None
    write_file(path, read_chunks(source_path), key=path.name, only_if_absent=True, size=bound)


def _endpoint(url: str) -> Endpoint:
    parts = urlsplit(url)
    endpoint = _endpoints.get(parts.netloc) if parts.scheme == "memory" else None
    if endpoint is None:
        raise StorageDeniedError("the URL does not name an object of this machine, or its storage is closed")
    return endpoint

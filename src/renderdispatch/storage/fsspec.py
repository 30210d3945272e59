"""How is any fsspec file system an object storage?

A folder of this machine is used by plain system calls, and keeps every promise of a storage. Other file systems offer
less through fsspec: what they cannot do is refused with a `ConfigurationError`.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from renderdispatch import errors
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.files import CHUNK_BYTES, storage_error
from renderdispatch.plumbing.local_urls import path_of
from renderdispatch.plumbing.net import etag_of
from renderdispatch.protocols import Locality, ObjectInfo
from renderdispatch.storage.folder import Folder
from renderdispatch.storage.keys import check_key
from renderdispatch.storage.objects import ObjectStorage
from renderdispatch.storage.signing import SignedUrls

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""The beginning of a URL, a chained one of fsspec's too."""


class FsspecStorage(ObjectStorage):
    """Keeps objects on a file system that fsspec can reach, a local folder first.

    **A local folder** (``/var/renders``, ``file:///var/renders``) keeps every promise of `StorageAdapter`, between
    processes too. Without ``urls``, signed URLs are ``file:`` URLs. They do not expire: who may read the file may use
    the URL. An object has no etag. No key can continue the key of an object (``a`` and ``a/b``), a part of a key has at
    most 255 bytes on most file systems, and keys under ``.renderdispatch-tmp/`` are refused: that folder holds files
    that are not complete yet.

    **fsspec's memory** (``memory://name``) is write-once among the threads of this process. Without ``urls`` it signs
    no URLs; use `MemoryStorage` if you need them.

    **Any other** (``sftp://...``, ``gs://...``): an upload is spooled to the local disk first, so a source that raises
    leaves no trace. Whether readers may see a part of a running upload depends on the file system (object stores show
    none). ``if_absent`` and `sign_put` are refused, because fsspec has no atomic operation for them; `sign_get` works
    if the file system can sign.

    Args:
        url: Of the folder: a path, or a URL that fsspec knows. In a `Path` no character has another meaning; text that
            begins like a URL (``name:``) is one, and ``./name:`` a path.
        urls: Signs http URLs instead of ``file:`` URLs, which `renderdispatch.web.objects` serves. They expire, and
            reach as far as the server that serves them.
        storage_options: What fsspec's file system takes: credentials and the like.

    Raises:
        ConfigurationError: fsspec does not know the URL's protocol.
        MissingExtraError: The package that speaks it is not installed.
    """

    def __init__(self, url: str | os.PathLike[str], *, urls: SignedUrls | None = None, **storage_options: Any) -> None:
        objects = _objects(url, storage_options)
        super().__init__(objects, urls)
        self._where = objects.where

    def __repr__(self) -> str:
        return f"FsspecStorage({self._where!r})"


def _objects(url: str | os.PathLike[str], options: dict[str, Any]) -> Folder | _Remote:
    folder = _folder(url)
    if folder is None:
        system, root = _file_system(os.fspath(url), options)
        if not isinstance(system, LocalFileSystem):
            return _Remote(system, root)
        folder = Path(root)
    try:
        return Folder(folder)
    except FileNotFoundError:
        message = "the folder of the storage is relative, and the working directory is gone; write an absolute path"
        raise errors.ConfigurationError(message) from None


def _folder(url: str | os.PathLike[str]) -> Path | None:
    """Return the folder of this machine that a path or a ``file:`` URL names; None for other URLs."""
    try:
        text = os.fsdecode(url)
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        raise errors.ConfigurationError(f"{str(url)[:80]!a} names no folder; write a path or a URL") from None
    if not isinstance(url, str):
        return Path(text)
    if url.startswith("file:"):  # as `Path.as_uri` quotes
        path = url.removeprefix("file:").removeprefix("//")
        return path_of(path.removeprefix("localhost") if path.startswith("localhost/") else path)
    if _URL.match(url):
        return None
    try:
        return Path(url).expanduser() if url.startswith("~") else Path(url)
    except RuntimeError:
        message = f"{url[:80]!r} names a user who has no home folder; write an absolute path"
        raise errors.ConfigurationError(message) from None


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    protocol = url.partition(":")[0]
    try:
        system, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        raise errors.MissingExtraError(f"{protocol}: URLs need a package that is not installed: {error}") from error
    except ValueError as error:
        message = (
            f"fsspec cannot open a {protocol[:40]}: URL with these options; to name a folder so, write ./ before it"
        )
        raise errors.ConfigurationError(message) from error
    return system, str(root)


_memory_lock: Final = threading.Lock()
"""fsspec's memory is one for the whole process."""


class _Remote:
    """Any fsspec file system but the local one."""

    def __init__(self, system: Any, root: str) -> None:
        self._system = system
        self._root = root if root.endswith("/") or not root else f"{root}/"
        self.where = f"{_protocol(system)}://{self._root.strip('/')}"
        self.writes_once = self._in_memory = isinstance(system, MemoryFileSystem)
        self.locality = Locality.PROCESS if self._in_memory else Locality.MACHINE

    def _path(self, key: str) -> str:
        return f"{self._root}{key}"

    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo:
        if self._in_memory:
            data = b"".join(chunks)
            with _memory_lock, _translated(key):
                if if_absent and self._system.isfile(self._path(key)):
                    raise errors.ObjectExistsError(f"{key!r} is write-once, and an object exists there")
                self._system.pipe_file(self._path(key), data)
            return self.stat(key)
        if if_absent:
            raise self._lacks("write an object only if it is absent")
        with tempfile.NamedTemporaryFile() as spool:
            for chunk in chunks:
                with _translated(key):
                    spool.write(chunk)
            with _translated(key):
                spool.flush()
                self._system.put_file(spool.name, self._path(key))
        return self.stat(key)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        self.stat(key)
        with _translated(key):
            if self._in_memory:  # its open files share one position
                return io.BytesIO(self._system.cat_file(self._path(key)))
            opened: AbstractContextManager[BinaryIO] = self._system.open(self._path(key), "rb", block_size=CHUNK_BYTES)
            return opened

    def stat(self, key: str) -> ObjectInfo:
        with _translated(key):
            found = self._system.info(self._path(key))
        if found["type"] != "file":
            raise errors.ObjectNotFoundError(f"nothing is stored under {key!r}")
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        try:
            below = self._path(check_key(folder)) if folder else self._root
        except errors.StorageDeniedError:  # no object can have such a key
            return
        found: dict[str, Any] = {}
        with _translated(folder), suppress(FileNotFoundError):
            found = self._system.find(below, detail=True)
        start = len(self._root)
        infos = [_info(path[start:], info) for path, info in found.items() if info and info["type"] == "file"]
        yield from sorted((info for info in infos if info.key.startswith(prefix)), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with _translated(key), suppress(FileNotFoundError, NotADirectoryError):  # deleted concurrently
            if self._system.isfile(self._path(key)):
                self._system.rm_file(self._path(key))

    def sign_get(self, key: str, expires_in: timedelta) -> str:
        try:
            with _translated(key):
                url: str = self._system.sign(self._path(key), expiration=max(1, int(expires_in.total_seconds())))
        except NotImplementedError:
            raise self._lacks("sign URLs") from None
        return url

    def sign_put(self, key: str, expires_in: timedelta, size: int | None) -> SignedPut:  # noqa: ARG002 - as of `Objects`
        raise self._lacks("sign write-once uploads")

    def _lacks(self, power: str) -> errors.ConfigurationError:
        system = f"fsspec's {_protocol(self._system)} file system"
        return errors.ConfigurationError(f"{system} cannot {power}: use a local folder, MemoryStorage or R2Storage")


def _protocol(system: Any) -> str:
    return str(system.protocol if isinstance(system.protocol, str) else system.protocol[0])


def _info(key: str, found: dict[str, Any]) -> ObjectInfo:
    etag = etag_of(found.get("ETag") or found.get("etag"))
    modified = found.get("LastModified") or found.get("created")
    modified_at = modified if isinstance(modified, datetime) and modified.tzinfo else None
    return ObjectInfo(key=key, size=int(found["size"]), etag=etag, modified_at=modified_at)


def _translated(key: str) -> AbstractContextManager[None]:
    """Raise errors of other libraries as ours. Their texts may hold URLs and are left out."""

    def absent(_: OSError) -> errors.StorageError:
        return errors.ObjectNotFoundError(f"nothing is stored under {key!r}")

    def unchanged(error: Exception) -> Exception:
        return error

    return translated(
        {
            errors.RenderDispatchError: unchanged,
            NotImplementedError: unchanged,
            FileNotFoundError: absent,  # often without a number
            NotADirectoryError: absent,
            PermissionError: lambda _: errors.StorageDeniedError(f"{key!r} is refused: no permission"),
            OSError: lambda error: storage_error(error, key),
            Exception: lambda error: errors.StorageUnavailableError(
                f"{key!r} cannot be reached: {type(error).__name__}"
            ),
        },
        chain=True,
    )

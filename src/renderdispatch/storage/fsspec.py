"""How is any fsspec file system an object storage?

A folder of this machine by plain system calls, with everything that a storage promises. Any other file system by what
fsspec offers, which is less: what cannot be kept is refused with a `ConfigurationError` rather than promised.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from renderdispatch.errors import (
    ConfigurationError,
    MissingExtraError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.files import CHUNK_BYTES, storage_error
from renderdispatch.protocols import Locality, ObjectInfo, Source
from renderdispatch.storage.folder import Folder
from renderdispatch.storage.keys import check_expiry, check_key, check_prefix, check_put_size
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.storage.sources import chunks_of


class FsspecStorage:
    """Keeps objects on a file system that fsspec can reach, a local folder first.

    **A local folder** (``/var/renders``, ``file:///var/renders``) keeps every promise of `StorageAdapter`, between
    processes too. Without ``urls``, signed URLs are ``file:`` URLs: they do not expire, for whoever may read the file
    may read it. An object has no etag. Nothing can stand below a key that is an object itself, a part of a key has at
    most 255 bytes on most file systems, and keys under ``.renderdispatch-tmp/`` are refused: files that are not whole
    yet lie there.

    **fsspec's memory** (``memory://name``) is write-once among the threads of this process. Without ``urls`` it signs
    none; use `MemoryStorage` where they are needed.

    **Any other** (``sftp://...``, ``gs://...``): an upload is spooled to the local disk first, so a source that raises
    leaves no trace; whether readers may see a part of a running upload is up to the file system (object stores show
    none). ``if_absent`` and `sign_put` are refused, as fsspec has nothing atomic for them; `sign_get` works where the
    file system can sign.

    Args:
        url: Where the objects lie: a path, or a URL that fsspec knows.
        urls: Signs http URLs instead of ``file:`` URLs, which `renderdispatch.web.objects` serves. They expire, and
            reach as far as the server that serves them.
        storage_options: What fsspec's file system takes: credentials and the like.

    Raises:
        ConfigurationError: fsspec does not know the URL's protocol.
        MissingExtraError: The package that speaks it is not installed.
    """

    def __init__(self, url: str | os.PathLike[str], *, urls: SignedUrls | None = None, **storage_options: Any) -> None:
        self._urls = urls
        system, root = _file_system(os.fspath(url), storage_options)
        self._objects: _Objects = Folder(Path(root)) if isinstance(system, LocalFileSystem) else _Remote(system, root)

    def __repr__(self) -> str:
        return f"FsspecStorage({self._objects.where!r})"

    @property
    def locality(self) -> Locality:
        return self._objects.locality if self._urls is None else self._urls.locality

    def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str = "application/octet-stream",  # noqa: ARG002 - file systems keep none
        if_absent: bool = False,
    ) -> ObjectInfo:
        return self._objects.write(check_key(key), chunks_of(source), if_absent=if_absent)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        return self._objects.open(check_key(key))

    def stat(self, key: str) -> ObjectInfo:
        return self._objects.info(check_key(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._objects.list(prefix)

    def delete(self, key: str) -> None:
        self._objects.delete(check_key(key))

    def delete_prefix(self, prefix: str) -> int:
        doomed = [info.key for info in self._objects.list(check_prefix(prefix))]
        for key in doomed:
            self._objects.delete(key)
        return len(doomed)

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        if self._urls is not None:
            return self._urls.sign_get(key, expires_in=expires_in)
        return self._objects.sign_get(check_key(key), check_expiry(expires_in))

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
    ) -> SignedPut:
        if self._urls is not None and self._objects.writes_once:
            return self._urls.sign_put(key, expires_in=expires_in, content_type=content_type, size=size)
        check_expiry(expires_in)
        return self._objects.sign_put(check_key(key), check_put_size(size))

    def close(self) -> None:
        """Nothing is held open between calls."""


class _Objects(Protocol):
    """What the two kinds of file systems do for the storage; keys are checked before."""

    @property
    def where(self) -> str: ...
    @property
    def locality(self) -> Locality: ...
    @property
    def writes_once(self) -> bool: ...
    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo: ...
    def open(self, key: str) -> AbstractContextManager[BinaryIO]: ...
    def info(self, key: str) -> ObjectInfo: ...
    def list(self, prefix: str) -> Iterator[ObjectInfo]: ...
    def delete(self, key: str) -> None: ...
    def sign_get(self, key: str, expires_in: timedelta) -> str: ...
    def sign_put(self, key: str, size: int | None) -> SignedPut: ...


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    if url.startswith("file:"):
        url = unquote(url)  # as `Path.as_uri` quotes; fsspec takes it as it is
    protocol = url.partition(":")[0]
    try:
        system, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        raise MissingExtraError(f"{protocol}: URLs need a package that is not installed: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"fsspec cannot open a {protocol[:40]}: URL with these options") from error
    return system, str(root)


_memory_lock: Final = threading.Lock()
"""fsspec's memory is one for the whole process."""


class _Remote:
    """Any fsspec file system but the local one."""

    def __init__(self, system: Any, root: str) -> None:
        self._system = system
        self._root = root if root.endswith("/") or not root else f"{root}/"
        self._in_memory = isinstance(system, MemoryFileSystem)

    @property
    def where(self) -> str:
        return f"{_protocol(self._system)}://{self._root.strip('/')}"

    @property
    def locality(self) -> Locality:
        return Locality.PROCESS if self._in_memory else Locality.MACHINE

    @property
    def writes_once(self) -> bool:
        return self._in_memory

    def _path(self, key: str) -> str:
        return f"{self._root}{key}"

    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo:
        if self._in_memory:
            self._write_in_memory(key, b"".join(chunks), if_absent=if_absent)
            return self.info(key)
        if if_absent:
            raise self._lacks("write an object only if it is absent")
        with tempfile.NamedTemporaryFile() as spool:
            for chunk in chunks:
                with _translated(key):
                    spool.write(chunk)
            with _translated(key):
                spool.flush()
                self._system.put_file(spool.name, self._path(key))
        return self.info(key)

    def _write_in_memory(self, key: str, data: bytes, *, if_absent: bool) -> None:
        with _memory_lock, _translated(key):
            if if_absent and self._system.isfile(self._path(key)):
                raise ObjectExistsError(f"{key!r} is write-once, and an object stands there")
            self._system.pipe_file(self._path(key), data)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        self.info(key)
        with _translated(key):
            if self._in_memory:  # its open files share one position
                return io.BytesIO(self._system.cat_file(self._path(key)))
            opened: AbstractContextManager[BinaryIO] = self._system.open(self._path(key), "rb", block_size=CHUNK_BYTES)
            return opened

    def info(self, key: str) -> ObjectInfo:
        with _translated(key):
            found = self._system.info(self._path(key))
        if found["type"] != "file":
            raise ObjectNotFoundError(f"nothing is stored under {key!r}")
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        try:
            below = self._path(check_key(folder)) if folder else self._root
        except StorageDeniedError:  # no object can have such a key
            return
        with _translated(folder):
            try:
                found = self._system.find(below, detail=True)
            except FileNotFoundError:
                return
        start = len(self._root)
        infos = [_info(path[start:], info) for path, info in found.items() if info and info["type"] == "file"]
        yield from sorted((info for info in infos if info.key.startswith(prefix)), key=lambda info: info.key)

    def delete(self, key: str) -> None:
        with _translated(key):
            try:
                if self._system.isfile(self._path(key)):
                    self._system.rm_file(self._path(key))
            except (FileNotFoundError, NotADirectoryError):  # somebody was faster
                return

    def sign_get(self, key: str, expires_in: timedelta) -> str:
        try:
            with _translated(key):
                url: str = self._system.sign(self._path(key), expiration=max(1, int(expires_in.total_seconds())))
        except NotImplementedError:
            raise self._lacks("sign URLs") from None
        return url

    def sign_put(self, key: str, size: int | None) -> SignedPut:  # noqa: ARG002 - one signature
        raise self._lacks("sign write-once uploads")

    def _lacks(self, power: str) -> ConfigurationError:
        system = f"fsspec's {_protocol(self._system)} file system"
        return ConfigurationError(f"{system} cannot {power}: use a local folder, MemoryStorage or R2Storage")


def _protocol(system: Any) -> str:
    protocol = system.protocol
    return protocol if isinstance(protocol, str) else str(protocol[0])


def _info(key: str, found: dict[str, Any]) -> ObjectInfo:
    etag = found.get("ETag") or found.get("etag")
    modified = found.get("LastModified") or found.get("created")
    return ObjectInfo(
        key=key,
        size=int(found["size"]),
        etag=str(etag).strip('"') if etag else None,
        modified_at=modified if isinstance(modified, datetime) and modified.tzinfo else None,
    )


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """Name foreign errors as this library does. Their texts may hold URLs and are left out."""
    try:
        yield
    except (StorageError, ConfigurationError, NotImplementedError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:  # often without a number
        raise ObjectNotFoundError(f"nothing is stored under {key!r}") from error
    except PermissionError as error:
        raise StorageDeniedError(f"{key!r} is refused: no permission") from error
    except OSError as error:
        raise storage_error(error, key) from error
    except Exception as error:
        raise StorageUnavailableError(f"{key!r} cannot be reached: {type(error).__name__}") from error

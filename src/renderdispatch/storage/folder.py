"""How is a folder of this machine an object storage?

A key is a path below the folder. One hidden folder holds the files that are not complete yet. A symbolic link is
followed only if it leads to a place inside the folder.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

from renderdispatch.errors import ObjectNotFoundError, StorageDeniedError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.files import TEMPORARY, rehearse, storage_error, storage_errors, write_file
from renderdispatch.protocols import Locality, ObjectInfo
from renderdispatch.storage.keys import check_key

_STALE_S: Final = 86400.0
"""No write takes a day: an older temporary file was left by a writer that died."""


class Folder:
    """Keeps objects as files below ``root``, which is made by the first write."""

    locality = Locality.MACHINE
    writes_once = True

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - the root itself may be a link
        self.where = self.root.as_uri()
        self._lock = threading.Lock()
        self._prepared = False

    def path(self, key: str) -> Path:
        """Return the path of the object, which need not exist.

        Raises:
            StorageDeniedError: The key is not allowed, or a symbolic link leads it out of the folder.
        """
        path = self.root / check_key(key)
        if key.split("/", 1)[0].casefold() == TEMPORARY:
            raise StorageDeniedError(f"the key {key!r} is refused: the storage keeps {TEMPORARY} for itself")
        try:
            inside = path.resolve().is_relative_to(self.root.resolve()) and not _is_loop(path)
        except OSError as error:
            raise storage_error(error, key) from error
        except RuntimeError:  # a loop of links, as Python 3.11 and 3.12 report it
            inside = False
        if not inside:
            raise StorageDeniedError(f"the key {key!r} is refused: a symbolic link leads out of the storage")
        return path

    def prepare(self) -> None:
        """Make the folder for temporary files, and remove the files that dead writers left there; once.

        It is also found out here whether the file system can write a file once: an upload is signed before a render
        begins, and would be refused after it.
        """
        with self._lock:
            if self._prepared:
                return
            with storage_errors(str(self.root)):
                temporary = self.root / TEMPORARY
                try:
                    temporary.mkdir(parents=True, exist_ok=True)
                except (FileNotFoundError, FileExistsError) as error:  # in /proc; or a link to nothing has its name
                    raise StorageDeniedError(f"the folder {self.root} cannot be made: {error.strerror}") from error
                for path in temporary.iterdir():
                    with suppress(FileNotFoundError):
                        if path.lstat().st_mtime < time.time() - _STALE_S:
                            path.unlink()
            rehearse(temporary / "object", key=str(self.root), only_if_absent=True)
            self._prepared = True

    def write(self, key: str, chunks: Iterator[bytes], *, if_absent: bool) -> ObjectInfo:
        """Write an object whole, or not at all."""
        path = self.path(key)
        self.prepare()
        return _info(key, write_file(path, chunks, key=key, only_if_absent=if_absent))

    def open(self, key: str) -> BinaryIO:
        """Open the object for reading."""
        self.stat(key)  # opening a pipe would wait for its writer
        with storage_errors(key):
            return self.path(key).open("rb")

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size. There is no etag: file systems keep none, and a hash would read the whole file."""
        path = self.path(key)
        try:
            found = path.stat()
        except NotADirectoryError:
            found = None
        except OSError as error:
            raise storage_error(error, key) from error
        if found is None or not stat.S_ISREG(found.st_mode):
            raise ObjectNotFoundError(f"nothing is stored under {key!r}")
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects, sorted by key. The entries of one folder at a time are in memory."""
        return self._list_below(self.root, "", prefix)

    def _list_below(self, folder: Path, above: str, prefix: str) -> Iterator[ObjectInfo]:
        for name, entry in _entries(folder):
            key = above + name
            if key == f"{TEMPORARY}/" or not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if name.endswith("/"):
                yield from self._list_below(Path(entry.path), key, prefix)
            elif key.startswith(prefix):
                with suppress(ObjectNotFoundError, StorageDeniedError):  # deleted meanwhile, or not an object
                    yield self.stat(key)

    def delete(self, key: str) -> None:
        """Remove the object, and the folders above it that it leaves empty."""
        path = self.path(key)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if path.is_dir():
                return
            raise storage_error(error, key) from error
        for parent in path.relative_to(self.root).parents:
            if parent != Path():
                try:
                    (self.root / parent).rmdir()
                except OSError:  # not empty, or deleted concurrently
                    return

    def sign_get(self, key: str, expires_in: timedelta) -> str:  # noqa: ARG002 - permission to read the file is enough
        """Return the object's ``file:`` URL."""
        return self.path(key).as_uri()

    def sign_put(self, key: str, expires_in: timedelta, size: int | None) -> SignedPut:  # noqa: ARG002 - as of `Objects`
        """Return the ``file:`` URL under which `renderdispatch.plumbing.local_urls` writes the object once."""
        url = self.path(key).as_uri()
        self.prepare()
        return SignedPut(url=url if size is None else f"{url}?size={size}")


def _is_loop(path: Path) -> bool:
    """Return whether links lead in a circle, which `Path.resolve` ignores since Python 3.13."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=found.st_size, modified_at=datetime.fromtimestamp(found.st_mtime, UTC))


def _entries(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Return a folder's entries in the order of the keys below them: a folder sorts by its name and a slash."""
    named = []
    # a folder may be missing: nothing was written yet, or a concurrent delete removed it
    with storage_errors(folder.name), suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        named = [(e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in found]
    return sorted(named, key=lambda pair: pair[0])

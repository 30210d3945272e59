"""How does a file come to stand whole, or not at all?

It is written under another name on the same file system, brought to disk, and only then given its name: by a rename,
which replaces, or by a hard link, which is refused where something stands. Readers never see a part, and a writer that
is killed leaves nothing but a temporary file.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from renderdispatch.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)

TEMPORARY: Final = ".renderdispatch-tmp"
"""The folder, at the root of a storage, where files lie until they are whole; a prefix of their names elsewhere."""

CHUNK_BYTES: Final = 1 << 20

_PATIENCE_S: Final = 10.0
_SHORTLY_S: Final = 0.001

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT: Final = frozenset({errno.ENOENT})
_DENIED: Final = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted, or the file system has no hard links",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "a part of the key is longer than the file system allows",
    errno.ENOTDIR: "a part of the key is an object, and nothing can stand below it in a folder",
    errno.EISDIR: "objects stand below this key, so nothing can stand under it in a folder",
    errno.ELOOP: "a symbolic link goes in circles",
}


def storage_error(error: OSError, key: str) -> StorageError:
    """Return what an error of the file system means for the object ``key``."""
    if error.errno in _FULL:
        return StorageFullError(f"no space is left to write {key!r}")
    if error.errno in _ABSENT:
        return ObjectNotFoundError(f"nothing is stored under {key!r}")
    if error.errno in _DENIED:
        return StorageDeniedError(f"{key!r} is refused: {_DENIED[error.errno]}")
    return StorageUnavailableError(f"{key!r} cannot be reached: {error.strerror or type(error).__name__}")


def read_chunks(path: Path) -> Iterator[bytes]:
    """Iterate over a file's bytes."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def write_file(
    target: Path, chunks: Iterable[bytes], *, key: str, only_if_absent: bool, size: int | None = None
) -> os.stat_result:
    """Write ``chunks`` to ``target``, whole or not at all, and return what the file system says of the file.

    Args:
        target: Missing folders above it are made.
        chunks: What it raises passes through, and nothing is written.
        key: What errors call the object.
        only_if_absent: Refuse where something stands. Atomic.
        size: Refuse any other number of bytes.

    Raises:
        ObjectExistsError: Something stands there, and ``only_if_absent``.
        StorageFullError: No space is left.
        StorageDeniedError: The file system does not allow it, or ``size`` does not fit.
        StorageUnavailableError: The file system fails.
    """
    with _translated(key):
        file, temporary = _new_file(_folder_for_temporary(target))
    try:
        with file:
            for chunk in chunks:
                with _translated(key):
                    _write_all(file, chunk)
            with _translated(key):
                os.fsync(file.fileno())
                written = os.fstat(file.fileno())
        if size is not None and written.st_size != size:
            raise StorageDeniedError(f"{key!r} was to be {size} bytes, not {written.st_size}")
        with _translated(key):
            _give_name(temporary, target, key=key, only_if_absent=only_if_absent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return written


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, key) from error


def _folder_for_temporary(target: Path) -> Path:
    """Return the storage's own folder for it; outside of storages, the folder of the target."""
    for parent in target.parents:
        if (parent / TEMPORARY).is_dir():
            return parent / TEMPORARY
    _make_folder(target.parent)
    return target.parent


def _new_file(folder: Path) -> tuple[FileIO, Path]:
    # not `tempfile`, whose files nobody else may read: whoever serves the folder should
    path = folder / f"{TEMPORARY}-{os.getpid()}-{secrets.token_hex(8)}"
    return path.open("xb", buffering=0), path  # a buffer would meet a full disk once more, when it is closed


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _give_name(temporary: Path, target: Path, *, key: str, only_if_absent: bool) -> None:
    give_up_at = time.monotonic() + _PATIENCE_S
    while True:
        try:
            _make_folder(target.parent)
            if not only_if_absent:
                temporary.replace(target)
            elif target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "objects stand below it")
            else:
                os.link(temporary, target)
            break
        except FileNotFoundError:  # whoever deleted the last other object of the folder took the folder away
            if time.monotonic() > give_up_at or not temporary.exists():
                raise
            time.sleep(random.uniform(0, _SHORTLY_S))  # out of step with whoever else is at it
        except FileExistsError:
            raise ObjectExistsError(f"{key!r} is write-once, and an object stands there") from None
    _to_disk(target.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if any(_is_file(above) for above in (folder, *folder.parents)):
            raise NotADirectoryError(errno.ENOTDIR, "an object stands above it") from None
        raise FileNotFoundError(errno.ENOENT, "it was there, and was taken away just now") from None


def _is_file(path: Path) -> bool:
    """Tell by one look: between two, others may take away what stands there."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _to_disk(folder: Path) -> None:
    """Make the name as durable as the bytes; a folder that is gone again needs no name."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

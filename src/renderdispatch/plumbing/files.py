"""How does a file come into being whole, or not at all?

It is written under another name on the same file system, brought to disk, and only then given its name: by a rename,
which replaces, or by a hard link, which is refused where a file exists. Readers never see a part, and a writer that is
killed leaves nothing but a temporary file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from renderdispatch import errors
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.plumbing.retry import Backoff, Trouble, retry

TEMPORARY: Final = ".renderdispatch-tmp"
"""The folder, at the root of a storage, for files that are not whole yet; a prefix of their names elsewhere."""

CHUNK_BYTES: Final = 1 << 20

_NAMING: Final = Backoff(patience_s=10.0, pause_s=0.001, longest_pause_s=0.001)

_REFUSALS: Final = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted, or the file system has no hard links",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "a part of it is longer than the file system allows",
    errno.ENOTDIR: "a part of it is an object, and a folder cannot be one too",
    errno.EISDIR: "there are objects below it, so it is a folder",
    errno.ELOOP: "a symbolic link goes in circles",
}


def storage_error(error: OSError, key: str) -> errors.StorageError:
    """Return what an error of the file system means for the object ``key``; an error of a storage is returned as is."""
    match error:
        case errors.StorageError():
            return error
        case OSError() if is_disk_full(error):
            return errors.StorageFullError(f"no space is left to write {key!r}")
        case OSError(errno=errno.ENOENT):
            return errors.ObjectNotFoundError(f"nothing is stored under {key!r}")
    if (why := _REFUSALS.get(error.errno or 0)) is not None:
        return errors.StorageDeniedError(f"{key!r} is refused: {why}")
    return errors.StorageUnavailableError(f"{key!r} cannot be reached: {error.strerror or type(error).__name__}")


def read_chunks(path: Path) -> Iterator[bytes]:
    """Iterate over a file's bytes."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def write_file(
    target: Path, chunks: Iterable[bytes], *, key: str, only_if_absent: bool, size: int | None = None
) -> os.stat_result:
    """Write ``chunks`` to ``target``, whole or not at all, and return the file's status.

    Args:
        target: The file; missing folders above it are made.
        chunks: Its bytes. An error of the iterator passes, and nothing is written.
        key: What errors call the object.
        only_if_absent: Refuse where a file exists. Atomic.
        size: Refuse any other number of bytes.

    Raises:
        ObjectExistsError: A file exists there, and ``only_if_absent``.
        StorageFullError: No space is left.
        StorageDeniedError: The file system does not allow it, or ``size`` does not fit.
        StorageUnavailableError: The file system fails.
    """
    with storage_errors(key):
        # not `tempfile`: only this user may read its files, but a server of the folder must, too
        temporary = _folder_for_temporary(target) / f"{TEMPORARY}-{os.getpid()}-{secrets.token_hex(8)}"
        file = temporary.open("xb", buffering=0)  # a buffer would meet a full disk again when it is closed
    try:
        with file:
            for chunk in chunks:
                with storage_errors(key):
                    _write_all(file, chunk)
            with storage_errors(key):
                os.fsync(file.fileno())
                written = os.fstat(file.fileno())
        if size is not None and written.st_size != size:
            raise errors.StorageDeniedError(f"{key!r} was to be {size} bytes, not {written.st_size}")
        with storage_errors(key):
            _give_name(temporary, target, key=key, only_if_absent=only_if_absent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return written


def storage_errors(key: str) -> AbstractContextManager[None]:
    """Raise errors of the file system as `storage_error` has them."""
    return translated({OSError: lambda error: storage_error(error, key)}, chain=True)


def _folder_for_temporary(target: Path) -> Path:
    """Return the storage's own folder for it; outside of storages, the folder of the target."""
    for parent in target.parents:
        if (parent / TEMPORARY).is_dir():
            return parent / TEMPORARY
    _make_folder(target.parent)
    return target.parent


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _give_name(temporary: Path, target: Path, *, key: str, only_if_absent: bool) -> None:
    def give() -> None:
        _make_folder(target.parent)
        if not only_if_absent:
            temporary.replace(target)
        elif target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there are objects below it")
        else:
            os.link(temporary, target)

    def trouble(error: Exception) -> Trouble:
        # a concurrent delete removed the now-empty folder; create it again
        again = isinstance(error, FileNotFoundError) and temporary.exists()
        return Trouble.FAILED if again else Trouble.FATAL

    try:
        retry(give, _NAMING, trouble=trouble)
    except FileExistsError:
        raise errors.ObjectExistsError(f"{key!r} is write-once, and an object exists there") from None
    _to_disk(target.parent)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if any(_is_file(above) for above in (folder, *folder.parents)):
            raise NotADirectoryError(errno.ENOTDIR, "there is an object above it") from None
        raise FileNotFoundError(errno.ENOENT, "it existed, and was removed just now") from None


def _is_file(path: Path) -> bool:
    """Ask once: between two calls, others may remove what is there."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _to_disk(folder: Path) -> None:
    """Make the name as durable as the bytes; a folder that was removed again needs none."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

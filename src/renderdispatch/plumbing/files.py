"""How does a file come into being whole, or not at all?

It is written under another name, brought to disk, and only then given its name. Readers never see a part, and a writer
that is killed leaves nothing but a temporary file. `publish` also works where there are no hard links: on FAT, on SMB,
and on many file systems in user space.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from renderdispatch import errors
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.plumbing.retry import Backoff, Trouble, retry

TEMPORARY: Final = ".renderdispatch-tmp"
"""The folder, at the root of a storage, for files that are not whole yet; a prefix of their names elsewhere."""

CHUNK_BYTES: Final = 1 << 20

_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_REHEARSED: Final = 50
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCL: Final = 4

_NAMING: Final = Backoff(patience_s=10.0, pause_s=0.001, longest_pause_s=0.001)

_REFUSALS: Final = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
    errno.EINVAL: "the file system does not allow such a name",
    errno.EILSEQ: "the file system does not allow such a name",
    errno.ENOLCK: "the file system has neither hard links nor locks, so nothing can be written only once",
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
        temporary = _folder_for_temporary(target) / _temporary_name()
        file = temporary.open("xb", buffering=0)  # a buffer would meet a full disk again when it is closed
    try:
        with file:
            for chunk in chunks:
                with storage_errors(key):
                    _write_all(file, chunk)
            with storage_errors(key):
                _to_disk(file.fileno())
                written = os.fstat(file.fileno())
        if size is not None and written.st_size != size:
            raise errors.StorageDeniedError(f"{key!r} was to be {size} bytes, not {written.st_size}")
        with storage_errors(key):
            _give_name(temporary, target, key=key, only_if_absent=only_if_absent)
    finally:
        _remove(temporary)
    return written


def rehearse(target: Path, *, key: str, only_if_absent: bool) -> None:
    """Do what `write_file` would do for ``target``, in its folder or the nearest one that exists, and undo it.

    So what the file system does not allow is known before the work whose result goes there.

    Raises:
        StorageError: As `write_file`.
    """
    with storage_errors(key):
        folder = next(above for above in target.absolute().parents if above.exists())
        temporary = folder / _temporary_name()
        # with characters of the name: some file systems refuse colons, question marks or a space at the end
        named = folder / f"{temporary.name}-{target.name[-_REHEARSED:]}"
        try:
            with temporary.open("xb", buffering=0) as file:
                _write_all(file, b"x")  # an empty file may be made on a full disk
            publish(temporary, named, replace=not only_if_absent)
        finally:
            _remove(temporary)
            _remove(named)


def obstacle(path: Path) -> str | None:
    """Return what keeps this user from making, reading or changing a file, as far as it can be seen; else None."""
    if os.path.lexists(path):
        if path.is_dir():
            return "it is a folder"
        if path.exists() and not path.is_file():
            return "it is not a regular file"
        if not os.access(path, os.R_OK | os.W_OK):
            return "this user may not read and write it"
    above = next(folder for folder in path.absolute().parents if os.path.exists(folder))  # noqa: PTH110 - never raises
    if not above.is_dir():
        return f"{above} is not a folder"
    return None if os.access(above, os.W_OK | os.X_OK) else f"this user may not write to {above}"


def storage_errors(key: str) -> AbstractContextManager[None]:
    """Raise errors of the file system as `storage_error` has them."""
    return translated({OSError: lambda error: storage_error(error, key)}, chain=True)


def _folder_for_temporary(target: Path) -> Path:
    """Return the storage's own folder for it; outside of storages, the folder of the target."""
    for parent in target.parents:
        if (parent / TEMPORARY).is_dir() and os.access(parent / TEMPORARY, os.W_OK | os.X_OK):
            return parent / TEMPORARY
    _make_folder(target.parent)
    return target.parent


def _temporary_name() -> str:
    # not `tempfile`: only this user may read its files, but a server of the folder must, too
    return f"{TEMPORARY}-{os.getpid()}-{secrets.token_hex(8)}"


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _give_name(temporary: Path, target: Path, *, key: str, only_if_absent: bool) -> None:
    def give() -> None:
        _make_folder(target.parent)
        publish(temporary, target, replace=not only_if_absent)

    def trouble(error: Exception) -> Trouble:
        # a concurrent delete removed the now-empty folder; create it again
        again = isinstance(error, FileNotFoundError) and temporary.exists()
        return Trouble.FAILED if again else Trouble.FATAL

    try:
        retry(give, _NAMING, trouble=trouble)
    except FileExistsError:
        raise errors.ObjectExistsError(f"{key!r} is write-once, and an object exists there") from None
    # the name becomes as durable as the bytes; a folder that was removed again, or may not be read, is left out
    with suppress(FileNotFoundError, PermissionError), _opened(target.parent) as folder:
        _to_disk(folder)


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


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _to_disk(descriptor: int) -> None:
    """Bring a file or a folder to disk; some file systems cannot, for folders above all."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


# --- giving a file its name -----------------------------------------------------------------------


def publish(temporary: Path, target: Path, *, replace: bool) -> None:
    """Give a whole file the name ``target`` in one step: readers never see a part of it, nor a moment without it.

    Args:
        temporary: The file. Whether it still has this name afterwards is not promised.
        target: A name in a folder that exists; it may be on another mount.
        replace: Take the place of a file that exists. A file that is mounted by itself is rewritten where it is.

    Raises:
        FileExistsError: A file exists there, and not ``replace``. Of several writers, one succeeds.
        OSError: The file system does not allow it.
    """
    try:
        if replace:
            temporary.replace(target)
        else:
            _name_once(temporary, target)
    except OSError as error:
        if replace and error.errno == errno.EBUSY:
            _copy(temporary, target, "wb")
        elif error.errno == errno.EXDEV and temporary.parent != target.parent:
            _publish_copy(temporary, target, replace=replace)
        else:
            raise


def _publish_copy(temporary: Path, target: Path, *, replace: bool) -> None:
    """Publish across mounts: a copy beside the target can be renamed."""
    beside = target.with_name(_temporary_name())
    try:
        _copy(temporary, beside, "xb")
        publish(beside, target, replace=replace)
    finally:
        _remove(beside)


def _copy(source: Path, target: Path, mode: Literal["xb", "wb"]) -> None:
    with target.open(mode, buffering=0) as copy:
        for chunk in read_chunks(source):
            _write_all(copy, chunk)
        _to_disk(copy.fileno())


def _name_once(temporary: Path, target: Path) -> None:
    """Give the file its name unless a file has it: by a hard link, or else by the next way that the system has."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "there are objects below it")
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # which errors mean that there are no links differs; the other ways meet a real obstacle too
        if not _rename_once(temporary, target):
            _rename_locked(temporary, target)


def _rename_once(temporary: Path, target: Path) -> bool:
    """Rename without replacing, in one call of the system; return False if system or file system has none."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(temporary), os.fsencode(target)
    if sys.platform == "darwin":
        call, arguments = getattr(libc, "renamex_np", None), (*names, _RENAME_EXCL)
    else:
        call = getattr(libc, "renameat2", None)
        arguments = (_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE)
    if call is None:
        return False
    if call(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def _rename_locked(temporary: Path, target: Path) -> None:
    """Rename while no other process of this machine does so here. The system gives up the lock of a dead process."""
    with _opened(target.parent) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            if _is_there(target.name, folder):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            # by its descriptor: a folder that was removed and made again meanwhile is another one, with another lock
            os.rename(temporary, target.name, dst_dir_fd=folder)
        finally:
            fcntl.flock(folder, fcntl.LOCK_UN)  # a fork may hold the same descriptor


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True

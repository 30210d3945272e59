"""Which GPUs of this machine are free, and how does a render keep one to itself?

One render uses a GPU at a time, whichever service of whichever user started it. A GPU's slot is a lock (``flock``) on a
file that is named by the GPU's UUID. The render's supervisors hold the open file, so the system frees the slot when the
last of them has ended, however that came about, and they end after everything that they started.

All services must find the same files: in ``/run/lock``, where all users may write there, else in ``/dev/shm`` or
``/tmp``. ``RENDERDISPATCH_GPU_LOCKS`` names another folder, such as one that several containers share. The files stay:
removing one that is locked would let another service lock a new one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from renderdispatch.errors import BackendError
from renderdispatch.plumbing.gpus import VISIBLE, Gpu
from renderdispatch.plumbing.per_process import ForkGate

_log: Final = logging.getLogger("renderdispatch.backends.local")

LOCKS: Final = "RENDERDISPATCH_GPU_LOCKS"
"""The variable that names the folder of the locks."""

CHOSEN: Final = "RENDERDISPATCH_GPU"
"""The variable that names the GPU of a process that renders."""

_PUBLIC: Final = stat.S_ISVTX | stat.S_IWOTH
_TRIES: Final = 3


@frozen
class TakenSlot:
    """A GPU that is taken for one render.

    Args:
        gpu: It.
        descriptor: The open file that holds its lock.
    """

    gpu: Gpu
    descriptor: int

    @property
    def variables(self) -> Mapping[str, str]:
        """What keeps the render's processes on this GPU, whether they draw by EGL or compute by CUDA."""
        return {CHOSEN: self.gpu.uuid, VISIBLE: self.gpu.uuid}


class GpuSlots:
    """The slots of some GPUs, shared with all processes of this machine.

    Args:
        gpus: The GPUs.
        folder: Where the locks are; None: where all services of this machine find them.
    """

    def __init__(self, gpus: tuple[Gpu, ...], folder: Path | None = None) -> None:
        self.gpus = gpus
        self._folder = folder
        self._gate = ForkGate()  # a child that was forked while a lock is open here would hold it all its life

    @contextmanager
    def taken(self) -> Iterator[TakenSlot]:
        """Take a free GPU. It stays taken after the block for as long as another process has the descriptor open.

        A GPU whose lock cannot be used is passed over while another one's can.

        Raises:
            BackendError: ``backend.busy``: all are taken. ``backend.gpu-locks``: no lock can be used.
        """
        with self._gate.operation():
            unusable: list[BackendError] = []
            for gpu in self.gpus:
                try:
                    descriptor = self._lock(gpu, fcntl.LOCK_EX)
                except BackendError as error:
                    unusable.append(error)
                    continue
                if descriptor is not None:
                    break
            else:
                if self.gpus and len(unusable) == len(self.gpus):
                    raise unusable[0]
                raise BackendError("all GPUs are taken", retryable=True, code="backend.busy")
            for refusal in unusable:
                _log.warning("a GPU is passed over: %s", refusal)
            try:
                yield TakenSlot(gpu, descriptor)
            finally:
                os.close(descriptor)

    def free(self) -> int:
        """Return how many GPUs are free. If no lock can be used, all are: a render reports the error."""
        with self._gate.operation():
            free = [self._is_free(gpu) for gpu in self.gpus]
        return len(free) if all(each is None for each in free) else sum(map(bool, free))

    def _is_free(self, gpu: Gpu) -> bool | None:
        """Return whether a GPU is free; None if its lock cannot be used."""
        try:
            descriptor = self._lock(gpu, fcntl.LOCK_SH)  # two that ask at once do not disturb each other
        except BackendError:
            return None
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _lock(self, gpu: Gpu, kind: int) -> int | None:
        """Lock a GPU's file; return its descriptor, None if it is locked."""
        path = (self._folder or shared_folder()) / f"renderdispatch-gpu-{_plain(gpu.uuid)}.lock"
        try:
            for _ in range(_TRIES):
                descriptor = _open(path)
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    if _is_at(descriptor, path):
                        return descriptor
                except BlockingIOError:
                    os.close(descriptor)
                    return None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)  # it was removed between the two, and another service may lock a new one
        except OSError as error:
            message = (
                f"the lock of GPU {gpu.uuid} cannot be used: {path}: {error.strerror or error}; remove it, or set "
                f"{LOCKS} to a folder that every service of this machine can write to"
            )
            raise BackendError(message, retryable=False, code="backend.gpu-locks") from error
        return None


def shared_folder() -> Path:
    """Return the folder that every service of this machine finds.

    ``$TMPDIR`` differs by user, systemd's ``PrivateTmp`` hides ``/tmp``, and not every system lets all users write to
    ``/run/lock``. It does not matter whether this process itself may write there: all must choose alike.
    """
    if named := os.environ.get(LOCKS, "").strip():
        return Path(named)
    for folder in (Path("/run/lock"), Path("/dev/shm")):  # noqa: S108 - sticky, and files in it are opened with care
        try:
            if folder.stat().st_mode & _PUBLIC == _PUBLIC:
                return folder
        except OSError:
            continue
    return Path("/tmp")  # noqa: S108 - see above


def _open(path: Path) -> int:
    """Open a file that belongs to any user, in a folder that all users write to, only to lock it.

    It is read and written by none. A link is not followed. A file of another user is not opened with ``O_CREAT``, which
    Linux refuses in such folders (``fs.protected_regular``).
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # does not wait for the other end of a pipe
    while True:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o444)
            except FileExistsError:
                continue
            os.fchmod(descriptor, 0o444)  # whatever the umask: all users lock it, and none has anything to write
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError("it is not a regular file")
        return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _plain(uuid: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", uuid)[:100]

"""Where does a command put a video or a picture, and can it go there?

The last step is tried first: what cannot be written in the end is refused before anything is rendered.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from attrs import frozen

from renderdispatch import errors
from renderdispatch.cli import streams
from renderdispatch.engine.views import check_video_name
from renderdispatch.plumbing.files import CHUNK_BYTES, rehearse, write_file
from renderdispatch.service import RenderService

STDOUT: Final = "-"
_NAMES_OF_STDOUT: Final = frozenset({STDOUT, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


Sources = Mapping[str, "os.stat_result | None"]
"""The status of each file that a command reads, by what it is called, such as ``song``; None if there is none."""

NO_SOURCES: Final[Sources] = {}


class Target(Protocol):
    """Where a video or a picture goes."""

    @property
    def name(self) -> bytes:
        """What messages call it."""

    @property
    def result_on_stderr(self) -> bool:
        """Whether stdout is taken, so that a command says elsewhere how it ended."""

    def check(self, sources: Sources = NO_SOURCES) -> None:
        """Find out whether it can be written, without leaving a trace.

        Args:
            sources: The files that the command reads; they are never replaced.

        Raises:
            InvalidRequestError: It cannot, or must not.
        """

    def take(self, service: RenderService, job_id: str) -> None:
        """Write the finished video. Raises an `OSError` of the library or of the system."""

    def put(self, content: bytes) -> None:
        """Write a picture. Raises as `take`."""

    @property
    def poster(self) -> Target:
        """Where the poster of the video goes: beside it. Raises `InvalidRequestError` if there is no such place."""


def read_target(text: str, *, force: bool, check_name: Callable[[Path], None] = check_video_name) -> Target:
    """Return the target that a command line names; ``-`` is stdout.

    Args:
        text: The name.
        force: Replace a file.
        check_name: Raises `InvalidRequestError` for a name that says another kind of file.

    Raises:
        InvalidRequestError: The name ends with a slash, as only a folder's does.
    """
    if text.endswith(os.sep):
        raise errors.InvalidRequestError(f"{text} is a directory; name a file", code="output.directory")
    return StdoutTarget() if text in _NAMES_OF_STDOUT else FileTarget(Path(text), force, check_name)


def check_picture_name(path: Path) -> None:
    """Check that a name says PNG or JPEG.

    Raises:
        InvalidRequestError: ``output.kind``.
    """
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        message = f"{path} would hold a picture; name it {path.with_suffix('.png').name}, or .jpg"
        raise errors.InvalidRequestError(message, code="output.kind")


@frozen
class FileTarget:
    """A file, which appears whole or not at all.

    Args:
        force: Replace a regular file. A directory, a device or a pipe is never replaced.
        check_name: See `read_target`.
    """

    path: Path
    force: bool
    check_name: Callable[[Path], None] = check_video_name
    result_on_stderr: bool = False

    @property
    def name(self) -> bytes:
        """Its name, which need not be text."""
        return bytes(self.path)

    def check(self, sources: Sources = NO_SOURCES) -> None:
        """Refuse a file that cannot be written, or that must not be replaced."""
        try:
            there = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            there = None
        except OSError as error:
            raise self._refused(f"cannot be written: {error.strerror}", "denied") from error
        if there is not None:
            self._check_existing(there, sources)
        elif self.path.is_symlink() and not self.force:
            raise self._refused("is a symbolic link to nothing; --force replaces it", "exists")
        self.check_name(self.path)
        try:
            path = self.path.absolute()
        except FileNotFoundError as error:
            raise self._refused("is relative, and the working directory is gone; name a full path", "denied") from error
        try:
            rehearse(path, key=str(self.path), only_if_absent=not self.force)
        except errors.StorageError as error:
            code = "output.full" if isinstance(error, errors.StorageFullError) else "output.denied"
            raise errors.InvalidRequestError(str(error), code=code) from error

    def _check_existing(self, there: os.stat_result, sources: Sources) -> None:
        if stat.S_ISDIR(there.st_mode):
            raise self._refused("is a directory; name a file", "directory")
        if not stat.S_ISREG(there.st_mode):
            raise self._refused("is not a regular file; name another one, or '-o -' for stdout", "denied")
        if (source := _same_as(there, sources)) is not None:
            raise self._refused(f"is the {source} itself; name another file with -o", "exists")
        if not self.force:
            raise self._refused("exists; --force replaces it", "exists")
        folder = self.path.absolute().parent.stat()
        ours = os.geteuid() in {0, there.st_uid, folder.st_uid}
        if folder.st_mode & stat.S_ISVTX and not ours:
            raise self._refused("belongs to another user, and cannot be replaced in this folder", "denied")

    def _refused(self, why: str, code: str) -> errors.InvalidRequestError:
        return errors.InvalidRequestError(f"{self.path} {why}", code=f"output.{code}")

    def take(self, service: RenderService, job_id: str) -> None:
        """Write the finished video, whole or not at all."""
        service.save(job_id, self.path, overwrite=self.force)

    def put(self, content: bytes) -> None:
        """Write the picture, whole or not at all."""
        write_file(self.path, [content], key=str(self.path), only_if_absent=not self.force)

    @property
    def poster(self) -> Target:
        """The file with the same name, and ``.jpg``."""
        name = self.path.stem if self.path.suffix.lower() in {".mp4", ".m4v"} else self.path.name
        return _PosterTarget(self.path.with_name(f"{name}.jpg"), self.force, check_picture_name)


class _PosterTarget(FileTarget):
    def take(self, service: RenderService, job_id: str) -> None:
        """Write the poster of the finished video."""
        service.save_poster(job_id, self.path, overwrite=self.force)


@frozen
class StdoutTarget:
    """Stdout of this process, for a pipe or a redirection."""

    result_on_stderr: bool = True

    name: bytes = b"stdout"

    def check(self, sources: Sources = NO_SOURCES) -> None:
        """Refuse a terminal, the song, and a stream that is closed or cannot be written."""
        stdout = sys.stdout.fileno()
        if stdout in streams.closed:
            raise self._refused("is closed; name a file with -o")
        if fcntl.fcntl(stdout, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise self._refused("is open for reading alone; name a file with -o")
        if sys.stdout.isatty():
            raise self._refused("is a terminal; name a file with -o, or redirect stdout")
        there = os.fstat(stdout)
        if stat.S_ISREG(there.st_mode) and (source := _same_as(there, sources)) is not None:
            raise self._refused(f"is the {source} itself; name another file with -o", "exists")

    def _refused(self, why: str, code: str = "denied") -> errors.InvalidRequestError:
        return errors.InvalidRequestError(f"stdout {why}", code=f"output.{code}")

    def take(self, service: RenderService, job_id: str) -> None:
        """Copy the finished video."""
        with service.open_video(job_id) as video, open(sys.stdout.fileno(), "wb", closefd=False) as out:
            while chunk := video.read(CHUNK_BYTES):
                out.write(chunk)

    def put(self, content: bytes) -> None:
        """Write the picture."""
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.write(content)

    @property
    def poster(self) -> Target:
        """Nowhere."""
        raise self._refused("has room for the video alone; with --poster, name a file with -o", "kind")


def _same_as(there: os.stat_result, sources: Sources) -> str | None:
    """Return what the file is called if the command reads it."""
    same = (name for name, source in sources.items() if source is not None and os.path.samestat(there, source))
    return next(same, None)

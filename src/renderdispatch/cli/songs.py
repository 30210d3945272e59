"""Where does a command read its song from: a file, stdin, or another pipe?

A file is left where it is, for a worker to read. What only this process can read is stored at submit, piece by piece.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final

from typing_extensions import Buffer

from renderdispatch.cli.interrupts import Interrupts
from renderdispatch.engine.audio import Part, examine_file
from renderdispatch.engine.intake import is_text
from renderdispatch.engine.names import safe_name
from renderdispatch.errors import InvalidRequestError

STDIN: Final = "-"
_OF_THIS_PROCESS: Final = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")


class _Pipe(io.RawIOBase):
    """Reads a pipe; a signal meanwhile raises `Interrupted`."""

    def __init__(self, file: io.FileIO, interrupts: Interrupts) -> None:
        self._file = file
        self._interrupts = interrupts

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        with self._interrupts.abrupt():
            return self._file.readinto(buffer)


@contextmanager
def open_song(name: str, interrupts: Interrupts) -> Iterator[Path | BinaryIO]:
    """Open the song that a command line names; ``-`` is stdin.

    Raises:
        InvalidRequestError: It is a terminal, or a named pipe, whose writer may never come.
    """
    source = sys.stdin.fileno() if name == STDIN else name
    if name == STDIN or (_OF_THIS_PROCESS.fullmatch(name) and os.path.exists(name)):  # noqa: PTH110 - never raises
        with io.FileIO(source, closefd=name != STDIN) as file:
            if file.isatty():
                message = f"{name} is a terminal; name a file, or pipe a song into this command"
                raise InvalidRequestError(message, code="audio.invalid")
            yield io.BufferedReader(_Pipe(file, interrupts))
    else:
        found = status_of(name)
        if found is not None and stat.S_ISFIFO(found.st_mode):
            message = f"{name} is a named pipe; write: renderdispatch render - < {name}"
            raise InvalidRequestError(message, code="audio.invalid")
        yield Path(name)


@contextmanager
def song_file(name: str, interrupts: Interrupts) -> Iterator[Path]:
    """Yield the song as a file, as `open_song` would open it; a pipe is read to its end first.

    Raises:
        InvalidRequestError: It cannot be read.
    """
    with ExitStack() as stack:
        song = stack.enter_context(open_song(name, interrupts))
        if not isinstance(song, Path):
            pipe, song = song, Path(stack.enter_context(TemporaryDirectory(prefix="renderdispatch-song-")), "song")
            with song.open("wb") as copy:
                shutil.copyfileobj(pipe, copy)
                if copy.tell() == 0:
                    raise InvalidRequestError("the audio is empty", code="audio.empty")
        yield stack.enter_context(as_text(examine_file(song, "", "audio").path))


@contextmanager
def files_beside(part: Part, paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield files as `song_file` yields the song.

    Raises:
        InvalidRequestError: One cannot be read.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(as_text(examine_file(path, "", part).path)) for path in paths]


@contextmanager
def as_text(path: str) -> Iterator[Path]:
    """Yield a name of the file that JSON can hold: its own, or that of a link to it, which is like its own."""
    if is_text(path):
        yield Path(path)
        return
    with TemporaryDirectory(prefix="renderdispatch-link-") as folder:
        link = Path(folder, safe_name(path))
        link.symlink_to(Path(path).absolute())
        yield link


def statuses_of(
    song: str, *, cover: Path | None = None, scene: Path | None = None, image: Iterable[Path] = ()
) -> dict[str, os.stat_result | None]:
    """Return the status of the files that a command reads, which it never overwrites."""
    images = zip(("first image", "second image", "third image"), image, strict=False)
    beside = {"cover": cover, "scene file": scene, **dict(images)}
    found = {what: status_of(str(path)) for what, path in beside.items() if path is not None}
    return {"song": status_of(song), **found}


def status_of(name: str) -> os.stat_result | None:
    """Return the status of a file, or of stdin; None if there is none."""
    try:
        return os.fstat(sys.stdin.fileno()) if name == STDIN else Path(name).stat()
    except (OSError, ValueError):
        return None

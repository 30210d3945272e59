"""How are bytes, a path, an open file and chunks read in the same way, and how are they sent again after a failed try?

A source is sent again from its start, if it has one and its size is known. Other sources are cut into equal parts that
each fit in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, cast

from attrs import field, frozen

from renderdispatch.errors import StorageError
from renderdispatch.plumbing.files import CHUNK_BYTES, read_chunks
from renderdispatch.plumbing.net import PIECE_BYTES
from renderdispatch.protocols import Source

_Bytes: TypeAlias = bytes | bytearray | memoryview
_KINDS: Final = "a source is bytes, a Path, an open binary file or chunks"


def chunks_of(source: Source) -> Iterator[bytes]:
    """Iterate over what ``source`` holds, a bounded piece at a time. What reading it raises passes through.

    Raises:
        TypeError: It is none of the four, or a chunk is not bytes.
    """
    if isinstance(source, _Bytes):
        yield from _slices(source, CHUNK_BYTES)
    elif isinstance(source, Path):
        yield from read_chunks(source)
    elif isinstance(source, str):
        raise TypeError(f"{_KINDS}; for a file's name, write Path(name)")
    else:
        read = getattr(source, "read", None)
        yield from map(_checked, source if read is None else iter(partial(read, CHUNK_BYTES), b""))


def _slices(data: _Bytes, size: int) -> Iterator[bytes]:
    whole = memoryview(data).cast("B")
    return (bytes(whole[start : start + size]) for start in range(0, len(whole), size))


def _checked(chunk: object) -> bytes:
    if not isinstance(chunk, bytes):
        raise TypeError(f"a source gives bytes, not {type(chunk).__name__}")
    return chunk


# --- sources that can be sent again


@frozen
class Body:
    """Bytes that can be read from their start as often as needed.

    Args:
        size: How many there are.
        pieces: Iterates over them, in small pieces.
    """

    size: int
    pieces: Callable[[], Iterator[bytes]] = field(repr=False)

    @classmethod
    def of_bytes(cls, data: _Bytes) -> Body:
        """Return bytes in memory as a body."""
        return cls(memoryview(data).nbytes, lambda: _slices(data, PIECE_BYTES))

    @classmethod
    def of_path(cls, path: Path) -> Body:
        """Return a file by its path, opened for each reading."""
        size = path.stat().st_size
        return cls(size, lambda: _pieces_of(lambda: path.open("rb"), 0, size))

    @classmethod
    def of_file(cls, file: BinaryIO) -> Body:
        """Return an open file, from its position to its end."""
        start = file.tell()
        size = max(0, file.seek(0, io.SEEK_END) - start)
        file.seek(start)
        return cls(size, lambda: _pieces_of(lambda: nullcontext(file), start, size))


def _pieces_of(opened: Callable[[], AbstractContextManager[BinaryIO]], start: int, left: int) -> Iterator[bytes]:
    with opened() as file:
        file.seek(start)
        while left and (piece := file.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            yield piece
    if left:
        raise StorageError(f"the source became {left} bytes shorter while it was read")


def body_of(source: Source) -> Body | None:
    """Return ``source`` as a body, or None if it can be read only once. What reading it raises passes through.

    Raises:
        TypeError: It is text.
    """
    if isinstance(source, _Bytes):
        return Body.of_bytes(source)
    if isinstance(source, Path):
        return Body.of_path(source)
    seekable, read = getattr(source, "seekable", None), getattr(source, "read", None)
    if seekable is None or read is None or not seekable():
        return None
    if not isinstance(read(0), bytes):
        raise TypeError(f"{_KINDS}, not a text file")
    return Body.of_file(cast("BinaryIO", source))


def equal_parts(chunks: Iterator[bytes], part_bytes: int) -> Iterator[bytearray]:
    """Cut ``chunks`` into parts of ``part_bytes``; the last one may be shorter. A part that was yielded is not kept."""
    part = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            room = part_bytes - len(part)
            part += view[:room]
            view = view[room:]
            if len(part) == part_bytes:
                full, part = [part], bytearray()
                yield full.pop()
    if part:
        yield part


def spool(parts: Iterator[bytearray], file: BinaryIO) -> Body:
    """Write ``parts`` to ``file``, and return it as a body."""
    file.writelines(parts)
    file.flush()
    file.seek(0)
    return Body.of_file(file)

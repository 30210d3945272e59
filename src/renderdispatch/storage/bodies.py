"""How is a source sent once more after a try that failed?

From its start, where it has one and its size is known. Other sources are cut into equal parts that each fit in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from attrs import field, frozen

from renderdispatch.errors import StorageError
from renderdispatch.plumbing.net import PIECE_BYTES
from renderdispatch.protocols import Source

_HOW: Final = "a source is bytes, a Path, an open binary file or chunks"


@frozen
class Body:
    """Bytes that can be read from their start as often as they are needed.

    Args:
        size: How many there are.
        pieces: Iterates over them, in small pieces.
    """

    size: int
    pieces: Callable[[], Iterator[bytes]] = field(repr=False)

    @classmethod
    def of_bytes(cls, data: bytes | bytearray | memoryview) -> Body:
        whole = memoryview(data).cast("B")

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(whole), PIECE_BYTES):
                yield bytes(whole[start : start + PIECE_BYTES])

        return cls(len(whole), pieces)

    @classmethod
    def of_path(cls, path: Path) -> Body:
        size = path.stat().st_size

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as file:
                yield from _pieces_of(file, size)

        return cls(size, pieces)

    @classmethod
    def of_file(cls, file: BinaryIO) -> Body:
        """Take an open file from where it stands to its end."""
        start = file.tell()
        size = max(0, file.seek(0, io.SEEK_END) - start)
        file.seek(start)

        def pieces() -> Iterator[bytes]:
            file.seek(start)
            yield from _pieces_of(file, size)

        return cls(size, pieces)


def _pieces_of(file: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left and (piece := file.read(min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
    if left:
        raise StorageError(f"the source became {left} bytes shorter while it was read")


def body_of(source: Source) -> Body | None:
    """Return ``source`` as a body, or None where it can be read only once. What reading it raises passes through.

    Raises:
        TypeError: It is text.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Body.of_bytes(source)
    if isinstance(source, Path):
        return Body.of_path(source)
    seekable, read = getattr(source, "seekable", None), getattr(source, "read", None)
    if seekable is None or read is None or not seekable():
        return None
    if not isinstance(read(0), bytes):
        raise TypeError(f"{_HOW}, not one of text")
    return Body.of_file(cast("BinaryIO", source))


def equal_parts(chunks: Iterator[bytes], part_bytes: int) -> Iterator[bytearray]:
    """Cut ``chunks`` into parts of ``part_bytes``, but for the last. What was given out is not kept."""
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

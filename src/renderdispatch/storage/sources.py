"""How are bytes, a path, an open file and chunks read alike?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from renderdispatch.plumbing.files import CHUNK_BYTES, read_chunks
from renderdispatch.protocols import Source


def chunks_of(source: Source) -> Iterator[bytes]:
    """Iterate over what ``source`` holds, a bounded piece at a time. What reading it raises passes through.

    Raises:
        TypeError: It is none of the four, or a chunk is no bytes.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        whole = memoryview(source).cast("B")
        for start in range(0, len(whole), CHUNK_BYTES):
            yield bytes(whole[start : start + CHUNK_BYTES])
    elif isinstance(source, Path):
        yield from read_chunks(source)
    elif isinstance(source, str):
        raise TypeError("a source is bytes, a Path, an open binary file or chunks; for a file's name, write Path(name)")
    elif (read := getattr(source, "read", None)) is not None:
        while chunk := _checked(read(CHUNK_BYTES)):
            yield chunk
    else:
        for chunk in source:
            yield _checked(chunk)


def _checked(chunk: object) -> bytes:
    if not isinstance(chunk, bytes):
        raise TypeError(f"a source gives bytes, not {type(chunk).__name__}")
    return chunk

"""Which parts of a file does a player play one after the other, each as a file of its own?

Most files are one part. A chained Ogg has several links, and each may have another codec, rate and number of channels
(RFC 3533, section 4). ID3 tags in front of the sound are left out: their pictures are of no use here, and a small
compressed one can unpack to gigabytes.
"""

from __future__ import annotations

import io
from typing import BinaryIO, Final

_PAGE: Final = b"OggS"
_PAGE_HEADER: Final = 27
_BEGINS_STREAM: Final = 2
_CHUNK: Final = 65_536


def parts_of(file: BinaryIO) -> list[tuple[int, int]]:
    """Return the begin and the end of each part, in bytes."""
    size = file.seek(0, io.SEEK_END)
    begin = _after_tags(file)
    begins = _links(file, begin, size) or [begin]
    return list(zip(begins, [*begins[1:], size], strict=True))


def _after_tags(file: BinaryIO) -> int:
    """Return where the sound begins: behind the tags (ID3v2.4, section 3.1)."""
    at = 0
    while True:
        file.seek(at)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3" or 0xFF in header[3:5] or max(header[6:]) > 0x7F:
            return at
        size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
        footer = 10 if header[5] & 0x10 else 0
        at += 10 + size + footer


def _links(file: BinaryIO, begin: int, size: int) -> list[int]:
    """Return where each link of an Ogg file begins: at a page that begins a stream, after one that does not."""
    links: list[int] = []
    beginning, at = False, begin
    while True:
        file.seek(at)
        header = file.read(_PAGE_HEADER + 255)
        if len(header) < _PAGE_HEADER or header[:4] != _PAGE:
            if not links:
                return links
            found = _find_page(file, at + 1, size)
            if found is None:
                return links
            at = found
            continue
        if not header[5] & _BEGINS_STREAM:
            beginning = False
        elif not beginning:
            links.append(at)
            beginning = True
        segments = header[26]
        at += _PAGE_HEADER + segments + sum(header[_PAGE_HEADER : _PAGE_HEADER + segments])


def _find_page(file: BinaryIO, at: int, size: int) -> int | None:
    """Return the next place that looks like a page, behind damage."""
    while at < size:
        file.seek(at)
        chunk = file.read(_CHUNK + len(_PAGE) - 1)
        found = chunk.find(_PAGE)
        if found >= 0:
            return at + found
        at += _CHUNK
    return None

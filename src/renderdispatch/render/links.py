"""Which parts of a file does a player play one after the other, each as a file of its own?

Most files are one part. A chained Ogg has several links, and each may have another codec, rate and number of channels
(RFC 3533, section 4). ID3 tags are left out, in front of the sound and wherever else FFmpeg would read them: they are
not needed here, and a small compressed picture can unpack to gigabytes.
"""

from __future__ import annotations

import io
import re
from bisect import bisect
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final, Literal

from renderdispatch.errors import AudioError

_PAGE: Final = b"OggS"
_PAGE_HEADER: Final = 27
_BEGINS_STREAM: Final = 2
_CHUNK: Final = 65_536

_BYTE_ORDERS: Final[dict[bytes, Literal["little", "big"]]] = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), "little"),
    **dict.fromkeys((b"RIFX", b"FORM"), "big"),
}
_SOUNDS: Final = frozenset({b"WAVE", b"AIFF", b"AIFC"})
_ID3: Final = frozenset({b"ID3 ", b"id3 "})
_OTHER: Final = b"JUNK"

_DSF: Final = b"DSD "
_OMA: Final = b"ea3"
_ASF: Final = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ADTS: Final = re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")
_LEAST_OF_ADTS: Final = 7
_TAG: Final = re.compile(rb"ID3[^\xff]{2}[\0-\xff][\0-\x7f]{4}")
_TAG_HEADER: Final = 10
_ADTS_OR_TAG: Final = re.compile(_ADTS.pattern + b"|" + _TAG.pattern)
_SKIPPED: Final = b"\2\0\x40"
"""What a tag's version and flags are replaced by: a compression of version 2.2 that was never defined, so that FFmpeg
skips the tag."""

_MOST_CHUNKS: Final = 1000
_MOST_TAGS: Final = 10_000
_LONG: Final = 0xFFFFFFFF


class Window(io.RawIOBase):
    """The bytes of a file from ``begin`` to ``end``, as a file of their own, in which FFmpeg finds no ID3 tag."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self.name = file.name  # FFmpeg looks at how it ends
        self._file = file
        self._begin = begin
        self.size = end - begin
        self._at = 0
        self.furthest = 0
        hidden = [(at - begin, _OTHER) for at in id3_chunks(file, begin)]
        hidden += [(at - begin + 3, _SKIPPED) for at in id3_tags(file, begin, end)]
        self._hidden = sorted(hidden)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read from the current position."""
        left = self.size - self._at
        if left <= 0:
            return b""
        self._file.seek(self._begin + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        first, last = (bisect(self._hidden, (at, b"")) for at in (self._at - len(_OTHER), self._at + len(data)))
        for at, other in self._hidden[first:last]:
            data = _overlaid(data, other, at - self._at)
        self._at += len(data)
        self.furthest = max(self.furthest, self._at)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; it may be past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            return -1  # which is an error to FFmpeg; PyAV prints exceptions
        self._at = base + offset
        return self._at

    def again(self) -> Window:
        """Return the same bytes, from the first."""
        return Window(self._file, self._begin, self._begin + self.size)

    def peek(self, at: int, size: int) -> bytes:
        """Return bytes at a position, and stay where this is."""
        self._file.seek(self._begin + at)
        return self._file.read(max(min(size, self.size - at), 0))

    def tell(self) -> int:
        """Return the position."""
        return self._at


def _overlaid(data: bytes, other: bytes, at: int) -> bytes:
    """Return data with as much of other bytes at a position as is within them."""
    begin, end = max(at, 0), min(at + len(other), len(data))
    return data if begin >= end else data[:begin] + other[begin - at : end - at] + data[end:]


def parts_of(file: BinaryIO) -> list[tuple[int, int]]:
    """Return the begin and the end of each part, in bytes."""
    size = file.seek(0, io.SEEK_END)
    begin = _after_tags(file)
    begins = _links(file, begin, size) or [begin]
    return list(zip(begins, [*begins[1:], size], strict=True))


def _after_tags(file: BinaryIO) -> int:
    """Return where the sound begins: behind the tags (ID3v2.4, section 3.1)."""
    at = 0
    while size := _tag_size(file, at):
        at += size
    return at


def _tag_size(file: BinaryIO, at: int, magic: bytes = b"ID3") -> int:
    """Return the bytes of the tag at a position; 0 if there is none."""
    file.seek(at)
    header = file.read(10)
    if len(header) < 10 or header[:3] != magic or 0xFF in header[3:5] or max(header[6:]) > 0x7F:
        return 0
    size = header[6] << 21 | header[7] << 14 | header[8] << 7 | header[9]
    return 10 + size + (10 if header[5] & 0x10 else 0)


def id3_chunks(file: BinaryIO, begin: int = 0) -> list[int]:
    """Return where the chunks that hold ID3 tags are, if a WAV or AIFF begins there (EBU Tech 3306 for long ones)."""
    file.seek(begin)
    head, found, data_size = file.read(12), list[int](), 0
    order = _BYTE_ORDERS.get(head[:4])
    if order is None or head[8:] not in _SOUNDS:
        return found
    at = begin + 12
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(24)
        if len(head) < 8:
            break
        kind, size = head[:4], int.from_bytes(head[4:8], order)
        if kind in _ID3:
            found.append(at)
        elif kind == b"ds64":
            data_size = int.from_bytes(head[16:24], order)
        elif kind == b"data" and size == _LONG:
            size = data_size
        at += 8 + size + size % 2
    return found


def id3_tags(file: BinaryIO, begin: int, end: int) -> list[int]:
    """Return where ID3 tags are that do not begin a file, and are in no chunk: in DSF, OMA, ASF and AAC.

    Raises:
        AudioError: There are absurdly many.
    """
    file.seek(begin)
    head = file.read(28)
    tags: Iterator[int] = iter(())
    if head.startswith(_DSF):
        tags = _tags_from(file, min(begin + int.from_bytes(head[20:], "little"), end))
    elif head.startswith(_OMA):
        tags = _tags_from(file, begin, _OMA)
    elif head.startswith(_ASF):  # in a field of the header
        tags = _marks(file, begin, min(begin + int.from_bytes(head[16:24], "little"), end))
    elif _ADTS.match(head):
        tags = _adts_tags(file, begin, end)
    found = list(islice(tags, _MOST_TAGS + 1))
    if len(found) > _MOST_TAGS:
        raise AudioError(f"this is not audio: it holds more than {_MOST_TAGS} tags", code="audio.undecodable")
    return found


def _tags_from(file: BinaryIO, at: int, magic: bytes = b"ID3") -> Iterator[int]:
    """Iterate over the places of the tags that follow each other at a position."""
    while size := _tag_size(file, at, magic):
        yield at
        at += size


def _marks(file: BinaryIO, at: int, end: int) -> Iterator[int]:
    """Iterate over the places of what tags begin with."""
    while at < end:
        file.seek(at)
        found = file.read(_CHUNK).find(b"ID3")
        if found >= 0:
            yield at + found
        at += _CHUNK - 2 if found < 0 else found + 3


def _adts_tags(file: BinaryIO, at: int, end: int) -> Iterator[int]:
    """Iterate over the places of tags between the frames of an AAC (ISO/IEC 14496-3, 1.A.3.2), and in damage."""
    begin, data = at, b""
    while at + _TAG_HEADER <= end:
        if at + _TAG_HEADER > begin + len(data):
            file.seek(at)
            begin, data = at, file.read(_CHUNK)
            if len(data) < _TAG_HEADER:
                return
        here = at - begin
        size = int.from_bytes(data[here + 3 : here + 6]) >> 5 & 0x1FFF
        if _ADTS.match(data, here) and size >= _LEAST_OF_ADTS:
            at += size
        elif _TAG.match(data, here):
            yield at
            at += _tag_size(file, at)
        else:
            found = _ADTS_OR_TAG.search(data, here + 1)
            at = begin + (len(data) - _TAG_HEADER + 1 if found is None else found.start())


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

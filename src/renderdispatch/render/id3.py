"""What does an ID3v2 tag say: which texts, which pictures?

Versions 2.2 to 2.4 (id3.org), with what FFmpeg does not read: tags of version 2.3 that are unsynchronised, and their
compressed frames. Memory and time are bounded, whatever the tag claims.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from attrs import frozen

_MOST_BYTES: Final = 32 << 20
"""What is behind this is not read."""

_MOST_UNPACKED: Final = 17 << 20
"""More than the largest cover that is used."""

_MOST_FRAMES: Final = 1000
_MOST_TEXT_BYTES: Final = 4096
_HEAD_BYTES: Final = 10
_ENCODINGS: Final = {0: "latin-1", 1: "utf-16", 2: "utf-16-be", 3: "utf-8"}
_SYNC: Final = re.compile(rb"\xff[\xe0-\xff]")
_FRAME_ID: Final = re.compile(rb"[A-Z][A-Z0-9]{2,3}|\0+")


@frozen
class Picture:
    """A picture of a tag: its kind, of which 3 is the front cover, and the bytes of the file."""

    kind: int
    data: bytes


def read_frames(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Iterate over the frames of a tag at the begin of a file, as pairs of the name and the content."""
    head = file.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(b"ID3") or head[3] not in {2, 3, 4}:
        return
    version, flags = head[3], head[5]
    tag = file.read(min(_synchsafe(head[6:]), _MOST_BYTES))
    if flags & 0x80 and version < 4:
        tag = _synchronised(tag)
    at = 0
    if flags & 0x40:  # an extended header; in version 2.2 a compression that was never defined
        at = {2: len(tag), 3: 4 + int.from_bytes(tag[:4]), 4: _synchsafe(tag[:4])}[version]
    left = 2 * _MOST_BYTES
    for _ in range(_MOST_FRAMES):
        frame = tag[at : at + (6 if version == 2 else 10)]
        name = frame[: 3 if version == 2 else 4]
        if not name.strip(b"\0"):
            return
        size = _size(tag, at, version)
        content = tag[at + len(frame) : at + len(frame) + size]
        if version > 2:
            content = _plain(content, int.from_bytes(frame[8:]), version, unsynchronised=bool(flags & 0x80))
        left -= len(content)
        if left < 0:
            return
        yield name.decode("latin-1"), content
        at += len(frame) + size


def text_of(content: bytes) -> str:
    """Return the text of a frame; several values are joined."""
    encoding = _ENCODINGS.get(content[0] if content else 0, "latin-1")
    values = (_decoded(value, encoding) for value in _values(content[1:_MOST_TEXT_BYTES], encoding))
    return "; ".join(filter(None, values))


def picture_of(name: str, content: bytes) -> Picture | None:
    """Return the picture of a frame ``APIC``, or of version 2.2's ``PIC``; None if it is a link."""
    encoding = _ENCODINGS.get(content[0] if content else 0, "latin-1")
    format_, rest = (content[1:4], content[4:]) if name == "PIC" else _cut(content[1:], "latin-1")
    _, data = _cut(rest[1:], encoding)
    return None if format_ == b"-->" or not data else Picture(rest[0], data)


def _size(tag: bytes, at: int, version: int) -> int:
    """Return the size of a frame. Old versions of iTunes wrote those of version 2.4 as those of version 2.3."""
    if version == 2:
        return int.from_bytes(tag[at + 3 : at + 6])
    field = tag[at + 4 : at + 8]
    plain, safe = int.from_bytes(field), _synchsafe(field)
    if version == 3 or (
        max(field, default=0) > 0x7F
        or (not _FRAME_ID.match(tag, at + 10 + safe) and _FRAME_ID.match(tag, at + 10 + plain))
    ):
        return plain
    return safe


def _plain(content: bytes, flags: int, version: int, *, unsynchronised: bool) -> bytes:
    """Return what a frame holds, without what its flags add; nothing if it is encrypted or broken."""
    grouped, packed, secret, long = (0x20, 0x80, 0x40, 0x80) if version == 3 else (0x40, 0x08, 0x04, 0x01)
    if flags & secret:
        return b""
    before = (1 if flags & grouped else 0) + (4 if flags & long else 0)
    content = content[before:]
    if version == 4 and (unsynchronised or flags & 0x02):
        content = _synchronised(content)
    if flags & packed:
        try:
            return zlib.decompressobj().decompress(content, _MOST_UNPACKED)
        except zlib.error:
            return b""
    return content


def _values(text: bytes, encoding: str) -> Iterator[bytes]:
    while text:
        value, text = _cut(text, encoding)
        yield value


def _cut(text: bytes, encoding: str) -> tuple[bytes, bytes]:
    """Cut at the first NUL; in UTF-16 it has two bytes, of one character."""
    if not encoding.startswith("utf-16"):
        before, _, after = text.partition(b"\0")
        return before, after
    end = text.find(b"\0\0")
    while end % 2 == 1:  # -1 too
        if end < 0:
            return text, b""
        end = text.find(b"\0\0", end + 1)
    return text[:end], text[end + 2 :]


def _decoded(value: bytes, encoding: str) -> str:
    if encoding == "utf-16" and not value.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16-le"
    return value.decode(encoding, "replace")


def _synchronised(data: bytes) -> bytes:
    """Undo unsynchronisation, unless the flag is wrong: some programs set it and write the data as they are."""
    return data if _SYNC.search(data) else data.replace(b"\xff\0", b"\xff")


def _synchsafe(field: bytes) -> int:
    number = 0
    for byte in field[:4]:
        number = number << 7 | byte & 0x7F
    return number

"""Makes ID3v2 tags (id3.org) by hand, with what few programs write."""

from __future__ import annotations

import re
import struct
import zlib


def synchsafe(number: int) -> bytes:
    """Return 28 bits as four bytes of seven."""
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def unsynchronised(data: bytes) -> bytes:
    """Return data without what looks like the begin of a frame of sound."""
    return re.sub(rb"\xff(?=[\x00\xe0-\xff])", b"\xff\x00", data)


def frame(version: int, name: str, content: bytes, *, flags: int = 0) -> bytes:
    """Return a frame; its size is that of the content."""
    if version == 2:
        return name.encode() + struct.pack(">I", len(content))[1:] + content
    size = synchsafe(len(content)) if version == 4 else struct.pack(">I", len(content))
    return name.encode() + size + struct.pack(">H", flags) + content


def zipped(version: int, name: str, content: bytes) -> bytes:
    """Return a compressed frame."""
    size = synchsafe(len(content)) if version == 4 else struct.pack(">I", len(content))
    return frame(version, name, size + zlib.compress(content), flags=0x09 if version == 4 else 0x80)


def picture(data: bytes, *, kind: int = 3, description: bytes = b"\0") -> bytes:
    """Return the content of a frame ``APIC``."""
    return b"\0image/jpeg\0" + bytes([kind]) + description + data


def tag(version: int, *frames: bytes, flags: int = 0) -> bytes:
    """Return a tag."""
    content = b"".join(frames)
    return b"ID3" + bytes([version, 0, flags]) + synchsafe(len(content)) + content

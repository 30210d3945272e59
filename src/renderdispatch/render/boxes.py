"""How does an encoded file become the one that players like: index first, and with what is known of song and picture?

An mp4 file is made of boxes: a size, four letters and the content, which may be boxes (ISO/IEC 14496-12). The index,
``moov``, is read as a tree, changed, and written in front of the data, which are copied once and never looked at.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final, Self

import numpy as np
from attrs import Factory, define, field, frozen

from renderdispatch.messages import Projection
from renderdispatch.plumbing.files import CHUNK_BYTES
from renderdispatch.render.tags import Tags

_HEADS: Final = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
    b"avc1": 78,
}
"""The boxes that are read as trees, each with the number of bytes before its first child."""

_SAMPLES: Final = b"trak", b"mdia", b"minf", b"stbl"
_TIMED: Final = (b"mvhd",), (b"trak", b"tkhd"), (b"trak", b"mdia", b"mdhd")
_SPHERICAL_UUID: Final = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
_TEXT, _JPEG = 1, 13  # the types of values in QuickTime's metadata


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box of at most 4 GiB."""
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    """Return a box whose content begins with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


@define(eq=False)
class Box:
    """A box in memory.

    Args:
        kind: Its four letters.
        head: The content before the children; of most boxes all of it.
        children: The boxes in it.
    """

    kind: bytes
    head: bytes = field(default=b"", repr=False)
    children: list[Box] = Factory(list)

    @classmethod
    def read(cls, kind: bytes, content: bytes) -> Self:
        """Read a box, and those in it as far as they are to be changed.

        Raises:
            ValueError: A size is wrong.
        """
        at = _HEADS.get(kind)
        if at is None:
            return cls(kind, content)
        made = cls(kind, content[:at])
        while at < len(content):
            size, inner = struct.unpack_from(">I4s", content, at) if at + 8 <= len(content) else (0, b"")
            if not 8 <= size <= len(content) - at:
                raise ValueError(f"a box in {kind!r} has a wrong size")
            made.children.append(Box.read(inner, content[at + 8 : at + size]))
            at += size
        return made

    def pack(self) -> bytes:
        """Return the bytes of the box."""
        return box(self.kind, self.head, *(child.pack() for child in self.children))

    def find(self, kind: bytes, *path: bytes) -> Iterator[Box]:
        """Iterate over the boxes at a path below this one."""
        for child in self.children:
            if child.kind == kind:
                yield from child.find(*path) if path else (child,)


@frozen
class Place:
    """Where a box is in a file: the position of its first byte, and its size."""

    at: int
    size: int


def places(file: FileIO) -> dict[bytes, Place]:
    """Return where the boxes at the top of a file are, by kind."""
    found, at, end = dict[bytes, Place](), 0, file.seek(0, os.SEEK_END)
    while at + 8 <= end:
        size, kind = struct.unpack(">I4s", _read(file, Place(at, 8)))
        if size == 1:
            (size,) = struct.unpack(">Q", _read(file, Place(at + 8, 8)))
        found[kind] = Place(at, size or end - at)
        at += max(found[kind].size, 8)
    return found


def finish(raw: Path, output: Path, *, projection: Projection = "flat", tags: Tags | None = None) -> None:
    """Write ``output``: what ``raw`` holds, with the index first and described as in `describe`.

    Args:
        raw: An mp4 file with one ``mdat``, and with its index at the end.
        output: A new file.
        projection: How players show the picture.
        tags: What players say of the song; the cover is a JPEG.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: ``raw`` is not such a file.
    """
    with raw.open("rb", buffering=0) as source, output.open("xb", buffering=0) as target:
        found = places(source)
        if not {b"ftyp", b"moov", b"mdat"} <= found.keys():
            raise ValueError(f"{raw.name} is not a complete mp4 file")
        kind, data = _read(source, found[b"ftyp"]), found[b"mdat"]
        index = Box.read(b"moov", _read(source, found[b"moov"])[8:])
        describe(index, projection=projection, tags=tags or Tags())
        move_data(index, data.at, before=len(kind))
        write_all(target, kind + index.pack())
        copy_part(source, target, data)


def describe(index: Box, *, projection: Projection = "flat", tags: Tags) -> None:
    """Put into an index how the picture is shown and what song it is; remove times, versions and other tags."""
    for path in _TIMED:
        for timed in index.find(*path):
            end = 20 if timed.head[0] else 12
            timed.head = timed.head[:4] + bytes(end - 4) + timed.head[end:]
    for parent in (index, *index.find(b"trak")):
        parent.children = [child for child in parent.children if child.kind != b"udta"]
    for track in index.find(b"trak"):
        for sample in list(track.find(*_SAMPLES[1:], b"stsd", b"avc1")):
            sample.head = sample.head[:42] + bytes(32) + sample.head[74:]  # the encoder's name and version
            if projection != "flat":
                sample.children += _spherical(stereo=projection == "360-stereo")
                track.children.append(_spherical_v1(stereo=projection == "360-stereo"))
    if tags.title or tags.artist or tags.cover:
        index.children.append(Box(b"udta", _metadata(tags)))


def move_data(index: Box, at: int, *, before: int) -> None:
    """Set the positions of an index for the place that its data get: behind ``before`` bytes and the index.

    Args:
        index: The index; it grows where positions pass 4 GiB.
        at: Where the data are by its positions.
        before: Bytes in front of the index.
    """
    tables = [table for kind in (b"stco", b"co64") for table in index.find(*_SAMPLES, kind)]
    all_positions = [np.frombuffer(table.head, _number(table), offset=8).astype(np.int64) for table in tables]
    narrow = [pair for pair in zip(tables, all_positions, strict=True) if pair[0].kind == b"stco"]
    by = before + len(index.pack()) - at
    if max((int(positions.max(initial=0)) for _, positions in narrow), default=0) + by >= 1 << 32:
        for table, positions in narrow:
            table.kind = b"co64"
            by += 4 * len(positions)
    for table, positions in zip(tables, all_positions, strict=True):
        table.head = table.head[:8] + (positions + by).astype(_number(table)).tobytes()


def _number(table: Box) -> str:
    return ">u8" if table.kind == b"co64" else ">u4"


def _spherical(*, stereo: bool) -> list[Box]:
    """Return Google's boxes of a sample entry: Spherical Video V2 RFC, "MP4"."""
    views = full_box(b"st3d", bytes([stereo]))  # 1 is top and bottom
    straight = full_box(b"prhd", bytes(12))
    whole = full_box(b"equi", bytes(16))
    source = full_box(b"svhd", b"renderdispatch\0")
    sphere = box(b"sv3d", source, box(b"proj", straight, whole))
    return [Box(b"st3d", views[8:]), Box(b"sv3d", sphere[8:])]


def _spherical_v1(*, stereo: bool) -> Box:
    """Return Google's older box, which some players only know: Spherical Video RFC."""
    facts = {"Spherical": "true", "Stitched": "true", "StitchingSoftware": "renderdispatch"}
    facts |= {"ProjectionType": "equirectangular"} | ({"StereoMode": "top-bottom"} if stereo else {})
    text = (
        '<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
        + "".join(f"<GSpherical:{name}>{value}</GSpherical:{name}>" for name, value in facts.items())
        + "</rdf:SphericalVideo>"
    )
    return Box(b"uuid", _SPHERICAL_UUID + text.encode())


def _metadata(tags: Tags) -> bytes:
    """Return tags as iTunes writes them."""
    values = (
        (b"\xa9nam", _TEXT, (tags.title or "").encode()),
        (b"\xa9ART", _TEXT, (tags.artist or "").encode()),
        (b"covr", _JPEG, tags.cover or b""),
    )
    items = (box(kind, box(b"data", struct.pack(">II", type_, 0), value)) for kind, type_, value in values if value)
    handler = full_box(b"hdlr", bytes(4), b"mdirappl", bytes(9))
    return full_box(b"meta", handler, box(b"ilst", *items))


def _read(file: FileIO, place: Place) -> bytes:
    """Read a part of a file.

    Raises:
        ValueError: The file ends before.
    """
    file.seek(place.at)
    parts, left = list[bytes](), place.size
    while left > 0 and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise ValueError("the file ends in a box")
    return b"".join(parts)


def write_all(target: FileIO, data: bytes) -> None:
    """Write all of the data: one write may take a part."""
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


def copy_part(source: FileIO, target: FileIO, place: Place) -> None:
    """Append a part of a file to another one; in the kernel, if it can.

    Raises:
        ValueError: The file ends before.
    """
    source.seek(place.at)
    left = place.size
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # not on all file systems; what is really wrong is met again below
            while left and (copied := os.copy_file_range(source.fileno(), target.fileno(), left)):
                left -= copied
    while left:
        part = _read(source, Place(source.tell(), min(left, CHUNK_BYTES)))
        left -= len(part)
        write_all(target, part)

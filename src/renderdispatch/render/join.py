"""How do segments and the sound become one video?

The file is written in order, while the last segments are drawn: behind a place that is left for the index, whose
largest size follows from the number of frames, come pictures and sound in turns. Segments are copied and never decoded.
Memory holds a few numbers for each frame, and the disk nothing but the video.
"""

from __future__ import annotations

import struct
from math import ceil
from pathlib import Path
from typing import Final, Self

import numpy as np

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import Output
from renderdispatch.plumbing.pieces import SegmentHead
from renderdispatch.render.boxes import Box, Place, box, copy_part, describe, write_all
from renderdispatch.render.segment import LARGEST_CONFIG, LATE, FrameTable, Segment
from renderdispatch.render.sound import PACKET, PRIMING, Sound
from renderdispatch.render.tags import Tags
from renderdispatch.render.tracks import Clock, Numbers, Track, index_content, largest_tables, picture_entry

LARGEST: Final = 5 << 30
"""The most bytes of a video: an object of S3 that is stored by one request has no more."""

_SURE: Final = 1.5
"""A video is refused before it is too large, if it would become so many times too large."""
_SURE_FROM: Final = 0.125
"""The share of the frames from which on this is judged."""

_KIND: Final = box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2avc1mp41")
_DATA: Final = struct.Struct(">I4s")
_LARGE_DATA: Final = struct.Struct(">I4sQ")
_SMALLEST: Final = 8
"""Bytes of a box without content."""


class Joiner:
    """Writes a video: `append` each segment in order, then `finish`.

    Methods may be called from different threads, one at a time. Enter it in the block within which it is used: a file
    that was not finished is removed at the end.

    Args:
        output: A new file. It is complete once `finish` returned.
        picture: The picture.
        frames: How many the video has.
        segments: How many there are.
        sound: The sound; it may still be encoded by another thread, for which is waited.
        tags: What players say of the song; the cover is a JPEG.
        digest: Of the plan; None: any, and nothing is compared.
        config: The configuration that all segments have; None: that of the first one.

    Raises:
        OSError: By every method: a file cannot be read or written.
    """

    def __init__(
        self,
        output: Path,
        picture: Output,
        *,
        frames: int,
        segments: int,
        sound: Sound,
        tags: Tags | None = None,
        digest: str | None = None,
        config: str | None = None,
    ) -> None:
        self._output, self._picture = output, picture
        self._total, self._segments, self._next = frames, segments, 0
        self._sound, self._tags = sound, tags or Tags()
        self._digest, self._config = digest, config
        self._clock = Clock.of(picture.fps)
        self._together = max(ceil(picture.fps / 2), 1)
        self._frames = self._packets = 0
        self._tables = list[FrameTable]()
        self._pictures_at, self._sound_at = _Chunks(), _Chunks()
        self._begins = self._at = self._most_before()
        self._file = output.open("xb", buffering=0)
        self._file.seek(self._at)
        self._is_complete = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._is_complete:
            self._output.unlink(missing_ok=True)

    @property
    def frames(self) -> int:
        """How many frames the appended segments have: the next one begins with this frame."""
        return self._frames

    @property
    def segments(self) -> int:
        """How many segments were appended: the index of the next one."""
        return self._next

    def append(self, path: Path, *, frames: int | None = None) -> SegmentHead:
        """Copy the next segment, and return its head. The file may be removed afterwards.

        Waits for the sound that is heard meanwhile.

        Args:
            path: The file. Its hash is not compared: this is for whoever brought it.
            frames: How many it is to have; None: any number.

        Raises:
            SegmentError: It is not the next segment, or it is damaged. Nothing was written, and another one can be
                appended in its place.
            InvalidRequestError: The video becomes too large (``output.too-large``).
            Exception: The sound failed; see `Sound.until`.
        """
        with path.open("rb", buffering=0) as source:
            found = Segment.read(
                source,
                self._picture,
                index=self._next,
                begin=self._frames,
                frames=range(1, self._total - self._frames + 1) if frames is None else range(frames, frames + 1),
                digest=self._digest,
                config=self._config,
            )
            samples, held = found.frames, found.head.frames
            self._check_size(self._frames + held, samples.size)
            self._config = found.head.config
            at = found.data
            for first in range(0, held, self._together):
                last = min(first + self._together, held)
                self._hear(self._frames + last)
                size = int(samples.sizes[first:last].sum())
                self._pictures_at.add(self._at, last - first)
                copy_part(source, self._file, Place(at, size))
                at += size
                self._at += size
        self._tables.append(samples)
        self._frames += held
        self._next += 1
        return found.head

    def finish(self) -> None:
        """Complete the file: the rest of the sound, and the index.

        Raises:
            ValueError: Segments are missing.
            Exception: As of `append`.
        """
        if (self._frames, self._next) != (self._total, self._segments):
            raise ValueError(f"{self._next} of {self._segments} segments were joined, {self._frames} frames")
        self._hear(None)
        head = self._head()
        self._file.seek(0)
        write_all(self._file, head)
        self._file.close()
        self._is_complete = True

    def _hear(self, frame: int | None) -> None:
        """Append the sound that is heard before a frame; None: all that is left."""
        wanted = 1 << 62
        if frame is not None:
            samples = ceil(frame / self._picture.fps * self._sound.rate) + PRIMING
            wanted = -(-samples // PACKET)
        until = self._sound.until(wanted)
        if until > self._packets:
            data = self._sound.read(self._packets, until)
            self._sound_at.add(self._at, until - self._packets)
            write_all(self._file, data)
            self._at += len(data)
            self._packets = until

    def _check_size(self, frames: int, more: int) -> None:
        size = self._at + more
        share = frames / self._total
        if size > LARGEST or (share >= _SURE_FROM and size / share > _SURE * LARGEST):
            about = f"about {size / share / (1 << 30):.1f} GiB"
            message = (
                f"the video would have {about}, and 5 GiB are the most: choose a smaller picture, or a part of the song"
            )
            raise InvalidRequestError(message, code="output.too-large")

    def _head(self) -> bytes:
        """Return all that comes before the data."""
        index = self._index(
            pictures=FrameTable.joined(self._tables),
            config=bytes.fromhex(self._config or ""),
            sizes=self._sound.sizes(),
            durations=self._sound.durations(),
        )
        size = self._at - self._begins
        data = _DATA.pack(8 + size, b"mdat") if size + 8 < 1 << 32 else _LARGE_DATA.pack(1, b"mdat", 16 + size)
        free = self._begins - len(_KIND) - len(index) - len(data)
        if free < _SMALLEST:
            raise ValueError(f"the index has {len(index)} bytes, and there is no room for it")
        return _KIND + index + box(b"free", bytes(free - 8)) + data

    def _index(self, *, pictures: FrameTable, config: bytes, sizes: Numbers, durations: Numbers) -> bytes:
        frames, tick = len(pictures.sizes), self._clock.tick
        delays = (pictures.shown - np.arange(frames) + LATE) * tick
        video = Track(
            number=1,
            entry=picture_entry(self._picture, config),
            scale=self._clock.scale,
            durations=np.full(frames, tick, np.int64),
            sizes=pictures.sizes,
            chunks=self._pictures_at.places,
            counts=self._pictures_at.counts,
            shown_at=delays,
            keys=np.flatnonzero(pictures.keys).astype(np.int64),
            skip=LATE * tick,
            played=frames * tick,
            picture=self._picture,
        )
        sound = Track(
            number=2,
            entry=self._sound.entry,
            scale=self._sound.rate,
            durations=durations,
            sizes=sizes,
            chunks=self._sound_at.places,
            counts=self._sound_at.counts,
            skip=PRIMING,
            played=max(int(durations.sum()) - PRIMING, 0),
        )
        # The clock of the file is that of the sound, so that the length of the sound is exact in it.
        index = Box.read(b"moov", index_content([video, sound], self._sound.rate))
        describe(index, projection=self._picture.projection, tags=self._tags)
        return index.pack()

    def _most_before(self) -> int:
        """Return the most bytes that can come before the data."""
        none = np.empty(0, np.int64)
        bare = self._index(
            pictures=FrameTable(none, none, none.astype(np.bool_)),
            config=bytes(LARGEST_CONFIG),
            sizes=none,
            durations=none,
        )
        turns = self._total // self._together + self._segments + 2
        packets = ceil((self._total + 1) / self._picture.fps * self._sound.rate / PACKET) + 3
        tables = largest_tables(self._total, turns) + largest_tables(packets, turns) + 64
        return len(_KIND) + len(bare) + tables + _SMALLEST + _LARGE_DATA.size


class _Chunks:
    """Where runs of samples are in a file."""

    def __init__(self) -> None:
        self.places, self.counts = list[int](), list[int]()

    def add(self, at: int, count: int) -> None:
        self.places.append(at)
        self.counts.append(count)

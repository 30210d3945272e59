"""How does a part of a video become a file of its own, which is kept, played, and joined with the others?

A segment is a head (`renderdispatch.plumbing.pieces.SegmentHead`) and one fragment of MP4: ``moof`` and ``mdat``. Its
frames are encoded by an encoder of their own, so that they depend on nothing outside of it, and the same frames give
the same bytes wherever they are encoded. Times are exact: frame n of a video is shown at n / fps.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from hashlib import sha256
from io import FileIO
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, Self, cast

import av
import numpy as np
from attrs import frozen
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import Output
from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.files import CHUNK_BYTES
from renderdispatch.plumbing.pieces import HEAD_BYTES, SegmentHead
from renderdispatch.render.boxes import box, full_box, write_all
from renderdispatch.render.encoders import Encoder
from renderdispatch.render.h264 import config_of, sample_of
from renderdispatch.render.tracks import Clock, Numbers, fragments_begin

_KEY: Final = 0x02000000
"""The flags of a sample that depends on no other one, and of all others (ISO/IEC 14496-12, 8.8.3.1)."""
_DEPENDS: Final = 0x01010000

LATE: Final = 2
"""Frames are decoded in another order than they are shown. No encoder that is used here needs a frame earlier than this
many places before its turn. So all are shown so many frames late, and players are told to skip this time."""

LARGEST_CONFIG: Final = 200
"""More bytes than a decoder's configuration has."""

_CONFIG: Final = f"([0-9a-f]{{2}}){{1,{LARGEST_CONFIG}}}"

_LARGEST: Final = (1 << 32) - (1 << 20)
"""The most bytes of the frames of a segment, whose size has 32 bits."""

_MOVED: Final = 0x020000  # tfhd: positions count from the begin of moof
_COLUMNS: Final = 0x000F01  # trun: a position, and of each sample duration, size, flags and when it is shown


class SegmentError(ValueError):
    """A file is not the segment that was wanted, or it is damaged."""


class SegmentWriter:
    """Writes one segment: frame after frame, then `close`.

    Methods may be called from different threads, one at a time.

    Args:
        path: A new file; it does not exist until the segment is complete.
        output: Size and frame rate.
        encoder: Encodes the frames.
        digest: Of the plan.
        index: Of the segment.
        begin: The index of its first frame.

    Raises:
        av.FFmpegError: By every method. Those of the file system are also `OSError`.
    """

    def __init__(self, path: Path, output: Output, encoder: Encoder, *, digest: str, index: int, begin: int) -> None:
        self._path = path
        self._digest = digest
        self._index, self._begin, self._clock = index, begin, Clock.of(output.fps)
        self._frame_time = 1 / output.fps
        self._frames = self._size = 0
        self._sizes, self._shown, self._keys = list[int](), list[int](), list[bool]()
        with ExitStack() as stack:
            # The table of the frames comes first, and its size is known last.
            self._data = stack.enter_context(TemporaryFile(dir=path.parent, buffering=0))
            self._context: VideoCodecContext | None = open_encoder(output, encoder)
            self._config = config_of(bytes(self._context.extradata or b""))
            stack.callback(self._release)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write_frame(self, frame: VideoFrame) -> None:
        """Encode the next frame."""
        frame.pts, frame.time_base = self._frames, self._frame_time
        self._frames += 1
        self._keep(self._encoder.encode(frame))

    def close(self, twice: int = 0) -> SegmentHead:
        """Complete the file and return its head.

        Args:
            twice: How many segments were drawn in vain here since the last one that was completed.
        """
        self._keep(self._encoder.encode(None))
        table = FrameTable.of(self._sizes, self._shown, self._keys)
        boxes = table.pack(index=self._index, begin=self._begin, clock=self._clock)
        made = self._path.with_name(f".{self._path.name}.part")
        try:
            with made.open("xb", buffering=0) as file:
                head = self._write(file, boxes, twice)
            made.replace(self._path)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
        self.abandon()
        return head

    def _write(self, file: FileIO, boxes: bytes, twice: int) -> SegmentHead:
        write_all(file, bytes(HEAD_BYTES) + boxes)
        digest = sha256(boxes)
        self._data.seek(0)
        while part := self._data.read(CHUNK_BYTES):
            digest.update(part)
            write_all(file, part)
        head = SegmentHead(
            digest=self._digest,
            index=self._index,
            frames=self._frames,
            size=len(boxes) + self._size,
            sha256=digest.hexdigest(),
            config=self._config.hex(),
            twice=twice,
        )
        file.seek(0)
        write_all(file, head.pack())
        return head

    def abandon(self) -> None:
        """Give up a segment that will not be completed. After `close`, this does nothing."""
        self._open.close()

    @property
    def _encoder(self) -> VideoCodecContext:
        if self._context is None:
            raise ValueError("the segment is closed")
        return self._context

    def _release(self) -> None:
        self._context = None  # what it holds is hundreds of MiB for large pictures

    def _keep(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            sample = sample_of(bytes(packet))
            if packet.pts + LATE < len(self._shown):
                raise ValueError(f"the encoder reorders frames by more than {LATE}")
            self._size += len(sample)
            if self._size > _LARGEST:
                message = "a few seconds of the video would have more than 4 GiB: choose a smaller picture"
                raise InvalidRequestError(message, code="output.too-large")
            self._sizes.append(len(sample))
            self._shown.append(packet.pts)
            self._keys.append(packet.is_keyframe)
            write_all(self._data, sample)


def open_encoder(output: Output, encoder: Encoder) -> VideoCodecContext:
    """Return an encoder that is ready for the first frame.

    Raises:
        InvalidRequestError: It cannot make such a video (``output.unsupported``); it will refuse it at each attempt.
        av.FFmpegError: There is no memory, or the device failed.
    """

    def refused(error: av.FFmpegError) -> Exception:
        if isinstance(error, OSError | MemoryError):
            return error
        what = f"{output.width}x{output.height} at {output.fps} frames a second"
        return InvalidRequestError(f"the encoder cannot make a video of {what}", code="output.unsupported")

    context = cast(VideoCodecContext, av.CodecContext.create(encoder.name, "w"))
    encoder.set_up(context, output)
    context.flags |= Flags.global_header
    with translated({av.FFmpegError: refused}, chain=True):
        context.open()
    return context


def encoder_config(output: Output, encoder: Encoder) -> str:
    """Return the configuration that all segments of a video have, as `SegmentHead.config` has it.

    Raises:
        InvalidRequestError: As of `open_encoder`.
    """
    return config_of(bytes(open_encoder(output, encoder).extradata or b"")).hex()


def player_begin(output: Output, config: str) -> bytes:
    """Return what a player gets before segments; ``config`` is that of their heads."""
    return fragments_begin(output, bytes.fromhex(config), late=LATE)


@frozen(eq=False)
class FrameTable:
    """The frames of a segment, in the order in which they are decoded.

    Args:
        sizes: Bytes of each.
        shown: Which frame of the segment each is.
        keys: Whether players can begin at it.
    """

    sizes: Numbers
    shown: Numbers
    keys: NDArray[np.bool_]

    @classmethod
    def of(cls, sizes: Iterable[int], shown: Iterable[int], keys: Iterable[bool]) -> Self:
        """Return the samples of a list for each column."""
        return cls(np.fromiter(sizes, np.int64), np.fromiter(shown, np.int64), np.fromiter(keys, np.bool_))

    @classmethod
    def joined(cls, tables: Sequence[FrameTable]) -> Self:
        """Return the frames of a video, for the tables of its segments."""
        begins = accumulate((len(table.sizes) for table in tables), initial=0)
        shown = [table.shown + begin for table, begin in zip(tables, begins, strict=False)]
        sizes, keys = ([getattr(table, name) for table in tables] for name in ("sizes", "keys"))
        return cls(np.concatenate(sizes), np.concatenate(shown), np.concatenate(keys))

    @classmethod
    def unpack(cls, table: bytes, clock: Clock) -> Self:
        """Return the samples of a table as of `pack`, or similar ones where it is no such table."""
        rows = np.frombuffer(table, ">u4").astype(np.int64).reshape(-1, 4)
        delays = rows[:, 3]
        return cls(rows[:, 1], delays // clock.tick + np.arange(len(rows)) - LATE, rows[:, 2] == _KEY)

    @property
    def size(self) -> int:
        """How many bytes all of them have."""
        return int(self.sizes.sum())

    def pack(self, *, index: int, begin: int, clock: Clock) -> bytes:
        """Return the boxes before the frames' data: ``moof``, and the begin of ``mdat``.

        Args:
            index: Of the segment.
            begin: The index of its first frame.
            clock: Of the video.
        """
        frames = len(self.sizes)
        rows = np.empty((frames, 4), ">u4")
        rows[:, 0] = clock.tick
        rows[:, 1] = self.sizes
        rows[:, 2] = np.where(self.keys, _KEY, _DEPENDS)
        rows[:, 3] = (self.shown - np.arange(frames) + LATE) * clock.tick
        run = struct.pack(">II", frames, _table_bytes(frames) + 8) + rows.tobytes()
        track = box(
            b"traf",
            full_box(b"tfhd", struct.pack(">I", 1), flags=_MOVED),
            full_box(b"tfdt", struct.pack(">Q", begin * clock.tick), version=1),
            full_box(b"trun", run, flags=_COLUMNS),
        )
        sequence = full_box(b"mfhd", struct.pack(">I", index + 1))
        return box(b"moof", sequence, track) + struct.pack(">I4s", 8 + self.size, b"mdat")


@frozen(eq=False)
class Segment:
    """A segment that was read.

    Args:
        head: What it says of itself.
        frames: In the order in which they are decoded.
        data: Where the bytes of the first sample begin; those of the others follow.
    """

    head: SegmentHead
    frames: FrameTable
    data: int

    @classmethod
    def read(
        cls,
        file: FileIO,
        output: Output,
        *,
        index: int,
        begin: int,
        frames: range | None = None,
        digest: str | None = None,
        config: str | None = None,
    ) -> Self:
        """Read what a file holds, and check all of it but the pictures and the hash.

        Args:
            file: The file.
            output: The picture of its video.
            index: Which segment it is to be.
            begin: The index of its first frame.
            frames: How many it may have; None: any number.
            digest: Of its plan; None: any.
            config: The configuration of the video; None: any.

        Raises:
            SegmentError: It is not this segment, or it is damaged.
        """
        head = SegmentHead.read(file.read(HEAD_BYTES))
        if head is None:
            raise SegmentError(f"segment {index} has no head")
        if (head.index, head.digest, head.config) != (index, digest or head.digest, config or head.config):
            raise SegmentError(f"segment {index} is another one, or of another video")
        if frames is not None and head.frames not in frames:
            raise SegmentError(f"segment {index} has {head.frames} frames, which are too few or too many")
        table = _table_bytes(head.frames)
        if not 0 < head.frames * 16 < table + 8 <= head.size == os.fstat(file.fileno()).st_size - HEAD_BYTES:
            raise SegmentError(f"segment {index} is not whole")
        clock = Clock.of(output.fps)
        found = file.read(table + 8)
        held = FrameTable.unpack(found[table - head.frames * 16 : table], clock)
        in_order = held.keys[0] and np.array_equal(np.sort(held.shown), np.arange(head.frames))
        # What `pack` makes is all that may be there: the times are exact, and players meet nothing else.
        is_whole = in_order and len(found) + held.size == head.size and held.size <= _LARGEST
        if not is_whole or found != held.pack(index=index, begin=begin, clock=clock):
            raise SegmentError(f"segment {index} is damaged")
        if not re.fullmatch(_CONFIG, head.config):
            raise SegmentError(f"segment {index} has no configuration of a decoder")
        return cls(head, held, HEAD_BYTES + table + 8)


def _table_bytes(frames: int) -> int:
    """Return the size of ``moof`` with so many frames."""
    return 8 + 16 + 8 + 16 + 20 + 20 + 16 * frames

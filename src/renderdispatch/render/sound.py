"""How is the sound of a video encoded once, while what is encoded already is read?

One thread writes samples; they are encoded as AAC and kept in a file. Another one reads the packets, and waits for them
where it must.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from threading import Condition
from typing import Any, Final, Self

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import OutputContainer

from renderdispatch.render.boxes import write_all
from renderdispatch.render.mixing import Samples, frame_of
from renderdispatch.render.tracks import Numbers, sound_entry

PACKET: Final = 1024
"""Samples in a packet of AAC."""

PRIMING: Final = 1024
"""Samples that decoders give before the first one of the sound: FFmpeg's encoder begins with a packet of them."""

_BIT_RATE: Final = 192_000


class Sound:
    """The encoded sound of a video.

    Enter it in the block within which it is used; at the block's end, a thread that waits for packets gets an error.
    One thread writes; `fail` may be called by any.

    Args:
        path: A new file, for the packets.
        rate: Samples a second.
        layout: ``mono`` or ``stereo``.
    """

    def __init__(self, path: Path, *, rate: int, layout: str) -> None:
        self.rate: Final = rate
        self.samples = 0
        """How many were written."""

        self._layout = layout
        self._context = av.CodecContext.create("aac", "w")
        self._context.sample_rate, self._context.layout, self._context.format = rate, layout, "fltp"
        self._context.time_base = Fraction(1, rate)
        self._context.flags |= Flags.global_header
        set_up_sound(self._context, layout=layout)
        self._context.open()
        self._changed = Condition()
        self._ends = array("Q", [0])  # where each packet ends in the file
        self._is_complete = False
        self._error: BaseException | None = None
        self._file = path.open("w+b", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_complete:
            self.fail(ValueError("the sound was given up"))
        self._file.close()

    # --- the thread that encodes ------------------------------------------------------------------

    def encode(self, blocks: Iterable[Samples]) -> None:
        """Encode all of a sound. An error ends it, also for those that wait.

        Raises:
            Exception: As of ``blocks``, or of `write`.
        """
        try:
            for block in blocks:
                self.write(block)
            self.finish()
        except BaseException as error:
            self.fail(error)
            raise

    def write(self, samples: Samples) -> None:
        """Encode the next samples: (channels, n) float32.

        Raises:
            av.FFmpegError: The encoder failed.
            OSError: The file cannot be written.
        """
        frame = frame_of(samples, layout=self._layout, rate=self.rate)
        frame.pts, frame.time_base = self.samples, self._context.time_base
        self._keep(self._context.encode(frame))
        self.samples += samples.shape[1]

    def finish(self) -> None:
        """End the sound."""
        self._keep(self._context.encode(None))
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the sound with an error, which those that wait for it get."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _keep(self, packets: Iterable[Any]) -> None:
        data, ends, at = list[bytes](), array("Q"), self._ends[-1]
        for packet in packets:
            data.append(bytes(packet))
            at += len(data[-1])
            ends.append(at)
        if not data:
            return
        write_all(self._file, b"".join(data))
        with self._changed:
            self._ends.extend(ends)
            self._changed.notify_all()

    # --- the thread that joins --------------------------------------------------------------------

    def until(self, packets: int) -> int:
        """Wait until so many packets are encoded, or all; return how many are, at most ``packets``.

        Raises:
            Exception: The sound failed: what `fail` was given.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._is_complete or len(self._ends) > packets)
            if self._error is not None:
                raise self._error
            return min(packets, len(self._ends) - 1)

    def read(self, begin: int, end: int) -> bytes:
        """Return the packets from ``begin`` to before ``end``, one after the other."""
        at = self._ends[begin]
        parts, until = list[bytes](), self._ends[end]
        while at < until and (part := os.pread(self._file.fileno(), until - at, at)):
            parts.append(part)
            at += len(part)
        if at < until:
            raise ValueError("the file of the sound is too short")
        return b"".join(parts)

    def sizes(self) -> Numbers:
        """Return the size of each packet of a complete sound."""
        ends: Numbers = np.frombuffer(self._ends, np.uint64).astype(np.int64)
        return ends[1:] - ends[:-1]

    def durations(self) -> Numbers:
        """Return the samples of each packet of a complete sound; the last one has as many as are left."""
        durations = np.full(len(self._ends) - 1, PACKET, np.int64)
        durations[-1] += PRIMING + self.samples - durations.sum()
        return durations

    @property
    def config(self) -> bytes:
        """The decoder's configuration: the AudioSpecificConfig of ISO/IEC 14496-3."""
        return bytes(self._context.extradata or b"")

    @property
    def entry(self) -> bytes:
        """Its sample entry."""
        channels = 1 if self._layout == "mono" else 2
        return sound_entry(channels=channels, rate=self.rate, bit_rate=_bit_rate(self._layout), config=self.config)


def add_sound(container: OutputContainer, *, rate: int, layout: str) -> AudioStream:
    """Return a new stream of AAC; ``layout`` is ``mono`` or ``stereo``."""
    stream = container.add_stream("aac", rate=rate, layout=layout)
    set_up_sound(stream.codec_context, layout=layout)
    return stream


def set_up_sound(context: AudioCodecContext, *, layout: str) -> None:
    """Choose the settings of an encoder of AAC that was not opened yet."""
    # FFmpeg's default coder garbles the first 70 ms of a mono song that begins at full strength. This one does
    # not, takes half the time, and is as close to the original at this bit rate.
    context.options = {"aac_coder": "fast"}
    context.thread_count = 1
    context.flags |= Flags.bitexact
    context.bit_rate = _bit_rate(layout)


def _bit_rate(layout: str) -> int:
    return _BIT_RATE if layout == "stereo" else _BIT_RATE // 2

"""How do pictures and sound become one mp4 file?

H.264 and AAC, both from time 0, BT.709 in limited range; `finish` then puts the index first. The sound is
encoded first, while the song is analysed, and kept in a spool file. Then its packets are interleaved with those of the
video.

With libx264 the same frames give the same bytes on every machine: whatever FFmpeg and libx264 choose by the number of
cores or by the processor is set here, and the file holds no time and no settings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Final, Self

import av
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from renderdispatch.messages import Output
from renderdispatch.render.encoders import LIBX264, Encoder
from renderdispatch.render.mixing import Samples, frame_of
from renderdispatch.render.sound import add_sound

_RECORD: Final = struct.Struct("<Iqqq")
"""The size, pts, dts and duration of a spooled packet; times are in samples."""


class Mp4Writer:
    """Writes one file: first all of the sound, then frame after frame. `close` completes it.

    Methods may be called from different threads, one at a time.

    Args:
        path: The file.
        spool: A temporary file for the sound.
        output: Size and frame rate; frame n is shown at exactly n / fps.
        rate: Samples a second.
        layout: ``mono`` or ``stereo``.
        encoder: Encodes the frames.

    Raises:
        av.FFmpegError: By every method. Those of the file system are also `OSError`.
    """

    def __init__(
        self, path: Path, spool: Path, output: Output, *, rate: int, layout: str, encoder: Encoder = LIBX264
    ) -> None:
        self.encoder: Final = encoder
        self._frame_time = 1 / output.fps
        self._sample_time = Fraction(1, rate)
        self._layout = layout
        self._path = path
        self._frames = 0
        self._samples = 0
        self._waiting = self._spooled()
        self._container = av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"})
        try:
            video = self._container.add_stream(encoder.name, rate=output.fps)
            assert isinstance(video, VideoStream)
            video.time_base = self._frame_time
            encoder.set_up(video.codec_context, output)
            sound = add_sound(self._container, rate=rate, layout=layout)
            self._video, self._sound = video, sound
            self._container.start_encoding()
            # libx264 writes its version and settings, with the number of threads, into a SEI unit.
            self._without_sei = BitStreamFilterContext("filter_units=remove_types=6", video)
            self._spool = spool.open("w+b")
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    def write_sound(self, samples: Samples) -> None:
        """Encode the next samples: (channels, n) float32."""
        frame = frame_of(samples, layout=self._layout, rate=self._sound.rate)
        frame.pts, frame.time_base = self._samples, self._sample_time
        self._samples += samples.shape[1]
        self._keep(self._sound.encode(frame))

    def finish_sound(self) -> None:
        """End the sound; frames may follow."""
        self._keep(self._sound.encode(None))
        self._spool.seek(0)

    def write_frame(self, frame: VideoFrame) -> None:
        """Encode the next frame."""
        frame.pts, frame.time_base = self._frames, self._frame_time
        self._frames += 1
        self._mux(self._video.encode(frame))

    def close(self) -> None:
        """Complete the file."""
        self._mux(self._video.encode(None))
        for packet in self._waiting:
            self._container.mux(packet)
        self._spool.close()
        self._container.close()

    def abandon(self) -> None:
        """Remove a file that will not be completed. After `close`, this does nothing."""
        if self._spool.closed:
            return
        self._spool.close()
        self._path.unlink(missing_ok=True)
        with suppress(av.FFmpegError):
            self._container.close()

    def _mux(self, packets: Iterable[Packet[Stream]]) -> None:
        """Write packets of the video, each after the sound that is heard before it."""
        for packet in chain.from_iterable(map(self._without_sei.filter, packets)):
            assert packet.dts is not None
            packet.stream = self._video
            packet.duration = 1  # encoders do not set it, and the last frame would have none
            until = packet.dts * packet.time_base
            while (waiting := next(self._waiting, None)) is not None:
                assert waiting.pts is not None
                self._container.mux(waiting)
                if waiting.pts * self._sample_time >= until:
                    break
            self._container.mux(packet)

    def _keep(self, packets: Iterable[Packet[Stream]]) -> None:
        for packet in packets:
            data = bytes(packet)
            self._spool.write(_RECORD.pack(len(data), packet.pts or 0, packet.dts or 0, packet.duration or 0) + data)

    def _spooled(self) -> Iterator[Packet[Stream]]:
        while head := self._spool.read(_RECORD.size):
            size, pts, dts, duration = _RECORD.unpack(head)
            packet = Packet(self._spool.read(size))
            packet.stream, packet.time_base = self._sound, self._sample_time
            packet.pts, packet.dts, packet.duration = pts, dts, duration
            packet.is_keyframe = True
            yield packet

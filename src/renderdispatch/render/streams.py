"""Which frames does a track of a file hold, and where do its timestamps put them?

Anything that FFmpeg decodes is read, in bounded memory; pictures are never decoded. An error in the middle is not the
end: reading goes on behind it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from typing import Any, BinaryIO, Final

import av
from attrs import define, field
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard, Disposition

from renderdispatch.errors import AudioError

_ANY_TAGS: Final[dict[str, Any]] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Old songs have titles that are not UTF-8. PyAV 19 reads them, and no longer has this argument."""

_STUCK: Final = 1000
"""Errors in a row, without the position in the file moving on, after which a file is taken to end."""

_SOUGHT_EXACTLY: Final = {"aac", "flac", "mov,mp4,m4a,3gp,3g2,mj2", "mp3", "ogg", "tta", "wv"}
"""The formats in which a seek finds a packet and its exact time. Matroska's times are rounded, for example."""


_ESTIMATED: Final = {"aac", "ac3", "eac3", "dts", "loas", "mp3", "mpeg", "mpegts", "ogg"}
"""The formats whose durations FFmpeg concludes from the bit rate, or from what stands last in the file."""


class Window(io.RawIOBase):
    """The bytes of a file from ``begin`` to ``end``, as a file of their own."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self.name = file.name  # FFmpeg looks at how it ends
        self._file = file
        self._begin = begin
        self._size = end - begin
        self._at = 0
        self.furthest = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read from the current position."""
        left = max(self._size - self._at, 0)
        self._file.seek(self._begin + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        self.furthest = max(self.furthest, self._at)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; it may be past the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "negative position")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at


@define(eq=False)
class Decoded:
    """A frame, as it comes from the decoder.

    Args:
        frame: It has samples and a rate.
        pts: The time on the container's clock, in units of ``base``; None where the container does not tell.
        base: Seconds.
        failures: Reads and packets that failed since the frame before it.
    """

    frame: AudioFrame
    pts: int | None
    base: Fraction
    failures: int = 0


@define(eq=False)
class Track:
    """One audio stream of an open container.

    Args:
        container: The container. All other streams are skipped.
        stream: The stream.
        window: The file that the container reads.
        failures: Reads and packets that failed since the last frame that was decoded.
        failed: All of them.
        decoded: Frames.
    """

    container: InputContainer
    stream: AudioStream
    window: Window
    failures: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    decoded: int = field(default=0, init=False)

    @property
    def begins(self) -> Fraction:
        """Seconds on the container's clock at which its first stream begins."""
        return Fraction(self.container.start_time or 0, av.time_base)

    @property
    def leads(self) -> bool:
        """Whether no other stream of the container begins earlier."""
        begin, base = self.stream.start_time, self.stream.time_base
        if begin is None or base is None or self.container.start_time is None:
            return True
        return begin * base - self.begins < Fraction(1, 1000)

    @property
    def container_s(self) -> Fraction | None:
        """Seconds from the container's begin to its end, as its header or an estimate of FFmpeg has it."""
        return Fraction(self.container.duration, av.time_base) if self.container.duration else None

    @property
    def has_jumps(self) -> bool:
        """Whether the format is one for broadcasts, whose clock may be set at any time."""
        return self.container.format.name in {"mpegts", "mpeg"}

    @property
    def promised_s(self) -> Fraction | None:
        """Seconds of sound, if the header says so."""
        lasts, base = self.stream.duration, self.stream.time_base
        if self.container.format.name in _ESTIMATED or lasts is None or base is None:
            return None
        return lasts * base

    @property
    def ends(self) -> Fraction | None:
        """Seconds on the container's clock at which the sound ends, where the header tells exactly.

        What the encoder put behind is not to be heard.
        """
        begin, lasts, base = self.stream.start_time, self.stream.duration, self.stream.time_base
        if "mp4" not in self.container.format.name or begin is None or lasts is None or base is None:
            return None
        return (begin + lasts) * base

    def can_seek(self, rate: int) -> bool:
        """Return whether a seek leads to exactly known samples, of ``rate`` a second."""
        base = self.stream.time_base
        exact = base is not None and (1 / (base * rate)).denominator == 1
        codec = self.stream.codec_context.name
        return exact and (self.container.format.name in _SOUGHT_EXACTLY or codec.startswith("pcm_"))

    def seek(self, time: Fraction) -> None:
        """Go to the packet at or before a time on the container's clock.

        Raises:
            av.FFmpegError: The container cannot be sought in.
        """
        assert self.stream.time_base is not None
        self.container.seek(int(time / self.stream.time_base), stream=self.stream)

    def frames(self) -> Iterator[Decoded]:
        """Decode from here to the end. What cannot be read or decoded is counted, and skipped.

        Raises:
            AudioError: The file cannot be read (``audio.unreadable``).
        """
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except (av.FFmpegError, ValueError):
                self._fail()
                continue
            for frame in frames:
                if frame.samples and frame.sample_rate:
                    failures, self.failures = self.failures, 0
                    self.decoded += 1
                    yield Decoded(frame, frame.pts, frame.time_base or Fraction(0), failures)

    def _packets(self) -> Iterator[av.Packet[AudioStream]]:
        """Demux. After an error FFmpeg goes on behind it; a file that does not move on any more has ended."""
        errors, reached = 0, 0
        while errors < _STUCK:
            try:
                for packet in self.container.demux(self.stream):
                    errors = 0
                    yield packet
                return
            except av.error.EOFError:
                return
            except av.FFmpegError:
                self._fail()
                errors = errors + 1 if self.window.furthest <= reached else 0
                reached = max(self.window.furthest, reached)
            except OSError as error:
                raise AudioError("reading the audio failed midway", code="audio.unreadable") from error

    def _fail(self) -> None:
        self.failures += 1
        self.failed += 1


def open_container(window: Window) -> InputContainer:
    """Open what a file holds.

    Raises:
        AudioError: It is not audio.
    """
    # From an open file, without protocols: a playlist that poses as a song reaches no other file or host. FFmpeg
    # decodes covers and videos to learn their size, unless they are not on its list.
    options = {"protocol_whitelist": "none", "codec_whitelist": _audio_decoders()}
    try:
        container: InputContainer = av.open(window, "r", options=options, **_ANY_TAGS)
    except (av.FFmpegError, OSError) as error:
        raise AudioError("this is not audio in a format that can be read", code="audio.undecodable") from error
    with ExitStack() as stack:
        stack.enter_context(container)
        if container.format.name == "tty":  # FFmpeg takes any text for this format
            raise AudioError("this is text, not audio", code="audio.undecodable")
        if not container.streams.audio:
            raise AudioError("there is no sound in this file", code="audio.no-stream")
        stack.pop_all()
    return container


def tracks(container: InputContainer, wanted: int | None) -> list[int]:
    """Return the audio tracks in the order in which players try them: default ones first.

    Raises:
        AudioError: There is no track ``wanted``, from 0.
    """
    streams = container.streams.audio
    if wanted is None:
        return sorted(range(len(streams)), key=lambda n: not streams[n].disposition & Disposition.default)
    if not 0 <= wanted < len(streams):
        held = "one audio track, 0" if len(streams) == 1 else f"{len(streams)} audio tracks, 0 to {len(streams) - 1}"
        raise AudioError(f"there is no audio track {wanted}; the file has {held}", code="audio.no-track")
    return [wanted]


def select(container: InputContainer, window: Window, index: int) -> Track:
    """Return an audio track; the data of all other streams are not even read where the format allows that."""
    chosen = container.streams.audio[index]
    for stream in container.streams:
        if stream is not chosen and hasattr(stream, "discard"):  # PyAV 18
            stream.discard = Discard.all
    return Track(container, chosen, window)


@cache
def _audio_decoders() -> str:
    names = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:  # it only encodes
            continue
        if codec.type == "audio":
            names.append(name)
    return ",".join(names)

"""Which frames does a track of a file hold, and where do its timestamps put them?

Anything that FFmpeg decodes is read, in bounded memory; pictures are never decoded. An error in the middle is not the
end: reading goes on behind it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import cache
from itertools import islice
from typing import Any, BinaryIO, Final, cast

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

_MP4: Final = "mov,mp4,m4a,3gp,3g2,mj2"

_SOUGHT_EXACTLY: Final = {"aac", "flac", _MP4, "mp3", "ogg", "tta", "wv"}
"""The formats in which a seek finds a packet and its exact time. Matroska's times are rounded, for example."""


_TAGS: Final = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
"""What tags begin with. They are in the middle where files were joined, and come as packets."""

_LONG_TAGS: Final = (b"APETAGEX", b"LYRICSBEGIN")
"""Those that hold pictures, or long texts, behind the sound."""

_RAW: Final = {"aac", "ac3", "eac3", "dts", "loas", "mp3"}
"""The formats that are packets and nothing else. FFmpeg concludes their duration from the bit rate."""

_LAST_SEEN: Final = {"mpeg", "mpegts", "ogg"}
"""The formats whose duration FFmpeg takes from what stands last in the file."""

_RESUMABLE: Final = {"asf", "avi", "matroska,webm", _MP4}
"""The formats in which FFmpeg may lose its place, and finds it by a seek."""

_TAIL: Final = 65_536
"""Bytes; more than this many at the end that are no sound and no tags are damage."""

_FRAGMENT: Final = 1_048_576
"""Bytes behind the end in which another fragment of an MP4 is looked for."""

_STREAMED_WAV: Final = 0x7FFF_0000

_FIRST_PACKETS: Final = 200
"""Packets among which those that are shown first are."""

_RESUMES: Final = 50
"""How often a demuxer that ended too early is put behind the damage."""


class Window(io.RawIOBase):
    """The bytes of a file from ``begin`` to ``end``, as a file of their own."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self.name = file.name  # FFmpeg looks at how it ends
        self._file = file
        self._begin = begin
        self.size = end - begin
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
        left = self.size - self._at
        if left <= 0:
            return b""
        self._file.seek(self._begin + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
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
        return self._file.read(min(size, self.size - at))

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
        begins: Seconds on the container's clock at which its first stream begins.
        leads: Whether this is the stream.
        failures: Reads and packets that failed since the last frame that was decoded.
        failed: All of them.
        decoded: Frames.
    """

    container: InputContainer
    stream: AudioStream
    window: Window
    begins: Fraction
    leads: bool
    failures: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    decoded: int = field(default=0, init=False)
    _read_to: int = field(default=0, init=False)

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
        name, lasts, base = self.container.format.name, self.stream.duration, self.stream.time_base
        if name in _RAW | _LAST_SEEN:
            return self._counted_s()
        if lasts is not None and base is not None:
            return lasts * base
        return self.container_s if len(self.container.streams) == 1 and name != "flv" else None

    def _counted_s(self) -> Fraction | None:
        """Return how much the first frame of an MP3 says will follow (the Xing header), if there is one."""
        head = self.window.peek(0, 4096)
        at = max(head.find(b"Xing"), head.find(b"Info"))
        rate = self.stream.rate
        if self.container.format.name != "mp3" or not 0 <= at < len(head) - 8 or not rate or not head[at + 7] & 1:
            return None
        return Fraction(int.from_bytes(head[at + 8 : at + 12], "big") * (1152 if rate >= 32_000 else 576), rate)

    @property
    def lost(self) -> Fraction:
        """The share of bytes that are missing at the end, or are no packets, of those that were read as sound."""
        if not self._read_to:
            return Fraction(0)
        name, behind = self.container.format.name, self.window.size - self._read_to
        if name == "wav":
            return Fraction(self._cut_off(), self._read_to)
        if behind < _TAIL or any(tag in self.window.peek(self._read_to, 4096) for tag in _LONG_TAGS):
            return Fraction(0)
        sound = name in _RAW | _LAST_SEEN or b"moof" in self.window.peek(self._read_to, _FRAGMENT)
        return Fraction(behind if sound else 0, self._read_to)

    def _cut_off(self) -> int:
        """Return how many bytes a WAV lacks by its header; that of a stream holds no true size."""
        size = int.from_bytes(self.window.peek(4, 4), "little")
        return max(size + 8 - self.window.size, 0) if size < _STREAMED_WAV else 0

    @property
    def ends(self) -> Fraction | None:
        """Seconds on the container's clock at which the sound ends, where the header tells exactly.

        What the encoder put behind is not to be heard.
        """
        begin, lasts, base = self.stream.start_time, self.stream.duration, self.stream.time_base
        if self.container.format.name != _MP4 or begin is None or lasts is None or base is None:
            return None
        return (begin + lasts) * base

    def can_seek(self, rate: int) -> bool:
        """Return whether a seek leads to exactly known samples, of ``rate`` a second."""
        base, codec = self.stream.time_base, _codec_of(self.stream)
        exact = base is not None and (1 / (base * rate)).denominator == 1
        return exact and (self.container.format.name in _SOUGHT_EXACTLY or codec.startswith("pcm_"))

    @property
    def has_noise(self) -> bool:
        """Whether the decoder makes noise of random numbers, which are others after a seek."""
        return _codec_of(self.stream).startswith("aac")

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
                if not bytes(packet).startswith(_TAGS):
                    self._fail()
                continue
            if frames and packet.pos is not None:
                self._read_to = max(self._read_to, packet.pos + packet.size)
            for frame in frames:
                if frame.samples and frame.sample_rate:
                    failures, self.failures = self.failures, 0
                    self.decoded += 1
                    yield Decoded(frame, frame.pts, frame.time_base or Fraction(0), failures)

    def _packets(self) -> Iterator[av.Packet[AudioStream]]:
        """Read to the end. A demuxer that lost its place before the promised end is put behind the damage."""
        behind: int | None = None  # packets up to this time were read before
        reached, step = 0, Fraction(1)
        for _ in range(_RESUMES):
            for packet in self._demux():
                if packet.pts is not None:
                    if behind is not None and packet.pts <= behind:
                        continue
                    if behind is not None:
                        behind, step = None, Fraction(1)
                        self._fail()
                    reached = packet.pts
                yield packet
            behind = reached
            if not self._resume(reached, step):
                return
            step *= 2

    def _resume(self, reached: int, step: Fraction) -> bool:
        """Seek to ``step`` seconds behind the last packet, if the header promises sound there."""
        base, promised = self.stream.time_base, self.promised_s
        if base is None or promised is None or self.container.format.name not in _RESUMABLE:
            return False
        time = reached * base + step
        if time >= self.begins + promised:
            return False
        with suppress(av.FFmpegError):
            self.seek(time)
        return True

    def _demux(self) -> Iterator[av.Packet[AudioStream]]:
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
                if not errors:
                    self._fail()
                errors = errors + 1 if self.window.furthest <= reached else 1
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
    # Read before the others are skipped, because FFmpeg then forgets them.
    begins = _begin_of(container, window)
    own = None if chosen.start_time is None or chosen.time_base is None else chosen.start_time * chosen.time_base
    leads = own is None or own - begins < Fraction(1, 1000)
    for stream in container.streams:
        if stream is not chosen and hasattr(stream, "discard"):  # PyAV 18
            stream.discard = Discard.all
    if _codec_of(chosen) == "flac":
        chosen.codec_context.options = {"err_detect": "crccheck+explode"}  # else damage is loud noise
    return Track(container, chosen, window, begins, leads)


def _codec_of(stream: AudioStream) -> str:
    return getattr(stream.codec_context, "name", "")  # None where FFmpeg has no decoder


def _begin_of(container: InputContainer, window: Window) -> Fraction:
    """Return the second at which the first stream begins. FFmpeg does not know it of videos that it may not decode."""
    start = cast("int | None", container.start_time)
    videos = {s.index for s in container.streams.video if not s.disposition & Disposition.attached_pic}
    if start is None:
        return Fraction(0)
    begins = Fraction(start, av.time_base)
    if not videos:
        return begins
    with suppress(av.FFmpegError), open_container(window.again()) as again:
        for packet in islice(again.demux(list(again.streams)), _FIRST_PACKETS):
            if packet.stream_index in videos and packet.pts is not None and packet.time_base:
                begins = min(begins, packet.pts * packet.time_base)
    return begins


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

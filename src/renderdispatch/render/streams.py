"""Which frames does a track of a file hold, and where do its timestamps put them?

An error in the middle is not the end: reading goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import dropwhile
from typing import Final

import av
from attrs import define, field
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from renderdispatch.errors import AudioError
from renderdispatch.render.lengths import lost_share
from renderdispatch.render.links import Window

_STUCK: Final = 1000
"""Errors in a row, without the position in the file moving on, after which a file is taken to end."""

_MP4: Final = "mov,mp4,m4a,3gp,3g2,mj2"

_SOUGHT_EXACTLY: Final = {"aac", "flac", _MP4, "mp3", "ogg", "tta", "wv"}
"""The formats in which a seek finds a packet and its exact time. Matroska's times are rounded, for example."""


_TAGS: Final = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
"""What tags begin with. They are in the middle where files were joined, and come as packets."""

_PAGES_S: Final = 2
"""As long as one page of an Ogg usually is, and more."""

_RESUMABLE: Final = {"asf", "avi", "matroska,webm", _MP4}
"""The formats in which FFmpeg may lose its place, and finds it by a seek."""

_RESUMES: Final = 50
"""How often a demuxer that ended too early is put behind the damage."""


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
        promised_s: Seconds of sound by the header, or None.
        failures: Reads and packets that failed since the last frame that was decoded.
        failed: All of them.
        decoded: Frames.
    """

    container: InputContainer
    stream: AudioStream
    window: Window
    begins: Fraction
    leads: bool
    promised_s: Fraction | None
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
    def lost(self) -> Fraction:
        """The share of bytes that are missing at the end, or are no packets, of those that were read as sound."""
        return lost_share(self.container.format.name, self.window, self._read_to)

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
        base, codec = self.stream.time_base, codec_of(self.stream)
        exact = base is not None and (1 / (base * rate)).denominator == 1
        return exact and (self.container.format.name in _SOUGHT_EXACTLY or codec.startswith("pcm_"))

    @property
    def has_noise(self) -> bool:
        """Whether the decoder makes noise of random numbers, which are others after a seek."""
        return codec_of(self.stream).startswith("aac")

    def seek(self, time: Fraction) -> None:
        """Go to the packet at or before a time on the container's clock.

        Raises:
            av.FFmpegError: The container cannot be sought in.
        """
        assert self.stream.time_base is not None
        self.container.seek(int(time / self.stream.time_base), stream=self.stream)

    def frames_near(self, time: Fraction) -> Iterator[Decoded]:
        """Go to shortly before a time, and decode from there to the end.

        Raises:
            av.FFmpegError: The container cannot be sought in.
            AudioError: As `frames`.
        """
        if self.container.format.name != "ogg":
            self.seek(time)
            return self.frames()
        self.seek(time - _PAGES_S)
        return self._decoded(_without_first_page(self._packets()))

    def frames(self) -> Iterator[Decoded]:
        """Decode from here to the end. What cannot be read or decoded is counted, and skipped.

        Raises:
            AudioError: The file cannot be read (``audio.unreadable``).
        """
        return self._decoded(self._packets())

    def _decoded(self, packets: Iterable[av.Packet[AudioStream]]) -> Iterator[Decoded]:
        for packet in packets:
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
        """Seek to ``step`` seconds behind the last packet or further, if the header promises sound there."""
        base = self.stream.time_base
        if base is None or self.promised_s is None or self.container.format.name not in _RESUMABLE:
            return False
        end = self.begins + self.promised_s
        while reached * base + step < end:
            with suppress(av.FFmpegError):
                self.seek(reached * base + step)
                return True
            step *= 2
        return False

    def _demux(self) -> Iterator[av.Packet[AudioStream]]:
        """Demux. After an error FFmpeg goes on behind it; a file that does not move on any more has ended."""
        errors, reached = 0, 0
        while errors < _STUCK:
            try:
                for packet in self.container.demux(self.stream):
                    errors = 0
                    yield packet
                return
            except (av.error.EOFError, IndexError):  # PyAV raises the latter at the end, if streams appeared meanwhile
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


def _without_first_page(packets: Iterable[av.Packet[AudioStream]]) -> Iterator[av.Packet[AudioStream]]:
    """Leave out the page of an Ogg that a seek led to: only those behind it begin at a time that a page tells."""
    packets = iter(packets)
    page = next((packet.pos for packet in packets), None)
    return dropwhile(lambda packet: packet.pos == page, packets)


def codec_of(stream: AudioStream) -> str:
    """Return the name of the decoder; empty if there is none."""
    return getattr(stream.codec_context, "name", "")

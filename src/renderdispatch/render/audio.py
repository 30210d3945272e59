"""Which samples does a file hold, exactly, in the range that was asked for?

Anything that FFmpeg decodes is read, in bounded memory: corrupt packets are skipped, a truncated file gives what it
has. Positions are integers of samples from the first to the last step; seconds enter as fractions and leave as
fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from renderdispatch.errors import AudioError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    """(channels, samples) float32, full scale at 1."""

_PLAYABLE_RATES: Final = (44_100, 48_000)
"""The rates that every player of AAC knows; other sources are resampled to the nearest relative."""

_ANY_TAGS: Final[dict[str, Any]] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Old songs have titles that are no UTF-8. PyAV 19 reads any, and knows this argument no more."""

_BLOCK: Final = 16_384
"""Samples that are handled at once: enough to make the work of each block outweigh its overhead."""


class SoundReader:
    """Decodes a range of a file to mono or stereo at a rate that every player knows.

    Enter it to open the file; iterate over `blocks` once; then `duration` is known.

    Args:
        path: The file.
        start: Seconds; the range begins at the sample nearest to it.
        duration: Seconds; None is to the end. What reaches past the end is cut there.
    """

    def __init__(self, path: Path, *, start: Fraction, duration: Fraction | None) -> None:
        self._path = path
        self._start = start
        self._duration = duration
        self._stack = ExitStack()
        self._taken = 0
        self._damaged = False

    def __enter__(self) -> Self:
        with self._stack:
            try:
                file = self._stack.enter_context(self._path.open("rb"))
                empty = not file.read(1)
                file.seek(0)
            except OSError as error:
                raise AudioError(f"the audio cannot be read: {error.strerror}", code="audio.unreadable") from error
            if empty:
                raise AudioError("the audio file is empty", code="audio.empty")
            try:
                # From an open file, without protocols: a playlist that poses as a song reaches no other file or host.
                container = self._stack.enter_context(
                    av.open(file, "r", options={"protocol_whitelist": "none"}, **_ANY_TAGS)
                )
            except (av.FFmpegError, OSError) as error:
                raise AudioError(
                    "this is not audio in any format that can be read", code="audio.undecodable"
                ) from error
            if container.format.name == "tty":  # what FFmpeg takes any text for
                raise AudioError("this is text, not audio", code="audio.undecodable")
            if not container.streams.audio:
                raise AudioError("there is no sound in this file", code="audio.no-stream")
            frames = self._frames(container, container.streams.audio[0])
            first = next(frames, None)
            if first is None:
                if self._damaged:
                    raise AudioError("nothing in this file can be decoded", code="audio.undecodable")
                raise AudioError("the sound has no samples", code="audio.empty")
            # Only a decoded frame tells them for sure: HE-AAC has twice the rate of its header.
            self.source_rate: int = first.sample_rate
            self.channels: int = min(first.layout.nb_channels, 2)
            self.layout: str = "mono" if self.channels == 1 else "stereo"
            self.rate: int = _playable(self.source_rate)
            self._decoded = chain([first], frames)
            self.expected_s: float = self._expect(container.duration)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def duration(self) -> Fraction:
        """Seconds in the range: decoded samples / their rate. Right once `blocks` is exhausted."""
        return Fraction(self._taken, self.source_rate)

    def blocks(self) -> Iterator[Samples]:
        """Iterate over the range at `rate`, in blocks of a fraction of a second.

        Raises:
            AudioError: ``audio.too-short``: the range is less than a sample. ``audio.range``: it begins at or after the
                end.
        """
        total = 0
        for block in self._at_playable_rate(_in_blocks(self._in_range())):
            total += block.shape[1]
            yield block
        if self._taken == 0 and self._duration is not None and round(self._duration * self.source_rate) == 0:
            raise AudioError(f"{float(self._duration):g} s is less than one sample of sound", code="audio.too-short")
        if self._taken == 0:
            raise AudioError(
                f"the sound ends before {float(self._start):g} s, where the video was to begin", code="audio.range"
            )
        missing = round(self.duration * self.rate) - total
        if missing > 0:
            yield np.zeros((self.channels, missing), np.float32)

    def _expect(self, microseconds: int | None) -> float:
        """Return about how many seconds will come, from what the container says."""
        whole = Fraction(microseconds or 0, 1_000_000) - self._start
        return float(max(min(whole, self._duration) if self._duration is not None else whole, Fraction(0)))

    def _frames(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """Decode, skipping what is corrupt. A demuxer that meets garbage at the end of a file has reached its end."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.InvalidDataError, av.error.EOFError):
                self._damaged = True
                return
            except (av.FFmpegError, OSError) as error:
                raise AudioError("reading the audio failed midway", code="audio.unreadable") from error
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.FFmpegError:
                self._damaged = True
                continue
            for frame in frames:
                if frame.samples and frame.sample_rate:
                    yield frame

    def _in_range(self) -> Iterator[Samples]:
        """Cut the range out of the decoded samples, at the source's rate."""
        first = round(self._start * self.source_rate)
        wanted = None if self._duration is None else round(self._duration * self.source_rate)
        position = 0
        for samples in self._converted():
            begin = max(first - position, 0)
            position += samples.shape[1]
            cut = samples[:, begin : None if wanted is None else begin + wanted - self._taken]
            self._taken += cut.shape[1]
            if cut.shape[1]:
                yield cut
            if self._taken == wanted:
                return

    def _converted(self) -> Iterator[Samples]:
        """Convert to float32 planes; a stream that changes its format midway is brought to that of its first frame."""
        shape: tuple[object, ...] | None = None
        resampler: AudioResampler | None = None
        for frame in self._decoded:
            if shape != (now := (frame.format.name, frame.layout.name, frame.sample_rate)):
                if resampler is not None:
                    yield from _planes(resampler, None)
                shape, resampler = now, AudioResampler("fltp", self.layout, self.source_rate)
            assert resampler is not None
            frame.pts = None
            yield from _planes(resampler, frame)
        if resampler is not None:
            yield from _planes(resampler, None)

    def _at_playable_rate(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        if self.rate == self.source_rate:
            yield from blocks
            return
        resampler = AudioResampler("fltp", self.layout, self.rate)
        for block in blocks:
            yield from _planes(resampler, frame_of(block, layout=self.layout, rate=self.source_rate))
        yield from _planes(resampler, None)


def frame_of(samples: Samples, *, layout: str, rate: int) -> AudioFrame:
    """Return the samples as FFmpeg takes them."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate
    return frame


def _planes(resampler: AudioResampler, frame: AudioFrame | None) -> Iterator[Samples]:
    for converted in resampler.resample(frame):
        yield converted.to_ndarray().astype(np.float32, copy=False)


def _in_blocks(pieces: Iterable[Samples]) -> Iterator[Samples]:
    """Join small pieces, so that what follows costs little for each, and make them sane.

    What is no number is silenced (the AAC encoder refuses it), what is absurdly loud is bounded.
    """
    held: list[Samples] = []
    for piece in chain(pieces, [None]):
        if piece is not None:
            held.append(piece)
        if held and (piece is None or sum(part.shape[1] for part in held) >= _BLOCK):
            block = np.concatenate(held, axis=1)
            held.clear()
            yield np.clip(np.nan_to_num(block, copy=False, posinf=0, neginf=0), -4, 4)


def _playable(rate: int) -> int:
    if rate in _PLAYABLE_RATES:
        return rate
    return 44_100 if rate % 11_025 == 0 else 48_000

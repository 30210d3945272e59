"""Which samples does a file hold, exactly, in the range that was asked for?

Anything that FFmpeg decodes is read, in bounded memory. Corrupt packets are skipped, and a truncated file gives what it
has. Positions are whole samples throughout; seconds come and go as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final, Self

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray

from renderdispatch.errors import AudioError

Samples = NDArray[np.float32]
"""(channels, samples) float32, full scale at 1."""

_PLAYABLE_RATES: Final = (44_100, 48_000)
"""The rates that every AAC player knows; other sources are resampled to the one that suits them."""

_ANY_TAGS: Final[dict[str, Any]] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Old songs have titles that are not UTF-8. PyAV 19 reads them, and no longer has this argument."""

_BLOCK: Final = 16_384
"""Samples that are processed at once, so that the overhead of each block is small."""


class SoundReader:
    """Decodes a range of a file to mono or stereo at a rate that every player knows.

    Enter it to open the file, and iterate over `blocks` once; `duration` is known afterwards.

    Args:
        path: The file.
        start: Seconds; the range begins at the nearest sample.
        duration: Seconds; None is to the end. A range that reaches past the end stops there.
    """

    def __init__(self, path: Path, *, start: Fraction, duration: Fraction | None) -> None:
        self._path = path
        self._start = start
        self._duration = duration
        self._taken = 0
        self._damaged = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            container = self._open(stack)
            frames = self._frames(container)
            first = next(frames, None)
            if first is None and self._damaged:
                raise AudioError("nothing in this file can be decoded", code="audio.undecodable")
            if first is None:
                raise AudioError("the audio has no samples", code="audio.empty")
            # Only a decoded frame tells them for sure: HE-AAC has twice the rate of its header.
            self.source_rate: int = first.sample_rate
            self.channels: int = min(first.layout.nb_channels, 2)
            self.layout: str = "mono" if self.channels == 1 else "stereo"
            family = 44_100 if self.source_rate % 11_025 == 0 else 48_000
            self.rate: int = self.source_rate if self.source_rate in _PLAYABLE_RATES else family
            self._decoded = chain([first], frames)
            self.expected_s: float = self._expect(container.duration)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> InputContainer:
        try:
            file = stack.enter_context(self._path.open("rb"))
            empty = not file.read(1)
            file.seek(0)
        except OSError as error:
            raise AudioError(f"the audio cannot be read: {error.strerror}", code="audio.unreadable") from error
        if empty:
            raise AudioError("the audio file is empty", code="audio.empty")
        try:
            # From an open file, without protocols: a playlist that poses as a song reaches no other file or host.
            container: InputContainer = av.open(file, "r", options={"protocol_whitelist": "none"}, **_ANY_TAGS)
        except (av.FFmpegError, OSError) as error:
            raise AudioError("this is not audio in a format that can be read", code="audio.undecodable") from error
        stack.enter_context(container)
        if container.format.name == "tty":  # FFmpeg takes any text for this format
            raise AudioError("this is text, not audio", code="audio.undecodable")
        if not container.streams.audio:
            raise AudioError("there is no sound in this file", code="audio.no-stream")
        return container

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def duration(self) -> Fraction:
        """Seconds in the range: decoded samples / their rate. It is right when `blocks` is exhausted."""
        return Fraction(self._taken, self.source_rate)

    def blocks(self) -> Iterator[Samples]:
        """Iterate over the range at `rate`, in blocks of a fraction of a second.

        Raises:
            AudioError: ``audio.too-short``: the range is shorter than one sample. ``audio.range``: it begins at or
                after the end.
        """
        total = 0
        for block in self._at_playable_rate(_in_blocks(self._in_range())):
            total += block.shape[1]
            yield block
        if self._taken == 0 and self._duration is not None and round(self._duration * self.source_rate) == 0:
            raise AudioError(f"{float(self._duration):g} s is less than one sample of sound", code="audio.too-short")
        if self._taken == 0:
            raise AudioError(f"the audio ends before {float(self._start):g} s, the video's start", code="audio.range")
        missing = round(self.duration * self.rate) - total
        if missing > 0:
            yield np.zeros((self.channels, missing), np.float32)

    def _expect(self, microseconds: int | None) -> float:
        """Return about how many seconds will come, by the container's duration."""
        whole = float(Fraction(microseconds or 0, 1_000_000) - self._start)
        return max(whole if self._duration is None else min(whole, float(self._duration)), 0.0)

    def _frames(self, container: InputContainer) -> Iterator[AudioFrame]:
        """Decode, skipping corrupt packets. A demuxer that finds garbage at the end of a file has reached its end."""
        packets = container.demux(container.streams.audio[0])
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.InvalidDataError, av.error.EOFError):
                self._damaged = True
                return
            except (av.FFmpegError, OSError) as error:
                raise AudioError("reading the audio failed midway", code="audio.unreadable") from error
            try:
                frames = packet.decode()
            except av.error.EOFError:
                return
            except av.FFmpegError:
                self._damaged = True
                continue
            yield from (frame for frame in frames if frame.samples and frame.sample_rate)

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
        """Convert to float32 planes. If the format changes midway, that of the first frame is kept."""
        for _, frames in groupby(
            self._decoded, lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)
        ):
            yield from self._resampled(frames, self.source_rate)

    def _at_playable_rate(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        if self.rate == self.source_rate:
            return blocks
        return self._resampled((frame_of(b, layout=self.layout, rate=self.source_rate) for b in blocks), self.rate)

    def _resampled(self, frames: Iterable[AudioFrame], rate: int) -> Iterator[Samples]:
        resampler = AudioResampler("fltp", self.layout, rate)
        for frame in chain(frames, [None]):
            if frame is not None:
                frame.pts = None
            for converted in resampler.resample(frame):
                yield converted.to_ndarray().astype(np.float32, copy=False)


def frame_of(samples: Samples, *, layout: str, rate: int) -> AudioFrame:
    """Return the samples as a frame of FFmpeg."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate
    return frame


def _in_blocks(pieces: Iterable[Samples]) -> Iterator[Samples]:
    """Join small pieces, so that later steps have little overhead, and make their values sane.

    Values that are not numbers become silence, because the AAC encoder refuses them; absurdly loud ones are bounded.
    """
    held: list[Samples] = []
    for piece in chain(pieces, [None]):
        if piece is not None:
            held.append(piece)
        if held and (piece is None or sum(part.shape[1] for part in held) >= _BLOCK):
            block = np.concatenate(held, axis=1)
            held.clear()
            yield np.clip(np.nan_to_num(block, copy=False, posinf=0, neginf=0), -4, 4)

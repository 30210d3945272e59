"""Which samples does a file hold, exactly, in the range that was asked for?

Anything that FFmpeg decodes is read, in bounded memory. Damage costs what it covers, and a truncated file gives what it
has. Positions are whole samples throughout; seconds come and go as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import chain, groupby, islice
from pathlib import Path
from typing import BinaryIO, Final, Self

import av
import numpy as np
from av.container import InputContainer

from renderdispatch.errors import AudioError
from renderdispatch.messages import RenderWarning
from renderdispatch.render.containers import open_container, select, tracks
from renderdispatch.render.links import Window, parts_of
from renderdispatch.render.mixing import Mixer, Samples, resampled, samples_of
from renderdispatch.render.streams import Decoded
from renderdispatch.render.timeline import LOOKAHEAD, Notes, Placed, Timeline

_PLAYABLE_RATES: Final = (44_100, 48_000)
"""The rates that every AAC player knows; other sources are resampled to the one that suits them."""

_BLOCK: Final = 16_384
"""Samples that are processed at once, so that the overhead of each block is small."""

_SEEK_FROM_S: Final = 30
"""A start before this is reached by decoding, which costs less than a tenth of a second."""

_SEEK_NOISE_FROM_S: Final = 600
"""As above, where the samples are not the same after a seek: noise is other noise. It costs about a second."""

_RUN_UP_S: Final = 1
"""Sound that is decoded before the start and not used, after a seek: decoders depend on the packets before."""

_TAIL: Final = 4
"""Failures at the end that are normal: tags, and a last packet that is not whole."""

_NONSENSE: Final = 10
"""Failures for each frame that was decoded, from which on a file is not audio."""


class SoundReader:
    """Decodes a range of a file to mono or stereo at a rate that every player knows.

    Enter it to open the file, and iterate over `blocks` once; `duration` and `warnings` are known afterwards.

    Args:
        path: The file.
        start: Seconds on the clock of a player; the range begins at the nearest sample.
        duration: Seconds; None is to the end. A range that reaches past the end stops there.
        track: Which of the audio tracks, from 0. None is the one that players choose: the first that holds sound, of
            those that are marked as default if there are any.
    """

    def __init__(self, path: Path, *, start: Fraction, duration: Fraction | None, track: int | None = None) -> None:
        self._path = path
        self._start = start
        self._duration = duration
        self._wanted_track = track
        self._taken = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._open(stack)
            first = self._first.frame
            # Only a decoded frame tells them for sure: HE-AAC has twice the rate of its header.
            self.source_rate: int = first.sample_rate
            self.channels: int = min(first.layout.nb_channels, 2)
            self.layout: str = "mono" if self.channels == 1 else "stereo"
            family = 44_100 if self.source_rate % 11_025 == 0 else 48_000
            self.rate: int = self.source_rate if self.source_rate in _PLAYABLE_RATES else family
            self.expected_s: float = self._expect()
            self._begin = round(self._start * self.source_rate)
            self._notes = Notes(self.source_rate, self._begin)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        try:
            self._file: BinaryIO = stack.enter_context(self._path.open("rb"))
            empty = not self._file.read(1)
            self._parts = parts_of(self._file)
        except OSError as error:
            raise AudioError(f"the audio cannot be read: {error.strerror}", code="audio.unreadable") from error
        if empty:
            raise AudioError("the audio file is empty", code="audio.empty")
        container, window = self._container(stack, self._parts[0])
        failed, order = 0, tracks(container, self._wanted_track)
        for index in order:
            if index != order[0]:
                container, window = self._container(stack, self._parts[0])
            self._track = select(container, window, index)
            self._frames = self._track.frames()
            first = next(self._frames, None)
            if first is not None:
                self._index, self._first = index, first
                return
            failed += self._track.failed
            container.close()
        if failed:
            raise AudioError("nothing in this file can be decoded", code="audio.undecodable")
        raise AudioError("the audio has no samples", code="audio.empty")

    def _container(self, stack: ExitStack, part: tuple[int, int]) -> tuple[InputContainer, Window]:
        window = Window(self._file, *part)
        return stack.enter_context(open_container(window)), window

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def duration(self) -> Fraction:
        """Seconds in the range: decoded samples / their rate. It is right when `blocks` is exhausted."""
        return Fraction(self._taken, self.source_rate)

    @property
    def warnings(self) -> tuple[RenderWarning, ...]:
        """What is wrong with the sound of the range, at most one for each code."""
        return self._notes.warnings

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

    def _expect(self) -> float:
        """Return about how many seconds will come, by the container's duration; links are taken to be alike."""
        begin, end = self._parts[0]
        share = Fraction(end - begin, self._parts[-1][1] - begin)
        whole = float((self._track.container_s or 0) / share - self._start)
        return max(whole if self._duration is None else min(whole, float(self._duration)), 0.0)

    def _in_range(self) -> Iterator[Samples]:
        """Cut the range out of what is heard, at the source's rate. Nothing before it is converted."""
        mixer = Mixer(self.layout, self.source_rate)
        end = None if self._duration is None else self._begin + round(self._duration * self.source_rate)
        for piece in self._heard():
            begin = max(self._begin - piece.at, 0)
            until = piece.samples if end is None else min(piece.samples, end - piece.at)
            if begin < until:
                self._taken += until - begin
                if piece.frame is None:
                    yield from self._silence(until - begin)
                else:
                    yield mixer.mix(piece.frame)[:, piece.skip + begin : piece.skip + until]
            if end is not None and piece.at + piece.samples >= end:
                return

    def _silence(self, samples: int) -> Iterator[Samples]:
        for at in range(0, samples, _BLOCK):
            yield np.zeros((self.channels, min(_BLOCK, samples - at)), np.float32)

    def _heard(self) -> Iterator[Placed]:
        """Yield the pieces of all links, one after the other."""
        timeline, frames = self._near_start()
        yield from timeline.place(self._at_source_rate(frames))
        self._judge(timeline)
        for part in self._parts[1:]:
            with ExitStack() as stack:
                try:
                    container, window = self._container(stack, part)
                except AudioError:
                    self._notes.add("audio.damaged", timeline.end)
                    continue
                track = select(container, window, min(self._index, len(container.streams.audio) - 1))
                timeline = Timeline(self.source_rate, track, self._notes, timeline.end)
                yield from timeline.place(self._at_source_rate(track.frames()))
                self._judge(timeline)

    def _near_start(self) -> tuple[Timeline, Iterable[Decoded]]:
        """Return the frames from shortly before the range, if their positions are sure; else from the begin."""
        timeline = Timeline(self.source_rate, self._track, self._notes)
        seek_from_s = _SEEK_NOISE_FROM_S if self._track.has_noise else _SEEK_FROM_S
        if self._start < seek_from_s or len(self._parts) > 1 or not self._track.can_seek(self.source_rate):
            return timeline, chain([self._first], self._frames)
        with suppress(av.FFmpegError):
            frames = self._track.frames_near(self._track.begins + self._start - _RUN_UP_S)
            found = list(islice(frames, LOOKAHEAD))
            latest = self._begin - self.source_rate * _RUN_UP_S // 2
            if timeline.begin_at(found, first=self._first) <= latest:
                return timeline, chain(found, frames)
        self._track = select(*self._container(self._stack, self._parts[0]), self._index)
        return Timeline(self.source_rate, self._track, self._notes), self._track.frames()

    def _judge(self, timeline: Timeline) -> None:
        """Judge what was decoded of a link, at its end."""
        track = timeline.track
        if track.failed > _NONSENSE * track.decoded:
            raise AudioError("hardly anything in this file can be decoded", code="audio.undecodable")
        if track.failures > _TAIL:
            self._notes.add("audio.damaged", timeline.end)
        missing = timeline.missing
        if missing > self.source_rate // 2:
            self._notes.add("audio.truncated", timeline.end, missing)

    def _at_source_rate(self, frames: Iterable[Decoded]) -> Iterator[Decoded]:
        """Resample frames whose rate is not that of the first one; they follow what is before them."""
        for rate, group in groupby(frames, lambda decoded: decoded.frame.sample_rate):
            if rate == self.source_rate:
                yield from group
            else:
                blocks = map(Mixer(self.layout, rate).mix, (decoded.frame for decoded in group))
                converted = resampled(blocks, layout=self.layout, source=rate, rate=self.source_rate)
                yield from (Decoded(frame, None, Fraction(0)) for frame in converted)

    def _at_playable_rate(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        if self.rate == self.source_rate:
            return blocks
        return map(samples_of, resampled(blocks, layout=self.layout, source=self.source_rate, rate=self.rate))


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

"""At which sample is each decoded frame heard?

A frame follows the one before it, unless timestamps persistently say otherwise: then a gap becomes silence, and of what
overlaps the later part is cut. Positions are whole samples, from the begin of what a player plays.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from math import inf
from typing import Final

from attrs import Factory, define, field
from av.audio.frame import AudioFrame

from renderdispatch.messages import RenderWarning
from renderdispatch.render.streams import Decoded, Track

LOOKAHEAD: Final = 8
"""Frames whose timestamps must agree before one is believed: recorders that stamp on arrival have jitter."""

_TOLERANCE_S: Final = 0.015
"""Less than the shortest packet that is usually lost, and more than what containers round."""

_FEW: Final = 3
"""Fewer frames prove no overlap: some containers' timestamps do not move at all."""

_PRIMING_S: Final = Fraction(1, 5)
"""More than any encoder puts before the sound."""

_PADDING: Final = 4096
"""Samples; as much as an encoder may put behind the sound."""

_LONGEST_GAP_S: Final = 3600
_LONGEST_UNEXPLAINED_GAP_S: Final = 600
_LONGEST_JUMP_S: Final = 10
"""A longer overlap, or in broadcasts a longer gap, is a clock that was set, as FFmpeg's dts_delta_threshold has it."""


@define(eq=False)
class Placed:
    """A piece of what is heard.

    Args:
        at: The position of its first sample.
        samples: How many there are.
        frame: Where they are, as its last ones before ``cut``; None is silence.
        skip: Samples at the frame's begin that are not heard.
    """

    at: int
    samples: int
    frame: AudioFrame | None = None
    skip: int = 0


@define
class Notes:
    """Collects what is wrong with the sound of a range, as one warning for each kind.

    Args:
        rate: Samples a second.
        begin: What ends before this position is not reported.
    """

    _rate: int
    _begin: int
    _kinds: dict[str, tuple[int, int, int]] = field(init=False, factory=dict)

    def add(self, code: str, at: int, lost: int = 0) -> None:
        """Note what happened at a position, and how many samples it cost."""
        if at + lost >= self._begin:
            first, count, sum_ = self._kinds.get(code, (at, 0, 0))
            self._kinds[code] = first, count + 1, sum_ + lost

    @property
    def warnings(self) -> tuple[RenderWarning, ...]:
        """All of them; seconds are those of a player's clock."""
        return tuple(
            RenderWarning(
                code=code,
                message=_TEXTS[code].format(
                    places="1 place" if count == 1 else f"{count} places",
                    first=f"{first / self._rate:.1f} s",
                    lost=f"{lost / self._rate:.2f} s",
                ),
            )
            for code, (first, count, lost) in self._kinds.items()
        )


_TEXTS: Final = {
    "audio.damaged": "the sound is damaged in {places}, first at {first}; what cannot be decoded is left out",
    "audio.gap": "sound is missing in {places}, first at {first}; {lost} of silence take its place",
    "audio.overlap": "the sound overlaps itself in {places}, first at {first}; {lost} are left out",
    "audio.timestamps": "the clock of the sound jumps in {places}, first at {first}; the sound goes on without a gap",
    "audio.truncated": "the file ends at {first}, and about {lost} of its sound are missing",
}


@define(eq=False)
class _Timed:
    """A frame with the samples before it, and how far its timestamp is ahead of them (None: it has none)."""

    decoded: Decoded
    samples: int
    before: int
    ahead: int | None


@define(eq=False)
class Timeline:
    """Places the frames of a track.

    Args:
        rate: Samples a second, of all frames.
        track: Where they come from.
        notes: Takes what is found.
        begin: The position at which the track's container begins.
        end: The position up to which samples were placed.
    """

    rate: int
    track: Track
    notes: Notes
    begin: int = 0
    end: int = field(init=False, default=Factory(lambda self: self.begin, takes_self=True))
    _jumped: bool = field(init=False, default=False)
    _zero: int | None = field(init=False, default=None)  # the sample on the container's clock that is at `begin`

    def begin_at(self, found: Sequence[Decoded], *, first: Decoded) -> int | float:
        """Begin at frames that a seek led to, and return their position: infinity if that is not known.

        Args:
            found: The frames. Most must agree: single timestamps of Vorbis are off where its blocks change their size.
            first: The track's first frame.
        """
        before = accumulate((decoded.frame.samples for decoded in found), initial=0)
        (ahead, agree), *_ = Counter(map(self._ahead, found, before)).most_common(1) or [(None, 0)]
        begin = self._ahead(first, 0)
        of_one_rate = all(decoded.frame.sample_rate == self.rate for decoded in found)
        if ahead is None or begin is None or 2 * agree <= len(found) or not of_one_rate:
            return inf
        self._zero = self._zero_of(begin)
        self.end = self.begin + ahead - self._zero
        return self.end

    def place(self, frames: Iterable[Decoded]) -> Iterator[Placed]:
        """Place each frame; what is not heard of it is cut."""
        shift: int | None = None
        for window, more in _windows(self._timed(frames)):
            now = window[0]
            if shift is None:
                shift = self._first_shift(window)
            shift = self._corrected(window, shift)
            at = now.before + shift
            if at > self.end:
                yield Placed(self.end, at - self.end)
                self.end = at
            stop = at + now.samples if more else min(at + now.samples, self._stop(window, shift))
            if stop > self.end:
                skip = self.end - at
                yield Placed(self.end, stop - self.end, now.decoded.frame, skip)
                self.end = stop

    def _timed(self, frames: Iterable[Decoded]) -> Iterator[_Timed]:
        before = 0
        for decoded in frames:
            samples = decoded.frame.samples
            yield _Timed(decoded, samples, before, self._ahead(decoded, before))
            before += samples

    def _ahead(self, decoded: Decoded, before: int) -> int | None:
        if decoded.pts is None or not decoded.base:
            return None
        scaled, unit = decoded.pts * decoded.base.numerator * self.rate, decoded.base.denominator
        return (2 * scaled + unit) // (2 * unit) - round(self.track.begins * self.rate) - before

    def _zero_of(self, ahead: int) -> int:
        """The earliest sound begins at 0, after its encoder's padding; other sound begins at its own time."""
        return ahead if self.track.leads and abs(ahead) < _PRIMING_S * self.rate else 0

    def _first_shift(self, window: deque[_Timed]) -> int:
        if self._zero is not None:  # after a seek
            return self.end
        ahead = next((item.ahead for item in window if item.ahead is not None), 0)
        self._zero = self._zero_of(ahead)
        return self.begin

    def _corrected(self, window: deque[_Timed], shift: int) -> int:
        """Return the shift that the timestamps in the window agree on, and note why it changed."""
        now = window[0]
        failures = now.decoded.failures if now.before else 0  # what is cut in the middle of a packet begins like that
        if failures:
            self.notes.add("audio.damaged", now.before + shift)
        tolerance = max(_TOLERANCE_S, 1.5 * float(now.decoded.base)) * self.rate
        off = self._off(now, shift)
        if off is None or abs(off) < tolerance:
            return shift
        all_off = [o for o in (self._off(item, shift) for item in window) if o is not None]
        if min(all_off) >= tolerance:
            return shift + self._gap(min(all_off), now.before + shift, failures=failures)
        if max(all_off) <= -tolerance and len(all_off) >= _FEW and max(all_off) - min(all_off) < tolerance:
            return shift + self._overlap(max(all_off), now.before + shift)
        return shift

    def _off(self, item: _Timed, shift: int) -> int | None:
        """Return how much later than expected a frame is by its timestamp."""
        if item.ahead is None or self._zero is None:
            return None
        return item.ahead - self._zero + self.begin - shift

    def _gap(self, samples: int, at: int, *, failures: int) -> int:
        if samples > self._longest_gap_s(at, samples) * self.rate:
            return self._set_clock(samples, at)
        if at > self.begin and not failures:
            self.notes.add("audio.gap", at, samples)
        return samples

    def _longest_gap_s(self, at: int, samples: int) -> int:
        if self.track.has_jumps:
            return _LONGEST_JUMP_S
        whole = self.track.container_s
        explained = whole is not None and Fraction(at - self.begin + samples, self.rate) <= whole + 1
        return _LONGEST_GAP_S if explained else _LONGEST_UNEXPLAINED_GAP_S

    def _overlap(self, samples: int, at: int) -> int:
        again = at + samples < self.begin + _PRIMING_S * self.rate  # two files in one
        if again or -samples > _LONGEST_JUMP_S * self.rate:
            return self._set_clock(samples, at)
        self.notes.add("audio.overlap", at, -samples)
        return samples

    def _set_clock(self, samples: int, at: int) -> int:
        self.notes.add("audio.timestamps", at)
        assert self._zero is not None
        self._zero += samples
        self._jumped = True
        return 0

    @property
    def missing(self) -> int:
        """How many samples, about, the file should hold beyond those that were placed."""
        heard, promised = self.end - self.begin, self.track.promised_s
        by_header = 0 if promised is None or self._jumped else round(promised * self.rate) - heard
        return max(by_header, round(self.track.lost * heard))

    def _stop(self, window: deque[_Timed], shift: int) -> int:
        """Return where the sound ends: before what the encoder put behind it, if the header tells."""
        end = window[-1].before + window[-1].samples + shift
        if self.track.ends is None or self._zero is None:
            return end
        stop = round((self.track.ends - self.track.begins) * self.rate) - self._zero + self.begin
        return stop if 0 < end - stop <= _PADDING else end


def _windows(items: Iterator[_Timed]) -> Iterator[tuple[deque[_Timed], bool]]:
    """Yield each item with those that follow it, and whether there are more behind them."""
    window: deque[_Timed] = deque()
    for item in items:
        window.append(item)
        if len(window) > LOOKAHEAD:
            yield window, True
            window.popleft()
    while window:
        yield window, False
        window.popleft()

"""Which segment does a worker draw next?

Each worker of a video has a share: the segments whose index is its number, modulo how many draw. It draws these in
order. Then it helps others, from their last segments backwards, so that it does not meet them on their way forward:

1. segments that their own worker has surely not begun: the one before it in the share is missing too;
2. segments that their own worker is late with. Several may then draw the same one, and the fastest counts.

All that workers know of each other is which segments are kept. Each look is a request that is paid for, so looks are
few: all workers together make at most `LOOKS_OF_ALL` in `LOOK_EVERY_S`, and none looks at a missing segment more often.

Nothing here reads a clock or storage: `Choice` is told what is seen, and says what to do.
"""

from __future__ import annotations

from hashlib import sha256
from itertools import islice
from typing import Final

from attrs import frozen

LOOK_EVERY_S: Final = 2.0
LOOKS_OF_ALL: Final = 512
LOOKS_AT_ONCE: Final = 32
"""All workers together look at so many segments in this time at most, each one at so many."""

_USUAL_S: Final = 4.0
"""How long a segment is taken to need before one was drawn."""

_PATIENCE: Final = 1.25
"""A worker is late with a segment after at most this many times what it would take here."""

_EAGER: Final = 4.0
"""The more draw, the more have nothing else to do at the end: among so many times two, patience is half of that."""


@frozen
class Draw:
    """Draw this segment.

    Args:
        index: Of the segment.
        contested: Whether another worker may be drawing it: look from time to time whether it is still missing.
    """

    index: int
    contested: bool = False


@frozen
class Look:
    """Look whether these segments are kept, and say so by `Choice.saw`."""

    indices: tuple[int, ...]


@frozen
class Wait:
    """Others are drawing all that is missing: wait for so many seconds."""

    seconds: float


def place_of(digest: str, share: int, parallel: int) -> int:
    """Return with which share a worker begins to help, so that not all begin with the same one."""
    return int.from_bytes(sha256(f"{digest}\n{share}".encode()).digest()[:8], "big") % parallel


class Choice:
    """What one worker knows of the segments of a video, and what it does next.

    Args:
        total: Segments of the video.
        share: The worker's number, from 0.
        parallel: How many workers there are.
        place: With which share it begins to help; see `place_of`.
        now: The time on the clock of all other calls, in seconds.
    """

    def __init__(self, total: int, *, share: int, parallel: int, place: int, now: float) -> None:
        self.total: Final = total
        self.standing: Final[set[int]] = set()
        self._parallel = parallel
        self._own = range(share, total, parallel)
        self._last_own = self._own[-1:] if parallel > 1 else ()
        self._began = now
        self._drawn: set[int] = set()
        self._bad: list[int] = []
        self._missing_at: dict[int, float] = {}
        self._stands_since: dict[int, float] = {}
        self.usual_s = _USUAL_S
        """About how long a segment takes here."""

        self._in_vain = 0.0
        self._looks_at_once = min(LOOKS_AT_ONCE, LOOKS_OF_ALL // parallel)
        self._patience = min(_PATIENCE, _EAGER / parallel)
        self._next_look = now
        self._share, self._place = share, place
        self._turns: dict[int, int] = {}
        self._others: Final = [
            range(other, total, parallel)
            for number in range(parallel)
            if (other := (place + number) % parallel) != share and other < total
        ]
        """All other shares, those to help with first."""

    @property
    def is_complete(self) -> bool:
        """Whether all segments are known to be kept."""
        return len(self.standing) == self.total

    def saw(self, index: int, now: float, *, stands: bool) -> None:
        """Take what a look found. A segment that stood may be found to be bad: then it is missing again."""
        if stands:
            self.standing.add(index)
            self._stands_since.setdefault(index, now)
            self._missing_at.pop(index, None)
        else:
            self.standing.discard(index)
            self._stands_since.pop(index, None)
            self._missing_at[index] = now

    def drew(self, index: int, now: float, *, seconds: float, in_vain: float = 0.0) -> None:
        """Take that this worker drew a segment, which stands now.

        Args:
            index: Of the segment.
            now: The time.
            seconds: How long the drawing took, or would have taken.
            in_vain: How much of it was drawn, 0 to 1, if another worker was faster; else 0.
        """
        self.usual_s = seconds if self.usual_s == _USUAL_S else (self.usual_s + seconds) / 2
        self._in_vain += in_vain
        self._drawn.add(index)
        self.saw(index, now, stands=True)

    def found_bad(self, index: int, now: float) -> None:
        """Take that a segment which is kept is bad. Others do not know it, so this worker draws it next."""
        self.saw(index, now, stands=False)
        self._bad.append(index)

    def was_in_vain(self) -> None:
        """Take that a segment that was drawn here had been committed by another worker before."""
        self._in_vain += 1

    def next(self, now: float) -> Draw | Look | Wait | None:
        """Return what to do; None: all segments stand, as far as this worker knows."""
        while self._bad:
            if (bad := self._bad.pop(0)) not in self.standing:
                return Draw(bad, contested=True)
        if own := self._missing(self._own):
            if self._is_fresh(own[0], now):
                return Draw(own[0], contested=own[0] in self._last_own)
            before = own[0] - self._parallel
            goes_on = before in self.standing and before not in self._drawn  # an earlier run drew these
            return Look(tuple(own[: self._looks_at_once if goes_on else 1]))
        shares = [rows for rows in self._others if self._missing(rows)]
        if not shares:
            return None
        fresh = [index for rows in shares for index in self._missing(rows) if self._is_fresh(index, now)]
        if sure := [index for index in fresh if self._is_untouched(index, now) or self._is_late(index, now, _PATIENCE)]:
            return Draw(min(sure, key=self._shuffled), contested=True)
        if now >= self._next_look and (looks := self._looks(shares, now)):
            self._next_look = now + LOOK_EVERY_S
            return Look(tuple(looks))
        if late := [index for index in fresh if self._is_late(index, now, self._patience)]:
            return Draw(min(late, key=self._shuffled), contested=True)
        times = [at - now for at in (self._late_at(index, self._patience) for index in fresh) if at is not None]
        return Wait(max(min(*times, max(self._next_look - now, 0.05), LOOK_EVERY_S), 0.05))

    def _missing(self, rows: range) -> list[int]:
        """Return what is not known to stand of a share."""
        return [index for index in rows if index not in self.standing]

    def _looks(self, shares: list[range], now: float) -> list[int]:
        """Return segments to look at, those that tell most first."""
        late = [index for rows in shares for index in self._missing(rows) if self._is_late(index, now, self._patience)]
        wanted = sorted(late, key=self._shuffled)[: self._looks_at_once // 4]
        for rows in sorted(shares, key=lambda rows: not self._is_behind(rows)):  # which keeps their order
            missing = self._missing(rows)
            telling = sorted(missing, key=self._shuffled)[:2] if self._is_behind(rows) else missing[-1:]
            for index in telling:
                wanted += [index] if index == rows[0] else [index - self._parallel, index]
        looks = (index for index in dict.fromkeys(wanted) if index not in self.standing)
        return list(islice((index for index in looks if not self._is_fresh(index, now)), self._looks_at_once))

    def _is_behind(self, rows: range) -> bool:
        """Return whether the last two of a share were missing when they were looked at."""
        return all(index in self._missing_at for index in self._missing(rows)[-2:])

    def _is_fresh(self, index: int, now: float) -> bool:
        """Return whether it was missing a moment ago."""
        at = self._missing_at.get(index)
        return at is not None and now - at < LOOK_EVERY_S

    def _is_untouched(self, index: int, now: float) -> bool:
        """Return whether its own worker has surely not begun it: it draws in order."""
        before = index - self._parallel
        return before >= 0 and self._is_fresh(before, now) and self._is_fresh(index, now)

    def _shuffled(self, index: int) -> tuple[int, int]:
        """Return a key for an order of segments that differs from worker to worker.

        All workers agree whose turn it is first to help with a segment, whose second, and so on (rendezvous hashing).
        """
        if index not in self._turns:
            workers = range(self._parallel)
            order = sorted(workers, key=lambda worker: sha256(f"{index} {worker}".encode()).digest())
            self._turns[index] = order.index(self._share)
        return self._turns[index], (index - self._place) % self.total

    def _is_late(self, index: int, now: float, patience: float) -> bool:
        at = self._late_at(index, patience)
        return at is not None and at <= now

    def _late_at(self, index: int, patience: float) -> float | None:
        """Return when its worker is late with it; None: that worker has others to draw first."""
        before = index - self._parallel
        if before >= 0 and before not in self.standing:
            return None
        patience = max(patience, _PATIENCE) if self._in_vain >= 1 else patience
        return self._stands_since.get(before, self._began) + self.usual_s * patience

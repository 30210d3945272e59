"""Does a render still make progress (rule J16)?

Heartbeats say only that the runner is alive: a scene that hangs may bill a GPU for hours behind them. So the runner
gives the verdict itself, from the frames on the render's pipe and its own monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

FIRST_S: Final = 1800.0
"""For the first frame, and for what follows the last one: the encoder's tail, joining, a second pass without frames."""

GAP_S: Final = 300.0
GAPS: Final = 20
"""A render shows no new frame for this long, or this many times its longest gap, before it counts as stalled."""

_STEP_S: Final = 5.0
"""What the time between two calls counts at most. If it was longer, this process did not run either: its container was
frozen, or its machine stood still."""


class Stalls:
    """Knows whether one render has stalled. It reads no clock.

    Args:
        timeout_s: How long there may be no new frame, whatever came before; None: as the constants above say.
        counts: Whether this renderer is known to report frames. Others show it by their first report. Those that never
            do never stall, unless there is a ``timeout_s``.
        now: The monotonic time at which the render begins.
    """

    def __init__(self, timeout_s: float | None = None, *, counts: bool = False, now: float) -> None:
        self._timeout_s = timeout_s
        self._counts = counts
        self._now = now
        self._frames = self._total = 0
        self._quiet_s = 0.0
        self._first_s: float | None = None
        self._longest_s = 0.0

    def heard(self, frames: int, total: int, *, now: float) -> None:
        """Take note of a report. Only another number of frames is progress."""
        self._pass_time(now)
        self._counts |= frames > 0 or total > 0
        self._total = total
        if frames == self._frames:
            return
        if self._first_s is None:
            self._first_s = self._quiet_s
        else:
            self._longest_s = max(self._longest_s, self._quiet_s)
        self._frames, self._quiet_s = frames, 0.0

    def quiet_s(self, *, now: float) -> float | None:
        """Return for how many seconds there was no new frame if that is too long, else None."""
        self._pass_time(now)
        return self._quiet_s if self._quiet_s > self._patience_s() else None

    def _pass_time(self, now: float) -> None:
        self._quiet_s += min(max(0.0, now - self._now), _STEP_S)
        self._now = now

    def _patience_s(self) -> float:
        if self._timeout_s is not None:
            return self._timeout_s
        if not self._counts:
            return math.inf
        all_drawn = 0 < self._total <= self._frames + 1  # some count from 0
        if self._first_s is None or all_drawn:
            return max(FIRST_S, GAPS * self._longest_s)
        # One frame is no measure yet: where the first took ten minutes, so may the second.
        return max(GAP_S, GAPS * self._longest_s, 2 * self._first_s)

"""What time is it at the database server, without asking each time?

Each statement brings the server's time along. `now` adds what has passed since on a clock of this machine that cannot
be set and also runs while the machine sleeps.

Why that is right for leases (rule J13): the time is taken as the one at which the answer arrived, so it is never ahead
of the server's, and behind it by a round trip at most (answers that took longer than a second are not used, and after
a few seconds the server is asked again, so that a clock that runs at another rate cannot matter). A process that is
behind takes a lease over later, never earlier. The lease that it begins for itself ends earlier by as much, which is
small beside the third of a lease after which it renews. No clock of one machine is compared with that of another.
"""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS counts sleep in the latter
_LONGEST_TRIP_S: Final = 1.0
_LONGEST_AGE_S: Final = 5.0


def elapsed_s() -> float:
    """Return the seconds since some moment, those of a suspension included."""
    return time.clock_gettime(_CLOCK)


class ServerClock:
    """The server's time as this process knows it. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: tuple[int, float] | None = None
        self._last = 0

    def note(self, server_us: int, *, asked_at: float) -> None:
        """Take in the server's time, in microseconds since 1970, from an answer that just arrived.

        Args:
            server_us: The time, at some moment between question and answer.
            asked_at: `elapsed_s` before the question.
        """
        arrived_at = elapsed_s()
        if arrived_at - asked_at <= _LONGEST_TRIP_S:
            self._known = (server_us, arrived_at)

    def now_us(self) -> int | None:
        """Return the server's time; None if it has to be asked."""
        if self._known is None:
            return None
        server_us, arrived_at = self._known
        since_s = elapsed_s() - arrived_at
        if since_s > _LONGEST_AGE_S:
            return None
        return self._onward(server_us + int(since_s * 1e6))

    def _onward(self, now_us: int) -> int:
        """Return the time, not before the last one: an answer that took longer brings a time that is further behind."""
        if now_us < self._last <= now_us + int(_LONGEST_TRIP_S * 1e6):
            return self._last
        self._last = now_us
        return now_us

"""How often is something tried again, and how long between two tries?

One helper for every loop of that kind. Its limits are arguments. Progress resets the count of failures. Throttling
proves that the other side is up, so it has its own patience. A stop ends the waiting.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, TypeVar

from attrs import frozen

from renderdispatch.plumbing.stop import Stop

_log: Final = logging.getLogger("renderdispatch.retry")

_T = TypeVar("_T")


class Trouble(Enum):
    """What a failed try says about the next one."""

    FATAL = auto()
    """It would fail the same way."""
    FAILED = auto()
    """It may succeed."""
    THROTTLED = auto()
    """The other side is up, and asks to slow down."""


@frozen(kw_only=True)
class Backoff:
    """The limits of a retry.

    Args:
        failures: Tries that may fail in a row, without progress; None: no limit.
        patience_s: Seconds from the first failure to the last try.
        throttled_s: Seconds from the first time that the other side asked to slow down, to the last try.
        pause_s: The longest pause after the first failure; it doubles with each.
        longest_pause_s: The longest pause of all. Each pause is drawn from its upper half.
    """

    failures: int | None = None
    patience_s: float = math.inf
    throttled_s: float = 60.0
    pause_s: float = 0.5
    longest_pause_s: float = 20.0

    def after(self, tries: int) -> float:
        """Return the seconds to wait after so many failed tries, drawn at random."""
        longest = min(self.longest_pause_s, self.pause_s * 2.0 ** min(tries - 1, 60))
        return random.uniform(longest / 2, longest)


class _Tally:
    """What failed since the last progress."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._counts = {Trouble.FAILED: 0, Trouble.THROTTLED: 0}
        self._since: dict[Trouble, float] = {}

    def reset_failures(self) -> None:
        self._counts[Trouble.FAILED] = 0
        self._since.pop(Trouble.FAILED, None)

    def pause(self, kind: Trouble, now: float) -> float:
        """Count one more failed try; return the seconds until the next one, infinitely many past the limits."""
        throttled = kind is Trouble.THROTTLED
        if throttled:
            self.reset_failures()
        self._counts[kind] += 1
        most = math.inf if throttled or self._backoff.failures is None else self._backoff.failures
        patience_s = self._backoff.throttled_s if throttled else self._backoff.patience_s
        pause_s = self._backoff.after(sum(self._counts.values()))
        in_time = now + pause_s <= self._since.setdefault(kind, now) + patience_s
        return pause_s if in_time and self._counts[kind] < most else math.inf


def retry(
    attempt: Callable[[], _T],
    backoff: Backoff,
    *,
    trouble: Callable[[Exception], Trouble],
    progress: Callable[[], int] | None = None,
    least_s: Callable[[Exception], float] = lambda _error: 0.0,
    stop: Stop | None = None,
    what: str = "",
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] | None = None,
) -> _T:
    """Call ``attempt`` until it returns, fails for good, or the limits are reached; then raise its last error.

    Args:
        attempt: What is tried.
        backoff: The limits.
        trouble: What an error says about the next try.
        progress: How far the work has come, as a number that rises. A try that raised it resets the count.
        least_s: How many seconds the other side asked to wait. It lengthens a pause, never the limits.
        stop: Ends the waiting; no try begins past its deadline. An error that its `check` raises passes.
        what: For the log, such as ``"download the audio"``; empty: nothing is logged.
        monotonic: The clock of the limits, in seconds.
        sleep: Waits so many seconds between two tries, in place of the stop.
    """
    tally, stop = _Tally(backoff), stop or Stop()
    reached = progress() if progress is not None else 0
    while True:
        try:
            return attempt()
        except Exception as error:
            kind = trouble(error)
            if kind is Trouble.FATAL:
                raise
            stop.check()
            if progress is not None and (now_at := progress()) > reached:
                reached, tally = now_at, _Tally(backoff)
            pause_s = max(tally.pause(kind, monotonic()), least_s(error))
            if pause_s >= stop.remaining_s:
                raise
            if what:
                _log.info("trying again in %.1f s to %s: %s", pause_s, what, error)
        (sleep or stop.wait)(pause_s)
        stop.check()

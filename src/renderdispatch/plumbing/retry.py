"""How often is something tried again, and how long between two tries?

One helper for every loop of that kind. Its limits are arguments: what makes progress starts to count afresh; throttling
proves that the other side is up, so it has a patience of its own; a stop wakes whoever waits.
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
        failures: Tries that may fail in a row, without progress; None is no limit.
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


def retry(
    attempt: Callable[[], _T],
    backoff: Backoff,
    *,
    trouble: Callable[[Exception], Trouble],
    progress: Callable[[], int] | None = None,
    stop: Stop | None = None,
    what: str = "",
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] | None = None,
) -> _T:
    """Call ``attempt`` until it returns, fails for good, or the limits are reached; then its last error passes.

    Args:
        attempt: What is tried.
        backoff: The limits.
        trouble: What an error says about the next try.
        progress: How far the work has come, as a number that rises; a try that raised it starts to count afresh.
        stop: Ends the waiting, and no try begins past its deadline. What its `check` raises passes.
        what: For the log, as ``"download the audio"``; without it nothing is logged.
        monotonic: The clock of the limits; seconds.
        sleep: Waits so many seconds between two tries, in place of the stop.
    """
    failures = throttles = 0
    failing_since: float | None = None
    throttled_since: float | None = None
    reached = progress() if progress is not None else 0
    while True:
        try:
            return attempt()
        except Exception as error:
            kind = trouble(error)
            if kind is Trouble.FATAL:
                raise
            if stop is not None:
                stop.check()
            now = monotonic()
            if progress is not None and (come := progress()) > reached:
                reached, failures, failing_since = come, 0, None
            if kind is Trouble.THROTTLED:
                throttles, failures = throttles + 1, 0
                throttled_since = now if throttled_since is None else throttled_since
                pause_s = backoff.after(throttles)
                exhausted = now + pause_s > throttled_since + backoff.throttled_s
            else:
                failures += 1
                failing_since = now if failing_since is None else failing_since
                pause_s = backoff.after(failures + throttles)
                exhausted = backoff.failures is not None and failures >= backoff.failures
                exhausted = exhausted or now + pause_s > failing_since + backoff.patience_s
            if exhausted or (stop is not None and pause_s >= stop.remaining_s):
                raise
            if what:
                _log.info("trying again in %.1f s to %s: %s", pause_s, what, error)
        if sleep is not None:
            sleep(pause_s)
        elif stop is not None:
            stop.wait(pause_s)
            stop.check()
        else:
            time.sleep(pause_s)

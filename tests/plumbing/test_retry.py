"""How often is something tried, and how long between two tries?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Stop, Stopped


class World:
    """Time that passes only while something waits, and tries that fail as a test says."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.now = 0.0
        self.pauses: list[float] = []
        self.tries = 0
        self.come = 0

    def attempt(self) -> str:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retry(self, backoff: Backoff, **options: object) -> str:
        return retry(
            self.attempt,
            backoff,
            trouble=trouble,
            monotonic=lambda: self.now,
            sleep=self.sleep,
            **options,  # type: ignore[arg-type]
        )


def trouble(error: Exception) -> Trouble:
    match error:
        case BlockingIOError():
            return Trouble.THROTTLED
        case OSError():
            return Trouble.FAILED
    return Trouble.FATAL


def test_it_tries_until_it_succeeds() -> None:
    """Each pause is drawn from the upper half of a bound that doubles, up to the longest."""
    world = World(*[ConnectionError()] * 6)
    assert world.retry(Backoff(pause_s=1, longest_pause_s=10)) == "done"
    assert world.tries == 7
    for pause, longest in zip(world.pauses, (1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= pause <= longest


def test_a_fatal_error_passes_at_once() -> None:
    """Another try would fail the same way."""
    world = World(KeyError("no"))
    with pytest.raises(KeyError):
        world.retry(Backoff())
    assert (world.tries, world.pauses) == (1, [])


def test_too_many_failures() -> None:
    """The last error passes."""
    world = World(ConnectionError("first"), ConnectionError("last"), ConnectionError("never seen"))
    with pytest.raises(ConnectionError, match="last"):
        world.retry(Backoff(failures=2))


def test_patience_runs_out() -> None:
    """No try begins later than that after the first failure."""
    world = World(*[ConnectionError()] * 1000)
    with pytest.raises(ConnectionError):
        world.retry(Backoff(patience_s=60, longest_pause_s=5))
    assert 50 <= world.now <= 60


def test_progress_resets_the_count() -> None:
    """A transfer that moves on may break off as often as it likes."""
    world = World(*[ConnectionError()] * 50)

    def come() -> int:
        return world.tries // 2

    assert world.retry(Backoff(failures=3, longest_pause_s=1), progress=come) == "done"
    assert world.tries == 51


def test_throttling_has_a_patience_of_its_own() -> None:
    """It proves that the other side is up, so it does not count as a failure, and resets their count."""
    failing = [ConnectionError(), ConnectionError(), BlockingIOError()]
    assert World(*failing * 3).retry(Backoff(failures=3, longest_pause_s=1)) == "done"
    world = World(*[BlockingIOError()] * 1000)
    with pytest.raises(BlockingIOError):
        world.retry(Backoff(failures=3, throttled_s=30, longest_pause_s=5))
    assert 25 <= world.now <= 30


def test_the_other_side_may_ask_for_a_longer_pause() -> None:
    """A shorter one than the limits is ignored."""
    world = World(ConnectionError(), ConnectionError())
    wishes = [7.0, 0.0]
    world.retry(Backoff(pause_s=1), least_s=lambda _error: wishes.pop(0))
    assert world.pauses[0] == 7
    assert 1 <= world.pauses[1] <= 2


def failing_in(seconds: float, stop: Stop) -> Callable[[], None]:
    """Return a try that always fails, after which the work is told to stop."""

    def attempt() -> None:
        threading.Timer(seconds, stop.request, ["cancelled"]).start()
        raise ConnectionError

    return attempt


def test_a_stop_ends_the_waiting() -> None:
    """What its `check` raises passes, without another try."""
    stop, began = Stop(), time.monotonic()
    with pytest.raises(Stopped, match="cancelled"):
        retry(failing_in(0.05, stop), Backoff(pause_s=60, longest_pause_s=60), trouble=trouble, stop=stop)
    assert time.monotonic() - began < 10


def test_no_try_begins_past_the_deadline_of_the_stop() -> None:
    """Where the pause would reach it, the last error passes at once."""
    world, began = World(*[ConnectionError()] * 9), time.monotonic()
    with pytest.raises(ConnectionError):
        retry(world.attempt, Backoff(pause_s=60, longest_pause_s=60), trouble=trouble, stop=Stop(timeout_s=20))
    assert world.tries == 1
    assert time.monotonic() - began < 10


def test_progress_also_renews_the_patience_with_throttling() -> None:
    """Two throttles with progress and more than the patience between them do not end the work."""
    now = [0.0]
    troubles = iter([OSError("slow down"), OSError("broke off"), OSError("slow down")])
    moved = iter([0, 0, 1, 2, 3])

    def attempt() -> str:
        now[0] += 300
        for error in troubles:
            raise error
        return "done"

    def trouble(error: Exception) -> Trouble:
        return Trouble.THROTTLED if str(error) == "slow down" else Trouble.FAILED

    def sleep(seconds: float) -> None:
        now[0] += seconds

    result = retry(
        attempt,
        Backoff(failures=2),
        trouble=trouble,
        progress=lambda: next(moved),
        monotonic=lambda: now[0],
        sleep=sleep,
    )
    assert result == "done"

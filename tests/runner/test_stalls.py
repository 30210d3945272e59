"""Is a render that hangs ended, and one that is only slow never?"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from renderdispatch.runner.stalls import FIRST_S, GAP_S, GAPS, Stalls

TICK_S = 4.0
"""The runner looks five times a second; once in four seconds is as good, and quicker."""


def watched(gaps: Iterator[float], total: int, *, counts: bool = False, timeout_s: float | None = None) -> int | None:
    """Return the frame after which a render stalled whose frames take so many seconds; None if it never did."""
    now = 0.0
    stalls = Stalls(timeout_s, counts=counts, now=now)
    for frames, gap in enumerate(gaps):
        due = now + gap
        while now < due:
            now = min(now + TICK_S, due)
            if stalls.quiet_s(now=now) is not None:
                return frames
        stalls.heard(min(frames + 1, total or frames + 1), total, now=now)
    return None


def honest(draw: random.Random) -> tuple[list[float], int]:
    """Return the gaps of a slow render, and how many frames it has: after the last one it finishes its file."""
    frames = draw.randint(2, 40)
    pace = draw.uniform(10, 20)
    gaps = draw.choice(
        [
            [20 * draw.uniform(0.8, 1.2) for _ in range(frames)],
            [240 * draw.uniform(0.8, 1.2) for _ in range(min(frames, 20))],
            [draw.choice((0.01, 0.01, 0.01, draw.uniform(1, 295))) for _ in range(frames)],
            [0.5 * 1.15**n for n in range(frames)],
            [pace * (19 if n % 7 == 6 else 1) for n in range(frames)],
        ]
    )
    if draw.random() < 0.5:
        gaps[0] = draw.uniform(0, FIRST_S - 10)
    if draw.random() < 0.1:
        slow = draw.uniform(600, FIRST_S - 10)
        gaps = [slow, *(slow * draw.uniform(0.5, 1.9) for _ in range(min(frames, 10)))]
    return [*gaps, draw.choice((0.1, draw.uniform(0, FIRST_S - 10)))], len(gaps)


def test_slow_renders_are_left_alone() -> None:
    """Of a thousand slow renders, with a long first frame, bursts and a long end of the file, none is ended."""
    for seed in range(1000):
        gaps, total = honest(random.Random(seed))
        assert watched(iter(gaps), total) is None, f"seed {seed}: {gaps}"


def test_renders_that_hang_are_ended() -> None:
    """The same renders, each hanging after one of its frames, are all ended there."""
    for seed in range(300):
        draw = random.Random(seed)
        gaps, total = honest(draw)
        at = draw.randrange(len(gaps))
        hanging = iter([*gaps[:at], 24 * 3600.0])
        assert watched(hanging, total, counts=True) == at, f"seed {seed}: {gaps}"


@pytest.mark.parametrize(
    ("gaps", "total", "patience_s"),
    [
        ([], 100, FIRST_S),
        ([1.0], 100, GAP_S),
        ([1.0, 20.0], 100, GAPS * 20.0),
        ([900.0], 100, 1800.0),
        ([1.0, 1.0], 2, FIRST_S),
        ([1.0, 1.0], 0, GAP_S),
    ],
    ids=["no frame yet", "one frame", "a gap of 20 s", "a long first frame", "the last frame", "an unknown total"],
)
def test_how_long_it_waits(gaps: list[float], total: int, patience_s: float) -> None:
    """The patience for the next frame follows from the frames so far."""
    assert watched(iter([*gaps, patience_s - 1]), total, counts=True) is None
    assert watched(iter([*gaps, patience_s + 1]), total, counts=True) == len(gaps)


def test_a_timeout_of_the_job_overrules() -> None:
    """It holds for the first frame, between frames and after the last one, however slow the render was before."""
    for gaps in ([], [50.0, 50.0], [50.0] * 3):
        assert watched(iter([*gaps, 59.0]), 3, timeout_s=60) is None
        assert watched(iter([*gaps, 61.0]), 3, timeout_s=60) == len(gaps)


def test_a_renderer_without_frames() -> None:
    """A renderer that never reports never stalls, unless the job has a timeout; nor does one that reports no number."""
    for timeout_s, stalled in ((None, None), (60.0, 0)):
        assert watched(iter([24 * 3600.0]), 10, timeout_s=timeout_s) == stalled
    stalls = Stalls(now=0)
    for tick in range(10_000):
        stalls.heard(0, 0, now=TICK_S * tick)
        assert stalls.quiet_s(now=TICK_S * tick) is None


def test_the_same_frame_again_is_no_progress() -> None:
    """A scene that repeats its last report has stalled; one that begins to count anew has not."""
    stalls = Stalls(now=0)
    ended = 0.0
    while stalls.quiet_s(now=ended) is None:
        ended += TICK_S
        stalls.heard(5, 10, now=ended)
    assert GAP_S < ended <= GAP_S + 2 * TICK_S
    stalls.heard(0, 10, now=ended)
    assert stalls.quiet_s(now=ended) is None


def test_time_in_which_nothing_ran_does_not_count() -> None:
    """After a frozen container goes on, a render has as much time as before: its watch stood still as well."""
    stalls = Stalls(now=0)
    stalls.heard(5, 10, now=1)
    assert stalls.quiet_s(now=8 * 3600) is None
    assert stalls.quiet_s(now=8 * 3600 + 60) is None

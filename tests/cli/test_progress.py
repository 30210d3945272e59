"""Frames a second, and the time that is left."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from renderdispatch.cli.progress import SPEED_WINDOW_S, Frames, describe_queue


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the progress bar."""
    return Clock()


@pytest.fixture
def frames(clock: Clock) -> Frames:
    """A count of frames that were not drawn yet."""
    return Frames(Progress(get_time=clock, speed_estimate_period=SPEED_WINDOW_S, auto_refresh=False))


def test_speed_needs_two_numbers(frames: Frames) -> None:
    """One number says nothing about speed."""
    assert frames.describe(10, 100) == "10/100 frames"


def test_speed_is_that_of_the_last_ten_seconds(frames: Frames, clock: Clock) -> None:
    """A slow beginning is forgotten."""
    said = ""
    for second in range(40):
        clock.now = float(second)
        said = frames.describe(second if second < 20 else 20 + (second - 20) * 50, 1970)
    assert said == "970/1970 frames, 50/s, 0:00:20 left"


def test_updates_without_news_are_no_standstill(frames: Frames, clock: Clock) -> None:
    """Frames are reported once a second, and shown more often."""
    said = ""
    for clock.now, done in [(0.0, 1), (0.5, 1), (1.0, 31), (1.5, 31), (2.0, 61)]:
        said = frames.describe(done, 91)
    assert said == "61/91 frames, 30/s, 0:00:01 left"


def test_a_new_attempt_begins_anew(frames: Frames, clock: Clock) -> None:
    """Fewer frames than before are those of another attempt."""
    said = ""
    for clock.now, done in [(0.0, 1), (1.0, 901), (2.0, 5), (3.0, 15)]:
        said = frames.describe(done, 1000)
    assert said == "15/1000 frames, 10/s, 0:01:39 left"


def test_a_second_attempt_after_the_last_frame_begins_anew(frames: Frames, clock: Clock) -> None:
    """A count that was complete starts again, with its own speed and time left."""
    said = ""
    for clock.now, done in [(0.0, 1), (1.0, 100), (2.0, 5), (3.0, 15)]:
        said = frames.describe(done, 100)
    assert said == "15/100 frames, 10/s, 0:00:09 left"


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (None, "waiting for a free worker"),
        (0, "waiting for a free worker"),
        (999, "999 ahead"),
        (1000, "more than 1,000 ahead"),
    ],
)
def test_a_long_queue_is_not_counted(ahead: int | None, said: str) -> None:
    """A place is exact up to 1,000; beyond that the number would be wrong."""
    assert describe_queue(ahead) == said

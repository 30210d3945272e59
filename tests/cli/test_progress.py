"""Frames a second, and the time that is left."""

from __future__ import annotations

from datetime import timedelta

from renderdispatch.cli.progress import Speed


def test_speed_needs_two_looks() -> None:
    """One number says nothing about speed."""
    speed = Speed()
    speed.note(0.0, 10)
    assert speed.fps is None
    assert speed.left(10, 100) is None


def test_speed_is_that_of_the_last_ten_seconds() -> None:
    """A slow beginning is forgotten."""
    speed = Speed()
    for second in range(20):
        speed.note(float(second), second)
    for second in range(20, 40):
        speed.note(float(second), 20 + (second - 20) * 50)
    assert speed.fps == 50
    assert speed.left(1000, 2000) == timedelta(seconds=20)


def test_looks_without_news_are_no_standstill() -> None:
    """Frames are reported once a second, and looked at more often."""
    speed = Speed()
    for now, frames in [(0.0, 0), (0.5, 0), (1.0, 30), (1.5, 30), (2.0, 60)]:
        speed.note(now, frames)
    assert speed.fps == 30


def test_a_new_attempt_begins_anew() -> None:
    """Fewer frames than before are those of another attempt."""
    speed = Speed()
    for now, frames in [(0.0, 0), (1.0, 900), (2.0, 0), (3.0, 10)]:
        speed.note(now, frames)
    assert speed.fps == 10

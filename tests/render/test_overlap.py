"""Do drawing and encoding run at the same time, and end together?"""

from __future__ import annotations

import threading

import pytest

from renderdispatch.render.consumer import Consumer


def test_items_are_consumed_in_order() -> None:
    """Each item is consumed, in the order of `put`, before the block is left."""
    seen: list[int] = []
    with Consumer(seen.append, ahead=2) as consumer:
        for number in range(100):
            consumer.put(number)
    assert seen == list(range(100))


def test_the_caller_goes_on_while_an_item_is_consumed() -> None:
    """As many items as agreed wait; the caller does not."""
    started, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def consume(item: int) -> None:
        started.set()
        assert go_on.wait(60)
        seen.append(item)

    with Consumer(consume, ahead=2) as consumer:
        consumer.put(1)
        assert started.wait(60)
        consumer.put(2)
        consumer.put(3)
        assert seen == []
        go_on.set()
    assert seen == [1, 2, 3]


def test_an_error_of_the_consumer_reaches_the_caller() -> None:
    """What consuming raises comes out of a later `put`, which never waits for ever."""

    def consume(item: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Consumer(consume, ahead=1) as consumer:
        for number in range(100):
            consumer.put(number)
        pytest.fail("items were taken after the error")


def test_an_error_at_the_last_item_is_raised_at_the_end() -> None:
    """Leaving the block waits for the last item, and raises what it raised."""

    def consume(item: int) -> None:
        assert consumed.wait(60)
        raise ZeroDivisionError

    consumed = threading.Event()
    with pytest.raises(ZeroDivisionError), Consumer(consume, ahead=1) as consumer:
        consumer.put(1)
        consumed.set()


def test_an_error_of_the_caller_ends_the_thread() -> None:
    """When the block raises, its own error comes out, and no thread stays."""
    seen: list[int] = []
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), Consumer(seen.append, ahead=2) as consumer:
        consumer.put(1)
        raise ZeroDivisionError
    assert set(threading.enumerate()) <= before  # others may end meanwhile

"""Does a stop reach the work, from any thread, with the right reason and the right error?"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from renderdispatch.plumbing import stop as stop_module
from renderdispatch.plumbing.stop import Bell, Stop, Stopped


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_work_that_may_go_on() -> None:
    """Without a request and before the deadline nothing is raised."""
    stop = Stop(timeout_s=60)
    stop.check()
    assert (stop.requested, stop.reason) == (False, None)
    assert 59 < stop.remaining_s <= 60
    assert Stop().remaining_s == float("inf")


def test_a_request() -> None:
    """`check` raises the reason; the first one counts."""
    stop = Stop()
    stop.request("cancelled")
    stop.request("again")
    assert (stop.requested, stop.reason) == (True, "cancelled")
    with pytest.raises(Stopped, match="cancelled"):
        stop.check()


def test_a_deadline() -> None:
    """Past it the work is to stop, with an error of its own."""
    clock = Clock()
    stop = Stop(timeout_s=5, error=RuntimeError, late=TimeoutError, monotonic=clock)
    clock.now += 4
    assert stop.remaining_s == 1
    stop.check()
    clock.now += 2
    assert (stop.requested, stop.remaining_s) == (True, 0)
    with pytest.raises(TimeoutError):
        stop.check()
    stop.request("cancelled")
    with pytest.raises(RuntimeError, match="cancelled"):
        stop.check()


def test_a_child_ends_with_its_parent() -> None:
    """The parent's error comes first; what the child is told stays in the child."""
    parent = Stop(error=LookupError)
    with Stop(parent=parent, error=ArithmeticError) as child, Stop(parent=parent) as sibling:
        child.request("enough")
        with pytest.raises(ArithmeticError, match="enough"):
            child.check()
        sibling.check()
        parent.request("closing")
        assert (child.reason, sibling.reason) == ("closing", "closing")
        for stop in (child, sibling):
            with pytest.raises(LookupError, match="closing"):
                stop.check()


def test_a_child_has_the_nearest_deadline() -> None:
    """Its own, or its parent's."""
    clock = Clock()
    parent = Stop(timeout_s=10, monotonic=clock)
    assert Stop(timeout_s=3, parent=parent, monotonic=clock).remaining_s == 3
    assert Stop(timeout_s=30, parent=parent, monotonic=clock).remaining_s == 10
    late = Stop(timeout_s=30, parent=parent, monotonic=clock)
    clock.now += 11
    with pytest.raises(Stopped):
        late.check()


def test_a_callback_is_called_at_the_request_or_at_once() -> None:
    """Also that of a child; one that was forgotten, or whose child was left, is not."""
    parent, called = Stop(), list[str]()
    with Stop(parent=parent) as left:
        left.on_request(lambda: called.append("left"))
    child = Stop(parent=parent)
    child.on_request(lambda: called.append("child"))
    gone: Callable[[], None] = lambda: called.append("gone")  # noqa: E731
    parent.on_request(gone)
    parent.forget(gone)
    parent.forget(gone)
    parent.request("closing")
    assert called == ["child"]
    child.on_request(lambda: called.append("late"))
    assert called == ["child", "late"]


def test_a_wait_ends_at_the_request() -> None:
    """However long it would have slept; so does the wait of a child, and one that begins afterwards."""
    parent = Stop()
    for stop in (parent, Stop(parent=parent)):
        timer = threading.Timer(0.05, parent.request, ["closing"])
        timer.start()
        began = time.monotonic()
        assert stop.wait(30)
        assert time.monotonic() - began < 10
        timer.join()


def test_a_wait_ends_at_the_deadline() -> None:
    """It says whether the work is to stop."""
    assert Stop(timeout_s=0.05).wait(30)
    assert not Stop(timeout_s=30).wait(0.01)
    assert not Stop().wait(0)


def test_a_bell() -> None:
    """A ring ends the wait, also one that begins later; two rings end one."""
    bell = Bell()
    assert not bell.wait(0.01)
    bell.ring()
    bell.ring()
    assert bell.wait(30)
    assert not bell.wait(0)
    assert not bell.wait(-1)


class Thrown(BaseException):
    """What a platform throws into its main thread."""


def throwing_at(instruction: int, work: Callable[[], object]) -> bool:
    """Do the work, and throw at its so-many-th instruction within the module; return whether it had so many."""
    left = instruction

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != stop_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Thrown
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Thrown:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_exception_thrown_into_a_request_leaves_nothing_behind() -> None:
    """At whichever instruction: the next request does all of it, and whoever waits is woken."""
    instruction = 0
    thrown = True
    while thrown:
        instruction += 1
        stop, bell, called = Stop(), Bell(), list[str]()
        child = Stop(parent=stop)
        child.on_request(bell.ring)
        child.on_request(lambda called=called: called.append("called"))  # type: ignore[misc]
        thrown = throwing_at(instruction, lambda stop=stop: stop.request("taken away"))  # type: ignore[misc]
        stop.request("taken away")
        assert child.reason == "taken away"
        assert called
        assert bell.wait(5)
        assert child.wait(30)
    assert instruction > 30

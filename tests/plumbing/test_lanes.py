"""Does a lane do all of its work, each piece once, in turn, and never more than it has room for?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from renderdispatch.plumbing import lanes
from renderdispatch.plumbing.lanes import Lane
from renderdispatch.testing import eventually


class Gate:
    """Work that waits until the test lets it go on, and notes its names."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let_go = threading.Event()

    def work(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.begun.append(name)
            assert self.let_go.wait(60)

        return run


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.let_go.set()


def test_work_is_done_by_priority_then_in_turn(gate: Gate) -> None:
    """The highest priority goes first, and equal ones first come first served."""
    lane = Lane("lane", 1)
    assert lane.submit("first", gate.work("first"))
    eventually(lambda: gate.begun)
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        assert lane.submit(name, gate.work(name), priority=priority)
    gate.let_go.set()
    assert lane.drain(30)
    assert gate.begun == ["first", "b", "d", "a", "c"]


def test_a_key_is_in_a_lane_once(gate: Gate) -> None:
    """Work of a key that waits or runs is refused, and taken again once it is done."""
    lane = Lane("lane", 1)
    assert lane.submit("a", gate.work("a"))
    assert lane.submit("b", gate.work("b"))
    assert not lane.submit("a", gate.work("a")) and not lane.submit("b", gate.work("b"))
    assert lane.pending == 2
    gate.let_go.set()
    assert lane.drain(30)
    assert lane.submit("a", gate.work("a")) and lane.drain(30)
    assert gate.begun == ["a", "b", "a"]


def test_a_full_lane_takes_no_more(gate: Gate) -> None:
    """Beside the work in progress as much waits as there is room for."""
    lane = Lane("lane", 2, room=3)
    for number in range(2):
        assert lane.submit(str(number), gate.work("running"))
    eventually(lambda: len(gate.begun) == 2)
    assert [lane.submit(f"more-{number}", gate.work("more")) for number in range(5)] == [True] * 3 + [False] * 2
    assert lane.full


def test_a_group_takes_up_a_part_of_a_lane(gate: Gate) -> None:
    """Of one group so much runs at once; work of other groups behind it goes on."""
    lane = Lane("lane", 4, per_group=2)
    for number in range(5):
        assert lane.submit(f"slow-{number}", gate.work("slow"), group="slow")
    assert lane.submit("quick", gate.work("quick"), group="quick")
    eventually(lambda: len(gate.begun) == 3)
    assert sorted(gate.begun) == ["quick", "slow", "slow"]
    gate.let_go.set()
    assert lane.drain(30)
    assert gate.begun.count("slow") == 5


def test_work_that_raises_ends_nothing_else(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged, and the same thread does the next piece."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch.lanes")

    def fail() -> None:
        raise SystemExit("odd")

    lane = Lane("lane", 1)
    gate.let_go.set()
    assert lane.submit("a", fail) and lane.submit("b", gate.work("b"))
    assert lane.drain(30)
    assert gate.begun == ["b"]


def test_work_for_which_there_is_no_thread_is_not_kept(refuse_thread: Callable[[str], None], gate: Gate) -> None:
    """`submit` says that it will not be done, and the same work may be handed in again."""
    lane = Lane("lane-without", 1)
    refuse_thread("lane-without")
    assert not lane.submit("a", gate.work("a"))
    assert lane.pending == 0
    refuse_thread("lane-without")
    assert not lane.ensure()
    assert lane.ensure() and lane.submit("a", gate.work("a"))


def test_work_waits_for_a_thread_that_there_is(refuse_thread: Callable[[str], None], gate: Gate) -> None:
    """Where a second thread is refused, the first one does the work in its turn."""
    lane = Lane("lane-of-one", 2)
    assert lane.submit("a", gate.work("a"))
    eventually(lambda: gate.begun)
    refuse_thread("lane-of-one")
    assert lane.submit("b", gate.work("b"))
    gate.let_go.set()
    assert lane.drain(30)
    assert gate.begun == ["a", "b"]


def test_a_closed_lane(gate: Gate) -> None:
    """It takes nothing more, forgets what waits, and its threads end; `join` leaves a busy one behind."""
    lane = Lane("lane-closed", 1)
    assert lane.submit("a", gate.work("a"))
    eventually(lambda: gate.begun)
    assert lane.submit("b", gate.work("b"))
    lane.close()
    lane.close()
    assert not lane.submit("c", gate.work("c")) and not lane.ensure()
    lane.join(0.05)
    gate.let_go.set()
    lane.join(30)
    assert gate.begun == ["a"]
    assert "lane-closed" not in {thread.name for thread in threading.enumerate()}


def test_threads_end_when_there_is_nothing_to_do(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread without work ends after a while, and the next work has another one."""
    monkeypatch.setattr(lanes, "_IDLE_S", 0.01)
    gate.let_go.set()
    lane = Lane("lane-idle", 1)
    assert lane.submit("a", gate.work("a"))
    eventually(lambda: "lane-idle" not in {thread.name for thread in threading.enumerate()})
    assert lane.submit("b", gate.work("b")) and lane.drain(30)
    assert gate.begun == ["a", "b"]

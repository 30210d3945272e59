"""What does each process have for itself, and how does one fork?"""

from __future__ import annotations

import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable

import pytest

from renderdispatch.plumbing import per_process
from renderdispatch.plumbing.per_process import ForkGate, PerProcess

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_a_child(work: Callable[[], None]) -> None:
    """Do the work in a fork of this process; fail if it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not come back into pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_value_is_made_once() -> None:
    """At its first use, also by several threads at once."""
    made: list[object] = []

    def make() -> object:
        time.sleep(0.02)
        made.append(object())
        return made[-1]

    value, got = PerProcess(make), list[object]()
    assert value.peek() is None
    threads = [threading.Thread(target=lambda: got.append(value.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert got == made * 8
    assert value.peek() is made[0]


def test_a_value_may_be_taken() -> None:
    """Its taker closes it; the next use makes another."""
    value = PerProcess(object)
    first = value.get()
    assert value.take() is first
    assert value.take() is None
    assert value.get() is not first


def test_a_child_makes_its_own() -> None:
    """It hands what it inherited over, and keeps it alive: even a destructor could harm the parent."""
    inherited: list[int] = []
    value = PerProcess(os.getpid, inherited=inherited.append)
    parent = value.get()

    def child() -> None:
        assert value.peek() is None
        assert value.get() == os.getpid() != parent
        assert inherited == [parent]

    in_a_child(child)
    assert value.get() == parent
    assert inherited == []


def test_a_lock_that_was_held_at_the_fork_holds_nothing_up() -> None:
    """A child that was forked while another thread made the value makes its own."""
    making, go_on = threading.Event(), threading.Event()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            go_on.wait(30)
        return os.getpid()

    parent, value = os.getpid(), PerProcess(make)
    thread = threading.Thread(target=value.get)
    thread.start()
    assert making.wait(30)
    in_a_child(lambda: None if value.get() == os.getpid() else os.abort())
    go_on.set()
    thread.join()
    assert value.get() == parent


class Connections:
    """Something that must not be open across a fork."""

    def __init__(self) -> None:
        self.open = False
        self.closed_at_forks = 0
        self.gate = ForkGate(self.close)

    def close(self) -> None:
        self.open = False
        self.closed_at_forks += 1


def test_a_fork_waits_for_operations_and_closes() -> None:
    """Neither side comes out of a fork with an open connection or a closed gate."""
    connections, inside, go_on = Connections(), threading.Event(), threading.Event()

    def operate() -> None:
        with connections.gate.operation():
            connections.open = True
            inside.set()
            go_on.wait(30)

    thread = threading.Thread(target=operate)
    thread.start()
    assert inside.wait(30)
    threading.Timer(0.1, go_on.set).start()

    def child() -> None:
        assert go_on.is_set()
        assert not connections.open
        with connections.gate.operation():
            pass

    in_a_child(child)
    assert (connections.open, connections.closed_at_forks) == (False, 1)
    with connections.gate.operation():
        connections.open = True
    thread.join()


def test_a_process_id_that_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork of a fork that gets the id of its grandparent does not take the grandparent's value for its own."""
    values = PerProcess(object)
    first = values.get()
    monkeypatch.setattr(per_process, "_forks", [per_process._forks[0] + 2])
    assert values.peek() is None
    assert values.get() is not first

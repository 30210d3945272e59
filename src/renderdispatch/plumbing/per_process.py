"""What must each process make for itself, and what happens at a fork?

Connections, threads and held locks do not survive a fork. `PerProcess` holds one value for each process id; a child
makes its own at the first use.

Database connections are closed before a fork (`ForkGate`). SQLite keeps its file locks per process. A child that
inherits SQLite's memory believes that it holds locks which only its parent has, and another process may then delete the
log while the child writes. So a fork waits for the operations in progress (each is one statement) and closes every
connection; then both sides connect again.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

_PATIENCE_S: Final = 60.0
"""The longest that a fork waits. A signal handler that forks during an operation would wait for itself."""


_Process = tuple[int, int]
_forks: Final = [0]


def _this_process() -> _Process:
    """Return what no other process has: with forks within forks, a process id alone may come again."""
    return os.getpid(), _forks[0]


class PerProcess(Generic[_T]):
    """A value for each process id, made at the first use. Safe to share between threads, and across forks.

    A child keeps the values that it inherits and never closes them: even a destructor could harm the parent.

    Args:
        make: Makes the value of this process.
        inherited: Called in a child with the parent's value, before the child makes its own.
    """

    def __init__(self, make: Callable[[], _T], *, inherited: Callable[[_T], None] | None = None) -> None:
        self._make = make
        self._inherited = inherited
        self._values: dict[_Process, _T] = {}
        self._kept: list[_T] = []
        self._locks: dict[_Process, threading.Lock] = {}  # by process: a lock that was held at the fork stays locked

    def get(self) -> _T:
        """Return this process's value; make it at the first call."""
        process = _this_process()
        with suppress(KeyError):
            return self._values[process]
        with self._locks.setdefault(process, threading.Lock()):
            if process not in self._values:
                self._leave_behind(process)
                self._values[process] = self._make()
            return self._values[process]

    def peek(self) -> _T | None:
        """Return this process's value; None if it was not made yet."""
        return self._values.get(_this_process())

    def take(self) -> _T | None:
        """Return this process's value and forget it; the caller closes it. A later `get` makes another."""
        process = _this_process()
        with self._locks.setdefault(process, threading.Lock()):
            return self._values.pop(process, None)

    def _leave_behind(self, process: _Process) -> None:
        for other in [key for key in self._values if key != process]:
            value = self._values.pop(other)
            self._kept.append(value)
            if self._inherited is not None:
                self._inherited(value)


class ForkGate:
    """Lets operations run, except while this process forks.

    Args:
        close: Closes every idle connection. Called right before a fork, when no operation is in progress. None: nothing
            is left open between two operations.
    """

    def __init__(self, close: Callable[[], None] | None = None) -> None:
        self._close = None if close is None else weakref.WeakMethod(close)
        self.reset()
        _gates.add(self)

    def reset(self) -> None:
        """Let operations run; in a child too, which has one thread: the others may have held the condition."""
        self._condition = threading.Condition()
        self._inside = 0
        self._shut = False

    def operation(self) -> AbstractContextManager[None]:
        """Delay forks while the block runs."""
        return _Operation(self)

    def _enter(self) -> threading.Condition:
        condition = self._condition
        with condition:
            if self._shut:
                condition.wait_for(lambda: not self._shut)
            self._inside += 1
        return condition

    def _leave(self, condition: threading.Condition) -> None:
        with condition:
            self._inside -= 1
            if self._shut:
                condition.notify_all()

    def shut(self) -> None:
        """Let no operation begin, wait for those in progress, and close."""
        with self._condition:
            self._shut = True
            self._condition.wait_for(lambda: self._inside == 0, timeout=_PATIENCE_S)
        close = None if self._close is None else self._close()
        if close is not None:
            close()

    def reopen(self) -> None:
        """Let operations run again, in the parent."""
        with self._condition:
            self._shut = False
            self._condition.notify_all()


class _Operation:
    """One operation: a class, because a generator would take twice as long, and every statement is one."""

    __slots__ = ("_condition", "_gate")

    def __init__(self, gate: ForkGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._condition = self._gate._enter()  # noqa: SLF001 - two halves of one thing

    def __exit__(self, *_: object) -> None:
        self._gate._leave(self._condition)  # noqa: SLF001


_gates: weakref.WeakSet[ForkGate] = weakref.WeakSet()
_forking = threading.Lock()


def _before_fork() -> None:
    _forking.acquire()
    for gate in list(_gates):
        gate.shut()


def _after_fork_in_parent() -> None:
    for gate in list(_gates):
        gate.reopen()
    _forking.release()


def _after_fork_in_child() -> None:
    _forks[0] += 1
    for gate in list(_gates):
        gate.reset()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

"""How does a process that holds database connections fork?

Without them. SQLite keeps its file locks per process, and a child that inherits the library's memory believes that it
holds locks which only its parent has: another process may then take the log away under its writes. So a fork waits for
the operations in progress (each is one statement), closes every connection, and both sides connect afresh.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_PATIENCE_S: Final = 60.0
"""A fork waits no longer: a signal handler that forks in the middle of an operation would wait for itself."""


class ForkGate:
    """Lets operations through, except while this process forks.

    Args:
        close: Closes every idle connection; called right before a fork, when no operation is in progress.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = weakref.WeakMethod(close)
        self._open_again()
        _gates.add(self)

    def _open_again(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Hold off forks for as long as the block runs."""
        condition = self._condition
        with condition:
            condition.wait_for(lambda: not self._shut)
            self._inside += 1
        try:
            yield
        finally:
            with condition:
                self._inside -= 1
                if self._shut:
                    condition.notify_all()

    def shut(self) -> None:
        """Wait for the operations in progress, let no other begin, close."""
        with self._condition:
            self._shut = True
            self._condition.wait_for(lambda: self._inside == 0, timeout=_PATIENCE_S)
        close = self._close()
        if close is not None:
            close()

    def reopen(self) -> None:
        """Go on, in the parent."""
        with self._condition:
            self._shut = False
            self._condition.notify_all()

    def reset(self) -> None:
        """Go on, in the child: no other thread came along, whatever it held."""
        self._open_again()


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
    for gate in list(_gates):
        gate.reset()
    _forking.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

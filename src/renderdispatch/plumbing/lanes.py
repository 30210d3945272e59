"""How does slow work leave the others alone?

In a lane of its own: a few threads, and a bounded line of work before them. Work that waits for a host, a backend or a
bucket holds up its own lane and nothing else. A key is in a lane at most once at a time, so nothing is done twice and
no line grows while the other side is away.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Final

from attrs import field, frozen

_log: Final = logging.getLogger("renderdispatch.lanes")

_IDLE_S: Final = 10.0
"""How long a thread waits for more work before it ends."""


@frozen(order=True)
class _Task:
    """Some work; tasks sort by how soon they are done."""

    rank: tuple[int, int]
    key: str = field(order=False)
    group: str | None = field(order=False)
    work: Callable[[], object] = field(order=False)


class Lane:
    """A few threads that do work in turn: the highest priority first, then first come first served.

    Threads are made when there is work for them. They are daemons: work that never ends keeps no process alive.

    Args:
        name: What the threads are called.
        threads: The most at once.
        room: How much may wait.
        per_group: How much of one group runs at once; None: no limit.
    """

    def __init__(self, name: str, threads: int, *, room: int = 10_000, per_group: int | None = None) -> None:
        self._name = name
        self._most = threads
        self._room = room
        self._per_group = per_group
        self._changed = threading.Condition()
        self._line: list[_Task] = []
        self._keys: set[str] = set()
        self._groups: Counter[str | None] = Counter()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._numbers = count()
        self._closed = False

    @property
    def pending(self) -> int:
        """How much work waits or is being done."""
        with self._changed:
            return len(self._keys)

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        with self._changed:
            return self._is_full()

    def has(self, key: str) -> bool:
        """Return whether the work with this key waits or is being done."""
        with self._changed:
            return key in self._keys

    def wait_for(self, key: str, timeout_s: float) -> bool:
        """Wait until the work with this key is done, if there is any; return whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: key not in self._keys, timeout_s)

    def ensure(self) -> bool:
        """See that there is a thread; return False if none can be started, or the lane is closed."""
        with self._changed:
            return not self._closed and (bool(self._threads) or self._start_thread())

    def submit(self, key: str, work: Callable[[], object], *, group: str | None = None, priority: int = 0) -> bool:
        """Have the work done soon; return whether it will be. What it raises is logged.

        It will not be if this key is in the lane already, too much waits, the lane is closed, or no thread can be
        started: then nothing is kept of it.
        """
        with self._changed:
            if self._closed or key in self._keys or self._is_full():
                return False
            task = _Task((-priority, next(self._numbers)), key, group, work)
            insort(self._line, task)
            if len(self._line) > self._idle and len(self._threads) < self._most:
                self._start_thread()
            if not self._threads:
                self._line.remove(task)
                return False
            self._keys.add(key)
            self._changed.notify_all()
            return True

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until there is no work left; return whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._keys, timeout_s)

    def close(self) -> None:
        """Take no more work, and forget what waits. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._keys.difference_update(task.key for task in self._line)
            self._line.clear()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads of a closed lane; those that are still busy then are left behind."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- with the lock held

    def _is_full(self) -> bool:
        return len(self._line) >= self._room + self._idle

    def _start_thread(self) -> bool:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process has as many threads as it may, or it ends
            _log.warning("%s: no thread can be started: %s", self._name, error)
            return False
        self._threads.add(thread)
        return True

    def _next(self) -> _Task | None:
        """Return the first task whose group may run another one."""
        for place, task in enumerate(self._line):
            if self._per_group is None or task.group is None or self._groups[task.group] < self._per_group:
                return self._line.pop(place)
        return None

    def _await(self) -> _Task | None:
        """Return the next task; None if none came for a while, or the lane is closed."""
        deadline = time.monotonic() + _IDLE_S
        self._idle += 1
        try:
            while (task := self._next()) is None:
                left_s = deadline - time.monotonic()
                if self._closed or left_s <= 0:
                    return None
                self._changed.wait(left_s)
        finally:
            self._idle -= 1
        self._groups[task.group] += 1
        return task

    # --- in the threads

    def _run(self) -> None:
        while True:
            with self._changed:
                if (task := self._await()) is None:
                    self._threads.discard(threading.current_thread())
                    return
            try:
                task.work()
            except BaseException:  # noqa: BLE001 - the work behind it still gets its turn
                _log.exception("%s: a piece of work failed", self._name)
            finally:
                with self._changed:
                    self._keys.discard(task.key)
                    self._groups -= Counter([task.group])  # forgets those that reach none
                    self._changed.notify_all()

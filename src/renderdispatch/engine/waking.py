"""When is a store asked for ready jobs, and who is told that there are some?"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from renderdispatch.jobs import Job
from renderdispatch.protocols import JobStore, SupportsNotify
from renderdispatch.queueing import QueuePolicy

POLL_S: Final = 1.0
POLL_WOKEN_S: Final = 5.0
"""How often a store that wakes the workers of all processes is asked all the same."""


def frees(job: Job, policy: QueuePolicy) -> bool:
    """Return whether the last write of a job may let workers claim: this job now, or another one."""
    attempt = job.attempt
    ready = job.ready_at is not None and job.ready_at <= job.updated_at
    return ready or (policy.limits_running and attempt is not None and not attempt.holds_unit)


def notify(store: JobStore) -> None:
    """Wake the workers of other processes, if the store can."""
    if isinstance(store, SupportsNotify):
        store.notify()


class Polls:
    """When is the store asked for ready jobs, beside when something says that there are some?

    At intervals, and when a job whose next attempt has to wait becomes ready: the process that wrote it knows when.
    """

    def __init__(self, store: JobStore, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._waking = store if isinstance(store, SupportsNotify) else None
        self._lock = threading.Lock()
        self._asked_s = -math.inf
        self._waits_s: list[float] = []

    def at(self, wait: timedelta) -> None:
        """Note that a job becomes ready after a while."""
        with self._lock:
            heapq.heappush(self._waits_s, self._monotonic() + wait.total_seconds())

    @property
    def left_s(self) -> float:
        """Seconds until the store is to be asked."""
        woken = self._waking is not None and self._waking.notifies
        next_s = self._asked_s + (POLL_WOKEN_S if woken else POLL_S)
        with self._lock:
            if self._waits_s:
                next_s = min(next_s, self._waits_s[0])
        return max(0.0, next_s - self._monotonic())

    def due(self) -> bool:
        """Return whether to ask now; then the next time is later."""
        if self.left_s > 0:
            return False
        with self._lock:
            self._asked_s = self._monotonic()
            while self._waits_s and self._waits_s[0] <= self._asked_s:
                heapq.heappop(self._waits_s)
        return True

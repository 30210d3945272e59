"""Whose turn is it? Fair queueing, in memory.

Each tenant has a virtual time on each backend. Each claim of a new job moves it on by 1 over the tenant's weight. The
tenant with the least time is next. This is start-time fair queueing, charged at the claim: jobs that are cancelled
while they wait cost nothing (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from datetime import timedelta

from attrs import define, field

from renderdispatch.errors import QueueLimitError
from renderdispatch.queueing import QueuePolicy


@define
class Turns:
    """The virtual times of all tenants."""

    _times: dict[tuple[str, str | None], float] = field(factory=dict)
    _clocks: dict[str, float] = field(factory=dict)
    """By backend: the virtual time of the last claim."""

    _active: dict[str, frozenset[str | None]] = field(factory=dict)
    """By backend: the tenants that had work at the last claim."""

    def copy(self) -> Turns:
        """Return turns that can be tried out."""
        return Turns(dict(self._times), dict(self._clocks), dict(self._active))

    def gained_work(self, backend: str, tenants: Collection[str | None]) -> None:
        """Note which tenants have work now: those that had none go on at the last claim's time, if theirs is less."""
        for tenant in set(tenants) - self._active.get(backend, frozenset()):
            key = backend, tenant
            self._times[key] = max(self._times.get(key, 0.0), self._clocks.get(backend, 0.0))
        self._active[backend] = frozenset(tenants)

    def next(self, backend: str, tenants: Collection[str | None]) -> str | None:
        """Return the tenant whose turn it is."""
        return min(tenants, key=lambda tenant: (self._times.get((backend, tenant), 0.0), tenant or ""))

    def charge(self, backend: str, tenant: str | None, policy: QueuePolicy) -> None:
        """Charge a tenant for the first attempt of a job."""
        key = backend, tenant
        time = self._times.get(key, 0.0)
        self._clocks[backend] = max(self._clocks.get(backend, 0.0), time)
        self._times[key] = time + 1 / policy.of(tenant).weight


def queue_full(limit: int) -> QueueLimitError:
    """Return the refusal of a submit beyond the limit of queued jobs."""
    wait = timedelta(seconds=30)
    message = f"this tenant has {limit} jobs in the queue, as many as it may have; try again in {wait.seconds} s"
    return QueueLimitError(message, code="limit.queued", retry_after=wait)


def too_many_submits(limit: int, wait: timedelta) -> QueueLimitError:
    """Return the refusal of a submit beyond the limit of submits a minute."""
    seconds = max(1, math.ceil(wait.total_seconds()))
    message = f"this tenant may submit {limit} jobs a minute; try again in {seconds} s"
    return QueueLimitError(message, code="limit.rate", retry_after=timedelta(seconds=seconds))

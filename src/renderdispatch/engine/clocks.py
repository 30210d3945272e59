"""What does this process know of time, where clocks are set and machines sleep (rule J13)?

A machine's wall clock is set, by hand or by NTP, and it moves on while the machine sleeps. A monotonic clock does
neither, but each process has its own. So this process measures what it watches itself: how long a job truly waited, and
for how long a lease was not renewed. Where the store's time is that of a server, which all processes share, the store's
time decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from attrs import define, field

from renderdispatch.engine.rules import WAITING
from renderdispatch.jobs import Attempt, Job
from renderdispatch.protocols import CLOCK_STEP, JobQuery, JobStore, SupportsServerTime

_STEP: Final = timedelta(seconds=2)
"""By how much the two clocks must differ to make a step."""

_LITTLE_S: Final = 0.25

_STEPS: Final = 100
"""How many steps are remembered."""


class _Doubt(NamedTuple):
    """Since when a lease is doubted, on this machine's monotonic clock, and how long it is; seconds."""

    since_s: float
    lease_s: float


@cache
def _boot() -> str:
    """Return which start of the machine this is, as far as the system tells."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return "-"


@define(eq=False)
class Clocks:
    """Compares the store's time with this process's monotonic clock.

    Args:
        holds: Whether this process holds the attempt with this token.
        lease: How long an attempt stays its holder's without a renewal.
        monotonic: This process's clock, in seconds.
    """

    _store: JobStore
    _holds: Callable[[str], bool]
    _lease: timedelta
    _monotonic: Callable[[], float]
    _steady: list[tuple[datetime, float]] = field(factory=list, init=False)
    """When both clocks began to run alike: at the start, and after each step."""

    _set: bool = field(default=True, init=False)
    """Whether leases may end at times that the clock reaches only much later."""

    _next_s: float = field(default=-math.inf, init=False)
    """When leases are to be looked through again."""

    _watched: dict[str, tuple[int, float]] = field(factory=dict, init=False)
    """The revision of each leased job, and since when it is the same."""

    _timed: SupportsServerTime | None = field(init=False)
    """The store, if it says whose its time is; `isinstance` of a protocol is too slow for each job of a round."""

    def __attrs_post_init__(self) -> None:
        self._timed = self._store if isinstance(self._store, SupportsServerTime) else None

    @property
    def shared(self) -> bool:
        """Whether the store's time is a server's, by which all processes go."""
        return self._timed is not None and self._timed.server_time

    def note(self) -> datetime:
        """Return the store's time, after a look whether the clock was set."""
        now, monotonic_s = self._store.now(), self._monotonic()
        if self._steady:
            then, then_s = self._steady[-1]
            if abs(now - then - timedelta(seconds=monotonic_s - then_s)) <= _STEP:
                return now
        self._steady = [*self._steady[-_STEPS:], (now, monotonic_s)]
        self._set = True
        return now

    def watched_for(self, since: datetime) -> timedelta:
        """Return how much time surely passed since a wall-clock time; at most what this process itself watched."""
        now = self.note()
        then, then_s = next((step for step in reversed(self._steady) if step[0] <= since), self._steady[0])
        passed = timedelta(seconds=self._monotonic() - then_s) - max(timedelta(0), since - then)
        return max(timedelta(0), passed if since <= now else timedelta(0))

    def _watched_since(self, time: datetime) -> bool:
        return any(step[0] <= time for step in self._steady)

    def behind(self, job: Job) -> timedelta | None:
        """Return by how much a job's deadlines are to move, because its time is not over though the clock says so.

        That is so for a job that never began, and for an attempt that this process holds. None: they stay.
        """
        now, attempt = self.note(), job.attempt
        spared = job.stage in WAITING if attempt is None else attempt.ended_at is None and self._holds(attempt.token)
        if self.shared or not spared or now <= job.finish_by:
            return None
        total = job.request.limits.total_timeout
        if attempt is None and job.finish_by > job.created_at + total and not self._watched_since(job.created_at):
            return None  # its deadline moved already: processes that each see little of its time must not move it on
        left = total - self.watched_for(job.created_at)
        return now + left - job.finish_by if left > timedelta(0) else None

    def written_ahead(self, job: Job) -> timedelta | None:
        """Return by how much the clock was set back since the job was last written; None: it was not."""
        step = self._store.now() - job.updated_at
        return step if step < -CLOCK_STEP else None

    def lapsed(self, job: Job) -> bool:
        """Return whether the holder of the job's attempt is gone: its lease stood still for a whole lease."""
        attempt = job.attempt
        if attempt is None or attempt.lease_until is None or self._holds(attempt.token):
            self.forget(job.id)
            return False
        if self.shared:
            return self._store.now() > attempt.lease_until
        monotonic_s = self._monotonic()
        if (doubt := self._doubt_of(attempt)) is not None and monotonic_s - doubt.since_s > doubt.lease_s:
            return True
        revision, since_s = self._watched.get(job.id, (0, 0.0))
        if revision != job.revision:
            self._watched[job.id] = job.revision, monotonic_s
            return False
        return monotonic_s - since_s > self._lease_s(job, attempt.lease_until)

    def doubt(self, job: Job) -> str | None:
        """Return what to note of a lease that is over by the clock, for processes that come later; None: nothing.

        All processes of a machine share its monotonic clock until the machine is started anew.
        """
        attempt = job.attempt
        if attempt is None or attempt.lease_until is None or self.shared or self._holds(attempt.token):
            return None
        if self._store.now() <= attempt.lease_until or self._doubt_of(attempt) is not None:
            return None
        revision, since_s = self._watched.get(job.id, (0, 0.0))
        if revision != job.revision:
            since_s = self._monotonic()
        return f"{_boot()} {since_s:.3f} {self._lease_s(job, attempt.lease_until):.3f}"

    def _doubt_of(self, attempt: Attempt) -> _Doubt | None:
        """Return since when the attempt's lease is doubted; None if it is not, by this machine's clock."""
        boot, _, rest = (attempt.doubted or "").partition(" ")
        with suppress(ValueError):
            since_s, lease_s = map(float, rest.split())
            if boot == _boot() and since_s <= self._monotonic():
                return _Doubt(since_s, lease_s)
        return None

    def _lease_s(self, job: Job, lease_until: datetime) -> float:
        """Return how long the lease is: its holder's may be longer than this process's."""
        return max(self._lease, lease_until - job.updated_at).total_seconds()

    def may_judge(self, token: str) -> bool:
        """Return whether this process may end an attempt with a living lease: else the clock of its holder decides."""
        return self.shared or self._holds(token)

    def leases(self) -> JobQuery | None:
        """Return which jobs to look through now for leases that are to be watched, beside those that are due.

        Leases that end soon; and all, at first and after the clock was set. None: none now.
        """
        now, monotonic_s = self.note(), self._monotonic()
        if self.shared or (monotonic_s < self._next_s and not self._set):
            return None
        self._next_s = monotonic_s + self._lease.total_seconds() / 4
        everything, self._set = self._set, False
        return JobQuery(order="leased", due_by=None if everything else now + self._lease)

    def ripe(self) -> list[str]:
        """Return the jobs whose leases were watched for long enough to decide."""
        before_s = self._monotonic() - self._lease.total_seconds()
        return [job_id for job_id, (_, since_s) in list(self._watched.items()) if since_s < before_s]

    @property
    def next_lapse_s(self) -> float:
        """Seconds until the next watched lease may have lapsed, never below a little."""
        since_s = min((since_s for _, since_s in list(self._watched.values())), default=math.inf)
        return max(_LITTLE_S, since_s + self._lease.total_seconds() - self._monotonic())

    def forget(self, job_id: str) -> None:
        """Watch a job's lease no longer."""
        self._watched.pop(job_id, None)

"""Whose turn is it? Fair queueing, without a database.

Each tenant has a virtual time on each backend. Each claim of a new job moves it on by 1 over the tenant's weight, or by
as many as draw the job's video at once. The tenant with the least time is next. This is start-time fair queueing,
charged at the claim: jobs that are cancelled while they wait cost nothing (Goyal, Vin, Cheng: Start-time Fair Queueing,
SIGCOMM 1996).

Times are integers, in millionths of a turn of weight 1, so every store computes exactly the same ones. Jobs without a
tenant are those of the tenant ``""``, which no job can have.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from enum import Enum
from typing import Final, NamedTuple

from attrs import define, field

from renderdispatch.errors import QueueLimitError
from renderdispatch.jobs import Job
from renderdispatch.queueing import QueuePolicy

NO_TENANT: Final = ""
_TURN: Final = 10**6


def cost(policy: QueuePolicy, tenant: str) -> int:
    """Return what a turn costs a tenant."""
    return round(_TURN / policy.of(tenant or None).weight)


def turns_of(job: Job) -> int:
    """Return how many turns a claim of the job costs its tenant: none once an attempt of it was charged."""
    return 0 if job.attempts else job.parallel


def is_plain(policy: QueuePolicy, backend: str) -> bool:
    """Return whether jobs without a tenant need no turns as long as no tenant has work for the backend."""
    return backend not in policy.running


class Waiting(NamedTuple):
    """A job that waits for its turn.

    Args:
        id: The job's.
        turns: How many turns it costs its tenant; see `turns_of`.
    """

    id: str
    turns: int


@define
class Player:
    """A tenant that takes turns.

    Args:
        tenant: Its name.
        time: Its virtual time.
        cost: What a turn costs.
        left: How many attempts it may begin before it is at a limit. None: no limit.
        jobs: Its next jobs, in order.
        more: Whether it may have more jobs than these.
        began: The time at which it was last charged, in these turns.
        taken: How many of its jobs were taken, in these turns.
    """

    tenant: str
    time: int
    cost: int
    left: int | None = None
    jobs: deque[Waiting] = field(factory=deque)
    more: bool = False
    began: int | None = None
    taken: int = 0

    @property
    def place(self) -> tuple[int, str]:
        """What decides whose turn it is: the least is next."""
        return self.time, self.tenant

    def take(self) -> Waiting:
        """Take the next job, and pay for it."""
        job = self.jobs.popleft()
        if job.turns:
            self.began, self.time = self.time, self.time + job.turns * self.cost
        if self.left is not None:
            self.left -= 1
        self.taken += 1
        return job


class Pause(Enum):
    """Why turns do not go on."""

    DONE = "as many jobs as were asked for were taken, or there are no more"
    JOBS = "the next tenant's jobs have to be read"
    PLAYERS = "the tenants with later times have to be read"


@define
class Turns:
    """The turns of one claim.

    Args:
        limit: How many jobs to take at most.
        players: The tenants that were read.
        beyond: The place of the last of them. None: there are no others.
        taken: The ids of the jobs that were taken, in order.
        idle: Tenants whose turn came, and that had no job.
        full: Tenants whose turn came, and that were at a limit.
    """

    limit: int
    players: list[Player] = field(factory=list)
    beyond: tuple[int, str] | None = None
    taken: list[str] = field(factory=list)
    idle: list[str] = field(factory=list)
    full: list[str] = field(factory=list)
    _heap: list[tuple[tuple[int, str], int]] = field(factory=list)

    def join(self, players: Iterable[Player]) -> None:
        """Let more tenants take turns."""
        for player in players:
            heapq.heappush(self._heap, (player.place, len(self.players)))
            self.players.append(player)

    def play(self) -> Pause:
        """Let tenants take turns until something has to be read, or all is done."""
        while len(self.taken) < self.limit:
            if not self._heap or (self.beyond is not None and self._heap[0][0] > self.beyond):
                return Pause.DONE if self.beyond is None else Pause.PLAYERS
            player = self.players[self._heap[0][1]]
            if player.left is not None and player.left <= 0:
                self.full.append(player.tenant)
            elif player.jobs:
                self.taken.append(player.take().id)
                heapq.heapreplace(self._heap, (player.place, self._heap[0][1]))
                continue
            elif player.more:
                return Pause.JOBS
            else:
                self.idle.append(player.tenant)
            heapq.heappop(self._heap)
        return Pause.DONE

    def wanted(self, spare: int = 8) -> dict[str, int]:
        """Return how many jobs of which tenants to read: the next turns, if each has jobs, and some more."""
        ahead = [(place, number, len(self.players[number].jobs)) for place, number in self._heap]
        heapq.heapify(ahead)
        wanted: dict[str, int] = {}
        for _ in range(self.limit - len(self.taken) + spare):
            if not ahead:
                break
            (time, tenant), number, known = ahead[0]
            player = self.players[number]
            used = wanted.get(tenant, 0)
            if (used >= known and not player.more) or (player.left is not None and used >= player.left):
                heapq.heappop(ahead)
                continue
            wanted[tenant] = used + 1
            heapq.heapreplace(ahead, ((time + player.cost, tenant), number, known))
        return {tenant: number for tenant, number in wanted.items() if self._lacks(tenant, number)}

    def _lacks(self, tenant: str, number: int) -> bool:
        player = next(player for player in self.players if player.tenant == tenant)
        return player.more and len(player.jobs) < number

    @property
    def charged(self) -> Sequence[Player]:
        """The tenants whose times moved."""
        return [player for player in self.players if player.began is not None]


def queue_full(limit: int) -> QueueLimitError:
    """Return the refusal of a submit beyond the limit of queued jobs."""
    wait = timedelta(seconds=30)
    jobs = "1 job" if limit == 1 else f"{limit} jobs"
    message = f"this tenant has {jobs} in the queue, as many as it may have; try again in {wait.seconds} s"
    return QueueLimitError(message, code="limit.queued", retry_after=wait)


def too_many_submits(limit: int, wait: timedelta) -> QueueLimitError:
    """Return the refusal of a submit beyond the limit of submits a minute."""
    seconds = max(1, math.ceil(wait.total_seconds()))
    jobs = "1 job" if limit == 1 else f"{limit} jobs"
    message = f"this tenant may submit {jobs} a minute; try again in {seconds} s"
    return QueueLimitError(message, code="limit.rate", retry_after=timedelta(seconds=seconds))

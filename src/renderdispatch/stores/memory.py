"""How are jobs kept in this process, for tests and notebooks?

In a dictionary behind a lock. Threads get everything that a shared store promises; the jobs end with the process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from attrs import define, field

from renderdispatch.engine.claims import Begun, begin
from renderdispatch.engine.records import check_protocol
from renderdispatch.errors import (
    ConfigurationError,
    JobExistsError,
    JobNotFoundError,
    QueueLimitError,
    RenderDispatchError,
    RevisionConflictError,
)
from renderdispatch.jobs import Job, evolve
from renderdispatch.messages import PROTOCOL, JobStatus
from renderdispatch.protocols import CLOCK_STEP, LOOK_LEFT, LOOK_PAUSES, MAX_POSITION, Claim, JobQuery, Page, Quota
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import check_limit, matches, place, rank, read_cursor, write_cursor
from renderdispatch.stores.turns import (
    NO_TENANT,
    Player,
    Turns,
    Waiting,
    cost,
    is_plain,
    queue_full,
    too_many_submits,
    turns_of,
)


class MemoryJobStore:
    """Keeps jobs in a dictionary.

    Args:
        clock: Returns the time, aware and in UTC.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock or partial(datetime.now, UTC)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._looks: dict[str, tuple[datetime, int]] = {}  # the next look, and how many there were since the last write
        self._looked_at = datetime.min.replace(tzinfo=UTC) + CLOCK_STEP
        self._queues: dict[str, _Queue] = {}  # by backend
        self._waits: set[str] = set()  # jobs that wait since their last write
        self._submitted: dict[str | None, deque[datetime]] = {}  # when each tenant submitted within the last minute
        self._tombstones: dict[str, int] = {}  # the revision at which a deleted job ended

    def create(self, job: Job) -> Job:
        """Store a new job, as `JobStore.create` says."""
        with self._lock:
            if job.id in self._jobs:
                raise JobExistsError(f"job {job.id} exists")
            stored = evolve(job, revision=self._tombstones.pop(job.id, 0) + 1)
            self._put(stored)
            return stored

    def get(self, job_id: str) -> Job:
        """Return a job, as `JobStore.get` says."""
        with self._lock:
            return self._get(job_id)

    def _get(self, job_id: str) -> Job:
        try:
            return check_protocol(self._jobs[job_id])
        except KeyError:
            raise JobNotFoundError(f"there is no job {job_id}") from None

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store a job over a revision, as `JobStore.replace` says."""
        with self._lock:
            self._check_revision(job.id, expected_revision)
            stored = evolve(job, revision=expected_revision + 1, protocol=PROTOCOL)
            self._put(stored)
            return stored

    def _check_revision(self, job_id: str, expected: int) -> None:
        found = self._get(job_id).revision
        if found != expected:
            raise RevisionConflictError(f"job {job_id} is at revision {found}, not {expected}: read it again")

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of jobs, as `JobStore.query` says."""
        check_limit(query)
        after = read_cursor(query)
        with self._lock:
            found = [job for job in self._jobs.values() if matches(query, job)]
        found.sort(key=lambda job: rank(query, place(query, job)))
        if after is not None:
            found = [job for job in found if rank(query, place(query, job)) > rank(query, after)]
        items = tuple(found[: query.limit])
        return Page(items, write_cursor(query, place(query, items[-1])) if len(found) > query.limit else None)

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget a job, as `JobStore.delete` says."""
        with self._lock:
            if job_id not in self._jobs:
                return False
            self._check_revision(job_id, expected_revision)
            del self._jobs[job_id]
            self._looks.pop(job_id, None)
            self._waits.discard(job_id)
            self._tombstones[job_id] = expected_revision + 1
            return True

    def now(self) -> datetime:
        """Return the time of the clock."""
        return self._clock()

    def close(self) -> None:
        """Nothing was opened."""

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        """Return which backends have ready jobs, as `SupportsClaim.claimable` says."""
        with self._lock:
            self._end_waits()
            return frozenset(name for name in backends if self._ready(name, {None, machine}))

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin attempts of ready jobs, as `SupportsClaim.claim` says."""
        with self._lock:
            now = self.now()
            self._end_waits()
            jobs = self._ready(claim.backend, {None, claim.machine})
            queue = self._queues.setdefault(claim.backend, _Queue())
            queue.gain()
            if is_plain(claim.policy, claim.backend) and not queue.active:
                taken, idle = [job.id for job in jobs.get(NO_TENANT, ())][: max(0, limit)], []
            else:
                turns = self._take_turns(claim, queue, jobs, limit)
                taken, idle = turns.taken, turns.idle
            claimed = []
            for job_id in taken:
                job = self._jobs[job_id]
                job = evolve(begin(job, Begun.of(claim, now)), revision=job.revision + 1)
                self._put(job)
                claimed.append(job)
            queue.active.difference_update(tenant for tenant in idle if not self._has_work(claim.backend, tenant))
            return claimed

    def _take_turns(self, claim: Claim, queue: _Queue, jobs: Mapping[str, list[Job]], limit: int) -> Turns:
        held = self._held()
        most = claim.policy.running.get(claim.backend)
        if most is not None:
            limit = min(limit, most - sum(units for (place, _), units in held.items() if place == claim.backend))
        turns = Turns(limit)
        turns.join(queue.players(claim.policy, jobs))
        for player in turns.players:
            player.left = _left(claim, player.tenant, held)
        turns.play()
        queue.note(turns)
        return turns

    def _end_waits(self) -> None:
        now = self.now()
        for job_id in list(self._waits):
            job = self._jobs[job_id]
            if job.ready_at is None or job.ready_at <= now or job.updated_at > now + CLOCK_STEP:
                self._waits.remove(job_id)
                self._gains_work(job)

    def _gains_work(self, job: Job) -> None:
        """Note that a tenant has work: it takes part from the next claim on."""
        queue = self._queues.setdefault(job.backend, _Queue())
        if job.tenant is not None and job.tenant not in queue.active:
            queue.woken.add(job.tenant)

    def _has_work(self, backend: str, tenant: str) -> bool:
        """Return whether a tenant has a job that does not wait, on whichever machine."""
        theirs = (job for job in self._jobs.values() if (job.backend, job.tenant) == (backend, tenant))
        return any(job.ready_at is not None and job.id not in self._waits for job in theirs)

    def _ready(self, backend: str, machines: Collection[str | None] | None) -> dict[str, list[Job]]:
        """Return the ready jobs of a backend by tenant, each tenant's in the order of claims. None: of all machines."""
        now = self.now()
        found: dict[str, list[Job]] = {}
        for job in self._jobs.values():
            there = job.backend == backend and (machines is None or job.machine in machines)
            ready = job.ready_at is not None and job.id not in self._waits and job.protocol <= PROTOCOL
            if there and ready and now <= job.finish_by:
                found.setdefault(job.tenant or NO_TENANT, []).append(job)
        for jobs in found.values():
            jobs.sort(key=lambda job: (-job.priority, job.ready_at or now, job.id))
        return found

    def _held(self) -> Counter[tuple[str, str | None]]:
        """Return how many units of running attempts are held, by backend and tenant."""
        now, held = self.now(), Counter[tuple[str, str | None]]()
        for job in self._jobs.values():
            for holding in job.holdings():
                held[holding.backend, job.tenant] += holding.units * (holding.until > now)
        return held

    def claim_looks(self, *, limit: int, able: Collection[str] | None = None, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        now = self.now()
        with self._lock:
            self._notice_step(now)
            due: list[tuple[datetime, Job]] = []
            for job in self._jobs.values():
                look_at = self._looks.get(job.id, (job.due_at, 0))[0]
                if look_at is None or look_at > now or job.protocol > PROTOCOL or job_id not in {None, job.id}:
                    continue
                over = look_at <= now - LOOK_LEFT or (job.deadline_at is not None and job.deadline_at <= now)
                if over or able is None or job.look_needs is None or job.look_needs in able:
                    due.append((look_at, job))
            due.sort(key=lambda pair: (pair[0], pair[1].id))
            jobs = [job for _, job in due[:limit]]
            for job in jobs:
                count = self._looks.get(job.id, (None, 0))[1]
                after = now + LOOK_PAUSES[min(count, len(LOOK_PAUSES) - 1)]
                if job.deadline_at is not None and now < job.deadline_at < after:
                    after = job.deadline_at
                self._looks[job.id] = (after, count + 1)
            return jobs

    def _notice_step(self, now: datetime) -> None:
        """Let no job wait until the clock gets to where it was before it was set back."""
        if now < self._looked_at - CLOCK_STEP:
            for job in self._jobs.values():
                look_at, count = self._looks.get(job.id, (job.due_at, 0))
                put_off = count > 0 or any(attempt.ended_at is None for attempt in job.attempts[-1:])
                far = look_at is not None and look_at > now + LOOK_PAUSES[-1] + CLOCK_STEP
                if put_off and far and look_at != job.deadline_at:
                    self._looks[job.id] = now, count
        self._looked_at = now

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        query = JobQuery(tenant=tenant, batch=batch)
        with self._lock:
            found = Counter(job.status for job in self._jobs.values() if matches(query, job))
        return {status: found[status] for status in JobStatus}

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return the job's place in the queue, as `SupportsCounts.position` says."""
        with self._lock:
            jobs = self._ready(job.backend, None)
            if all(other.id != job.id for other in jobs.get(job.tenant or NO_TENANT, ())):
                return None
            queue = self._queues.setdefault(job.backend, _Queue()).copy()
            queue.gain()
            turns = Turns(MAX_POSITION)
            turns.join(queue.players(policy, jobs))
            turns.play()
            return turns.taken.index(job.id) + 1 if job.id in turns.taken else MAX_POSITION + 1

    # --- many at once

    def create_many(
        self, jobs: Sequence[Job], *, quota: Quota | None = None, connection: object = None
    ) -> list[Job | RenderDispatchError]:
        """Create jobs within a quota, as `SupportsCreateMany.create_many` says; there is no connection to share."""
        if connection is not None:
            raise ConfigurationError("MemoryJobStore has no database whose transactions it could join")
        return [self._create_within(job, quota) for job in jobs]

    def _create_within(self, job: Job, quota: Quota | None) -> Job | RenderDispatchError:
        with self._lock:
            if job.id in self._jobs:
                return JobExistsError(f"job {job.id} exists")
            if quota is not None and (refusal := self._over(job.tenant, quota)) is not None:
                return refusal
            self._submitted.setdefault(job.tenant, deque()).append(self.now())
            stored = evolve(job, revision=self._tombstones.pop(job.id, 0) + 1)
            self._put(stored)
            return stored

    def _over(self, tenant: str | None, quota: Quota) -> QueueLimitError | None:
        now, minute = self.now(), timedelta(minutes=1)
        queued = sum(job.tenant == tenant and job.ready_at is not None for job in self._jobs.values())
        if quota.queued is not None and queued >= quota.queued:
            return queue_full(quota.queued)
        recent = self._submitted.setdefault(tenant, deque())
        while recent and recent[0] <= now - minute:
            recent.popleft()
        if quota.submits_per_minute is not None and len(recent) >= quota.submits_per_minute:
            first = recent[0] if recent else now
            return too_many_submits(quota.submits_per_minute, first + minute - now)
        return None

    def _put(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._looks.pop(job.id, None)
        self._waits.discard(job.id)
        if job.ready_at is not None:
            if job.ready_at > job.updated_at:
                self._waits.add(job.id)
            else:
                self._gains_work(job)


@define
class _Queue:
    """How tenants share one backend.

    Args:
        times: The virtual times of tenants.
        clock: The latest time at which a tenant was charged.
        active: Tenants that take part.
        woken: Tenants that gained work since the last claim.
    """

    times: dict[str, int] = field(factory=dict)
    clock: int = 0
    active: set[str] = field(factory=set)
    woken: set[str] = field(factory=set)

    def copy(self) -> _Queue:
        """Return a queue that can be tried out."""
        return _Queue(dict(self.times), self.clock, set(self.active), set(self.woken))

    def gain(self) -> None:
        """Let tenants take part that gained work: at the last claim's time, if theirs is less."""
        for tenant in self.woken - self.active:
            self.times[tenant] = max(self.times.get(tenant, 0), self.clock)
        self.active |= self.woken
        self.woken.clear()

    def players(self, policy: QueuePolicy, jobs: Mapping[str, list[Job]]) -> Iterator[Player]:
        """Yield those that take turns. Jobs without a tenant go at the least time, if theirs is less."""
        least = min((self.times[tenant] for tenant in self.active), default=0)
        times = {tenant: self.times[tenant] for tenant in self.active}
        times[NO_TENANT] = max(self.times.get(NO_TENANT, 0), least)
        for tenant, time in times.items():
            waiting = deque(Waiting(job.id, turns_of(job)) for job in jobs.get(tenant, ()))
            yield Player(tenant, time, cost(policy, tenant), jobs=waiting)

    def note(self, turns: Turns) -> None:
        """Keep the times of those that were charged."""
        for player in turns.charged:
            self.times[player.tenant] = player.time
            self.clock = max(self.clock, player.began or 0)


def _left(claim: Claim, tenant: str, held: Mapping[tuple[str, str | None], int]) -> int | None:
    """Return how many attempts a tenant may begin; None: it has no limit."""
    own = claim.policy.of(tenant or None)
    everywhere = sum(units for (_, other), units in held.items() if other == tenant)
    here = held.get((claim.backend, tenant), 0)
    limits = ((own.running, everywhere), (own.running_on.get(claim.backend), here))
    return min((limit - used for limit, used in limits if limit is not None), default=None)

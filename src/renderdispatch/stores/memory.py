"""How are jobs kept in this process, for tests and notebooks?

In a dictionary behind a lock. Threads get everything that a shared store promises; the jobs end with the process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

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
from renderdispatch.protocols import LOOK_PAUSES, MAX_POSITION, Claim, JobQuery, Page, Quota, is_ready
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import check_limit, matches, place, rank, read_cursor, write_cursor
from renderdispatch.stores.turns import Turns, queue_full, too_many_submits


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
        self._turns = Turns()
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
            return frozenset(name for name in backends if self._ready(name, machine))

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin attempts of ready jobs, as `SupportsClaim.claim` says."""
        now = self.now()
        claimed: list[Job] = []
        with self._lock:
            queues = self._ready(claim.backend, claim.machine)
            self._turns.gained_work(claim.backend, queues)
            while len(claimed) < limit:
                open_queues = [tenant for tenant in queues if not self._at_limit(claim, tenant, now)]
                if not open_queues:
                    break
                tenant = self._turns.next(claim.backend, open_queues)
                job = queues[tenant].popleft()
                if not job.attempts:
                    self._turns.charge(claim.backend, tenant, claim.policy)
                job = evolve(begin(job, Begun.of(claim, now)), revision=job.revision + 1)
                self._put(job)
                claimed.append(job)
                if not queues[tenant]:
                    del queues[tenant]
        return claimed

    def _ready(self, backend: str, machine: str | None) -> dict[str | None, deque[Job]]:
        """Return the ready jobs of a backend by tenant, each tenant's in the order of claims."""
        now, query = self.now(), JobQuery(order="ready", backends=frozenset([backend]), machine=machine)
        found = [job for job in self._jobs.values() if matches(query, job) and is_ready(job, now)]
        queues: dict[str | None, deque[Job]] = {}
        for job in sorted(found, key=lambda job: rank(query, place(query, job))):
            queues.setdefault(job.tenant, deque()).append(job)
        return queues

    def _at_limit(self, claim: Claim, tenant: str | None, now: datetime) -> bool:
        """Return whether a claim for this tenant would exceed a limit of running attempts."""
        own = claim.policy.of(tenant)
        held = [
            (holding.backend, job.tenant, holding.units)
            for job in self._jobs.values()
            for holding in job.holdings()
            if holding.until > now
        ]
        here = sum(units for backend, _, units in held if backend == claim.backend)
        all_of_tenant = sum(units for _, other, units in held if other == tenant)
        of_tenant_here = sum(units for backend, other, units in held if (backend, other) == (claim.backend, tenant))
        limits = (claim.policy.running.get(claim.backend), own.running, own.running_on.get(claim.backend))
        used = (here, all_of_tenant, of_tenant_here)
        return any(limit is not None and count >= limit for limit, count in zip(limits, used, strict=True))

    def claim_looks(self, *, limit: int, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        now = self.now()
        with self._lock:
            due: list[tuple[datetime, Job]] = []
            for job in self._jobs.values():
                look_at = self._looks.get(job.id, (job.due_at, 0))[0]
                if look_at is not None and look_at <= now and job.protocol <= PROTOCOL and job_id in {None, job.id}:
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

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        query = JobQuery(tenant=tenant, batch=batch)
        with self._lock:
            found = Counter(job.status for job in self._jobs.values() if matches(query, job))
        return {status: found[status] for status in JobStatus}

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return the job's place in the queue, as `SupportsCounts.position` says."""
        with self._lock:
            turns = self._turns.copy()
            queues = self._waiting(job.backend)
            turns.gained_work(job.backend, queues)
            for number in range(1, MAX_POSITION + 1):
                if not queues:
                    return None
                tenant = turns.next(job.backend, queues)
                first = queues[tenant].popleft()
                if first.id == job.id:
                    return number
                if not first.attempts:
                    turns.charge(job.backend, tenant, policy)
                if not queues[tenant]:
                    del queues[tenant]
            waits = any(other.id == job.id for queue in queues.values() for other in queue)
        return MAX_POSITION + 1 if waits else None

    def _waiting(self, backend: str) -> dict[str | None, deque[Job]]:
        """Return the ready jobs of a backend by tenant, on whichever machine their files lie."""
        now = self.now()
        machines = {job.machine for job in self._jobs.values()} | {None}
        found = {
            job.id: job for machine in machines for queue in self._ready(backend, machine).values() for job in queue
        }
        queues: dict[str | None, deque[Job]] = {}
        for job in sorted(found.values(), key=lambda job: (-job.priority, job.ready_at or now, job.id)):
            queues.setdefault(job.tenant, deque()).append(job)
        return queues

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

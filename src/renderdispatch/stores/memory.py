"""How are jobs kept in this process, for tests and notebooks?

In a dictionary behind a lock. Threads get everything that a shared store promises; the jobs end with the process.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from functools import partial

from attrs import evolve

from renderdispatch.engine.records import check_protocol
from renderdispatch.errors import JobExistsError, JobNotFoundError, RevisionConflictError
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL, JobStatus
from renderdispatch.protocols import JobQuery, Page, is_ready
from renderdispatch.stores.pages import check_limit, matches, place, rank, read_cursor, write_cursor


class MemoryJobStore:
    """Keeps jobs in a dictionary.

    Args:
        clock: Returns the time, aware and in UTC.
    """

    def __init__(self, *, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock or partial(datetime.now, UTC)
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._reserved: dict[str, datetime] = {}  # when a job was claimed, until its next write
        self._tombstones: dict[str, int] = {}  # the revision at which a deleted job ended

    def create(self, job: Job) -> Job:
        """Store a new job, as `JobStore.create` says."""
        with self._lock:
            if job.id in self._jobs:
                raise JobExistsError(f"job {job.id} exists")
            stored = evolve(job, revision=self._tombstones.pop(job.id, 0) + 1)
            self._jobs[job.id] = stored
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
            self._jobs[job.id] = stored
            self._reserved.pop(job.id, None)
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
            self._reserved.pop(job_id, None)
            self._tombstones[job_id] = expected_revision + 1
            return True

    def now(self) -> datetime:
        """Return the time of the clock."""
        return self._clock()

    def close(self) -> None:
        """Nothing was opened."""

    def claim(self, *, limit: int, reserve_for: timedelta, backends: Collection[str], machine: str | None) -> list[Job]:
        """Hand out ready jobs, as `SupportsClaim.claim` says."""
        if limit < 1:
            return []
        now = self.now()
        query = JobQuery(order="ready", backends=frozenset(backends), machine=machine)
        with self._lock:
            candidates = [job for job in self._jobs.values() if matches(query, job)]
            ready = [job for job in candidates if is_ready(job, now, since=self._reserved.get(job.id))]
            ready.sort(key=lambda job: rank(query, place(query, job)))
            claimed = [evolve(job, ready_at=now + reserve_for, revision=job.revision + 1) for job in ready[:limit]]
            self._jobs.update({job.id: job for job in claimed})
            self._reserved.update({job.id: now for job in claimed})
        return claimed

    def counts(self, *, tenant: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        with self._lock:
            found = Counter(job.status for job in self._jobs.values() if tenant is None or job.tenant == tenant)
        return {status: found[status] for status in JobStatus}

    def ahead_of(self, job: Job) -> int:
        """Count the jobs that are claimed earlier, as `SupportsCounts.ahead_of` says."""
        if job.ready_at is None:
            return 0
        query = JobQuery(order="ready")
        mine = rank(query, place(query, job))
        with self._lock:
            return sum(
                rank(query, place(query, other)) < mine for other in self._jobs.values() if other.ready_at is not None
            )

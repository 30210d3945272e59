"""Does a job store behave like a dictionary, whichever calls are made in whichever order?

A Hypothesis state machine makes the same calls to the store and to a model of it::

    class MyStoreMachine(JobStoreMachine):
        def make_store(self):
            return MyStore()

    TestMyStoreMachine = MyStoreMachine.TestCase
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from renderdispatch.engine.claims import Begun, begin
from renderdispatch.errors import JobExistsError, JobNotFoundError, RevisionConflictError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Stage
from renderdispatch.protocols import Claim, JobQuery, JobStore, SupportsClaim, SupportsCounts, is_ready
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.testing.builders import make_job

_HOUR = timedelta(hours=1)

_ids = st.sampled_from(["a", "b", "c", "d", "e"])
_tenants = st.sampled_from([None, "acme", "other"])
_statuses = st.sampled_from(list(JobStatus))
_backends = st.sampled_from(["inline", "modal"])
_machines = st.sampled_from([None, "here", "there"])
_hours = st.integers(-3, 3)


class JobStoreMachine(RuleBasedStateMachine):
    """Override `make_store`. `SupportsClaim` and `SupportsCounts` are tested if the store has them."""

    def make_store(self) -> JobStore:
        """Return an empty store."""
        raise NotImplementedError("override make_store")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.make_store()
        self.now = self.store.now()
        self.jobs: dict[str, Job] = {}
        self.highest: dict[str, int] = {}  # the highest revision that an id ever had

    def teardown(self) -> None:
        """Close the store."""
        self.store.close()

    def _note(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.highest[job.id] = job.revision

    # --- changes of both

    @rule(
        job_id=_ids,
        tenant=_tenants,
        status=_statuses,
        backend=_backends,
        machine=_machines,
        priority=st.integers(-1, 1),
        created=_hours,
        ready=st.none() | _hours,
    )
    def create(
        self,
        job_id: str,
        tenant: str | None,
        status: JobStatus,
        backend: str,
        machine: str | None,
        priority: int,
        created: int,
        ready: int | None,
    ) -> None:
        """An id that exists is refused; a new job has a revision above any of its id."""
        job = make_job(
            id=job_id,
            tenant=tenant,
            status=status,
            backend=backend,
            machine=machine,
            priority=priority,
            created_at=self.now + created * _HOUR,
            ready_at=None if ready is None or status.terminal else self.now + ready * _HOUR,
        )
        if job_id in self.jobs:
            with pytest.raises(JobExistsError):
                self.store.create(job)
            return
        stored = self.store.create(job)
        assert stored == evolve(job, revision=stored.revision)
        assert stored.revision > self.highest.get(job_id, 0)
        self._note(stored)

    @rule(job_id=_ids, behind=st.integers(-1, 2), status=_statuses, ready=st.none() | _hours)
    def replace(self, job_id: str, behind: int, status: JobStatus, ready: int | None) -> None:
        """Only the current revision of a job is replaced."""
        standing = self.jobs.get(job_id)
        job = evolve(
            standing or make_job(id=job_id),
            status=status,
            stage=Stage.QUEUED,
            ready_at=None if ready is None or status.terminal else self.now + ready * _HOUR,
        )
        expected = self.highest.get(job_id, 0) - behind
        if standing is None:
            with pytest.raises(JobNotFoundError):
                self.store.replace(job, expected_revision=expected)
        elif expected != standing.revision:
            with pytest.raises(RevisionConflictError):
                self.store.replace(job, expected_revision=expected)
        else:
            stored = self.store.replace(job, expected_revision=expected)
            assert stored == evolve(job, revision=expected + 1)
            self._note(stored)

    @rule(job_id=_ids, behind=st.integers(-1, 2))
    def delete(self, job_id: str, behind: int) -> None:
        """Only the current revision of a job is deleted, once."""
        standing = self.jobs.get(job_id)
        expected = self.highest.get(job_id, 0) - behind
        if standing is not None and expected != standing.revision:
            with pytest.raises(RevisionConflictError):
                self.store.delete(job_id, expected_revision=expected)
        else:
            assert self.store.delete(job_id, expected_revision=expected) is (self.jobs.pop(job_id, None) is not None)

    @precondition(lambda self: isinstance(self.store, SupportsClaim))
    @rule(limit=st.integers(0, 3), backend=_backends, machine=_machines, weight=st.sampled_from([1.0, 2.0]))
    def claim(self, limit: int, backend: str, machine: str | None, weight: float) -> None:
        """The tenants take turns; the first ready jobs of each begin an attempt, in order."""
        assert isinstance(self.store, SupportsClaim)
        policy = QueuePolicy(tenants={"acme": TenantPolicy(weight=weight)})
        claim = Claim(
            backend=backend, local=True, holder="worker", lease=_HOUR, machine=machine, policy=policy, nonce="nonce"
        )
        now = self.store.now()
        query = JobQuery(order="ready", backends=frozenset([backend]), machine=machine)
        ready = [job for job in self._expected(query) if is_ready(job, now)]
        may_be = self.store.claimable([backend], machine=machine)
        assert may_be == {backend} or not ready
        claimed = self.store.claim(claim, limit=limit)
        assert len(claimed) == min(limit, len(ready))
        for tenant in {job.tenant for job in claimed}:
            mine = [job.id for job in claimed if job.tenant == tenant]
            assert mine == [job.id for job in ready if job.tenant == tenant][: len(mine)]
        for after in claimed:
            assert after.attempt is not None
            begun = Begun.of(claim, after.attempt.claimed_at)
            assert after == evolve(begin(self.jobs[after.id], begun), revision=self.jobs[after.id].revision + 1)
            self._note(after)

    # --- results of both

    @rule(
        order=st.sampled_from(["newest", "ready", "due"]),
        tenant=_tenants,
        statuses=st.none() | st.frozensets(_statuses),
        backends=st.none() | st.frozensets(_backends),
        machine=_machines,
        by=st.none() | _hours,
        limit=st.integers(1, 6),
    )
    def query(
        self,
        order: Literal["newest", "ready", "due"],
        tenant: str | None,
        statuses: frozenset[JobStatus] | None,
        backends: frozenset[str] | None,
        machine: str | None,
        by: int | None,
        limit: int,
    ) -> None:
        """All pages together are what the model has."""
        time = None if by is None else self.now + by * _HOUR
        query = JobQuery(
            order=order,
            tenant=tenant,
            statuses=statuses,
            backends=backends,
            machine=machine if order == "ready" else None,
            ready_by=time if order == "ready" else None,
            due_by=time if order == "due" else None,
            limit=limit,
        )
        found: list[Job] = []
        page = self.store.query(query)
        while True:
            found += page.items
            if page.cursor is None:
                break
            page = self.store.query(evolve(query, cursor=page.cursor))
        assert found == self._expected(query)

    @precondition(lambda self: isinstance(self.store, SupportsCounts))
    @rule(tenant=_tenants)
    def count(self, tenant: str | None) -> None:
        """The counts and the places in the queue are those of the model."""
        assert isinstance(self.store, SupportsCounts)
        expected = dict.fromkeys(JobStatus, 0)
        for job in self.jobs.values():
            expected[job.status] += tenant is None or job.tenant == tenant
        assert self.store.counts(tenant=tenant) == expected

    @invariant()
    def both_hold_the_same(self) -> None:
        """The store holds the jobs of the model."""
        assert {job.id: job for job in self.store.query(JobQuery()).items} == self.jobs

    def _expected(self, query: JobQuery) -> list[Job]:
        """Return the jobs of the model that match ``query``, as `JobQuery` defines it."""
        found = sorted(self.jobs.values(), key=lambda job: job.id)
        if query.tenant is not None:
            found = [job for job in found if job.tenant == query.tenant]
        if query.statuses is not None:
            found = [job for job in found if job.status in query.statuses]
        if query.backends is not None:
            found = [job for job in found if job.backend in query.backends]
        match query.order:
            case "newest":
                return sorted(found, key=lambda job: job.created_at, reverse=True)
            case "ready":
                found = [job for job in found if job.machine in {None, query.machine}]
                return sorted(_by(found, _ready_at, query.ready_by), key=_order_of_claims)
            case "due":
                return sorted(_by(found, _due_at, query.due_by), key=_due_at)
            case "leased" | "ended":
                when = _lease_until if query.order == "leased" else _ended_at
                return sorted(_by(found, when, query.due_by), key=when)


_NEVER = datetime.max.replace(tzinfo=UTC)


def _ready_at(job: Job) -> datetime:
    return job.ready_at or _NEVER


def _due_at(job: Job) -> datetime:
    return job.due_at or _NEVER


def _lease_until(job: Job) -> datetime:
    return job.lease_until or _NEVER


def _ended_at(job: Job) -> datetime:
    return job.ended_at or _NEVER


def _by(jobs: list[Job], when: Callable[[Job], datetime], latest: datetime | None) -> list[Job]:
    return [job for job in jobs if when(job) != _NEVER and (latest is None or when(job) <= latest)]


def _order_of_claims(job: Job) -> tuple[int, datetime, str]:
    return (-job.priority, _ready_at(job), job.id)

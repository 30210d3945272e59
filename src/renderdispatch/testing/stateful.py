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
from typing import Any, Literal

import pytest
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from renderdispatch.engine.claims import Begun, begin
from renderdispatch.errors import JobExistsError, JobNotFoundError, RevisionConflictError
from renderdispatch.jobs import Helper, HelperState, Job
from renderdispatch.messages import JobStatus, Stage
from renderdispatch.protocols import Claim, JobQuery, JobStore, SupportsClaim, SupportsCounts, SupportsLooks
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing.builders import make_job

_HOUR = timedelta(hours=1)

_ids = st.sampled_from(["a", "b", "c", "d", "e"])
_tenants = st.sampled_from([None, "acme", "other"])
_statuses = st.sampled_from(list(JobStatus))
_backends = st.sampled_from(["inline", "modal"])
_machines = st.sampled_from([None, "here", "there"])
_batches = st.sampled_from([None, "batch"])
_hours = st.integers(-3, 3)
_parallel = st.sampled_from([1, 1, 3])
_MOST_JOBS = 90
"""So many jobs fit on one page."""

_limits = st.sampled_from([None, None, 0, 1, 2])


@st.composite
def _policies(draw: st.DrawFn) -> QueuePolicy:
    """Draw weights, and limits that few jobs reach."""
    here, everywhere, there = draw(_limits), draw(_limits), draw(_limits)
    acme = TenantPolicy(
        weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
        running=everywhere,
        running_on={} if there is None else {"modal": there},
    )
    return QueuePolicy(running={} if here is None else {"inline": here}, tenants={"acme": acme})


class JobStoreMachine(RuleBasedStateMachine):
    """Override `make_store`. `SupportsClaim` and `SupportsCounts` are tested if the store has them."""

    def make_store(self) -> JobStore:
        """Return an empty store."""
        raise NotImplementedError("override make_store")

    def __init__(self) -> None:
        super().__init__()
        self.last_policies: dict[str, QueuePolicy] = {}
        self.store = self.make_store()
        self.now = self.store.now()
        self.jobs: dict[str, Job] = {}
        self.highest: dict[str, int] = {}  # the highest revision that an id ever had
        self.model_now = self.now
        self.model = MemoryJobStore(clock=lambda: self.model_now)  # for whom the turn is, and what is due

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
        batch=_batches,
        priority=st.integers(-1, 1),
        parallel=_parallel,
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
        batch: str | None,
        priority: int,
        parallel: int,
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
            batch=batch,
            priority=priority,
            parallel=parallel,
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
        self.model.create(job)
        self._note(stored)

    @rule(
        tenants=st.lists(_tenants, min_size=1, max_size=4),
        backend=_backends,
        priority=st.integers(0, 1),
        parallel=_parallel,
    )
    def submit(self, tenants: list[str | None], backend: str, priority: int, parallel: int) -> None:
        """Jobs of new ids, which are ready at once, so that claims find some of several tenants."""
        for tenant in tenants:
            if len(self.highest) < _MOST_JOBS:
                job_id = f"job-{len(self.highest):02}"
                fields: dict[str, Any] = {
                    "tenant": tenant,
                    "backend": backend,
                    "priority": priority,
                    "parallel": parallel,
                }
                job = make_job(id=job_id, created_at=self.now, **fields)
                self.model.create(job)
                self._note(self.store.create(job))

    @precondition(lambda self: bool(self.jobs))
    @rule(data=st.data(), started=st.integers(0, 2))
    def help(self, data: st.DataObject, started: int) -> None:
        """Helpers of a running attempt start, or stop: the units that it holds change."""
        running = [job for job in self.jobs.values() if job.attempt is not None and job.parallel > 1]
        if running:
            job = data.draw(st.sampled_from(sorted(running, key=lambda job: job.id)))
            states = [HelperState.STARTED if share <= started else HelperState.STOPPED for share in (1, 2)]
            helpers = tuple(Helper(share=n, token=f"{job.id}-{n}", state=s) for n, s in enumerate(states, start=1))
            attempts = (*job.attempts[:-1], evolve(job.attempts[-1], helpers=helpers))
            helped = evolve(job, attempts=attempts)
            self.model.replace(helped, expected_revision=self.model.get(job.id).revision)
            self._note(self.store.replace(helped, expected_revision=job.revision))

    @precondition(lambda self: bool(self.jobs))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A job that runs ends, and gives its unit back."""
        running = [job for job in self.jobs.values() if job.attempt is not None and job.attempt.ended_at is None]
        if running:
            job = data.draw(st.sampled_from(sorted(running, key=lambda job: job.id)))
            attempts = (*job.attempts[:-1], evolve(job.attempts[-1], ended_at=self.now, stopped=True))
            ended = evolve(job, status=JobStatus.FAILED, attempts=attempts, ended_at=self.now)
            self.model.replace(ended, expected_revision=self.model.get(job.id).revision)
            self._note(self.store.replace(ended, expected_revision=job.revision))

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
            self.model.replace(job, expected_revision=self.model.get(job_id).revision)
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
            assert self.store.delete(job_id, expected_revision=expected) is (standing is not None)
            if self.jobs.pop(job_id, None) is not None:
                self.model.delete(job_id, expected_revision=self.model.get(job_id).revision)

    @precondition(lambda self: isinstance(self.store, SupportsClaim))
    @rule(limit=st.integers(0, 4), backend=_backends, machine=_machines, policy=_policies())
    def claim(self, limit: int, backend: str, machine: str | None, policy: QueuePolicy) -> None:
        """Attempts begin of the jobs, and in the order, that fair turns within the limits give."""
        assert isinstance(self.store, SupportsClaim)
        claim = Claim(backend=backend, local=True, holder="worker", lease=_HOUR, machine=machine, policy=policy)
        may_be = self.store.claimable([backend], machine=machine)
        claimed = self.store.claim(claim, limit=limit)
        began = [job.attempt.claimed_at for job in claimed if job.attempt is not None]
        assert len(began) == len(claimed)
        self.model_now = began[0] if began else self.store.now()
        self.model.claimable([backend], machine=machine)
        assert [job.id for job in claimed] == [job.id for job in self.model.claim(claim, limit=limit)]
        # what other limits did not allow a moment ago may be allowed by these
        assert may_be == {backend} or not claimed or self.last_policies.get(backend, policy) != policy
        self.last_policies[backend] = policy
        for after, at in zip(claimed, began, strict=True):
            before = self.jobs[after.id]
            assert after == evolve(begin(before, Begun.of(claim, at)), revision=before.revision + 1)
            self._note(after)

    @precondition(lambda self: isinstance(self.store, SupportsLooks))
    @rule(job_id=st.none() | _ids, able=st.none() | st.frozensets(_backends))
    def look(self, job_id: str | None, able: frozenset[str] | None) -> None:
        """All jobs that are due and that the process is able to look at are returned, as they are, and put off."""
        assert isinstance(self.store, SupportsLooks)
        self.model_now = self.store.now()
        surely = {job.id for job in _copy(self.model).claim_looks(limit=1000, able=able, job_id=job_id)}
        found = self.store.claim_looks(limit=1000, able=able, job_id=job_id)
        self.model_now = self.store.now()
        perhaps = {job.id for job in _copy(self.model).claim_looks(limit=1000, able=able, job_id=job_id)}
        assert surely <= {job.id for job in found} <= perhaps
        for job in found:
            assert job == self.jobs[job.id]
            self.model.claim_looks(limit=1, job_id=job.id)

    # --- results of both

    @rule(
        order=st.sampled_from(["newest", "ready", "leased", "ended"]),
        tenant=_tenants,
        statuses=st.none() | st.frozensets(_statuses),
        backends=st.none() | st.frozensets(_backends),
        machine=_machines,
        by=st.none() | _hours,
        limit=st.integers(1, 6),
    )
    def query(
        self,
        order: Literal["newest", "ready", "leased", "ended"],
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
            due_by=time if order in {"leased", "ended"} else None,
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
    @rule(tenant=_tenants, batch=_batches)
    def count(self, tenant: str | None, batch: str | None) -> None:
        """The counts are those of the model."""
        assert isinstance(self.store, SupportsCounts)
        assert self.store.counts(tenant=tenant, batch=batch) == self.model.counts(tenant=tenant, batch=batch)

    @precondition(lambda self: isinstance(self.store, SupportsCounts) and isinstance(self.store, SupportsClaim))
    @rule(job_id=_ids, policy=_policies())
    def position(self, job_id: str, policy: QueuePolicy) -> None:
        """The place of a job in the queue is that of the model."""
        assert isinstance(self.store, SupportsCounts)
        if job_id in self.jobs:
            self.model_now = self.store.now()
            expected = self.model.position(self.model.get(job_id), policy)
            assert self.store.position(self.jobs[job_id], policy) == expected

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
            case "leased":
                return sorted(_by(found, _lease_until, query.due_by), key=_lease_until)
            case "ended":
                found = [job for job in _by(found, _ended_at, query.due_by) if job.expired_at is None]
                return sorted(_by(found, _created_at, query.due_by), key=_created_at)


def _copy(model: MemoryJobStore) -> MemoryJobStore:
    """Return a store of the same jobs, looks included, that can be tried out."""
    tried = MemoryJobStore(clock=model.now)
    tried._jobs = dict(model._jobs)  # noqa: SLF001 - a model and its copy
    tried._looks = dict(model._looks)  # noqa: SLF001 - a model and its copy
    return tried


_NEVER = datetime.max.replace(tzinfo=UTC)


def _ready_at(job: Job) -> datetime:
    return job.ready_at or _NEVER


def _due_at(job: Job) -> datetime:
    return job.due_at or _NEVER


def _lease_until(job: Job) -> datetime:
    return job.lease_until or _NEVER


def _ended_at(job: Job) -> datetime:
    return job.ended_at or _NEVER


def _created_at(job: Job) -> datetime:
    return job.created_at


def _by(jobs: list[Job], when: Callable[[Job], datetime], latest: datetime | None) -> list[Job]:
    return [job for job in jobs if when(job) != _NEVER and (latest is None or when(job) <= latest)]


def _order_of_claims(job: Job) -> tuple[int, datetime, str]:
    return (-job.priority, _ready_at(job), job.id)

"""How much may a tenant submit, and who is refused?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from renderdispatch import (
    AsyncRenderService,
    ConfigurationError,
    QueueLimitError,
    QueuePolicy,
    RenderService,
    Submission,
)
from renderdispatch import TenantPolicy as Tenant
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.protocols import JobQuery, JobStore, Page, walk
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeClock, in_threads
from renderdispatch.testing.world import Remote, WorldStorage

MINUTE = timedelta(minutes=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[JobStore]:
    if request.param == "memory":
        made: JobStore = MemoryJobStore(clock=clock)
    else:
        made = SqlJobStore(f"sqlite:///{tmp_path / 'jobs.db'}", clock=clock)
    yield made
    made.close()


@pytest.fixture
def served(store: JobStore) -> Iterator[Callable[..., RenderService]]:
    """Make a service with a policy, without a worker."""
    services: list[RenderService] = []

    def make(policy: QueuePolicy) -> RenderService:
        services.append(RenderService(store, WorldStorage(), Remote(), worker=False, policy=policy))
        return services[-1]

    yield make
    for service in services:
        service.close()


Served = Callable[[QueuePolicy], RenderService]


def ids_in(store: JobStore) -> set[str]:
    return {job.id for job in walk(store, JobQuery())}


def test_a_tenant_with_a_full_queue_waits(served: Served, store: JobStore) -> None:
    """The refused submit records nothing and leaves no object; others submit as they like."""
    service = served(QueuePolicy(tenant=Tenant(queued=2)))
    acme, other = service.for_tenant("acme"), service.for_tenant("other")
    two = {acme.submit(b"RIFF").id for _ in range(2)}
    with pytest.raises(QueueLimitError, match="2 jobs in the queue") as caught:
        acme.submit(b"RIFF")
    assert caught.value.code == "limit.queued"
    assert caught.value.retry_after > timedelta(0)
    assert ids_in(store) == two
    assert len(list(service._engine.parts.storage.list("tenants/acme/"))) == 2
    other.submit(b"RIFF")
    service.submit(b"RIFF")


def test_a_place_in_the_queue_is_free_again(served: Served) -> None:
    """What was cancelled or claimed waits no longer."""
    acme = served(QueuePolicy(tenant=Tenant(queued=1))).for_tenant("acme")
    acme.submit(b"RIFF").cancel()
    acme.submit(b"RIFF")
    with pytest.raises(QueueLimitError):
        acme.submit(b"RIFF")
    acme.tick()
    acme.submit(b"RIFF")


def test_a_tenant_submits_so_often(served: Served, clock: FakeClock) -> None:
    """Within any minute: after the wait that the refusal names a submit succeeds, and one before it does not."""
    acme = served(QueuePolicy(tenant=Tenant(submits_per_minute=2))).for_tenant("acme")
    acme.submit(b"RIFF").cancel()
    clock.advance(timedelta(seconds=20))
    acme.submit(b"RIFF").cancel()
    with pytest.raises(QueueLimitError, match="2 jobs a minute") as caught:
        acme.submit(b"RIFF")
    assert caught.value.code == "limit.rate"
    assert caught.value.retry_after == timedelta(seconds=40)
    clock.advance(caught.value.retry_after - timedelta(seconds=1))
    with pytest.raises(QueueLimitError):
        acme.submit(b"RIFF")
    clock.advance(timedelta(seconds=1))
    acme.submit(b"RIFF")
    with pytest.raises(QueueLimitError):
        acme.submit(b"RIFF")


def test_a_repeated_key_costs_nothing(served: Served) -> None:
    """A client that repeats its request gets its job, whatever the limits say by then."""
    acme = served(QueuePolicy(tenant=Tenant(queued=1, submits_per_minute=1))).for_tenant("acme")
    first = acme.submit(b"RIFF", idempotency_key="one").id
    assert {acme.submit(b"RIFF", idempotency_key="one").id for _ in range(3)} == {first}


def test_a_retry_counts(served: Served) -> None:
    """It is a submit of its tenant, whether the tenant asks for it or the operator."""
    service = served(QueuePolicy(tenants={"acme": Tenant(submits_per_minute=1)}))
    handle = service.for_tenant("acme").submit(b"RIFF")
    handle.cancel()
    for again in (handle.retry, service.handle(handle.id).retry):
        with pytest.raises(QueueLimitError) as caught:
            again()
        assert caught.value.code == "limit.rate"
    prefix = "tenants/acme/"
    assert len(list(service._engine.parts.storage.list(prefix))) == 1


def test_of_many_the_first_are_taken(served: Served) -> None:
    """`submit_many` says of each row whether it was taken."""
    acme = served(QueuePolicy(tenant=Tenant(queued=3))).for_tenant("acme")
    found = acme.submit_many([Submission(b"RIFF", priority=n) for n in range(5)])
    refused = [isinstance(result, QueueLimitError) for result in found.rows]
    assert refused == [False, False, False, True, True]


def test_own_words_for_a_tenant_win(served: Served) -> None:
    """What its entry leaves out is as for every tenant; jobs without a tenant have no limits."""
    policy = QueuePolicy(tenant=Tenant(queued=1), tenants={"big": Tenant(queued=3), "heavy": Tenant(weight=5)})
    service = served(policy)
    for name, room in (("big", 3), ("heavy", 1), ("small", 1)):
        tenant = service.for_tenant(name)
        for _ in range(room):
            tenant.submit(b"RIFF")
        with pytest.raises(QueueLimitError):
            tenant.submit(b"RIFF")
    for _ in range(5):
        service.submit(b"RIFF")


def test_submits_at_once_never_exceed_a_quota(served: Served, store: JobStore) -> None:
    """Eight threads of two services: as many jobs are taken as there is room for."""
    services = [served(QueuePolicy(tenant=Tenant(queued=5))).for_tenant("acme") for _ in range(2)]
    refused: list[str] = []

    def submit(number: int) -> None:
        for _ in range(3):
            try:
                services[number % 2].submit(b"RIFF")
            except QueueLimitError as error:
                refused.append(error.code)

    in_threads(8, submit)
    assert len(ids_in(store)) == 5
    assert refused == ["limit.queued"] * 19


def test_async_code_is_refused_alike(served: Served) -> None:
    """The async twin raises the same error."""
    acme = AsyncRenderService(served(QueuePolicy(tenant=Tenant(queued=0))).for_tenant("acme"))

    async def submit() -> None:
        with pytest.raises(QueueLimitError):
            await acme.submit(b"RIFF")

    anyio.run(submit)


class Plain:
    """A store with no optional power."""

    def __init__(self) -> None:
        self._real = MemoryJobStore()

    def create(self, job: Job) -> Job:
        return self._real.create(job)

    def get(self, job_id: str) -> Job:
        return self._real.get(job_id)

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        return self._real.replace(job, expected_revision=expected_revision)

    def query(self, query: JobQuery) -> Page[Job]:
        return self._real.query(query)

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        return self._real.delete(job_id, expected_revision=expected_revision)

    def now(self) -> Any:
        return self._real.now()

    def close(self) -> None:
        """Nothing was opened."""


@pytest.mark.parametrize(
    "policy",
    [
        QueuePolicy(tenant=Tenant(queued=1)),
        QueuePolicy(tenants={"acme": Tenant(submits_per_minute=1)}),
        QueuePolicy(tenant=Tenant(weight=2)),
        QueuePolicy(tenants={"acme": Tenant(running=1)}),
        QueuePolicy(running={"default": 1}),
    ],
    ids=repr,
)
def test_a_store_that_cannot_keep_a_policy_is_refused(policy: QueuePolicy) -> None:
    """A promise that would be broken silently is not given."""
    with pytest.raises(ConfigurationError, match="Plain cannot"):
        RenderService(Plain(), WorldStorage(), Remote(), worker=False, policy=policy)
    RenderService(Plain(), WorldStorage(), Remote(), worker=False, policy=QueuePolicy()).close()


@pytest.mark.parametrize(
    "fields", [{"weight": 0}, {"weight": 1e-6}, {"weight": float("nan")}, {"queued": -1}, {"runing": 1}], ids=repr
)
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    """Where it is written, and by name."""
    with pytest.raises(InvalidRequestError, match=next(iter(fields))):
        Tenant(**fields)


def test_a_tenant_that_cannot_be_is_refused() -> None:
    """Its entry would never apply."""
    policy = QueuePolicy(tenants={"no/name": Tenant(queued=1)})
    with pytest.raises(ConfigurationError, match="no/name"):
        RenderService(MemoryJobStore(), WorldStorage(), Remote(), worker=False, policy=policy)

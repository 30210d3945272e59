"""Do eight processes on one PostgreSQL share its jobs fairly, within limits, each job once, also when they are killed?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve

from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import CancelRequested
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, StoredAudio
from renderdispatch.protocols import Claim, JobQuery, walk
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually, make_job, make_request
from tests.support.call_counter import CallCounter
from tests.support.fair_workers import LEASE, storage_at
from tests.support.forked_workers import Workers

_PROCESSES = 8
_TENANTS = {f"tenant-{number:02}": 1 + number % 5 for number in range(50)}
_EACH = 40
_RUNNING = 16
_OF_TENANT = 4
_LIMIT_S = 300


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers("tests.support.fair_workers", life_s=_LIMIT_S - 20)
    yield workers
    workers.close()


@pytest.fixture
def store(postgres_url: str) -> Iterator[SqlJobStore]:
    store = SqlJobStore(postgres_url)
    yield store
    store.close()


def _policy() -> QueuePolicy:
    tenants = {name: TenantPolicy(weight=weight, running=_OF_TENANT) for name, weight in _TENANTS.items()}
    return QueuePolicy(running={"far": _RUNNING}, tenants=tenants)


def _job(store: SqlJobStore, tenant: str, number: int = 0) -> Job:
    now = store.now()
    request = make_request(audio=StoredAudio(key=f"tenants/{tenant}/song.wav", size=4), backend="far")
    return make_job(
        tenant=tenant, request=request, created_at=now, updated_at=now, ready_at=now, id=f"{tenant}-{number:04}"
    )


def _create(store: SqlJobStore, storage_folder: str) -> None:
    storage = storage_at(storage_folder)
    for tenant in _TENANTS:
        storage.put(f"tenants/{tenant}/song.wav", b"RIFF")
        created = store.create_many([_job(store, tenant, number) for number in range(_EACH)])
        assert all(isinstance(job, Job) for job in created)


def _has_started(counter: CallCounter, number: int) -> bool:
    return len(counter.started) >= number


def _check_shares(counter: CallCounter, first: int) -> None:
    """While all tenants have work, those of one weight together get their share, within a tenth."""
    served = Counter(_TENANTS[call.tenant] for call in counter.started[:first])
    total = sum(_TENANTS.values())
    for weight in sorted(set(_TENANTS.values())):
        share = sum(w for w in _TENANTS.values() if w == weight) / total
        assert abs(served[weight] / first - share) <= share / 10, (weight, served)


def _check_starts(store: SqlJobStore, counter: CallCounter) -> None:
    """Every job is complete, each attempt was started at most once, and no start belongs to no attempt."""
    jobs = list(walk(store, JobQuery(limit=1000)))
    assert Counter(job.status for job in jobs) == {JobStatus.COMPLETE: len(_TENANTS) * _EACH}
    called = {attempt.token for job in jobs for attempt in job.attempts if attempt.called}
    tokens = [call.token for call in counter.started]
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) <= called
    assert max(Counter(call.job for call in counter.started).values()) == 1, "a job was dispatched twice"


def _check_limits(counter: CallCounter) -> None:
    assert counter.most["far",] <= _RUNNING
    assert max(most for key, most in counter.most.items() if key[0] == "") <= _OF_TENANT


def _check_units(store: SqlJobStore) -> None:
    """No unit leaked: all of them can be claimed again, and no more."""
    for number in range(2 * _RUNNING):
        store.create(_job(store, f"tenant-{number:02}", 9000))
    claim = Claim(backend="far", local=False, holder="test", lease=LEASE, policy=_policy())
    assert len(store.claim(claim, limit=2 * _RUNNING)) == _RUNNING
    assert store.claim(evolve(claim, nonce="another"), limit=1) == []


@pytest.mark.long
@pytest.mark.timeout(_LIMIT_S)
def test_processes_share_jobs(
    workers: Workers, store: SqlJobStore, postgres_url: str, tmp_path: Path, seed: int
) -> None:
    """Eight processes serve 50 tenants by weight, dispatch each of 2,000 jobs once, and never exceed a limit.

    Once the tenants' shares were seen, workers are killed, one after another, and others take their places.
    """
    folder, chance = str(tmp_path / "objects"), random.Random(seed)
    _create(store, folder)
    counter = CallCounter(storage_at(folder), call_s=0.02)

    def start() -> int:
        policy = _policy().model_dump_json()
        return workers.start(
            "work", store=postgres_url, folder=folder, port=counter.port, backends=["far"], policy=policy
        )

    pids = [start() for _ in range(_PROCESSES)]
    first, total = 1000, len(_TENANTS) * _EACH
    for number in range(50, total + 1, 50):  # as slowly as the machine is, but without a standstill
        eventually(partial(_has_started, counter, number))
        if first < number <= first + 600 and number % 100 == 0:
            workers.kill(pids.pop(chance.randrange(len(pids))))
            pids.append(start())
    eventually(lambda: store.counts()[JobStatus.COMPLETE] == total)
    for pid in pids:
        workers.kill(pid)
    counter.close()
    _check_shares(counter, first)
    _check_starts(store, counter)
    _check_limits(counter)
    _check_units(store)


def test_cancelled_jobs_cost_their_tenant_nothing(store: SqlJobStore) -> None:
    """A tenant that submits 1,000 jobs, cancels them and submits one is served as if it had submitted one."""
    for job in store.create_many([_job(store, "tenant-00", number) for number in range(1000)]):
        assert isinstance(job, Job)
        commit(store, job, CancelRequested())
    for tenant in ("tenant-05", "tenant-10"):  # of the same weight
        store.create_many([_job(store, tenant, number) for number in range(5)])
    store.create(_job(store, "tenant-00", 1000))
    claim = Claim(backend="far", local=False, holder="test", lease=LEASE, policy=_policy())
    first = [job for _ in range(3) for job in store.claim(evolve(claim, nonce=f"{_}"), limit=1)]
    assert {job.tenant for job in first} == {"tenant-00", "tenant-05", "tenant-10"}

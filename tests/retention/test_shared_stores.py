"""Do workers that share a database expire and remove each job once?"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch import JobStatus, RenderService
from renderdispatch.engine.layout import prefix_of
from renderdispatch.jobs import EXPIRY_GRACE
from renderdispatch.protocols import JobQuery
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeClock, in_threads
from renderdispatch.testing.world import Remote, WorldStorage, keep_time

KEEP = {JobStatus.CANCELLED: timedelta(minutes=10)}
JOBS = 40


class CountingStorage(WorldStorage):
    """A storage that counts how often each prefix was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: Counter[str] = Counter()
        self._counting = threading.Lock()

    def delete_prefix(self, prefix: str) -> int:
        """Remove what begins with the prefix."""
        with self._counting:
            self.deleted[prefix] += 1
        return super().delete_prefix(prefix)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Iterator[Callable[[], SqlJobStore]]:
    """Open another store on the same database, as another process does."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if sqlite else request.getfixturevalue("postgres_url")
    stores: list[SqlJobStore] = []

    def open_store() -> SqlJobStore:
        stores.append(SqlJobStore(url, clock=clock))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def test_four_workers_do_each_step_once(opened: Callable[[], SqlJobStore], clock: FakeClock) -> None:
    """One write gives a job up, one delete removes its objects, and its record goes."""
    storage = CountingStorage()
    stores = [opened() for _ in range(4)]
    workers = [RenderService(store, storage, Remote(), worker=False, keep=KEEP) for store in stores]
    for worker in workers:
        keep_time(worker, clock)
    jobs = [workers[0].submit(b"RIFF").job for _ in range(JOBS)]
    ended = {job.id: workers[0].cancel(job.id) for job in jobs}

    def round_of_all() -> None:
        in_threads(4, lambda number: workers[number].tick())

    clock.advance(KEEP[JobStatus.CANCELLED])
    round_of_all()
    expired = {job.id: job for job in stores[1].query(JobQuery(limit=1000)).items}
    assert {job_id: job.revision for job_id, job in expired.items()} == {
        job_id: job.revision + 1 for job_id, job in ended.items()
    }
    assert all(job.expired_at == clock() for job in expired.values())
    assert stores[2].query(JobQuery(order="ended")).items == ()
    assert storage.deleted == {}
    clock.advance(EXPIRY_GRACE)
    round_of_all()
    assert stores[3].query(JobQuery()).items == ()
    assert storage.deleted == {prefix_of(job): 1 for job in jobs}
    assert list(storage.list("")) == []
    for worker in workers:
        worker.close()

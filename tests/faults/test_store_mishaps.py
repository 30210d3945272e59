"""What do applications see of a service whose job store is in trouble?

What the layer of the database does is in `tests/stores`; a policy that fails is in `tests/failover`; a clock that jumps
is in `tests/service/test_ends.py`, and in the histories of this folder.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import JobUnreadableError, StoreUnavailableError
from renderdispatch.messages import JobStatus
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer, eventually, make_ended_job
from renderdispatch.testing.world import PACE
from tests.support.postgres import postgres_server


def _service(store: SqlJobStore) -> RenderService:
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    return RenderService(store, MemoryStorage(), backend, owned=[backend, store])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def service(file: Path) -> Iterator[RenderService]:
    service = _service(SqlJobStore(file))
    yield service
    service.close()


def test_a_poison_record_holds_up_no_other_job(service: RenderService, file: Path) -> None:
    """A record that cannot be read is left alone and said to be unreadable; the jobs beside it are complete."""
    with closing(SqlJobStore(file)) as store:  # nothing runs yet
        idle = RenderService(store, MemoryStorage(), InlineBackend({"fake": FakeRenderer()}), worker=False)
        poisoned = idle.submit(b"RIFF", scene="fake").id
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE renderdispatch_jobs SET document = '{\"poison\": true}' WHERE id = ?", (poisoned,))
    handles = [service.submit(b"RIFF", scene="fake") for _ in range(3)]
    assert [handle.wait(60).status for handle in handles] == [JobStatus.COMPLETE] * 3
    with pytest.raises(JobUnreadableError, match=poisoned):
        service.poll(poisoned)
    assert poisoned not in {job.id for job in service.jobs().items}


def test_a_full_disk_refuses_submits_and_loses_no_job(small_disk: Path) -> None:
    """While the disk is full, a submit raises `StoreUnavailableError`; with room again, all jobs come to their ends."""
    store = SqlJobStore(small_disk / "jobs.db")
    with closing(_service(store)) as service:
        done = service.submit(b"RIFF", scene="fake")
        done.wait(60)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as out, suppress(OSError):
            while True:
                out.write(b"x" * 4096)
        taken = []
        with pytest.raises(StoreUnavailableError, match=r"full|no space"):
            while True:
                store.create(make_ended_job())  # takes the room that the database still has
        with pytest.raises(StoreUnavailableError, match=r"full|no space"):
            while True:
                taken.append(service.submit(b"RIFF", scene="fake", params={"padding": "x" * 1500}))
        assert done.poll().status is JobStatus.COMPLETE, "what is stored can be read"
        filler.unlink()
        taken.append(service.submit(b"RIFF", scene="fake"))
        assert {handle.wait(60).status for handle in taken} == {JobStatus.COMPLETE}


def test_a_server_that_is_away_delays_jobs_and_fails_none() -> None:
    """While the server is away, calls raise `StoreUnavailableError`; afterwards the service goes on by itself."""
    with postgres_server() as server, closing(_service(SqlJobStore(server.url()))) as service:
        before = service.submit(b"RIFF", scene="fake", params={"frames": 20, "frame_s": 0.05})
        server.stop()
        with pytest.raises(StoreUnavailableError):
            before.poll()
        with pytest.raises(StoreUnavailableError):
            service.submit(b"RIFF", scene="fake")
        server.start()

        def ended() -> bool:
            with suppress(StoreUnavailableError):  # from connections that broke
                return before.job.ended
            return False

        eventually(ended)
        assert before.job.status is JobStatus.COMPLETE, before.job.error
        assert len(before.job.attempts) <= 2

"""What becomes of jobs when their PostgreSQL server is killed in mid-flight, and comes back?"""

from __future__ import annotations

from collections import Counter
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from attrs import evolve

from renderdispatch.errors import StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, StoredAudio
from renderdispatch.protocols import JobQuery, walk
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually, make_job, make_request
from tests.support.call_counter import CallCounter
from tests.support.fair_workers import storage_at
from tests.support.forked_workers import Workers
from tests.support.postgres import postgres_server

_JOBS = 60
_LIMIT = 4


def _has_started(counter: CallCounter, number: int) -> bool:
    return len(counter.started) >= number


def _completed(store: SqlJobStore) -> int:
    with suppress(StoreUnavailableError):  # once, from the connection that the server's end broke
        return store.counts()[JobStatus.COMPLETE]
    return 0


def test_a_killed_server_loses_no_job(tmp_path: Path) -> None:
    """After two kills of the server, every job that was created is complete, started once, within the limit."""
    folder = str(tmp_path / "objects")
    storage = storage_at(folder)
    storage.put("tenants/acme/song.wav", b"RIFF")
    request = make_request(audio=StoredAudio(key="tenants/acme/song.wav", size=4), backend="far")
    policy = QueuePolicy(running={"far": _LIMIT}).model_dump_json()
    with (
        closing(CallCounter(storage, call_s=0.02)) as counter,
        postgres_server() as server,
        closing(Workers("tests.support.fair_workers")) as workers,
    ):
        store = SqlJobStore(server.url())
        jobs = [make_job(tenant="acme", request=request, id=f"job-{number:03}") for number in range(_JOBS)]
        now = store.now()  # the server's, which is the clock of all jobs
        stored = store.create_many([evolve(job, created_at=now, updated_at=now, ready_at=now) for job in jobs])
        assert all(isinstance(job, Job) for job in stored)
        for _ in range(2):
            workers.start("work", store=server.url(), folder=folder, port=counter.port, backends=["far"], policy=policy)
        for number in (_JOBS // 3, 2 * _JOBS // 3):
            eventually(partial(_has_started, counter, number))
            server.kill()
            server.start()
        eventually(lambda: _completed(store) == _JOBS)
        ended = list(walk(store, JobQuery()))
        store.close()
    assert {job.id for job in ended} == {job.id for job in jobs}
    called = {attempt.token for job in ended for attempt in job.attempts if attempt.called}
    assert {call.token for call in counter.started} <= called
    assert set(Counter(call.job for call in counter.started).values()) == {1}
    assert counter.most["far",] <= _LIMIT

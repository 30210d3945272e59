"""Does each job end once, wherever the process dies that works on it?

A worker process runs a service on a database that outlives it, and renders on a machine that outlives it too. It kills
itself right before or right after one commit of the job's life. Then another worker goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import asdict, define, evolve, field

from renderdispatch.engine.layout import prefix_of
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import JobQuery
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from tests.support.counted_renders import CountedRenders
from tests.support.forked_workers import Workers
from tests.support.http_services import rendering, stored_behind_http
from tests.support.kill_points import POINTS, When
from tests.support.kill_workers import Errand
from tests.support.ports import ReservedPort

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="forks a process that has threads")

_PLAIN = {"frames": 10, "frame_s": 0.05}
_WRONG = {"frames": 4, "fail": "the scene is wrong"}
_LONG = {"frames": 2000, "frame_s": 0.01}
_ERRANDS: dict[str, dict[str, Any]] = {
    "job-failed": {"params": _WRONG},
    "cleaned-up": {"params": _WRONG},
    "cancel-requested": {"params": _LONG, "cancel": True},
    "cancelled": {"params": _LONG, "cancel": True},
    "expired": {"delete": True},
    "delete": {"delete": True},
}
"""What a job must be like to pass a point."""

_ENDS = dict.fromkeys(POINTS, JobStatus.COMPLETE) | {
    "job-failed": JobStatus.FAILED,
    "cleaned-up": JobStatus.FAILED,
    "cancel-requested": JobStatus.CANCELLED,
    "cancelled": JobStatus.CANCELLED,
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    workers = Workers("tests.support.kill_workers")
    yield workers
    workers.close()


@define
class Deaths:
    """Has workers die, one after another, on a database of their own."""

    workers: Workers
    url: str
    folder: Path
    store: SqlJobStore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = SqlJobStore(self.url)

    def at(self, point: str, when: When) -> str:
        """Have a worker die at a point, and another one go on; return what the job went through."""
        song = self.folder / f"{point}-{when}-{time.monotonic_ns()}.wav"
        song.write_bytes(b"RIFF, a song")
        gpu = CountedRenders(refusals=1 if point == "attempt-failed" else 0)
        before = {job.id for job in self._jobs()}
        with stored_behind_http(self.folder / "objects") as storage, rendering(gpu) as base, ReservedPort() as port:
            errand = Errand(
                store=self.url,
                folder=str(self.folder / "objects"),
                objects_url=_base_of(storage),
                backend_url=base,
                port=port.number,
                song=str(song),
                point=point,
                when=when,
                **{"params": _PLAIN, **_ERRANDS.get(point, {})},
            )
            assert self.workers.wait(self.workers.start("work", **asdict(errand))) == -9, (
                f"no worker died {when} {point}"
            )
            asked = when == "before" or point not in {"cancel-requested", "cancelled"}
            successor = self.workers.start("work", **asdict(evolve(errand, point="", cancel=errand.cancel and asked)))
            try:
                story = self._end(point, when, storage, gpu, before)
            finally:
                self.workers.kill(successor)
                gpu.close()
        return story

    def _jobs(self) -> list[Job]:
        return list(self.store.query(JobQuery()).items)

    def _end(self, point: str, when: When, storage: FsspecStorage, gpu: CountedRenders, before: set[str]) -> str:
        if point in {"expired", "delete"}:
            # what was deleted stays deleted; a client that did not hear of it submits again, under the same key
            eventually(lambda: not [job for job in self._jobs() if job.id not in before])
            assert not list(storage.list("tenants/")), "objects of a deleted job are left"
            return "deleted"
        job = eventually(lambda: [job for job in self._jobs() if job.id not in before and job.ended])[0]
        assert len({job.id for job in self._jobs()} - before) == 1, "a second job was made of one key"
        assert job.status is _ENDS[point], f"{job.status}: {job.error}"
        self._check_starts(job, gpu)
        self._check_objects(job.id, storage)
        return f"{job.status} after {len(job.attempts)} attempts and {len(gpu.started)} starts"

    def _check_starts(self, job: Job, gpu: CountedRenders) -> None:
        """Every start is an attempt's, no attempt was started twice, and one delivered."""
        called = [attempt.token for attempt in job.attempts if attempt.called]
        assert len(set(gpu.started)) == len(gpu.started), "an order was started twice"
        assert set(gpu.started) <= set(called), "a start of no attempt"
        if job.status is JobStatus.COMPLETE:
            eventually(lambda: gpu.delivered == called[-1:])  # the run ends after its report
        assert len(gpu.started) <= 1, f"a render was repeated without need: {job.attempts}"

    def _check_objects(self, job_id: str, storage: FsspecStorage) -> None:
        """What the job delivered is there, and nothing else."""

        def surplus() -> tuple[set[str], set[str]] | None:
            job = self.store.get(job_id)
            if job.audio_clean_up is CleanUp.OWED:
                return None
            expected = set()
            if job.status is JobStatus.COMPLETE and job.attempt is not None and job.artifact is not None:
                assert job.attempt.result_key is not None
                expected = {job.artifact.key, job.attempt.result_key}
            found = {info.key for info in storage.list(prefix_of(job))}
            return (found, expected) if found == expected else None

        eventually(surplus)


def _base_of(storage: FsspecStorage) -> str:
    parts = urlsplit(storage.sign_get("any", expires_in=timedelta(minutes=1)))
    return f"{parts.scheme}://{parts.netloc}"


def _die(workers: Workers, url: str, folder: Path, point: str, when: When) -> None:
    deaths = Deaths(workers, url, folder)
    try:
        print(point, when, deaths.at(point, when))
    finally:
        deaths.store.close()


_WHENS: tuple[When, ...] = ("before", "after")
_SQLITE = [(point, when) for point in POINTS for when in _WHENS]


@pytest.mark.parametrize(("point", "when"), _SQLITE)
def test_a_worker_dies_on_sqlite(workers: Workers, tmp_path: Path, point: str, when: When) -> None:
    """Wherever a worker dies, its job ends once, is rendered once, and leaves what it delivered alone, on SQLite."""
    _die(workers, f"sqlite:///{tmp_path / 'jobs.db'}", tmp_path, point, when)


@pytest.mark.long
@pytest.mark.parametrize(("point", "when"), _SQLITE)
def test_a_worker_dies_on_postgresql(
    workers: Workers, postgres_url: str, tmp_path: Path, point: str, when: When
) -> None:
    """Wherever a worker dies, its job ends once, is rendered once, and leaves what it delivered alone, on PostgreSQL."""
    _die(workers, postgres_url, tmp_path, point, when)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", ["sqlite", "postgresql"])
def test_workers_die_again_and_again(
    workers: Workers, request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    """Twenty deaths at each point, before and after it, end as one does."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}" if place == "sqlite" else request.getfixturevalue("postgres_url")
    for point, when in _SQLITE * 20:
        _die(workers, url, tmp_path, point, when)

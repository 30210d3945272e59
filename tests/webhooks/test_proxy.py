"""Renders whose reports go through networks that break: every job ends rightly, also where nothing gets through."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import JsonValue

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.engine.commit import forget
from renderdispatch.messages import JobStatus, Limits, Output, Stage
from renderdispatch.protocols import RenderBackend, StorageAdapter
from renderdispatch.runner import Pace
from renderdispatch.service import JobHandle, RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import FAKE_SCENE, registered_scenes
from renderdispatch.testing.world import WorldStorage
from tests.support.callbacks import Answer, Request, answering, callback, closing, endless, hanging, saying
from tests.support.far_renders import QUICK, FarBackend, network, receiving
from tests.support.lengths import lengths
from tests.support.ports import free_port
from tests.support.webhooks import NEW_SECRET, SECRET

TINY = Output(width=16, height=16)


@pytest.fixture(autouse=True)
def fake_scene(tmp_path: Path) -> Iterator[None]:
    with registered_scenes(tmp_path / "scenes"):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlJobStore]:
    store = SqlJobStore(f"sqlite:///{tmp_path / 'jobs.db'}")
    yield store
    store.close()


def submit(service: RenderService, **params: JsonValue) -> JobHandle:
    return service.submit(b"RIFF", scene=FAKE_SCENE, params=params, output=TINY, limits=Limits(max_attempts=1))


class ShiftedClock:
    """The time, moved on by a test that will not wait for it."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


# --- a network that drops, delays, doubles and reorders -------------------------------------------


@pytest.mark.parametrize("number", lengths(30, soak=300, timeout_s=900))
def test_renders_survive_a_bad_network(store: SqlJobStore, number: int, seed: int) -> None:
    """Renders over a network that drops, delays, doubles and reorders half of the requests end as they must.

    A quarter of the jobs is cancelled by a process that knows no backend call. Each cancelled one stops computing within
    one heartbeat of the first answer that gets through to it.
    """
    rng = random.Random(seed)
    backend, storage = FarBackend(), WorldStorage()
    port = free_port()
    cancelled: dict[str, float] = {}
    with network(port, random.Random(seed + 1)) as (proxy, seen):
        options = {"secrets": SECRET, "webhook_url": seen.url}
        service = RenderService(store, storage, {"far": backend}, owned=[backend], **options)  # type: ignore[arg-type]
        with service, receiving(service, port):
            wanted: dict[str, str] = {}
            for _ in range(number):
                kind = rng.choices(["complete", "failed", "cancelled"], [60, 15, 25])[0]
                match kind:
                    case "complete":
                        handle = submit(service, frames=rng.randint(1, 30), frame_s=0.01)
                    case "failed":
                        handle = submit(service, frames=10, frame_s=0.01, fail="no such colour")
                    case _:
                        handle = submit(service, frames=100_000, frame_s=0.01)
                wanted[handle.id] = kind
            to_cancel = {job_id: rng.uniform(0, 1) for job_id, kind in wanted.items() if kind == "cancelled"}
            deadline = time.monotonic() + 60 + number
            while True:
                jobs = {job_id: store.get(job_id) for job_id in wanted}
                for job_id, after_s in list(to_cancel.items()):
                    began = jobs[job_id].attempt
                    if began is not None and began.runs and time.monotonic() > backend.last_seen.get(job_id, 1e12):
                        if store.now() > began.claimed_at + timedelta(seconds=after_s):
                            service.cancel(job_id)
                            cancelled[job_id] = time.monotonic()
                            del to_cancel[job_id]
                    elif began is not None and store.now() > began.claimed_at + timedelta(seconds=5):
                        service.cancel(job_id)  # no check-in got through: it is cancelled all the same
                        del to_cancel[job_id]
                if all(job.ended for job in jobs.values()):
                    break
                assert time.monotonic() < deadline, (seed, [j for j in jobs.values() if not j.ended])
                time.sleep(0.02)
            counts = service.webhook_counts()
    lags = [backend.last_seen[i] - backend.stops[i] for i in cancelled if i in backend.stops]
    print(
        json.dumps(
            {
                "seed": seed,
                "jobs": number,
                "network": dict(proxy.done),
                "webhooks": counts,
                "worst_stop_lag_s": round(max(lags, default=0), 3),
            }
        )
    )
    for job_id, kind in wanted.items():
        job = store.get(job_id)
        assert job.status == kind, (seed, job)
        assert len(job.attempts) == 1 and len(job.attempts[0].runs) <= 1, (seed, job)
        match kind:
            case "complete":
                assert job.artifact is not None and job.artifact.bytes == storage.stat(job.artifact.key).size
            case "failed":
                assert job.error is not None and job.error.code == "scene.fake", (seed, job)
            case _:
                assert job.compute_stopped_at is not None, (seed, job)
    assert "webhook.wrong-signature" not in counts and "store.unavailable" not in counts
    assert len(lags) >= len(cancelled) // 2
    assert max(lags, default=0) < QUICK.heartbeat_s, (seed, sorted(lags))


# --- a network that never gets well ---------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
NEVER_WELL: dict[str, Answer] = {
    "redirects": answering(301, location="http://127.0.0.1:1/"),
    "found elsewhere": answering(302, location="/callback"),
    "fails": answering(500),
    "hangs": hanging,
    "drips": endless(HEAD, b"x", every_s=0.05),
    "closes": closing,
    "sends 10 GB": endless(HEAD + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    "says noise": saying(bytes(range(256)) * 100),
    "is another site": answering(200, b"<html>Welcome</html>"),
}


@pytest.mark.parametrize("mute", [False, True], ids=["the backend is asked", "the result object alone"])
def test_jobs_end_without_any_webhook(mute: bool) -> None:
    """With every webhook lost, in whatever way, each job ends rightly once the reconciler looks.

    By what the backend says, or by the result object where the backend says nothing; a failure needs the backend.
    """
    clock, ways = ShiftedClock(), list(NEVER_WELL.values())
    chosen: dict[str, Answer] = {}
    lock = threading.Lock()

    def answer(connection: object, request: Request) -> None:
        job_id = json.loads(request.body)["jobId"]
        with lock:
            way = chosen.setdefault(job_id, ways[len(chosen) % len(ways)])
        way(connection, request)  # type: ignore[arg-type]

    store = MemoryJobStore(clock=clock)
    backend = FarBackend(at_once=16, pace=Pace(check_in_s=0.1, final_s=0.2, backoff_s=0.02), try_s=0.3, mute=mute)
    with callback(answer) as seen:
        service = RenderService(
            store, WorldStorage(), {"far": backend}, secrets=SECRET, webhook_url=seen.url, owned=[backend]
        )
        with service:
            completing = [submit(service) for _ in ways]
            failing = [] if mute else [submit(service, fail="no such colour") for _ in range(3)]
            handles = [*completing, *failing]

            def all_out() -> bool:
                calls = [a.call_id for a in (h.job.attempt for h in handles) if a is not None and a.call_id is not None]
                return len(calls) == len(handles) and not any(backend.computes(call) for call in calls)

            eventually(all_out)
            assert len(chosen) == len(handles)
            assert not any(h.job.ended for h in handles)
            clock.ahead = timedelta(seconds=20)
            service.tick()
            assert [h.wait(20).status for h in completing] == [JobStatus.COMPLETE] * len(completing)
            assert [h.wait(20).status for h in failing] == [JobStatus.FAILED] * len(failing)


def local_service(
    store: SqlJobStore, storage: StorageAdapter, backend: RenderBackend, url: str, *, worker: bool = True
) -> RenderService:
    return RenderService(
        store, storage, {"local": backend}, secrets=SECRET, webhook_url=url, worker=worker, owned=[backend] * worker
    )


@pytest.fixture
def storage(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(tmp_path / "objects")


IN_CI = {"fails", "hangs", "sends 10 GB"}  # each one takes half a minute


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answer, id=name, marks=pytest.mark.long if name in IN_CI else pytest.mark.soak)
        for name, answer in NEVER_WELL.items()
    ],
)
def test_local_renders_end_without_any_webhook(store: SqlJobStore, storage: FsspecStorage, answer: Answer) -> None:
    """A render process whose callback never works hands its outcome over when it leaves, a minute later at most."""
    with callback(answer) as seen:
        backend = LocalGpuBackend(slots=2, report="webhook")
        with local_service(store, storage, backend, seen.url) as service:
            began = time.monotonic()
            completing, failing = submit(service), submit(service, fail="no such colour")
            assert completing.wait(90).status is JobStatus.COMPLETE
            assert failing.wait(90).status is JobStatus.FAILED
            assert time.monotonic() - began < 60
        assert seen.requests


# --- render processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", lengths(3, soak=24, timeout_s=900))
def test_render_processes_report_by_webhook(store: SqlJobStore, storage: FsspecStorage, number: int, seed: int) -> None:
    """`LocalGpuBackend(report="webhook")` brings its jobs to their ends through a bad network."""
    backend = LocalGpuBackend(slots=3, report="webhook")
    port = free_port()
    with (
        network(port, random.Random(seed), trouble=0.3) as (proxy, seen),
        local_service(store, storage, backend, seen.url) as service,
        receiving(service, port),
    ):
        handles = [
            submit(service, frames=20, frame_s=0.02, fail="no such colour" if n % 3 == 2 else None)
            for n in range(number)
        ]
        ended = [handle.wait(30 + 20 * number) for handle in handles]
        counts = service.webhook_counts()
    print(json.dumps({"seed": seed, "network": dict(proxy.done), "webhooks": counts}))
    for n, job in enumerate(ended):
        assert job.status is (JobStatus.FAILED if n % 3 == 2 else JobStatus.COMPLETE), (seed, job)
        assert len(job.attempts) == 1, (seed, job)
    assert counts["applied"] > 0


def test_a_cancel_stops_a_render_process(store: SqlJobStore, storage: FsspecStorage) -> None:
    """A cancel that a process without a worker recorded reaches the render by the answer to its next report."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/webhooks"
    backend = LocalGpuBackend(report="webhook")
    with (
        local_service(store, storage, backend, url) as service,
        local_service(store, storage, LocalGpuBackend(report="webhook"), url, worker=False) as web,
        receiving(web, port),
    ):
        handle = submit(service, frames=100_000, frame_s=0.01)
        eventually(lambda: handle.job.stage is Stage.RENDERING)
        web.cancel(handle.id)
        job = handle.wait(20)
        assert job.status is JobStatus.CANCELLED
        assert job.compute_stopped_at is not None and job.cancel_requested_at is not None
        assert job.compute_stopped_at - job.cancel_requested_at < timedelta(seconds=5)


def test_secrets_rotate_during_a_render(store: SqlJobStore, storage: FsspecStorage) -> None:
    """A render that was dispatched under the old secret completes at a service that has the new one as well."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/webhooks"
    backend = LocalGpuBackend(report="webhook")
    after = RenderService(
        store,
        storage,
        {"local": LocalGpuBackend(report="webhook")},
        secrets=[NEW_SECRET, SECRET],
        webhook_url=url,
        worker=False,
    )
    with local_service(store, storage, backend, url) as before, after:
        with receiving(before, port):
            handle = submit(before, frames=60, frame_s=0.03)
            eventually(lambda: handle.job.stage is Stage.RENDERING)
        with receiving(after, port):
            assert handle.wait(30).status is JobStatus.COMPLETE
        assert after.webhook_counts()["applied"] >= 1
        assert "webhook.wrong-signature" not in after.webhook_counts()


def test_a_whole_chain_logs_no_secret(
    store: SqlJobStore, storage: FsspecStorage, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """From submit to the finished video, neither secrets nor keys are logged, nor written to the database."""
    caplog.set_level(logging.DEBUG)
    port = free_port()
    backend = LocalGpuBackend(report="webhook")
    url = f"http://127.0.0.1:{port}/webhooks?password=do-not-log"
    with local_service(store, storage, backend, url) as service, receiving(service, port):
        keys = service._engine.parts.keys
        assert keys is not None
        handle = submit(service, frames=5)
        job = handle.wait(30)
        assert job.status is JobStatus.COMPLETE
        said = caplog.text + repr(service) + repr(job) + repr(backend)
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("jobs.db*"))
        for secret in (SECRET[6:], keys.secret(job_id=job.id, attempt=1)[6:], "do-not-log"):
            assert secret not in said
            assert secret.encode() not in stored


def test_a_deleted_job_stops_its_render(tmp_path: Path) -> None:
    """A render whose job is gone is told to stop by the answer to its next report."""
    store, backend, port = MemoryJobStore(), FarBackend(), free_port()
    url = f"http://127.0.0.1:{port}/webhooks"
    service = RenderService(store, WorldStorage(), {"far": backend}, secrets=SECRET, webhook_url=url, owned=[backend])
    with service, receiving(service, port):
        handle = submit(service, frames=100_000, frame_s=0.01)
        eventually(lambda: handle.job.stage is Stage.RENDERING)
        (attempt,) = handle.job.attempts
        assert attempt.call_id is not None
        forget(store, handle.job)
        eventually(lambda: not backend.computes(str(attempt.call_id)))

"""Webhooks at real servers: uvicorn, and gunicorn with two processes on one SQLite file."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import CancelRequested, RunEvent
from renderdispatch.engine.rules import stage_progress
from renderdispatch.messages import Callback, JobStatus, RenderOrder, Stage
from renderdispatch.runner import Pace
from renderdispatch.runner.reporting import NotDeliveredError, Reporter
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing.renderers import make_order
from renderdispatch.webhooks import AttemptKeys
from tests.support.callbacks import PeakMemory
from tests.support.lengths import lengths
from tests.support.webhook_servers import SERVERS, Server, serving, store_in
from tests.support.webhooks import SECRET, Run, Signed, dispatched, redispatched

MIB = 1 << 20


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(SERVERS[request.param], tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def store(server: Server) -> Iterator[SqlJobStore]:
    store = store_in(server.home)
    yield store
    store.close()


def post(connection: http.client.HTTPConnection, signed: Signed) -> tuple[int, bytes]:
    headers, body = signed
    connection.request("POST", "/webhooks", body, headers)
    response = connection.getresponse()
    return response.status, response.read()


# --- under load -----------------------------------------------------------------------------------


@frozen
class Told:
    """One request of the storm, and the answers that are right."""

    signed: Signed
    statuses: frozenset[int]
    kind: str


@frozen
class Expected:
    """What a job must look like after the storm, whatever order it came in."""

    status: JobStatus
    stage: Stage
    progress: float


def forge(rng: random.Random, run: Run, other: Run) -> Told:
    """Return a request that says that the run failed, and is a forgery."""
    event = run.failed()
    body = event.model_dump_json().encode()
    headers, _ = run.sign(event)
    wrong_key = Run(run.job_id, run.attempt, run.token, "whsec_" + "c3RyYW5nZXIg" * 3)
    forgeries: dict[str, tuple[Signed, int]] = {
        "another secret": (wrong_key.sign(event), 401),
        "another job's key": (other.sign_body(body), 401),
        "another body": ((headers, body.replace(b"it broke", b"it BROKE")), 401),
        "another attempt": (Run(run.job_id, run.attempt + 1, run.token).sign(event), 401),
        "another id": (({**headers, "webhook-id": headers["webhook-id"] + "0"}, body), 401),
        "an old one": (run.sign(event, now=datetime.now(UTC) - timedelta(minutes=6)), 401),
        "no signature": (({"webhook-id": headers["webhook-id"]}, body), 401),
        "a wrong token": (run.sign_body(body.replace(run.token.encode(), b"0" * 32)), 401),
        "no event": (run.sign_body(b'{"type": "failed"}'), 400),
        "too large": (run.sign_body(body + b" " * 65536), 413),
    }
    kind = rng.choice(list(forgeries))
    signed, status = forgeries[kind]
    return Told(signed, frozenset([status]), f"forged: {kind}")


def storm(store: SqlJobStore, rng: random.Random, events: int) -> tuple[list[Told], dict[str, Expected]]:
    """Make jobs, and at least ``events`` requests about them in random order: a fifth of them are forgeries."""
    told: list[Told] = []
    expected: dict[str, Expected] = {}
    runs: list[Run] = []
    ok = frozenset([200])
    while len(told) * 1.25 < events:
        run = dispatched(store)
        end = rng.choice(["completed", "failed", "cancelled", "running", "retried"])
        if end == "retried":
            first, run = run, redispatched(store, run)
            before: list[RunEvent] = [first.check_in(), first.progress(0.99), first.completed(), first.failed()]
            told += [Told(first.sign(event), ok, "superseded") for event in before]
        if end == "cancelled":
            commit(store, run.job_id, CancelRequested())
        runs.append(run)
        fractions = [rng.random() for _ in range(rng.randint(1, 12))]
        said: list[RunEvent] = [run.check_in(), *(run.progress(f) for f in fractions)]
        match end:
            case "completed":
                said.append(run.completed())
                expected[run.job_id] = Expected(JobStatus.PROCESSING, Stage.FINALIZING, 99.0)
            case "failed" | "cancelled":
                said.append(run.failed())
            case _:
                most = max(stage_progress(Stage.RENDERING, f) for f in fractions)
                expected[run.job_id] = Expected(JobStatus.PROCESSING, Stage.RENDERING, most)
        genuine = [Told(run.sign(event), ok, event.type) for event in said]
        duplicates = [Told(run.sign(event), ok, "duplicate") for event in rng.sample(said, len(said) // 3)]
        replays = [Told(t.signed, ok, "replay") for t in rng.sample(genuine, len(genuine) // 3)]
        told += [*genuine, *duplicates, *replays]
        if end in {"failed", "cancelled"}:
            expected[run.job_id] = Expected(JobStatus(end), Stage.QUEUED, 0.0)  # the end counts, not what came before
    told += [forge(rng, *rng.sample(runs, 2)) for _ in range(len(told) // 4)]
    rng.shuffle(told)
    return told, expected


def let_loose(server: Server, told: list[Told], threads: int = 8) -> tuple[Counter[str], list[float], float]:
    """Send everything over some connections at once; return what went wrong, the latencies and the time; seconds."""
    wrong: Counter[str] = Counter()
    latencies: list[float] = []
    waiting = iter(told)
    lock = threading.Lock()

    def sending(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while True:
            with lock:
                mine = next(waiting, None)
            if mine is None:
                connection.close()
                return
            began = time.monotonic()
            status, _body = post(connection, mine.signed)
            with lock:
                latencies.append(time.monotonic() - began)
                if status not in mine.statuses:
                    wrong[f"{mine.kind}: {status}"] += 1

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sending, range(threads)))
    return wrong, latencies, time.monotonic() - began


@pytest.mark.parametrize("events", lengths(500, soak=5000, timeout_s=600))
def test_a_storm_ends_in_the_right_states(server: Server, store: SqlJobStore, events: int, seed: int) -> None:
    """Events with duplicates, replays and a fifth of forgeries: each answer right, each job as it must be."""
    told, expected = storm(store, random.Random(seed), events)
    wrong, latencies, seconds = let_loose(server, told)
    kinds = Counter("forged" if t.kind.startswith("forged") else t.kind for t in told)
    p99 = sorted(latencies)[int(len(latencies) * 0.99)]
    report: dict[str, Any] = {
        "seed": seed,
        "events": len(told),
        "jobs": len(expected),
        "kinds": dict(kinds),
        "p50_ms": round(1000 * sorted(latencies)[len(latencies) // 2], 1),
        "p99_ms": round(1000 * p99, 1),
        "per_s": round(len(told) / seconds),
    }
    print(json.dumps(report))
    assert len(told) >= events and kinds["forged"] >= events // 5
    assert wrong == {}, report
    for job_id, right in expected.items():
        job = store.get(job_id)
        assert job.status is right.status, (seed, job)
        if not job.ended:
            assert (job.stage, job.progress) == (right.stage, right.progress), (seed, job)


# --- strange requests -----------------------------------------------------------------------------


def test_only_post_is_taken(server: Server) -> None:
    """GET is answered 405."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/webhooks")
    response = connection.getresponse()
    assert (response.status, response.getheader("allow")) == (405, "POST")
    connection.close()


def test_a_body_in_chunks_is_taken(server: Server, store: SqlJobStore) -> None:
    """A sender that does not say how long the body is, is understood all the same."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/webhooks", iter([body[:20], body[20:]]), headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


def pour(server: Server, size: int, *, chunked: bool) -> int:
    """Send a body of ``size`` bytes until the server answers; return the status."""
    block = b"x" * 65536
    piece = b"10000\r\n" + block + b"\r\n" if chunked else block
    length = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"POST /webhooks HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n".encode())
        try:
            for _ in range(size // len(block)):
                connection.sendall(piece)
            if chunked:
                connection.sendall(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough; the answer is there to be read
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
def test_a_large_body_takes_no_memory(server: Server, chunked: bool) -> None:
    """100 MB are answered 413 in constant memory, however they come."""
    assert pour(server, 1 * MIB, chunked=chunked) == 413
    with ExitStack() as stack:
        watched = [stack.enter_context(PeakMemory(pid)) for pid in server.pids]
        assert pour(server, 100 * MIB, chunked=chunked) == 413
    assert sum(memory.grown for memory in watched) < 8 * MIB


# --- with the real sender -------------------------------------------------------------------------


def order_of(run: Run) -> RenderOrder:
    return make_order(MemoryStorage(), job_id=run.job_id, token=run.token, attempt=run.attempt)


def callback_of(server: Server, run: Run) -> Callback:
    return Callback(url=server.url, key=AttemptKeys(run.secret).secret(job_id=run.job_id, attempt=run.attempt))


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_gpu_side_with_a_wrong_clock_gets_through(server: Server, store: SqlJobStore, minutes: int) -> None:
    """The servers date their refusals, and so the sender corrects its clock."""
    run = dispatched(store)
    off = timedelta(minutes=minutes)
    with WebhookSender(order_of(run), callback_of(server, run), now=lambda: datetime.now(UTC) + off) as send:
        assert not send(run.check_in()).stop
    attempt = store.get(run.job_id).attempt
    assert attempt is not None and attempt.runs == (run.run_id,)


def test_the_sender_comes_back_when_the_store_does(server: Server, store: SqlJobStore) -> None:
    """While the store is away the sender hears 503; once it is back, check-in and final report arrive."""
    run = dispatched(store)
    away = server.home / "away"
    away.touch()
    tried, wishes = threading.Event(), list[float]()
    with WebhookSender(order_of(run), callback_of(server, run)) as webhook:

        def send(event: Any) -> Any:
            try:
                return webhook(event)
            except NotDeliveredError as error:
                wishes.append(error.retry_after_s)
                tried.set()
                raise

        pace = Pace(check_in_s=0.1, heartbeat_s=0.1, final_s=20, backoff_s=0.05, backoff_max_s=0.1)
        with Reporter(order_of(run), send, pace=pace) as reporter:
            assert tried.wait(20)
            assert store.get(run.job_id).stage is Stage.DISPATCHED
            away.unlink()
            assert wishes[0] == 5
            assert reporter.finish(reporter.events.completed(run.completed().artifact))
    assert store.get(run.job_id).stage is Stage.FINALIZING


def test_a_cancel_reaches_a_real_sender(server: Server, store: SqlJobStore) -> None:
    """A cancel that another process recorded is the answer to the next report."""
    run = dispatched(store)
    with WebhookSender(order_of(run), callback_of(server, run)) as send:
        assert not send(run.check_in()).stop
        commit(store, run.job_id, CancelRequested())
        assert send(run.progress(0.5)).reason == "cancelled"
        assert SECRET not in repr(send)


# --- what the documents show ----------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "webhooks.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
APPLICATIONS = [code for code in EXAMPLES if "\napp = " in code]


@pytest.mark.parametrize("code", [code for code in EXAMPLES if code not in APPLICATIONS])
def test_examples_run(code: str) -> None:
    """Each example on the page runs by itself."""
    exec(compile(code, "webhooks.md", "exec"), {})


@pytest.mark.parametrize("code", APPLICATIONS, ids=["Flask", "FastAPI", "by hand"])
def test_applications_take_webhooks(code: str, tmp_path: Path) -> None:
    """Each application on the page, served as it stands, takes a webhook at the URL that the page names."""
    (tmp_path / "application.py").write_text(code)
    name = "uvicorn" if "FastAPI" in code else "gunicorn"
    command = [*SERVERS[name][:-1], "application:app"]
    store = store_in(tmp_path)
    with serving(command, tmp_path) as server:
        run = dispatched(store)
        callback = Callback(url=server.url + "/", key=AttemptKeys(SECRET).secret(job_id=run.job_id, attempt=1))
        with WebhookSender(order_of(run), callback) as send:
            assert not send(run.check_in()).stop
        attempt = store.get(run.job_id).attempt
        assert attempt is not None and attempt.runs == (run.run_id,)
    store.close()

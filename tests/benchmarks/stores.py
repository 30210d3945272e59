"""How fast is a job store beside other queues, and does its cost stay the same beside a million jobs?

``python tests/benchmarks/stores.py [--quick] [--only PART ...] [--on pg|sqlite]``. It needs PostgreSQL's programs (Debian: ``postgresql``)
and starts a server of its own with PostgreSQL's default settings, so every commit waits for the disk; SQLite has a
write-ahead log and ``synchronous=NORMAL``. These are the same for all contenders. Peers are installed by pip into an
environment that is removed afterwards; ``queue_peers.py`` calls them.

A cycle is: create, claim and complete jobs whose records have 1 KB, in ten threads or asynchronous tasks on PostgreSQL;
on SQLite in one thread and in four, and the faster of both counts, for each contender. Jobs are created one by one, as
web requests do it; ours are claimed ten at a time and completed one by one, fenced by their revision. Contenders take turns;
medians of five rounds count. The last line of the output is JSON:

``pg_vs_procrastinate``, ``pg_vs_saq``, ``pg_vs_awa``, ``pg_vs_pgqueuer``, ``sqlite_vs_litequeue``, ``sqlite_vs_persist_queue``
    jobs a second, over those of the peer; at least 4, 3, 1.8, 1.2, 1.0 and 2.5.
``limits_cost``
    jobs a second of ten tenants with weights and limits of all kinds, over those without; at least 0.8. It is the lower
    one of ``limits_cost_pg`` and ``limits_cost_sqlite``.

The others end with ``_pg`` or ``_sqlite`` and compare times; they have to be at most 1.5:

``claim_1m_finished_vs_1k``
    a claim of ten jobs beside a million finished jobs, over one beside a thousand.
``claim_100k_elsewhere_vs_0``, ``claim_100k_at_limit_vs_0``
    a claim beside 100,000 ready jobs of another backend, or of a tenant that is at its limit, over one without them:
    of ten jobs, or of none, whichever ratio is larger.
``due_cpu_a_job_20k_vs_1k``
    the CPU of this process and of the server for each job that is due for a look, of 20,000 over of 1,000.
``poll_100k_queued_vs_10``
    a poll of the job that was submitted last.
``list_pending_1m_vs_1k``
    the first ten pending jobs, beside a million finished ones.
``counts_1m_vs_1k``
    the numbers of jobs by status; at most 20.
``submit_many_vs_submit``
    a row of `submit_many` over one `submit`; at most 0.2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # not this file's folder, where modal.py has the name of a client

from renderdispatch import RenderService, StorageKey  # noqa: E402 - the path comes first
from renderdispatch.backends.inline import InlineBackend  # noqa: E402
from renderdispatch.engine.rows import Submission  # noqa: E402
from renderdispatch.jobs import Attempt, Job, evolve  # noqa: E402
from renderdispatch.messages import JobStatus, Stage  # noqa: E402
from renderdispatch.protocols import Claim, JobQuery  # noqa: E402
from renderdispatch.queueing import QueuePolicy, TenantPolicy  # noqa: E402
from renderdispatch.storage.memory import MemoryStorage  # noqa: E402
from renderdispatch.stores.sql import SqlJobStore  # noqa: E402
from renderdispatch.testing import FakeRenderer, make_job  # noqa: E402
from tests.benchmarks import queue_rows  # noqa: E402
from tests.benchmarks.queue_server import Server, postgresql  # noqa: E402

ROUNDS: Final = 5
PACKAGES: Final = ("procrastinate", "saq[postgres]", "awa-pg", "pgqueuer[asyncpg]", "litequeue", "persist-queue")
PEERS: Final = {"pg": ("procrastinate", "saq", "awa", "pgqueuer"), "sqlite": ("litequeue", "persist_queue")}
THREADS: Final = {"pg": (10,), "sqlite": (1, 4)}
BACKEND: Final = "inline"
TENANTS: Final = tuple(f"tenant-{number}" for number in range(10))
LIMITED: Final = QueuePolicy(
    running={BACKEND: 1_000_000},
    tenant=TenantPolicy(running=100_000, running_on={BACKEND: 100_000}, queued=100_000, submits_per_minute=1_000_000),
    tenants={tenant: TenantPolicy(weight=number + 1) for number, tenant in enumerate(TENANTS)},
)


class Sizes(NamedTuple):
    """How many jobs each part takes."""

    cycle: int
    finished: int
    queued: int
    due: int
    claims: int


FULL: Final = Sizes(cycle=3000, finished=1_000_000, queued=100_000, due=20_000, claims=100)
QUICK: Final = FULL._replace(cycle=1000, claims=40)


# --- the contenders -------------------------------------------------------------------------------


class Ours:
    """The store, as its dispatcher uses it."""

    def __init__(self, store: SqlJobStore, threads: int, policy: QueuePolicy | None = None) -> None:
        self._store, self._threads, self._policy = store, threads, policy
        self._pool = ThreadPoolExecutor(threads)

    def cycle(self, jobs: int) -> float:
        """Create, claim and complete so many jobs; return the seconds."""
        tenants: tuple[str | None, ...] = (None,) if self._policy is None else TENANTS
        new = [make_job(backend=BACKEND, tenant=tenants[number % len(tenants)]) for number in range(jobs)]
        parts = [new[number :: self._threads] for number in range(self._threads)]
        began = time.perf_counter()
        list(self._pool.map(self._create, parts))
        done = sum(self._pool.map(self._work, parts))
        seconds = time.perf_counter() - began
        if done != jobs:
            raise SystemExit(f"{jobs} jobs were created, and {done} were claimed")
        return seconds

    def _create(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._store.create(job)

    def _work(self, _: object) -> int:
        done = 0
        while jobs := claim(self._store, self._policy or QueuePolicy()):
            for job in jobs:
                self._store.replace(completed(job), expected_revision=job.revision)
            done += len(jobs)
        return done

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class Peer:
    """Another queue, in a process of its own."""

    def __init__(self, python: Path, name: str, place: str, tasks: int) -> None:
        command = [str(python), str(Path(__file__).with_name("queue_peers.py")), name, place, str(tasks)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._read() != "ready":
            raise SystemExit(f"{name} could not be opened")

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def cycle(self, jobs: int) -> float:
        """Create, claim and complete so many jobs; return the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{jobs}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)


def claim(store: SqlJobStore, policy: QueuePolicy, limit: int = 10) -> list[Job]:
    """Claim jobs as a worker does."""
    wanted = Claim(backend=BACKEND, local=True, holder="worker", lease=timedelta(hours=1), policy=policy)
    return store.claim(wanted, limit=limit)


def completed(job: Job) -> Job:
    """Return a claimed job as it is at its end."""
    now = job.updated_at
    attempt = evolve(job.attempts[-1], ended_at=now, holder=None, lease_until=None)
    return evolve(
        job,
        attempts=(attempt,),
        status=JobStatus.COMPLETE,
        stage=Stage.FINALIZING,
        progress=100.0,
        ready_at=None,
        ended_at=now,
    )


# --- databases ------------------------------------------------------------------------------------


class Databases:
    """Makes empty databases of one kind."""

    def __init__(self, kind: str, server: Server, folder: Path) -> None:
        self.kind, self.server, self._folder = kind, server, folder

    def new(self, name: str) -> str:
        """Make a database; return its URL."""
        if self.kind == "pg":
            return self.server.create(name)
        return f"sqlite:///{self._folder / name}.db"

    def drop(self, name: str) -> None:
        """Delete a database that nothing uses any more."""
        if self.kind == "pg":
            self.server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        for file in self._folder.glob(f"{name}.db*"):
            file.unlink()

    @contextmanager
    def pair(self, fill: Callable[[str, int], None], sizes: tuple[int, int]) -> Iterator[list[str]]:
        """Make a small database and a large one, each filled by ``fill``; yield their URLs."""
        names = [f"rows_{number}" for number in range(2)]
        urls = [self.new(name) for name in names]
        try:
            for url, size in zip(urls, sizes, strict=True):
                fill(url, size)
                queue_rows.settle(url)
            yield urls
        finally:
            for name in names:
                self.drop(name)


def fill_finished(url: str, number: int) -> None:
    """Store so many finished jobs."""
    with closing(SqlJobStore(url)) as store:
        store.create(make_job(backend=BACKEND))
        (job,) = claim(store, QueuePolicy())
        model = store.replace(completed(job), expected_revision=job.revision)
    queue_rows.copy(url, model, number - 1)


def fill_ready(url: str, number: int, *, backend: str = BACKEND, tenant: str | None = None) -> None:
    """Store so many jobs that can be claimed."""
    if number:
        with closing(SqlJobStore(url)) as store:
            model = store.create(make_job(backend=backend, tenant=tenant))
        queue_rows.copy(url, model, number - 1)


AT_LIMIT: Final = QueuePolicy(tenants={"full": TenantPolicy(running=1)})


def fill_at_limit(url: str, number: int) -> None:
    """Store so many jobs that can be claimed, of a tenant that is at its limit."""
    with closing(SqlJobStore(url)) as store:
        store.create(make_job(backend=BACKEND, tenant="full"))
        claim(store, AT_LIMIT)
    fill_ready(url, number, tenant="full")


def fill_due(url: str, number: int) -> None:
    """Store so many jobs that render far away, all of them due for a look."""
    then = datetime.now(UTC) - timedelta(minutes=1)
    attempt = Attempt(
        number=1,
        token="0" * 32,
        backend="modal",
        local=False,
        claimed_at=then,
        called=True,
        call_id="call",
        runs=("run",),
        start_by=then + timedelta(hours=1),
        stage_times={Stage.RESOLVING_AUDIO: then, Stage.RENDERING: then},
    )
    job = make_job(backend="modal", created_at=then, attempts=(attempt,), ready_at=None, stage=Stage.RENDERING)
    with closing(SqlJobStore(url)) as store:
        model = store.create(evolve(job, status=JobStatus.PROCESSING))
    queue_rows.copy(url, model, number - 1)


# --- what is measured -----------------------------------------------------------------------------


def compared(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call each in turn, so that all meet the same machine; return the medians of what they return."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            found[name].append(calls[name]())
    return {name: statistics.median(values) for name, values in found.items()}


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a call that returns its seconds."""

    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def large_over_small(what: str, calls: Sequence[Callable[[], float]], rounds: int) -> float:
    """Compare a small database with a large one."""
    for call in calls:
        call()  # compiles statements
    seconds = compared({"small": calls[0], "large": calls[1]}, rounds)
    print(
        f"  {what}: {seconds['small'] * 1e6:.0f} us beside few, {seconds['large'] * 1e6:.0f} us beside many", flush=True
    )
    return seconds["large"] / seconds["small"]


def cycles(databases: Databases, python: Path | None, sizes: Sizes) -> dict[str, float]:
    """Compare whole cycles with those of the peers, and with limits; without ``python`` with limits alone."""
    kind, rates = databases.kind, dict[str, float]()
    for threads in THREADS[kind]:
        with ExitStack() as stack:
            contenders: dict[str, Ours | Peer] = {}
            for name, policy in (("ours", None), ("limits", LIMITED)):
                store = stack.enter_context(closing(SqlJobStore(databases.new(f"{name}_{threads}"))))
                contenders[name] = stack.enter_context(closing(Ours(store, threads, policy)))
            for name in PEERS[kind] if python is not None else ():
                place = databases.new(f"{name}_{threads}").removeprefix("sqlite:///")
                contenders[name] = stack.enter_context(closing(Peer(python or Path(), name, place, threads)))
            for contender in contenders.values():
                contender.cycle(100)
            calls = {name: _cycle_of(contender, sizes.cycle) for name, contender in contenders.items()}
            for name, seconds in compared(calls, ROUNDS).items():
                print(f"  {threads:2} at once, {name}: {sizes.cycle / seconds:.0f} jobs/s", flush=True)
                rates[name] = max(rates.get(name, 0.0), sizes.cycle / seconds)
    ratios = {
        f"{kind}_vs_{name}": rates["ours"] / rate for name, rate in rates.items() if name not in {"ours", "limits"}
    }
    return {**ratios, f"limits_cost_{kind}": rates["limits"] / rates["ours"]}


def _cycle_of(contender: Ours | Peer, jobs: int) -> Callable[[], float]:
    return partial(contender.cycle, jobs)


def beside_finished(databases: Databases, sizes: Sizes) -> dict[str, float]:
    """Measure what must not grow with the number of finished jobs."""
    with databases.pair(fill_finished, (1000, sizes.finished)) as urls, ExitStack() as stack:
        stores = [stack.enter_context(closing(SqlJobStore(url))) for url in urls]
        pending = JobQuery(statuses=frozenset({JobStatus.PENDING}), limit=10)
        for store in stores:
            for _ in range(10 * (sizes.claims + 1)):
                store.create(make_job(backend=BACKEND))
        listed = [timed(partial(store.query, pending)) for store in stores]
        counted = [timed(store.counts) for store in stores]
        claimed = [timed(partial(claim, store, QueuePolicy())) for store in stores]
        return {
            "list_pending_1m_vs_1k": large_over_small("the first ten pending jobs", listed, sizes.claims),
            "counts_1m_vs_1k": large_over_small("counts", counted, sizes.claims),
            "claim_1m_finished_vs_1k": large_over_small("a claim, by finished jobs", claimed, sizes.claims),
        }


def beside_ready(
    databases: Databases, sizes: Sizes, what: str, fill: Callable[[str, int], None], policy: QueuePolicy
) -> float:
    """Compare claims beside no and beside many ready jobs that cannot be claimed."""
    with databases.pair(fill, (0, sizes.queued)) as urls, ExitStack() as stack:
        stores = [stack.enter_context(closing(SqlJobStore(url))) for url in urls]
        for store in stores:
            for _ in range(10 * (sizes.claims + 1)):
                store.create(make_job(backend=BACKEND, tenant="free"))

        def turn(store: SqlJobStore) -> list[Job]:
            return claim(store, policy) if store.claimable([BACKEND], machine=None) else []

        calls = [timed(partial(turn, store)) for store in stores]
        full = large_over_small(f"a claim of ten, {what}", calls, sizes.claims)
        assert not any(turn(store) for store in stores)
        return max(full, large_over_small(f"a claim of none, {what}", calls, sizes.claims))


def due(databases: Databases, sizes: Sizes) -> float:
    """Compare the CPU that a look takes."""
    shift = timedelta(0)

    def clock() -> datetime:
        return datetime.now(UTC) + shift

    with databases.pair(fill_due, (1000, sizes.due)) as urls, ExitStack() as stack:
        stores = [stack.enter_context(closing(SqlJobStore(url, clock=clock))) for url in urls]

        def look(store: SqlJobStore) -> float:
            nonlocal shift
            shift += timedelta(minutes=1)  # all are due again
            began = time.process_time() + (databases.server.cpu_s() if databases.kind == "pg" else 0.0)
            seen = 0
            while jobs := store.claim_looks(limit=100):
                seen += len(jobs)
            return (time.process_time() + (databases.server.cpu_s() if databases.kind == "pg" else 0.0) - began) / seen

        calls = [partial(look, store) for store in stores]
        return large_over_small("CPU of a look", calls, ROUNDS)


def queued(databases: Databases, sizes: Sizes) -> float:
    """Compare polls of a queued job."""
    with databases.pair(fill_ready, (10, sizes.queued)) as urls, ExitStack() as stack:
        calls = []
        for url in urls:
            service = stack.enter_context(serving(url))
            job_id = service.submit(StorageKey("song.wav")).id
            calls.append(timed(partial(service.poll, job_id)))
        return large_over_small("a poll", calls, 5 * sizes.claims)


def many(databases: Databases, sizes: Sizes) -> float:
    """Compare a row of `submit_many` with a submit."""
    rows = [Submission(StorageKey("song.wav"))] * 1000
    with serving(databases.new("many")) as service:

        def each() -> None:
            for row in rows[: 5 * sizes.claims]:
                service.submit(row.audio)

        def together() -> None:
            service.submit_many(rows)

        each()
        together()
        seconds = compared({"each": timed(each), "together": timed(together)}, ROUNDS)
    one, row = seconds["each"] / len(rows[: 5 * sizes.claims]), seconds["together"] / len(rows)
    print(f"  submit: {one * 1e6:.0f} us; a row of submit_many: {row * 1e6:.0f} us", flush=True)
    return row / one


@contextmanager
def serving(url: str) -> Iterator[RenderService]:
    """Have a service without a worker, whose storage holds a song."""
    storage, backend = MemoryStorage(), InlineBackend({"bars": FakeRenderer()})
    storage.put("song.wav", bytes(44))
    store = SqlJobStore(url)
    with RenderService(store, storage, backend, worker=False, owned=[backend, store]) as service:
        yield service


def elsewhere(databases: Databases, sizes: Sizes) -> float:
    """Compare claims beside ready jobs of another backend."""

    def fill(url: str, number: int) -> None:
        fill_ready(url, number, backend="elsewhere")

    return beside_ready(databases, sizes, "by jobs of another backend", fill, QueuePolicy())


def at_limit(databases: Databases, sizes: Sizes) -> float:
    """Compare claims beside ready jobs of a tenant that is at its limit."""
    return beside_ready(databases, sizes, "by jobs of a tenant at its limit", fill_at_limit, AT_LIMIT)


FLAT: Final[Mapping[str, Callable[[Databases, Sizes], float]]] = {
    "claim_100k_elsewhere_vs_0": elsewhere,
    "claim_100k_at_limit_vs_0": at_limit,
    "due_cpu_a_job_20k_vs_1k": due,
    "poll_100k_queued_vs_10": queued,
    "submit_many_vs_submit": many,
}


def install(folder: Path) -> Path:
    """Install the peers; return their Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def measured(databases: Databases, sizes: Sizes, python: Path | None, parts: Sequence[str]) -> dict[str, float]:
    """Measure the wanted parts on one kind of database."""
    kind, found = databases.kind, dict[str, float]()
    print({"pg": "PostgreSQL", "sqlite": "SQLite"}[kind], flush=True)
    if {"cycles", "limits"} & set(parts):
        found |= cycles(databases, python, sizes)
    if "finished" in parts:
        found |= {f"{name}_{kind}": ratio for name, ratio in beside_finished(databases, sizes).items()}
    return found | {f"{name}_{kind}": measure(databases, sizes) for name, measure in FLAT.items() if name in parts}


def main() -> None:
    """Measure and print."""
    parts = ("cycles", "finished", *FLAT)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer jobs a round, some minutes")
    parser.add_argument("--only", nargs="+", choices=(*parts, "limits"), default=parts, help="these parts")
    parser.add_argument("--on", nargs="+", choices=tuple(PEERS), default=tuple(PEERS), help="these databases")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    ratios: dict[str, float] = {}
    with TemporaryDirectory() as name, postgresql() as server:
        python = install(Path(name) / "peers") if "cycles" in options.only else None
        for kind in options.on:
            ratios |= measured(Databases(kind, server, Path(name)), sizes, python, options.only)
    if costs := [ratio for name, ratio in ratios.items() if name.startswith("limits_cost")]:
        ratios["limits_cost"] = min(costs)
    print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()

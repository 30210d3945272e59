"""What does an idle worker cost, and how often do many workers look at each live job?

``python tests/benchmarks/idle.py [--quick]``. An idle worker has a process of its own, whose CPU time and statements are
counted for 30 s after it has settled: on SQLite, and on a PostgreSQL that is started for it. The looks are counted by a
backend far away that holds live jobs: first one worker looks after them, then ten share a store. The last line is JSON:

- ``sqlite_cpu_percent``, ``postgresql_cpu_percent``: of one core, of an idle worker.
- ``sqlite_statements_s``, ``postgresql_statements_s``: statements a second, of an idle worker.
- ``looks_a_job_1``, ``looks_a_job_10``: how often each live job was asked about in the same time, by all workers.
- ``looks_10_vs_1``: their ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(_ROOT)  # not this file's folder, where modal.py has the name of a client

from renderdispatch import RenderService  # noqa: E402 - the path comes first
from renderdispatch.backends.inline import InlineBackend  # noqa: E402
from renderdispatch.protocols import BackendCall, CallState  # noqa: E402
from renderdispatch.storage.memory import MemoryStorage  # noqa: E402
from renderdispatch.stores.sql import SqlJobStore  # noqa: E402
from renderdispatch.testing import FakeRenderer  # noqa: E402
from renderdispatch.testing.world import Remote, WorldStorage  # noqa: E402
from tests.benchmarks.queue_server import postgresql  # noqa: E402
from tests.support.statements import executed_statements  # noqa: E402

_SETTLE_S = 3.0


# --- an idle worker


def idle(url: str, seconds: float) -> None:
    """Be an idle worker; print the CPU percent of a core, and the statements a second."""
    backend, store = InlineBackend({"blocks": FakeRenderer()}), SqlJobStore(url)
    with (
        executed_statements() as statements,
        RenderService(store, MemoryStorage(), backend, owned=[backend, store]),
    ):
        time.sleep(_SETTLE_S)
        statements.clear()
        cpu_s, began = time.process_time(), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        print(json.dumps([100 * (time.process_time() - cpu_s) / passed, len(statements) / passed]))


def measure_idle(url: str, seconds: float) -> tuple[float, float]:
    """Return the CPU percent and the statements a second of an idle worker in a process of its own."""
    command = [sys.executable, __file__, "--idle", url, "--seconds", str(seconds)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT)
    cpu_percent, statements_s = json.loads(ran.stdout.splitlines()[-1])
    return cpu_percent, statements_s


# --- live jobs


class Asked(Remote):
    """A backend far away, whose calls run for ever; it counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.polls = 0

    def poll(self, call: BackendCall) -> CallState:
        """Count the question."""
        self.polls += 1
        return super().poll(call)


def looks(url: str, jobs: int, workers: int, seconds: float) -> float:
    """Return how often each live job was asked about, by so many workers together."""
    with ExitStack() as stack:
        backend, storage = Asked(), WorldStorage()
        store = SqlJobStore(url)
        stack.callback(store.close)
        filler = RenderService(store, storage, backend, worker=False)
        for _ in range(jobs):
            filler.submit(b"RIFF", scene="bars")
        while len(backend.orders) < jobs:
            filler.tick()
        filler.close()
        before = backend.polls
        for number in range(workers):
            own = SqlJobStore(url)
            service = RenderService(own, storage, backend, machine=f"machine{number}", owned=[own])
            stack.enter_context(service)
            service.start()
        time.sleep(seconds)
        return (backend.polls - before) / jobs


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs and shorter times: for a look at the figures")
    parser.add_argument("--idle", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=30.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.idle:
        idle(options.idle, options.seconds)
        return
    seconds, jobs = (10.0, 300) if options.quick else (30.0, 20_000)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, postgresql() as server:
        urls = {"sqlite": f"sqlite:///{folder}/idle.db", "postgresql": server.create("idle")}
        for name, url in urls.items():
            figures[f"{name}_cpu_percent"], figures[f"{name}_statements_s"] = measure_idle(url, seconds)
        one = looks(f"sqlite:///{folder}/one.db", jobs, 1, 1.5 * seconds + 15)
        ten = looks(f"sqlite:///{folder}/ten.db", jobs, 10, 1.5 * seconds + 15)
    figures |= {"looks_a_job_1": one, "looks_a_job_10": ten, "looks_10_vs_1": ten / one}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

"""How much CPU time does a trivial job cost, from its submit to its end?

``python tests/benchmarks/job.py [--quick] [--against SRC]``. A service with SQLite, a storage in memory and an inline
backend renders one job after another, each a frame of nothing. ``SRC`` is the ``src`` folder of another checkout: both
are measured in turn, each time in a process of its own. The last line is JSON: ``cpu_ms`` and ``wall_ms`` of a job, and
with ``--against`` ``cpu_vs_other``, the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from renderdispatch import RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.jobs import Job
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer

_ROUNDS = 5


class Ending(SqlJobStore):
    """A store that releases ``ended`` when it writes that a job has ended: waiting for it costs nothing."""

    ended = threading.Semaphore(0)

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store the job."""
        stored = super().replace(job, expected_revision=expected_revision)
        if stored.ended:
            self.ended.release()
        return stored


def measure(jobs: int) -> tuple[float, float]:
    """Return the milliseconds of CPU time and of time that a job takes."""
    with tempfile.TemporaryDirectory() as folder:
        store, backend = Ending(f"sqlite:///{folder}/jobs.db"), InlineBackend({"blocks": FakeRenderer(frames=1)})
        with RenderService(store, MemoryStorage(), backend, owned=[backend, store]) as service:
            for number in range(jobs + 3):
                if number == 3:  # the first ones import what they need
                    cpu_s, began = time.process_time(), time.perf_counter()
                service.submit(b"RIFF", scene="blocks")
                assert store.ended.acquire(timeout=60)
            cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - began
    return 1000 * cpu_s / jobs, 1000 * took_s / jobs


def measured(jobs: int, source: str | None) -> list[float]:
    """Measure in a process of its own, with the package of a source folder."""
    environment = os.environ | ({} if source is None else {"PYTHONPATH": source})
    command = [sys.executable, __file__, "--jobs", str(jobs), "--once"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    figures: list[float] = json.loads(ran.stdout)
    return figures


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs")
    parser.add_argument("--against", type=Path, metavar="SRC", help="the src folder of another checkout")
    parser.add_argument("--jobs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    jobs = options.jobs or (30 if options.quick else 200)
    if options.once:
        print(json.dumps(measure(jobs)))
        return
    ours, ratios = [], []
    for _ in range(_ROUNDS):
        ours.append(measured(jobs, None))
        if options.against is not None:
            ratios.append(ours[-1][0] / measured(jobs, str(options.against.resolve()))[0])
    columns = zip(("cpu_ms", "wall_ms"), zip(*ours, strict=True), strict=True)
    figures = {name: statistics.median(column) for name, column in columns}
    if ratios:
        figures["cpu_vs_other"] = statistics.median(ratios)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()

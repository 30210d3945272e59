"""What does a trivial job cost, from submit to its end?

``python tests/benchmarks/jobs.py [--quick]``. Jobs of a renderer that does nothing pass through a service with an inline
backend, one after the other, on SQLite in a temporary folder. Each round is a process of its own, in turn with one that
runs the commit ``0f1ce8f``, before job stores shared their queue among machines; without a clone of the repository that
holds this commit there is nothing to compare with. Medians of five rounds. The last line is JSON:

``cpu_ms``
    milliseconds of CPU that a job takes, in all threads.
``statements``
    how many statements a job takes; at most 14.
``cpu_vs_before``, ``statements_vs_before``
    these, over those of the earlier commit; ``cpu_vs_before`` is at most 0.55.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_BEFORE: Final = "0f1ce8f"
_ROUNDS: Final = 5


def run(jobs: int) -> dict[str, float]:
    """Run so many jobs; return what one of them took."""
    from renderdispatch import RenderService
    from renderdispatch.backends.inline import InlineBackend
    from renderdispatch.storage.memory import MemoryStorage
    from renderdispatch.stores.sql import SqlJobStore
    from renderdispatch.testing import FakeRenderer
    from tests.support.statements import executed_statements

    with tempfile.TemporaryDirectory() as folder, executed_statements() as seen:
        store = SqlJobStore(f"sqlite:///{folder}/jobs.db")
        backend = InlineBackend({"nothing": FakeRenderer(frames=1, frame_s=0.0)})
        with RenderService(store, MemoryStorage(), backend, owned=[backend, store]) as service:
            for _ in range(5):
                service.submit(b"RIFF", scene="nothing").wait(timeout=60)
            seen.clear()
            began = time.process_time()
            for _ in range(jobs):
                service.submit(b"RIFF", scene="nothing").wait(timeout=60)
            return {"cpu_ms": (time.process_time() - began) / jobs * 1000, "statements": len(seen) / jobs}


def measure(source: Path, jobs: int) -> dict[str, float]:
    """Run jobs in a process that imports the package from ``source``."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, __file__, "--run", str(jobs)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def unpack_before(folder: Path) -> bool:
    """Put the sources of the earlier commit into a folder; return False if this clone does not have it."""
    archive = folder / "before.tar"
    command = ["git", "-C", str(_ROOT), "archive", "--output", str(archive), _BEFORE, "src"]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        return False
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer jobs")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[0] = str(_ROOT)  # not this file's folder, where modal.py has the name of a client
    if options.run:
        print(json.dumps(run(options.run)))
        return
    jobs = 40 if options.quick else 200
    with tempfile.TemporaryDirectory() as name:
        sources = {"now": _ROOT / "src"}
        if unpack_before(Path(name)):
            sources["before"] = Path(name) / "src"
        else:
            print(f"this is no clone with the commit {_BEFORE}: nothing to compare with")
        rounds = [{label: measure(source, jobs) for label, source in sources.items()} for _ in range(_ROUNDS)]
    found = {
        label: {key: statistics.median(each[label][key] for each in rounds) for key in ("cpu_ms", "statements")}
        for label in sources
    }
    for label, costs in found.items():
        print(f"{label:>6}: {costs['cpu_ms']:.1f} ms of CPU and {costs['statements']:.1f} statements a job")
    ratios = dict(found["now"])
    if "before" in found:
        ratios |= {
            f"{key.removesuffix('_ms')}_vs_before": value / found["before"][key] for key, value in ratios.items()
        }
    print(json.dumps({key: round(value, 2) for key, value in ratios.items()}))


if __name__ == "__main__":
    main()

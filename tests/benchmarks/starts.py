"""What does it cost to start: the command line, the service, a local render?

``python tests/benchmarks/starts.py [--quick]``. Everything is the CPU time of fresh processes and their children, with
warm bytecode. Each round runs every contender once. The last line is JSON, medians of each round's own ratio:

- ``help_vs_click``: `renderdispatch --help` over ``import click``, which every such command line needs.
- ``import_vs_pydantic``: ``from renderdispatch import RenderService`` over one pydantic model.
- ``local_job_vs_imports``: a render of a second of sound, 64x64, from the start of the program to the saved result, over
  one Python that imports the libraries that it needs: pydantic, SQLAlchemy, NumPy and PyAV.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

_JOB = """
import sys
from pathlib import Path
from renderdispatch import Output, local
with local(sys.argv[1]) as service:
    job = service.submit(Path(sys.argv[2]), output=Output(width=64, height=64)).wait(60)
assert job.status == "complete"
"""
_MODEL = "from pydantic import BaseModel\nclass Model(BaseModel):\n    field: int"
_PAIRS = {
    "help_vs_click": ("help", "click"),
    "import_vs_pydantic": ("service", "pydantic"),
    "local_job_vs_imports": ("job", "imports"),
}


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is measured, by name."""
    song = folder / "song.wav"
    with wave.open(str(song), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(bytes(2 * 44100))
    return {
        "help": [sys.executable, "-m", "renderdispatch.cli", "--help"],
        "click": [sys.executable, "-c", "import click"],
        "service": [sys.executable, "-c", "from renderdispatch import RenderService"],
        "pydantic": [sys.executable, "-c", _MODEL],
        "job": [sys.executable, "-c", _JOB, str(folder / "home"), str(song)],
        "imports": [sys.executable, "-c", f"{_MODEL}\nimport sqlalchemy.orm, numpy, av"],
    }


def cpu_s(command: list[str], environment: dict[str, str]) -> float:
    """Run a command; return the CPU time of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every contender, round by round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        contenders = commands(folder)
        for command in contenders.values():  # writes the bytecode
            cpu_s(command, environment)
        measured: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for contender, command in contenders.items():
                measured[contender].append(cpu_s(command, environment))
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 seconds instead of a minute")
    measured = measure(rounds=3 if parser.parse_args().quick else 21)
    for name, seconds in measured.items():
        print(f"{name:9} {statistics.median(seconds) * 1e3:5.0f} ms of CPU")
    ratios = {
        ratio: round(statistics.median(a / b for a, b in zip(measured[above], measured[below], strict=True)), 2)
        for ratio, (above, below) in _PAIRS.items()
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()

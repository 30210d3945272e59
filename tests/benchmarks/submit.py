"""How long does `submit` of a path take, next to one SQLite commit?

``python tests/benchmarks/submit.py [--quick]``. A worker runs on this machine, so the 50 MB file is recorded, not read.
The yardstick is the commit of one row of 1 KB, with the pragmas of `SqlJobStore`, in the same folder. The two take
turns, so that both meet the same disk. The last line is JSON: ``submit_vs_commit``, the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
import wave
from pathlib import Path

from renderdispatch import RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer, eventually

_SONG_BYTES = 50_000_000


def compose(path: Path) -> None:
    """Write 50 MB of silence as a wav."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes(bytes(_SONG_BYTES))


def connect(path: Path) -> sqlite3.Connection:
    """Open a database as `SqlJobStore` does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, document TEXT)")
    return connection


def measure(rounds: int) -> tuple[float, float]:
    """Return the median seconds of a submit and of a commit."""
    submits, commits = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        song = folder / "song.wav"
        compose(song)
        connection = connect(folder / "yardstick.db")
        store = SqlJobStore(f"sqlite:///{folder / 'jobs.db'}")
        backend = InlineBackend({"blocks": FakeRenderer(frames=10**9, frame_s=0.1)})
        with RenderService(store, FsspecStorage(folder / "objects"), backend, owned=[backend, store]) as service:
            first = service.submit(song, scene="blocks")  # keeps the worker busy, as in real life
            eventually(lambda: first.job.progress >= 35)
            for _ in range(rounds):
                began = time.perf_counter()
                connection.execute("INSERT INTO rows (document) VALUES (?)", ("x" * 1024,))
                committed = time.perf_counter()
                service.submit(song, scene="blocks")
                commits.append(committed - began)
                submits.append(time.perf_counter() - committed)
        connection.close()
    return statistics.median(submits), statistics.median(commits)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds; for tests")
    rounds = 200 if parser.parse_args().quick else 2000
    submit_s, commit_s = measure(rounds)
    print(f"submit of a 50 MB wav by path: p50 {submit_s * 1e6:.0f} us")
    print(f"one SQLite commit of 1 KB:     p50 {commit_s * 1e6:.0f} us")
    print(json.dumps({"submit_vs_commit": round(submit_s / commit_s, 2)}))


if __name__ == "__main__":
    main()

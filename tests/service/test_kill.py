"""Does a job survive the process that renders it, and does nothing else of that process?"""

from __future__ import annotations

import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import NamedTuple

import pytest

from renderdispatch.messages import JobStatus
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from tests.support.lengths import lengths

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

_WORKER = Path(__file__).with_name("kill_worker.py")
_LEASE_S = 3.0
_GONE_S = 2.0
_FINISH_S = 8.0
"""After the lease. Both limits are those of an idle machine, where a service is up within a second; see `slowness`."""


def compose(path: Path, seconds: float) -> None:
    """Write a wav of two tones, 8 kHz mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        samples = (
            int(12000 * math.sin(2 * math.pi * 220 * n / 8000) * (0.5 + 0.5 * math.sin(n / 2000)))
            for n in range(int(8000 * seconds))
        )
        file.writeframes(b"".join(struct.pack("<h", s) for s in samples))


def marked(mark: str) -> list[int]:
    """Return the living processes whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def start(home: Path, database: str, song: Path, mark: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RENDERDISPATCH_TEST_MARK": mark}
    command = [sys.executable, str(_WORKER), str(home), database, str(song), "120"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def next_line(process: subprocess.Popen[str], word: str) -> str:
    """Wait for the next line of a process, which begins with the word; return the rest of it."""
    assert process.stdout is not None
    said, _, rest = process.stdout.readline().strip().partition(" ")
    assert said == word
    return rest


class Times(NamedTuple):
    """Seconds of one kill."""

    gone: float
    """Until no process of the killed service was left."""
    up: float
    """Until the next process's service was up: an interpreter's start and imports, as the machine allows."""
    complete: float
    """From then until the job was complete."""

    allowed: float
    """How long that may take on a machine as busy as this one."""


def kill_and_finish(home: Path, database: str, song: Path, delay_s: float) -> Times:
    """Kill a service in mid-render, and have another finish the job."""
    mark = f"kill-{os.getpid()}-{time.monotonic_ns()}"
    store = SqlJobStore(database)
    begun = time.monotonic()
    with start(home, database, song, mark) as worker:
        next_line(worker, "UP")
        gone_within = _GONE_S * slowness(time.monotonic() - begun)
        job_id = next_line(worker, "ID")
        eventually(lambda: store.get(job_id).progress >= 35)
        time.sleep(delay_s)
        assert not store.get(job_id).ended, "the render was over before it was killed: make it longer"
        worker.kill()
    killed = looked = time.monotonic()
    while left := marked(mark):  # what a look sees was there when the look began, however long it takes
        assert looked - killed < gone_within, f"{len(left)} processes are left after {looked - killed:.2f} s; {load()}"
        time.sleep(0.01)
        looked = time.monotonic()
    gone_s = time.monotonic() - killed
    began = time.monotonic()
    with start(home, database, song, mark) as successor:
        try:
            next_line(successor, "UP")
            up = time.monotonic()
            eventually(lambda: store.get(job_id).ended)
            complete_s = time.monotonic() - up
            job = store.get(job_id)
            assert job.status is JobStatus.COMPLETE, job.error
            assert [a.error and a.error.code for a in job.attempts] == ["worker.lost", None]
            assert successor.wait(20) == 0
        finally:
            successor.send_signal(signal.SIGKILL)
    eventually(lambda: not marked(mark))
    store.close()
    return Times(gone_s, up - began, complete_s, _LEASE_S + _FINISH_S * slowness(up - began))


def slowness(up_s: float) -> float:
    """Return how many times as long as on an idle machine everything takes, by how long a service took to be up.

    A render that was left behind would take as many times as long to end, so the limits prove the same everywhere.
    """
    return max(1.0, up_s)


def load() -> str:
    """Say how busy the machine is."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


@pytest.mark.parametrize("times", lengths(2, soak=20, timeout_s=1800))
def test_killed(tmp_path: Path, times: int, seed: int) -> None:
    """A process killed in mid-render leaves no render; a new one, once up, finishes the job soon after its lease."""
    kill(tmp_path, f"sqlite:///{tmp_path / 'jobs.db'}", times, seed)


@pytest.mark.parametrize("times", lengths(1, soak=20, timeout_s=1800))
def test_killed_on_postgresql(tmp_path: Path, postgres_url: str, times: int, seed: int) -> None:
    """What holds of jobs on SQLite holds of those on PostgreSQL."""
    kill(tmp_path, postgres_url, times, seed)


def kill(folder: Path, database: str, times: int, seed: int) -> None:
    """Kill services, one after another, and check how soon others finished their jobs."""
    chance = random.Random(seed)
    took = []
    for number in range(times):
        song = folder / f"song-{number}.wav"
        compose(song, 24.0)
        took.append(kill_and_finish(folder, database, song, chance.uniform(0, 0.3)))
    gone, up, complete, _ = ([round(seconds, 2) for seconds in sorted(each)] for each in zip(*took, strict=True))
    print("gone after", gone, "up again after", up, "complete after", complete, load())
    print(f"gone after at most {gone[-1]:.2f} s, complete at most {complete[-1]:.2f} s after the service was up again")
    late = [times for times in took if times.complete >= times.allowed]
    assert not late, f"{late}; {load()}"

"""Is nothing drawn twice but what was being drawn, however often a render is killed?"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import Completed, Pieces, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder
from renderdispatch.testing.renderers import FAKE_SEGMENTS

SEGMENTS = 240
SEGMENT_S = 0.01

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalGpuBackend]:
    backend = LocalGpuBackend(gpus=())
    with registered_scenes(tmp_path / "scenes"):
        yield backend
    backend.close()


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def drawn(log: Path) -> list[tuple[int, int]]:
    """Return the index and the process of each segment that began to be drawn."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def kill_one(log: Path, seen: int, *, runner: bool, after_s: float) -> None:
    """Kill the render process, or the runner above its supervisor, so long after it has drawn something new."""
    eventually(lambda: len(drawn(log)) > seen)
    time.sleep(after_s)
    victim = drawn(log)[-1][1]
    with contextlib.suppress(OSError):  # it has ended
        above = parent_of(parent_of(victim)) if runner else victim
        if above > 1:  # else it has ended, and its parent too
            os.kill(above, signal.SIGKILL)


def end_of(backend: LocalGpuBackend, call: BackendCall) -> CallState:
    eventually(lambda: backend.poll(call).status is CallStatus.ENDED)
    return backend.poll(call)


def test_a_render_that_is_killed_goes_on_where_it_was(backend: LocalGpuBackend, tmp_path: Path, seed: int) -> None:
    """Killed at random moments, render process or runner, it draws each segment once, but for one a kill."""
    chance, log, storage = random.Random(seed), tmp_path / "log", FsspecStorage(tmp_path / "objects")

    def order() -> RenderOrder:
        params = {"segments": SEGMENTS, "segment_s": SEGMENT_S, "log": str(log)}
        pieces = Pieces(slots=256, folder=str(tmp_path / "objects/pieces"))
        return make_order(storage, scene=FAKE_SEGMENTS, params=params, pieces=pieces)

    killed = 0
    for number in range(2):
        seen = len(drawn(log))
        if seen >= SEGMENTS - 1:
            break
        call = backend.start(order(), on_event=Recorder())
        kill_one(log, seen, runner=number % 2 == 1, after_s=chance.uniform(0, 3 * SEGMENT_S))
        killed += not isinstance(end_of(backend, call).outcome, Completed)
    last = order()
    outcome = end_of(backend, backend.start(last, on_event=Recorder())).outcome
    assert isinstance(outcome, Completed)
    with storage.open(last.video.key) as file:
        assert file.read().decode() == "".join(f"segment {index} of {SEGMENTS}\n" for index in range(SEGMENTS))
    assert killed > 0
    assert len(drawn(log)) <= SEGMENTS + killed

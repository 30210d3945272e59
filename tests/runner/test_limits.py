"""Is a render that hangs, or takes too much memory, ended wherever it runs, with all that it started?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import Completed, Failed, FaultDomain, Limits, Output, RenderOrder
from renderdispatch.protocols import CallStatus
from renderdispatch.runner import Pace, RunnerIO, SupervisedRender, run_order
from renderdispatch.runner.container import carry_out
from renderdispatch.runner.memory import MemoryWatch, most_bytes, resident
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder
from tests.support.containers import marked, read, serve_objects
from tests.support.greedy_scenes import GREEDY

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

SOON: Final = timedelta(seconds=0.5)
HANG: Final[dict[str, Any]] = {"params": {"hang": True}, "stall_timeout": SOON}
EAT: Final[dict[str, Any]] = {"params": {"eat_mib": 1024}, "memory_mib": 256}


@pytest.fixture(autouse=True)
def scenes(tmp_path: Path) -> Iterator[None]:
    with registered_scenes(tmp_path / "scenes", GREEDY):
        yield


def apart(tmp_path: Path, order: dict[str, Any]) -> Completed | Failed:
    """Carry out an order here, its render in a process of its own."""
    io = RunnerIO(send=Recorder(), render=SupervisedRender(), pace=Pace(final_s=1))
    return run_order(make_order(FsspecStorage(tmp_path / "objects"), scene="greedy", **order), io=io)


def locally(tmp_path: Path, order: dict[str, Any]) -> Completed | Failed:
    """Carry out an order by the local backend, whose renders are forks."""
    backend, heard = LocalGpuBackend(), Recorder()
    made = make_order(FsspecStorage(tmp_path / "objects"), scene="greedy", **order)
    call = backend.start(made, on_event=heard)
    eventually(lambda: backend.poll(call).status is CallStatus.ENDED)
    backend.close()
    assert heard.final is not None
    return heard.final


def in_a_container(tmp_path: Path, order: dict[str, Any]) -> Completed | Failed:
    """Carry out an order as a function in somebody's cloud does."""
    with serve_objects() as store:
        return read(carry_out(store.order(scene="greedy", **order).model_dump_json()))


@linux
@pytest.mark.parametrize("way", [apart, locally, in_a_container])
@pytest.mark.parametrize(("order", "code"), [(HANG, "render.stalled"), (EAT, "memory.full")], ids=["hangs", "eats"])
def test_a_render_is_ended(
    way: Callable[[Path, dict[str, Any]], Completed | Failed],
    order: dict[str, Any],
    code: str,
    scratch: Path,
    tmp_path: Path,
) -> None:
    """It fails with a code, as the infrastructure's fault; no process that it started is left, and no file."""
    outcome = way(tmp_path, order)
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.error.fault) == (code, FaultDomain.INFRASTRUCTURE), outcome.error.message
    assert marked(str(scratch)) == []
    assert list(scratch.iterdir()) == []


@linux
@pytest.mark.parametrize(
    "params",
    [{"eat_mib": 96}, {"reserve_mib": 4096}, {"eat_mib": 96, "forks": 4}],
    ids=["less", "address space", "forks"],
)
def test_what_does_not_count_as_memory(params: dict[str, int], tmp_path: Path) -> None:
    """A render may take what its limit says; address space alone does not count, and what forks share counts once."""
    outcome = apart(tmp_path, {"params": params, "memory_mib": 256})
    assert isinstance(outcome, Completed), outcome


@linux
def test_the_memory_of_forks_counts(tmp_path: Path) -> None:
    """A render has no more memory because it takes it in several processes."""
    outcome = apart(tmp_path, {"params": {"eat_mib": 64, "forks": 4, "own_mib": 80}, "memory_mib": 256})
    assert isinstance(outcome, Failed) and outcome.error.code == "memory.full"
    assert "256 MiB" in outcome.error.message and "memory_mib" in outcome.error.message


def test_no_render_may_take_the_whole_machine() -> None:
    """The limit is what the job says, and never all that its machine has."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert most_bytes(64 << 20) == 64 << 20
    assert 0 < most_bytes(1 << 60) < machine


def test_the_largest_preset_is_within_the_default() -> None:
    """A frame of 8192 x 8192 pixels is 256 MiB, and more than a hundred bytes a pixel are allowed for."""
    largest = Output(width=8192, height=8192)
    assert Limits().memory_mib << 20 > 128 * largest.width * largest.height


def test_a_table_of_processes() -> None:
    """Where there is no ``/proc``, a process and its descendants are found in the table that ``ps`` prints."""
    table = "  1 0 900\n 10 1 100\n 11 10 20\n 12 11 3\n 13 1 5000\n"
    assert resident(10, table) == 123 << 10
    assert resident(99, table) == 0


@linux
def test_memory_is_measured_now_and_then() -> None:
    """A look at the tables of the system takes time; there are at most four a second."""
    watch = MemoryWatch(os.getpid(), 1 << 20, now=0)
    assert watch.is_over(now=0)
    assert not watch.is_over(now=0.2)
    assert watch.is_over(now=0.3)
    assert not MemoryWatch(os.getpid(), 1 << 50, now=0).is_over(now=0)


@linux
@pytest.mark.long
def test_a_scene_that_always_hangs(scratch: Path, tmp_path: Path) -> None:
    """Its job is tried once more, and then fails by the scene's fault."""
    storage, backend = FsspecStorage(tmp_path / "objects"), LocalGpuBackend()
    with RenderService(MemoryJobStore(), storage, backend) as service:
        limits = Limits(stall_timeout=SOON, max_attempts=9)
        job = service.submit(b"a song", scene="greedy", params={"hang": True}, limits=limits).wait(timeout=60)
    assert [a.error and (a.error.code, a.error.fault) for a in job.attempts] == [
        ("render.stalled", FaultDomain.INFRASTRUCTURE),
        ("render.stalled", FaultDomain.SCENE),
    ]
    assert job.error == job.attempts[-1].error
    assert marked(str(scratch)) == []


def test_orders_of_older_services(tmp_path: Path) -> None:
    """An order without these limits has the usual ones."""
    order = make_order(FsspecStorage(tmp_path / "objects")).model_dump(by_alias=True)
    order.pop("memoryMib")
    order.pop("stallTimeout")
    read = RenderOrder.model_validate(order)
    assert (read.memory_mib, read.stall_timeout) == (Limits().memory_mib, None)

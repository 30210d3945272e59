"""Does each GPU of a machine have one render at a time, whichever service started it, and is none idle meanwhile?"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.backends.executor import Capacity, Executor, ThreadTask
from renderdispatch.backends.gpu_slots import LOCKS, GpuSlots, shared_folder
from renderdispatch.backends.local import COUNTED_AGAIN_S, FoundGpus, LocalGpuBackend
from renderdispatch.errors import BackendError, ConfigurationError, InvalidRequestError
from renderdispatch.messages import CheckedIn, Completed, Failed, FaultDomain, JobError, JobStatus, Limits
from renderdispatch.protocols import BackendCall, CallState, CallStatus, RenderBackend
from renderdispatch.runner.process import SupervisedProcess
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import RenderBackendContract, eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import OrderFactory, Recorder
from renderdispatch.testing.renderers import FAKE_SEGMENTS
from tests.support import ROOT
from tests.support.gpu_scenes import SEEN, open_files, seen
from tests.support.gpu_service import SCENES, service, simulated

needs_proc = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="looks locks and processes up in /proc")


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the locks, for this test alone."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setenv(LOCKS, str(folder))
    return folder


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where scenes say what they see; other processes find the scenes."""
    folder = tmp_path / "told"
    folder.mkdir()
    monkeypatch.setenv(SEEN, str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(tmp_path / "objects")


@contextlib.contextmanager
def local(gpus: int, **options: Any) -> Iterator[LocalGpuBackend]:
    backend = LocalGpuBackend(gpus=simulated(gpus), renderers=SCENES, **options)
    try:
        yield backend
    finally:
        backend.close()


def begun(told: Path, scene: str = "OnGpu") -> list[dict[str, Any]]:
    return [line for line in seen(told) if line["event"] == "begin" and line["scene"] == scene]


def held(locks: Path) -> set[str]:
    """Return the locks that are taken, without disturbing those that take them."""
    names = {str(file.stat().st_ino): file.name for file in locks.iterdir()}
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inodes = [fields[5].rpartition(":")[2] for fields in lines if fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"]]
    return {names[inode] for inode in inodes if inode in names}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


@pytest.mark.long
class TestOnGpus(RenderBackendContract):
    """The local backend, with scenes that draw on one of two GPUs."""

    @pytest.fixture
    def backend(self) -> Iterator[LocalGpuBackend]:
        with local(2) as backend:
            yield backend

    @pytest.fixture
    def order(self, storage: FsspecStorage, tmp_path: Path) -> Iterator[OrderFactory]:
        drawn = {"fake": SCENES["OnGpu"], FAKE_SEGMENTS: "tests.support.gpu_scenes:SegmentsOnGpu"}
        with registered_scenes(tmp_path / "scenes", drawn):
            yield lambda **params: make_order(storage, params=params)

    def test_slots(self, backend: RenderBackend, order: OrderFactory) -> None:
        """Two render, as many wait as the backend says; one more is refused, and accepted when a call has ended."""
        assert backend.slots == 5
        long = {"frames": 600, "frame_s": 0.05}
        calls = [backend.start(order(**long), on_event=Recorder()) for _ in range(5)]
        with pytest.raises(BackendError) as refused:
            backend.start(order(), on_event=Recorder())
        assert (refused.value.code, refused.value.retryable) == ("backend.busy", True)
        for call in calls[1:]:
            backend.cancel(call)
            self.finish(backend, call)
        assert isinstance(self.finish(backend, backend.start(order(), on_event=Recorder())).outcome, Completed)
        backend.cancel(calls[0])


# --- several services ---------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*arguments: Path, gpus: int = 2) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.support.gpu_service", *map(str, arguments), str(gpus)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "UP\n"
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            finally:
                process.kill()


class LockWatch(threading.Thread):
    """Notes when each lock is taken and freed."""

    def __init__(self, locks: Path) -> None:
        super().__init__(daemon=True)
        self._locks = locks
        self._done = threading.Event()
        self.stretches: dict[str, list[list[float]]] = {}

    def run(self) -> None:
        before: set[str] = set()
        while not self._done.wait(0.02):
            now, taken = time.monotonic(), held(self._locks)
            for name in taken - before:
                self.stretches.setdefault(name, []).append([now, now])
            for name in taken:
                self.stretches[name][-1][1] = now
            before = taken

    def stop(self) -> None:
        self._done.set()
        self.join()


@needs_proc
@pytest.mark.parametrize("stores", [pytest.param(1, marks=pytest.mark.long), 2])
def test_two_services_share_two_gpus(stores: int, told: Path, locks: Path, tmp_path: Path) -> None:
    """Eight jobs of two services: one render a GPU at a time, and no GPU is idle while a job waits."""
    databases = [tmp_path / f"jobs-{number % stores}.db" for number in range(2)]
    objects = tmp_path / "objects"
    clients = [service(database, objects, 2, worker=False) for database in databases]
    watch = LockWatch(locks)
    with running(databases[0], objects), running(databases[1], objects):
        watch.start()
        params = {"frames": 10, "frame_s": 0.03}
        handles = [clients[n % 2].submit(b"a song", scene="OnGpu", params=params) for n in range(8)]
        jobs = [handle.wait(timeout=60) for handle in handles]
        watch.stop()
    for client in clients:
        client.close()
    assert [(job.status, len(job.attempts)) for job in jobs] == [(JobStatus.COMPLETE, 1)] * 8
    lines = seen(told)
    assert len(lines) == 16
    for gpu in ("GPU-simulated-0", "GPU-simulated-1"):
        own = sorted((line for line in lines if line["gpu"] == gpu), key=lambda line: line["at"])
        assert [line["event"] for line in own] == ["begin", "end"] * (len(own) // 2)
        assert all(begin["pid"] == end["pid"] for begin, end in zip(own[::2], own[1::2], strict=True))
    assert all(line["cuda"] == line["gpu"] for line in lines if line["event"] == "begin")
    assert len(watch.stretches) == 2
    last = max(stretch[0] for stretches in watch.stretches.values() for stretch in stretches)
    idle = [
        min(begin, last) - end
        for stretches in watch.stretches.values()
        for (_, end), (begin, _) in itertools.pairwise([*stretches, [last, last]])
    ]
    print("seconds between two renders of a GPU:", [round(seconds, 2) for seconds in sorted(idle)])
    assert max(idle) < 1.0


@needs_proc
def test_a_service_that_is_killed_frees_its_gpu_when_its_render_is_gone(
    told: Path, locks: Path, tmp_path: Path
) -> None:
    """The slot stays taken while the render of the killed service draws, and is free right after."""
    database, objects = tmp_path / "jobs.db", tmp_path / "objects"
    with running(database, objects, gpus=1) as process:
        client = service(database, objects, 1, worker=False)
        client.submit(b"a song", scene="OnGpu", params={"until": str(tmp_path / "never"), "deaf": True})
        eventually(lambda: begun(told))
        client.close()
        (render,) = begun(told)
        process.kill()
        assert freed_when_gone(locks, render["pid"])


def freed_when_gone(locks: Path, render: int) -> bool:
    """Wait until no lock is held; return whether the render was gone by then."""
    deadline = time.monotonic() + 20
    while held(locks):
        assert time.monotonic() < deadline, "the slot was never freed"
        time.sleep(0.001)
    return not alive(render)


@needs_proc
@pytest.mark.parametrize("victim", ["supervisor of the runner", "runner", "supervisor of the render", "render"])
def test_a_crash_frees_the_slot(victim: str, told: Path, locks: Path, storage: FsspecStorage, tmp_path: Path) -> None:
    """Whichever process of a render is killed, its GPU is free once the render is gone, and is taken again."""
    with local(1) as backend:
        params = {"until": str(tmp_path / "never"), "deaf": True}
        backend.start(make_order(storage, scene="OnGpu", params=params), on_event=Recorder())
        eventually(lambda: begun(told))
        (render,) = begun(told)
        os.kill(chain_of(render["pid"])[victim], signal.SIGKILL)
        assert freed_when_gone(locks, render["pid"])
        heard = Recorder()
        backend.start(make_order(storage, scene="OnGpu"), on_event=heard)
        assert isinstance(eventually(lambda: heard.final), Completed)


def chain_of(render: int) -> dict[str, int]:
    """Return the processes of a render by their roles."""
    chain = {"render": render}
    for role in ("supervisor of the render", "runner", "supervisor of the runner"):
        render = int(Path(f"/proc/{render}/stat").read_text().rpartition(")")[2].split()[1])
        chain[role] = render
    return chain


def test_a_job_whose_runner_is_killed_is_tried_again(told: Path, tmp_path: Path) -> None:
    """The next attempt gets the GPU of the one that crashed."""
    release = tmp_path / "release"
    with service(tmp_path / "jobs.db", tmp_path / "objects", 1) as ours:
        handle = ours.submit(b"a song", scene="OnGpu", params={"until": str(release)})
        eventually(lambda: begun(told))
        os.kill(chain_of(begun(told)[0]["pid"])["runner"], signal.SIGKILL)
        release.touch()
        job = handle.wait(timeout=60)
    assert [attempt.error and attempt.error.code for attempt in job.attempts] == ["runner.died", None]
    assert [line["gpu"] for line in begun(told)] == ["GPU-simulated-0"] * 2


# --- one service ----------------------------------------------------------------------------------------


def test_scenes_that_need_no_gpu_do_not_wait_for_one(told: Path, storage: FsspecStorage) -> None:
    """While another service has the GPUs, orders for them wait; one for the CPU behind them renders, on no GPU."""
    heard = [Recorder() for _ in range(3)]
    with local(1) as backend:
        with GpuSlots(backend.gpus).taken():
            waiting = [backend.start(make_order(storage, scene="OnGpu"), on_event=heard[n]) for n in range(2)]
            backend.start(make_order(storage, scene="OnCpu"), on_event=heard[2])
            assert isinstance(eventually(lambda: heard[2].final), Completed)
            assert [backend.poll(call).status for call in waiting] == [CallStatus.RUNNING] * 2
            assert begun(told) == []
        eventually(lambda: isinstance(heard[0].final, Completed) and isinstance(heard[1].final, Completed))
    for call, recorder in zip(waiting, heard, strict=False):
        first = recorder.events[0]
        assert isinstance(first, CheckedIn) and first.call_id == call.id
    assert [line["gpu"] for line in begun(told, "OnCpu")] == [None]


def test_jobs_that_need_no_gpu_pass_those_that_wait_for_one(told: Path, tmp_path: Path) -> None:
    """A service whose GPU another one uses renders what needs none, and costs the others no attempt."""
    with service(tmp_path / "jobs.db", tmp_path / "objects", 1) as ours:
        with GpuSlots(tuple(simulated(1))).taken():
            waiting = [ours.submit(b"a song", scene="OnGpu") for _ in range(2)]
            assert ours.submit(b"a song", scene="OnCpu").wait(timeout=30).status is JobStatus.COMPLETE
            assert begun(told) == []
        jobs = [handle.wait(timeout=30) for handle in waiting]
    assert [(job.status, len(job.attempts)) for job in jobs] == [(JobStatus.COMPLETE, 1)] * 2


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_an_order_that_waits_for_a_gpu_ends_at_once(end: str, told: Path, storage: FsspecStorage) -> None:
    """It is given up, and its outcome handed over, without having begun."""
    heard = Recorder()
    with local(1) as backend, GpuSlots(backend.gpus).taken():
        call = backend.start(make_order(storage, scene="OnGpu"), on_event=heard)
        backend.cancel(call) if end == "cancel" else backend.close()
        assert backend.poll(call).status is CallStatus.ENDED
        final = eventually(lambda: heard.final)
    assert isinstance(final, Failed) and final.error.code == "render.stopped"
    assert begun(told) == []


def test_a_job_that_waits_for_a_gpu_is_cancelled(told: Path, tmp_path: Path) -> None:
    """Its cancel is confirmed though nothing of it ever ran."""
    with service(tmp_path / "jobs.db", tmp_path / "objects", 1) as ours, GpuSlots(tuple(simulated(1))).taken():
        handle = ours.submit(b"a song", scene="OnGpu")
        eventually(lambda: handle.job.stage == "dispatched")
        handle.cancel()
        job = handle.wait(timeout=30)
    assert (job.status, begun(told)) == (JobStatus.CANCELLED, [])
    assert job.compute_stopped_at is not None


def test_a_job_that_waits_for_a_gpu_goes_back_when_its_worker_closes(told: Path, tmp_path: Path) -> None:
    """The next worker renders it; it lost no attempt."""
    with GpuSlots(tuple(simulated(1))).taken(), service(tmp_path / "jobs.db", tmp_path / "objects", 1) as ours:
        handle = ours.submit(b"a song", scene="OnGpu", limits=Limits(max_attempts=1))
        eventually(lambda: handle.job.stage == "dispatched")
    assert begun(told) == []
    with service(tmp_path / "jobs.db", tmp_path / "objects", 1) as later:
        job = later.handle(handle.id).wait(timeout=30)
    assert [attempt.error and attempt.error.code for attempt in job.attempts] == ["worker.closed", None]
    assert job.status is JobStatus.COMPLETE


def test_an_order_that_is_to_start_soon_waits_only_for_a_moment(storage: FsspecStorage) -> None:
    """Then it is handed back, early enough for another machine."""
    heard = Recorder()
    with local(1) as backend, GpuSlots(backend.gpus).taken():
        soon = datetime.now(UTC) + timedelta(seconds=1)
        call = backend.start(make_order(storage, scene="OnGpu", start_by=soon), on_event=heard)
        final = eventually(lambda: heard.final)
        eventually(lambda: backend.poll(call).status is CallStatus.ENDED)  # soon after its last event
    assert isinstance(final, Failed) and final.error.code == "backend.waited"


def test_it_says_how_many_orders_it_takes(storage: FsspecStorage, told: Path, tmp_path: Path) -> None:
    """As many as slots are free and two more; but none more while no slot is."""
    never = {"until": str(tmp_path / "never")}
    with local(2) as backend, GpuSlots(backend.gpus[:1]).taken():
        assert backend.slots == 1 + 1 + 2
        backend.start(make_order(storage, scene="OnGpu", params=never), on_event=Recorder())
        assert backend.slots == 1 + 1 + 2  # it renders, and the CPU is free
        backend.start(make_order(storage, scene="OnCpu", params=never), on_event=Recorder())
        assert backend.slots == 2
        backend.start(make_order(storage, scene="OnCpu", params=never), on_event=Recorder())
        assert backend.slots == 3  # one waits


def test_a_number_of_slots_is_that_of_all_renders(storage: FsspecStorage, told: Path, tmp_path: Path) -> None:
    """`slots=2` with three GPUs: two render, whichever kind they are of."""
    never = {"until": str(tmp_path / "never")}
    with local(3, slots=2) as backend:
        for scene in ("OnGpu", "OnCpu", "OnGpu", "OnCpu"):
            backend.start(make_order(storage, scene=scene, params=never), on_event=Recorder())
        with pytest.raises(BackendError):
            backend.start(make_order(storage, scene="OnGpu"), on_event=Recorder())
        eventually(lambda: begun(told) and begun(told, "OnCpu"))
        assert (backend.slots, len(begun(told)), len(begun(told, "OnCpu"))) == (4, 1, 1)


@pytest.mark.parametrize(("slots", "expected"), [("auto", 1), (3, 3)])
def test_without_gpus_all_scenes_share_the_slots(slots: Any, expected: int, storage: FsspecStorage, told: Path) -> None:
    """A scene that draws on a GPU that is not counted takes a slot as any other, and no order waits."""
    with local(0, slots=slots) as backend:
        assert (backend.slots, backend.gpus) == (expected, ())
        params = {"frames": 600, "frame_s": 0.05}
        for _ in range(expected):
            backend.start(make_order(storage, scene="OnGpu", params=params), on_event=Recorder())
        with pytest.raises(BackendError):
            backend.start(make_order(storage, scene="OnGpu"), on_event=Recorder())


def test_a_gpu_that_does_not_exist_is_refused() -> None:
    """At once, with those that there are."""
    with pytest.raises(ConfigurationError, match="no GPU 'GPU-none'"):
        LocalGpuBackend(gpus=["GPU-none"])


def test_a_lock_that_cannot_be_used_is_reported(locks: Path, storage: FsspecStorage) -> None:
    """A render does not wait for a slot that can never be taken: its error names the file and the way out."""
    (locks / "renderdispatch-gpu-GPU-simulated-0.lock").symlink_to(locks / "elsewhere")
    with local(1) as backend, pytest.raises(BackendError, match=LOCKS) as refused:
        backend.start(make_order(storage, scene="OnGpu"), on_event=Recorder())
    assert (refused.value.code, refused.value.retryable) == ("backend.gpu-locks", False)
    assert not (locks / "elsewhere").exists()


def test_where_one_lock_cannot_be_used_another_gpu_is_taken(locks: Path) -> None:
    """A file that another user spoiled costs one GPU, and no job."""
    slots = GpuSlots(tuple(simulated(2)))
    (locks / "renderdispatch-gpu-GPU-simulated-0.lock").symlink_to(locks / "elsewhere")
    assert slots.free() == 1
    with slots.taken() as taken:
        assert taken.gpu.uuid == "GPU-simulated-1"
        assert slots.free() == 0
        with pytest.raises(BackendError) as refused, slots.taken():
            pass
    assert refused.value.code == "backend.busy"


def test_gpus_are_counted_again_while_there_are_none() -> None:
    """A service may start before the driver; once there are GPUs, they are the service's for its life."""
    now, there = [0.0], [(), (), tuple(simulated(1)), ()]
    found = FoundGpus(lambda: there.pop(0), clock=lambda: now[0])
    assert [len(found.get().gpus) for _ in range(3)] == [0, 0, 0]
    assert len(there) == 3
    now[0] += COUNTED_AGAIN_S
    assert found.get().gpus == ()
    now[0] += COUNTED_AGAIN_S
    slots = found.get()
    now[0] += 2 * COUNTED_AGAIN_S
    assert (found.get(), len(slots.gpus)) == (slots, 1)


# --- the locks ------------------------------------------------------------------------------------------


def test_a_render_has_no_hold_of_its_slot(told: Path, locks: Path, storage: FsspecStorage) -> None:
    """Its supervisors hold the lock; what the scene starts, and what outlives it, cannot keep it."""
    heard = Recorder()
    with local(1) as backend:
        backend.start(make_order(storage, scene="OnGpu"), on_event=heard)
        eventually(lambda: heard.final)
    (render,) = begun(told)
    assert render["files"]
    assert not any(file.startswith(str(locks)) for file in render["files"])


@needs_proc
def test_a_render_process_that_is_no_fork_has_no_hold_either(locks: Path) -> None:
    """Its supervisor alone holds what it was to hold, and lets go of it at its end."""
    with GpuSlots(tuple(simulated(1))).taken() as slot:
        process = SupervisedProcess("renderdispatch.runner.child", hold=slot.descriptor)
    lock = str(next(locks.iterdir()))
    assert lock in open_files(process.pid)

    def children() -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]

    eventually(lambda: children() and lock not in open_files(children()[0]))
    assert held(locks)
    process.end()
    assert not held(locks)


def test_a_slot_is_taken_once(locks: Path) -> None:
    """Of two services, each gets another GPU; then all are taken, until one is free again."""
    ours, theirs = GpuSlots(tuple(simulated(2))), GpuSlots(tuple(simulated(2)))
    assert (ours.free(), theirs.free()) == (2, 2)
    with ours.taken() as first:
        assert theirs.free() == 1
        with theirs.taken() as second:
            assert {first.gpu.uuid, second.gpu.uuid} == {"GPU-simulated-0", "GPU-simulated-1"}
            assert ours.free() == 0
            with pytest.raises(BackendError) as refused, ours.taken():
                pass
            assert refused.value.code == "backend.busy"
        assert ours.free() == 1
    assert theirs.free() == 2


def test_all_users_can_take_a_lock(locks: Path) -> None:
    """Whatever the umask of the service that came first, others can open the file, and none can write to it."""
    before = os.umask(0o077)
    try:
        with GpuSlots(tuple(simulated(1))).taken():
            pass
    finally:
        os.umask(before)
    (file,) = locks.iterdir()
    assert file.stat().st_mode & 0o777 == 0o444
    assert file.read_bytes() == b""


def test_a_lock_file_that_was_removed_is_made_anew(locks: Path) -> None:
    """A cleaner of old files may remove a free one; then the new one counts."""
    slots = GpuSlots(tuple(simulated(1)))
    assert slots.free() == 1
    (file,) = locks.iterdir()
    file.unlink()
    with slots.taken():
        with file.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert slots.free() == 0


def test_what_is_no_plain_file_is_not_opened(locks: Path) -> None:
    """A pipe in the place of a lock is refused, and waited for by nobody."""
    os.mkfifo(locks / "renderdispatch-gpu-GPU-simulated-0.lock")
    with pytest.raises(BackendError, match="not a regular file"), GpuSlots(tuple(simulated(1))).taken():
        pass


def test_where_the_locks_are(monkeypatch: pytest.MonkeyPatch, locks: Path) -> None:
    """In the folder that is named; else in one that all users write to, wherever temporary files are."""
    assert shared_folder() == locks
    monkeypatch.delenv(LOCKS)
    monkeypatch.setenv("TMPDIR", str(locks))
    folder = shared_folder()
    assert folder != locks
    assert folder.stat().st_mode & 0o1002 == 0o1002


def test_a_fork_holds_no_slot(locks: Path) -> None:
    """A process that forks while another of its threads takes a slot gives its child none of it."""
    script = """
        import os, sys, threading
        from renderdispatch.backends.gpu_slots import GpuSlots
        from tests.support.gpu_service import simulated
        slots, taken, go_on = GpuSlots(tuple(simulated(1))), threading.Event(), threading.Event()
        def take():
            with slots.taken():
                taken.set()
                go_on.wait()
        threading.Thread(target=take).start()
        taken.wait()
        threading.Timer(0.2, go_on.set).start()
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        print(slots.free())
        os.close(write)
        os.waitpid(child, 0)
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n"


# --- the executor ---------------------------------------------------------------------------------------


class Blocked(ThreadTask):
    """A task that can begin once it may."""

    def __init__(self, kind: str) -> None:
        super().__init__(lambda _call: None, lambda: None)
        self.kind = kind
        self.may = threading.Event()

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        if not self.may.is_set():
            raise BackendError("not now", retryable=True, code="backend.busy")
        return super().begin(queued_as)


def state(executor: Executor, call: BackendCall) -> CallState:
    found = executor.poll(call)
    assert found is not None
    return found


def test_a_kind_that_has_no_slot_holds_up_no_other() -> None:
    """Tasks of one kind begin in their order, past those of another kind that cannot begin."""
    executor = Executor(lambda: Capacity(slots=2, room=2))
    tasks = [Blocked("a"), Blocked("a"), Blocked("b")]
    tasks[1].may.set()
    tasks[2].may.set()
    calls = [executor.start(task) for task in tasks]
    eventually(lambda: state(executor, calls[2]).status is CallStatus.ENDED)
    assert state(executor, calls[1]).status is CallStatus.RUNNING, "it waits behind the first of its kind"
    tasks[0].may.set()
    eventually(lambda: [state(executor, call).status for call in calls] == [CallStatus.ENDED] * 3)


@pytest.mark.parametrize("capacity", [Capacity(slots=2), Capacity(slots=None, room=3)], ids=["no room", "no limit"])
def test_orders_wait_in_no_queue_where_none_is_meant(capacity: Capacity) -> None:
    """What refuses is refused, and what it said is passed on; so too where there is no limit of slots."""
    executor = Executor(lambda: capacity)
    with pytest.raises(BackendError, match="not now"):
        executor.start(Blocked("a"))
    assert executor.load()[1] == 0


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (BackendError("never", retryable=False, code="backend.gpu-locks"), "backend.gpu-locks", FaultDomain.REQUEST),
        (BackendError("later", retryable=True, code="backend.error"), "backend.error", FaultDomain.INFRASTRUCTURE),
        (InvalidRequestError("never", code="scene.file"), "scene.file", FaultDomain.REQUEST),
        (ZeroDivisionError("no text of strangers"), "backend.error", FaultDomain.INFRASTRUCTURE),
    ],
)
def test_what_a_queued_order_is_refused_with_is_as_final_as_at_once(
    error: Exception, code: str, fault: FaultDomain
) -> None:
    """An error that no other attempt mends is not tried again, whether or not its order had to wait."""
    given_up: list[JobError] = []

    class Refused(Blocked):
        """A task that waits, and then cannot begin."""

        def begin(self, queued_as: BackendCall | None) -> BackendCall:
            if self.may.is_set():
                raise error
            return super().begin(queued_as)

        def give_up(self, error: JobError) -> CallState:
            given_up.append(error)
            return super().give_up(error)

    executor = Executor(lambda: Capacity(slots=1, room=1))
    task = Refused("a")
    executor.start(task)
    task.may.set()
    (told,) = eventually(lambda: given_up)
    assert (told.code, told.fault) == (code, fault)
    assert "strangers" not in told.message

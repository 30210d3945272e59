"""Can a service be used after a fork, as preforking servers do?"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch import JobStatus, RenderService, Stage
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually, registered_scenes

_PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_a_child(work: Callable[[], None]) -> int:
    """Fork; do the work in the child, and return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not come back into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


def succeeds(pid: int) -> None:
    """Wait for a child; one that hangs, as on a lock that nobody holds, is killed and fails the test."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"the child still works, or hangs, after {_PATIENCE_S:g} s")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(found[1]) == 0


def make_service(folder: Path) -> RenderService:
    backend, store = LocalGpuBackend(), SqlJobStore(f"sqlite:///{folder / 'jobs.db'}")
    storage = FsspecStorage(folder / "objects")
    return RenderService(store, storage, backend, lease=timedelta(seconds=3), owned=[backend, store])


def test_preforking(tmp_path: Path) -> None:
    """A service that was made before the fork works in every child, each with a worker of its own."""
    with registered_scenes(tmp_path / "scenes"):
        service = make_service(tmp_path)

        def serve() -> None:
            handle = service.submit(b"RIFF", scene="fake")
            assert handle.wait(timeout=40).status is JobStatus.COMPLETE
            # whoever closes in the midst of the other's job hands it back, for a second attempt
            eventually(lambda: service.counts()[JobStatus.COMPLETE] == 2)
            service.close()

        for pid in [in_a_child(serve) for _ in range(2)]:
            succeeds(pid)
        assert service.counts()[JobStatus.COMPLETE] == 2
        assert [len(job.attempts) for job in service.jobs().items] == [1, 1]
        service.close()


def test_a_fork_in_mid_render(tmp_path: Path) -> None:
    """A child that is forked in mid-render has slots of its own, and neither it nor its end touches the render."""
    with registered_scenes(tmp_path / "scenes"), make_service(tmp_path) as service:
        handle = service.submit(b"RIFF", scene="fake", params={"frames": 200, "frame_s": 0.02})
        eventually(lambda: handle.job.stage is Stage.RENDERING)

        def serve() -> None:
            other = service.submit(b"RIFF", scene="fake")
            assert other.wait(timeout=40).status is JobStatus.COMPLETE
            service.close()

        succeeds(in_a_child(serve))
        job = handle.wait(timeout=40)
        assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 1)


def test_a_fork_while_threads_work(tmp_path: Path) -> None:
    """Forks in the midst of submits and polls leave no lock behind in the child."""
    with registered_scenes(tmp_path / "scenes"), make_service(tmp_path) as service:
        first = service.submit(b"RIFF", scene="fake")
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                service.counts()
                service.jobs(limit=1)

        def poll() -> None:
            while not stop.is_set():
                first.poll()

        def submit() -> None:
            while not stop.wait(0.01):
                service.submit(b"RIFF", scene="fake").poll()

        def serve() -> None:
            service.counts()
            service.submit(b"RIFF", scene="fake").poll()
            service.close()

        with ThreadPoolExecutor() as pool:
            try:
                working = [pool.submit(work) for work in (ask, poll, submit)]
                for _ in range(10):
                    succeeds(in_a_child(serve))
            finally:
                stop.set()
        for work in working:
            work.result()

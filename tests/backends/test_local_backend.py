"""Does the local backend keep every promise of a backend, and leave no process behind?"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import Completed, EventReply, Failed, Progressed, RenderEvent
from renderdispatch.protocols import CallStatus
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import RenderBackendContract, eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder


class TestLocalGpuBackend(RenderBackendContract):
    """Renders in processes of this machine."""

    @pytest.fixture
    def backend(self) -> Iterator[LocalGpuBackend]:
        backend = LocalGpuBackend()
        yield backend
        backend.close()


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mark in the environment of every process that this test starts, and a folder for its temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    mark = f"backend-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("RENDERDISPATCH_TEST_MARK", mark)
    return mark


def marked(mark: str) -> list[int]:
    """Return the living processes with the mark, each before its children."""
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def depth(process: int) -> int:
        return 1 + depth(parents[process]) if process in parents else 0

    return sorted(parents, key=depth)


def chain_of(mark: str) -> dict[str, int]:
    """Return the processes of a render by their roles: each is the only child of the one before."""
    found = marked(mark)
    assert len(found) == len(_CHAIN)
    for parent, child in itertools.pairwise(found):
        stat = Path(f"/proc/{child}/stat").read_text()
        assert int(stat.rpartition(")")[2].split()[1]) == parent
    assert b"supervisor.py" in Path(f"/proc/{found[0]}/cmdline").read_bytes()
    return dict(zip(_CHAIN, found, strict=True))


_CHAIN = ("supervisor of the runner", "runner", "supervisor of the render", "render")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("victim", _CHAIN)
def test_any_process_of_the_chain_is_killed(mark: str, victim: str, tmp_path: Path) -> None:
    """Whichever process of a render is killed, the outcome is handed over, and no process or file is left."""
    backend, heard = LocalGpuBackend(), Recorder()
    with registered_scenes(tmp_path / "scenes"):
        order = make_order(FsspecStorage(tmp_path / "objects"), params={"frames": 3000, "frame_s": 0.01})
        call = backend.start(order, on_event=heard)
        eventually(lambda: any(isinstance(e, Progressed) and e.frames for e in heard.events))
        os.kill(chain_of(mark)[victim], signal.SIGKILL)
        final = eventually(lambda: heard.final)
    assert isinstance(final, Failed)
    assert final.error.code in {"runner.died", "renderer.died"}
    assert "SIGKILL" in final.error.message
    eventually(lambda: backend.poll(call).status is CallStatus.ENDED)
    eventually(lambda: not marked(mark))
    eventually(lambda: list((tmp_path / "tmp").iterdir()) == [])
    backend.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("end", ["cancel", "close", "finish"])
def test_nothing_is_left_behind(mark: str, end: str, tmp_path: Path) -> None:
    """After a cancel, a close or a plain end, no process and no temporary file of the render is left."""
    backend, heard = LocalGpuBackend(), Recorder()
    frames = 3 if end == "finish" else 3000
    with registered_scenes(tmp_path / "scenes"):
        order = make_order(FsspecStorage(tmp_path / "objects"), params={"frames": frames, "frame_s": 0.01})
        call = backend.start(order, on_event=heard)
        eventually(lambda: any(isinstance(e, Progressed) for e in heard.events))
        if end == "cancel":
            backend.cancel(call)
        elif end == "close":
            backend.close()
        eventually(lambda: backend.poll(call).status is CallStatus.ENDED)
    assert marked(mark) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    backend.close()


def test_a_job_that_was_forgotten(tmp_path: Path) -> None:
    """An error of whoever takes the events, whatever it is, is logged and tried again; the render goes on."""
    backend, refused = LocalGpuBackend(), [KeyError("odd")]

    def answer(event: RenderEvent) -> EventReply:
        if refused:
            raise refused.pop()
        return EventReply()

    heard = Recorder(answer)
    with registered_scenes(tmp_path / "scenes"):
        backend.start(make_order(FsspecStorage(tmp_path / "objects")), on_event=heard)
        eventually(lambda: isinstance(heard.final, Completed))
    backend.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("thread", ["renderdispatch-log", "renderdispatch-call"])
def test_a_thread_that_cannot_be_started(
    mark: str, thread: str, refuse_thread: Callable[[str], None], tmp_path: Path
) -> None:
    """A start for which there is no thread is worth another try: no slot is taken, no process or file is left."""
    backend, heard = LocalGpuBackend(), Recorder()
    with registered_scenes(tmp_path / "scenes"):
        order = make_order(FsspecStorage(tmp_path / "objects"))
        refuse_thread(thread)
        with pytest.raises(BackendError) as refused:
            backend.start(order, on_event=heard)
        assert refused.value.retryable
        assert marked(mark) == []
        assert list((tmp_path / "tmp").iterdir()) == []
        backend.start(order, on_event=heard)
        eventually(lambda: isinstance(heard.final, Completed))
    backend.close()


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_render_is_ended_where_no_thread_can_be_started(
    end: str, refuse_thread: Callable[[str], None], tmp_path: Path
) -> None:
    """A cancel, or a close, needs no thread to end a render."""
    backend, heard = LocalGpuBackend(), Recorder()
    with registered_scenes(tmp_path / "scenes"):
        order = make_order(FsspecStorage(tmp_path / "objects"), params={"frames": 3000, "frame_s": 0.01})
        call = backend.start(order, on_event=heard)
        eventually(lambda: any(isinstance(e, Progressed) for e in heard.events))
        refuse_thread("")
        if end == "cancel":
            backend.cancel(call)
        else:
            backend.close()
        eventually(lambda: backend.poll(call).status is CallStatus.ENDED)
    backend.close()


@pytest.mark.parametrize("slots", [0, -1])
def test_slots_that_make_no_sense(slots: int) -> None:
    """A backend has at least one slot."""
    with pytest.raises(ConfigurationError):
        LocalGpuBackend(slots)

"""Do programs end with their renders, wherever those run: at a cancel, in a stall, and when the render dies?"""

from __future__ import annotations

import os
import signal
import sys
import wave
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch import JobHandle, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import ConfigurationError
from renderdispatch.messages import Limits, Output
from renderdispatch.protocols import RenderBackend
from renderdispatch.runner.renderers import load_renderer
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually
from tests.support.containers import marked
from tests.support.needs import need_blender, need_ffmpeg

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

SCENES = """
import sys
from renderdispatch.render.command import CommandRenderer, ffmpeg

SLOW = "import sys, time; n = 0\\nwhile True: n += 1; print('frame', n, flush=True); time.sleep(0.05)"
HANGS = "import time; time.sleep(600)"
PART = "from PIL import Image; import sys, time; Image.new('RGB', (64, 36)).save(sys.argv[1] + '/000000.png'); time.sleep(600)"

counting = CommandRenderer([sys.executable, "-c", SLOW, "{output}"], makes="video", progress=r"frame (?P<frame>\\d+)")
hanging = CommandRenderer([sys.executable, "-c", HANGS, "{output}"], makes="video")
partly = CommandRenderer([sys.executable, "-c", PART, "{frames}"], makes="frames")
missing = CommandRenderer(["no-such-program", "{output}"], makes="video")
waves = ffmpeg("showwaves=size={width}x{height}:rate={fps},realtime")
"""

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = Output(width=64, height=36)
PROGRAM = sys.executable.encode() + b"\0-c\0from PIL"


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, str]:
    """Where the scenes are."""
    (tmp_path / "programs.py").write_text(SCENES)
    own = {name: f"{tmp_path / 'programs.py'}:{name}" for name in ("counting", "hanging", "partly", "missing", "waves")}
    return {**own, "rings": f"{EXAMPLES / 'blender_rings.py'}:rings"}


@pytest.fixture(params=["local", "inline"])
def service(
    request: pytest.FixtureRequest, scenes: dict[str, str], tmp_path: Path, scratch: Path
) -> Iterator[RenderService]:
    """A service whose renders run in processes of their own, or in this one."""
    backend: RenderBackend
    if request.param == "local":
        backend = LocalGpuBackend(renderers=scenes)
    else:
        backend = InlineBackend({name: load_renderer(name, where) for name, where in scenes.items() if name != "rings"})
    with RenderService(MemoryJobStore(), FsspecStorage(tmp_path / "objects"), backend) as service:
        yield service


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """20 s of a buzz."""
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes((bytes(100) + b"\x10\x20" * 50) * 1600)
    return tmp_path / "song.wav"


def running(name: str, scratch: Path) -> list[int]:
    """Return the processes of a program that descend from this test."""
    return [pid for pid in marked(str(scratch)) if name in Path(f"/proc/{pid}/comm").read_text()]


def cancelled(handle: JobHandle, name: str, scratch: Path) -> None:
    """Cancel a render in the middle; check that no process of it is left."""
    eventually(lambda: handle.poll().stage == "rendering" and handle.poll().progress > 36)
    assert running(name, scratch) != []
    handle.cancel()
    assert handle.wait(30).status == "cancelled"
    eventually(lambda: marked(str(scratch)) == [])
    eventually(lambda: list(scratch.iterdir()) == [])


def test_a_cancelled_program_is_gone(service: RenderService, song: Path, scratch: Path) -> None:
    """So are its folders."""
    handle = service.submit(song, scene="counting", output=SMALL)
    cancelled(handle, "python", scratch)


def test_ffmpeg_is_gone(service: RenderService, song: Path, scratch: Path) -> None:
    """In the middle of a video."""
    need_ffmpeg()
    handle = service.submit(song, scene="waves", output=SMALL)
    cancelled(handle, "ffmpeg", scratch)


@pytest.mark.long
@pytest.mark.parametrize("service", ["local"], indirect=True)
def test_blender_is_gone(service: RenderService, song: Path, scratch: Path) -> None:
    """While it draws."""
    need_blender()
    handle = service.submit(song, scene="rings", params={"samples": 4}, output=SMALL)
    cancelled(handle, "blender", scratch)


@pytest.mark.parametrize("scene", ["hanging", "partly"])
@pytest.mark.parametrize("service", ["local"], indirect=True)
def test_a_program_that_hangs_is_ended(scene: str, service: RenderService, song: Path, scratch: Path) -> None:
    """Before its first sign of life, or in the middle."""
    limits = Limits(stall_timeout=timedelta(seconds=1.5), max_attempts=1)
    handle = service.submit(song, scene=scene, output=SMALL, duration=1, limits=limits)
    result = handle.wait(60)
    assert result.status == "failed" and result.error is not None
    assert result.error.code == "render.stalled"
    eventually(lambda: marked(str(scratch)) == [])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("above", [1, 2, 3, 4])
@pytest.mark.parametrize("service", ["local"], indirect=True)
def test_a_killed_process_takes_the_program_with_it(
    above: int, service: RenderService, song: Path, scratch: Path
) -> None:
    """Whichever of the processes between the service and the program is killed; the program itself notices nothing."""
    handle = service.submit(song, scene="partly", output=SMALL, limits=Limits(max_attempts=1))
    eventually(lambda: handle.poll().progress > 35)  # the first picture was read
    (victim,) = [pid for pid in marked(str(scratch)) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(PROGRAM)]
    for _ in range(above):
        victim = parent_of(victim)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: marked(str(scratch)) == [])
    assert handle.wait(30).status == "failed"


@pytest.mark.parametrize("service", ["inline"], indirect=True)
def test_a_killed_supervisor_takes_the_program_with_it(service: RenderService, song: Path, scratch: Path) -> None:
    """Also where nothing else watches."""
    handle = service.submit(song, scene="partly", output=SMALL, limits=Limits(max_attempts=1))
    eventually(lambda: handle.poll().progress > 35)
    (program,) = [pid for pid in marked(str(scratch)) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(PROGRAM)]
    os.kill(parent_of(program), signal.SIGKILL)
    eventually(lambda: marked(str(scratch)) == [])
    assert handle.wait(30).status == "failed"


@pytest.mark.parametrize("service", ["local"], indirect=True)
def test_a_missing_program_is_refused_at_submit(service: RenderService, song: Path) -> None:
    """No job is made that could only fail."""
    with pytest.raises(ConfigurationError, match="'no-such-program' was not found"):
        service.submit(song, scene="missing", output=SMALL)

"""Is it known what a machine draws and encodes with, whatever its drivers do, and does ``require_gpu`` mean it?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import GpuUnavailableError, RenderError
from renderdispatch.messages import Asset, Output, RenderRequest, RenderStats, StoredAudio
from renderdispatch.modal_app.deployment import DRIVER_FILES
from renderdispatch.render.gl.devices import APT_PACKAGES
from renderdispatch.render.music import compose
from renderdispatch.runner import SupervisedRender
from renderdispatch.runner.probe import FAILURE_S, KeptAnswer, OpenGl, Probe, opengl_here, probe, probe_opengl
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order
from tests.support.needs import lacking, need_opengl

SHADER = "void mainImage(out vec4 c, in vec2 p) { c = vec4(p / iResolution.xy, iLevel, 1.0); }\n"

FAKE_NVML = """
class NVMLError(Exception): ...
class Place: busId = b"00000000:3B:00.0"
def nvmlInit(): ...
def nvmlShutdown(): ...
def nvmlSystemGetDriverVersion(): return b"535.183.01"
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetPciInfo(handle): return Place
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetName(handle): return "NVIDIA L4"
def nvmlDeviceGetMigMode(handle): raise NVMLError
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a driver's list in the place of NVIDIA's, for processes that start from here."""

    def put(source: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "pynvml.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))

    return put


@pytest.fixture
def without_egl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose EGL cannot be loaded."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    (folder / "libEGL.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


def _drawn_on_cpu() -> OpenGl:
    need_opengl()
    found = opengl_here()
    assert found.error is None, found
    if found.on_gpu:
        lacking(f"OpenGL draws on a GPU here ({found.renderer}): what happens without one cannot be tried")
    return found


def test_a_machine_is_described() -> None:
    """What OpenGL draws on, which encoders encoded a frame, and why the others did not. The command prints the same."""
    need_opengl()
    found = probe()
    command = [sys.executable, "-m", "renderdispatch.runner.probe"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert Probe.model_validate_json(printed) == found
    assert printed.count("\n") == 1
    assert found.opengl.renderer
    assert found.opengl.device_class
    assert found.opengl.devices >= 1
    assert "libx264" in found.encodes_with
    assert set(found.encoders) == {"libx264", "h264_nvenc"}
    assert found.vulkan.devices or found.vulkan.error


def test_asking_loads_no_driver(modules_loaded: Callable[[str], set[str]]) -> None:
    """A service that asks has neither OpenGL nor NumPy in its process afterwards."""
    code = "from renderdispatch.runner.probe import opengl_here; opengl_here()"
    assert {"moderngl", "numpy", "av", "pynvml"}.isdisjoint(modules_loaded(code))


@pytest.fixture
def modules_loaded() -> Callable[[str], set[str]]:
    """Run code in a fresh Python; return what it has imported then."""

    def run(code: str) -> set[str]:
        code += "; import sys; print('\\n'.join(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return run


def test_nvidias_gpus_are_listed(nvml: Callable[[str], None]) -> None:
    """By UUID, with the driver's version."""
    nvml(FAKE_NVML)
    assert [(gpu.uuid, gpu.name, gpu.driver) for gpu in probe().gpus] == [
        ("GPU-0", "NVIDIA L4", "535.183.01"),
        ("GPU-1", "NVIDIA L4", "535.183.01"),
    ]


def test_a_driver_that_hangs_costs_a_moment(nvml: Callable[[str], None]) -> None:
    """The answer says that nothing could be told; the process is gone."""
    nvml("import time\ntime.sleep(600)")
    began = time.monotonic()
    found = probe(timeout_s=1.0)
    assert time.monotonic() - began < 8
    assert "no answer for 1 s" in str(found.opengl.error)
    assert found.encodes_with == []
    assert "no answer" in found.opengl.why_no_gpu


def test_a_driver_that_crashes_takes_nothing_with_it(nvml: Callable[[str], None]) -> None:
    """The answer says how its process ended."""
    nvml("import os\nos.abort()")
    assert "was killed by SIGABRT" in str(probe_opengl().error)


def test_a_service_asks_until_it_knows() -> None:
    """What OpenGL answered is kept; a failure may have passed after a while, and is the answer until then."""
    now, answers = [0.0], [OpenGl(error="crashed"), OpenGl(error="crashed again"), OpenGl(renderer="llvmpipe")]
    kept = KeptAnswer(lambda: answers.pop(0), clock=lambda: now[0])
    assert [kept.get().error for _ in range(2)] == ["crashed"] * 2
    now[0] += FAILURE_S
    assert kept.get().error == "crashed again"
    now[0] += FAILURE_S
    assert kept.get().renderer == "llvmpipe"
    now[0] += 10 * FAILURE_S
    assert kept.get().renderer == "llvmpipe"


def test_requests_that_ask_at_once_start_one_process(nvml: Callable[[str], None], tmp_path: Path) -> None:
    """Each thread of a service gets the answer, with the reason, also where it is a failure."""
    nvml(f"import os\nopen({str(tmp_path / 'asked')!r}, 'a').write('x')\nos.abort()")
    kept = KeptAnswer(probe_opengl)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: (kept.get().on_gpu, kept.get().why_no_gpu), range(8)))
    assert len(set(found)) == 1
    assert "SIGABRT" in found[0][1]
    assert (tmp_path / "asked").read_text() == "x"


def test_without_egl_the_next_step_is_named(without_egl: None) -> None:
    """The very line that installs it on Debian and Ubuntu."""
    error = probe_opengl().error
    assert error is not None
    assert f"apt-get install --no-install-recommends {' '.join(APT_PACKAGES)}" in error


def test_an_egl_without_drivers_is_no_egl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It can be loaded and lists no device; the next step is the same."""
    need_opengl()
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", str(tmp_path))
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", str(tmp_path / "none.json"))
    error = probe_opengl().error
    assert error is not None
    assert "EGL lists 0 devices" in error
    assert "apt-get install" in error


def test_a_driver_that_is_not_there_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Images name NVIDIA's library to EGL wherever they run: without it, the next driver draws."""
    found = _drawn_on_cpu()
    (tmp_path / "10_nvidia.json").write_text(json.dumps(next(iter(DRIVER_FILES.values()))))
    own = "/usr/share/glvnd/egl_vendor.d"
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", f"{tmp_path}:/etc/glvnd/egl_vendor.d:{own}")
    assert probe_opengl() == found


def test_a_gpu_that_is_gone_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU that a render was given is not replaced by another one."""
    found = _drawn_on_cpu()
    monkeypatch.setenv("RENDERDISPATCH_GPU", "GPU-00000000-1111-2222-3333-444444444444")
    assert probe_opengl() == found


# --- require_gpu ----------------------------------------------------------------------------------


def _render(tmp_path: Path, scene: str, *, require_gpu: bool = False) -> RenderStats:
    """Render a second of sound in a process of its own."""
    song = tmp_path / "song.wav"
    compose(song, seconds=1, seed=1)
    shader = tmp_path / "scene.glsl"
    shader.write_text(SHADER)
    file = Asset(url="", size=len(SHADER), name=shader.name, path=str(shader)) if scene == "glsl" else None
    order = make_order(MemoryStorage(), scene=scene, scene_file=file, require_gpu=require_gpu)
    order = order.model_copy(update={"output": Output(width=64, height=64, fps=Fraction(10))})
    with SupervisedRender() as render:
        return render(order, song, tmp_path / "video.mp4", lambda _done, _total: None)


def test_what_drew_is_recorded(tmp_path: Path) -> None:
    """OpenGL's own name of the device, its class, and the encoder."""
    found = _drawn_on_cpu()
    stats = _render(tmp_path, "glsl")
    assert (stats.rendered_by, stats.encoded_by) == (found.renderer, "libx264")
    assert str(stats.device_class).split("+")[1:] == [found.device_class]


def test_a_required_gpu_is_not_llvmpipe(tmp_path: Path) -> None:
    """The render is refused before the song is read, as a fault of the request, and says what would have drawn."""
    found = _drawn_on_cpu()
    with pytest.raises(RenderError) as refused:
        _render(tmp_path, "glsl", require_gpu=True)
    assert (refused.value.code, refused.value.fault) == ("gpu.unavailable", "request")
    assert found.renderer in str(refused.value)
    assert not (tmp_path / "video.mp4").exists()


@pytest.mark.parametrize("scene", ["glsl", "bars"])
def test_a_backend_refuses_at_submit(scene: str) -> None:
    """GLSL would be drawn by llvmpipe, and NumPy draws on the CPU everywhere."""
    found = _drawn_on_cpu()
    backend = LocalGpuBackend(slots=1)
    audio = StoredAudio(key="a", size=1)
    file = StoredAudio(key="scene.glsl", size=1) if scene == "glsl" else None
    with pytest.raises(GpuUnavailableError, match="glsl|bars|" + found.renderer.partition(" ")[0]):
        backend.check(RenderRequest(audio=audio, scene=scene, scene_file=file, backend="local", require_gpu=True))
    backend.check(RenderRequest(audio=audio, scene=scene, scene_file=file, backend="local"))
    backend.close()
    assert opengl_here() == found


def test_scenes_of_numpy_need_no_egl(without_egl: None, tmp_path: Path) -> None:
    """``bars`` works everywhere; GLSL says what to install."""
    assert _render(tmp_path, "bars").rendered_by == "numpy"
    with pytest.raises(RenderError, match="apt-get install") as refused:
        _render(tmp_path, "glsl")
    assert refused.value.code == "gl.unavailable"

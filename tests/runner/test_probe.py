"""Is it known what a machine draws and encodes with, whatever its drivers do, and does ``require_gpu`` mean it?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import GpuUnavailableError, RenderError
from renderdispatch.messages import Asset, Output, RenderRequest, RenderStats, StoredAudio
from renderdispatch.render.gl.devices import APT_PACKAGES
from renderdispatch.render.music import compose
from renderdispatch.runner import SupervisedRender
from renderdispatch.runner.probe import OpenGl, Probe, opengl_here, probe
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
    """What OpenGL draws on, which encoders encoded a frame, and why the others did not."""
    need_opengl()
    found = probe()
    assert found.opengl.renderer
    assert found.opengl.device_class
    assert found.opengl.devices >= 1
    assert "libx264" in found.encodes_with
    assert set(found.encoders) == {"libx264", "h264_nvenc"}
    assert found.vulkan.devices or found.vulkan.error


def test_the_command_prints_what_services_are_told() -> None:
    """One line of JSON, for people and for containers."""
    command = [sys.executable, "-m", "renderdispatch.runner.probe"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert Probe.model_validate_json(printed) == probe()
    assert printed.count("\n") == 1


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
    assert "was killed by SIGABRT" in str(probe().opengl.error)


def test_a_service_asks_until_it_knows(nvml: Callable[[str], None], tmp_path: Path) -> None:
    """What OpenGL answered is kept; a failure may have passed at the next question."""
    need_opengl()
    nvml("import os\nos.abort()")
    code = (
        "import pathlib, sys; from renderdispatch.runner.probe import opengl_here;"
        "print(opengl_here().error); pathlib.Path(sys.argv[1], 'fake', 'pynvml.py').write_text(sys.argv[2]);"
        "print(opengl_here().error, opengl_here() is opengl_here())"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), os.environ.get("PYTHONPATH", "")])}
    run = [sys.executable, "-c", code, str(tmp_path), FAKE_NVML]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, env=path).stdout.splitlines()
    assert "SIGABRT" in printed[0]
    assert printed[1] == "None True"


def test_without_egl_the_next_step_is_named(without_egl: None) -> None:
    """The very line that installs it on Debian and Ubuntu."""
    error = probe().opengl.error
    assert error is not None
    assert f"apt-get install --no-install-recommends {' '.join(APT_PACKAGES)}" in error


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
    with pytest.raises(GpuUnavailableError, match="glsl|bars|" + found.renderer.partition(" ")[0]):
        backend.check(RenderRequest(audio=audio, scene=scene, backend="local", require_gpu=True))
    backend.check(RenderRequest(audio=audio, scene=scene, backend="local"))
    backend.close()
    assert opengl_here() == found


def test_scenes_of_numpy_need_no_egl(without_egl: None, tmp_path: Path) -> None:
    """``bars`` works everywhere; GLSL says what to install."""
    assert _render(tmp_path, "bars").rendered_by == "numpy"
    with pytest.raises(RenderError, match="apt-get install") as refused:
        _render(tmp_path, "glsl")
    assert refused.value.code == "gl.unavailable"

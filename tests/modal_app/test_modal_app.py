"""What is deployed, by the real client, and what do its functions do?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from renderdispatch.engine.rules import HANDED_BACK
from renderdispatch.messages import CallResult, Completed, JobStatus, LocalAudio, Output
from renderdispatch.modal_app.deployment import APT_PACKAGES, DRIVER_FILES, GPUS, PYTHON_VERSION, pip_requirements
from renderdispatch.runner.probe import Probe, opengl_here
from renderdispatch.testing import eventually
from renderdispatch.testing.modal import CallStatus, DeployFailedError, LoopbackModal
from renderdispatch.wiring import Settings, from_settings
from tests.support.containers import Objects, read, serve_objects, song
from tests.support.needs import need_opengl

APP: Final = "renderdispatch.modal_app"
SMALL: Final = Output(width=64, height=36)


@pytest.fixture
def store() -> Iterator[Objects]:
    with serve_objects() as store:
        store.objects["song"] = song()
        yield store


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackModal]:
    """A server with the app deployed as it comes."""
    with LoopbackModal() as server:
        server.deploy(APP)
        yield server


# --- what is deployed ------------------------------------------------------------------------------


def test_render_is_deployed_with_bounds(server: LoopbackModal) -> None:
    """No retries of Modal's own, one input a container, time, cores and memory set; no GPU unless asked."""
    render = server.function("render", app="renderdispatch")
    assert render.retries == 0
    assert render.definition.max_concurrent_inputs <= 1
    assert render.gpus == ()
    assert (render.cpu, render.memory_mb) == (4.0, 8192)
    assert (render.timeout_s, render.startup_timeout_s) == (86_400, 600)
    assert render.definition.task_idle_timeout_secs == 15


def test_render_gets_no_secret(server: LoopbackModal) -> None:
    """Nor may it use the workspace: all that it needs stands in the order."""
    render = server.function("render")
    assert render.secrets == ()
    assert render.definition.untrusted


def test_nothing_but_render_is_deployed(server: LoopbackModal) -> None:
    """The worker comes only when it is asked for."""
    assert {function.name for function in server.functions} == {"render", "probe"}


def test_the_image_has_what_a_render_needs(server: LoopbackModal) -> None:
    """A pinned Python, the system's packages, then Python's; what changes most often comes last."""
    layers = ["\n".join(layer.commands) for layer in server.image_layers]
    python, settings, system, drivers, packages = layers
    assert f"FROM python:{PYTHON_VERSION}" in python
    assert "NVIDIA_DRIVER_CAPABILITIES=all" in settings
    assert all(package in system for package in APT_PACKAGES)
    assert all(f"'{requirement}'" in packages for requirement in pip_requirements("render", "gl"))
    assert all(path in drivers for path in DRIVER_FILES)


def test_the_images_driver_files_are_written_where_they_are_missing(server: LoopbackModal, tmp_path: Path) -> None:
    """Each is JSON that names NVIDIA's library; one that is there stays."""
    commands = [line.removeprefix("RUN ") for layer in server.image_layers for line in layer.commands]
    for path, content in DRIVER_FILES.items():
        (command,) = {line for line in commands if line.endswith(path)}
        here = ["sh", "-c", command.replace(str(Path(path).parent), f"{tmp_path}{Path(path).parent}")]
        written = Path(f"{tmp_path}{path}")
        subprocess.run(here, check=True)
        assert json.loads(written.read_text()) == content
        written.write_text("the driver's own")
        subprocess.run(here, check=True)
        assert written.read_text() == "the driver's own"


def test_a_container_says_what_it_draws_with(server: LoopbackModal) -> None:
    """The same as this machine does, for here it runs on it; on the same GPU as renders, and billed for seconds."""
    need_opengl()
    tried = Probe.model_validate_json(server.function_handle("renderdispatch", "probe").remote())
    assert (tried.opengl.error, tried.encoders["libx264"]) == (None, None)
    assert tried.opengl == opengl_here()
    server.deploy(APP, name="probed", env={"RENDERDISPATCH_MODAL_GPU": "L4,T4"})
    render, probe = (server.function(name, app="probed") for name in ("render", "probe"))
    assert (probe.gpus, probe.cpu, probe.memory_mb) == (render.gpus, render.cpu, render.memory_mb)
    assert probe.secrets == ()
    assert probe.definition.task_idle_timeout_secs == 2


def test_the_environment_chooses(server: LoopbackModal) -> None:
    """GPUs, cores, memory, time, and the app's name."""
    chosen = {"APP": "mine", "GPU": "h100:2, t4", "CPU": "8", "MEMORY": "16384", "TIMEOUT": "3600", "SECRET": ""}
    server.deploy(APP, env={f"RENDERDISPATCH_MODAL_{name}": value for name, value in chosen.items()})
    render = server.function("render", app="mine")
    assert render.gpus == ("H100:2", "T4")
    assert (render.cpu, render.memory_mb, render.timeout_s) == (8.0, 16384, 3600)


def test_it_can_be_deployed_without_a_gpu(server: LoopbackModal) -> None:
    """Scenes of NumPy draw on the CPU."""
    server.deploy(APP, name="cpu", env={"RENDERDISPATCH_MODAL_GPU": "none"})
    assert server.function("render", app="cpu").gpus == ()


def test_a_wrong_variable_fails_the_deployment(server: LoopbackModal) -> None:
    """And says which GPUs there are."""
    with pytest.raises(DeployFailedError, match="unknown GPU 'RTX9000'") as failed:
        server.deploy(APP, env={"RENDERDISPATCH_MODAL_GPU": "RTX9000"})
    assert all(name in str(failed.value) for name in GPUS)


def test_a_worker_without_a_secret_is_refused(server: LoopbackModal) -> None:
    """It could reach no database and no bucket."""
    with pytest.raises(DeployFailedError, match="RENDERDISPATCH_MODAL_SECRET"):
        server.deploy(APP, env={"RENDERDISPATCH_MODAL_WORKER": "1"})


# --- what it does ----------------------------------------------------------------------------------


def test_a_render_in_a_container(server: LoopbackModal, store: Objects) -> None:
    """The order goes in as a string, the video to storage, and the answer comes back as a string."""
    order = store.order(scene="wave", output=SMALL)
    call = server.function_handle("renderdispatch", "render").spawn(order.model_dump_json())
    outcome = read(call.get(timeout=90))
    assert isinstance(outcome, Completed)
    assert outcome.artifact.frames == 30
    assert len(store.objects["video"]) == outcome.artifact.bytes
    assert server.call(call.object_id).status is CallStatus.SUCCEEDED


def test_nonsense_is_answered(server: LoopbackModal) -> None:
    """No exception has to be unpickled by whoever polls."""
    answer = CallResult.model_validate_json(server.function_handle("renderdispatch", "render").remote("nonsense"))
    assert answer.error is not None
    assert answer.error.code == "order.invalid"


def inputs_of(server: LoopbackModal, container_id: str) -> int:
    """Return how many inputs a container was given, as long as it lives."""
    return sum(one.inputs for one in server.containers if one.id == container_id and one.alive)


def test_a_cancelled_call_stops_computing(server: LoopbackModal, store: Objects) -> None:
    """The container lets go of the input within ten seconds, and takes the next one."""
    store.objects["song"] = song(60)
    order = store.order(scene="bars", output=Output(width=1920, height=1080))
    render = server.function_handle("renderdispatch", "render")
    call = render.spawn(order.model_dump_json())
    eventually(lambda: "song" in store.read)
    call.cancel()
    record = server.wait_for_end(call.object_id, timeout=60)
    assert record.status is CallStatus.CANCELLED
    (start,) = record.starts
    assert start.ended_at is not None and record.cancelled_at is not None
    assert (start.ended_at - record.cancelled_at).total_seconds() < 10
    assert "result" not in store.objects

    def takes_another() -> bool:
        assert CallResult.model_validate_json(render.remote("nonsense")).error is not None
        return inputs_of(server, start.container_id) > taken

    taken = inputs_of(server, start.container_id)
    eventually(takes_another)


# --- the worker ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(home: Path) -> dict[str, str]:
    """What the application and its worker share."""
    return {
        "RENDERDISPATCH_STORE": f"sqlite:///{home}/jobs.db",
        "RENDERDISPATCH_STORAGE": str(home / "objects"),
        "RENDERDISPATCH_BACKENDS": "inline",
        "RENDERDISPATCH_SECRETS": "whsec_" + "A" * 43 + "=",
    }


@pytest.fixture(scope="module")
def worker(settings: dict[str, str]) -> Iterator[LoopbackModal]:
    """A server with the worker deployed too."""
    chosen = {"WORKER": "1", "SECRET": "ours", "PERIOD": "5"}
    with LoopbackModal() as server:
        server.secrets.update({"ours": settings, "empty": {}})
        server.deploy(APP, env={f"RENDERDISPATCH_MODAL_{name}": value for name, value in chosen.items()})
        yield server


def test_only_the_worker_gets_the_secret(worker: LoopbackModal) -> None:
    """Render goes without, in the same app."""
    secrets = {function.name: function.secrets for function in worker.functions}
    assert secrets == {"render": (), "probe": (), "tick": ("ours",), "webhook": ("ours",)}


def test_the_worker_is_scheduled(worker: LoopbackModal) -> None:
    """At the period that was chosen, one at a time."""
    tick = worker.function("tick")
    assert tick.schedule == "period 5 s"
    assert tick.gpus == ()
    assert tick.definition.autoscaler_settings.max_containers == 1
    assert tick.timeout_s > 5


def test_a_worker_that_starts_once_a_day_has_a_day(worker: LoopbackModal) -> None:
    """However long the period, a run of the worker gets no more time than Modal gives any."""
    chosen = {"APP": "daily", "WORKER": "1", "SECRET": "empty", "PERIOD": "86400"}
    worker.deploy(APP, env={f"RENDERDISPATCH_MODAL_{name}": value for name, value in chosen.items()})
    tick = worker.function("tick", app="daily")
    assert (tick.schedule, tick.timeout_s) == ("period 86400 s", 86_400)


def test_the_workers_image_has_its_extras(worker: LoopbackModal) -> None:
    """Object storage, Modal's client and a database's."""
    layers = ["\n".join(layer.commands) for layer in worker.image_layers]
    assert any("'s3fs" in layer and "'modal" in layer and "'psycopg" in layer for layer in layers)


def test_a_tick_moves_the_jobs_of_an_application_without_a_worker(
    worker: LoopbackModal, settings: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was submitted while nothing ran is rendered and completed by the schedule's runs alone."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with from_settings(Settings(home=home), worker=False) as service:
        path = home / "song.wav"
        path.write_bytes(song())
        handle = service.submit(path.read_bytes(), scene="wave", output=SMALL)
        assert not isinstance(handle.job.request.audio, LocalAudio)
        for _ in range(10):  # one is enough, unless rendering takes the four seconds for which a run looks for work
            assert worker.run("tick", timeout=90).status is CallStatus.SUCCEEDED
            if handle.job.ended:
                break
        assert handle.job.status is JobStatus.COMPLETE, handle.job
        begun = [one for one in handle.job.attempts if one.error is None or one.error.code != HANDED_BACK]
        assert len(begun) == 1


def test_the_webhook_is_served_and_verified(worker: LoopbackModal) -> None:
    """What nobody signed is refused."""
    url = worker.function("webhook").web_url
    answer = httpx.post(f"{url}/", content=b"{}", timeout=90)
    assert answer.status_code == 401


def test_a_worker_without_a_shared_store_says_so(worker: LoopbackModal) -> None:
    """A database inside the container would be nobody's: the run of the schedule fails, and the log says why."""
    chosen = {"APP": "lonely", "WORKER": "1", "SECRET": "empty"}
    worker.deploy(APP, env={f"RENDERDISPATCH_MODAL_{name}": value for name, value in chosen.items()})
    call = worker.run("tick", app="lonely", timeout=90)
    assert call.status is CallStatus.FAILED
    assert "RENDERDISPATCH_STORE" in worker.container_log(call.id)


# --- from elsewhere --------------------------------------------------------------------------------


def test_without_the_extra_it_says_which(tmp_path: Path) -> None:
    """Where Modal's client is not installed."""
    code = "import sys; sys.modules['modal'] = None\nfrom renderdispatch.modal_app import app"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 1
    assert "pip install 'renderdispatch[modal]'" in ran.stderr


def requirements_of(*extras: str) -> set[str]:
    return {requirement.split(">")[0].split("<")[0].split("[")[0] for requirement in pip_requirements(*extras)}


def test_requirements_are_those_of_the_extras() -> None:
    """The base always, an extra when it is named, and nothing else."""
    base = requirements_of()
    assert {"attrs", "pydantic", "httpx"} <= base
    assert not base & {"numpy", "av", "pillow", "modal", "pytest"}
    assert requirements_of("render") - base == {"numpy", "av", "pillow"}
    assert requirements_of("modal") - base == {"modal"}
    assert not any("extra" in requirement for requirement in pip_requirements("render", "r2", "modal", "postgres"))

"""How does ``renderdispatch modal`` deploy, and what does it say when it cannot?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from renderdispatch.errors import ConfigurationError, UnknownNameError
from renderdispatch.modal_app.deployment import GPUS, Deployment, read_gpus
from renderdispatch.runner.probe import opengl_here
from renderdispatch.testing.modal import LoopbackModal
from tests.support.needs import lacking, need_opengl

COMMAND = [sys.executable, "-m", "renderdispatch.cli"]


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackModal]:
    with LoopbackModal(environments=("main", "staging")) as server:
        yield server


def run(
    *arguments: str, env: Mapping[str, str] | None = None, server: LoopbackModal | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``renderdispatch modal``."""
    return run_any("modal", *arguments, env=env, server=server)


def run_any(
    *arguments: str, env: Mapping[str, str] | None = None, server: LoopbackModal | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, who has no token unless there is a server."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "RENDERDISPATCH_"))}
    modal = server.environment() if server else {"MODAL_CONFIG_PATH": os.devnull}
    quiet = {"COLUMNS": "200", "TERM": "dumb", "PYTHONUTF8": "1", "MODAL_BUILD_VALIDATION": "ignore"}
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**clean, **modal, **quiet, **(env or {})},
    )


def drawn_on_cpu() -> None:
    """Skip where the containers of this machine would draw on a GPU."""
    need_opengl()
    if opengl_here().on_gpu:
        lacking("OpenGL draws on a GPU here: what happens where it does not cannot be tried")


# --- deploy ---------------------------------------------------------------------------------------


def test_deploy_deploys_and_says_what_is_next(server: LoopbackModal) -> None:
    """By the real ``modal deploy``; then which variables the application needs."""
    arguments = ["--gpu", "h100:2,T4", "--app", "mine", "-e", "staging", "--cpu", "2", "--timeout", "2h"]
    arguments.append("--allow-cpu-drawing")
    ran = run("deploy", *arguments, server=server)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    render = server.function("render", app="mine")
    assert (render.environment, render.gpus, render.cpu, render.timeout_s) == ("staging", ("H100:2", "T4"), 2.0, 7200)
    for line in (
        "RENDERDISPATCH_BACKENDS=modal",
        "RENDERDISPATCH_MODAL_APP=mine",
        "RENDERDISPATCH_MODAL_ENVIRONMENT=staging",
    ):
        assert line in ran.stdout


def test_deploy_takes_what_the_environment_says_and_options_go_before_it(server: LoopbackModal) -> None:
    """So that ``modal deploy -m`` by hand, in the same environment, deploys the same."""
    env = {"RENDERDISPATCH_MODAL_GPU": "T4", "RENDERDISPATCH_MODAL_MEMORY": "1024"}
    ran = run("deploy", "--gpu", "L40S", "--allow-cpu-drawing", server=server, env=env)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    render = server.function("render", app="renderdispatch")
    assert (render.gpus, render.memory_mb) == (("L40S",), 1024)


def test_deploy_says_that_the_gpu_would_not_draw(server: LoopbackModal) -> None:
    """It tries a container, whose OpenGL is llvmpipe here: status 1, and what to do. The app stays deployed."""
    drawn_on_cpu()
    ran = run("deploy", "--gpu", "L4", "--app", "llvmpipe", server=server)
    assert ran.returncode == 1
    assert "llvmpipe" in ran.stderr
    assert "L4 is billed for each render, and scenes in GLSL are drawn on the CPU there" in ran.stderr
    assert "without --gpu" in ran.stderr
    assert "--allow-cpu-drawing" in ran.stderr
    assert server.function("render", app="llvmpipe").gpus == ("L4",)


def test_deploy_without_a_gpu_starts_no_container(server: LoopbackModal) -> None:
    """Nothing is billed that nothing draws on."""
    before = len(server.containers)
    assert run("deploy", "--app", "cpu", server=server).returncode == 0
    assert len(server.containers) == before


def test_deploy_brings_the_worker(server: LoopbackModal) -> None:
    """With the secret that is named, and says which URL the webhook has to be."""
    server.secrets["ours"] = {}
    ran = run("deploy", "--app", "both", "--worker", "--secret", "ours", "--period", "5m", server=server)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert server.function("tick", app="both").schedule == "period 300 s"
    assert "RENDERDISPATCH_WEBHOOK_URL" in ran.stdout


def test_a_failed_deployment_is_an_error(server: LoopbackModal) -> None:
    """What Modal said stands above it."""
    ran = run("deploy", "--worker", "--secret", "no-such-secret", server=server)
    assert ran.returncode == 1
    assert "no-such-secret" in ran.stdout + ran.stderr
    assert "renderdispatch: error: modal deploy ended with status 1" in ran.stderr
    assert "Then:" not in ran.stdout


def test_a_dry_run_only_says(server: LoopbackModal) -> None:
    """The variables and the command; no token is needed."""
    ran = run("deploy", "--dry-run", "--gpu", "none", "-e", "staging")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert "RENDERDISPATCH_MODAL_GPU=none" in lines
    assert lines[-1] == "modal deploy -m renderdispatch.modal_app --env staging"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "RTX9000"], "H200"),
        (["--gpu", "L4:0"], "1 to 8 GPUs"),
        (["--gpu", ","], "no GPU is named"),
        (["--timeout", "25h"], "RENDERDISPATCH_MODAL_TIMEOUT"),
        (["--timeout", "soon"], "30m"),
        (["--cpu", "0"], "RENDERDISPATCH_MODAL_CPU"),
        (["--worker"], "--secret"),
        (["--secret", "x"], "--worker"),
        ([], "modal token new"),
    ],
)
def test_what_cannot_be_deployed_is_refused(arguments: list[str], said: str) -> None:
    """Before anything is sent, in one line that says what to do."""
    ran = run("deploy", *arguments)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert said in ran.stderr


# --- check ----------------------------------------------------------------------------------------

SET = {
    "RENDERDISPATCH_BACKENDS": "modal",
    "RENDERDISPATCH_STORAGE": "r2://bucket",
    "RENDERDISPATCH_R2_ACCOUNT_ID": "0" * 32,
    "RENDERDISPATCH_R2_ACCESS_KEY_ID": "key",
    "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": "not-to-be-seen",
}


def test_check_finds_what_is_deployed(server: LoopbackModal) -> None:
    """All is well, and no container was started."""
    server.deploy("renderdispatch.modal_app", name="checked")
    before = list(server.containers)  # other tests' may still be idle
    ran = run("check", "--app", "checked", "--no-probe", server=server, env=SET)
    assert ran.returncode == 0, ran.stdout
    assert "'render' of app 'checked' is deployed" in ran.stdout
    assert "not-to-be-seen" not in ran.stdout + ran.stderr
    assert [container for container in server.containers if container not in before] == []


def test_check_says_what_a_container_draws_and_encodes_with(server: LoopbackModal) -> None:
    """OpenGL's device, Vulkan's, and the encoders, as the container itself found them."""
    drawn_on_cpu()
    server.deploy("renderdispatch.modal_app", name="tried")
    ran = run("check", "--app", "tried", "--json", server=server, env=SET)
    assert ran.returncode == 0, ran.stdout
    lines = {line["check"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert lines["container opengl"]["status"] == "note"
    assert "llvmpipe" in lines["container opengl"]["said"]
    assert lines["container encoder"]["said"].startswith("libx264; h264_nvenc: ")
    assert "container vulkan" in lines


def test_check_says_that_an_older_app_cannot_tell(server: LoopbackModal) -> None:
    """It has no such function; the other checks count."""
    server.deploy("tests.support.modal_renders", name="older")
    ran = run("check", "--app", "older", "--json", server=server, env=SET)
    assert ran.returncode == 0, ran.stdout
    assert "this version of the app cannot tell what it draws with" in ran.stdout
    assert "renderdispatch modal deploy --app older" in ran.stdout


def test_check_says_what_is_wrong(server: LoopbackModal) -> None:
    """An app that is not there, another backend, storage that Modal does not reach."""
    ran = run("check", "--app", "nothing", "--json", server=server)
    assert ran.returncode == 1
    assert "renderdispatch modal deploy" in ran.stdout
    assert "set it to modal" in ran.stdout
    assert "RENDERDISPATCH_STORAGE" in ran.stdout


def test_check_says_that_there_is_no_token() -> None:
    """And how to get one."""
    ran = run("check", "--json", env=SET)
    assert ran.returncode == 1
    assert "modal token new" in ran.stdout


def test_doctor_looks_at_modal_where_it_is_a_backend(server: LoopbackModal) -> None:
    """The same checks, among its own; where renders stay here, it says nothing of Modal."""
    ran = run_any(
        "doctor",
        "--json",
        server=server,
        env={"RENDERDISPATCH_BACKENDS": "modal,local", "RENDERDISPATCH_MODAL_APP": "nothing"},
    )
    found = {line["check"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert ran.returncode == 1
    assert found["modal token"]["status"] == "ok"
    assert "renderdispatch modal deploy" in found["modal function"]["said"]
    assert "RENDERDISPATCH_STORAGE" in found["modal storage"]["said"]
    assert "modal" not in run_any("doctor", "--json", server=server).stdout


@pytest.mark.long
def test_check_waits_seconds_for_modal() -> None:
    """Modal's client would wait for a minute."""
    away = {
        "MODAL_SERVER_URL": "http://127.0.0.1:9",
        "MODAL_TOKEN_ID": "ak-1",
        "MODAL_TOKEN_SECRET": "as-not-to-be-seen",
    }
    ran = run("check", env={**SET, **away})
    assert ran.returncode == 1
    assert "did not answer" in ran.stdout
    assert "not-to-be-seen" not in ran.stdout + ran.stderr


# --- what can be chosen ---------------------------------------------------------------------------


def test_a_deployment_survives_its_environment() -> None:
    """What is written is what is read."""
    chosen = Deployment(app="mine", gpu=(), cpu=0.5, memory=256, worker=True, secret="s", period=30)
    assert Deployment.from_environment(chosen.to_environment()) == chosen
    assert Deployment.from_environment({}) == Deployment()
    assert Deployment().gpu == ()


def test_a_container_reads_only_what_was_carried() -> None:
    """Other variables of these names may be the application's, in the worker's secret."""
    chosen = Deployment(worker=True, secret="s", period=30, gpu=("T4",))
    environment = {**chosen.to_carry(), "RENDERDISPATCH_MODAL_GPU": "something newer"}
    found = Deployment.from_environment(environment, carried=True)
    assert (found.worker, found.secret, found.period) == (True, "s", 30)


def test_gpus_are_read() -> None:
    """Whatever their case, with counts; ``none`` is none."""
    assert read_gpus(" l4 , a100-80gb:8") == ("L4", "A100-80GB:8")
    assert read_gpus("None") == ()
    assert read_gpus(",".join(GPUS)) == GPUS
    with pytest.raises(UnknownNameError):
        read_gpus("L4,GTX")
    with pytest.raises(ConfigurationError):
        read_gpus("L4:two")


@pytest.mark.parametrize(
    ("name", "value"),
    [("CPU", "many"), ("CPU", "nan"), ("MEMORY", "1.5"), ("WORKER", "maybe"), ("SCALEDOWN_WINDOW", "1")],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    """And its value is not taken for another."""
    with pytest.raises(ConfigurationError, match=f"RENDERDISPATCH_MODAL_{name}"):
        Deployment.from_environment({f"RENDERDISPATCH_MODAL_{name}": value})


def test_without_the_extra_it_says_which(tmp_path: Path) -> None:
    """Where Modal's client is not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'modal' else find(name, *a)\n"
    )
    ran = run("deploy", env={"PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 2
    assert "renderdispatch[modal]" in ran.stderr

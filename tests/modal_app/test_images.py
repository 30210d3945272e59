"""Is what the image lists enough to render with, and does an installed wheel deploy as a checkout does?

Each test installs what it says into an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import renderdispatch
from renderdispatch.messages import Completed, Output
from renderdispatch.modal_app.deployment import APT_PACKAGES, RENDER_EXTRAS, pip_requirements
from renderdispatch.testing.modal import LoopbackModal
from tests.support.containers import Objects, read, serve_objects, song

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
SMALL = Output(width=64, height=36)


@pytest.fixture
def store() -> Iterator[Objects]:
    with serve_objects() as store:
        store.objects["song"] = song()
        yield store


def run(command: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: str = "") -> str:
    """Run a command in a clean environment, and return what it printed."""
    kept = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    clean = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(cwd or Path.cwd()), "PYTHONUTF8": "1", **kept}
    ran = subprocess.run(
        command,
        check=False,
        env={**clean, **(env or {})},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, (
        f"{command[:4]} ended with {ran.returncode}:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    )
    return ran.stdout


def new_venv(folder: Path, *requirements: str) -> str:
    """Make a virtual environment with these requirements, and return its Python."""
    run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    return python


def test_the_listed_system_packages_install() -> None:
    """By the names that the image gives them; the libraries are there afterwards."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        if os.environ.get("CI"):
            pytest.fail("the image's system packages have to be installed here: run as root, on Debian or Ubuntu")
        pytest.skip("only root can install system packages, and only with apt-get")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=quiet)
    run(["apt-get", "install", "-qq", "-y", *APT_PACKAGES], env=quiet)
    load = "import ctypes; ctypes.CDLL('libEGL.so.1'); ctypes.CDLL('libGL.so.1')"
    run([sys.executable, "-I", "-c", load])


def test_the_listed_requirements_render(store: Objects, tmp_path: Path) -> None:
    """With nothing but them and a copy of the source, as in the image: no metadata, none of this checkout's packages."""
    python = new_venv(tmp_path / "venv", *pip_requirements(*RENDER_EXTRAS))
    source = tmp_path / "root" / "renderdispatch"
    shutil.copytree(
        Path(renderdispatch.__file__).parent, source, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    )
    code = "import sys; from renderdispatch.runner.container import carry_out; print(carry_out(sys.stdin.read()))"
    order = store.order(scene="radial", output=SMALL).model_dump_json()
    answer = run([python, "-c", code], env={"PYTHONPATH": str(source.parent)}, cwd=tmp_path, stdin=order)
    outcome = read(answer.strip().splitlines()[-1])
    assert isinstance(outcome, Completed), outcome
    assert (outcome.artifact.frames, outcome.artifact.encoded_by) == (30, "libx264")
    assert len(store.objects["video"]) == outcome.artifact.bytes
    absent = "from importlib.metadata import version\nversion('renderdispatch')"
    ran = subprocess.run([python, "-c", absent], check=False, capture_output=True, text=True)
    assert "PackageNotFoundError" in ran.stderr


def test_an_installed_wheel_deploys_and_renders(store: Objects, tmp_path: Path) -> None:
    """In an environment of its own, by the command, and the same by hand."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    python = new_venv(tmp_path / "venv", f"renderdispatch[cli,modal,render] @ {wheel.as_uri()}")
    with LoopbackModal(container_env={"PYTHONPATH": ""}) as server:
        env = {**server.environment(), "TERM": "dumb", "COLUMNS": "200"}
        said = run(
            [python, "-m", "renderdispatch.cli", "modal", "deploy", "--gpu", "L4", "--allow-cpu-drawing"],
            env=env,
            cwd=tmp_path,
        )
        assert "RENDERDISPATCH_BACKENDS=modal" in said
        by_command = server.function("render", app="renderdispatch")
        by_hand_env = {**env, "RENDERDISPATCH_MODAL_GPU": "L4"}
        by_hand = [python, "-m", "modal", "deploy", "-m", "renderdispatch.modal_app", "--name", "by-hand"]
        run(by_hand, env=by_hand_env, cwd=tmp_path)
        other = server.function("render", app="by-hand")
        assert (by_command.gpus, by_command.cpu, by_command.memory_mb, by_command.timeout_s, by_command.retries) == (
            other.gpus,
            other.cpu,
            other.memory_mb,
            other.timeout_s,
            other.retries,
        )
        assert (by_command.secrets, other.secrets) == ((), ())
        checked = run([python, "-m", "renderdispatch.cli", "modal", "deploy", "--dry-run"], env=env, cwd=tmp_path)
        assert checked.splitlines()[-1] == "modal deploy -m renderdispatch.modal_app"
        order = store.order(scene="wave", output=SMALL).model_dump_json()
        outcome = read(server.function_handle("renderdispatch", "render").remote(order))
    assert isinstance(outcome, Completed), outcome
    assert json.loads(store.objects["result"])["type"] == "completed"

"""Does the template for users' own images and renderers do as it says?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.messages import Completed, Failed, Output
from renderdispatch.testing.modal import LoopbackModal
from tests.support.containers import Objects, read, serve_objects, song

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = Output(width=64, height=36)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackModal]:
    with LoopbackModal() as server:
        server.deploy("modal_own_image", cwd=EXAMPLES)
        yield server


@pytest.fixture
def store() -> Iterator[Objects]:
    with serve_objects() as store:
        store.objects["song"] = song()
        yield store


def test_the_template_deploys_as_a_file(server: LoopbackModal, tmp_path: Path) -> None:
    """From anywhere, as its first line says."""
    command = [sys.executable, "-m", "modal", "deploy", str(EXAMPLES / "modal_own_image.py"), "--name", "as-a-file"]
    env = {"PATH": "", "PYTHONUTF8": "1", "TERM": "dumb", **server.environment()}
    ran = subprocess.run(command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert server.function("render", app="as-a-file").secrets == ()


def test_the_templates_image_has_its_packages(server: LoopbackModal) -> None:
    """On top of ours."""
    assert any("pillow" in command for layer in server.image_layers for command in layer.commands)
    render = server.function("render", app="my-renderer")
    assert (render.retries, render.secrets, render.gpus) == (0, (), ("L4", "A10", "T4"))


@pytest.mark.parametrize("scene", ["square", "wave"])
def test_its_scene_renders_beside_ours(server: LoopbackModal, store: Objects, scene: str) -> None:
    """By the name that the template gives it, without any package's metadata."""
    order = store.order(scene=scene, output=SMALL)
    call = server.function_handle("my-renderer", "render").spawn(order.model_dump_json())
    outcome = read(call.get(timeout=90))
    assert isinstance(outcome, Completed), outcome
    assert len(store.objects["video"]) == outcome.artifact.bytes


def test_an_unknown_scene_is_the_requests_fault(server: LoopbackModal, store: Objects) -> None:
    """And the answer says what there is."""
    order = store.order(scene="squares", output=SMALL)
    outcome = read(server.function_handle("my-renderer", "render").remote(order.model_dump_json()))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "scene.unknown"

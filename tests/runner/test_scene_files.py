"""Scenes in files that no package registers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import InvalidRequestError, UnknownNameError
from renderdispatch.protocols import SupportsParams, SupportsPreview
from renderdispatch.runner.renderers import find_renderer, load_renderer
from renderdispatch.runner.scene_files import SceneFile, load_scene_file, read_scene_file
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from tests.support.command_line import SCENE_FILE


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Forget what a test imported."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a scene that imports its neighbour."""
    (tmp_path / "trail.py").write_text(SCENE_FILE)
    (tmp_path / "neighbour.py").write_text("COLOUR = '#00ff00'\n")
    return tmp_path


@pytest.mark.parametrize("name", ["trail", "Trail", "Plain"])
def test_a_renderer_and_a_class_are_scenes(folder: Path, name: str) -> None:
    """A class becomes a renderer, with the parameters that its first argument is annotated with."""
    renderer = load_renderer("any", f"{folder / 'trail.py'}:{name}")
    assert isinstance(renderer, SupportsPreview) and isinstance(renderer, SupportsParams)
    assert [param.name for param in renderer.describe_params()] == ([] if name == "Plain" else ["colour"])


def test_a_class_without_arguments_is_refused_as_a_scene_is(tmp_path: Path) -> None:
    """Once it is made: then Python's own message says what is missing."""
    (tmp_path / "bare.py").write_text(
        "from renderdispatch.render.scene import Scene\n\n\nclass Bare(Scene):\n    def __init__(self): pass\n"
    )
    renderer = load_scene_file(SceneFile(tmp_path / "bare.py", "Bare"))
    assert isinstance(renderer, SupportsParams) and not renderer.describe_params()


def test_the_suffix_may_be_in_capitals(folder: Path) -> None:
    """As on the disks of cameras and of old systems."""
    (folder / "trail.py").rename(folder / "TRAIL.PY")
    load_scene_file(SceneFile(folder / "TRAIL.PY", "Trail"))


def test_a_name_of_a_module_of_python_is_no_trouble(folder: Path) -> None:
    """A file that is called as a module of Python's own takes the place of neither."""
    import wave

    (folder / "trail.py").rename(folder / "wave.py")
    load_scene_file(SceneFile(folder / "wave.py", "Trail"))
    assert sys.modules["wave"] is wave


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (None, "x", "there is no file"),
        ("x = 1", "y", "it defines no scene"),
        ("x = 1", "x", "neither a scene nor a renderer, but int"),
        ("\n1 / 0", "x", "cannot be imported in line 2: ZeroDivisionError"),
        ("def", "x", "cannot be imported"),
        ("import sys; sys.exit(3)", "x", "SystemExit: 3"),
        ("class X:\n    def __init__(self): raise OSError('no such thing')", "X", "no such thing"),
        ("class X:\n    def __init__(self): raise SystemExit(3)", "X", "cannot be used: SystemExit: 3"),
        ("class X: pass", "", "name a scene of odd.py"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, code: str | None, name: str, said: str) -> None:
    """One error, with the line where there is one."""
    if code is not None:
        (tmp_path / "odd.py").write_text(code)
    with pytest.raises(InvalidRequestError) as refused:
        load_scene_file(SceneFile(tmp_path / "odd.py", name))
    assert refused.value.code == "scene.file"
    assert said in str(refused.value)
    assert "odd" not in sys.modules or "cannot be imported" not in said


@pytest.mark.parametrize("text", ["bars", "trail", "a.b:c", "py:x", "trail.python:x"])
def test_other_names_are_no_files(text: str) -> None:
    """A scene of an entry point stays one."""
    assert read_scene_file(text) is None


def test_a_string_never_names_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a web form sends is looked up among the registered scenes alone, and nothing is imported."""
    monkeypatch.chdir(folder)
    for text in ("trail.py:trail", f"{folder}/trail.py:trail"):
        with pytest.raises(UnknownNameError) as refused:
            find_renderer(text)
        assert refused.value.code == "scene.unknown"
        backend = LocalGpuBackend()
        with (
            RenderService(MemoryJobStore(), FsspecStorage(folder / "objects"), backend, worker=False) as service,
            pytest.raises(UnknownNameError),
        ):
            service.submit(b"a song", scene=text)
    assert "trail" not in sys.modules

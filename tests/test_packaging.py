"""What does an installation give: a quick import, a complete wheel, names that resolve?"""

from __future__ import annotations

import ast
import inspect
import statistics
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import renderdispatch
from renderdispatch import AsyncJobHandle, AsyncRenderService, JobHandle, RenderService
from renderdispatch.cli import main
from renderdispatch.runner.renderers import SHIPPED

ROOT = Path(__file__).parents[1]
HEAVY = {"s3fs", "modal", "sqlalchemy", "av", "numpy", "PIL", "httpx"}


def _loaded_by(code: str, heavy: set[str] = HEAVY) -> set[str]:
    """Return which of the heavy libraries an interpreter has loaded after the code."""
    script = f"{code}\nimport sys; print(*sorted({heavy!r} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(ran.stdout.split())


def _seconds(code: str) -> float:
    script = f"import time; t = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)


def test_files_of_tests_have_different_names() -> None:
    """pytest collects no two files of one name where folders are no packages, but one alone, or each alone, passes."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import renderdispatch",
        "import renderdispatch; renderdispatch.RenderService, renderdispatch.AsyncRenderService",
        "import renderdispatch; renderdispatch.Job, renderdispatch.Output, renderdispatch.JobFailedError",
        "import renderdispatch.cli",
        "import renderdispatch.webhooks",
    ],
)
def test_import_loads_no_heavy_library(code: str) -> None:
    """Neither the package nor its facade needs a store, a storage or a renderer's libraries."""
    assert _loaded_by(code) == set()


def test_the_service_loads_what_it_needs() -> None:
    """Settings, the async facade, adapters and the runner are loaded when they are used. No model is built."""
    others = {"pydantic_settings", "anyio", "platformdirs", "fsspec", "renderdispatch.runner", "renderdispatch.render"}
    plugins = "importlib.metadata"  # pydantic looks for plugins when it builds its first model
    assert _loaded_by("from renderdispatch import RenderService", HEAVY | others | {plugins}) == set()


def test_import_is_quick() -> None:
    """At most 150 ms more than pydantic, which every program of this kind has loaded anyway: the best of several."""
    bare, full = [], []
    for _ in range(5):
        bare.append(_seconds("import pydantic; pydantic.BaseModel"))
        full.append(_seconds("import pydantic; pydantic.BaseModel; import renderdispatch"))
    assert min(full) - min(bare) < 0.150, (statistics.median(full), statistics.median(bare))


def test_all_names_are_there() -> None:
    """`__all__`, the table of modules, and what type checkers are told, name the same things."""
    assert sorted(renderdispatch.__all__) == sorted(renderdispatch._MODULE_OF) == dir(renderdispatch)
    for name in renderdispatch.__all__:
        assert getattr(renderdispatch, name) is not None
    tree = ast.parse(inspect.getsource(renderdispatch))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module is not None
    }
    assert told == {name: f"renderdispatch.{module}" for name, module in renderdispatch._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As with any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = renderdispatch.Nothing


def test_entry_points_resolve() -> None:
    """The command and the scenes of this package can be loaded."""
    groups = ("console_scripts", "renderdispatch.renderers")
    ours = {
        point.name: point.load()
        for group in groups
        for point in entry_points(group=group)
        if point.value.startswith("renderdispatch.")
    }
    assert set(ours) == {"renderdispatch", *SHIPPED}
    assert ours["renderdispatch"] is main


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """Every module and every scene in GLSL is in it, and the marker that tells type checkers to look."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert version("renderdispatch") in wheel.name
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for kind in ("*.py", "*.glsl") for path in source.rglob(kind)}
    assert files <= inside
    assert "renderdispatch/py.typed" in inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


# --- the async twins ------------------------------------------------------------------------------


STREAMS = {"open_object", "open_video"}
"""An open file blocks at each read, so async code takes ``download_url`` or ``save``."""


def _public(cls: type) -> dict[str, object]:
    return {name: value for name, value in vars(cls).items() if not name.startswith("_") and name not in STREAMS}


def _parameters(function: object) -> list[tuple[str, object, object]]:
    assert callable(function)
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("blocking", "twin"), [(RenderService, AsyncRenderService), (JobHandle, AsyncJobHandle)])
def test_the_async_twin_has_the_same_names(blocking: type, twin: type) -> None:
    """Neither has a method that the other lacks."""
    assert sorted(_public(twin)) == sorted(_public(blocking))


@pytest.mark.parametrize(
    ("blocking", "twin", "name"),
    [
        (blocking, twin, name)
        for blocking, twin in [(RenderService, AsyncRenderService), (JobHandle, AsyncJobHandle)]
        for name in sorted(_public(blocking))
    ],
)
def test_the_async_twin_has_the_same_parameters(blocking: type, twin: type, name: str) -> None:
    """Names, kinds and defaults are the same; a property of the one is a coroutine of the other."""
    ours, theirs = _public(blocking)[name], _public(twin)[name]
    if isinstance(ours, property):
        assert inspect.iscoroutinefunction(theirs)
        assert _parameters(theirs) == _parameters(ours.fget)
    else:
        assert _parameters(theirs) == _parameters(ours)

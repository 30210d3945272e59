"""Which parameters do scenes take, and how are they checked?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from renderdispatch.errors import InvalidRequestError, SceneError, UnknownNameError
from renderdispatch.messages import RenderOrder
from renderdispatch.protocols import Renderer, SupportsGpu, SupportsParams
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.params import SceneParams, describe_params, read_params
from renderdispatch.render.scene import NumpyRenderer

RENDERERS = [bars, wave, radial]


@pytest.mark.parametrize("renderer", RENDERERS, ids=repr)
def test_the_shipped_renderers_keep_the_protocols(renderer: NumpyRenderer) -> None:
    """They render, know their parameters, and do not claim a GPU."""
    assert isinstance(renderer, Renderer)
    assert isinstance(renderer, SupportsParams)
    assert not isinstance(renderer, SupportsGpu)


@pytest.mark.parametrize("renderer", RENDERERS, ids=repr)
def test_parameters_are_described(renderer: NumpyRenderer) -> None:
    """Each has a name, a type, a default and a line of help; the defaults themselves are accepted."""
    infos = renderer.describe_params()
    assert [info.name for info in infos] == list(renderer.params.model_fields)
    assert all(info.type and info.default and info.help for info in infos)
    renderer.check_params({info.name: info.default for info in infos})


def test_types_are_told_readably() -> None:
    """What a user sees in the help."""
    types = {info.name: (info.type, info.default) for info in bars.describe_params()}
    assert types["bars"] == ("integer 4 to 96", "64")
    assert types["colours"] == ("list of #rrggbb", "#5b5bff,#b44dff,#ff4d9d,#ffb35c")
    assert types["peaks"] == ("true or false", "true")


def test_an_unknown_parameter_names_the_near_ones() -> None:
    """A typing error is answered with what was meant."""
    with pytest.raises(UnknownNameError, match="did you mean 'colours'") as caught:
        bars.check_params({"colors": ["#ffffff"]})
    assert caught.value.code == "param.unknown"


@pytest.mark.parametrize(
    "params",
    [{"bars": 3}, {"bars": "many"}, {"background": "red"}, {"colours": []}, {"colours": "#fff"}, {"gain": None}],
)
def test_a_bad_value_is_one_readable_line(params: dict[str, Any]) -> None:
    """The message names the parameter, in one line, without the value."""
    with pytest.raises(InvalidRequestError, match=f"^parameter '{next(iter(params))}") as caught:
        bars.check_params(params)
    assert caught.value.code == "param.invalid"
    assert "\n" not in str(caught.value)


def test_a_command_line_can_write_every_value() -> None:
    """Text is read as the number, the truth or the list that it spells."""
    bars.check_params({"bars": "48", "gain": "1.5", "peaks": "false", "colours": "#102030, #405060"})


def test_bad_parameters_fail_the_render_as_the_scenes_fault(tmp_path: Path, order: Callable[..., RenderOrder]) -> None:
    """An order that nobody checked is refused with the same code."""
    with pytest.raises(SceneError) as caught:
        bars.render(order(params={"bars": 0}), tmp_path / "a.wav", tmp_path / "a.mp4", lambda done, total: None)
    assert caught.value.code == "param.invalid"


def test_importing_the_renderers_loads_neither_numpy_nor_av() -> None:
    """Parameters are checked and described where nothing is rendered."""
    script = (
        "import sys, renderdispatch.render as r\n"
        "r.bars.check_params({'bars': 8}); r.wave.describe_params()\n"
        "assert not {'numpy', 'av', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("missing", ["numpy", "av", "PIL"])
def test_a_missing_extra_is_named(missing: str) -> None:
    """Rendering without NumPy, PyAV or Pillow says what to install."""
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from pathlib import Path\n"
        "from renderdispatch.errors import MissingExtraError\n"
        "from renderdispatch.render import bars\n"
        "try: bars.render(None, Path(), Path(), print)\n"
        "except MissingExtraError as error: assert 'renderdispatch[render]' in str(error)\n"
        "else: raise SystemExit('rendered?')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Shape(StrEnum):
    """Choices with a name."""

    ROUND = "round"
    FLAT = "flat"


class OddParams(SceneParams):
    """Kinds that scenes of other authors have."""

    mode: Literal["a", "b"] = "a"
    only: Literal[3] = 3
    size: int | str = 3
    title: str | None = None
    shape: Shape = Shape.FLAT
    sizes: list[int] = Field(default=[1, 2])
    pair: tuple[float, float] = (0.5, 1)


def test_choices_and_unions_are_described() -> None:
    """A user sees what may be set."""
    assert [(info.name, info.type, info.default) for info in describe_params(OddParams)] == [
        ("mode", "a or b", "a"),
        ("only", "3", "3"),
        ("size", "integer or text", "3"),
        ("title", "text or nothing", "None"),
        ("shape", "round or flat", "flat"),
        ("sizes", "list of integer", "1,2"),
        ("pair", "list of number, number", "0.5,1"),
    ]


def test_each_list_may_be_written_with_commas() -> None:
    """As a command line shows it, and so takes it."""
    params = read_params(OddParams, {"sizes": "3, 4", "pair": "1,2.5"})
    assert params.model_dump()["sizes"] == [3, 4]
    assert params.model_dump()["pair"] == (1, 2.5)
    with pytest.raises(InvalidRequestError, match=r"sizes\.0"):
        read_params(OddParams, {"sizes": "x"})

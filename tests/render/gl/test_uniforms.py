"""What do the uniforms of a shader hold?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.errors import SceneError
from renderdispatch.messages import Asset, Output, RenderOrder
from renderdispatch.render import glsl
from renderdispatch.render.features import BANDS, TEXTURE_WIDTH, WAVE_POINTS, Frame
from renderdispatch.render.gl.renderer import uniforms_of
from renderdispatch.render.params import Colour, Colours, SceneParams
from tests.support.needs import need_opengl


class Params(SceneParams):
    many: int = 3
    far: float = 0.5
    bright: bool = True
    sky: Colour = "#ff0033"
    colours: Colours = ("#000000", "#ffffff")


def test_each_parameter_is_a_uniform() -> None:
    """Numbers, truths and colours; a list of colours has eight places, filled with its last one, and its length."""
    declarations, values = uniforms_of(Params())
    assert declarations.splitlines() == [
        "uniform int many;",
        "uniform float far;",
        "uniform bool bright;",
        "uniform vec3 sky;",
        "uniform int coloursCount;",
        "uniform vec3 colours[8];",
    ]
    assert values == {
        "many": 3,
        "far": 0.5,
        "bright": True,
        "sky": (1.0, 0.0, 0.2),
        "coloursCount": 2,
        "colours": [(0.0, 0.0, 0.0)] + 7 * [(1.0, 1.0, 1.0)],
    }


def test_other_parameters_cannot_be_uniforms() -> None:
    """The error names the parameter and its type."""

    class Odd(SceneParams):
        table: Path = Path("table")

    with pytest.raises(TypeError, match="'table': PosixPath"):
        uniforms_of(Odd())


@pytest.mark.parametrize(("used", "red"), [("iBands[0]", 0), ("iBands[2]", 2), ("iBands[iFrame + 95]", 95)])
def test_a_part_of_an_array_can_be_used(tmp_path: Path, order: Callable[..., RenderOrder], used: str, red: int) -> None:
    """Compilers drop the end of an array that a shader does not use; what it uses has its value."""
    need_opengl()
    text = f"void mainImage(out vec4 colour, in vec2 place) {{ colour = vec4(vec3({used}), 1.0); }}"
    file = tmp_path / "shader.glsl"
    file.write_text(text)
    bands = np.zeros(BANDS, np.float32)
    bands[red] = 1
    silence: dict[str, Any] = {
        "wave": np.zeros(WAVE_POINTS, np.float32),
        "texture": np.zeros((2, TEXTURE_WIDTH), np.uint8),
    }
    frame = Frame(index=0, time_s=0.0, level=0.0, beat=0.0, bands=bands, **silence)
    wanted = order(output=Output(width=16, height=16), scene_file=Asset(url="", size=len(text), path=str(file)))
    with glsl.artist(wanted) as artist:
        assert (artist.draw(artist.start(), frame).luma == 235).all()


def test_an_integer_that_opengl_has_not() -> None:
    """It is the request's mistake, with the parameter's name."""
    with pytest.raises(SceneError, match="'many' is too large") as caught:
        uniforms_of(Params(many=2**31))
    assert caught.value.code == "param.invalid"

"""What do the uniforms of a shader hold?"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import repeat
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


def frames_of(levels: list[float]) -> list[Frame]:
    """Return frames in which the sound and all its bands are that loud."""
    texture, waveform = np.zeros((2, TEXTURE_WIDTH), np.uint8), np.zeros(WAVE_POINTS, np.float32)
    return [
        Frame(
            index=index,
            time_s=0.0,
            level=level,
            beat=0.0,
            bands=np.full(BANDS, level, np.float32),
            wave=waveform,
            texture=texture,
        )
        for index, level in enumerate(levels)
    ]


def swells(order: Callable[..., RenderOrder], folder: Path, levels: list[float], fps: int) -> list[float]:
    """Return what `iSwell` is in frames of these levels; the swells of the bands are the same."""
    need_opengl()
    text = "void mainImage(out vec4 colour, in vec2 place) { colour = vec4(place.x < 8.0 ? iSwell : iSwells[70]); }"
    (file := folder / "shader.glsl").write_text(text)
    output = Output(width=16, height=16, fps=Fraction(fps))
    found = []
    with glsl.artist(order(output=output, scene_file=Asset(url="", size=len(text), path=str(file)))) as artist:
        state = artist.start()
        for frame in frames_of(levels):
            state = artist.step(state, frame)
            luma = artist.draw(state, frame).luma.astype(float)
            assert luma.std() < 1
            found.append((luma.mean() - 16) / 219)
    return found


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_a_swell_rises_soon_and_falls_slowly(tmp_path: Path, order: Callable[..., RenderOrder], fps: int) -> None:
    """It is nearly as loud as the sound after 0.1 s, and nearly as quiet after 0.5 s, at every frame rate."""
    rising = swells(order, tmp_path, [1.0] * fps + [0.0] * fps, fps)
    assert 0.85 < rising[round(0.1 * fps)] < 0.99
    assert 0.05 < rising[fps - 1 + round(0.5 * fps)] < 0.12


def test_a_swell_does_not_flicker(tmp_path: Path, order: Callable[..., RenderOrder]) -> None:
    """Of a level that goes up and down from frame to frame, little is left."""
    found = swells(order, tmp_path, [level for _ in repeat(None, 20) for level in (0.5, 0.8)], 30)
    assert np.abs(np.diff(found[10:])).max() < 0.06
    assert 0.5 < min(found[10:]) < max(found[10:]) < 0.8


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

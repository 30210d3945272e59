"""A shader that offers Shadertoy's ``mainVR`` is drawn in all directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import Asset, Output, Projection, RenderOrder
from renderdispatch.render import glsl
from renderdispatch.render.features import BANDS, TEXTURE_WIDTH, WAVE_POINTS, Frame
from renderdispatch.render.picture import Converter
from tests.support.needs import need_opengl

FLAT = "void mainImage(out vec4 colour, in vec2 place) { colour = vec4(0.0, 0.0, 1.0, 1.0); }\n"
AHEAD = FLAT + (
    "void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 ahead) { colour = vec4(0.5 + 0.5 * ahead, 1.0); }"
)
EYE = FLAT + (
    "void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 ahead) {"
    " colour = vec4(0.5 + 8.0 * origin, 1.0); }"
)
SIZE = FLAT + (
    "void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 ahead) {"
    " colour = vec4(place / iResolution.xy, 0.0, 1.0); }"
)

SILENCE = Frame(
    index=0,
    time_s=0.0,
    level=0.0,
    beat=0.0,
    bands=np.zeros(BANDS, np.float32),
    wave=np.zeros(WAVE_POINTS, np.float32),
    texture=np.zeros((2, TEXTURE_WIDTH), np.uint8),
)
Draw = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def draw(tmp_path: Path, order: Callable[..., RenderOrder]) -> Draw:
    """Return what draws the first frame of a shader, in RGB."""
    need_opengl()
    file = tmp_path / "shader.glsl"

    def drawn(text: str, width: int, height: int, projection: Projection) -> NDArray[np.uint8]:
        file.write_text(text)
        asset = Asset(url="", size=len(text), path=str(file))
        wanted = order(output=Output(width=width, height=height, projection=projection), scene_file=asset)
        with glsl.artist(wanted) as artist:
            picture = artist.draw(artist.step(artist.start(), SILENCE), SILENCE)
        canvas = np.zeros((height, width, 3), np.uint8)
        Converter().to_rgb(picture, canvas)
        return canvas

    return drawn


def directions(width: int, height: int) -> NDArray[np.float64]:
    """Return where the pixels of a whole sphere look: (rows, columns, 3), x to the right, y up, -z ahead."""
    longitude = ((np.arange(width) + 0.5) / width - 0.5)[None] * 2 * np.pi
    latitude = (0.5 - (np.arange(height) + 0.5) / height)[:, None] * np.pi
    parts = np.cos(latitude) * np.sin(longitude), np.sin(latitude), -np.cos(latitude) * np.cos(longitude)
    return np.stack(np.broadcast_arrays(*parts), axis=-1)


def test_each_pixel_looks_in_its_own_direction(draw: Draw) -> None:
    """The middle of the picture is ahead, its left end and its right end are behind, its top row is above."""
    seen = draw(AHEAD, 128, 64, "360-mono") / 255 * 2 - 1
    assert np.abs(seen - directions(128, 64)).max() < 0.08


def test_both_eyes_look_in_the_same_directions(draw: Draw) -> None:
    """The left eye's picture is above the right eye's."""
    seen = draw(AHEAD, 128, 128, "360-stereo") / 255 * 2 - 1
    for eye in (seen[:64], seen[64:]):
        assert np.abs(eye - directions(128, 64))[2:-2].max() < 0.08


def test_the_eyes_are_beside_the_middle_of_the_head(draw: Draw) -> None:
    """Each is 32 mm away, at right angles to where it looks: the left one to the left."""
    seen = (draw(EYE, 128, 128, "360-stereo") / 255 - 0.5) / 8
    longitude = ((np.arange(128) + 0.5) / 128 - 0.5) * 2 * np.pi
    right = np.stack([np.cos(longitude), np.zeros(128), np.sin(longitude)], axis=-1)[None]
    for side, eye in ((-1, seen[2:62]), (1, seen[66:126])):
        assert np.abs(eye - side * 0.032 * right).max() < 0.004


def test_with_one_eye_the_origin_is_the_middle_of_the_head(draw: Draw) -> None:
    """In mono, nothing is shifted."""
    assert np.abs(draw(EYE, 128, 64, "360-mono").astype(int) - 128).max() <= 2


@pytest.mark.parametrize("height", [128, 130])
def test_each_eye_has_a_picture_of_its_own(draw: Draw, height: int) -> None:
    """Places begin at the lower left corner of each eye's picture, whose size is the resolution.

    Where the height is no multiple of 4, the two pictures overlap in two rows.
    """
    seen = draw(SIZE, 128, height, "360-stereo")
    rows = {128: 64, 130: 66}[height]
    above = 255 * (rows - 0.5 - np.arange(rows)) / rows
    for eye in (seen[:rows], seen[-rows:]):
        assert np.abs(eye[:, 64, 1] - above)[4:-4].max() < 8


def test_a_flat_video_is_drawn_by_main_image(draw: Draw) -> None:
    """``mainVR`` draws 360 videos alone."""
    assert draw(AHEAD, 64, 36, "flat")[18, 32].tolist() == pytest.approx([0, 0, 255], abs=3)


def test_a_shader_without_it_is_shown_on_the_screen(draw: Draw) -> None:
    """The picture of ``mainImage`` is on the screen ahead, as that of every other scene, and lights the room."""
    seen = draw(FLAT, 256, 128, "360-mono")
    assert seen[64, 128].tolist() == pytest.approx([0, 0, 255], abs=3)
    assert seen[64, 4, 2] < 120
    commented = draw(FLAT + "// void mainVR(\n", 256, 128, "360-mono")
    assert np.array_equal(seen, commented)

"""A scene that draws from its own earlier pictures has the posters and previews of its video."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from renderdispatch.messages import Asset, ObjectUrls, Output, Projection, RenderOrder, RenderStats, SignedPut
from renderdispatch.render import glsl
from renderdispatch.render.music import compose
from tests.support.needs import need_opengl

COUNTING = """{run_up}
//! Buffer A
//! iChannel1: Buffer A
void mainImage(out vec4 colour, in vec2 place) {{
    colour = texelFetch(iChannel1, ivec2(place), 0) + vec4(1.0);
}}
//! Image
//! iChannel1: Buffer A
void mainImage(out vec4 colour, in vec2 place) {{
    float count = texelFetch(iChannel1, ivec2(place), 0).r;
    colour = vec4(vec3({shown}), 1.0);
}}
"""
"""Its buffer counts the frames that were drawn since it was black."""

POSTER = ObjectUrls(key="poster", put=SignedPut(url=""))
Render = Callable[..., tuple[Path, RenderStats]]


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """Return three seconds of music."""
    need_opengl()
    path = tmp_path / "song.wav"
    compose(path, seconds=3)
    return path


def scene(tmp_path: Path, *, run_up: str = "", shown: str = "count / 100.0") -> Asset:
    """Return a file of the scene."""
    file = tmp_path / "counting.glsl"
    file.write_text(COUNTING.format(run_up=run_up, shown=shown))
    return Asset(url="", size=file.stat().st_size, path=str(file))


def greys(video: Path) -> list[float]:
    """Return the mean of each frame, 0 to 255."""
    with av.open(str(video)) as container:
        return [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]


@pytest.mark.parametrize("projection", ["flat", "360-mono"])
def test_the_poster_is_a_frame_of_the_video(tmp_path: Path, song: Path, render: Render, projection: Projection) -> None:
    """It has the whole past, although the scene cannot be drawn from the middle."""
    output = Output(width=256, height=128, fps=Fraction(10), projection=projection)
    given: dict[str, Any] = {"output": output, "poster": POSTER, "scene_file": scene(tmp_path)}
    video, stats = render(glsl, song, **given)
    with av.open(str(video)) as container:
        middle = [frame.to_ndarray(format="rgb24")[64, 128, 0] for frame in container.decode(video=0)]
    with Image.open(video.with_suffix(".jpg")) as poster:
        shown = np.asarray(poster.convert("L")).mean()
    assert stats.frames == 30
    assert min(abs(float(grey) - shown) for grey in middle) < 3
    assert shown > 255 * 0.05


@pytest.mark.parametrize(
    ("run_up", "expected"), [("", 21), ("//! run-up: 5", 6), ("//! run-up: 0", 1), ("//! run-up: 100", 21)]
)
def test_a_preview_is_drawn_after_the_run_up(
    tmp_path: Path, song: Path, order: Callable[..., RenderOrder], run_up: str, expected: int
) -> None:
    """Without one, everything before the frame is drawn; with one, as many frames as it says."""
    wanted = order(output=Output(width=64, height=36, fps=Fraction(10)), scene_file=scene(tmp_path, run_up=run_up))
    picture = tmp_path / "frame.png"
    assert glsl.preview(wanted, song, picture, lambda done, total: None, at=2.0) == 20
    with Image.open(picture) as image:
        assert np.asarray(image).mean() == pytest.approx(255 * expected / 100, abs=2)


def test_a_video_is_drawn_from_black_on(tmp_path: Path, song: Path, render: Render) -> None:
    """Its first frame has no past, whatever run-up the scene wants, and no frame is drawn twice."""
    output = Output(width=64, height=36, fps=Fraction(10))
    video, _ = render(glsl, song, output=output, scene_file=scene(tmp_path, run_up="//! run-up: 5"))
    assert greys(video) == pytest.approx([255 * count / 100 for count in range(1, 31)], abs=3)

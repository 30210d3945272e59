"""What does a Shadertoy file get from a job: its song's rate, its images, and the cover?"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderdispatch.errors import InvalidRequestError, SceneError
from renderdispatch.messages import Asset, RenderStats
from renderdispatch.render import glsl
from renderdispatch.render.features import Features
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.preview import draw_moment
from tests.support.shaders import GREEN, artist_of, draw_each, is_all

Render = Callable[..., tuple[Path, RenderStats]]
SHOW = "void mainImage(out vec4 o, in vec2 p) {{ o = {} ? vec4(0, 1, 0, 1) : vec4(1, 0, 0, 1); }}"


def asset(path: Path) -> Asset:
    return Asset(url="", size=path.stat().st_size, path=str(path))


@pytest.fixture
def is_green(
    device: GlDevice, tmp_path: Path, order: Callable[..., Any], write_wav: Callable[..., Path]
) -> Callable[..., bool]:
    """Return whether a condition in GLSL holds in the second frame of a render."""

    def check(condition: str, *, rate: int = 44_100, text: str = "", **given: Any) -> bool:
        song = write_wav(tmp_path / "song.wav", np.sin(np.arange(rate // 10)), rate)
        shader = tmp_path / "a scene.glsl"
        shader.write_text(text + SHOW.format(condition))
        made = order(scene="glsl", scene_file=asset(shader), **given)
        moment = draw_moment(made, song, lambda _done, _total: None, at=0.05, renderer=glsl)
        return is_all(moment.picture, GREEN)

    return check


@pytest.mark.parametrize(("rate", "heard"), [(44_100, 44_100), (48_000, 48_000), (22_050, 44_100)])
def test_the_rate_of_the_song(is_green: Callable[..., bool], rate: int, heard: int) -> None:
    """iSampleRate is that of the video's sound, which the texture is made of: a texel is found from its frequency."""
    assert is_green(f"iSampleRate == {heard}.0 && iFrame == 1", rate=rate)


def test_parts_of_features_keep_the_rate(tmp_path: Path) -> None:
    """A slice of a song, as one of several machines reads it, has it too."""
    (tmp_path / "features").write_bytes(bytes(10_000))
    nothing = np.zeros(3, np.float32)
    whole = Features(
        path=tmp_path / "features",
        fps=Fraction(30),
        level=nothing,
        beat=nothing,
        tops_db=np.zeros(96, np.float32),
        rate=48_000,
    )
    with whole, whole.slice(1, 3) as part:
        assert part.frame(1).rate == 48_000


def test_images_of_an_order(is_green: Callable[..., bool], tmp_path: Path) -> None:
    """They are iChannel1 to iChannel3, whole and right way up."""
    images = []
    for number, size in enumerate([(40, 10), (10, 30), (3, 3)]):
        pixels = np.zeros((*size[::-1], 4), np.uint8)
        pixels[0, 0] = (255, 0, 0, 100 + number)
        images.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(images[-1])
    condition = " && ".join(
        f"iChannelResolution[{n}].xy == vec2({w}, {h})"
        f" && distance(255.0 * texelFetch(iChannel{n}, ivec2(0, {h - 1}), 0), vec4(255, 0, 0, {99 + n})) < 1e-3"
        for n, w, h in [(1, 40, 10), (2, 10, 30), (3, 3, 3)]
    )
    assert is_green(condition, images=tuple(map(asset, images)))


def test_a_broken_image(is_green: Callable[..., bool], tmp_path: Path) -> None:
    """The render fails with the image's code, before a frame."""
    (tmp_path / "image.png").write_bytes(b"nothing")
    with pytest.raises(InvalidRequestError) as caught:
        is_green("true", images=(asset(tmp_path / "image.png"),))
    assert caught.value.code == "image.invalid"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("texture(iChannel2, p).x == 0.0", ""),
        ("texture(iCh2.sampler, p).x == 0.0", ""),
        ("texture(iChannel0, p).x == 0.0", "//! iChannel0: image 2\n"),
    ],
)
def test_a_missing_image(device: GlDevice, condition: str, text: str) -> None:
    """A file that reads an image that the job does not have is refused, with the way out."""
    channel = 0 if text else 2
    with pytest.raises(SceneError, match=f"Image reads image 2 from iChannel{channel}, and the job has no") as caught:
        artist_of(device, text + SHOW.format(condition), pictures={"image 1": np.zeros((1, 1, 3), np.uint8)})
    assert caught.value.code == "shader.image"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("iTime >= 0.0", ""),
        ("iChannelResolution[1] == vec3(0.0)", ""),
        ("texture(iChannel1, p) == vec4(0, 0, 0, 1) && iChannelResolution[1] == vec3(0.0)", "//! iChannel1: none\n"),
        ("texture(iChannel1, p).rgb == vec3(0.0) && iCh1.size == vec3(0.0)", "//! iChannel1: cover\n"),
    ],
    ids=["not read", "only its size", "none", "a cover that the song lacks"],
)
def test_nothing_to_read(device: GlDevice, condition: str, text: str) -> None:
    """A channel that reads nothing is black, and has no size."""
    artist = artist_of(device, text + SHOW.format(condition), pictures={})
    assert is_all(draw_each(artist, [0])[0], GREEN)


def test_reading_the_end_of_an_array(device: GlDevice) -> None:
    """Compilers cut arrays of inputs behind the last element that a file reads; they are set all the same."""
    for size in (1, 2, 50):
        condition = (
            f"abs(iBands[{size - 1}] - {size - 1}.0 / 95.0) < 1e-5 && iChannelResolution[{min(size, 4) - 1}].z < 2.0"
        )
        assert is_all(draw_each(artist_of(device, SHOW.format(condition)), [0])[0], GREEN)

"""Does `radial` fill each shape of picture, and show the cover in its ring?"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.render.features import BANDS, Frame
from renderdispatch.render.params import RadialParams
from renderdispatch.render.scene import SupportsCover
from renderdispatch.render.scenes.radial import Radial, RadialState

GREEN = (30, 200, 60)


def scene_of(width: int, height: int, **params: float) -> Radial:
    return Radial(RadialParams.model_validate(params), width=width, height=height, fps=Fraction(30))


def frame_at(beat: float) -> Frame:
    bands = np.zeros(BANDS, np.float32)
    return Frame(
        index=0,
        time_s=0.0,
        level=0.5,
        beat=beat,
        bands=bands,
        wave=np.zeros(512, np.float32),
        texture=np.zeros((2, 512), np.uint8),
    )


def painted(scene: Radial, *, heights: NDArray[np.floating] | float = 0.5, beat: float = 0.0) -> NDArray[np.int16]:
    """Paint a frame with rays of these heights."""
    shape = scene.shape
    canvas = np.zeros((shape.height, shape.width, 3), np.uint8)
    rays = np.broadcast_to(np.asarray(heights, np.float32), (shape.count,))
    scene.paint(RadialState(0.5, 0.0, rays), frame_at(beat), canvas)
    return canvas.astype(np.int16)


def plain(colour: tuple[int, int, int], size: int = 64) -> NDArray[np.uint8]:
    return np.full((size, size, 3), colour, np.uint8)


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (400, 400), (360, 780), (780, 360)])
def test_long_rays_reach_along_the_whole_height(width: int, height: int) -> None:
    """At full height the rays span nine tenths of the rows of any picture up to twice as high as wide, and stay in it."""
    scene = scene_of(width, height, glow=0, pulse=0)
    changed = np.abs(painted(scene, heights=1.0) - painted(scene, heights=0.0)).max(axis=2) > 20
    rows = np.flatnonzero(changed.any(axis=1))
    assert rows[-1] - rows[0] > 0.9 * min(height, 2 * width)
    assert not changed[:, [0, -1]].any()
    assert not changed[[0, -1]].any()


def test_both_sides_are_alike() -> None:
    """Where the music is the same on both sides, the right half mirrors the left one."""
    scene = scene_of(320, 240)
    turns = np.arange(scene.shape.count) / scene.shape.count
    picture = painted(scene, heights=0.5 + 0.4 * np.cos(6 * np.pi * turns))
    assert np.abs(picture - picture[:, ::-1]).mean() < 1
    assert (np.abs(picture - picture[:, ::-1]) > 40).mean() < 0.001


def test_glow_has_no_seam() -> None:
    """Where the last ray meets the first one, the glow changes no more than between other rays."""
    scene = scene_of(640, 360, glow=1)
    turns = np.arange(scene.shape.count) / scene.shape.count
    below = painted(scene, heights=0.2 + 0.1 * np.sin(2 * np.pi * turns))[-30:].sum(axis=2)
    steps = np.abs(np.diff(below, axis=1)).max(axis=0)
    middle = len(steps) // 2
    assert steps[middle - 2 : middle + 3].max() <= steps[middle - 60 : middle + 60].max()
    assert steps[middle - 60 : middle + 60].max() < 12


def test_cover_is_shown_in_the_ring() -> None:
    """The cover's colour is in the middle, and outside the ring nothing changes."""
    with_cover, without = scene_of(640, 360), scene_of(640, 360)
    assert isinstance(with_cover, SupportsCover)
    with_cover.set_cover(plain(GREEN))
    picture, usual = painted(with_cover), painted(without)
    np.testing.assert_allclose(picture[180, 320], GREEN, atol=4)
    y, x = np.mgrid[0:360, 0:640]
    radius = np.hypot(x + 0.5 - 320, y + 0.5 - 180)
    outside = radius > with_cover.shape.inner - with_cover.shape.gap
    np.testing.assert_array_equal(picture[outside], usual[outside])


def test_cover_is_upright_and_in_the_middle() -> None:
    """The quarters of a cover are seen in the quarters of the disc."""
    cover = plain((0, 0, 0), 90)
    quarters = {(0, 0): (200, 40, 40), (0, 1): (40, 200, 40), (1, 0): (40, 40, 200), (1, 1): (200, 200, 40)}
    for (down, right), colour in quarters.items():
        cover[45 * down :, 45 * right :] = colour
    scene = scene_of(322, 182)
    scene.set_cover(cover)
    picture = painted(scene)
    for (down, right), colour in quarters.items():
        np.testing.assert_allclose(picture[91 + 16 * (2 * down - 1), 161 + 16 * (2 * right - 1)], colour, atol=8)


def test_edge_of_the_cover_is_smooth() -> None:
    """Around a white cover are hundreds of pixels between white and the dark gap."""
    scene = scene_of(640, 360)
    scene.set_cover(plain((255, 255, 255)))
    luma = scene.picture(RadialState(0.5, 0.0, np.zeros(scene.shape.count, np.float32)), frame_at(0.0)).luma
    radius = scene.shape.disc_radius(beat=0)
    y, x = np.mgrid[0:360, 0:640]
    edge = luma[np.abs(np.hypot(x + 0.5 - 320, y + 0.5 - 180) - radius) < 1]
    assert ((edge > 100) & (edge < 220)).sum() > 2 * radius


def test_cover_grows_with_the_beat() -> None:
    """At a beat the disc is larger, as the ring is; with a pulse of 0 it is not."""

    def area(beat: float, pulse: float) -> int:
        scene = scene_of(640, 360, pulse=pulse)
        scene.set_cover(plain((255, 255, 255)))
        return int((painted(scene, beat=beat)[..., 1] > 250).sum())

    assert area(1.0, 1.0) > 1.05 * area(0.0, 1.0)
    assert area(1.0, 0.0) == area(0.0, 0.0)


@pytest.mark.parametrize("size", [1, 2, 3, 255, 1024])
@pytest.mark.parametrize(("width", "height"), [(16, 16), (18, 34), (1000, 16), (16, 1000), (122, 90)])
def test_any_cover_fits_any_picture(size: int, width: int, height: int) -> None:
    """Covers of any size are scaled to pictures of any size."""
    scene = scene_of(width, height)
    cover = plain(GREEN, size)
    cover.flags.writeable = False
    scene.set_cover(cover[:, ::-1])
    red, green, blue = painted(scene, beat=1.0)[height // 2, width // 2]
    assert green > red
    assert green > blue

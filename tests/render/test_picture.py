"""Do the means by which scenes draw in planes what they say?"""

from __future__ import annotations

import numpy as np
import pytest

from renderdispatch.render.paint import Backdrop
from renderdispatch.render.params import LightParams
from renderdispatch.render.picture import (
    FULL,
    Converter,
    Picture,
    blend_at,
    blended,
    halved,
    in_a_row,
    pitches,
    put_where,
    shades,
)

COLOURS = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 20, 200]], np.float32)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (90, 160), (1280, 720), (1922, 1082), (1080, 1920)])
def test_rows_are_as_long_as_said(width: int, height: int) -> None:
    """New pictures and those of the backdrop have the pitches that scenes compute their indexes with."""
    backdrop = Backdrop(LightParams(), width, height)
    backdrop.set_light(glow=np.zeros(3), vignette=np.ones((len(backdrop.y), len(backdrop.x), 1)), pulse=0)
    dark = np.zeros((len(backdrop.y), len(backdrop.x)), np.float32)
    for picture in (Picture.empty(width, height), backdrop.picture(dark, 0)):
        luma, colour = pitches(width)
        assert [plane.strides for plane in picture.planes] == [(luma, 1), (colour, 1), (colour, 1)]
        assert [plane.shape for plane in picture.planes] == [(height, width), *[(height // 2, width // 2)] * 2]


def test_a_pixel_has_one_index_in_a_row() -> None:
    """It is row * pitch + column, and the row is the plane itself, not a copy."""
    plane = Picture.empty(90, 20).luma
    plane[:] = 7
    in_a_row(plane)[19 * pitches(90)[0] + 89] = 9
    assert plane[19, 89] == 9
    assert (plane == 7).sum() == 90 * 20 - 1


def test_blending_goes_from_nothing_to_all_of_a_shade() -> None:
    """Any two values, at no and at full cover, are exact; between, the result is between."""
    under, shade = np.arange(256, dtype=np.uint8)[:, None], np.arange(16, 241, dtype=np.int16)
    np.testing.assert_array_equal(blended(under, shade, 0), np.broadcast_to(under, (256, 225)))
    np.testing.assert_array_equal(blended(under, shade, FULL), np.broadcast_to(shade, (256, 225)))
    half = blended(under, shade, FULL // 2)
    assert (np.abs(half - (under.astype(int) + shade) / 2) <= 0.5).all()


def test_single_pixels_are_blended_where_they_are() -> None:
    """All others stay as they were."""
    plane = Picture.empty(32, 16).luma
    plane[:] = 100
    blend_at(in_a_row(plane), np.array([0, 33]), np.array([200, 20], np.int16), np.array([64, 128], np.int16))
    assert (plane[0, 0], plane[1, 1]) == (150, 20)
    assert (plane == 100).sum() == 32 * 16 - 2


def test_pixels_are_replaced_through_a_mask() -> None:
    """Where it is 255, and nowhere else."""
    pixels, shown = np.full((2, 3), 9, np.uint8), np.full((2, 3), 200, np.uint8)
    put_where(pixels, shown, np.array([[0, 255, 0], [255, 255, 0]], np.uint8))
    np.testing.assert_array_equal(pixels, [[9, 200, 9], [200, 200, 9]])


def test_shades_are_the_colours_that_a_player_shows() -> None:
    """A picture of them, converted back by FFmpeg, has the RGB that they were made of."""
    for colour in COLOURS:
        picture = Picture.empty(16, 16)
        for plane, shade in zip(picture.planes, shades(colour), strict=True):
            plane[:] = shade
        canvas = np.zeros((16, 16, 3), np.uint8)
        Converter().to_rgb(picture, canvas)
        np.testing.assert_allclose(canvas[8, 8], colour, atol=3)


def test_half_a_picture_is_the_means_of_four() -> None:
    """Also of more than one value for each pixel."""
    np.testing.assert_array_equal(halved(np.arange(16.0).reshape(4, 4)), [[2.5, 4.5], [10.5, 12.5]])
    assert halved(np.zeros((6, 4, 3))).shape == (3, 2, 3)

"""Where is the scene in a 360 picture, and what is around it?"""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import PRESETS, Output
from renderdispatch.render.picture import Picture
from renderdispatch.render.projection import Projection, projection_of

Floats = NDArray[np.float64]

MONO = Output(width=2048, height=1024, projection="360-mono")
STEREO = Output(width=4096, height=4096, projection="360-stereo")


def plain(projection: Projection, *, luma: int = 16, blue: int = 128, red: int = 128) -> Picture:
    """Return a flat picture of one colour."""
    picture = Picture.empty(projection.width, projection.height)
    picture.luma[:], picture.blue[:], picture.red[:] = luma, blue, red
    return picture


def colourful(projection: Projection) -> Picture:
    """Return a flat picture that is bright, green on the left and pink on the right, with fine structure."""
    picture = plain(projection)
    picture.luma[:] = np.random.default_rng(3).integers(60, 230, picture.luma.shape, np.uint8)
    middle = picture.blue.shape[1] // 2
    picture.blue[:, :middle], picture.red[:, :middle] = 60, 60
    picture.blue[:, middle:], picture.red[:, middle:] = 150, 220
    return picture


def longitudes(width: int) -> Floats:
    """Return the degrees of the columns' centres."""
    return ((np.arange(width) + 0.5) / width - 0.5) * 360


def latitudes(height: int) -> Floats:
    """Return the degrees of the rows' centres."""
    return (0.5 - (np.arange(height) + 0.5) / height) * 180


def test_a_flat_video_is_what_the_scene_drew() -> None:
    """Without a projection the scene has the video's size, and its picture is the video's."""
    projection = projection_of(PRESETS["flat-1080p-portrait"])
    assert (projection.width, projection.height) == (1080, 1920)
    picture = plain(projection)
    assert projection.place(picture) is picture


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("360")])
def test_the_screen_is_wide_and_has_the_resolution_of_the_sphere(name: str) -> None:
    """The screen is 16:9 and takes 100 to 110 degrees, with a column of its own for each column of the sphere."""
    projection = projection_of(PRESETS[name])
    assert 100 <= projection.width / PRESETS[name].width * 360 <= 110
    assert projection.width / projection.height == pytest.approx(16 / 9, rel=0.005)
    assert projection.width % 2 == projection.height % 2 == 0


def seen_from(x: Floats, y: Floats, projection: Projection, width: int) -> tuple[Floats, Floats]:
    """Return where a viewer sees points of the screen, in degrees: longitude and latitude.

    The screen is bent to a cylinder around the viewer. With a radius of 1 its points are ``2 * pi / width`` apart.
    """
    angle = (x - projection.width / 2) * 2 * np.pi / width
    up = (projection.height / 2 - y) * 2 * np.pi / width
    point = np.stack([np.sin(angle), up, np.cos(angle)])
    return np.degrees(np.arctan2(point[0], point[2])), np.degrees(np.arcsin(up / np.linalg.norm(point, axis=0)))


@pytest.mark.parametrize("slope", [-0.4, 0.0, 0.5])
def test_straight_lines_of_the_scene_are_straight_on_the_screen(slope: float) -> None:
    """A line across the flat picture is seen at the angles of a line that is drawn on the bent screen."""
    projection = projection_of(MONO)
    flat = plain(projection)
    x = np.arange(projection.width) + 0.5
    y = projection.height * 0.45 + slope * (x - projection.width / 2)
    away = np.abs(np.arange(projection.height)[:, None] + 0.5 - y)
    flat.luma[:] = 16 + 200 * np.clip(4 - away, 0, 1)

    bright = projection.place(flat).luma > 150
    rows = latitudes(MONO.height)
    for column in range(20, projection.width - 20, 97):
        if not 20 < y[column] < projection.height - 20:
            continue
        longitude, latitude = seen_from(x[column], y[column], projection, MONO.width)
        at = int(np.argmin(np.abs(longitudes(MONO.width) - longitude)))
        assert rows[bright[:, at]].mean() == pytest.approx(latitude, abs=0.1)


def test_upright_lines_stay_upright() -> None:
    """A column of the flat picture is a column of the sphere, from the screen's lower edge to its upper one."""
    projection = projection_of(MONO)
    flat = plain(projection)
    flat.luma[:, 100:104] = 200
    bright = projection.place(flat).luma > 150
    assert set(np.flatnonzero(bright.any(axis=0))) == set((MONO.width - projection.width) // 2 + np.arange(100, 104))
    _, ends = seen_from(np.array([102.0, 102.0]), np.array([projection.height, 0.0]), projection, MONO.width)
    seen = latitudes(MONO.height)[bright.any(axis=1)]
    assert [seen.min(), seen.max()] == pytest.approx(ends, abs=0.4)


def test_colours_lie_where_the_brightness_does() -> None:
    """A coloured square has its edges at the same angles in all planes."""
    projection = projection_of(MONO)
    flat = plain(projection)
    flat.luma[40:80, 60:120], flat.blue[20:40, 30:60], flat.red[20:40, 30:60] = 200, 60, 60
    luma, blue, red = projection.place(flat).planes
    for plane in (blue, red):
        twice = np.repeat(np.repeat(plane < 90, 2, axis=0), 2, axis=1)
        assert np.count_nonzero(twice != (luma > 120)) < 0.06 * np.count_nonzero(twice)


@pytest.mark.parametrize("output", [MONO, STEREO], ids=["mono", "stereo"])
def test_behind_the_viewer_is_no_seam(output: Output) -> None:
    """From the last column to the first one the picture changes no more than between other columns of the room."""
    projection = projection_of(output)
    for plane in projection.place(colourful(projection)).planes:
        screen = np.abs(longitudes(plane.shape[1])) < 60
        steps = np.abs(np.diff(plane.astype(int), axis=1, append=plane[:, :1])).mean(axis=0)
        assert steps[-1] <= steps[~screen][:-1].max()
        assert np.abs(plane[:, 0].astype(int) - plane[:, -1]).max() <= 1
        assert np.ptp(plane) > 50


def test_each_pole_is_one_colour() -> None:
    """All columns meet at the poles, and have one colour there."""
    projection = projection_of(MONO)
    for plane in projection.place(colourful(projection)).planes:
        assert np.ptp(plane[:4]) == np.ptp(plane[-4:]) == 0


def test_the_screen_lights_the_room_with_its_colours() -> None:
    """The room is bright beside the screen and dark behind the viewer, and each side has the colour of its side."""
    projection = projection_of(MONO)
    luma, blue, red = projection.place(colourful(projection)).planes
    beside, behind = (np.abs(np.abs(longitudes(MONO.width)) - degrees).argmin() for degrees in (60, 179))
    middle = MONO.height // 2
    assert luma[middle, behind] < 0.5 * luma[middle, beside]
    left, right = (np.abs(longitudes(MONO.width // 2) - degrees).argmin() for degrees in (-60, 60))
    assert blue[middle // 2, left] < 128 < blue[middle // 2, right]
    assert red[middle // 2, left] < 128 < red[middle // 2, right]


def test_a_black_screen_leaves_the_room_black() -> None:
    """No light is in the room but the screen's, and no colour."""
    projection = projection_of(MONO)
    values = [set(np.unique(plane)) for plane in projection.place(plain(projection)).planes]
    assert values == [{16}, {128}, {128}]


def test_the_brightest_screen_leaves_no_range() -> None:
    """Light and colours of the room stay within the limited range but for one step, whatever the screen shows."""
    projection = projection_of(MONO)
    luma, blue, red = projection.place(plain(projection, luma=235, blue=16, red=240)).planes
    assert luma.min() > 50
    assert luma.max() <= 236
    assert blue.min() >= 15
    assert red.max() <= 241


def test_the_light_in_the_room_has_no_contours() -> None:
    """Where the light changes slowly, the two nearest levels are mixed, so that areas have the levels between."""
    projection = projection_of(MONO)
    dim = projection.place(plain(projection, luma=20)).luma[64:320]
    means = dim.reshape(4, 64, -1, 64).mean(axis=(1, 3))
    assert np.ptp(means) > 1
    assert np.count_nonzero(np.abs(means - means.round()) > 0.02) > 0.8 * means.size


def test_the_same_picture_is_placed_in_the_same_way() -> None:
    """The video is still where the scene is still; the flat picture is left as it was."""
    projection = projection_of(MONO)
    flat = colourful(projection)
    before = [plane.copy() for plane in flat.planes]
    first, _, second = (projection.place(picture) for picture in (flat, plain(projection), flat))
    for one, other in zip(first.planes, second.planes, strict=True):
        assert np.array_equal(one, other)
    for one, other in zip(flat.planes, before, strict=True):
        assert np.array_equal(one, other)


def test_two_eyes_see_the_screen_nearer_than_the_room() -> None:
    """The left eye, above, sees the screen to the right of where the right eye sees it: 64 mm apart at 2.5 m."""
    projection = projection_of(STEREO)
    luma = projection.place(colourful(projection)).luma
    middle = slice(STEREO.width // 2 - 500, STEREO.width // 2 + 500)
    left, right = luma[900:1100], luma[STEREO.height // 2 + 900 : STEREO.height // 2 + 1100, middle].astype(float)
    likeness = {
        shift: np.corrcoef(left[:, middle.start + shift : middle.stop + shift].ravel(), right.ravel())[0, 1]
        for shift in range(-40, 41)
    }
    shift = max(likeness, key=lambda shift: likeness[shift])
    assert likeness[shift] > 0.99
    assert shift / STEREO.width * 360 == pytest.approx(np.degrees(2 * np.arctan(0.032 / 2.5)), abs=0.1)


def test_both_eyes_see_the_same_room() -> None:
    """What is far away is at the same place for both eyes."""
    projection = projection_of(STEREO)
    for plane in projection.place(colourful(projection)).planes:
        left, right = np.split(plane, 2)
        room = np.abs(longitudes(plane.shape[1])) > 60
        assert np.array_equal(left[:, room], right[:, room])
        assert not np.array_equal(left, right)


@pytest.mark.parametrize("projection", ["360-mono", "360-stereo"])
@pytest.mark.parametrize("size", [(16, 16), (18, 18), (22, 50), (130, 66), (16384, 16), (16, 16384), (1920, 1080)])
def test_every_size_that_a_video_may_have_has_a_screen(projection: Any, size: tuple[int, int]) -> None:
    """Also where the size is not that of a sphere, the screen is even, in the middle, and in each eye."""
    output = Output(width=size[0], height=size[1], projection=projection)
    placing = projection_of(output)
    assert placing.width % 2 == placing.height % 2 == 0
    assert min(placing.width, placing.height) >= 16
    picture = placing.place(plain(placing, luma=200))
    assert (picture.frame.width, picture.frame.height) == size
    eyes = 2 if projection == "360-stereo" else 1
    for eye in range(eyes):
        assert picture.luma[size[1] * (2 * eye + 1) // (2 * eyes), size[0] // 2] == 200


def test_placing_costs_far_less_than_encoding() -> None:
    """At 4096x2048 the scene is placed in less than half of the time that the encoder takes."""
    output = PRESETS["360-mono-4k"]
    projection = projection_of(output)
    flat = colourful(projection)
    context: Any = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = output.width, output.height, "yuv420p"
    context.time_base, context.options = Fraction(1, 30), {"preset": "veryfast", "tune": "zerolatency", "crf": "19"}
    context.thread_count = 1
    times = []
    for number in range(7):
        flat.luma[:] = np.roll(flat.luma, 5, axis=1)
        times.append(time.process_time())
        frame = projection.place(flat).frame
        times.append(time.process_time())
        frame.pts = number
        assert context.encode(frame)
    placed, encoded = np.diff(times)[::2], np.diff(times)[1::2]
    assert np.median(placed) < 0.5 * np.median(encoded), (placed, encoded)

"""How does a scene's flat picture become the picture of a video?

In a 360 video the viewer stands in the middle of a dark room, before a screen that is a piece of a cylinder around him.
The scene is drawn on the screen, and the screen lights the room. The video is equirectangular: columns are longitudes
and rows latitudes, with the middle of the screen in the middle.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar, assert_never

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.render.features import Floats
from renderdispatch.render.picture import FULL, Picture, Plane, blended

T = TypeVar("T", np.uint8, np.uint16)

_SCREEN_TURNS: Final = 0.3
"""How much of the circle around the viewer the screen takes: 108 degrees."""

_EYE_M: Final = 0.032
"""How far an eye is from the middle of the head."""

_SCREEN_M: Final = 2.5
"""How far the screen is away."""

_CELLS: Final = 16, 9
"""Columns and rows of patches of the screen that light the room."""

_ROOM: Final = 128, 64
"""Columns and rows of the small picture of the room."""

_SHINE: Final = 1.5
"""How much of its light the screen sheds on a place that all of its patches are near to."""

_BLUR: Final = 0.3
"""How far the light of a patch reaches at full strength, in radians: nearer patches run into each other."""

_HALF: Final = 0.25
"""A place that gets this part of the best lit place's light shows half of `_SHINE`."""

_GRAIN: Final = 16
"""The pixels of a grain, in each direction."""

_LIGHT_BITS: Final = 16
"""Of the factors between the light of a patch and of a place: int32 holds the sum of all products."""

_EXACT: Final = 0x40000 | 0x80000
"""FFmpeg's SWS_ACCURATE_RND and SWS_BITEXACT, which PyAV names since version 18: an even area stays even."""

_DARK: Final = np.array([[16], [128], [128]], np.int32)
"""Black in the three planes."""

_MOST: Final = np.array([[235], [240], [240]], np.int32)
"""The most that the planes may hold in limited range; the least is 16."""


class Projection(Protocol):
    """Places a flat picture into the picture of the video. Use each one in one thread."""

    width: int
    """Columns of the flat picture."""

    height: int
    """Rows of the flat picture."""

    def place(self, flat: Picture) -> Picture:
        """Return the video's picture. It only depends on ``flat``, which is not changed."""
        ...


def projection_of(output: Output) -> Projection:
    """Return the projection of an output."""
    match output.projection:
        case "flat":
            return _Flat(output.width, output.height)
        case "360-mono":
            return _Sphere(output.width, output.height, eyes=1)
        case "360-stereo":
            return _Sphere(output.width, output.height, eyes=2)
        case _:
            assert_never(output.projection)


class _Flat:
    """The flat picture is the video's."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height

    def place(self, flat: Picture) -> Picture:
        return flat


class _Sphere:
    """A screen in a room, for one eye or for two: the left eye's picture above the right eye's.

    The room is far away, the same for both eyes. The screen is nearer: the left eye sees it further to the right. On a
    cylinder around the viewer the shift is the same in each column.
    """

    def __init__(self, width: int, height: int, *, eyes: int) -> None:
        # Even; where the height is no multiple of 4, the two pictures overlap in two rows.
        rows = height if eyes == 1 else -(-height // 4) * 2
        left = min(round(width * (1 - _SCREEN_TURNS) / 4), (width - 16) // 4) * 2
        self.width = width - 2 * left
        self.height = max(round(self.width * 9 / 32) * 2, 16)
        self._size = width, height
        self._room = _Room(width, rows, self.width, self.height)
        self._planes = [_Warp(width // n, rows // n, self.width // n, self.height // n) for n in (1, 2, 2)]
        apart = round(width * np.arcsin(_EYE_M / _SCREEN_M) / (2 * np.pi) / 2) * 2
        self._eyes = [(0, left)] if eyes == 1 else [(0, left + apart), (height - rows, left - apart)]

    def place(self, flat: Picture) -> Picture:
        room = self._room.picture(flat)
        if len(self._eyes) == 1:
            picture = room
        else:
            picture = Picture.empty(*self._size)
            for plane, of_room in zip(picture.planes, room.planes, strict=True):
                plane[: len(of_room)] = of_room
                plane[-len(of_room) :] = of_room
        for warp, plane, screen, size in zip(self._planes, picture.planes, flat.planes, (1, 2, 2), strict=True):
            shown = warp.rows_of(screen)
            for top, left in self._eyes:
                warp.place(shown, plane[top // size :, left // size :])
        return picture


class _Warp:
    """One plane of the screen, as the viewer sees it.

    Columns stay: the screen has as many as its part of the circle. Row r of the screen is at the latitude whose tangent
    is its height over the distance of the screen.

    Args:
        around: Columns of the whole circle.
        rows: Rows from pole to pole.
        width: Columns of the screen.
        height: Rows of the screen.
    """

    def __init__(self, around: int, rows: int, width: int, height: int) -> None:
        latitude = np.pi * (0.5 - (np.arange(rows) + 0.5) / rows)
        at = height / 2 - np.tan(latitude) * around / (2 * np.pi)
        seen = np.flatnonzero((at > 0) & (at < height))
        self._top = int(seen[0])
        at = at[seen]
        above = np.floor(at - 0.5)
        self._weight = np.round((at - 0.5 - above) * FULL).astype(np.int16)[:, None]
        self._above = np.clip(above, 0, height - 1).astype(np.intp)
        self._below = np.minimum(above + 1, height - 1).astype(np.intp)
        soft = max(width / 300, 1.0)
        down, across = _ramp(at, height, soft), _ramp(np.arange(width) + 0.5, width, soft)
        self._cover = np.round(down[:, None] * across * FULL).astype(np.int16)
        self._rows, self._columns = np.flatnonzero(down < 1), np.flatnonzero(across < 1)

    def rows_of(self, screen: Plane) -> Plane:
        """Return the rows that the viewer sees: (rows, width) uint8."""
        return _mixed(screen[self._above], screen[self._below], self._weight)

    def place(self, shown: Plane, plane: Plane) -> None:
        """Put those rows into an eye's plane, whose first column is the screen's first one. The edges are soft."""
        rows, columns = shown.shape
        into = plane[self._top : self._top + rows, :columns]
        above, beside = into[self._rows], into[:, self._columns]
        into[:] = shown
        into[self._rows] = _mixed(above, shown[self._rows], self._cover[self._rows])
        into[:, self._columns] = _mixed(beside, shown[:, self._columns], self._cover[:, self._columns])


class _Room:
    """The room around the screen, without the screen.

    It is computed small: each patch of the screen lights each place of the room, the less the further apart they are on
    the sphere. So a place beside the screen takes up the colours that are near, and shines; behind the viewer is a dark
    mean of all. The light is a smooth function of the direction.

    In 8 bits such a gradient has contours. Grains that never move hide them. Finer ones, or a dither of single pixels,
    take the encoder a quarter more time, and it smooths much of them away.

    Args:
        width: Columns of the picture.
        height: Rows of the picture.
        screen_width: Columns of the screen, of the same size.
        screen_height: Rows of the screen, of the same size.
    """

    def __init__(self, width: int, height: int, screen_width: int, screen_height: int) -> None:
        self._size = width, height
        columns, rows = _ROOM
        longitude = ((np.arange(columns) + 0.5) / columns - 0.5) * 2 * np.pi
        latitude = (0.5 - (np.arange(rows) + 0.5) / rows) * np.pi
        # At the borders FFmpeg scales from two pixels, repeated. They show the very places where the borders meet.
        longitude[:2] = longitude[-2:] = np.pi
        latitude[:2], latitude[-2:] = np.pi / 2, -np.pi / 2
        places = _directions(longitude[None], np.tan(latitude)[:, None])
        across = ((np.arange(_CELLS[0]) + 0.5) / _CELLS[0] - 0.5) * 2 * np.pi * screen_width / width
        up = (0.5 - (np.arange(_CELLS[1]) + 0.5) / _CELLS[1]) * 2 * np.pi * screen_height / width
        patches = _directions(across[None], up[:, None])
        chord = 2 - 2 * np.einsum("pi,ci->pc", places, patches)
        light = 1 / (chord + _BLUR**2)
        total = light.sum(axis=1, keepdims=True)
        self._light = np.round(light / (total + total.max() * _HALF) * (_SHINE * 2**_LIGHT_BITS)).astype(np.int32)
        self._small = VideoFrame(columns, rows, "yuv444p16le")
        self._grainy = VideoFrame(max(width // _GRAIN, columns), max(height // _GRAIN, rows), "yuv444p")
        self._grain = np.random.default_rng(1).integers(0, 256, (3, self._grainy.height, self._grainy.width), np.uint16)
        # As above: each pole is one place, and so is each pair of ends of a row.
        self._grain[:, :2] = self._grain[:, -2:] = 128
        self._grain[..., -2:] = self._grain[..., 1::-1]
        self._scalers = [VideoReformatter() for _ in range(3)]

    def picture(self, screen: Picture) -> Picture:
        """Return a new picture of the room that the screen lights."""
        patches = self._scaled(0, screen.frame, _CELLS, "yuv444p", Interpolation.AREA)
        colours = np.stack([plane.ravel() for plane in _values(patches, np.uint8)]).astype(np.int32)
        light = np.einsum("kc,pc->kp", colours - _DARK, self._light)
        values = np.clip((_DARK << 8) + (light >> (_LIGHT_BITS - 8)), 16 << 8, _MOST << 8)
        for plane, value in zip(_values(self._small, np.uint16), values, strict=True):
            plane[:] = value.reshape(plane.shape)
        size = self._grainy.width, self._grainy.height
        smooth = self._scaled(1, self._small, size, "yuv444p16le", Interpolation.BICUBIC)
        grains = zip(_values(self._grainy, np.uint8), _values(smooth, np.uint16), self._grain, strict=True)
        for into, even, grain in grains:
            into[:] = (even + grain) >> 8
        return Picture.of(self._scaled(2, self._grainy, self._size, "yuv420p", Interpolation.BICUBIC))

    def _scaled(
        self, scaler: int, frame: VideoFrame, size: tuple[int, int], kind: str, how: Interpolation
    ) -> VideoFrame:
        return self._scalers[scaler].reformat(
            frame,
            *size,
            kind,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=how | _EXACT,
            threads=1,
        )


def _values(frame: VideoFrame, kind: type[T]) -> list[NDArray[T]]:
    """Return the planes of a yuv444p frame, without copying: (rows, columns) each."""
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]


def _directions(longitude: Floats, tangent: Floats) -> Floats:
    """Return unit vectors, (n, 3), of places on the cylinder: longitudes in radians, heights in distances."""
    x, y, z = np.broadcast_arrays(np.sin(longitude), tangent, np.cos(longitude))
    vectors = np.stack([x, y, z], axis=-1).reshape(-1, 3)
    return np.asarray(vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True)))


def _ramp(at: Floats, length: int, soft: float) -> Floats:
    """Return 0 at the ends of a length and 1 from ``soft`` inside of them on."""
    return np.asarray(np.clip(np.minimum(at, length - at) / soft, 0, 1))


def _mixed(one: Plane, other: Plane, part: NDArray[np.int16]) -> Plane:
    """Return ``one`` with a part of ``other``, 0 to `FULL`."""
    return blended(one, other.astype(np.int16), part).astype(np.uint8)

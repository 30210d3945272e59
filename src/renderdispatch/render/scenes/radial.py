"""The scene `radial`: the spectrum around a pulsing ring, with the song's cover in it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from renderdispatch.render.features import BANDS, Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep
from renderdispatch.render.params import RadialParams
from renderdispatch.render.picture import Canvas, Converter, Picture, PlanarScene, in_planes

_BEAT: Final = 0.05
"""By how much of its radius the ring grows at a beat, with a pulse of 1."""
_DISCS: Final = 12
"""The most sizes of the cover that are kept for the growth at a beat."""
_SMALLEST: Final = 16
"""Rows and columns of a cover that FFmpeg is given at least."""
_BAND: Final = 1 << 20
"""Pixels that are placed at a time, so that a large picture takes little memory."""


_Masked = tuple[NDArray[np.uint16], NDArray[np.uint16], int]
"""A plane of a disc, times how much it covers, 0 to 128; what it leaves uncovered; and how many pixels wide its are."""


class RadialState(NamedTuple):
    """Where the rays are.

    Args:
        light: How loud the music is, smoothed.
        turn: How far the music has turned the rays, in turns.
        heights: (rays,) float32, 0 to 1.
    """

    light: float
    turn: float
    heights: Floats


class Radial(PlanarScene[RadialState]):
    """Rounded rays around a ring; the music turns them. The cover is a disc in the ring.

    The place of each pixel (its ray, its distance) never changes. So the pixels are sorted by it, and a frame touches
    only those that its rays cover.
    """

    def __init__(self, params: RadialParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        self.shape = _Shape.of(params.bars, width, height, beat=_BEAT * params.pulse)
        self.heights = Spring(rise_s=0.02, fall_s=0.18, frame_s=frame_s)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)
        self.turn_step = params.spin * frame_s / 60
        # The lowest note is at the bottom, the highest at the top, on both sides.
        self.around = np.arange(self.shape.count) / self.shape.count
        self.bands = np.linspace(0, 1, BANDS)
        self.luma = _Layer(self.shape, params.colours, (0,), pixel=1)
        self.chroma = _Layer(self.shape, params.colours, (1, 2), pixel=2)
        self.discs: Sequence[_Disc] = ()

        self.backdrop = Backdrop(params, width, height)
        x, y = self.backdrop.x - width / 2, self.backdrop.y - height / 2
        self.radius = np.hypot(x, y).astype(np.float32)
        off = (x / (0.53 * width)) ** 2 + (y / (0.53 * height)) ** 2
        vignette = np.exp(-off * 0.8)[..., None].astype(np.float32)
        turns = np.arctan2(x, y) / (2 * np.pi)
        self.hole = smoothstep(0.55, 1.0, self.radius / np.float32(self.shape.inner))
        self.backdrop.set_light(
            glow=gradient(params.colours, _mirrored(turns)), vignette=vignette, pulse=0.25, hole=self.hole[..., None]
        )
        at = turns % 1 * self.shape.count
        self.ray = at.astype(np.intp) % self.shape.count
        self.to_next = at - np.floor(at)
        self.reach = self._around(self.shape.reach)
        self.spread = 0.37 * self.reach

    def set_cover(self, cover: Canvas) -> None:
        """Show the cover in the ring."""
        times = -(-_SMALLEST // len(cover))
        cover = cover.repeat(times, axis=0).repeat(times, axis=1)
        largest = self.shape.disc_radius(beat=1)
        smallest = self.shape.disc_radius(beat=0)
        count = min(max(round(largest - smallest) + 1, 1), _DISCS)
        self.discs = [_Disc(self.shape, radius, cover) for radius in np.linspace(smallest, largest, count)]

    def start(self) -> RadialState:
        """Return rays at rest."""
        return RadialState(0.0, 0.0, np.zeros(self.shape.count, np.float32))

    def step(self, state: RadialState, frame: Frame) -> RadialState:
        """Let the rays follow the spectrum, and turn."""
        light = self.brightness.follow_one(state.light, frame.level)
        turn = state.turn + self.turn_step * min(3 * light, 1.0)
        loud = self.params.gain * (0.45 + 0.55 * light)
        bands = np.interp(_mirrored(self.around + turn), self.bands, frame.bands).astype(np.float32)
        target = np.clip(_softened(bands) ** 1.7 * loud, 0, 1)
        return RadialState(light, turn, self.heights.follow(state.heights, target))

    def light(self, state: RadialState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def picture(self, state: RadialState, frame: Frame) -> Picture:
        """Draw a frame."""
        picture = self._light(state.heights, 0.5 * state.light + frame.beat)
        inner = self.shape.inner * (1 + self.shape.beat * frame.beat)
        lengths = self.shape.least + state.heights * (self.shape.reach - self.shape.least)
        outer = (inner + lengths).astype(np.float32)
        self.luma.draw((picture.luma,), inner, outer)
        self.chroma.draw((picture.blue, picture.red), inner, outer)
        if self.discs:
            self.discs[round(frame.beat * (len(self.discs) - 1))].draw(picture)
        return picture

    def _light(self, heights: Floats, pulse: float) -> Picture:
        tall = self._around(_softened(heights, 4))
        over = np.maximum(self.radius - self.shape.inner - tall * self.reach, 0)
        shine = np.exp(-over / self.spread) * self.hole * (0.12 + 0.5 * tall)
        return self.backdrop.picture(shine, pulse)

    def _around(self, values: Floats) -> Floats:
        """Return the rays' values at the angles of the backdrop's pixels."""
        here, following = values[self.ray], np.concatenate((values[1:], values[:1]))[self.ray]
        return np.asarray(here + (following - here) * self.to_next)


@frozen(kw_only=True, eq=False)
class _Shape:
    """Where rays, ring and disc are, in pixels around the middle of the picture. Rays count from below, to the right.

    Args:
        width: Columns of the picture.
        height: Rows of the picture.
        count: How many rays there are.
        inner: Where the rays begin.
        reach: (rays,) float32, how long each ray is at most.
        half: Half the thickness of a ray.
        gap: From the rays to the ring, and from the ring to the disc.
        line: The thickness of the ring.
        beat: By how much of its radius everything grows at a beat.
    """

    width: int
    height: int
    count: int
    inner: float
    reach: Floats
    half: float
    gap: float
    line: float
    beat: float

    @classmethod
    def of(cls, rays: int, width: int, height: int, *, beat: float) -> _Shape:
        """Return the shapes that fill a picture."""
        size = min(width, height)
        slim = min(max(height / width - 1, 0), 1)
        inner = (0.2 + 0.03 * slim) * size
        count = max(min(rays, int(2 * np.pi * inner / 3)), 4)
        angle = np.arange(count) / count * 2 * np.pi
        across, along = 0.475 * min(width, 1.12 * height), 0.475 * min(height, 2.2 * width)
        ends = 1 / np.hypot(np.sin(angle) / across, np.cos(angle) / along)
        return cls(
            width=width,
            height=height,
            count=count,
            inner=inner,
            reach=(ends - inner).astype(np.float32),
            half=max(np.pi * inner / count * 0.58, 0.6),
            gap=0.022 * size,
            line=max(size / 240, 1.0),
            beat=beat,
        )

    @property
    def least(self) -> float:
        """The length of a ray in silence, which makes it round."""
        return 2 * self.half

    def disc_radius(self, *, beat: float) -> float:
        """Return the radius of the disc at a beat, 0 to 1."""
        return max(self.inner * (1 + self.beat * beat) - self.gap - self.line / 2 - self.gap / 2, 1.0)


class _Layer:
    """Draws rays and ring in planes of one size.

    The pixels of rays are sorted by ray, and then by distance; those of the ring by distance.

    Args:
        shape: Where everything is.
        colours: Of the scene.
        channels: Which of Y, Cb and Cr the planes hold.
        pixel: How many pixels of the picture theirs are wide.
    """

    def __init__(self, shape: _Shape, colours: Sequence[str], channels: tuple[int, ...], *, pixel: int) -> None:
        self._shape = shape
        self._pixel = np.float32(pixel)
        height, band = shape.height // pixel, max(_BAND * pixel // shape.width, 1)
        bands = [self._place(shape, top, min(top + band, height)) for top in range(0, height, band)]
        rows, columns, turns, ray, near, far, side, radius = map(np.concatenate, zip(*bands, strict=True))

        kept = np.flatnonzero(side)
        # The ray is the whole part, the distance the fraction: one search finds the ends of all rays.
        self._scale = 1 / (2.0 * (shape.width + shape.height))
        keys = ray[kept] + far[kept] * self._scale
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        kept = kept[order]
        self._near, self._far, self._side = near[kept], far[kept], side[kept]
        colour = _planes(colours, turns[kept], (radius[kept] - shape.inner) / shape.reach[ray[kept]], channels)
        self._rays = _Pixels(rows[kept], columns[kept], colour)

        room = shape.line + pixel
        rings = np.flatnonzero(np.abs(radius - (shape.inner - shape.gap)) < shape.inner * shape.beat + room)
        rings = rings[np.argsort(radius[rings], kind="stable")]
        self._ring_radius = radius[rings]
        colour = _planes(colours, turns[rings], np.zeros(len(rings)), channels)
        self._ring = _Pixels(rows[rings], columns[rings], colour)

    def draw(self, planes: Sequence[NDArray[np.uint8]], inner: float, outer: Floats) -> None:
        """Draw rays from ``inner`` to ``outer`` (rays,), and the ring, over what the planes hold."""
        pixel = self._pixel
        rays = np.arange(len(outer))
        first, end = np.searchsorted(
            self._keys, [rays + (inner - pixel / 2) * self._scale, rays + (outer + pixel / 2) * self._scale]
        )
        lengths = end - first
        ends = np.cumsum(lengths)
        which = np.arange(ends[-1]) + np.repeat(first - ends + lengths, lengths)
        cover = np.minimum(np.repeat(outer, lengths) - self._far[which], self._near[which] - np.float32(inner))
        cover = np.clip(cover / pixel + np.float32(0.5), 0, 1) * self._side[which]
        self._rays.blend(planes, which, cover)

        ring, half = inner - self._shape.gap, (self._shape.line + pixel) / 2
        ring_first, ring_end = np.searchsorted(self._ring_radius, (ring - half, ring + half))
        part = slice(ring_first, ring_end)
        cover = (np.float32(half) - np.abs(self._ring_radius[part] - np.float32(ring))) / pixel
        cover = np.minimum(cover, min(self._shape.line / float(pixel), 1)) * np.float32(128)
        self._ring.blend(planes, part, cover)

    def _place(self, shape: _Shape, top: int, bottom: int) -> tuple[NDArray[Any], ...]:
        """Find the pixels of some rows that rays or ring may touch, and their place on them."""
        pixel = self._pixel
        x = (np.arange(shape.width // int(pixel), dtype=np.float32) + np.float32(0.5)) * pixel - np.float32(
            shape.width / 2
        )
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5)) * pixel - np.float32(shape.height / 2)
        radius = np.hypot(x, y)
        grown = shape.inner * shape.beat + pixel
        from_, to = shape.inner - shape.gap - shape.line - pixel, shape.inner + shape.reach.max() + grown
        near_rows, near_columns = np.nonzero((radius > from_) & (radius < to))
        radius = radius[near_rows, near_columns]
        angle = np.arctan2(x[near_columns], y[near_rows, 0]) / np.float32(2 * np.pi) % 1
        nearest = np.round(angle * shape.count)
        beside = np.abs(np.sin((angle - nearest / np.float32(shape.count)) * np.float32(2 * np.pi))) * radius
        ray = nearest.astype(np.int32) % shape.count
        side = np.clip((shape.half - beside) / pixel + np.float32(0.5), 0, min(2 * shape.half / float(pixel), 1))
        # A round end is drawn as a straight one whose pixels count as further out, the more so at its sides.
        round_by = shape.half - np.sqrt(np.maximum(shape.half**2 - beside**2, 0))
        side[(radius > shape.inner + shape.reach[ray] + grown) | (radius < shape.inner - pixel)] = 0
        places = (near_rows + top).astype(np.int32), near_columns.astype(np.int32)
        return *places, angle, ray, radius - round_by, radius + round_by, side * np.float32(128), radius


@frozen(eq=False)
class _Pixels:
    """Pixels of planes, and the colour that each may take."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    colours: Sequence[NDArray[np.int16]]

    def blend(self, planes: Sequence[NDArray[np.uint8]], which: NDArray[np.intp] | slice, cover: Floats) -> None:
        """Blend the colour in at some of the pixels, which are covered by so much, 0 to 128."""
        cover = cover.astype(np.int16)
        (height, width), stride = planes[0].shape, planes[0].strides[0]
        at = self.rows[which] * np.int32(stride) + self.columns[which]
        for plane, colour in zip(planes, self.colours, strict=True):
            # NumPy is several times faster with one index than with two.
            flat = np.lib.stride_tricks.as_strided(plane, ((height - 1) * stride + width,), (1,))
            under = flat[at].astype(np.int16)
            flat[at] = under + (((colour[which] - under) * cover) >> 7)


class _Disc:
    """The cover, as a disc of one size."""

    def __init__(self, shape: _Shape, radius: float, cover: Canvas) -> None:
        # Even, so that colour and luma begin at the same place.
        self._left, self._top = (int(length / 2 - radius - 1) // 2 * 2 for length in (shape.width, shape.height))
        self._left, self._top = max(self._left, 0), max(self._top, 0)
        size = min(2 * int(radius + 2), shape.width - self._left, shape.height - self._top) // 2 * 2
        picture = Converter().from_rgb(cover, size, size)
        self._planes = [
            self._masked(plane, radius, pixel, shape)
            for plane, pixel in ((picture.luma, 1), (picture.blue, 2), (picture.red, 2))
        ]

    def draw(self, picture: Picture) -> None:
        """Draw the disc."""
        for plane, (disc, around, pixel) in zip((picture.luma, picture.blue, picture.red), self._planes, strict=True):
            top, left = self._top // pixel, self._left // pixel
            under = plane[top : top + len(disc), left : left + len(disc)]
            under[:] = (under * around + disc) >> 7

    def _masked(self, plane: NDArray[np.uint8], radius: float, pixel: int, shape: _Shape) -> _Masked:
        x, y = (
            start + (np.arange(len(plane)) + 0.5) * pixel - length / 2
            for start, length in ((self._left, shape.width), (self._top, shape.height))
        )
        cover = np.clip((radius - np.hypot(x, y[:, None])) / pixel + 0.5, 0, 1)
        inside = np.round(cover * 128).astype(np.uint16)
        return plane * inside, 128 - inside, pixel


def _planes(colours: Sequence[str], turns: Floats, out: Floats, channels: tuple[int, ...]) -> list[NDArray[np.int16]]:
    """Return the colour of rays at places, in some of the planes; they are lighter further ``out``, 0 to 1."""
    towards_white = (0.12 + 0.45 * np.clip(out, 0, 1) ** 1.5)[:, None]
    colour = in_planes(gradient(colours, _mirrored(turns)) * (1 - towards_white) + 255 * towards_white)
    return [np.round(colour[:, channel]).astype(np.int16) for channel in channels]


def _softened(values: Floats, times: int = 1) -> Floats:
    """Return each ray's value blended with those of its two neighbours, so many times."""
    for _ in range(times):
        padded = np.concatenate((values[-1:], values, values[:1]))
        values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return values


def _mirrored(turns: Floats) -> Floats:
    """Return 0 at whole turns and 1 between them."""
    return 1 - np.abs(2 * (turns % 1) - 1)

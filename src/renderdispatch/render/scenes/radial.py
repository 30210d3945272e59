"""The scene `radial`: the spectrum around a pulsing ring, with the song's cover in it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from renderdispatch.render.features import BANDS, Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, centres, gradient, smoothstep
from renderdispatch.render.params import RadialParams
from renderdispatch.render.picture import (
    FULL,
    Canvas,
    Converter,
    Picture,
    PlanarScene,
    Plane,
    Shade,
    blend_at,
    blended,
    in_a_row,
    pitches,
    shades,
)

_BEAT: Final = 0.05
"""By how much of its radius the ring grows at a beat, with a pulse of 1."""
_DISCS: Final = 12
"""The most sizes of the cover that are kept for the growth at a beat."""
_SMALLEST: Final = 16
"""Rows and columns of a cover that FFmpeg is given at least."""
_BAND: Final = 1 << 20
"""Pixels that are placed at a time, so that a large picture takes little memory."""


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
        self.luma = _Layer(self.shape, params.colours, slice(0, 1), pixel=1)
        self.chroma = _Layer(self.shape, params.colours, slice(1, 3), pixel=2)
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

    def __init__(self, shape: _Shape, colours: Sequence[str], channels: slice, *, pixel: int) -> None:
        self._shape = shape
        self._pixel = np.float32(pixel)
        height, band = shape.height // pixel, max(_BAND * pixel // shape.width, 1)
        bands = [self._place(shape, top, min(top + band, height)) for top in range(0, height, band)]
        at, turns, ray, near, far, side, radius = map(np.concatenate, zip(*bands, strict=True))

        kept = np.flatnonzero(side)
        # The ray is the whole part, the distance the fraction: one search finds the ends of all rays.
        self._scale = 1 / (2.0 * (shape.width + shape.height))
        keys = ray[kept] + far[kept] * self._scale
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        kept = kept[order]
        self._near, self._far, self._side = near[kept], far[kept], side[kept]
        out = (radius[kept] - shape.inner) / shape.reach[ray[kept]]
        self._rays = _Pixels(at[kept], _shades(colours, turns[kept], out, channels))

        room = shape.line + pixel
        rings = np.flatnonzero(np.abs(radius - (shape.inner - shape.gap)) < shape.inner * shape.beat + room)
        rings = rings[np.argsort(radius[rings], kind="stable")]
        self._ring_radius = radius[rings]
        self._ring = _Pixels(at[rings], _shades(colours, turns[rings], np.zeros(len(rings)), channels))

    def draw(self, planes: Sequence[Plane], inner: float, outer: Floats) -> None:
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
        cover = np.minimum(cover, min(self._shape.line / float(pixel), 1)) * np.float32(FULL)
        self._ring.blend(planes, part, cover)

    def _place(self, shape: _Shape, top: int, bottom: int) -> tuple[NDArray[Any], ...]:
        """Find the pixels of some rows that rays or ring may touch, and their place on them."""
        pixel = self._pixel
        x = centres(shape.width // int(pixel), shape.width) - np.float32(shape.width / 2)
        y = centres(shape.height // int(pixel), shape.height)[top:bottom, None] - np.float32(shape.height / 2)
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
        at = (near_rows + top) * pitches(shape.width)[int(pixel) - 1] + near_columns
        return at, angle, ray, radius - round_by, radius + round_by, side * np.float32(FULL), radius


@frozen(eq=False)
class _Pixels:
    """Pixels of planes, and the shades that each may take.

    Args:
        at: (pixels,), as of `in_a_row`.
        shades: (pixels,) for each plane.
    """

    at: NDArray[np.intp]
    shades: Sequence[Shade]

    def blend(self, planes: Sequence[Plane], which: NDArray[np.intp] | slice, cover: Floats) -> None:
        """Blend the shade in at some of the pixels, which are covered by so much, 0 to `FULL`."""
        at, whole = self.at[which], cover.astype(np.int16)
        for plane, shade in zip(planes, self.shades, strict=True):
            blend_at(in_a_row(plane), at, shade[which], whole)


class _Disc:
    """The cover, as a disc of one size."""

    def __init__(self, shape: _Shape, radius: float, cover: Canvas) -> None:
        # Even, so that colour and luma begin at the same place.
        self._left, self._top = (int(length / 2 - radius - 1) // 2 * 2 for length in (shape.width, shape.height))
        self._left, self._top = max(self._left, 0), max(self._top, 0)
        size = min(2 * int(radius + 2), shape.width - self._left, shape.height - self._top) // 2 * 2
        picture = Converter().from_rgb(cover, size, size)
        self._shades = [plane.astype(np.int16) for plane in picture.planes]
        cover_of = {pixel: self._cover(shape, size, radius, pixel) for pixel in (1, 2)}
        self._covers = cover_of[1], cover_of[2], cover_of[2]

    def draw(self, picture: Picture) -> None:
        """Draw the disc."""
        for plane, shade, cover, pixel in zip(picture.planes, self._shades, self._covers, (1, 2, 2), strict=True):
            top, left = self._top // pixel, self._left // pixel
            under = plane[top : top + len(shade), left : left + len(shade)]
            under[:] = blended(under, shade, cover)

    def _cover(self, shape: _Shape, size: int, radius: float, pixel: int) -> NDArray[np.int16]:
        """Return how much of its square's pixels the disc covers, 0 to `FULL`."""
        x, y = (
            start + centres(size // pixel, size) - length / 2
            for start, length in ((self._left, shape.width), (self._top, shape.height))
        )
        away = (radius - np.hypot(x, y[:, None])) / pixel + 0.5
        return np.asarray(np.rint(np.clip(away, 0, 1) * FULL), np.int16)


def _shades(colours: Sequence[str], turns: Floats, out: Floats, channels: slice) -> Sequence[Shade]:
    """Return the colours of rays at places, for some planes; they are lighter further ``out``, 0 to 1."""
    towards_white = (0.12 + 0.45 * np.clip(out, 0, 1) ** 1.5)[:, None]
    colour = gradient(colours, _mirrored(turns)) * (1 - towards_white) + 255 * towards_white
    return list(shades(colour))[channels]


def _softened(values: Floats, times: int = 1) -> Floats:
    """Return each ray's value blended with those of its two neighbours, so many times."""
    for _ in range(times):
        padded = np.concatenate((values[-1:], values, values[:1]))
        values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return values


def _mirrored(turns: Floats) -> Floats:
    """Return 0 at whole turns and 1 between them."""
    return 1 - np.abs(2 * (turns % 1) - 1)

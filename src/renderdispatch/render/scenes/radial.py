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
    blend_at,
    blended,
    in_a_row,
    pitches,
    shades,
)

_BEAT: Final = 0.05
"""By how much of its radius the ring grows at a beat, with a pulse of 1."""
_DISCS: Final = 8
"""The most sizes of the cover that are kept for the growth at a beat."""
_SMALLEST: Final = 16
"""Rows and columns of a cover that FFmpeg is given at least."""
_BAND: Final = 1 << 18
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

    @property
    def around(self) -> float:
        """More than any distance in the picture."""
        return 2.0 * (self.width + self.height)

    def disc_radius(self, *, beat: float) -> float:
        """Return the radius of the disc at a beat, 0 to 1."""
        return max(self.inner * (1 + self.beat * beat) - self.gap - self.line / 2 - self.gap / 2, 1.0)


class _Layer:
    """Draws rays and ring in planes of one size.

    Args:
        shape: Where everything is.
        colours: Of the scene.
        channels: Which of Y, Cb and Cr the planes hold.
        pixel: How many pixels of the picture theirs are wide.
    """

    def __init__(self, shape: _Shape, colours: Sequence[str], channels: slice, *, pixel: int) -> None:
        self._shape = shape
        self._pixel = pixel
        height, band = shape.height // pixel, max(_BAND * pixel // shape.width, 1)
        bands = [self._place(top, min(top + band, height), colours, channels) for top in range(0, height, band)]
        at, ray, near, far, side, radius, *shade = map(np.concatenate, zip(*bands, strict=True))

        self._rays = []
        # The ray is the whole part, the distance the fraction: one search finds the ends of all rays.
        keys = ray + far / shape.around
        for part in (side == FULL, (side > 0) & (side < FULL)):
            kept = np.flatnonzero(part)
            kept = kept[np.argsort(keys[kept], kind="stable")]
            pixels = _Pixels(at[kept], [values[kept] for values in shade])
            self._rays.append(_Rays(shape, pixel, keys[kept], near[kept], far[kept], side[kept], pixels))

        kept = np.flatnonzero(self._near_ring(radius))
        kept = kept[np.argsort(radius[kept], kind="stable")]
        self._ring_radius = radius[kept]
        self._ring = _Pixels(at[kept], [values[kept] for values in shade])

    def draw(self, planes: Sequence[Plane], inner: float, outer: Floats) -> None:
        """Draw rays from ``inner`` to ``outer`` (rays,), and the ring, over what the planes hold."""
        rows = [in_a_row(plane) for plane in planes]
        for rays in self._rays:
            rays.draw(rows, inner, outer)
        ring, half = inner - self._shape.gap, (self._shape.line + self._pixel) / 2
        part = np.arange(*np.searchsorted(self._ring_radius, (ring - half, ring + half)))
        away = np.abs(self._ring_radius.take(part) - np.float32(ring))
        cover = np.minimum((half - away) / self._pixel, min(self._shape.line / self._pixel, 1)) * FULL
        self._ring.blend(rows, part, cover.astype(np.int16))

    def _near_ring(self, radius: Floats) -> NDArray[np.bool_]:
        shape = self._shape
        room = shape.line + self._pixel
        return (radius > shape.inner - shape.gap - room) & (radius < shape.inner * (1 + shape.beat) - shape.gap + room)

    def _place(self, top: int, bottom: int, colours: Sequence[str], channels: slice) -> list[NDArray[Any]]:
        """Find the pixels of some rows that rays or ring may touch, their place on them, and their shades."""
        shape, pixel = self._shape, self._pixel
        x = centres(shape.width // pixel, shape.width) - np.float32(shape.width / 2)
        y = centres(shape.height // pixel, shape.height)[top:bottom, None] - np.float32(shape.height / 2)
        radius = np.hypot(x, y)
        grown = shape.inner * shape.beat + pixel
        near = radius < shape.inner + shape.reach.max() + grown
        near &= radius > shape.inner - shape.gap - shape.line - pixel
        rows, columns = np.nonzero(near)
        radius = radius[rows, columns]
        turns = np.arctan2(x[columns], y[rows, 0]) / np.float32(2 * np.pi) % 1
        nearest = np.round(turns * shape.count)
        beside = np.abs(np.sin((turns - nearest / np.float32(shape.count)) * np.float32(2 * np.pi))) * radius
        ray = nearest.astype(np.int32) % shape.count
        out = (radius - np.float32(shape.inner)) / shape.reach[ray]
        side = np.clip((shape.half - beside) / pixel + 0.5, 0, min(2 * shape.half / pixel, 1))
        side[(radius > shape.inner + shape.reach[ray] + grown) | (radius < shape.inner - pixel)] = 0
        # A round end is drawn as a straight one whose pixels count as further out, the more so at its sides.
        round_by = shape.half - np.sqrt(np.maximum(shape.half**2 - beside**2, 0))
        at = (rows + top) * pitches(shape.width)[pixel - 1] + columns
        cover = np.rint(side * FULL).astype(np.int16)
        kept = (cover > 0) | self._near_ring(radius)
        placed = [values[kept] for values in (at, ray, radius - round_by, radius + round_by, cover, radius)]
        return placed + _shades(colours, turns[kept], out[kept], channels)


@frozen(eq=False)
class _Pixels:
    """Pixels of planes, and the shades that each may take.

    Args:
        at: (pixels,), as of `in_a_row`.
        shades: (pixels,) for each plane.
    """

    at: NDArray[np.intp]
    shades: Sequence[Plane]

    def blend(self, rows: Sequence[Plane], which: NDArray[np.intp], cover: NDArray[np.int16]) -> None:
        """Blend the shade in at some of the pixels, which are covered by so much, 0 to `FULL`."""
        at = self.at.take(which)
        for row, shade in zip(rows, self.shades, strict=True):
            blend_at(row, at, shade.take(which).astype(np.int16), cover)

    def put(self, rows: Sequence[Plane], which: NDArray[np.intp]) -> None:
        """Show the shade at some of the pixels."""
        at = self.at.take(which)
        for row, shade in zip(rows, self.shades, strict=True):
            row[at] = shade.take(which)


@frozen(eq=False)
class _Rays:
    """Pixels that rays may cover: those of their sides, or those between.

    Args:
        shape: Where the rays are.
        pixel: How many pixels of the picture these are wide.
        keys: (pixels,), the ray plus the part that ``far`` is of `_Shape.around`; sorted.
        near: (pixels,), the distance at which a ray must begin to cover a pixel by half.
        far: (pixels,), the distance at which a ray must end to cover a pixel by half; more than ``near`` because
            both ends are round.
        side: (pixels,) int16, how much of the pixel an endless ray covers, 0 to `FULL`: all by `FULL`, or none.
        pixels: What is drawn.
    """

    shape: _Shape
    pixel: int
    keys: Floats
    near: Floats
    far: Floats
    side: NDArray[np.int16]
    pixels: _Pixels

    def draw(self, rows: Sequence[Plane], inner: float, outer: Floats) -> None:
        """Draw the rays. What their ends leave uncovered takes a calculation; what is between the ends does not."""
        half, rays = self.pixel / 2, np.arange(len(outer))
        begin = np.full(len(outer), inner)
        bounds = np.stack([begin - half, begin + 2 * self.shape.half + half, outer - half, outer + half])
        first, head, tail, end = np.searchsorted(self.keys, rays + bounds / self.shape.around)
        head = np.minimum(head, tail)

        between = _runs(head, tail)
        if len(self.side) and self.side[0] == FULL:
            self.pixels.put(rows, between)
        else:
            self.pixels.blend(rows, between, self.side.take(between))

        ends = _runs(np.concatenate((first, tail)), np.concatenate((head, end)))
        until = np.repeat(np.concatenate((outer, outer)), np.concatenate((head - first, end - tail)))
        length = np.minimum(until - self.far.take(ends), self.near.take(ends) - np.float32(inner))
        cover = np.clip(length / self.pixel + np.float32(0.5), 0, 1) * self.side.take(ends)
        self.pixels.blend(rows, ends, cover.astype(np.int16))


def _runs(first: NDArray[np.intp], end: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return all whole numbers from each ``first`` to before its ``end``, one run after the other."""
    lengths = end - first
    return np.asarray(np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths))


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


def _shades(colours: Sequence[str], turns: Floats, out: Floats, channels: slice) -> list[Plane]:
    """Return the colours of rays at places, for some planes; they are lighter further ``out``, 0 to 1."""
    towards_white = (0.12 + 0.45 * np.clip(out, 0, 1) ** 1.5)[:, None]
    colour = gradient(colours, _mirrored(turns)) * (1 - towards_white) + 255 * towards_white
    return [values.astype(np.uint8) for values in list(shades(colour))[channels]]


def _softened(values: Floats, times: int = 1) -> Floats:
    """Return each ray's value blended with those of its two neighbours, so many times."""
    for _ in range(times):
        padded = np.concatenate((values[-1:], values, values[:1]))
        values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return values


def _mirrored(turns: Floats) -> Floats:
    """Return 0 at whole turns and 1 between them."""
    return 1 - np.abs(2 * (turns % 1) - 1)

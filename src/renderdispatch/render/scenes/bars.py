"""The scene `bars`: the spectrum as a row of lights over a dark floor."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from renderdispatch.render.features import BANDS, Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient
from renderdispatch.render.params import BarsParams
from renderdispatch.render.picture import (
    FULL,
    Picture,
    PlanarScene,
    Plane,
    Shade,
    blend_at,
    blended,
    in_a_row,
    pitches,
    put_where,
    shades,
)

_PHASES: Final = 8
"""The number of positions between two rows of pixels for which rounded ends are kept."""


_HIGHEST: Final = 0.95
"""Where the last bar is in the spectrum: at 10 kHz. Most songs have little above it."""
_AROUND: Final = 5
"""The number of bars on each side that a bar stands out from."""
_CONTRAST: Final = 0.7
"""How far bars are moved away from the mean of those around them."""


class BarsState(NamedTuple):
    """Where the bars and their caps are, 0 (the floor) to 1 (the top).

    Args:
        light: How loud the music is, smoothed.
        heights: (bars,) float32.
        peaks: (bars,) float32, the caps.
        falling: (bars,) float32, how fast the caps fall, in heights a second.
    """

    light: float
    heights: Floats
    peaks: Floats
    falling: Floats


@frozen
class Row:
    """Where the bars are, in pixels: the first one at ``left``, each one ``pitch`` further, all from ``floor`` up."""

    count: int
    left: int
    pitch: int
    width: int
    floor: int
    reach: int
    """The height of the highest bar."""
    least: int
    """The height of a bar in silence."""
    radius: float
    """That of the bars' rounded tops."""

    @classmethod
    def of(cls, bars: int, width: int, height: int) -> Row:
        """Arrange up to so many bars. The taller the picture, the fewer they are, and the deeper the floor."""
        tall = 1 - min((width / height * 9 / 16) ** 0.5, 1.0)
        count = max(min(round(bars * max(1 - tall, 0.45)), width * 7 // 8 // 3), 1)
        pitch = max(int(width * 0.9 / count), 1)
        wide = max(round(pitch * 0.66), 1)
        floor = 2 * round(height * (0.36 + 0.1 * tall))
        reach = round(floor * 0.86)
        radius = min(wide / 2, reach / 4)
        return cls(
            count=count,
            left=(width - count * pitch + pitch - wide) // 2,
            pitch=pitch,
            width=wide,
            floor=floor,
            reach=reach,
            least=2 * (-int(-radius // 2) + 1),
            radius=radius,
        )

    @property
    def cap(self) -> int:
        """The thickness of the caps."""
        return max(min(round(self.width * 0.3), self.reach // 4), 2)

    @property
    def lefts(self) -> NDArray[np.intp]:
        """The first column of each bar."""
        return self.left + self.pitch * np.arange(self.count)

    def tops(self, heights: Floats) -> Floats:
        """Return the rows, and fractions of them, where bars of such heights begin."""
        return np.asarray(np.float32(self.floor - self.least) - heights * np.float32(self.reach - self.least))


class Bars(PlanarScene[BarsState]):
    """Rounded bars with falling caps, surrounded by their light and reflected below."""

    def __init__(self, params: BarsParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        self.row = row = Row.of(params.bars, width, height)
        self.spectrum = _Spectrum(np.linspace(0, _HIGHEST, row.count))
        self.heights = Spring(rise_s=0.02, fall_s=0.16, frame_s=frame_s)
        self.gravity = np.float32(1.3 * frame_s)
        self.frame_s = np.float32(frame_s)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)

        colours = gradient(params.colours, np.linspace(0, 1, row.count).astype(np.float32))
        luma, *chroma = pitches(width)
        self.luma = _Drawn(row, colours, slice(0, 1), columns=width, rows=height, bytes_a_row=luma)
        self.chroma = _Drawn(row, colours, slice(1, 3), columns=width // 2, rows=height // 2, bytes_a_row=chroma[0])
        self.peak_gap = np.float32(row.cap + 1 + min(0.35 * row.width, row.reach / 8))

        self.backdrop = Backdrop(params, width, height)
        # In float64, so that what is left in float32 does not depend on how a processor computes `exp`.
        x, y = self.backdrop.x.astype(np.float64), self.backdrop.y.astype(np.float64)
        spread = 0.11 * min(width, height)
        middles = row.lefts + row.width / 2
        self.above = np.maximum(row.floor - y, 0).astype(np.float32)
        self.below = (2.5 * np.maximum(y - row.floor, 0)).astype(np.float32)
        near, far = (np.exp(-(((x - middles[:, None]) / spread / wide) ** 2)) for wide in (0.35, 0.9))
        self.near = (near / np.maximum(near.sum(axis=0), 1e-6)).astype(np.float32)
        self.far = (far / far.sum(axis=0).max()).astype(np.float32)
        self.spread = np.float32(1 / spread)
        glow = gradient(params.colours, np.clip((x - row.left) / (row.count * row.pitch), 0, 1))
        off = ((x / width - 0.5) / 0.75) ** 2 + ((y - row.floor) / height / 0.8) ** 2
        self.backdrop.set_light(glow=glow, vignette=np.exp(-off)[..., None].astype(np.float32), pulse=0.2)

    def start(self) -> BarsState:
        """Return bars and caps at rest."""
        rest = np.zeros(self.row.count, np.float32)
        return BarsState(0.0, rest, rest, rest)

    def step(self, state: BarsState, frame: Frame) -> BarsState:
        """Let the bars follow the spectrum; caps fall faster and faster until a bar lifts them again."""
        light = self.brightness.follow_one(state.light, frame.level)
        loud = self.params.gain * (0.6 + 0.8 * light) * (1 + 0.12 * self.params.pulse * frame.beat)
        heights = self.heights.follow(state.heights, self.spectrum.heights(frame.bands, loud))
        lifted = heights >= state.peaks
        falling = np.where(lifted, np.float32(0), state.falling + self.gravity)
        peaks = np.where(lifted, heights, np.maximum(state.peaks - falling * self.frame_s, heights))
        return BarsState(light, heights, peaks, falling)

    def light(self, state: BarsState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def picture(self, state: BarsState, frame: Frame) -> Picture:
        """Draw a frame."""
        picture = self.backdrop.picture(self._shine(state.heights), 0.5 * state.light + frame.beat)
        tops = self.row.tops(state.heights)
        peaks = np.maximum(self.row.tops(state.peaks) - self.peak_gap, 0) if self.params.peaks else None
        luma, *chroma = picture.planes
        self.luma.draw([luma], tops, peaks)
        self.chroma.draw(chroma, tops, peaks)
        return picture

    def _shine(self, heights: Floats) -> Floats:
        """Return how strongly each place of the backdrop glows: less and less away from the bars, with no end."""
        # Sums of arrays one after the other, and not a product of matrices, whose order depends on the machine.
        tall = (self.near * heights[:, None]).sum(axis=0)
        strong = (self.far * (np.float32(0.1) + np.float32(0.5) * heights)[:, None]).sum(axis=0)
        away = np.maximum(self.above - tall * np.float32(self.row.reach), 0)
        away += self.below
        away *= self.spread
        away *= away
        away += 1
        return np.asarray(strong / away)


class _Drawn:
    """The bars in the planes of one size.

    Args:
        row: Where the bars are.
        colours: (bars, 3), RGB.
        channels: Which of luma, Cb and Cr the planes hold.
        columns: Those of the planes.
        rows: Those of the planes.
        bytes_a_row: See `pitches`.
    """

    def __init__(
        self, row: Row, colours: Floats, channels: slice, *, columns: int, rows: int, bytes_a_row: int
    ) -> None:
        self._scale = scale = 1 if channels.start == 0 else 2
        self._bytes_a_row = bytes_a_row
        self._floor = row.floor // scale
        self._rows = np.arange(rows, dtype=np.int16)[:, None]
        bar, self._first = _columns(row, columns, scale)
        self._bar = bar
        cap = -int(-row.radius // scale)
        self._cap = _Stamp(row, self._first, bytes_a_row, scale, rows=cap, radius=row.radius, open_below=True)
        whole = -(-row.cap // scale)
        self._peak = _Stamp(row, self._first, bytes_a_row, scale, rows=whole, radius=row.cap / 2, open_below=False)

        up = np.clip(1 - (np.arange(self._floor, dtype=np.float32) + 0.5) * scale / row.floor, 0, 1)
        lit = _lit(colours, np.minimum(up * (row.floor / row.reach), 1))
        across = (np.arange(columns) + 0.5) * scale - row.left - row.pitch * np.minimum(bar, row.count - 1)
        rounded = (FULL - 0.14 * FULL * np.clip(across * (2 / row.width) - 1, -1, 1) ** 2).astype(np.int16)
        depth = min(rows - self._floor, round(row.reach * 0.55 / scale))
        fade = (0.5 * FULL * (1 - np.arange(depth) / max(depth, 1)) ** 2).astype(np.int16)[:, None]
        dark = np.array([16 if scale == 1 else 128], np.uint8)
        self._lit = [np.zeros((self._floor, bytes_a_row), np.uint8) for _ in lit[channels]]
        for light, shade in zip(self._lit, lit[channels], strict=True):
            light[:, :columns] = blended(dark, np.append(shade, shade[:, :1], axis=1)[:, bar], rounded)
        self._fade = fade
        mirrored = [light[::-1][:depth, :columns] for light in self._lit]
        if scale == 1:
            mirrored = [blended(dark, light.astype(np.int16), fade).astype(np.uint8) for light in mirrored]
        self._mirrored = mirrored

    def draw(self, planes: Sequence[Plane], tops: Floats, peaks: Floats | None) -> None:
        """Draw bars from ``tops`` (in rows and fractions of them) to the floor, their reflections and their caps."""
        tops = tops * np.float32(1 / self._scale)
        whole = tops.astype(np.int16)
        self._draw_bodies(planes, whole + np.int16(self._cap.rows))
        self._draw_reflections(planes, np.int16(self._floor) - whole)
        rows = [in_a_row(plane) for plane in planes]
        self._cap.press(rows, self._lit, tops)
        if peaks is not None:
            self._peak.press(rows, self._lit, peaks * np.float32(1 / self._scale))

    def _draw_bodies(self, planes: Sequence[Plane], tops: NDArray[np.int16]) -> None:
        highest, floor = int(tops.min()), self._floor
        shown = self._rows[highest:floor] >= np.append(tops, np.int16(floor))[self._bar]
        where = np.negative(shown.view(np.uint8))
        for plane, lit in zip(planes, self._lit, strict=True):
            put_where(plane[highest:floor], lit[highest:floor, : plane.shape[1]], where)

    def _draw_reflections(self, planes: Sequence[Plane], heights: NDArray[np.int16]) -> None:
        depth = min(int(heights.max()), len(self._fade))
        under = [plane[self._floor : self._floor + depth] for plane in planes]
        shown = self._rows[:depth] < np.append(heights, np.int16(0))[self._bar]
        for pixels, mirrored in zip(under, self._mirrored, strict=True):
            if self._scale == 1:  # the brighter one: quicker than to blend, and most pixels are here
                np.maximum(pixels, mirrored[:depth] & np.negative(shown.view(np.uint8)), out=pixels)
            else:
                pixels[:] = blended(pixels, mirrored[:depth].astype(np.int16), shown * self._fade[:depth])


def _columns(row: Row, columns: int, scale: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which bar each column shows (``row.count`` where there is none), and the first column of each bar."""
    first = row.lefts // scale
    bar = np.full(columns, row.count, np.intp)
    for begin, end, index in zip(first, -(-(row.lefts + row.width) // scale), range(row.count), strict=True):
        bar[begin:end] = index
    return bar, first


def _lit(colours: Floats, up: Floats) -> Sequence[Shade]:
    """Return the luma, Cb and Cr of bars at heights ``up``, 0 to 1: (heights, bars) each."""
    up = up[:, None, None]
    towards_white = 0.1 + 0.5 * up * np.sqrt(up)
    return shades(colours * (0.72 + 0.28 * up) * (1 - towards_white) + 255 * towards_white)


class _Stamp:
    """A rounded shape as wide as a bar, which every bar has once.

    The shape is what is nearer than ``radius`` to a level line, and with ``open_below`` all that is below the line.
    """

    def __init__(
        self,
        row: Row,
        first: NDArray[np.intp],
        bytes_a_row: int,
        scale: int,
        *,
        rows: int,
        radius: float,
        open_below: bool,
    ) -> None:
        self.rows: Final = rows + 1
        self._bytes_a_row = bytes_a_row
        self._bars = np.arange(row.count)
        columns = np.arange(row.width // scale + (scale > 1))
        at = first[:, None, None] + np.arange(self.rows)[:, None] * bytes_a_row + columns
        self._at = at.reshape(row.count, -1)
        middles = row.lefts + row.width / 2
        x = np.abs((first[:, None] + columns + 0.5) * scale - middles[:, None])
        x = np.maximum(x - max(row.width / 2 - radius, 0), 0)[:, None, None]
        phase = np.arange(_PHASES)[:, None] / _PHASES
        y = ((np.arange(self.rows) + 0.5 - phase) * scale - radius)[..., None]
        away = np.sqrt(x**2 + (np.minimum(y, 0) if open_below else y) ** 2)
        covers = (np.clip((radius - away) / scale + 0.5, 0, 1) * FULL).astype(np.int16)
        self._covers = covers.reshape(row.count, _PHASES, -1)

    def press(self, rows: Sequence[Plane], lit: Sequence[Plane], tops: Floats) -> None:
        """Blend the shape into planes, one for each bar, in the light of the place where it is."""
        whole = tops.astype(np.intp)
        phase = ((tops - whole) * _PHASES).astype(np.intp)
        at = (self._at + (whole * self._bytes_a_row)[:, None]).ravel()
        cover = self._covers[self._bars, phase].ravel()
        for row, light in zip(rows, lit, strict=True):
            blend_at(row, at, light.reshape(-1)[at].astype(np.int16), cover)


class _Spectrum:
    """Reads the heights of bars from the bands of a frame. Notes stand out from those around them.

    Args:
        at: Where the bars are in the spectrum, 0 to 1.
    """

    def __init__(self, at: Floats) -> None:
        place = at * (BANDS - 1)
        away = np.abs(place[:, None] - np.arange(BANDS))
        bar = np.arange(len(at))
        apart = np.abs(bar[:, None] - bar)
        soft = np.where(apart < 2, 2 - apart, 0) * 1.0
        around = (apart <= _AROUND) * 1.0
        soft, around = (each / each.sum(axis=1, keepdims=True) for each in (soft, around))
        shown = (1 + _CONTRAST) * np.eye(len(at)) - _CONTRAST * around
        # Products with a few tens of values: `dot` would take BLAS, whose sums depend on the machine.
        blended = _product(_product(shown, soft), np.maximum(1 - away, 0))
        weights = np.ascontiguousarray(blended.T, np.float32)
        first, last = np.argmax(weights != 0, axis=0), BANDS - np.argmax(weights[::-1] != 0, axis=0)
        count = int((last - first).max())
        self._bands = np.minimum(first, BANDS - count) + np.arange(count)[:, None]
        """(n, bars): the bands that a bar is made of; of all others it takes nothing."""
        self._weights = np.take_along_axis(weights, self._bands, axis=0)

    def heights(self, bands: Floats, loudness: float) -> Floats:
        """Return the heights, 0 to 1, which none reaches."""
        seen = np.maximum((self._weights * bands.take(self._bands)).sum(axis=0), 0)
        height = seen * seen
        height *= np.float32(loudness)
        # A soft limit of operations that are the same on every machine.
        return np.asarray(height / np.sqrt(height * height + 1))


def _product(left: Floats, right: Floats) -> Floats:
    return np.asarray((left[:, :, None] * right[None]).sum(axis=1))

"""The scene `bars`: the spectrum as a row of lights over a dark floor."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from renderdispatch.render.features import Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep, softened, spectrum
from renderdispatch.render.params import BarsParams
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import Scene

_PHASES: Final = 8
"""The number of positions between two rows of pixels for which rounded ends are kept."""


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


class Bars(Scene[BarsState]):
    """Rounded bars with falling caps, surrounded by their light and reflected below."""

    def __init__(self, params: BarsParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        narrow = min((width / height * 9 / 16) ** 0.5, 1.0)
        self.count = max(min(round(params.bars * max(narrow, 0.45)), width * 7 // 8 // 3), 1)
        self.pitch = max(int(width * 0.88 / self.count), 1)
        self.width = max(round(self.pitch * 0.66), 1)
        self.left = (width - self.count * self.pitch + self.pitch - self.width) // 2
        self.floor = round(height * (0.56 + 0.14 * narrow))
        self.reach = round(min(self.floor * 0.82, width * 0.62))
        self.least = max(self.width * 0.55, 1.0)

        self.bands = np.linspace(0, 1, self.count)
        self.heights = Spring(rise_s=0.02, fall_s=0.16, frame_s=frame_s)
        self.gravity = np.float32(1.3 * frame_s)
        self.frame_s = np.float32(frame_s)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)

        self.lit = self._lit(height)
        depth = min(height - self.floor, round(self.reach * 0.55))
        fade = 0.5 * (1 - np.arange(depth, dtype=np.float32) / max(depth, 1)) ** 2
        upside_down = self.lit[self.floor - depth : self.floor][::-1] if depth else self.lit[:0]
        self.reflected = (upside_down * fade[:, None, None, None]).astype(np.uint8)
        self.cap = _masks(self.width, max(round(self.width / 2), 1), self.width / 2, open_below=True)
        rows = max(round(self.width * 0.3), 2)
        self.peak = _masks(self.width, rows, rows / 2, open_below=False)

        self.backdrop = Backdrop(params, width, height)
        x, y = self.backdrop.x, self.backdrop.y
        colour = gradient(params.colours, np.clip((x - self.left) / (self.count * self.pitch), 0, 1))
        self.columns = np.clip((x - self.left) / self.pitch - 0.5, 0, self.count - 1)
        self.above = np.maximum(self.floor - y, 0)
        self.below = np.maximum(y - self.floor, 0)
        self.spread = np.float32(0.11 * min(width, height))
        inside = np.minimum(x - self.left, self.left + self.count * self.pitch - x)
        self.edge = smoothstep(-1, 0, inside / self.spread)
        off = ((x / width - 0.5) / 0.75) ** 2 + ((y - self.floor) / height / 0.8) ** 2
        vignette = np.exp(-off)[..., None]
        self.backdrop.set_light(glow=colour, vignette=vignette, pulse=0.2)

    def start(self) -> BarsState:
        """Return bars and caps at rest."""
        rest = np.zeros(self.count, np.float32)
        return BarsState(0.0, rest, rest, rest)

    def step(self, state: BarsState, frame: Frame) -> BarsState:
        """Let the bars follow the spectrum; caps fall faster and faster until a bar lifts them again."""
        light = self.brightness.follow_one(state.light, frame.level)
        loud = self.params.gain * (0.45 + 0.55 * light) * (1 + 0.12 * self.params.pulse * frame.beat)
        heights = self.heights.follow(state.heights, spectrum(frame.bands, self.bands, loud))
        lifted = heights >= state.peaks
        falling = np.where(lifted, 0, state.falling + self.gravity).astype(np.float32)
        peaks = np.where(lifted, heights, np.maximum(state.peaks - falling * self.frame_s, heights))
        return BarsState(light, heights, peaks, falling)

    def light(self, state: BarsState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def paint(self, state: BarsState, frame: Frame, canvas: Canvas) -> None:
        """Paint a frame."""
        self._paint_light(state.heights, state.light, frame.beat, canvas)
        bars = self._columns(canvas)
        self._paint_bars(bars, self.floor - self.least - state.heights * (self.reach - self.least))
        if self.params.peaks:
            self._paint_peaks(bars, state.peaks)

    def _columns(self, canvas: Canvas) -> Canvas:
        """Return the bars' own pixels of the canvas, without copying: (height, count, width, 3)."""
        row, pixel, channel = canvas.strides
        shape = len(canvas), self.count, self.width, 3
        return np.lib.stride_tricks.as_strided(canvas[:, self.left :], shape, (row, self.pitch * pixel, pixel, channel))

    def _paint_light(self, heights: Floats, light: float, beat: float, canvas: Canvas) -> None:
        at = self.columns.astype(np.intp)
        smooth = softened(heights, 3)
        tall = smooth[at] + (smooth[np.minimum(at + 1, self.count - 1)] - smooth[at]) * (self.columns - at)
        over = np.maximum(self.above - tall * self.reach, 0)
        shine = np.exp(-(over + 6 * self.below) / self.spread) * (self.edge * (0.1 + 0.5 * tall))
        self.backdrop.paint(shine, 0.5 * light + beat, canvas)

    def _paint_bars(self, bars: Canvas, tops: Floats) -> None:
        """Paint bars from ``tops`` (in rows and fractions of them) to the floor, and their reflections."""
        cap_rows = self.cap.shape[1]
        whole = np.floor(tops).astype(np.intp)
        for bar, top in enumerate(whole):
            body = min(top + cap_rows, self.floor)
            bars[body : self.floor, bar] = self.lit[body : self.floor, bar]
            depth = min(self.floor - top, len(self.reflected))
            below = bars[self.floor : self.floor + depth, bar]
            np.maximum(below, self.reflected[:depth, bar], out=below)
        self._blend(bars, tops, self.cap)

    def _paint_peaks(self, bars: Canvas, peaks: Floats) -> None:
        gap = self.peak.shape[1] + 0.35 * self.width
        tops = np.maximum(self.floor - self.least - peaks * (self.reach - self.least) - gap, 0)
        self._blend(bars, tops, self.peak)

    def _blend(self, bars: Canvas, tops: Floats, masks: NDArray[np.int16]) -> None:
        """Blend each lit bar through a mask, at its row and fraction of a row."""
        whole = np.floor(tops).astype(np.intp)
        mask = masks[((tops - whole) * _PHASES).astype(np.intp)][..., None]
        at = np.clip(whole[:, None] + np.arange(masks.shape[1]), 0, self.floor - 1), np.arange(self.count)[:, None]
        under = bars[at].astype(np.int16)
        bars[at] = under + (((self.lit[at].astype(np.int16) - under) * mask) >> 7)

    def _lit(self, height: int) -> Canvas:
        """Return every bar as if it reached the top: (height, count, width, 3)."""
        colour = gradient(self.params.colours, np.linspace(0, 1, self.count).astype(np.float32))
        up = np.clip((self.floor - np.arange(height, dtype=np.float32)) / self.reach, 0, 1)[:, None, None]
        towards_white = 0.1 + 0.5 * up**1.5
        shaded = (colour * (0.72 + 0.28 * up)) * (1 - towards_white) + 255 * towards_white
        edge = 1 if self.width > 2 else 0
        rounded = 1 - 0.14 * np.linspace(-edge, edge, self.width, dtype=np.float32) ** 2
        return np.asarray(np.clip(shaded[:, :, None, :] * rounded[:, None], 0, 255), np.uint8)


def _masks(width: int, rows: int, radius: float, *, open_below: bool) -> NDArray[np.int16]:
    """Return how much of each pixel a rounded shape covers, 0 to 128: (phases, rows + 1, width).

    The shape is what is nearer than ``radius`` to a level line, and with ``open_below`` all that is below the line.
    """
    x = np.maximum(np.abs(np.arange(width) + 0.5 - width / 2) - max(width / 2 - radius, 0), 0)
    phases = np.arange(_PHASES)[:, None, None] / _PHASES
    y = np.arange(rows + 1)[:, None] + 0.5 - (radius + phases)
    away = np.hypot(x, np.maximum(-y, 0) if open_below else y)
    return np.asarray(np.clip(radius - away + 0.5, 0, 1) * 128, np.int16)

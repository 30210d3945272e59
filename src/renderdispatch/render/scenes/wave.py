"""The scene `wave`: the sound's wave as a ribbon of light."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np

from renderdispatch.render.features import Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep
from renderdispatch.render.params import WaveParams
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import Scene

_SHOWN: Final = 320
"""Samples of the wave that are shown; the others are needed to find where it rises."""
_STEEPEST: Final = 5.0
"""The most rows per column that a line rises, so that it stays a line."""


class WaveState(NamedTuple):
    """What was drawn lately.

    Args:
        light: How loud the music is, smoothed.
        lines: (frames, samples) float32, -1 to 1: the wave of this frame and of those before it, the oldest first.
    """

    light: float
    lines: Floats


class Wave(Scene[WaveState]):
    """The wave, held still where it rises, with echoes of earlier frames and light around it."""

    def __init__(self, params: WaveParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        self.width, self.height = width, height
        self.middle = np.float32(height / 2)
        self.reach = np.float32(min(height * 0.36, width * 0.4) * params.gain)
        size = min(width, height)
        self.thickness = max(size / 170 * params.thickness, 1.2)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)
        self.age = max(round(0.2 / frame_s), 2)

        columns = np.arange(width, dtype=np.float32)
        across = columns / max(width - 1, 1)
        self.taper = np.sin(np.pi * across).clip(0).astype(np.float32) ** 1.2
        self.at = across * (_SHOWN - 1)
        self.columns = np.arange(width)[:, None]
        self.colour = gradient(params.colours, across)
        self.core = self.colour * 0.35 + 255 * 0.65

        self.backdrop = Backdrop(params, width, height)
        x, y = self.backdrop.x, self.backdrop.y
        self.small_columns = np.clip(x.astype(np.intp), 0, width - 1)
        glow = self.colour[self.small_columns]
        off = ((x / width - 0.5) / 0.7) ** 2 + ((y / height - 0.5) / 0.7) ** 2
        vignette = np.exp(-off)[..., None].astype(np.float32)
        self.backdrop.set_light(glow=glow, vignette=vignette, pulse=0.22)
        self.spread = np.float32(size * 0.055)

    def start(self) -> WaveState:
        """Return a wave at rest."""
        return WaveState(0.0, np.zeros((self.age + 1, _SHOWN), np.float32))

    def step(self, state: WaveState, frame: Frame) -> WaveState:
        """Add the frame's wave."""
        light = self.brightness.follow_one(state.light, frame.level)
        return WaveState(light, np.concatenate([state.lines[1:], self._steadied(frame.wave, light)[None]]))

    def light(self, state: WaveState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def paint(self, state: WaveState, frame: Frame, canvas: Canvas) -> None:
        """Paint a frame."""
        wave = self._rows(state.lines[-1])
        self._paint_light(wave, state.light, frame.beat, canvas)
        for echo, strength in ((state.lines[0], 0.16), (state.lines[self.age // 2], 0.3)):
            self._paint_line(canvas, self._rows(echo), self.colour, strength, self.thickness * 0.8)
        self._paint_line(canvas, wave, self.colour, 0.45 + 0.3 * state.light, self.thickness * 2.2)
        self._paint_line(canvas, wave, self.core, 0.95, self.thickness)

    def _rows(self, line: Floats) -> Floats:
        """Return the row of the line in each column."""
        seen = np.interp(self.at, np.arange(_SHOWN), line).astype(np.float32)
        return np.asarray(self.middle - seen * self.taper * self.reach)

    def _steadied(self, wave: Floats, light: float) -> Floats:
        """Return the samples that are shown. They begin where the smoothed wave rises most through 0."""
        kernel = np.hanning(15).astype(np.float32)
        smooth = np.convolve(wave, kernel / kernel.sum(), mode="same").astype(np.float32)
        room = len(smooth) - _SHOWN
        rises = (smooth[:room] < 0) & (smooth[1 : room + 1] >= 0)
        slopes = np.where(rises, smooth[6 : room + 6] - smooth[:room], 0)
        start = int(np.argmax(slopes))
        loud = light / max(float(np.abs(smooth).max()), 0.03) if light > 0 else 0.0
        return np.asarray(np.tanh(smooth[start : start + _SHOWN] * np.float32(loud)))

    def _paint_light(self, wave: Floats, light: float, beat: float, canvas: Canvas) -> None:
        line = wave[self.small_columns]
        y = self.backdrop.y
        away = np.abs(y - line)
        # Light fills the space between the line and the middle, and surrounds the line itself.
        filled = np.abs(y - (line + self.middle) / 2) / (np.abs(line - self.middle) / 2 + self.spread)
        sheet = smoothstep(0, 1, 1 - filled)
        shine = np.exp(-away / self.spread) * (0.16 + 0.4 * light) + sheet * 0.16 * light
        self.backdrop.paint(shine, 0.5 * light + beat, canvas)

    def _paint_line(self, canvas: Canvas, line: Floats, colour: Floats, strength: float, thickness: float) -> None:
        """Blend in a smooth line at the rows ``line``; ``thickness`` is in pixels, measured across the line."""
        slope = np.minimum(np.abs(np.gradient(line)), _STEEPEST) if self.width > 1 else np.zeros_like(line)
        stretch = np.sqrt(1 + slope * slope).astype(np.float32)
        half = thickness / 2 + 0.5
        reach = int(np.ceil(half * float(stretch.max()))) + 1
        first = np.clip(np.floor(line).astype(np.intp) - reach, 0, max(self.height - 2 * reach - 1, 0))
        rows = np.minimum(first[:, None] + np.arange(2 * reach + 1), self.height - 1)
        away = np.abs(rows + np.float32(0.5) - line[:, None]) / stretch[:, None]
        cover = (np.clip(half - away, 0, 1) * np.float32(strength))[..., None]
        under = canvas[rows, self.columns]
        canvas[rows, self.columns] = under + (colour[:, None] - under) * cover

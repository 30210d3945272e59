"""The scene `radial`: the spectrum around a pulsing ring."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from renderdispatch.render.features import Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep, softened, spectrum
from renderdispatch.render.params import RadialParams
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import Scene


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


class Radial(Scene[RadialState]):
    """Rounded rays around a ring; the music turns them.

    The place of each pixel (its ray, its distance) never changes, so a frame only compares the rays' lengths with it.
    """

    def __init__(self, params: RadialParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        size = min(width, height)
        self.inner = np.float32(0.2 * size)
        self.reach = np.float32(0.27 * size)
        self.count = max(min(params.bars, int(2 * np.pi * self.inner / 3)), 4)
        self.heights = Spring(rise_s=0.02, fall_s=0.18, frame_s=frame_s)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)
        self.turn_step = params.spin * frame_s / 60
        # The lowest note is at the bottom, the highest at the top, on both sides.
        self.around = np.arange(self.count) / self.count
        self._place(width, height)

        self.backdrop = Backdrop(params, width, height)
        x, y = self.backdrop.x - width / 2, self.backdrop.y - height / 2
        self.radius = np.hypot(x, y).astype(np.float32)
        vignette = np.exp(-((self.radius / (0.75 * np.hypot(width, height) / 2)) ** 2))[..., None]
        colour = gradient(params.colours, _mirrored(np.arctan2(x, y) / (2 * np.pi)))
        self.hole = smoothstep(0.55, 1.0, self.radius / self.inner)
        self.backdrop.set_light(glow=colour, vignette=vignette, pulse=0.25, hole=self.hole[..., None])
        self.spread = np.float32(0.1 * size)
        self.ray = (np.arctan2(x, y) / (2 * np.pi) % 1 * self.count).astype(np.intp) % self.count

    def start(self) -> RadialState:
        """Return rays at rest."""
        return RadialState(0.0, 0.0, np.zeros(self.count, np.float32))

    def step(self, state: RadialState, frame: Frame) -> RadialState:
        """Let the rays follow the spectrum, and turn."""
        light = self.brightness.follow_one(state.light, frame.level)
        turn = state.turn + self.turn_step * min(3 * light, 1.0)
        loud = self.params.gain * (0.45 + 0.55 * light)
        target = spectrum(frame.bands, _mirrored(self.around + turn), loud)
        return RadialState(light, turn, self.heights.follow(state.heights, target))

    def light(self, state: RadialState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def paint(self, state: RadialState, frame: Frame, canvas: Canvas) -> None:
        """Paint a frame."""
        self._paint_light(state.heights, state.light, frame.beat, canvas)
        beat = 1 + 0.05 * self.params.pulse * frame.beat
        self._paint_rays(canvas, state.heights, np.float32(self.inner * beat))

    def _paint_light(self, heights: Floats, light: float, beat: float, canvas: Canvas) -> None:
        tall = softened(heights, 4)[self.ray]
        over = np.maximum(self.radius - self.inner - tall * self.reach, 0)
        shine = np.exp(-over / self.spread) * self.hole * (0.12 + 0.5 * tall)
        self.backdrop.paint(shine, 0.5 * light + beat, canvas)

    def _paint_rays(self, canvas: Canvas, heights: Floats, inner: Floats | np.float32) -> None:
        outer = inner + self.least + heights * (self.reach - self.least)
        shape = np.minimum(outer[self.pixel_ray] - self.pixel_radius, self.pixel_radius - inner)
        cover = np.clip(shape + np.float32(0.5), 0, 1) * self.side
        ring = inner - self.gap
        cover = np.maximum(cover, np.clip(self.line / 2 + np.float32(0.5) - np.abs(self.true_radius - ring), 0, 1))
        touched = np.flatnonzero(cover)
        pixels = canvas.reshape(-1, 3)
        where = self.pixels[touched]
        under = pixels[where].astype(np.int16)
        alpha = (cover[touched] * np.float32(128)).astype(np.int16)[:, None]
        pixels[where] = under + (((self.colour[touched] - under) * alpha) >> 7)

    def _place(self, width: int, height: int) -> None:
        """Find the pixels that a ray or the ring may touch, and their place on it."""
        size = min(width, height)
        self.gap = np.float32(0.022 * size)
        self.line = np.float32(max(size / 240, 1.0))
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        x += np.float32(0.5 - width / 2)
        y += np.float32(0.5 - height / 2)
        radius = np.hypot(x, y)
        pixels = np.flatnonzero((radius > self.inner * 0.8) & (radius < self.inner * 1.06 + self.reach + 2))
        x, y, radius = x.ravel()[pixels], y.ravel()[pixels], radius.ravel()[pixels]
        angle = np.arctan2(x, y) / (2 * np.pi) % 1
        ray = np.round(angle * self.count)
        beside = np.abs(np.sin((angle - ray / self.count) * 2 * np.pi)) * radius
        half = max(np.pi * float(self.inner) / self.count * 0.58, 0.6)
        self.least = np.float32(2 * half)
        side = np.clip(half - beside + 0.5, 0, 1)
        near_ring = np.abs(radius - (self.inner * 0.98 - self.gap)) < 0.07 * self.inner + self.line
        kept = (side > 0) | near_ring
        self.pixels = pixels[kept]
        self.side = side[kept].astype(np.float32)
        self.pixel_ray = ray[kept].astype(np.intp) % self.count
        self.true_radius = radius[kept]
        # A rounded end is drawn as a straight one whose pixels count as further out, the more so at its sides.
        roundness = half - np.sqrt(np.maximum(half**2 - beside[kept] ** 2, 0))
        self.pixel_radius = (self.true_radius + roundness).astype(np.float32)
        out = np.clip((self.true_radius - self.inner) / self.reach, 0, 1)[:, None]
        towards_white = 0.12 + 0.45 * out**1.5
        colour = gradient(self.params.colours, _mirrored(angle[kept]))
        self.colour = (colour * (1 - towards_white) + 255 * towards_white).astype(np.int16)


def _mirrored(turns: Floats) -> Floats:
    """Return 0 at whole turns and 1 between them."""
    return 1 - np.abs(2 * (turns % 1) - 1)

"""The scene `wave`: the sound's wave as a ribbon of light."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from renderdispatch.render.features import Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep
from renderdispatch.render.params import WaveParams
from renderdispatch.render.picture import FULL, Picture, PlanarScene, blended, in_a_row, shades

_SHOWN: Final = 128
"""Points of the wave that are shown, 12 ms. The others are room to find where the line of the frame before goes on."""
_LOUD: Final = 0.75
"""A part with less than so much of the energy of the loudest part is quiet."""
_STEEPEST: Final = 48.0
"""The most pixels across per pixel along that a line rises, so that it stays a line."""
_CALM_S: Final = 0.035
"""Seconds until 63 % of a small change of the line's shape are followed."""


class WaveState(NamedTuple):
    """What was drawn lately.

    Args:
        light: How loud the music is, smoothed, 0 to 1.
        lines: (frames, 128) float32, -1 to 1: the line of this frame and of those before it, the oldest first.
    """

    light: float
    lines: Floats


class Wave(PlanarScene[WaveState]):
    """The wave along the longer side, held still where the sound is the same, with echoes of earlier frames."""

    def __init__(self, params: WaveParams, *, width: int, height: int, fps: Fraction) -> None:
        self.params = params
        frame_s = float(1 / fps)
        self.upright = height > width
        self.along, self.across = max(width, height), min(width, height)
        self.middle = np.float32(self.across / 2)
        self.reach = np.float32(self.across * 0.46 * params.gain)
        self.thickness = max(self.across / 170 * params.thickness, 1.2)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)
        self.pace = float(1 - np.exp(-frame_s / _CALM_S))
        self.age = min(max(round(0.2 / frame_s), 2), 100)

        place = (np.arange(self.along, dtype=np.float32) + np.float32(0.5)) / self.along
        self.taper = np.sin(np.pi * place) ** np.float32(1.2)
        self.curve = _Curve(place * (_SHOWN - 1))
        colour = gradient(params.colours, place)
        self.colour = shades(colour)
        self.core = shades(colour * 0.35 + 255 * 0.65)

        self.backdrop = Backdrop(params, width, height)
        x, y = self.backdrop.x, self.backdrop.y
        self.small = (y[:, 0] if self.upright else x).astype(np.intp)
        self.small_across = x if self.upright else y[:, 0]
        glow = colour[self.small][:, None] if self.upright else colour[self.small]
        off = ((x / width - 0.5) / 0.7) ** 2 + ((y / height - 0.5) / 0.7) ** 2
        vignette = np.exp(-off)[..., None].astype(np.float32)
        self.backdrop.set_light(glow=glow, vignette=vignette, pulse=0.22)
        self.spread = np.float32(self.across * 0.055)

    def start(self) -> WaveState:
        """Return a wave at rest."""
        return WaveState(0.0, np.zeros((self.age + 1, _SHOWN), np.float32))

    def step(self, state: WaveState, frame: Frame) -> WaveState:
        """Add the frame's line."""
        light = self.brightness.follow_one(state.light, frame.level)
        line = self._continued(state.lines[-1], frame.wave, light)
        return WaveState(light, np.concatenate([state.lines[1:], line[None]]))

    def light(self, state: WaveState, frame: Frame) -> float:
        """Return how bright the scene shines."""
        return state.light

    def picture(self, state: WaveState, frame: Frame) -> Picture:
        """Return a picture of a frame."""
        line = self._places(state.lines[-1])
        picture = self.backdrop.picture(self._shine(line, state.light), 0.5 * state.light + frame.beat)
        for echo, strength in ((state.lines[0], 0.2), (state.lines[self.age // 2], 0.36)):
            self._draw(picture, self._places(echo), halo=strength, core=0)
        self._draw(picture, line, halo=0.5 + 0.3 * state.light, core=0.95)
        return picture

    def _continued(self, last: Floats, wave: Floats, light: float) -> Floats:
        """Return the part of the wave that differs least from the line before, blended with it if they are alike."""
        loud = 1.4 * light / max(float(np.abs(wave).max()), 0.01)
        shaped = np.tanh(wave * np.float32(loud))
        begin, unlike = _found(last, shaped)
        first = floor(begin)
        part = _blend([shaped[first + k : first + k + _SHOWN] for k in (-1, 0, 1, 2)], _weights(begin - first))
        return last + (part - last) * np.float32(self.pace + (1 - self.pace) * unlike)

    def _places(self, line: Floats) -> Floats:
        """Return where the line is across, in pixels, at each pixel along."""
        return np.asarray(self.middle - self.curve.through(line) * self.taper * self.reach)

    def _shine(self, line: Floats, light: float) -> Floats:
        """Return the light around the line, and between it and the middle."""
        place, across = line[self.small], self.small_across[:, None]
        away = np.abs(across - place)
        filled = np.abs(across - (place + self.middle) / 2) / (np.abs(place - self.middle) / 2 + self.spread)
        sheet = smoothstep(0, 1, 1 - filled)
        shine = np.exp(-away / self.spread) * np.float32(0.16 + 0.4 * light) + sheet * np.float32(0.16 * light)
        return np.asarray(shine.T if self.upright else shine)

    def _draw(self, picture: Picture, line: Floats, *, halo: float, core: float) -> None:
        """Draw a line over the pixels that it covers.

        Args:
            picture: The picture.
            line: Where the line is across, in pixels, at each pixel along.
            halo: How strongly the soft light beside the line shines.
            core: How strongly the line itself does.
        """
        half = line.reshape(-1, 2).mean(axis=1) / 2
        for scale, at, channels in ((1, line, slice(1)), (2, half, slice(1, 3))):
            wide, thin = self.thickness * 1.5 / scale, self.thickness / scale / 2 + 0.5
            along, across, away = _covered(at, max(wide, thin), self.across // scale)
            soft = (np.maximum(1 - away / np.float32(wide), 0) ** 2 * np.float32(halo * FULL)).astype(np.int16)
            sharp = (np.clip(np.float32(thin) - away, 0, 1) * np.float32(core * FULL)).astype(np.int16)
            for plane, colour, bright in zip(
                picture.planes[channels], self.colour[channels], self.core[channels], strict=True
            ):
                pitch, row = plane.strides[0], in_a_row(plane)
                place = along * pitch + across if self.upright else across * pitch + along
                shaded = blended(row[place], colour[::scale][along], soft)
                row[place] = blended(shaded, bright[::scale][along], sharp)


def _found(line: Floats, wave: Floats) -> tuple[float, float]:
    """Return where in the wave the part begins that differs least from a line, and how much it differs, 0 to 1."""
    # The difference of each part, |part|^2 - 2 part * line, without |line|^2, which is the same for all.
    sums = np.cumsum(wave * wave, dtype=np.float64)
    energy = sums[_SHOWN - 1 :].copy()
    energy[1:] -= sums[:-_SHOWN]
    parts = np.ndarray((len(energy), _SHOWN), wave.dtype, wave, strides=wave.strides * 2)  # they overlap; no copy
    # Among quiet parts the loudest counts as the nearest: the others would hide an attack.
    loudest = float(energy.max())
    off = np.abs(energy - _LOUD * loudest) - 2 * np.einsum("ij,j->i", parts, line)
    start = 2 + int(np.argmin(off[2:-2]))  # with points before and after it, to interpolate
    # The parabola through three differences tells where between two points the difference is smallest.
    left, least, right = off[start - 1 : start + 2].tolist()
    bend = left - 2 * least + right
    shift = min(max((left - right) / (2 * bend), -0.5), 0.5) if bend > 0 else 0.0
    square = float((line * line).sum())
    unlike = (least + _LOUD * loudest + square) / (float(energy[start]) + square + 1e-9)
    return start + shift, min(max(unlike, 0.0), 1.0)


def _covered(line: Floats, radius: float, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return the pixels that are less than ``radius`` from a line: along, across, and how far they are from it."""
    rises = np.pad(np.minimum(np.abs(np.diff(line)), np.float32(_STEEPEST)), 1, mode="edge")
    slope = (rises[:-1] + rises[1:]) / 2  # not 0 at the tip of a high wave, where the line would have a gap
    stretch = np.sqrt(1 + slope * slope)
    first = np.clip(np.floor(line - radius * stretch).astype(np.intp), 0, size)
    last = np.clip(np.floor(line + radius * stretch).astype(np.intp) + 1, 0, size)
    count = last - first
    along = np.repeat(np.arange(len(line)), count)
    across = np.arange(len(along)) - np.repeat(np.cumsum(count) - count - first, count)
    away = np.abs(across.astype(np.float32) + np.float32(0.5) - line[along]) / stretch[along]
    return along, across, away


def _weights(at: Floats | float) -> tuple[Floats | float, ...]:
    """Return how much each of four points counts at a place between the second (0) and the third (1): Catmull-Rom."""
    square, cube = at * at, at * at * at
    return (
        square - (cube + at) / 2,
        1 + (3 * cube - 5 * square) / 2,
        (4 * square + at - 3 * cube) / 2,
        (cube - square) / 2,
    )


def _blend(points: Sequence[Floats], weights: Sequence[Floats | float]) -> Floats:
    return np.asarray(sum(point * weight for point, weight in zip(points, weights, strict=True)))


class _Curve:
    """Draws smooth curves through points, at places in units of points."""

    def __init__(self, places: Floats) -> None:
        left = np.floor(places).astype(np.intp)
        self._points = [left + k for k in range(4)]
        self._weights = _weights((places - left).astype(np.float32))

    def through(self, points: Floats) -> Floats:
        """Return the curve at the places."""
        padded = np.pad(points, (1, 2), mode="edge")
        return _blend([padded[at] for at in self._points], self._weights)

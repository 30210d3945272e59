"""The scene `wave`: the sound's wave as a ribbon of light."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from renderdispatch.render.features import WAVE_POINTS, Floats, Frame
from renderdispatch.render.paint import Backdrop, Spring, gradient, smoothstep
from renderdispatch.render.params import WaveParams
from renderdispatch.render.picture import Picture, PlanarScene, in_planes

_SHOWN: Final = 128
"""Points of the wave that are shown, 12 ms. The others leave room to find where the line of the frame before goes on."""
_STARTS: Final = slice(2, WAVE_POINTS - _SHOWN - 2)
"""The points where the line can begin: there are points before and after it to interpolate."""
_STEEPEST: Final = 16.0
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
        self.reach = np.float32(min(self.across * 0.46, self.along * 0.4) * params.gain)
        self.thickness = max(self.across / 170 * params.thickness, 1.2)
        self.brightness = Spring(rise_s=0.03, fall_s=0.25, frame_s=frame_s)
        self.pace = float(1 - np.exp(-frame_s / _CALM_S))
        self.age = min(max(round(0.2 / frame_s), 2), 100)

        place = (np.arange(self.along, dtype=np.float32) + np.float32(0.5)) / self.along
        self.taper = np.sin(np.pi * place) ** np.float32(1.2)
        self.curve = _Curve(place * (_SHOWN - 1))
        colour = gradient(params.colours, place)
        self.colour = in_planes(colour)
        self.core = in_planes(colour * 0.35 + 255 * 0.65)

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
        """Return the part of the wave that differs least from the line before, blended with it if it is alike."""
        loud = light / max(float(np.abs(wave).max()), 0.01)
        shaped = np.tanh(wave * (1.4 * loud))
        # Sums over the parts that begin at each point, by the convolution theorem: last * part, and part squared.
        known = np.zeros((3, WAVE_POINTS))
        known[0], known[1], known[2, :_SHOWN] = shaped, shaped**2, last
        spectra = np.fft.rfft(known)
        alike, energy = np.fft.irfft(spectra[:2] * np.stack([spectra[2], _ONES]).conj(), WAVE_POINTS)
        # A part that is much quieter than others would hide an attack.
        off = energy - 2 * alike + np.where(energy < energy[_STARTS].max() / 2, np.float64(WAVE_POINTS), 0)
        start = _STARTS.start + int(np.argmin(off[_STARTS]))
        left, here, right = off[start - 1 : start + 2]
        bend = left - 2 * here + right
        shift = min(max((left - right) / (2 * bend), -0.5), 0.5) if bend > 0 else 0.0
        if shift < 0:
            start, shift = start - 1, shift + 1
        part = _between(*(shaped[start + k : start + k + _SHOWN] for k in (-1, 0, 1, 2)), shift)
        both = energy[start] + float((last * last).sum())
        unlike = min(max((both - 2 * alike[start]) / both, 0), 1) if both > 0 else 0.0
        pace = self.pace + (1 - self.pace) * unlike
        return np.asarray(last + (part - last) * pace, np.float32)

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
        for planes, scale, at in (([picture.luma], 1, line), ([picture.blue, picture.red], 2, half)):
            wide, thin = self.thickness * 1.5 / scale, self.thickness / scale / 2 + 0.5
            along, across, away = _covered(at, max(wide, thin), self.across // scale)
            soft = np.maximum(1 - away / np.float32(wide), 0) ** 2 * np.float32(halo)
            sharp = np.clip(np.float32(thin) - away, 0, 1) * np.float32(core)
            soft *= 1 - sharp
            under = 1 - soft - sharp
            for channel, plane in enumerate(planes, start=scale - 1):
                pixels = plane.T if self.upright else plane
                colour, bright = self.colour[::scale, channel][along], self.core[::scale, channel][along]
                pixels[across, along] = pixels[across, along] * under + (colour * soft + bright * sharp + 0.5)


def _covered(line: Floats, radius: float, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Return the pixels that are less than ``radius`` from a line: along, across, and how far they are from it."""
    slope = np.minimum(np.abs(np.gradient(line)), np.float32(_STEEPEST)) if len(line) > 1 else np.zeros_like(line)
    stretch = np.sqrt(1 + slope * slope)
    first = np.clip(np.floor(line - radius * stretch).astype(np.intp), 0, size)
    last = np.clip(np.floor(line + radius * stretch).astype(np.intp) + 1, 0, size)
    count = last - first
    along = np.repeat(np.arange(len(line)), count)
    across = np.arange(len(along)) - np.repeat(np.cumsum(count) - count - first, count)
    away = np.abs(across.astype(np.float32) + np.float32(0.5) - line[along]) / stretch[along]
    return along, across, away


_ONES: Final = np.fft.rfft(np.arange(WAVE_POINTS) < _SHOWN)


def _between(before: Floats, left: Floats, right: Floats, after: Floats, at: Floats | float) -> Floats:
    """Return the value between ``left`` (0) and ``right`` (1) of the smooth curve through four points: Catmull-Rom."""
    bend = 2 * before - 5 * left + 4 * right - after + at * (3 * (left - right) + after - before)
    return np.asarray(left + at / 2 * (right - before + at * bend))


class _Curve:
    """Draws smooth curves through points, at places in units of points."""

    def __init__(self, places: Floats) -> None:
        self._left = np.floor(places).astype(np.intp)
        self._at = (places - self._left).astype(np.float32)

    def through(self, points: Floats) -> Floats:
        """Return the curve at the places."""
        padded = np.pad(points, (1, 2), mode="edge")
        return _between(*(padded[self._left + k] for k in range(4)), self._at)

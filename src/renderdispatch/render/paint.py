"""What do the scenes that ship share when they paint?

Soft light is computed on a small picture and scaled up. Sharp shapes are drawn over it, and touch few pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from av.video.frame import VideoFrame

from renderdispatch.render.features import Floats
from renderdispatch.render.params import LightParams
from renderdispatch.render.picture import Converter, Picture, in_planes

_SMALL_PIXELS: Final = 160 * 90


def rgb(colour: str) -> Floats:
    """Return ``#rrggbb`` as (3,) float32, 0 to 255."""
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], np.float32)


def gradient(colours: Sequence[str], at: Floats) -> Floats:
    """Return the colours blended along ``at``, 0 to 1: (*at.shape, 3) float32, 0 to 255.

    They are blended as squares, roughly in linear light, so that what is between two bright colours is not muddy.
    """
    stops = np.stack([rgb(colour) for colour in colours])
    where = np.linspace(0, 1, len(stops))
    channels = [np.sqrt(np.interp(at, where, stops[:, channel] ** 2)) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def smoothstep(start: float, end: float, value: Floats) -> Floats:
    """Return 0 before ``start``, 1 after ``end``, and a smooth transition between."""
    t = np.clip((value - start) / (end - start), 0, 1).astype(np.float32)
    return np.asarray(t * t * (3 - 2 * t))


class Backdrop:
    """A small picture of soft light, behind everything.

    ``x`` (w,) and ``y`` (h, 1) say where its pixels are in the picture, in pixels of the full size.

    Args:
        params: The scene's parameters.
        width: Pixels of the full size.
        height: Pixels of the full size.
    """

    def __init__(self, params: LightParams, width: int, height: int) -> None:
        scale = max((width * height / _SMALL_PIXELS) ** 0.5, 1.0)
        columns, rows = max(round(width / scale), 2), max(round(height / scale), 2)
        self.x: Final = centres(columns, width)
        self.y: Final = centres(rows, height)[:, None]
        self._params = params
        self._full = width, height
        self._small = Picture.of(VideoFrame(columns, rows, "yuv444p"))
        self._converter = Converter()
        # Hides the contours that a gradient has in 8 bits. It never moves, so it costs the encoder next to nothing.
        self._noise = np.random.default_rng(1).random((3, rows, columns), np.float32)

    def set_light(self, *, glow: Floats, vignette: Floats, pulse: float, hole: Floats | float = 1) -> None:
        """Set what the light of all frames is made of.

        Args:
            glow: The colour of the glow, (w, 3) or (h, w, 3).
            vignette: (h, w, 1), how bright the background is.
            pulse: How much light a beat adds where the background is bright.
            hole: (h, w, 1), how much of that light each place shows.
        """
        dark = in_planes(np.zeros(3))
        night = in_planes(rgb(self._params.background) * (0.35 + 0.65 * vignette))
        flash = in_planes(glow * vignette**2 * hole * (pulse * self._params.pulse)) - dark
        self._night = _apart(night) + self._noise
        self._pulse = _apart(flash)
        self._glow = _apart(np.broadcast_to((in_planes(glow) - dark) * np.float32(self._params.glow), night.shape))

    def picture(self, shine: Floats, pulse: float) -> Picture:
        """Return a new picture, with the `pitches` of its width.

        Args:
            shine: (h, w), how strongly each place glows.
            pulse: How strong the light of the beat is.
        """
        light = self._glow * shine
        light += self._night
        light += self._pulse * np.float32(pulse)
        for plane, values, most in zip(self._small.planes, light, (235, 240, 240), strict=True):
            plane[:] = np.clip(values, 16, most, out=values)
        return self._converter.scaled(self._small, *self._full)


def _apart(planes: Floats) -> Floats:
    """Return (..., 3) as (3, ...) float32."""
    return np.ascontiguousarray(np.moveaxis(planes, -1, 0), np.float32)


def centres(count: int, length: int) -> Floats:
    """Return where ``count`` pixels are, in a picture that is ``length`` pixels long: (count,) float32.

    Half as many pixels as the length are those of a plane of colour.
    """
    return ((np.arange(count, dtype=np.float32) + 0.5) * (length / count)).astype(np.float32)


class Spring:
    """How values follow others that jump: up quickly, down slowly.

    Args:
        rise_s: Seconds until 63 % of a rise are followed.
        fall_s: Seconds until 63 % of a fall are followed.
        frame_s: Seconds of a frame.
    """

    def __init__(self, *, rise_s: float, fall_s: float, frame_s: float) -> None:
        # Rounded, because the last bit of `exp` depends on the processor.
        self._rise, self._fall = (np.float32(1 - np.exp(-frame_s / seconds)) for seconds in (rise_s, fall_s))

    def follow(self, values: Floats, target: Floats) -> Floats:
        """Return the values one frame later, on their way to the target."""
        away = target - values
        return np.asarray(values + away * np.where(away > 0, self._rise, self._fall))

    def follow_one(self, value: float, target: float) -> float:
        """Return one value one frame later."""
        away = target - value
        return value + away * float(self._rise if away > 0 else self._fall)

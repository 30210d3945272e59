"""What do the scenes share when they paint?

Light that spreads is smooth, so it is computed on a small picture and scaled up; shapes are drawn sharply over it,
touching few pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from renderdispatch.render.drawing import Canvas

    Floats = NDArray[np.floating[Any]]

_SMALL_PIXELS: Final = 160 * 90


def rgb(colour: str) -> Floats:
    """Return ``#rrggbb`` as (3,) float32, 0 to 255."""
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], np.float32)


def gradient(colours: Sequence[str], at: Floats) -> Floats:
    """Return the colours blended along ``at``, 0 to 1: (*at.shape, 3) float32, 0 to 255.

    Blended as squares, roughly in linear light, so that the way between two bright colours is not muddy.
    """
    stops = np.stack([rgb(colour) for colour in colours])
    where = np.linspace(0, 1, len(stops))
    channels = [np.sqrt(np.interp(at, where, stops[:, channel] ** 2)) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def smoothstep(start: float, end: float, value: Floats) -> Floats:
    """Return 0 before ``start``, 1 after ``end``, and a smooth way between."""
    t = np.clip((value - start) / (end - start), 0, 1).astype(np.float32)
    smooth: Floats = t * t * (3 - 2 * t)
    return smooth


class Backdrop:
    """A small picture of soft light, behind everything.

    ``x`` (w,) and ``y`` (h, 1) are where its pixels are in the picture, in pixels of the full size.
    """

    def __init__(self, width: int, height: int) -> None:
        scale = max((width * height / _SMALL_PIXELS) ** 0.5, 1.0)
        columns, rows = max(round(width / scale), 2), max(round(height / scale), 2)
        self.x: Final[Floats] = ((np.arange(columns, dtype=np.float32) + 0.5) * (width / columns)).astype(np.float32)
        self.y: Final[Floats] = ((np.arange(rows, dtype=np.float32) + 0.5) * (height / rows)).astype(np.float32)[
            :, None
        ]
        self._reformatter = VideoReformatter()
        # Breaks up the contours that a gradient has in 8 bits. It never moves, so it costs the encoder next to nothing.
        self._noise = np.random.default_rng(1).random((rows, columns, 1), np.float32)

    def paint(self, light: Floats, canvas: Canvas) -> None:
        """Fill the canvas with ``light``: (h, w, 3) float32, cut at 0 and 255."""
        small = np.clip(light + self._noise, 0, 255).astype(np.uint8)
        height, width, _ = canvas.shape
        frame = VideoFrame.from_numpy_buffer(small, format="rgb24")
        # To planes: FFmpeg scales those three times faster than interleaved pixels.
        large = self._reformatter.reformat(frame, width, height, "gbrp", interpolation=Interpolation.BILINEAR)
        for channel, plane in zip((1, 2, 0), large.planes, strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
            canvas[..., channel] = rows[:, :width]


class Spring:
    """Follows values that jump: up quickly, down slowly.

    Args:
        size: How many values.
        rise_s: Seconds until a rise is followed to 63 %.
        fall_s: Likewise for a fall.
        frame_s: Seconds of a frame.
    """

    def __init__(self, size: int, *, rise_s: float, fall_s: float, frame_s: float) -> None:
        self.values: Floats = np.zeros(size, np.float32)
        self._rise = np.float32(1 - np.exp(-frame_s / rise_s))
        self._fall = np.float32(1 - np.exp(-frame_s / fall_s))

    def follow(self, target: Floats | float) -> Floats:
        """Move towards the target for one frame and return the values."""
        away = target - self.values
        self.values = self.values + away * np.where(away > 0, self._rise, self._fall)
        return self.values


def softened(values: Floats) -> Floats:
    """Return each value blended with its two neighbours."""
    padded = np.pad(values, 1, mode="edge")
    blended: Floats = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return blended

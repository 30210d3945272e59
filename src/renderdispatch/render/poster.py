"""Which moment of a video is on its poster?

The brightest half second, by the scene's light, without the fades at both ends. It is found before anything is drawn:
a scene's states are cheap. The picture is kept when its frame is drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from renderdispatch.protocols import Report
from renderdispatch.render.artist import Artist
from renderdispatch.render.features import Features
from renderdispatch.render.picture import Converter, Picture

_WINDOW_S: Final = Fraction(1, 2)
_ENDS: Final = 0.05
"""The share of the video at each end that is left out."""

_LONGEST_SIDE: Final = 1920


class PosterMoment:
    """Finds the moment for the poster among frames that come in order.

    Args:
        frames: How many frames come.
        fps: Frames a second.
    """

    def __init__(self, frames: int, fps: Fraction) -> None:
        self._window = deque[tuple[float, int]](maxlen=max(round(fps * _WINDOW_S), 1))
        self._first, self._last = _ENDS * frames, (1 - _ENDS) * frames
        self._best: tuple[tuple[bool, float], int] | None = None

    def see(self, index: int, light: float) -> None:
        """Take the next frame's index and its light."""
        if not self._first <= index < self._last:
            self._best = self._best or ((False, 0.0), index)  # of a video of a few frames
            return
        window = self._window
        window.append((light if isfinite(light) else 0.0, index))
        rank = len(window) == window.maxlen, sum(light for light, _ in window) / len(window)
        if self._best is None or rank > self._best[0]:
            self._best = rank, window[len(window) // 2][1]

    @property
    def best(self) -> int:
        """The index of the frame in the middle of the moment."""
        assert self._best is not None
        return self._best[1]


def brightest(artist: Artist, features: Features, report: Report = lambda _done, _total: None) -> int:
    """Return the index of the frame that a poster shows. Nothing is drawn; ``report`` is called for each frame."""

    def lights() -> Iterator[float]:
        state = artist.start()
        for frame in features:
            state = artist.step(state, frame)
            yield artist.light(state, frame)
            report(frame.index, len(features))

    return _best_of(lights(), features)


def loudest(features: Features) -> int:
    """Return the index of the frame that a poster shows of a video that is known by its sound alone."""
    return _best_of((frame.level for frame in features), features)


def _best_of(lights: Iterable[float], features: Features) -> int:
    moment = PosterMoment(len(features), features.fps)
    for index, light in enumerate(lights):
        moment.see(index, light)
    return moment.best


def write_poster(path: Path, picture: Picture) -> None:
    """Write a JPEG of a picture, at most 1920 pixels on its longer side."""
    image = to_image(picture)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    image.save(path, "JPEG", quality=90, optimize=True)


def to_image(picture: Picture) -> Image.Image:
    """Return a picture in RGB."""
    canvas = np.empty((*picture.luma.shape, 3), np.uint8)
    Converter().to_rgb(picture, canvas)
    return Image.fromarray(canvas)

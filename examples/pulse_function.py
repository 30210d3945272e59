"""A scene in one function: ``renderdispatch render song.mp3 --scene pulse_function.py:pulse``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from renderdispatch.render.function import renderer
from renderdispatch.render.params import Colour

if TYPE_CHECKING:
    from renderdispatch.render.features import Features


@renderer
def pulse(
    song: Features,
    *,
    width: int,
    height: int,
    colour: Annotated[Colour, Field(description="of the light")] = "#ff6a3d",
    fade: Annotated[float, Field(ge=0, lt=1, description="how much of a picture stays in the next one")] = 0.85,
) -> Iterator[NDArray[np.uint8]]:
    """A light in the middle, with waves of the beat that run outwards."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    y, x = np.mgrid[0:height, 0:width]
    away = np.hypot(x - width / 2, y - height / 2) / min(width, height)
    beats = np.zeros(256)  # the last ones, the newest first
    glow = np.zeros((height, width))
    for frame in song:
        beats[1:] = beats[:-1]
        beats[0] = frame.beat
        waves = beats[np.minimum((away * 120).astype(int), 255)]
        glow = np.maximum(fade * glow, waves * np.exp(-3 * away)) + frame.level * np.exp(-40 * away**2)
        yield (rgb * np.clip(glow, 0, 1)[..., np.newaxis]).astype(np.uint8)

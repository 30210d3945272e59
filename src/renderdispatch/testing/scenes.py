"""Which scene measures instead of pleasing?

`flash` shows nothing but the level, so that a test can see when a click was seen.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from renderdispatch.render.params import SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene

if TYPE_CHECKING:
    from renderdispatch.render.features import Frame
    from renderdispatch.render.scene import Canvas


class FlashParams(SceneParams):
    """None."""


class Flash(Scene):
    """All of the picture as bright as the sound is loud: black in silence, white at the loudest."""

    def __init__(self, params: FlashParams, *, width: int, height: int, fps: Fraction) -> None:
        pass

    def draw(self, frame: Frame, canvas: Canvas) -> None:
        canvas[:] = round(255 * frame.level)


flash: Final = NumpyRenderer("renderdispatch.testing.scenes:Flash", FlashParams)
"""The renderer of `Flash`."""

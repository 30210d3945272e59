"""A scene for measurements: `flash` shows the sound's level and nothing else, so that a test can time a click."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from renderdispatch.render.params import SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene

if TYPE_CHECKING:
    from renderdispatch.render.features import Frame
    from renderdispatch.render.scene import Canvas


class FlashParams(SceneParams):
    """The scene has no parameters."""


class Flash(Scene):
    """A picture of one brightness: black in silence, white at the loudest."""

    def __init__(self, params: FlashParams, *, width: int, height: int, fps: Fraction) -> None:
        pass

    def paint(self, state: tuple[()], frame: Frame, canvas: Canvas) -> None:
        """Fill the picture."""
        canvas[:] = round(255 * frame.level)


flash: Final = NumpyRenderer("renderdispatch.testing.scenes:Flash", FlashParams)
"""The renderer of `Flash`."""

"""What draws a frame, and on what?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from renderdispatch.render.features import Frame

    Canvas = NDArray[np.uint8]
    """The picture: (height, width, 3) uint8, RGB with full range. It holds an older frame: paint all of it."""


class Scene(ABC):
    """What draws one frame after another, always in order and in one thread."""

    @abstractmethod
    def __init__(self, params: Any, *, width: int, height: int, fps: Fraction) -> None:
        """Prepare what every frame shares. Sizes are in pixels; work in shares of them, so that the look scales."""

    @abstractmethod
    def draw(self, frame: Frame, canvas: Canvas) -> None:
        """Paint the frame over all of ``canvas``."""

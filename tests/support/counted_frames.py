"""A scene that leaves a mark for each frame that it draws, whoever draws it. Render processes import it."""

from __future__ import annotations

import os
import time
from fractions import Fraction
from typing import Final

from pydantic import Field

from renderdispatch.render.features import Frame
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import NumpyRenderer, Scene, SceneParams


class CountedParams(SceneParams):
    """Nothing of them shows in the picture."""

    marks: str = Field(description="a file, which gets a line for each frame: its index, and the id of the process")
    frame_s: float = Field(default=0.0, description="the seconds that a frame takes")


class Counted(Scene):
    """A plain picture that is another one at each frame."""

    def __init__(self, params: CountedParams, *, width: int, height: int, fps: Fraction) -> None:
        self._frame_s = params.frame_s
        self._marks = os.open(params.marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._columns = width

    def paint(self, state: tuple[()], frame: Frame, canvas: Canvas) -> None:
        """Mark the frame, and paint."""
        os.write(self._marks, f"{frame.index} {os.getpid()}\n".encode())
        time.sleep(self._frame_s)
        canvas[:] = round(200 * frame.level)
        canvas[:, frame.index % self._columns] = 255


counted: Final = NumpyRenderer(f"{__name__}:Counted", CountedParams, about="a picture whose frames are counted")

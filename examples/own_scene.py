"""A scene of your own, in one file: ``python own_scene.py song.mp3 song.mp4``.

A square grows with the music, and shrinks slowly. To use it by name everywhere, on the command line too, put it into a
package and name it under the entry point ``renderdispatch.renderers``; see docs/how-to/write-a-scene.md.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from renderdispatch import Output, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.render.params import Colour, SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore

if TYPE_CHECKING:
    from renderdispatch.render.features import Frame
    from renderdispatch.render.scene import Canvas


class SquareParams(SceneParams):
    """What users may set."""

    colour: Colour = Field(default="#ffb35c", description="of the square")


class SquareState(NamedTuple):
    """What the scene remembers from one frame to the next."""

    size: float


class Square(Scene[SquareState]):
    """A square that is as wide as the music is loud, or was a moment ago."""

    def __init__(self, params: SquareParams, *, width: int, height: int, fps: Fraction) -> None:
        self.colour = [int(params.colour[i : i + 2], 16) for i in (1, 3, 5)]
        self.kept = 0.2 ** float(1 / fps)  # a fifth is left after a second

    def start(self) -> SquareState:
        return SquareState(size=0.0)

    def step(self, state: SquareState, frame: Frame) -> SquareState:
        return SquareState(size=max(frame.level, self.kept * state.size))

    def paint(self, state: SquareState, frame: Frame, canvas: Canvas) -> None:
        height, width, _ = canvas.shape
        half = int(state.size * min(height, width) / 2)
        canvas[:] = 16
        canvas[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = self.colour


square = NumpyRenderer("own_scene:Square", SquareParams, about="A square that grows with the music.")


def main(song: Path, video: Path) -> None:
    """Render with the scene, in this process."""
    backend = InlineBackend({"square": square})
    with RenderService(MemoryJobStore(), MemoryStorage(), backend) as service:
        output = Output(width=640, height=360)
        handle = service.submit(song, scene="square", params={"colour": "#32e0ff"}, output=output)
        handle.wait()
        print(handle.save(video, overwrite=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

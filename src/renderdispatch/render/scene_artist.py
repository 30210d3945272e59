"""How is a scene of NumPy drawn, and who is to blame if that fails?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np

from renderdispatch.errors import RenderError, SceneError
from renderdispatch.messages import Output
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.render.covers import Cover
from renderdispatch.render.device import DrawingGpu, device_class
from renderdispatch.render.features import Frame
from renderdispatch.render.params import SceneParams
from renderdispatch.render.picture import Converter, Picture, PlanarScene
from renderdispatch.render.projection import projection_of
from renderdispatch.render.scene import Scene, SupportsCover


class SceneArtist:
    """Draws frames of an output with a scene: any frame, from the state that belongs to it."""

    rendered_by = "numpy"
    gpu: DrawingGpu | None = None
    run_up: int | None = 0
    keep: int | None = None
    kept: Picture | None = None

    def __init__(
        self, scene: type[Scene[Any]], params: SceneParams, output: Output, *, cover: Cover | None = None
    ) -> None:
        self.device_class = device_class()
        self._projection = projection_of(output)
        width, height = self._projection.width, self._projection.height
        with blamed_on_the_scene("could not be set up"):
            self.scene: Final = scene(params, width=width, height=height, fps=output.fps)
            if cover is not None and isinstance(self.scene, SupportsCover):
                self.scene.set_cover(cover.pixels)
        self._canvas = np.zeros((height, width, 3), np.uint8)
        self._converter = Converter()

    def start(self) -> Any:
        """Return the state before the first frame."""
        with blamed_on_the_scene("failed at its start"):
            return _read_only(self.scene.start())

    def step(self, state: Any, frame: Frame) -> Any:
        """Return the state at a frame, from the state at the frame before.

        Raises:
            SceneError: The scene raised an exception.
        """
        with blamed_on_the_scene(f"failed at frame {frame.index}"):
            return _read_only(self.scene.step(state, frame))

    def light(self, state: Any, frame: Frame) -> float:
        """Return how bright the scene shines at a frame.

        Raises:
            SceneError: The scene raised an exception.
        """
        with blamed_on_the_scene(f"failed at frame {frame.index}"):
            return float(self.scene.light(state, frame))

    def draw(self, state: Any, frame: Frame) -> Picture:
        """Return a new picture of a frame, of the output's size.

        Raises:
            SceneError: The scene raised an exception.
        """
        return self._projection.place(self.flat(state, frame))

    def pictures(self, moments: Iterable[tuple[Any, Frame]]) -> Iterator[Picture]:
        """Yield a new picture of each frame.

        Raises:
            SceneError: The scene raised an exception.
        """
        for state, frame in moments:
            flat = self.flat(state, frame)
            if frame.index == self.keep:
                self.kept = flat
            yield self._projection.place(flat)

    def flat(self, state: Any, frame: Frame) -> Picture:
        """Return the scene's own picture of a frame: in a 360 video, what is on the screen.

        Raises:
            SceneError: The scene raised an exception.
        """
        with blamed_on_the_scene(f"failed at frame {frame.index}"):
            if isinstance(self.scene, PlanarScene):
                return self.scene.picture(state, frame)
            self.scene.paint(state, frame, self._canvas)
        height, width, _ = self._canvas.shape
        return self._converter.from_rgb(self._canvas, width, height)


def _read_only(state: Any) -> Any:
    """Return a state whose arrays cannot be written to: that would change what frames before are drawn from."""
    for value in state if isinstance(state, tuple) else ():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return state


def blamed_on_the_scene(what: str) -> AbstractContextManager[None]:
    """Translate what a scene raises into `SceneError`; a full disk and memory are not its fault."""

    def blame(error: Exception) -> SceneError:
        return SceneError(f"the scene {what}: {type(error).__name__}: {error}")

    def full_or_blame(error: OSError) -> Exception:
        return error if is_disk_full(error) else blame(error)

    def same(error: Exception) -> Exception:
        return error

    return translated({Exception: blame, OSError: full_or_blame, RenderError: same, MemoryError: same}, chain=True)

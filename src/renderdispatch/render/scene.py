"""What does the author of a scene write, and what turns it into a renderer?

A scene is a class with two methods. Its parameters are a `SceneParams`::

    class SquareParams(SceneParams):
        colour: Colour = Field(default="#ffffff", description="of the square")


    class Square(Scene):
        def __init__(self, params: SquareParams, *, width: int, height: int, fps: Fraction) -> None:
            self.colour = [int(params.colour[i : i + 2], 16) for i in (1, 3, 5)]

        def draw(self, frame: Frame, canvas: Canvas) -> None:
            side = int(frame.level * canvas.shape[0])
            canvas[:] = 0
            canvas[:side, :side] = self.colour


    square = NumpyRenderer("my_package.square:Square", SquareParams)

``square`` is a `renderdispatch.protocols.Renderer`. Register it under the entry point ``renderdispatch.renderers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import JsonValue

from renderdispatch.errors import InvalidRequestError, MissingExtraError, SceneError
from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import ParamInfo, Report
from renderdispatch.render.params import SceneParams, describe_params, read_params

if TYPE_CHECKING:
    from renderdispatch.render.features import Frame
    from renderdispatch.render.paint import Canvas as Canvas  # noqa: PLC0414 - authors import it from here

__all__ = ["NumpyRenderer", "Scene", "SceneParams"]


class Scene(ABC):
    """Draws one frame after another, in order and in one thread."""

    @abstractmethod
    def __init__(self, params: Any, *, width: int, height: int, fps: Fraction) -> None:
        """Prepare what all frames share. Sizes are in pixels; draw in fractions of them, so that the picture scales."""

    @abstractmethod
    def draw(self, frame: Frame, canvas: Canvas) -> None:
        """Paint the frame over all of ``canvas``."""


class NumpyRenderer:
    """Renders a `Scene` on the CPU to H.264 and AAC in mp4.

    Args:
        scene: ``package.module:Class``. It is imported at the first render; parameters can be checked without it.
        params: The model of its parameters.
        about: What the scene draws, in one line, for lists of scenes.
    """

    reads_audio_first = True

    def __init__(self, scene: str, params: type[SceneParams], *, about: str = "") -> None:
        self.__doc__ = about or None
        self.scene: Final = scene
        self.params: Final = params

    def __repr__(self) -> str:
        return f"NumpyRenderer({self.scene!r}, {self.params.__name__})"

    def check_params(self, params: Mapping[str, JsonValue]) -> None:
        """Check the parameters; see `read_params`."""
        read_params(self.params, params)

    def describe_params(self) -> Sequence[ParamInfo]:
        """Return one line of help for each parameter."""
        return describe_params(self.params)

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write the video; see `renderdispatch.protocols.Renderer`.

        ``360-mono`` and ``360-stereo`` show the flat picture on the equirectangular canvas, in stereo once for each
        eye (top and bottom).

        Raises:
            MissingExtraError: NumPy or PyAV is not installed.
            AudioError: The audio cannot be used.
            SceneError: The scene raised an exception, or does not accept these parameters.
            RenderError: ``disk.full``, ``output.unwritable`` or ``encode.failed``.
            RenderStopped: As raised by ``report``.
        """
        try:
            from renderdispatch.render.video import render_video
        except ModuleNotFoundError as error:
            if error.name in {"numpy", "av"}:
                raise MissingExtraError.of("rendering", "render") from error
            raise
        module, _, name = self.scene.partition(":")
        scene: type[Scene] = getattr(import_module(module), name)
        try:
            params = read_params(self.params, order.params)
        except InvalidRequestError as error:
            raise SceneError(str(error), code=error.code) from error
        return render_video(order, audio, output, report, scene=scene, params=params)

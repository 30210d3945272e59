"""What does the author of a scene write, and what makes a renderer of it?

A scene is a class with two methods; its parameters are a `SceneParams`::

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

``square`` is a `renderdispatch.protocols.Renderer`; name it under the entry point ``renderdispatch.renderers``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from renderdispatch.errors import InvalidRequestError, MissingExtraError, SceneError
from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import ParamInfo, Report
from renderdispatch.render.drawing import Scene
from renderdispatch.render.params import SceneParams, describe_params, read_params

if TYPE_CHECKING:
    from renderdispatch.render.drawing import Canvas as Canvas  # noqa: PLC0414 - handed on to authors

__all__ = ["NumpyRenderer", "Scene", "SceneParams"]


class NumpyRenderer:
    """Renders a `Scene` on the CPU to H.264 and AAC in mp4.

    Args:
        scene: ``package.module:Class``, imported at the first render, so that parameters can be checked without it.
        params: The model of its parameters.
        about: What it draws, in one line, for lists of scenes.
    """

    def __init__(self, scene: str, params: type[SceneParams], *, about: str = "") -> None:
        self.__doc__ = about or None
        self.scene: Final = scene
        self.params: Final = params

    def __repr__(self) -> str:
        return f"NumpyRenderer({self.scene!r}, {self.params.__name__})"

    def check_params(self, params: Mapping[str, JsonValue]) -> None:
        """Raise what `read_params` raises."""
        read_params(self.params, params)

    def describe_params(self) -> Sequence[ParamInfo]:
        """Return the parameters, for help texts."""
        return describe_params(self.params)

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write the video; see `renderdispatch.protocols.Renderer`.

        ``360-mono`` and ``360-stereo`` carry the flat picture on the equirectangular canvas, for stereo once for
        each eye (top and bottom).

        Raises:
            MissingExtraError: NumPy or PyAV is not installed.
            AudioError: The sound cannot be used.
            SceneError: The scene raised, or does not take these parameters.
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

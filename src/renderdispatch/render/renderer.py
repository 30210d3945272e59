"""What do all renderers share that draw frames in this process and encode them?

A subclass says who draws: `VideoRenderer.artist`. It is imported without NumPy and PyAV, which are loaded when it
renders.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from renderdispatch.errors import InvalidRequestError, MissingExtraError, SceneError
from renderdispatch.messages import Helped, HelperOrder, RenderOrder, RenderStats
from renderdispatch.protocols import ParamInfo, Report, Slots
from renderdispatch.render.device import numpy_held
from renderdispatch.render.params import SceneParams, describe_params, read_params

if TYPE_CHECKING:
    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover

_log: Final = logging.getLogger(__name__)


class VideoRenderer(ABC):
    """Renders what an artist draws to H.264 and AAC in mp4.

    Args:
        params: The model of the scene's parameters.
        about: What the scene draws, in one line, for lists of scenes.
    """

    reads_audio_first = True

    def __init__(self, params: type[SceneParams], *, about: str = "") -> None:
        self.__doc__ = about or None
        self.params: Final = params

    @abstractmethod
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> AbstractContextManager[Artist]:
        """Return what draws an order, for a ``with`` block.

        Args:
            order: The order, as renderers see it.
            cover: The song's cover, if there is one.

        Raises:
            SceneError: The scene cannot be set up, or does not accept the parameters.
        """

    def check_params(self, params: Mapping[str, JsonValue]) -> None:
        """Check the parameters; see `read_params`."""
        read_params(self.params, params)

    def describe_params(self) -> Sequence[ParamInfo]:
        """Return one line of help for each parameter."""
        return describe_params(self.params)

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write the video; see `renderdispatch.protocols.Renderer`.

        Raises:
            MissingExtraError: A library that it needs is not installed.
            InvalidRequestError: The order's cover cannot be used.
            AudioError: The audio cannot be used.
            SceneError: The scene raised an exception, or does not accept these parameters.
            RenderError: ``disk.full``, ``output.unwritable``, ``encode.failed`` or ``device.mismatch``.
            RenderStopped: As raised by ``report``.
        """
        with extra_is_named():
            from renderdispatch.render.video import render_video
        return render_video(order, audio, output, report, renderer=self)

    def render_segments(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots
    ) -> RenderStats:
        """Write the video as the lead of several; see `renderdispatch.protocols.SupportsSegments`.

        A subclass that has a `render` of its own makes the whole video by that. Raises as `render` does.
        """
        if type(self).render is not VideoRenderer.render:
            return drawn_by_one(self.render(order, audio, output, report), slots, "its renderer makes the whole video")
        with extra_is_named():
            from renderdispatch.render.video import render_video
        return render_video(order, audio, output, report, renderer=self, slots=slots)

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw segments beside the lead; see `renderdispatch.protocols.SupportsSegments`. Raises as `render` does."""
        with extra_is_named():
            from renderdispatch.render.help import help_video
        return help_video(order, folder, report, renderer=self, slots=slots)

    def preview(self, order: RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None) -> int:
        """Write one frame; see `renderdispatch.protocols.SupportsPreview`. Raises as `render` does."""
        with extra_is_named():
            from renderdispatch.render.preview import draw_moment, save_picture
        moment = draw_moment(order, audio, report, at=at, renderer=self)
        save_picture(moment.picture, picture)
        return moment.index

    def read_params(self, params: Mapping[str, JsonValue]) -> SceneParams:
        """Return the checked parameters of an order.

        Raises:
            SceneError: The scene does not accept these parameters.
        """
        try:
            return read_params(self.params, params)
        except InvalidRequestError as error:
            raise SceneError(str(error), code=error.code) from error


def drawn_by_one(stats: RenderStats, slots: Slots | None, why: str) -> RenderStats:
    """Log why a video was not cut, and return its facts; with a warning, if several were to draw it.

    Args:
        stats: The facts.
        slots: Those that the video could not use.
        why: The reason.
    """
    _log.info("one process drew all of the video: %s", why)
    if slots is None or slots.parallel == 1:
        return stats
    return stats.drawn_alone(f"one process drew all of it: {why}")


@contextmanager
def extra_is_named() -> Iterator[None]:
    """Say which extra holds a library that is missing. NumPy is imported at one level of instructions."""
    try:
        with numpy_held():
            yield
    except ModuleNotFoundError as error:
        if error.name in {"numpy", "av", "PIL"}:
            raise MissingExtraError.of("rendering", "render") from error
        raise

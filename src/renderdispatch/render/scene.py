"""What does the author of a scene write, and what turns it into a renderer?

A scene is a class. Its parameters are a `SceneParams`, and what it remembers from frame to frame is a `NamedTuple` of
numbers and arrays::

    class TrailParams(SceneParams):
        colour: Colour = Field(default="#ffffff", description="of the square")


    class TrailState(NamedTuple):
        side: float


    class Trail(Scene[TrailState]):
        def __init__(self, params: TrailParams, *, width: int, height: int, fps: Fraction) -> None:
            self.colour = [int(params.colour[i : i + 2], 16) for i in (1, 3, 5)]

        def start(self) -> TrailState:
            return TrailState(side=0.0)

        def step(self, state: TrailState, frame: Frame) -> TrailState:
            return TrailState(side=max(frame.level, 0.9 * state.side))

        def paint(self, state: TrailState, frame: Frame, canvas: Canvas) -> None:
            side = int(state.side * canvas.shape[0])
            canvas[:] = 0
            canvas[:side, :side] = self.colour


    trail = NumpyRenderer("my_package.trail:Trail", TrailParams)

``trail`` is a `renderdispatch.protocols.Renderer`. Register it under the entry point ``renderdispatch.renderers``. A
scene that remembers nothing is a ``Scene``, and has ``paint`` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, cast, runtime_checkable

from pydantic import JsonValue
from typing_extensions import TypeVar

from renderdispatch.messages import RenderOrder
from renderdispatch.render.params import SceneParams
from renderdispatch.render.renderer import VideoRenderer, extra_is_named

if TYPE_CHECKING:
    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover
    from renderdispatch.render.features import Frame
    from renderdispatch.render.picture import Canvas as Canvas  # noqa: PLC0414 - authors import it from here

__all__ = ["NumpyRenderer", "Scene", "SceneParams", "SupportsCover"]

S = TypeVar("S", bound=tuple[Any, ...], default=tuple[()])
"""The state of a scene: a `NamedTuple` of numbers (int, float, bool) and NumPy arrays."""


class Scene(ABC, Generic[S]):
    """Draws the frames of a video, each from the state that the frames before it led to.

    State and drawing are apart, so that any frame can be drawn anywhere: ``step`` is called for each frame from the
    first one on, and is cheap; ``paint`` is called for some frames, in any order, in any process. Both only depend on
    their arguments and on what ``__init__`` made: no clock, no chance without a fixed seed, nothing kept in ``self``.
    One thread may step through the frames while another one paints.
    """

    @abstractmethod
    def __init__(self, params: Any, *, width: int, height: int, fps: Fraction) -> None:
        """Prepare what all frames share; it never changes afterwards.

        Args:
            params: The checked parameters.
            width: Columns of the canvas, in pixels; even. Draw in fractions of the size, so that the picture scales.
            height: Rows of the canvas, in pixels; even.
            fps: Frames a second.
        """

    def start(self) -> S:
        """Return the state before the first frame: numbers and NumPy arrays, at most 256 KiB together."""
        return cast("S", ())

    def step(self, state: S, frame: Frame) -> S:
        """Return the state at ``frame``, from the state at the frame before. Change nothing; copy what changes.

        It should take at most 2 % of the time of ``paint``.
        """
        return state

    @abstractmethod
    def paint(self, state: S, frame: Frame, canvas: Canvas) -> None:
        """Paint a frame over all of the canvas.

        Args:
            state: As `step` returned it for this very frame. Only read it.
            frame: What the sound does during this frame; see `renderdispatch.render.features.Frame`.
            canvas: (rows, columns, 3) uint8, RGB in full range. It holds an older picture.
        """

    def light(self, state: S, frame: Frame) -> float:
        """Return how bright the scene shines at a frame, 0 to 1: the poster shows the brightest moment."""
        return frame.level


@runtime_checkable
class SupportsCover(Protocol):
    """A scene that has a place for the song's cover."""

    def set_cover(self, cover: Canvas) -> None:
        """Take the cover, before the first frame: (n, n, 3) uint8, RGB, n at most 1024. Not called if there is none."""


class NumpyRenderer(VideoRenderer):
    """Renders a `Scene` on the CPU to H.264 and AAC in mp4.

    Args:
        scene: ``package.module:Class``. It is imported at the first render; parameters can be checked without it.
        params: The model of its parameters.
        about: What the scene draws, in one line, for lists of scenes.
    """

    def __init__(self, scene: str, params: type[SceneParams], *, about: str = "") -> None:
        super().__init__(params, about=about)
        self.scene: Final = scene

    def __repr__(self) -> str:
        return f"NumpyRenderer({self.scene!r}, {self.params.__name__})"

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws an order; see `VideoRenderer.artist`."""
        with extra_is_named():
            from renderdispatch.render.scene_artist import SceneArtist
        yield SceneArtist(*self.load(order.params), order.output, cover=cover)

    def load(self, params: Mapping[str, JsonValue]) -> tuple[type[Scene[Any]], SceneParams]:
        """Return the class of the scene, which is imported, and its checked parameters.

        Raises:
            SceneError: The scene does not accept these parameters.
        """
        module, _, name = self.scene.partition(":")
        scene: type[Scene[Any]] = getattr(import_module(module), name)
        return scene, self.read_params(params)


def renderer_of(scene: type[Scene[Any]]) -> NumpyRenderer:
    """Return the renderer of a scene's class, whose parameters are what its first argument is annotated with."""
    module = import_module(scene.__module__)
    annotation = next((given.annotation for given in signature(scene).parameters.values()), None)
    model = getattr(module, annotation, None) if isinstance(annotation, str) else annotation
    params = model if isinstance(model, type) and issubclass(model, SceneParams) else SceneParams
    about = (scene.__doc__ or "").strip().partition("\n")[0]
    return NumpyRenderer(f"{scene.__module__}:{scene.__qualname__}", params, about=about)

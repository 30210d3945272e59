"""What draws the frames of a video, and how is one of them drawn alone?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from renderdispatch.protocols import Report
from renderdispatch.render.device import DrawingGpu
from renderdispatch.render.features import Features, Frame
from renderdispatch.render.picture import Picture


class Artist(Protocol):
    """Draws frames of an output, each from the state that the frames before it led to. Use it in one thread.

    Every method raises `SceneError` if the scene is at fault.
    """

    rendered_by: str
    """What draws, such as ``numpy`` or OpenGL's name of the GPU."""

    device_class: str
    """The class of the device that draws; see `renderdispatch.render.device`."""

    gpu: DrawingGpu | None
    """The GPU that draws; None if the CPU does."""

    run_up: int | None
    """How many frames must be drawn in order before a frame is right; None: all before it. 0 for most scenes: only
    those that draw from their own earlier pictures need it."""

    keep: int | None
    """Set it to the index of a frame whose own picture, as of `flat`, is to be kept when `pictures` draws it."""

    kept: Picture | None
    """That picture, once it is drawn."""

    def start(self) -> Any:
        """Return the state before the first frame."""

    def step(self, state: Any, frame: Frame) -> Any:
        """Return the state at a frame, from the state at the frame before."""

    def light(self, state: Any, frame: Frame) -> float:
        """Return how bright the scene shines at a frame."""

    def draw(self, state: Any, frame: Frame) -> Picture:
        """Return a new picture of a frame, of the output's size.

        If the frame before was not the last one that was drawn, earlier pictures count as black.
        """

    def pictures(self, moments: Iterable[tuple[Any, Frame]]) -> Iterator[Picture]:
        """Yield a new picture of each frame, as `draw` would, for frames that come in order.

        Pictures that were drawn before this call count as black.

        One or two frames may be drawn before the first picture is yielded, so that drawing goes on while pictures are
        used: `moments` is ahead of the pictures. Draw nothing else until the last one.

        Args:
            moments: States and frames.
        """

    def flat(self, state: Any, frame: Frame) -> Picture:
        """Return the scene's own picture of a frame, for a poster: in a 360 video, what is ahead of the viewer."""


def picture_at(
    artist: Artist, features: Features, index: int, report: Report = lambda _done, _total: None, *, flat: bool = False
) -> Picture:
    """Return the picture of one frame, after the run-up that it needs.

    Args:
        artist: Draws.
        features: Of all frames up to this one.
        index: Of the frame, from 0.
        report: Called for each frame before it.
        flat: Return the scene's own picture, as `Artist.flat`.

    Raises:
        IndexError: There is no such frame.
        SceneError: The scene is at fault.
    """
    state = artist.start()
    begin = 0 if artist.run_up is None else index - artist.run_up
    for frame in features:
        state = artist.step(state, frame)
        report(frame.index, index + 1)
        if frame.index == index:
            return artist.flat(state, frame) if flat else artist.draw(state, frame)
        if frame.index >= begin:
            artist.draw(state, frame)
    raise IndexError(index)

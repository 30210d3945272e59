"""How do pictures that come one after the other, each once, become frames?

A function yields them, or a program writes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from renderdispatch.errors import SceneError
from renderdispatch.messages import Output
from renderdispatch.protocols import Report
from renderdispatch.render.artist import Artist
from renderdispatch.render.device import DrawingGpu
from renderdispatch.render.features import Features, Frame
from renderdispatch.render.picture import Picture
from renderdispatch.render.projection import projection_of


class OnePassArtist(ABC):
    """Draws all frames of a video in one pass; see `renderdispatch.render.artist.Artist`.

    Frames are drawn in order, each once, within a block of `heard`. Frame 0 begins a new pass. So does any other frame
    that is not the next one, where ``run_up`` is 0.

    Args:
        output: Size, frame rate and projection.
        what: What makes the pictures, for messages.
    """

    run_up: int | None = None
    gpu: DrawingGpu | None = None
    rendered_by: str
    device_class: str

    def __init__(self, output: Output, *, what: str) -> None:
        self._what = what
        self._projection = projection_of(output)
        self._pass: Generator[Picture, None, None] | None = None
        self._next = self._total = 0
        self.keep: int | None = None
        self.kept: Picture | None = None

    @abstractmethod
    def make(self, first: int) -> Generator[Picture, None, None]:
        """Iterate over the pictures of a new pass, (`rows`, `columns`) each.

        Args:
            first: The frame to begin with; 0 unless ``run_up`` is 0.

        Raises:
            SceneError: The scene is at fault.
        """

    @property
    def columns(self) -> int:
        """The width of the pictures, before the projection."""
        return self._projection.width

    @property
    def rows(self) -> int:
        """The height of the pictures."""
        return self._projection.height

    def hear(self, features: Features, *, audio: Path, folder: Path, report: Report) -> None:
        """Take the song, before the first frame.

        Args:
            features: Of all frames.
            audio: The file.
            folder: For temporary files; it exists until the artist is closed.
            report: Called while a picture is waited for.
        """
        self.features, self.audio, self.folder, self.report = features, audio, folder, report
        self._total = len(features)

    def start(self) -> tuple[()]:
        """Return the state, which is always empty."""
        return ()

    def step(self, state: tuple[()], frame: Frame) -> tuple[()]:
        """Return the state."""
        del frame
        return state

    def light(self, state: tuple[()], frame: Frame) -> float:
        """Return how loud it is: loud moments are bright ones."""
        del state
        return frame.level

    def pictures(self, moments: Iterable[tuple[tuple[()], Frame]]) -> Iterator[Picture]:
        """Yield the picture of each frame; they come in order."""
        return (self.draw(state, frame) for state, frame in moments)

    def draw(self, state: tuple[()], frame: Frame) -> Picture:
        """Return the picture of the next frame."""
        return self._projection.place(self.flat(state, frame))

    def flat(self, state: tuple[()], frame: Frame) -> Picture:
        """Return the picture of the next frame as it was made.

        Raises:
            SceneError: ``frames.too-few``, ``frames.too-many``, or as of `make`.
        """
        del state
        if frame.index == 0 or (self.run_up == 0 and frame.index != self._next):
            self.close()
            self._pass, self._next = self.make(frame.index), frame.index
        if self._pass is None or frame.index != self._next:
            raise ValueError(f"frame {frame.index} is not the next one, {self._next}")
        picture = next(self._pass, None)
        if picture is None:
            message = f"{self._what} made {frame.index} frames; {self._total} were ordered"
            raise SceneError(message, code="frames.too-few")
        self._next += 1
        if frame.index == self.keep:
            self.kept = picture
        if self._next == self._total and next(self._pass, None) is not None:
            raise self.too_many()
        return picture

    def too_many(self) -> SceneError:
        """Return the error of a pass that goes on after the last frame."""
        message = f"{self._what} made more than the {self._total} frames that were ordered"
        return SceneError(message, code="frames.too-many")

    def close(self) -> None:
        """End the pass. A second call does nothing."""
        making, self._pass = self._pass, None
        if making is not None:
            making.close()


@contextmanager
def heard(artist: Artist, features: Features, *, audio: Path, folder: Path, report: Report) -> Iterator[None]:
    """Within the block, a `OnePassArtist` can draw the song; other artists need nothing. See `OnePassArtist.hear`."""
    if not isinstance(artist, OnePassArtist):
        yield
        return
    artist.hear(features, audio=audio, folder=folder, report=report)
    try:
        yield
    except BaseException:
        with suppress(SceneError):  # a scene that also fails at its end does not hide a stop, or a full disk
            artist.close()
        raise
    artist.close()

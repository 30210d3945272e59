"""A scene whose drawing is a sleep, and helpers that go wrong. Containers and render processes import it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from attrs import frozen

from renderdispatch.messages import Helped, HelperOrder, RenderOrder
from renderdispatch.plumbing.pieces import HEAD_BYTES, SegmentHead
from renderdispatch.protocols import Commit, Report, Slots
from renderdispatch.render.artist import Artist
from renderdispatch.render.covers import Cover
from renderdispatch.render.features import Frame
from renderdispatch.render.picture import Canvas
from renderdispatch.render.scene import NumpyRenderer, Scene, SceneParams

SLEEPY: Final = "sleepy"
"""The name that the scene is registered under."""

Mishap = Literal["slow", "hangs", "nonsense", "dies"]

_POLL_S: Final = 0.05


class SleepyParams(SceneParams):
    """What a render of the scene does besides drawing."""

    frame_s: float = 0.0
    """How long a frame takes."""

    folder: str = ""
    """Where each process that draws leaves its id in the file ``processes``, and each frame that is painted a line in the
    file ``frames``: the process, and the frame's index. While the folder has a file ``hold``, frames from the number in
    it on wait."""


class Faded(NamedTuple):
    """What is left of the sound before."""

    level: float


class Sleepy(Scene[Faded]):
    """Draws a bar that fades, slowly."""

    mishap: Mishap | None = None

    def __init__(self, params: SleepyParams, *, width: int, height: int, fps: Fraction) -> None:
        self._frame_s = params.frame_s
        self._folder = Path(params.folder) if params.folder else None
        if self._folder is not None:
            with (self._folder / "processes").open("a") as file:
                file.write(f"{os.getpid()}\n")

    def start(self) -> Faded:
        return Faded(level=0.0)

    def step(self, state: Faded, frame: Frame) -> Faded:
        return Faded(level=max(frame.level, 0.95 * state.level))

    def paint(self, state: Faded, frame: Frame, canvas: Canvas) -> None:
        while self.mishap == "hangs":
            time.sleep(_POLL_S)
        time.sleep(10 * self._frame_s if self.mishap == "slow" else self._frame_s)
        if self._folder is not None:
            while _is_held(self._folder, frame.index):
                time.sleep(_POLL_S)
            with (self._folder / "frames").open("a") as file:
                file.write(f"{os.getpid()} {frame.index}\n")
        canvas[:] = frame.index % 200
        canvas[: int(state.level * canvas.shape[0])] = np.uint8(255)


def _is_held(folder: Path, index: int) -> bool:
    with suppress(OSError, ValueError):
        return index >= int((folder / "hold").read_text())
    return False


def painted(folder: Path) -> Counter[int]:
    """Return how often each frame was painted."""
    with suppress(FileNotFoundError):
        return Counter(int(line.split()[1]) for line in (folder / "frames").read_text().splitlines())
    return Counter()


def processes(folder: Path) -> set[int]:
    """Return the processes that were to draw, perhaps nothing yet."""
    with suppress(FileNotFoundError):
        return {int(line) for line in (folder / "processes").read_text().splitlines()}
    return set()


def painters(folder: Path) -> set[int]:
    """Return the processes that painted frames."""
    with suppress(FileNotFoundError):
        return {int(line.split()[0]) for line in (folder / "frames").read_text().splitlines()}
    return set()


class SleepyRenderer(NumpyRenderer):
    """Renders `Sleepy`; as a helper it has a mishap."""

    def __init__(self, mishap: Mishap | None = None) -> None:
        super().__init__(f"{__name__}:Sleepy", SleepyParams)
        self._mishap = mishap

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws, at the helper's pace."""
        with super().artist(order, cover=cover) as artist:
            artist.scene.mishap = self._mishap  # type: ignore[attr-defined]  # it is a SceneArtist
            yield artist

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw segments; some are not what they should be, or are never committed."""
        wrong: Any = _WrongSlots(slots, self._mishap)
        return super().help(order, folder, report, slots=wrong)


class HelperDied(Exception):
    """A helper that dies as soon as a segment is drawn."""


@frozen
class _WrongSlots:
    """Slots through which a helper commits nonsense, or dies."""

    slots: Slots
    mishap: Mishap | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slots, name)

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Commit a segment, or what is none."""
        if self.mishap == "dies":
            raise HelperDied
        if self.mishap == "nonsense":
            with segment.open("r+b") as file:
                head = SegmentHead.read(file.read(HEAD_BYTES))
                assert head is not None
                file.write(os.urandom(head.size))
        return self.slots.commit(digest, index, segment)


sleepy: Final = SleepyRenderer()
hanging: Final = SleepyRenderer("hangs")

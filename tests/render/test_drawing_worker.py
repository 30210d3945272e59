"""What does a worker do with a segment that something is wrong with?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from av.error import FFmpegError
from av.video.frame import VideoFrame

from renderdispatch.messages import Output, RenderOrder
from renderdispatch.plumbing.unkept_slots import UnkeptSlots
from renderdispatch.protocols import Commit
from renderdispatch.render import bars
from renderdispatch.render.encoders import find_encoder
from renderdispatch.render.features import Frame
from renderdispatch.render.picture import Picture
from renderdispatch.render.planner import Planner
from renderdispatch.render.scene_artist import SceneArtist
from renderdispatch.render.worker import Tools, Worker

WriteWav = Callable[..., Path]
Order = Callable[..., RenderOrder]


class Drawer(Worker):
    """Draws all segments, and hears each time that the one which is kept is bad."""

    begun: list[int]
    taken: list[int]

    @staticmethod
    def count_of(plan: Any, slots: Any) -> int:
        return len(plan)

    def progress(self, index: int, frames: int) -> None:
        if frames == 1:
            self.begun.append(index)

    def finished(self, index: int, segment: Path) -> None:
        self.taken.append(index)
        self.tell(index, stands=False)

    def committed(self, index: int, segment: Path, outcome: Commit) -> None:
        pass

    def wait(self, seconds: float) -> None:
        pass


@pytest.fixture
def drawer(tmp_path: Path, write_wav: WriteWav, order: Order) -> Iterator[Drawer]:
    """Return a worker with a video of three segments."""
    song = write_wav(tmp_path / "song.wav", np.random.default_rng(7).uniform(-0.5, 0.5, 12 * 44_100))
    wanted = order(output=Output(width=64, height=48, fps=Fraction(10)))
    (folder := tmp_path / "work").mkdir()
    with (
        bars.artist(wanted) as artist,
        Planner(wanted, song, folder, artist=artist, digest=lambda _audio: "d" * 64) as planner,
    ):
        encoder = find_encoder(wanted.output, artist.gpu)
        tools = Tools(artist=artist, encoder=encoder, output=wanted.output, folder=folder)
        made = Drawer(tools, planner.plan, UnkeptSlots(), most=None)
        made.begun, made.taken = [], []
        yield made


def test_what_was_drawn_here_is_not_drawn_again(drawer: Drawer) -> None:
    """A worker has a good segment itself: that the one which is kept is bad, changes nothing."""
    drawer.run()
    assert drawer.begun == drawer.taken == [0, 1, 2]


class Breaks(SceneArtist):
    """Its 40th frame cannot be encoded."""

    def pictures(self, moments: Iterable[tuple[Any, Frame]]) -> Iterator[Picture]:
        for number, picture in enumerate(super().pictures(moments), start=1):
            yield evolve(picture, frame=VideoFrame(0, 0, "yuv420p")) if number == 40 else picture


def test_a_segment_that_lacks_a_frame_is_not_completed(drawer: Drawer) -> None:
    """The encoder fails at the last frame of a segment: the segment is neither joined nor kept."""
    drawer.tools.artist.__class__ = Breaks
    with pytest.raises(FFmpegError):  # "Invalid argument" or "Operation not supported", as FFmpeg's version says
        drawer.run()
    assert drawer.taken == []

"""What do helpers that are slow, hang, die or write nonsense cost?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import HelperOrder, Output, Pieces, RenderOrder
from renderdispatch.render import bars
from renderdispatch.testing.slots import FolderSlots

WriteWav = Callable[..., Path]
Order = Callable[..., RenderOrder]

WORKERS = 16
FRAME_S = 0.04
SLOW, HANGS, NONSENSE, DIES, ABSENT = 3, 7, 5, 9, 11


def helper_of(order: RenderOrder, share: int) -> HelperOrder:
    shared = RenderOrder.model_fields.keys() & HelperOrder.model_fields.keys()
    given = {name: getattr(order, name) for name in shared - {"protocol", "pieces", "parallel", "result"}}
    pieces = Pieces(slots=256)
    return HelperOrder(**given, share=share, parallel=WORKERS, pieces=pieces, stop="stop", result="result")


class Crew:
    """A lead with 15 helpers, whose drawing takes `FRAME_S` a frame. Five of them are bad."""

    def __init__(self, folder: Path, song: Path, order: RenderOrder) -> None:
        self.folder, self.song, self.order = folder, song, order
        self.over = threading.Event()
        (folder / "pieces").mkdir(parents=True)

    def draw(self) -> bytes:
        """Return the file."""
        lead = FolderSlots(folder=self.folder / "pieces", parallel=WORKERS)
        threads = [
            threading.Thread(target=self.help, args=(lead.beside(share),))
            for share in range(1, WORKERS)
            if share != ABSENT
        ]
        for thread in threads:
            thread.start()

        def report(done: int, total: int) -> None:
            if done:
                time.sleep(FRAME_S)

        video = self.folder / "video.mp4"
        bars.render_segments(self.order, self.song, video, report, slots=lead)
        self.over.set()
        for thread in threads:
            thread.join()
        return video.read_bytes()

    def help(self, slots: FolderSlots) -> None:
        """Help until the video is complete."""
        slots.check = self.stop_when_over
        kind = slots.share
        if kind == NONSENSE:
            slots.spoil = lambda data: data[:-1] + bytes([data[-1] ^ 1])
        folder = self.folder / f"helper-{slots.share}"
        folder.mkdir()

        def report(done: int, total: int) -> None:
            self.over.wait(FRAME_S * (10 if kind == SLOW else 1))
            if kind == HANGS and done > 60:
                self.over.wait()
            if kind == DIES and done % 40 == 39:
                raise ZeroDivisionError
            self.stop_when_over()

        while not self.over.is_set():
            try:
                if slots.read_plan(0, 1) is not None:
                    bars.help(helper_of(self.order, slots.share), folder, report, slots=slots)
                    return
                self.over.wait(0.1)
            except ZeroDivisionError:
                continue
            except RenderStopped:
                return

    def stop_when_over(self) -> None:
        if self.over.is_set():
            raise RenderStopped("the video is complete")


@pytest.mark.long
def test_bad_helpers_change_nothing(tmp_path: Path, write_wav: WriteWav, order: Order) -> None:
    """One is ten times slower, one hangs, one writes nonsense, one dies at each segment, one never starts."""
    song = write_wav(tmp_path / "a.wav", np.random.default_rng(7).uniform(-0.5, 0.5, 34 * 4 * 8_000), 8_000)
    given: dict[str, Any] = {"output": Output(width=64, height=36, fps=Fraction(10))}
    alone = tmp_path / "alone.mp4"
    bars.render(order(**given), song, alone, lambda _done, _total: None)
    assert Crew(tmp_path / "bad", song, order(**given)).draw() == alone.read_bytes()

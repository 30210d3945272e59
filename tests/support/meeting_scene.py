"""`bars`, drawn by as many processes at once as are asked for: none draws its first frame before all are there.

So a test knows that each of them drew, however fast it was to start. Containers import this.
"""

from __future__ import annotations

import os
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import Field

from renderdispatch.render.params import BarsParams
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scenes.bars import Bars, BarsState

if TYPE_CHECKING:
    from renderdispatch.render.features import Frame
    from renderdispatch.render.picture import Picture

MEETING: Final = "meeting"
"""The name that the scene is registered under."""

_PATIENCE_S: Final = 90.0
_POLL_S: Final = 0.02


class MeetingParams(BarsParams):
    """The parameters of the scene."""

    folder: Path = Field(description="where each process leaves a mark")
    workers: int = Field(description="how many processes must be there")
    frame_s: float = Field(default=0, description="how long a frame takes at least")


class MeetingBars(Bars):
    """Draws what `Bars` draws."""

    def __init__(self, params: MeetingParams, *, width: int, height: int, fps: Fraction) -> None:
        super().__init__(params, width=width, height=height, fps=fps)
        self._meeting = params
        self._all_there = False

    def picture(self, state: BarsState, frame: Frame) -> Picture:
        """Return the picture of `Bars`, once all are there."""
        if not self._all_there:
            self._meet()
        time.sleep(self._meeting.frame_s)
        return super().picture(state, frame)

    def _meet(self) -> None:
        (self._meeting.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + _PATIENCE_S
        while (there := sum(1 for _ in self._meeting.folder.iterdir())) < self._meeting.workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{there} of {self._meeting.workers} came")
            time.sleep(_POLL_S)
        self._all_there = True


meeting: Final = NumpyRenderer(f"{__name__}:MeetingBars", MeetingParams)
"""The renderer of `MeetingBars`."""

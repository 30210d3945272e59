"""How does a helper draw segments beside the lead?

It has no song: the plan that is kept says all. If the plan is not that of its own order and software, it draws nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import av

from renderdispatch.messages import Helped, HelperOrder, ObjectUrls, RenderOrder, SignedPut
from renderdispatch.plumbing.failures import translated
from renderdispatch.protocols import Commit, Report, Slots
from renderdispatch.render.device import check_device, join_class
from renderdispatch.render.encoders import find_encoder
from renderdispatch.render.plan import Part, Plan, plan_digest
from renderdispatch.render.plan_file import PlanError
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.render.versions import scene_version
from renderdispatch.render.video import render_error
from renderdispatch.render.worker import Tools, Worker

_log: Final = logging.getLogger(__name__)

_WAITING: Final = 2
"""Drawn segments that may wait for their commit."""

_REFUSED: Final = 3
"""After so many segments in a row that no slot took, within `_PATIENCE_S` at least, a helper ends."""

_PATIENCE_S: Final = 120.0
"""How long a helper waits for storage that is away."""

_OFFERED_AGAIN: Final = 8
"""So many segments that no slot took are kept, and offered again when storage is back."""

_BEAT_S: Final = 0.5


def help_video(order: HelperOrder, folder: Path, report: Report, *, renderer: VideoRenderer, slots: Slots) -> Helped:
    """Draw segments of the plan that is kept; see `renderdispatch.protocols.SupportsSegments`."""
    try:
        plan = Plan.read(slots.read_plan, folder)
        if plan is None:
            return Helped(reason="no plan is kept")
        with (
            renderer.artist(_lead_order(order), cover=plan.cover) as artist,
            translated({OSError: render_error, av.FFmpegError: render_error}, chain=True),
        ):
            encoder = find_encoder(order.output, artist.gpu)
            device = join_class(artist.device_class, encoder.device_class)
            check_device(order.device_class, device)
            scene = scene_version(renderer)
            digest = plan_digest(
                order, audio_sha256=plan.audio_sha256, scene=scene, device=device, encoder=encoder.name
            )
            if digest != plan.digest or artist.run_up != plan.run_up:
                return Helped(reason="the plan that is kept belongs to another order, or to other software")
            tools = Tools(artist=artist, encoder=encoder, output=order.output, folder=folder)
            helper = _Helper(tools, plan, slots, report=report)
            helper.run()
            return Helped(segments=helper.kept, twice=helper.twice, reason=helper.reason)
    except PlanError as error:
        return Helped(reason=f"the plan that is kept cannot be used: {error}")


class _Helper(Worker):
    """Draws and commits."""

    def __init__(self, tools: Tools, plan: Plan, slots: Slots, *, report: Report) -> None:
        super().__init__(tools, plan, slots, most=_WAITING)
        self.kept = 0
        self._report = report
        self._refused = 0
        self._refused_since = 0.0
        self._left = deque[tuple[int, Path]]()
        self._frames = self._before = self._segment = 0

    @property
    def reason(self) -> str:
        """Why it ended."""
        return "storage takes no segments" if self._is_refused else "all segments are drawn"

    @property
    def _is_refused(self) -> bool:
        return self._refused >= _REFUSED and monotonic() >= self._refused_since + _PATIENCE_S

    @staticmethod
    def count_of(plan: Plan, slots: Slots) -> int:
        """Return for how many segments there is a place."""
        return min(len(plan), slots.count)

    def progress(self, index: int, frames: int) -> None:
        """Report all frames that were drawn."""
        if index != self._segment or frames < self._frames:
            self._before, self._segment = self._before + self._frames, index
        self._frames = frames
        done = self._before + frames
        self._report(done, done - frames + len(self.plan.frames_of(index)))

    def finished(self, index: int, segment: Path) -> None:
        """Do nothing: it is committed next."""

    def part(self, index: int) -> Part:
        """Return what is needed to draw a segment; wait for storage that is away."""
        until = monotonic() + _PATIENCE_S
        while True:
            try:
                return super().part(index)
            except PlanError:
                if monotonic() >= until:
                    raise
                self.wait(_BEAT_S)

    def committed(self, index: int, segment: Path, outcome: Commit) -> None:
        """Count what was committed. What no slot took is offered again once a slot takes another segment."""
        self.kept += outcome == "committed"
        if outcome == "kept":
            if not self._refused:
                self._refused_since = monotonic()
            self._refused += 1
            self._left.append((index, segment))
            if len(self._left) > _OFFERED_AGAIN:
                self._left.popleft()[1].unlink(missing_ok=True)
            return
        self._refused = 0
        segment.unlink(missing_ok=True)
        while self._left:
            again, path = self._left.popleft()
            self.kept += self.slots.commit(self.plan.digest, again, path) == "committed"
            path.unlink(missing_ok=True)

    def wait(self, seconds: float) -> None:
        """Wait, and report meanwhile."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            done = self._before + self._frames
            self._report(done, max(done, 1))
            sleep(min(left, _BEAT_S))

    def is_over(self) -> bool:
        """Return whether it would draw in vain."""
        return self._is_refused


def _lead_order(order: HelperOrder) -> RenderOrder:
    """Return the order of the lead, as far as an artist reads it."""
    blank = ObjectUrls(key="", put=SignedPut(url=""), get="")
    shared = RenderOrder.model_fields.keys() & HelperOrder.model_fields.keys()
    given = {name: getattr(order, name) for name in shared - {"protocol", "pieces", "result"}}
    return RenderOrder(**given, audio_url="", audio_size=0, video=blank, result=blank)

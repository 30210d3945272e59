"""What does a helper do, from its order to its end?

`run_helper` draws segments of a video beside the lead. It reports nothing, and nothing depends on it. It ends by
itself: when no segment is missing, when there is a result or the stop object, or at its deadline.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import field, frozen

from renderdispatch.errors import RenderDispatchError, RenderStopped
from renderdispatch.messages import CLOCK_SLACK, Helped, HelperOrder, SegmentCounts
from renderdispatch.plumbing.failures import text_of
from renderdispatch.plumbing.net import Client
from renderdispatch.plumbing.stop import Bell, Stop
from renderdispatch.protocols import Commit, Slots
from renderdispatch.runner.inputs import with_assets
from renderdispatch.runner.piece_stores import is_there
from renderdispatch.runner.render import RenderHost
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.slots import open_slots
from renderdispatch.runner.transfers import open_transfers

_log: Final = logging.getLogger("renderdispatch.runner")

LOOK_S: Final = 10.0
"""How often a helper looks whether it is still needed, at least."""

_STALL_S: Final = 10.0


@frozen(kw_only=True)
class HelperIO:
    """Everything that a helper touches.

    Args:
        render: Where the renderer runs.
        work_dir: Where the temporary folder goes; None: the system's place.
        look_s: How often it looks whether it is still needed, at least.
        now: The clock of the deadlines.
        stop: Ends it from another thread. What it raises decides how: after `RenderStopped` it returns; anything that
            is not an `Exception` passes, after everything was cleaned up.
    """

    render: RenderHost
    work_dir: Path | None = None
    look_s: float = LOOK_S
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    stop: Stop = field(factory=lambda: Stop(error=told_to_stop))


def run_helper(order: HelperOrder, *, io: HelperIO) -> Helped:
    """Draw segments until none is missing; return how that ended, never raise an `Exception`."""
    left_s = (order.finish_by + CLOCK_SLACK - io.now()).total_seconds()
    if left_s <= 0 or io.now() > order.start_by + CLOCK_SLACK:
        return Helped(reason="it started past its deadline")
    counts = _Counts()
    try:
        with Stop(timeout_s=left_s, parent=io.stop, error=told_to_stop) as stop, _needed(order, stop, io) as need:
            return _help(order, io, stop, counts, need)
    except Exception as error:  # noqa: BLE001 - nothing depends on a helper; the lead draws what it does not
        known = isinstance(error, (RenderDispatchError, OSError))
        level = logging.INFO if known else logging.ERROR
        _log.log(level, "a helper of job %s ended: %s", order.job_id, text_of(error), exc_info=not known)
        why = text_of(error) if isinstance(error, RenderStopped) else f"{type(error).__name__}: {text_of(error)}"
        return Helped(segments=counts.committed, twice=counts.twice, reason=why)


def _help(order: HelperOrder, io: HelperIO, stop: Stop, counts: _Counts, need: Bell) -> Helped:
    with (
        tempfile.TemporaryDirectory(prefix="renderdispatch-", dir=io.work_dir) as name,
        open_transfers(local=order.local, stop=stop) as transfers,
        open_slots(order, stop=stop) as slots,
    ):
        folder = Path(name)
        seen = with_assets(order, transfers, folder)
        (own := folder / "segments").mkdir()
        return io.render.help(seen, own, lambda _frames, _total: stop.check(), slots=_Watched(slots, counts, need))


class _Counts:
    """What a helper has drawn, also if its renderer dies before it tells."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.committed = 0
        self.twice = 0

    def add(self, became: Commit) -> None:
        """Count a segment."""
        with self._lock:
            self.committed += became == "committed"
            self.twice += became == "twice"


class _Watched:
    """The slots of a helper, which looks whether it is still needed after each segment."""

    def __init__(self, slots: Slots, counts: _Counts, need: Bell) -> None:
        self._slots = slots
        self._counts = counts
        self._need = need
        self.count, self.share, self.parallel = slots.count, slots.share, slots.parallel
        self.read_plan, self.put_plan = slots.read_plan, lambda _plan: False
        self.is_drawn, self.fetch = slots.is_drawn, slots.fetch

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Keep a segment, count it, and have it checked whether more are needed."""
        became = self._slots.commit(digest, index, segment)
        self._counts.add(became)
        self._need.ring()
        return became

    def report(self, counts: SegmentCounts, *, planned: bool) -> None:
        """Do nothing: only the lead reports."""


@contextmanager
def _needed(order: HelperOrder, stop: Stop, io: HelperIO) -> Iterator[Bell]:
    """Stop the block once there is a result or the stop object; yield what asks for a look at once.

    The looks are made in a thread of their own, so that storage that hangs holds up no drawing.
    """
    bell, client = Bell(), Client(stall_s=_STALL_S, proxies=True)
    ending = Stop(parent=stop)

    def watch() -> None:
        while not ending.requested:
            for url, why in ((order.stop, "the attempt has ended"), (order.result, "the video is complete")):
                if is_there(url, local=order.local, client=client, stop=ending):
                    stop.request(why)
                    return
            bell.wait(min(io.look_s, ending.remaining_s))

    ending.on_request(bell.ring)
    thread = threading.Thread(target=watch, name="renderdispatch-need", daemon=True)
    with suppress(RuntimeError):  # the process has as many threads as it may: the deadline ends it
        thread.start()
    try:
        yield bell
    finally:
        ending.request("the helper has ended")
        ending.__exit__()
        client.close()

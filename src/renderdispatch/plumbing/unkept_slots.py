"""What does a render get that begins anew if it is ended? Slots that keep nothing."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from renderdispatch.messages import MAX_SEGMENTS, SegmentCounts
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Commit


@frozen(kw_only=True)
class UnkeptSlots:
    """Slots that keep nothing; see `renderdispatch.protocols.Slots`.

    Args:
        stop: Ends every call; what its `check` raises passes.
        count: For how many segments there is a place.
        share: Which segments to draw first.
        parallel: How many draw, with the lead.
    """

    stop: Stop = field(factory=Stop)
    count: int = MAX_SEGMENTS
    share: int = 0
    parallel: int = 1

    def read_plan(self, begin: int, size: int) -> bytes | None:  # noqa: ARG002 - there is none
        """Return None."""
        self.stop.check()
        return None

    def put_plan(self, plan: Path) -> bool:  # noqa: ARG002 - it is not kept
        """Return False."""
        self.stop.check()
        return False

    def is_drawn(self, digest: str, index: int) -> bool:  # noqa: ARG002 - none is
        """Return False."""
        self.stop.check()
        return False

    def commit(self, digest: str, index: int, segment: Path) -> Commit:  # noqa: ARG002 - it is not kept
        """Return ``kept``: the file alone has it."""
        self.stop.check()
        return "kept"

    def fetch(self, digest: str, index: int, into: Path) -> bool:  # noqa: ARG002 - there is none
        """Return False."""
        self.stop.check()
        return False

    def report(self, counts: SegmentCounts, *, planned: bool) -> None:  # noqa: ARG002 - what is not kept is not told
        """Do nothing."""
        self.stop.check()

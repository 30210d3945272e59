"""Slots for tests: pieces of videos as files of a folder, with the mishaps that storage and machines have."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from attrs import define, evolve, field

from renderdispatch.messages import MAX_SEGMENTS, SegmentCounts
from renderdispatch.plumbing.pieces import (
    GENERATIONS,
    GENERATIONS_OF_HELPERS,
    HEAD_BYTES,
    PlanHead,
    SegmentHead,
    plan_name,
    segment_name,
)
from renderdispatch.protocols import Commit


@define(kw_only=True, eq=False)
class FolderSlots:
    """Slots whose pieces are files of one folder; see `renderdispatch.protocols.Slots`.

    Args:
        folder: Of the pieces; all workers of a video share it.
        share: The worker's.
        parallel: How many draw.
        count: For how many segments there is a place.
        is_away: Whether storage is away.
        spoil: Changes each segment before it is kept: bytes in, bytes out.
        check: Called at each call; it may raise `RenderStopped`, or wait.
    """

    folder: Path
    share: int = 0
    parallel: int = 1
    count: int = MAX_SEGMENTS
    is_away: bool = False
    spoil: Callable[[bytes], bytes] | None = None
    check: Callable[[], None] = lambda: None
    reports: list[tuple[SegmentCounts, bool]] = field(factory=list)
    """What the renderer told of its progress."""

    calls: dict[str, int] = field(factory=dict)
    """How often each operation was called."""

    _bad: set[str] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock, repr=False)

    def beside(self, share: int) -> FolderSlots:
        """Return the slots of another worker of the same video."""
        return evolve(self, share=share, reports=[], calls={}, bad=set(), lock=threading.Lock())

    def read_plan(self, begin: int, size: int) -> bytes | None:
        """Return a part of the lowest plan that is good."""
        self._called("read_plan")
        for generation in range(GENERATIONS):
            path = self.folder / plan_name(generation)
            if self.is_away or not path.exists():
                return None
            with path.open("rb") as file:
                if PlanHead.read(file.read(HEAD_BYTES)) is None:
                    continue
                file.seek(begin)
                return file.read(size)
        return None

    def put_plan(self, plan: Path) -> bool:
        """Keep a plan in the first generation that is free, if the ones before are not good."""
        self._called("put_plan")
        if self.is_away or self.read_plan(0, 1) is not None:
            return False
        return any(self._put(plan_name(generation), plan.read_bytes()) for generation in range(GENERATIONS))

    def is_drawn(self, digest: str, index: int) -> bool:
        """Return whether a good head is kept."""
        self._called("is_drawn")
        return self._find(digest, index) is not None

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Keep a segment in the first generation that is free, if the ones before are not good."""
        self._called("commit")
        data = segment.read_bytes()
        data = data if self.spoil is None else self.spoil(data)
        for generation in range(GENERATIONS_OF_HELPERS if self.share else GENERATIONS):
            if self.is_away:
                return "kept"
            if self._put(segment_name(index, generation), data):
                return "committed"
            if self._is_good(segment_name(index, generation), digest, index):
                return "twice"
        return "kept"

    def fetch(self, digest: str, index: int, into: Path) -> bool:
        """Copy a segment whose hash is right."""
        self._called("fetch")
        while (name := self._find(digest, index)) is not None:
            data = (self.folder / name).read_bytes()
            head = SegmentHead.read(data)
            assert head is not None
            rest = data[HEAD_BYTES:]
            if len(rest) == head.size and hashlib.sha256(rest).hexdigest() == head.sha256:
                into.write_bytes(data)
                return True
            self._bad.add(name)
        return False

    def report(self, counts: SegmentCounts, *, planned: bool) -> None:
        """Keep what is told."""
        self._called("report")
        self.reports.append((counts, planned))

    def _find(self, digest: str, index: int) -> str | None:
        names = (segment_name(index, generation) for generation in range(GENERATIONS))
        return None if self.is_away else next((name for name in names if self._is_good(name, digest, index)), None)

    def _is_good(self, name: str, digest: str, index: int) -> bool:
        path = self.folder / name
        if name in self._bad or not path.exists():
            return False
        with path.open("rb") as file:
            head = SegmentHead.read(file.read(HEAD_BYTES))
        return head is not None and (head.digest, head.index) == (digest, index)

    def _put(self, name: str, data: bytes) -> bool:
        """Write a new file whole, or not at all."""
        part = self.folder / f".{name}.{self.share}.{threading.get_ident()}"
        part.write_bytes(data)
        try:
            os.link(part, self.folder / name)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def _called(self, what: str) -> None:
        with self._lock:
            self.calls[what] = self.calls.get(what, 0) + 1
        self.check()

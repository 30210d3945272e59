"""Which pieces of a video are drawn already, and where does a new one go?

`KeptSlots` decides by what pieces say of themselves: a bad one is passed over, and the lowest good generation counts
(see `renderdispatch.plumbing.pieces`). While storage is away nothing is found, and a render goes on without it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from renderdispatch.messages import HelperOrder, RenderOrder, SegmentCounts
from renderdispatch.plumbing.pieces import (
    GENERATIONS,
    GENERATIONS_OF_HELPERS,
    HEAD_BYTES,
    PlanHead,
    SegmentHead,
    plan_name,
    segment_name,
)
from renderdispatch.plumbing.stop import Stop
from renderdispatch.plumbing.unkept_slots import UnkeptSlots
from renderdispatch.protocols import Commit, Slots
from renderdispatch.runner.piece_stores import GrantedPieces, Piece, PieceStore, PieceTrouble, folder_of
from renderdispatch.runner.reporting import told_to_stop

_log: Final = logging.getLogger("renderdispatch.runner")

_AWAY_S: Final = 5.0
"""How long storage that failed is not asked again."""

_CHUNK_BYTES: Final = 1 << 20

Told = Callable[[SegmentCounts, bool], None]
"""``told(counts, planned)``: hears how far the segments are."""


@frozen
class _Kept:
    """A segment whose head is good.

    Args:
        piece: Where it is.
        size: Bytes behind its head, as it says.
    """

    piece: Piece
    size: int


class KeptSlots:
    """The slots of one video. Safe to share between threads.

    Args:
        store: Reads and writes pieces.
        count: For how many segments there is a place.
        share: See `Slots`.
        parallel: See `Slots`.
        generations: How many generations of a name may be written here.
        stop: Ends every call.
        told: Hears the reports.
    """

    def __init__(
        self,
        store: PieceStore,
        *,
        count: int,
        share: int = 0,
        parallel: int = 1,
        generations: int = GENERATIONS,
        stop: Stop,
        told: Told = lambda _counts, _planned: None,
    ) -> None:
        self._store = store
        self._count, self._share, self._parallel = count, share, parallel
        self._generations = generations
        self._stop = stop
        self._told = told
        self._lock = threading.Lock()
        self._plan: Piece | None = None
        self._good: dict[tuple[str, int], _Kept] = {}
        self._bad: set[tuple[str, Piece]] = set()
        self._not_lent: set[int] = set()
        self._away_until = 0.0
        self.committed = 0
        self.twice = 0

    @property
    def count(self) -> int:
        """For how many segments there is a place."""
        return self._count

    @property
    def share(self) -> int:
        """Which segments to draw first."""
        return self._share

    @property
    def parallel(self) -> int:
        """How many draw, with the lead."""
        return self._parallel

    # --- the plan

    def read_plan(self, begin: int, size: int) -> bytes | None:
        """Read a part of the lowest good plan, else of a lent one. The first that is found stays the one."""
        self._stop.check()
        try:
            if self._plan is None:
                self._plan = self._find_plan()
            return None if self._plan is None else self._store.read(self._plan, begin, size)
        except PieceTrouble as trouble:
            self._note(trouble)
            return None

    def put_plan(self, plan: Path) -> bool:
        """Write the plan to the lowest generation that is free; one with the same digest and other bytes is bad."""
        self._stop.check()
        with plan.open("rb") as file:
            head = PlanHead.read(file.read(HEAD_BYTES))
        if head is None:
            raise ValueError(f"{plan.name} is not a plan")
        try:
            for generation in range(self._generations):
                piece = Piece(plan_name(generation))
                if self._store.put(piece.name, plan) != "written":
                    kept = self._good_plan(piece)
                    if kept is not None and kept.digest != head.digest:
                        return False
                    if kept is None or not self._is_same(piece, plan):
                        continue
                self._plan = piece
                return True
        except PieceTrouble as trouble:
            self._note(trouble)
        return False

    def _find_plan(self) -> Piece | None:
        for lent in (False, True):
            for generation in range(GENERATIONS):
                piece = Piece(plan_name(generation), lent)
                begin = self._store.read(piece, 0, HEAD_BYTES)
                if begin is None:
                    break
                if self._good_plan(piece, begin) is not None:
                    return piece
        return None

    def _good_plan(self, piece: Piece, begin: bytes | None = None) -> PlanHead | None:
        """Return the head of a plan if it, its index and its size are good."""
        begin = self._store.read(piece, 0, HEAD_BYTES) if begin is None else begin
        head = None if begin is None else PlanHead.read(begin)
        if head is None or head.size < HEAD_BYTES + head.index:
            return None
        index = self._store.read(piece, HEAD_BYTES, head.index) or b""
        if hashlib.sha256(index).hexdigest() != head.sha256:
            return None
        return head if len(self._store.read(piece, head.size - 1, 2) or b"") == 1 else None

    def _is_same(self, piece: Piece, plan: Path) -> bool:
        begin = 0
        with plan.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if self._store.read(piece, begin, len(chunk)) != chunk:
                    return False
                begin += len(chunk)
        return True

    # --- segments

    def is_drawn(self, digest: str, index: int) -> bool:
        """Look for a good head, unless one was found before."""
        self._stop.check()
        if (digest, index) in self._good:
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            return self._find(digest, index) is not None
        except PieceTrouble as trouble:
            self._note(trouble)
            return False

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Write the segment to the lowest generation that is free, unless a good one is found on the way."""
        self._stop.check()
        with segment.open("rb") as file:
            own = SegmentHead.read(file.read(HEAD_BYTES))
        if own is None or (own.digest, own.index) != (digest, index):
            raise ValueError(f"{segment.name} is not segment {index} of this plan")
        try:
            became = self._commit(own, segment)
        except PieceTrouble as trouble:
            self._note(trouble)
            became = "kept"
        with self._lock:
            self.committed += became == "committed"
            self.twice += became == "twice"
        return became

    def _commit(self, own: SegmentHead, segment: Path) -> Commit:
        key = own.digest, own.index
        if key in self._good:
            return "twice"
        for generation in range(self._generations):
            piece = Piece(segment_name(own.index, generation))
            if (own.digest, piece) in self._bad:
                continue
            written = self._store.put(piece.name, segment)
            if written == "written":
                self._good[key] = _Kept(piece, own.size)
                return "committed"
            kept = self._good_head(own.digest, own.index, piece, self._store.read(piece, 0, HEAD_BYTES))
            if kept is not None:
                self._good[key] = _Kept(piece, kept.size)
                return "committed" if written == "unclear" and kept == own else "twice"
        return "kept"

    def fetch(self, digest: str, index: int, into: Path) -> bool:
        """Copy the segment and check its hash; go on to the next generation if it is bad."""
        self._stop.check()
        try:
            while (kept := self._good.get((digest, index)) or self._find(digest, index)) is not None:
                most = HEAD_BYTES + kept.size + 1  # of a longer one, enough to see that it is not what its head says
                if self._store.fetch(kept.piece, into, most) and _is_whole(into, digest, index):
                    return True
                self._stop.check()
                _log.warning("%s is bad, and passed over", kept.piece.name)
                self._good.pop((digest, index), None)
                self._bad.add((digest, kept.piece))
        except PieceTrouble as trouble:
            self._note(trouble)
        into.unlink(missing_ok=True)
        return False

    def _find(self, digest: str, index: int) -> _Kept | None:
        for lent in (False, True):
            if lent and index in self._not_lent:
                break
            for generation in range(GENERATIONS):
                piece = Piece(segment_name(index, generation), lent)
                if (digest, piece) in self._bad:
                    continue
                begin = self._store.read(piece, 0, HEAD_BYTES)
                if begin is None:
                    break
                if (head := self._good_head(digest, index, piece, begin)) is not None:
                    self._good[digest, index] = kept = _Kept(piece, head.size)
                    return kept
            if lent:  # the job that lends them draws no more
                self._not_lent.add(index)
        return None

    def _good_head(self, digest: str, index: int, piece: Piece, begin: bytes | None) -> SegmentHead | None:
        """Return the head of a segment if it is of this plan and index; else remember that it is bad."""
        head = None if begin is None else SegmentHead.read(begin)
        if head is None or (head.digest, head.index) != (digest, index):
            self._bad.add((digest, piece))
            return None
        return head

    # --- reports

    def report(self, counts: SegmentCounts, *, planned: bool) -> None:
        """Pass it on."""
        self._stop.check()
        self._told(counts, planned)

    def _note(self, trouble: PieceTrouble) -> None:
        now = time.monotonic()
        if now >= self._away_until:
            _log.warning("pieces are not kept for now: %s", trouble)
        self._away_until = now + _AWAY_S


def _is_whole(path: Path, digest: str, index: int) -> bool:
    with path.open("rb") as file:
        head = SegmentHead.read(file.read(HEAD_BYTES))
        if head is None or (head.digest, head.index) != (digest, index):
            return False
        found = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            found.update(chunk)
        return file.tell() == HEAD_BYTES + head.size and found.hexdigest() == head.sha256


@contextmanager
def open_slots(order: RenderOrder | HelperOrder, *, stop: Stop, told: Told | None = None) -> Iterator[Slots]:
    """Yield the slots that an order names, those of the lead or of a helper. Calls that still run at the end are cut.

    Args:
        order: The order.
        stop: Ends every call; what its `check` raises passes.
        told: Hears the reports.

    Raises:
        RenderError: ``order.local-url``: the order came from afar, and names a folder.
    """
    helps = isinstance(order, HelperOrder)
    share = order.share if isinstance(order, HelperOrder) else 0
    with Stop(parent=stop, error=told_to_stop) as ending:
        if order.pieces is None:
            yield UnkeptSlots(stop=ending, parallel=order.parallel)
            return
        folder = folder_of(order.pieces, local=order.local)
        granted = None if folder else GrantedPieces(order.pieces.grants, local=order.local, stop=ending)
        store: PieceStore | None = folder or granted
        assert store is not None
        try:
            yield KeptSlots(
                store,
                count=order.pieces.slots,
                share=share,
                parallel=order.parallel,
                generations=GENERATIONS_OF_HELPERS if helps else GENERATIONS,
                stop=ending,
                told=told or (lambda _counts, _planned: None),
            )
        finally:
            ending.request("the render has ended")
            if granted is not None:
                granted.close()

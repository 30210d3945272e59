"""How do segments come together, whoever draws them, while the last ones are still drawn?

What the lead draws is on its disk. What others drew is fetched from storage as it comes, in any order. A thread of its
own appends one segment after the other to the video.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final, Self

from attrs import define

from renderdispatch.errors import RenderError
from renderdispatch.protocols import Slots
from renderdispatch.render.join import Joiner
from renderdispatch.render.plan import Plan
from renderdispatch.render.segment import SegmentError

_FETCHERS: Final = 4

_EVERY_S: Final = 2.0
"""A segment that is missing is asked for at most this often."""

_EARLY: Final = 0.8
"""When a worker's next segment is asked for: after this share of the time that one takes."""


@define
class _Share:
    """How far another worker has come, as far as is known."""

    next: int
    due: float = 0.0
    came: float = 0.0
    was_missing: bool = False


class Gatherer:
    """Joins the segments of a video. Use it with ``with``: its threads end with the block.

    Args:
        plan: Of the video.
        slots: Where others keep segments.
        joiner: Takes the segments.
        folder: For what is fetched.
        tell: Called, in any thread, with the index of a segment, and whether it was fetched; else what is kept is bad.
        give_up: Called if the block raised, to end a wait for the sound.
    """

    def __init__(
        self,
        plan: Plan,
        slots: Slots,
        joiner: Joiner,
        folder: Path,
        *,
        tell: Callable[[int, bool], None],
        give_up: Callable[[], None],
    ) -> None:
        self.own: Final[set[int]] = set()
        """What was drawn here."""

        self.twice = 0
        """How many segments others drew in vain, as they say."""

        self.is_complete = False
        self.usual_s = _EVERY_S
        """About how long a worker takes for a segment."""

        self.changed: Final = threading.Condition()
        """Notified whenever there are news."""

        self._plan, self._slots, self._joiner, self._folder = plan, slots, joiner, folder
        self._tell, self._give_up = tell, give_up
        self._files: dict[int, Path] = {}
        self._used: set[Path] = set()
        self._fetching: set[int] = set()
        self._refused: set[int] = set()
        self._joined = 0
        self._hints = deque[int]()
        count = min(len(plan), slots.count)
        others = (share for share in range(slots.parallel) if share != slots.share and share < count)
        self._shares = [_Share(share) for share in others]
        self._error: BaseException | None = None
        self._is_stopped = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        tasks = [self._join, *[self._fetch] * _FETCHERS]
        self._threads = [threading.Thread(target=self._guarded, args=(task,), daemon=True) for task in tasks]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self.changed:
            self._is_stopped = True
            self.changed.notify_all()
        if not self.is_complete:
            self._give_up()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raise what a thread raised."""
        if self._error is not None:
            raise self._error

    def take(self, index: int, segment: Path) -> None:
        """Take a segment that was drawn here. Its file is removed when it was joined and `release`d."""
        with self.changed:
            self.own.add(index)
            self._files.setdefault(index, segment)
            if self._files[index] != segment:  # it was fetched meanwhile
                self._used.add(segment)
            self.changed.notify_all()

    def release(self, segment: Path) -> None:
        """Take that a file which was drawn here has no other use."""
        with self.changed:
            self._drop(segment)

    def hint(self, index: int) -> None:
        """Take that a segment is kept by another worker: it is fetched soon."""
        with self.changed:
            if index not in self._files and index not in self._fetching:
                self._hints.append(index)
                self.changed.notify_all()

    def _drop(self, segment: Path) -> None:
        """Remove a file at the second of two calls."""
        if segment in self._used:
            segment.unlink(missing_ok=True)
        self._used.add(segment)

    def _guarded(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised where the lead checks
            with self.changed:
                self._error = self._error or error
                self.changed.notify_all()

    # --- joining ----------------------------------------------------------------------------------

    def _join(self) -> None:
        while self._joined < len(self._plan):
            with self.changed:
                self.changed.wait_for(lambda: self._is_stopped or self._joined in self._files)
                if self._is_stopped:
                    return
                index, path = self._joined, self._files[self._joined]
            if self._append(index, path):
                with self.changed:
                    self._joined += 1
                    self.changed.notify_all()
        self._joiner.finish()
        with self.changed:
            self.is_complete = True
            self.changed.notify_all()

    def _append(self, index: int, path: Path) -> bool:
        """Append a segment; return False if it is not good."""
        is_own = path.suffix == ".drawn"
        try:
            head = self._joiner.append(path, frames=len(self._plan.frames_of(index)))
        except SegmentError as error:
            if is_own:
                raise RenderError(f"a segment cannot be joined: {error}", code="encode.failed") from error
            with self.changed:
                self._refused.add(index)
                del self._files[index]
            path.unlink(missing_ok=True)
            self._tell(index, False)
            return False
        with self.changed:
            if is_own:
                self._drop(path)
            else:
                self.twice += min(head.twice, len(self._plan))
                path.unlink(missing_ok=True)
        return True

    # --- fetching ---------------------------------------------------------------------------------

    def _fetch(self) -> None:
        while True:
            with self.changed:
                while (picked := self._pick(monotonic())) is None:
                    if self._is_stopped or self.is_complete:
                        return
                    self.changed.wait(self._idle_s(monotonic()))
                index, share = picked
                self._fetching.add(index)
            path = self._folder / f"{index:03d}.kept"
            digest = self._plan.digest
            is_kept = share is None or self._slots.is_drawn(digest, index)
            came = is_kept and self._slots.fetch(digest, index, path)
            with self.changed:
                self._fetching.discard(index)
                is_bad = is_kept and not came
                if is_bad and index not in self.own:
                    self._tell(index, False)
                if is_bad and share is not None:
                    share.next += self._slots.parallel  # the lead draws it: what follows may be there
                else:
                    self._note(index, share, path if came else None)
                self.changed.notify_all()

    def _note(self, index: int, share: _Share | None, path: Path | None) -> None:
        now = monotonic()
        if path is not None:
            if index in self._files:
                path.unlink(missing_ok=True)
            else:
                self._files[index] = path
                self._tell(index, True)
        if share is None:
            return
        if path is None:
            share.was_missing, share.due = True, now + _EVERY_S
            return
        is_behind = not share.was_missing or now - share.came < self.usual_s / 2
        share.due, share.came = now if is_behind else now + _EARLY * self.usual_s, now

    def _pick(self, now: float) -> tuple[int, _Share | None] | None:
        """Return what to fetch now, and whose frontier that is."""
        if self._is_stopped:
            return None
        while self._hints:
            if self._is_wanted(index := self._hints.popleft()):
                return index, None
        count, step = min(len(self._plan), self._slots.count), self._slots.parallel
        for share in self._shares:
            while share.next < count and (share.next in self._files or share.next in self._refused):
                share.next += step
            if share.next < count and share.due <= now and self._is_wanted(share.next):
                return share.next, share
        return None

    def _is_wanted(self, index: int) -> bool:
        return index not in self._files and index not in self._fetching and index not in self._refused

    def _idle_s(self, now: float) -> float | None:
        """Return the seconds until something is to be fetched; None: not before there are news."""
        count = min(len(self._plan), self._slots.count)
        due = [share.due - now for share in self._shares if share.next < count and self._is_wanted(share.next)]
        return max(min(due), 0.01) if due else None

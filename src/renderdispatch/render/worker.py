"""How does a worker draw the segments of a plan that are missing, one after the other?

Drawing is done in the thread that calls `Worker.run`. Another one encodes the frames before it; a third one completes
the file of the segment before, while the next one is drawn; a fourth one commits it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Final

from attrs import frozen
from av.video.frame import VideoFrame

from renderdispatch.messages import Output
from renderdispatch.protocols import Commit, Slots
from renderdispatch.render.artist import Artist
from renderdispatch.render.choose import LOOK_EVERY_S, Choice, Draw, Look, Wait, place_of
from renderdispatch.render.consumer import Consumer
from renderdispatch.render.encoders import Encoder
from renderdispatch.render.features import Frame
from renderdispatch.render.plan import Part, Plan
from renderdispatch.render.segment import SegmentWriter

_AHEAD: Final = 2
"""What may wait for the encoder: enough that neither side waits for a slow frame of the other."""

_LOOKERS: Final = 8
"""How many looks are made at once: each waits for storage."""

_LARGE: Final = 4096 * 2304
"""Two encoders of pictures with more pixels would take too much memory."""


@frozen(kw_only=True)
class Tools:
    """What draws and encodes segments.

    Args:
        artist: Draws; in the thread that calls `Worker.run` alone.
        encoder: Encodes.
        output: The picture.
        folder: For the files of segments.
    """

    artist: Artist
    encoder: Encoder
    output: Output
    folder: Path


class Worker(ABC):
    """Draws segments until none is missing, and commits them.

    Args:
        tools: Draw and encode.
        plan: Of the video.
        slots: Where segments are kept.
        most: How many drawn segments may wait for their commit; None: any number.
    """

    def __init__(self, tools: Tools, plan: Plan, slots: Slots, *, most: int | None) -> None:
        self.tools, self.plan, self.slots = tools, plan, slots
        self.twice = 0
        """How many segments were drawn in vain."""

        self.drawn: Final[set[int]] = set()
        """The segments of which all frames were drawn here; the last ones are still being encoded."""

        self._most = most
        self._like = tools.artist.start()
        place = place_of(plan.digest, slots.share, slots.parallel)
        total = self.count_of(plan, slots)
        self.choice = Choice(total, share=slots.share, parallel=slots.parallel, place=place, now=monotonic())
        self._news = deque[tuple[int, bool]]()
        self._closing = deque[Future[object]]()
        self._committing = deque[Future[object]]()
        self._writers = set[SegmentWriter]()
        self._encoded = deque[Future[object]](maxlen=3)
        self._told = self._heard = 0
        self._encoding_error: BaseException | None = None

    @staticmethod
    @abstractmethod
    def count_of(plan: Plan, slots: Slots) -> int:
        """Return how many segments are to be drawn, the first ones of the plan."""

    @abstractmethod
    def progress(self, index: int, frames: int) -> None:
        """Take that so many frames of a segment were drawn; called for each frame. It may raise, to stop the work."""

    @abstractmethod
    def finished(self, index: int, segment: Path) -> None:
        """Take the complete file of a segment, in any thread, before it is committed."""

    @abstractmethod
    def committed(self, index: int, segment: Path, outcome: Commit) -> None:
        """Take what became of a segment, in any thread."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Wait for at most so many seconds, or until there are news. It may raise, to stop the work."""

    def tell(self, index: int, *, stands: bool) -> None:
        """Pass on, from any thread, that a segment is there, or that the one which is kept is bad."""
        self._news.append((index, stands))

    @property
    def has_news(self) -> bool:
        """Whether something was told that was not heard yet."""
        return bool(self._news)

    def is_known(self, index: int) -> bool:
        """Return whether a segment is known to be there, without a look at storage."""
        self._hear()
        return index in self.choice.standing

    def run(self) -> None:
        """Draw until there is nothing more to do."""
        with ExitStack() as stack:
            stack.callback(self._abandon)
            self._lookers, self._committer, self._closer = (
                _pool(stack, threads, name) for threads, name in ((_LOOKERS, "look"), (1, "commit"), (1, "close"))
            )
            stack.callback(self._give_up_encoding)
            self._encoding = stack.enter_context(Consumer(self._encode, ahead=_AHEAD))
            while (step := self._next()) is not None:
                self._do(step)
            self._await(self._closing, 0)
            self._end()

    def _end(self) -> None:
        """Wait for what is being committed."""
        self._await(self._committing, 0)

    def is_over(self) -> bool:
        """Return whether to end before all is drawn."""
        return False

    def _next(self) -> Draw | Look | Wait | None:
        self._hear()
        return None if self.is_over() else self.choice.next(monotonic())

    def _hear(self) -> None:
        while self._news:
            index, stands = self._news.popleft()
            if stands:
                self.choice.saw(index, monotonic(), stands=True)
            elif index not in self.drawn:
                self.choice.found_bad(index, monotonic())
        while self._heard < self.twice:
            self._heard += 1
            self.choice.was_in_vain()
        for under_way in (self._closing, self._committing):
            while under_way and under_way[0].done():
                under_way.popleft().result()

    def _do(self, step: Draw | Look | Wait) -> None:
        if isinstance(step, Look):
            found = self._lookers.map(lambda index: (index, self._is_drawn(index)), step.indices)
            for index, stands in found:
                self.looked(index, stands=stands)
        elif isinstance(step, Wait):
            self.wait(step.seconds)
        else:
            self._draw(step)

    def looked(self, index: int, *, stands: bool) -> None:
        """Take what a look found."""
        self.choice.saw(index, monotonic(), stands=stands)

    def part(self, index: int) -> Part:
        """Return what is needed to draw a segment; see `Plan.part`."""
        return self.plan.part(index, self._like)

    # --- one segment ------------------------------------------------------------------------------

    def _draw(self, step: Draw) -> None:
        index, tools = step.index, self.tools
        large = tools.output.width * tools.output.height > _LARGE
        self._await(self._closing, 0 if large else 1)
        if self._most is not None:
            self._await(self._committing, self._most)
        path = tools.folder / f"{index:03d}.drawn"
        begin = self.plan.frames_of(index).start
        began = monotonic()
        with self.part(index) as part:
            writer = SegmentWriter(path, tools.output, tools.encoder, digest=self.plan.digest, index=index, begin=begin)
            self._writers.add(writer)
            drawn = self._draw_frames(part, writer, contested=step.contested)
        total = part.end - part.begin
        took, is_whole = (monotonic() - began) * total / max(drawn, 1), drawn == total
        if not is_whole:
            self._encoding.put((writer, None))
            self.choice.drew(index, monotonic(), seconds=took, in_vain=drawn / total)
            self.looked(index, stands=True)
            return
        self.drawn.add(index)
        encoded = Future[object]()
        self._encoded.append(encoded)
        self._encoding.put((writer, encoded))
        self._closing.append(self._closer.submit(self._close, writer, encoded, index, path))
        self.choice.drew(index, monotonic(), seconds=took)

    def _draw_frames(self, part: Part, writer: SegmentWriter, *, contested: bool) -> int:
        """Draw the frames of a segment; return how many. They are fewer if another worker has drawn the segment."""
        look_at = monotonic() + LOOK_EVERY_S
        shown = 0
        pictures = self.tools.artist.pictures(_moments(self.tools.artist, part))
        for place, picture in zip(range(part.first, part.end), pictures, strict=True):
            if place >= part.begin:
                self._encoding.put((writer, picture.frame))
                shown += 1
            self.progress(part.index, shown)
            if shown == part.end - part.begin:
                continue
            if self.is_known(part.index):
                break
            if contested and monotonic() >= look_at:
                look_at = monotonic() + LOOK_EVERY_S
                if self._is_drawn(part.index):
                    break
        return shown

    def _encode(self, item: tuple[SegmentWriter, VideoFrame | Future[object] | None]) -> None:
        writer, what = item
        if what is None:
            writer.abandon()
            self._writers.discard(writer)
        elif isinstance(what, VideoFrame):
            try:
                writer.write_frame(what)
            except BaseException as error:
                self._encoding_error = error
                raise
        elif self._encoding_error is not None:  # a segment that lacks a frame is not completed
            what.set_exception(self._encoding_error)
        else:
            what.set_result(None)

    def _close(self, writer: SegmentWriter, encoded: Future[object], index: int, path: Path) -> None:
        with writer:
            encoded.result()
            twice, self._told = self.twice - self._told, self.twice
            writer.close(twice)
        self._writers.discard(writer)
        self.finished(index, path)
        self._committing.append(self._committer.submit(self._commit, index, path))

    def _commit(self, index: int, path: Path) -> None:
        outcome = self.slots.commit(self.plan.digest, index, path) if index < self.slots.count else "kept"
        if outcome == "twice":
            self.twice += 1
        self.committed(index, path, outcome)

    def _is_drawn(self, index: int) -> bool:
        return index < self.slots.count and self.slots.is_drawn(self.plan.digest, index)

    def _give_up_encoding(self) -> None:
        """Let go of threads that wait for frames which will not be encoded."""
        for encoded in self._encoded:
            encoded.cancel()

    def _abandon(self) -> None:
        """Close what is still open, after all threads have ended."""
        for writer in self._writers:
            writer.abandon()

    def _await(self, under_way: deque[Future[object]], most: int) -> None:
        """Wait until at most so many are under way."""
        while len(under_way) > most:
            under_way.popleft().result()


def _moments(artist: Artist, part: Part) -> Iterator[tuple[Any, Frame]]:
    state = part.state
    for frame in part.features:
        state = artist.step(state, frame)
        yield state, frame


def _pool(stack: ExitStack, threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool; at the end of the block, what has not begun is dropped."""
    pool = ThreadPoolExecutor(threads, f"renderdispatch-{name}")
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool

"""How does the lead of a render make a video of segments?

It makes the plan, or takes the one that is kept. It draws its share, and then what is missing; it takes over what is
kept already. Sound is encoded meanwhile, and segments are joined as they come. Nothing depends on storage: without it
the lead draws all, and joins what is on its own disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

from attrs import frozen

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import RenderOrder, RenderStats, SegmentCounts
from renderdispatch.plumbing.unkept_slots import UnkeptSlots
from renderdispatch.protocols import Commit, Report, Slots
from renderdispatch.render.artist import Artist
from renderdispatch.render.choose import Draw, Look, Wait
from renderdispatch.render.device import picture_version
from renderdispatch.render.features import Frame
from renderdispatch.render.gather import Gatherer
from renderdispatch.render.join import Joiner
from renderdispatch.render.plan import Plan, hash_file, plan_digest
from renderdispatch.render.plan_file import PlanError
from renderdispatch.render.planner import KeptOrPlanned, Planner, keep_audio
from renderdispatch.render.poster import write_poster
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.render.segment import encoder_config
from renderdispatch.render.song import open_song, read_song
from renderdispatch.render.sound import Sound
from renderdispatch.render.tags import Song
from renderdispatch.render.versions import scene_version
from renderdispatch.render.worker import Tools, Worker

_log: Final = logging.getLogger(__name__)

_BEAT_S: Final = 0.5
"""How often the progress is reported while nothing is drawn."""


@frozen(kw_only=True)
class Drawing:
    """How a video is drawn.

    Args:
        renderer: The scene.
        song: What is known of the song.
        tools: Draw and encode.
        device: The class of what draws and encodes.
    """

    renderer: VideoRenderer
    song: Song
    tools: Tools
    device: str


def render_segments(
    order: RenderOrder, audio: Path, output: Path, report: Report, *, drawing: Drawing, slots: Slots
) -> RenderStats:
    """Render a video in segments to the new file ``output``, and its poster beside it, if there is to be one.

    See `renderdispatch.protocols.SupportsSegments`.
    """
    tools, picture = drawing.tools, order.output
    config = encoder_config(picture, tools.encoder)
    report = _rising(report)
    with ExitStack() as stack:
        audio = keep_audio(order, audio, tools.folder)
        planning = stack.enter_context(_planned(order, audio, report, drawing=drawing, slots=slots))
        plan = planning.plan
        sound = stack.enter_context(Sound(tools.folder / "sound", rate=plan.rate, layout=plan.layout))
        stack.enter_context(_encoded(sound, order, audio))
        joiner = stack.enter_context(
            Joiner(
                output,
                picture,
                frames=plan.frames,
                segments=len(plan),
                sound=sound,
                tags=drawing.song.tags,
                digest=plan.digest,
                config=config,
            )
        )
        lead = _Lead(planning, joiner, report, tools=tools)
        with lead.gathering(lambda: sound.fail(RuntimeError("the render was given up"))) as gatherer:
            lead.run()
        if order.poster is not None:
            _draw_poster(tools.artist, plan, output.with_suffix(".jpg"))
        return RenderStats(
            width=picture.width,
            height=picture.height,
            fps=picture.fps,
            frames=plan.frames,
            duration_s=float(plan.duration),
            rendered_by=tools.artist.rendered_by,
            encoded_by=tools.encoder.name,
            device_class=drawing.device,
            picture_version=picture_version(),
            segments=len(plan),
            segments_taken=len(plan) - len(gatherer.own),
            segments_twice=lead.twice + gatherer.twice,
            warnings=(*plan.warnings, *drawing.song.warnings),
        )


def _rising(report: Report) -> Report:
    """Return what reports the most frames so far: a plan that is made anew in the midst begins at 0 again."""
    most = of = 0

    def reported(done: int, total: int) -> None:
        nonlocal most, of
        if done >= most:
            most, of = done, total
        report(most, of)

    return reported


class _Planning:
    """A plan, and whether others can read it.

    Args:
        plan: The plan.
        slots: Where its segments are kept.
        kept: Whether the plan is kept there, when that is known.
    """

    def __init__(self, plan: Plan, slots: Slots, kept: Future[bool]) -> None:
        self.plan, self.slots = plan, slots
        self._kept = kept

    @property
    def is_kept(self) -> bool:
        """Whether others can read the plan by now.

        Raises:
            SceneError: The scene failed at a frame.
        """
        return self._kept.done() and self._kept.result()

    def when_kept(self, call: Callable[[], None]) -> None:
        """Call this once others can read the plan, from any thread; never if they will not."""

        def done(kept: Future[bool]) -> None:
            if not kept.cancelled() and kept.exception() is None and kept.result():
                call()

        self._kept.add_done_callback(done)


@contextmanager
def _planned(order: RenderOrder, audio: Path, report: Report, *, drawing: Drawing, slots: Slots) -> Iterator[_Planning]:
    """Take the plan that is kept, or make it; a new one is kept as soon as it is complete."""
    tools = drawing.tools

    def digest_for(audio_sha256: str) -> str:
        return plan_digest(
            order,
            audio_sha256=audio_sha256,
            scene=scene_version(drawing.renderer),
            device=drawing.device,
            encoder=tools.encoder.name,
        )

    making = Planner(
        order, audio, tools.folder, artist=tools.artist, digest=digest_for, cover=drawing.song.cover, report=report
    )
    if (found := _read_plan(slots, tools.folder)) is not None:
        if found.digest == digest_for(hash_file(audio)):
            kept = Future[bool]()
            kept.set_result(True)
            with KeptOrPlanned(found, making) as plan:
                yield _Planning(plan, slots, kept)
            return
        _log.warning("another plan is kept for this video: nothing that is drawn will be kept")
        slots = UnkeptSlots()
    with making as planner, ThreadPoolExecutor(1, "renderdispatch-keep-plan") as keeper:
        own = slots

        def keep() -> bool:
            if own.put_plan(planner.finish()):
                return True
            standing = _read_plan(own, tools.folder)
            return standing is not None and standing.digest == planner.plan.digest

        kept = keeper.submit(keep)
        try:
            yield _Planning(planner.plan, slots, kept)
            kept.result()
        except BaseException:
            planner.__exit__(None, None, None)  # which ends a wait for states that will not come
            raise


def _read_plan(slots: Slots, folder: Path) -> Plan | None:
    try:
        return Plan.read(slots.read_plan, folder)
    except PlanError as error:
        _log.warning("the plan that is kept cannot be used: %s", error)
        return None


@contextmanager
def _encoded(sound: Sound, order: RenderOrder, audio: Path) -> Iterator[None]:
    """Encode the song in a thread of its own."""
    stop = Event()

    def encode() -> None:
        try:
            with open_song(audio, order) as reader:
                for block in read_song(reader, longest_s=order.max_duration):
                    if stop.is_set():
                        return
                    sound.write(block)
            sound.finish()
        except BaseException as error:  # noqa: BLE001 - raised where the sound is waited for
            sound.fail(error)

    thread = Thread(target=encode, name="renderdispatch-sound", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draw_poster(artist: Artist, plan: Plan, path: Path) -> None:
    """Draw the brightest frame once more, alone: another worker may have drawn its segment."""
    index = plan.brightest

    def moments(features: Iterator[Frame], state: Any) -> Iterator[tuple[Any, Frame]]:
        for frame in features:
            state = artist.step(state, frame)
            if frame.index >= index - plan.run_up:
                yield state, frame
            if frame.index == index:
                return

    artist.keep, artist.kept = index, None
    with plan.part(plan.segment_with(index), artist.start()) as part:
        for _ in artist.pictures(moments(iter(part.features), part.state)):
            pass
    assert artist.kept is not None
    write_poster(path, artist.kept)


class _Lead(Worker):
    """Draws, gathers what others drew, and tells how far the video is."""

    def __init__(self, planning: _Planning, joiner: Joiner, report: Report, *, tools: Tools) -> None:
        super().__init__(tools, planning.plan, planning.slots, most=None)
        self._planning, self._joiner, self._report = planning, joiner, report
        self._telling = Lock()
        self._last_counts: tuple[SegmentCounts, bool] | None = None
        self._frames = [len(planning.plan.frames_of(index)) for index in range(len(planning.plan))]

    @contextmanager
    def gathering(self, give_up: Any) -> Iterator[Gatherer]:
        """Within the block, segments are joined."""
        self._gatherer = Gatherer(
            self.plan,
            self.slots,
            self._joiner,
            self.tools.folder,
            tell=lambda index, stands: self.tell(index, stands=stands),
            give_up=give_up,
        )
        with self._gatherer:
            self._planning.when_kept(self._tell_of_plan)  # the first frame may take long, and helpers need not wait
            yield self._gatherer

    @staticmethod
    def count_of(plan: Plan, slots: Slots) -> int:
        """Return that all are to be drawn: those for which there is no place are joined from the disk."""
        del slots
        return len(plan)

    def progress(self, index: int, frames: int) -> None:
        """Report the frames of all segments that are there, and of the one that is drawn."""
        self._gatherer.check()
        self._tell_progress(0 if index in self.choice.standing else frames)

    def finished(self, index: int, segment: Path) -> None:
        """Join the segment."""
        self._gatherer.take(index, segment)

    def committed(self, index: int, segment: Path, outcome: Commit) -> None:
        """Let go of the file."""
        del index, outcome
        self._gatherer.release(segment)

    def looked(self, index: int, *, stands: bool) -> None:
        """Fetch what is there."""
        super().looked(index, stands=stands)
        if stands:
            self._gatherer.hint(index)

    def wait(self, seconds: float) -> None:
        """Wait for news, and report meanwhile."""
        self._gatherer.check()
        self._tell_progress(0)
        with self._gatherer.changed:
            if not (self._gatherer.is_complete or self.has_news):
                self._gatherer.changed.wait(min(seconds, _BEAT_S))

    def _next(self) -> Draw | Look | Wait | None:
        if self._gatherer.is_complete:
            return None
        self._gatherer.usual_s = self.choice.usual_s
        return super()._next() or Wait(_BEAT_S)

    def _end(self) -> None:
        """Wait for no commit: the video is complete."""
        self._tell_progress(0)

    def _tell_of_plan(self) -> None:
        """Have helpers started, if there is something left for them."""
        with suppress(RenderStopped):  # the thread that draws hears of that too
            if not self._gatherer.is_complete:
                self._tell_counts()

    def _tell_progress(self, drawn: int) -> None:
        drawn += sum(self._frames[index] for index in self.choice.standing)
        self._report(drawn, self.plan.frames)
        self._tell_counts()

    def _tell_counts(self) -> None:
        with self._telling:
            own = set(self.drawn)  # which count before they are committed
            counts = SegmentCounts(total=len(self.plan), standing=len(self.choice.standing | own), own=len(own))
            told = counts, self._planning.is_kept
            if told != self._last_counts:
                self._last_counts = told
                self.slots.report(counts, planned=told[1])

"""How is the plan of a video made, so that drawing can begin before it is complete?

The song is decoded once, and analysed meanwhile. After that all is known but the states of the scene: these are stepped
through in a thread of its own, and each segment can be drawn as soon as its own state is there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from attrs import evolve

from renderdispatch.errors import AudioError, SceneError
from renderdispatch.messages import RenderOrder
from renderdispatch.plumbing.files import read_chunks
from renderdispatch.protocols import Report
from renderdispatch.render.artist import Artist
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.consumer import Consumer
from renderdispatch.render.covers import Cover
from renderdispatch.render.features import RECORD_BYTES, Analyser, Features, Frame
from renderdispatch.render.plan import Plan, hash_file
from renderdispatch.render.plan_file import DATA_AT, Index, PlanError, common_of, hashed, packed_cover
from renderdispatch.render.poster import PosterMoment
from renderdispatch.render.snapshots import dump_state
from renderdispatch.render.song import open_song, read_song

_log = logging.getLogger(__name__)

_AHEAD: Final = 2
"""Blocks of sound that may wait for the analysis."""


def keep_audio(order: RenderOrder, audio: Path, folder: Path) -> Path:
    """Return a file with the order's audio that does not change: a copy, if ``audio`` is the submitted file itself.

    Args:
        order: The order.
        audio: The file.
        folder: For the copy.

    Raises:
        AudioError: ``audio.unreadable``.
    """
    if order.audio_mtime_ns is None:
        return audio
    copy = folder / "audio"
    chunks = read_chunks(audio)
    with copy.open("wb") as file:
        while chunk := _next_of(chunks):
            file.write(chunk)
    return copy


def _next_of(chunks: Iterator[bytes]) -> bytes:
    """Return the next of the chunks that are read, or nothing at the end; writing them is blamed elsewhere."""
    try:
        return next(chunks, b"")
    except OSError as error:
        raise AudioError(f"the audio cannot be read: {error.strerror}", code="audio.unreadable") from error


class Planner:
    """Makes the plan of an order. Use it with ``with``: `plan` is there when the block begins.

    Args:
        order: The order.
        audio: The song; it does not change, see `keep_audio`.
        folder: For the plan's file; it exists as long as the plan is used.
        artist: Draws the scene. It may draw in one thread while its states are stepped through in another one.
        digest: Returns the plan's digest for the audio's hash; see `renderdispatch.render.plan.plan_digest`.
        cover: The song's cover, for those who do not have the song.
        report: Called while the song is read.

    Raises:
        AudioError: When the block begins: the song cannot be read, or the range is shorter than half a frame
            (``audio.too-short``).
    """

    plan: Plan
    """The plan. Its states come one after the other; who needs one waits for it."""

    def __init__(
        self,
        order: RenderOrder,
        audio: Path,
        folder: Path,
        *,
        artist: Artist,
        digest: Callable[[str], str],
        cover: Cover | None = None,
        report: Report = lambda _done, _total: None,
    ) -> None:
        self._order = order
        self._audio = audio
        self._path = folder / "plan"
        self._artist = artist
        self._digest = digest
        self._cover = cover
        self._report = report
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            hashing = ThreadPoolExecutor(1, "renderdispatch-hash")
            stack.callback(hashing.shutdown, cancel_futures=True)
            audio_sha256 = hashing.submit(hash_file, self._audio)
            with open_song(self._audio, self._order) as sound:
                features = stack.enter_context(self._analyse(sound))
            digest = self._digest(audio_sha256.result())
            self._states = _States(self._path, features, self._artist, self._cover)
            self.plan = Plan(
                digest=digest,
                audio_sha256=audio_sha256.result(),
                frames=len(features),
                fps=self._order.output.fps,
                rate=sound.rate,
                layout=sound.layout,
                duration=sound.duration,
                run_up=self._artist.run_up or 0,
                warnings=sound.warnings,
                source=self._states,
            )
            stack.enter_context(self._states.stepped(self.plan))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def finish(self) -> Path:
        """Wait until the plan is complete, and return its file.

        Raises:
            SceneError: The scene failed at a frame.
        """
        brightest = self._states.brightest()
        if self._order.poster is not None and self._states.light_error is not None:
            raise self._states.light_error
        index = Index(
            audio_sha256=self.plan.audio_sha256,
            frames=self.plan.frames,
            fps=self.plan.fps,
            rate=self.plan.rate,
            layout=self.plan.layout,
            duration=self.plan.duration,
            run_up=self.plan.run_up,
            warnings=self.plan.warnings,
            tops_db=self._states.features.tops_db,
            brightest=brightest,
            common=self._states.common_sha256,
            cover_bytes=self._states.cover_bytes,
            segments=self._states.segments,
        )
        with self._path.open("r+b") as file:
            file.write(index.pack(self.plan.digest))
        return self._path

    def _analyse(self, sound: SoundReader) -> Features:
        fps = self._order.output.fps
        expected = max(round(sound.expected_s * fps), 1)
        with Analyser(self._path, rate=sound.rate, fps=fps, offset=DATA_AT) as analyser:
            with Consumer(analyser.feed, ahead=_AHEAD) as analysis:
                for block in read_song(sound, longest_s=self._order.max_duration):
                    analysis.put(block)
                    self._report(0, expected)
            frames = round(sound.duration * fps)
            if frames < 1:
                what = f"{float(sound.duration):g} s of audio is less than one frame at {fps} frames a second"
                raise AudioError(what, code="audio.too-short")
            return analyser.finish(frames)


class _States:
    """The features and the states of a plan that is being made, in its file."""

    def __init__(self, path: Path, features: Features, artist: Artist, cover: Cover | None) -> None:
        self.features: Final = features
        self.cover: Final = cover
        self.segments: Final[list[tuple[str, int]]] = []
        self.common_sha256 = ""
        self._packed_cover = packed_cover(cover)
        self.cover_bytes: Final = len(self._packed_cover)
        self._path = path
        self._artist = artist
        self._places: list[tuple[int, int]] = []
        self._brightest: int | None = None
        self.light_error: SceneError | None = None
        self._error: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def stepped(self, plan: Plan) -> ExitStack:
        """Step through all states in a thread of its own, until the end of the block."""
        stack = ExitStack()
        thread = threading.Thread(target=self._run, args=(plan,), name="renderdispatch-plan", daemon=True)
        stack.callback(thread.join)
        stack.callback(self._close)
        thread.start()
        return stack

    def segment(self, index: int, drawn: range) -> tuple[Features, bytes, Path | None]:
        """Return the features of frames and the state of a segment, as soon as it is there."""
        self._wait(lambda: len(self._places) > index)
        begin, size = self._places[index]
        with self._path.open("rb") as file:
            file.seek(begin)
            state = file.read(size)
        return self.features.slice(drawn.start, drawn.stop), state, None

    def brightest(self) -> int:
        """Return the index of the brightest frame, when all states are there."""
        self._wait(lambda: self._brightest is not None)
        assert self._brightest is not None
        return self._brightest

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: until() or self._error is not None or self._is_closed)
            if until():
                return
            if self._error is not None:
                raise self._error
        raise RuntimeError("the planner is closed")

    def _close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _run(self, plan: Plan) -> None:
        try:
            self._step(plan)
        except BaseException as error:  # noqa: BLE001 - raised where the states are needed
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _step(self, plan: Plan) -> None:
        firsts = {plan.drawn_for(index).start: plan.drawn_for(index) for index in range(len(plan))}
        moment = PosterMoment(plan.frames, plan.fps)
        state = self._artist.start()
        with self._path.open("ab") as end, self.features.slice(0, plan.frames) as features:
            common = common_of(self.features, self._packed_cover)
            self.common_sha256 = hashed(common)
            end.write(common)
            for frame in features:
                if frame.index in firsts:
                    self._keep(dump_state(state), firsts[frame.index], end)
                state = self._artist.step(state, frame)
                moment.see(frame.index, self._light(state, frame))
                if self._is_closed:
                    return
        with self._changed:
            self._brightest = moment.best
            self._changed.notify_all()

    def _light(self, state: Any, frame: Frame) -> float:
        """Return how bright a frame is. A scene that cannot tell fails only where a poster is wanted."""
        try:
            return self._artist.light(state, frame)
        except SceneError as error:
            self.light_error = self.light_error or error
            return 0.0

    def _keep(self, state: bytes, drawn: range, end: BinaryIO) -> None:
        """Keep the state before the first of the frames that are drawn for a segment."""
        begin = end.tell()
        end.write(state)
        end.flush()
        with self._path.open("rb") as file:
            file.seek(DATA_AT + drawn.start * RECORD_BYTES)
            records = file.read(len(drawn) * RECORD_BYTES)
        with self._changed:
            self._places.append((begin, len(state)))
            self.segments.append((hashed(records, state), len(state)))
            self._changed.notify_all()


class KeptOrPlanned:
    """A plan that is kept. If a part of it cannot be read, it is made anew from the song.

    So storage that goes away costs time, and not the render. Use it with ``with``, which returns the plan.

    Args:
        kept: The plan.
        planner: Makes the same one.
    """

    def __init__(self, kept: Plan, planner: Planner) -> None:
        self._kept = kept
        self._planner = planner
        self._stack = ExitStack()
        self._is_made = False
        self._making = threading.Lock()
        self.cover: Final = kept.cover

    def __enter__(self) -> Plan:
        return evolve(self._kept, source=self)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def brightest(self) -> int:
        """Return the index of the brightest frame."""
        return self._kept.brightest

    def segment(self, index: int, drawn: range) -> tuple[Features, bytes, Path | None]:
        """Return the features of frames and the state of a segment, and a file to be removed after their use."""
        if not self._is_made:
            try:
                return self._kept.source.segment(index, drawn)
            except PlanError as error:
                _log.warning("the plan is made anew: %s", error)
        return self._made().source.segment(index, drawn)

    def _made(self) -> Plan:
        with self._making:
            if not self._is_made:
                self._stack.enter_context(self._planner)
                self._is_made = True
        if self._planner.plan.digest != self._kept.digest:
            raise PlanError("the plan that is kept cannot be read, and another one was made")
        return self._planner.plan

"""Where does the renderer run: in this process, or in one of its own?

In production in one of its own. A scene that crashes, leaks or hangs in a driver takes nothing with it, and a cancel
ends it at once. `child_main` is what runs there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import field, frozen

from renderdispatch.errors import (
    FaultName,
    GpuUnavailableError,
    InvalidRequestError,
    RenderError,
    RenderStalled,
    SceneError,
)
from renderdispatch.messages import (
    FaultDomain,
    Helped,
    HelperOrder,
    JobError,
    Message,
    RenderOrder,
    RenderRequest,
    RenderStats,
)
from renderdispatch.plumbing.failures import is_disk_full, job_error
from renderdispatch.protocols import (
    Renderer,
    Report,
    Slots,
    SupportsGpu,
    SupportsGpuReason,
    SupportsImages,
    SupportsParams,
    SupportsPreview,
    SupportsSceneFiles,
    SupportsSegments,
)
from renderdispatch.runner.in_place import checked
from renderdispatch.runner.memory import MemoryWatch, most_bytes
from renderdispatch.runner.probe import renders_here
from renderdispatch.runner.process import SupervisedProcess, describe_exit, events_pipe
from renderdispatch.runner.renderers import SHIPPED, find_renderer, load_renderer
from renderdispatch.runner.slot_calls import PipeSlots, SlotCall, SlotsServer, SlotsShape, shape_of
from renderdispatch.runner.stalls import Stalls


class RenderHost(Protocol):
    """Where renderers run, for whatever scene an order names."""

    def __call__(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots | None = None
    ) -> RenderStats:
        """Render as `Renderer.render` does; with slots as `SupportsSegments.render_segments`, where there is one."""

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw segments as `SupportsSegments.help` does."""


_log: Final = logging.getLogger("renderdispatch.runner")

_MOST_FRAMES: Final = (1 << 53) - 1
"""What every reader of JSON takes for the number that it is."""

_REPORT_EVERY_S: Final = 0.1
_CHECK_EVERY_S: Final = 0.2


class RenderFailed(RenderError):
    """A failure that was already described, on the other side of a pipe."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message, code=error.code)
        self.fault: FaultName = error.fault.value  # type: ignore[misc]  # elsewhere it belongs to the class


def check_renderer(renderer: Renderer, wanted: RenderOrder | HelperOrder | RenderRequest) -> None:
    """Refuse what this renderer can never do.

    Raises:
        InvalidRequestError: A parameter is wrong, the file is missing that the scene draws, or it draws no images.
        GpuUnavailableError: A GPU is required, and this renderer would draw on the CPU.
    """
    if isinstance(renderer, SupportsParams):
        renderer.check_params(wanted.params)
    if isinstance(renderer, SupportsSceneFiles) and wanted.scene_file is None:
        message = f"scene {wanted.scene!r} draws a Shadertoy file: pass its path as the scene"
        raise InvalidRequestError(message, code="scene.file")
    if wanted.images and not (isinstance(renderer, SupportsImages) and renderer.draws_images):
        message = f"scene {wanted.scene!r} draws no images; leave them out, or pass a Shadertoy file that draws them"
        raise InvalidRequestError(message, code="image.unused")
    if wanted.require_gpu and not (isinstance(renderer, SupportsGpu) and renderer.uses_gpu()):
        why = f": {renderer.why_no_gpu()}" if isinstance(renderer, SupportsGpuReason) else ""
        raise GpuUnavailableError(f"a GPU is required, but scene {wanted.scene!r} draws on the CPU here{why}")


def with_preview(renderer: Renderer, scene: str) -> SupportsPreview:
    """Return the renderer if it can draw a single frame.

    Raises:
        InvalidRequestError: ``preview.unsupported``.
    """
    if isinstance(renderer, SupportsPreview):
        return renderer
    message = f"scene {scene!r} has no preview; render a second of it: --start 0:30 --duration 1"
    raise InvalidRequestError(message, code="preview.unsupported")


@frozen
class InProcessRender:
    """Renders in this very process.

    Args:
        renderers: Scenes beside those that are registered.
    """

    renderers: Mapping[str, Renderer] = field(factory=dict)

    def __call__(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots | None = None
    ) -> RenderStats:
        """Render; see `RenderHost`."""
        renderer = self._renderer(order)
        with _kept_alive(order), checked(renderer, order, audio, report) as reported:
            heard = _in_plain_numbers(reported)
            if slots is not None and isinstance(renderer, SupportsSegments):
                stats = renderer.render_segments(order, audio, output, heard, slots=slots)
            else:
                stats = _in_one_piece(renderer.render(order, audio, output, heard), order)
        if not isinstance(stats, RenderStats):
            raise SceneError(f"scene {order.scene!r} returned {type(stats).__name__}, not RenderStats")
        if not output.is_file():
            raise SceneError(f"scene {order.scene!r} wrote no video")
        return stats

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw segments; a scene that knows none draws none."""
        renderer = self._renderer(order)
        if not isinstance(renderer, SupportsSegments):
            return Helped(reason=f"scene {order.scene!r} is drawn in one piece")
        with _kept_alive(order):
            return renderer.help(order, folder, _in_plain_numbers(report), slots=slots)

    def preview(self, order: RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None) -> int:
        """Draw one frame; see `SupportsPreview`.

        Raises:
            InvalidRequestError: ``preview.unsupported``: the scene cannot draw a single frame.
        """
        renderer = self._renderer(order)
        with _kept_alive(order):
            return with_preview(renderer, order.scene).preview(order, audio, picture, _in_plain_numbers(report), at=at)

    def _renderer(self, order: RenderOrder | HelperOrder) -> Renderer:
        renderer = self.renderers.get(order.scene) or find_renderer(order.scene)
        check_renderer(renderer, order)
        return renderer


def _in_one_piece(stats: RenderStats, order: RenderOrder) -> RenderStats:
    """Return the facts of a video that no helper could draw a part of, with a warning if there were to be helpers."""
    if order.parallel == 1 or not isinstance(stats, RenderStats):
        return stats
    _log.info("job %s: scene %r is drawn in one piece, without helpers", order.job_id, order.scene)
    return stats.drawn_alone(f"scene {order.scene!r} is drawn in one piece")


@contextlib.contextmanager
def _kept_alive(order: RenderOrder | HelperOrder) -> Iterator[None]:
    """Keep the scene from ending the process that hosts it."""
    try:
        yield
    except SystemExit as error:
        raise SceneError(f"scene {order.scene!r} tried to exit the process (status {error.code!r})") from error


def _in_plain_numbers(report: Report) -> Report:
    """Let renderers count as they like: in NumPy's integers, in floats, with -1 or None for an unknown number."""
    return lambda frames, total: report(_plain(frames), _plain(total))


def _plain(said: Any) -> int:
    try:
        count = int(said)
    except (TypeError, ValueError, OverflowError):
        count = 0
    return min(max(0, count), _MOST_FRAMES)


# --- a process of its own -------------------------------------------------------------------------


class _Scene(Message):
    """The first line that a render process gets: it imports the scene, also while the audio is still fetched."""

    name: str
    where: str | None


class _Still(Message):
    """One frame is wanted, and no video."""

    at: float | None


class _Video(Message):
    """What a task renders, or draws one frame of."""

    order: RenderOrder
    audio: Path
    output: Path
    still: _Still | None = None


class _Help(Message):
    """Segments are wanted, and no video."""

    order: HelperOrder
    folder: Path


class _Task(Message):
    """The second line: a video, or help with one."""

    video: _Video | None = None
    help: _Help | None = None
    slots: SlotsShape | None = None


class _News(Message):
    """A line of the render process: how far it is, a call of its slots, or how it ended."""

    frames: int = 0
    total: int = 0
    call: SlotCall | None = None
    stats: RenderStats | None = None
    shown: int | None = None
    helped: Helped | None = None
    error: JobError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the task is done."""
        return self.stats is not None or self.shown is not None or self.helped is not None


class SupervisedRender:
    """Renders in a process of its own, behind the supervisor; ended as soon as ``report`` raises.

    Leaving the context manager ends a process that was started ahead and never used.

    Args:
        renderers: Scenes beside those that are registered, each as ``"package.module:name"`` or
            ``"/folder/file.py:name"``, imported there.
        hold: A descriptor that stays open until nothing of a render runs any more; see `SupervisedProcess`.
    """

    def __init__(self, renderers: Mapping[str, str] | None = None, *, hold: int | None = None) -> None:
        self.renderers = dict(renderers or {})
        self._hold = hold
        self._forked: SupervisedProcess | None = None
        self._prepared: SupervisedProcess | None = None

    def __enter__(self) -> SupervisedRender:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._forked, self._prepared):
            if process is not None:
                process.end()

    def fork(self) -> None:
        """Fork the process of the next render from this one, which must have one thread, and no secrets yet.

        It shares what is imported here, and so starts in milliseconds. If the fork fails, a new process is started.
        """
        with contextlib.suppress(OSError):
            self._forked = SupervisedProcess(child_main, hold=self._hold)

    def prepare(self, scene: str) -> SupervisedProcess:
        """Have the process of the next render import its scene, ahead of the audio.

        Raises:
            RenderError: ``renderer.died``: it could not be started.
        """
        process, self._forked = self._forked, None
        try:
            process = process or SupervisedProcess("renderdispatch.runner.child", hold=self._hold)
        except OSError as failure:
            if is_disk_full(failure):
                raise
            raise RenderError(f"the render process cannot be started: {failure}", code="renderer.died") from failure
        process.write_line(_Scene(name=scene, where=self.renderers.get(scene)).model_dump_json())
        self._prepared = process
        return process

    def __call__(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots | None = None
    ) -> RenderStats:
        """Render, and report at least five times a second, also while the renderer is silent.

        Raises:
            RenderError: As the renderer said; ``renderer.died`` when it ended without a word, or could not be started;
                ``render.stalled`` or ``memory.full`` when it was ended because of the order's limits.
        """
        task = _Task(
            video=_Video(order=order, audio=audio, output=output), slots=None if slots is None else shape_of(slots)
        )
        news = self._carry_out(task, order, report, slots)
        assert news.stats is not None
        return news.stats

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw segments, under the same limits. Raises what a render raises."""
        task = _Task(help=_Help(order=order, folder=folder), slots=shape_of(slots))
        news = self._carry_out(task, order, report, slots)
        assert news.helped is not None
        return news.helped

    def preview(self, order: RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None) -> int:
        """Draw one frame, under the same limits; see `SupportsPreview`. Raises what a render raises."""
        video = _Video(order=order, audio=audio, output=picture, still=_Still(at=at))
        news = self._carry_out(_Task(video=video), order, report, None)
        assert news.shown is not None
        return news.shown

    def _carry_out(self, task: _Task, order: RenderOrder | HelperOrder, report: Report, slots: Slots | None) -> _News:
        """Return the last news of a task, which is not an error."""
        process = self._prepared or self.prepare(order.scene)
        server = None if slots is None else SlotsServer(slots, process.write_line)
        finished = False
        try:
            process.write_line(task.model_dump_json())
            news = _News()
            guard = _Guard(order, process.pid, counts=order.scene in SHIPPED and order.scene not in self.renderers)
            while (line := process.read_line(_CHECK_EVERY_S)) != b"":
                said = None if line is None else _News.model_validate_json(line)
                if said is not None and said.call is not None:
                    if server is not None:
                        server.take(said.call)
                elif said is not None:
                    news = said
                    guard.stalls.heard(news.frames, news.total, now=time.monotonic())
                if news.error is not None:
                    finished = True
                    raise RenderFailed(news.error)
                if finished := news.is_last:
                    return news
                guard.check(news.frames)
                report(news.frames, news.total)
            how = describe_exit(process.end(wait_s=1), process.log)
            raise RenderError(f"the render process {how}", code="renderer.died")
        finally:
            self._prepared = None
            process.end(wait_s=5 if finished else 0)
            if server is not None:
                server.close()


class _Guard:
    """Ends a render that makes no progress, or takes more memory than it may, by an error.

    Args:
        order: The order, whose limits hold.
        pid: The process that those of the render descend from.
        counts: Whether its renderer is known to report frames.
    """

    def __init__(self, order: RenderOrder | HelperOrder, pid: int, *, counts: bool) -> None:
        now = time.monotonic()
        timeout_s = None if order.stall_timeout is None else order.stall_timeout.total_seconds()
        self._asked = order.memory_mib << 20
        self._most = most_bytes(self._asked)
        self._memory = MemoryWatch(pid, self._most, now=now)
        self.stalls = Stalls(timeout_s, counts=counts, now=now)

    def check(self, frames: int) -> None:
        """Raise an error if a limit is passed.

        Raises:
            RenderStalled: There was no new frame for too long.
            RenderError: ``memory.full``.
        """
        now = time.monotonic()
        if (quiet_s := self.stalls.quiet_s(now=now)) is not None:
            last = f"frame {frames}" if frames else "the start"
            raise RenderStalled(f"the render showed no new frame for {quiet_s:.0f} s after {last}, and was ended")
        if self._memory.is_over(now=now):
            mine = "its limit; Limits(memory_mib=...) raises it"
            limit = mine if self._most == self._asked else "nine tenths of what there is here"
            raise RenderError(
                f"the render took more than {self._most >> 20} MiB of memory, {limit}", code="memory.full"
            )


def child_main() -> None:
    """Render one task: read it from stdin, answer over the events descriptor."""
    from renderdispatch.render.device import numpy_held

    renders_here()
    with events_pipe() as events, numpy_held():
        lock = threading.Lock()
        last, done = 0.0, False

        def send(news: _News) -> None:
            with lock:
                events.write(news.model_dump_json().encode() + b"\n")

        def report(frames: int, total: int) -> None:
            nonlocal last, done
            now, all_drawn = time.monotonic(), 0 < total <= frames
            if now - last >= _REPORT_EVERY_S or (all_drawn and not done):  # after the last frame, none tells more
                last, done = now, all_drawn
                send(_News(frames=frames, total=total))

        scene = _Scene.model_validate_json(sys.stdin.buffer.readline())
        if scene.where is None and scene.name in SHIPPED:  # they do no linear algebra: its threads cost a start, idle
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        own: dict[str, Renderer] = {}
        with contextlib.suppress(Exception):  # the render meets it again
            own[scene.name] = _renderer_of(scene)
        line = sys.stdin.buffer.readline()
        if not line:  # what started this process changed its mind
            return
        task = _Task.model_validate_json(line)
        slots = None if task.slots is None else PipeSlots(task.slots, lambda call: send(_News(call=call)))
        if slots is not None:
            slots.listen()
        try:
            own = own or {scene.name: _renderer_of(scene)}
            answer = _carried_out(InProcessRender(own), task, report, slots)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a scene raises is answered, asyncio's cancel included
            traceback.print_exc()  # for the log; the one line of the error is for people
            send(_News(error=job_error(error, otherwise=FaultDomain.SCENE)))
        else:
            send(answer)


def _carried_out(host: InProcessRender, task: _Task, report: Report, slots: Slots | None) -> _News:
    if task.help is not None:
        assert slots is not None
        return _News(helped=host.help(task.help.order, task.help.folder, report, slots=slots))
    assert task.video is not None
    video = task.video
    if video.still is not None:
        return _News(shown=host.preview(video.order, video.audio, video.output, report, at=video.still.at))
    return _News(stats=host(video.order, video.audio, video.output, report, slots=slots))


def _renderer_of(scene: _Scene) -> Renderer:
    return find_renderer(scene.name) if scene.where is None else load_renderer(scene.name, scene.where)

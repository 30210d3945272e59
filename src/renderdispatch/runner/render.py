"""Where does the renderer run: in this process, or in one of its own?

In production in one of its own. A scene that crashes, leaks or hangs in a driver takes nothing with it, and a cancel
ends it at once. `child_main` is what runs there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from renderdispatch.errors import (
    FaultName,
    GpuUnavailableError,
    InvalidRequestError,
    RenderError,
    RenderStalled,
    SceneError,
)
from renderdispatch.messages import FaultDomain, JobError, Message, RenderOrder, RenderRequest, RenderStats
from renderdispatch.plumbing.failures import is_disk_full, job_error
from renderdispatch.protocols import (
    Renderer,
    Report,
    SupportsGpu,
    SupportsGpuReason,
    SupportsImages,
    SupportsParams,
    SupportsPreview,
    SupportsSceneFiles,
)
from renderdispatch.runner.in_place import checked
from renderdispatch.runner.memory import MemoryWatch, most_bytes
from renderdispatch.runner.probe import renders_here
from renderdispatch.runner.process import SupervisedProcess, describe_exit, events_pipe
from renderdispatch.runner.renderers import SHIPPED, find_renderer, load_renderer
from renderdispatch.runner.stalls import Stalls

RenderHost = Callable[[RenderOrder, Path, Path, Report], RenderStats]
"""``host(order, audio, output, report)``: as `Renderer.render`, for whatever scene the order names."""

_MOST_FRAMES: Final = (1 << 53) - 1
"""What every reader of JSON takes for the number that it is."""

_REPORT_EVERY_S: Final = 0.1
_CHECK_EVERY_S: Final = 0.2


class RenderFailed(RenderError):
    """A failure that was already described, on the other side of a pipe."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message, code=error.code)
        self.fault: FaultName = error.fault.value  # type: ignore[misc]  # elsewhere it belongs to the class


def check_renderer(renderer: Renderer, wanted: RenderOrder | RenderRequest) -> None:
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

    def __call__(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        renderer = self._renderer(order)
        with _kept_alive(order), checked(renderer, order, audio, report) as reported:
            stats = renderer.render(order, audio, output, _in_plain_numbers(reported))
        if not isinstance(stats, RenderStats):
            raise SceneError(f"scene {order.scene!r} returned {type(stats).__name__}, not RenderStats")
        if not output.is_file():
            raise SceneError(f"scene {order.scene!r} wrote no video")
        return stats

    def preview(self, order: RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None) -> int:
        """Draw one frame; see `SupportsPreview`.

        Raises:
            InvalidRequestError: ``preview.unsupported``: the scene cannot draw a single frame.
        """
        renderer = self._renderer(order)
        with _kept_alive(order):
            return with_preview(renderer, order.scene).preview(order, audio, picture, _in_plain_numbers(report), at=at)

    def _renderer(self, order: RenderOrder) -> Renderer:
        renderer = self.renderers.get(order.scene) or find_renderer(order.scene)
        check_renderer(renderer, order)
        return renderer


@contextlib.contextmanager
def _kept_alive(order: RenderOrder) -> Iterator[None]:
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


class _Task(Message):
    """The second line."""

    order: RenderOrder
    audio: Path
    output: Path
    still: _Still | None = None


class _News(Message):
    """A line of the render process: how far it is, or how it ended."""

    frames: int = 0
    total: int = 0
    stats: RenderStats | None = None
    shown: int | None = None
    error: JobError | None = None


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

    def __call__(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Render, and report at least five times a second, also while the renderer is silent.

        Raises:
            RenderError: As the renderer said; ``renderer.died`` when it ended without a word, or could not be started;
                ``render.stalled`` or ``memory.full`` when it was ended because of the order's limits.
        """
        news = self._carry_out(_Task(order=order, audio=audio, output=output), report)
        assert news.stats is not None
        return news.stats

    def preview(self, order: RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None) -> int:
        """Draw one frame, under the same limits; see `SupportsPreview`. Raises what a render raises."""
        news = self._carry_out(_Task(order=order, audio=audio, output=picture, still=_Still(at=at)), report)
        assert news.shown is not None
        return news.shown

    def _carry_out(self, task: _Task, report: Report) -> _News:
        """Return the last news of a task, which is not an error."""
        order = task.order
        process = self._prepared or self.prepare(order.scene)
        finished = False
        try:
            process.write_line(task.model_dump_json())
            news = _News()
            guard = _Guard(order, process.pid, counts=order.scene in SHIPPED and order.scene not in self.renderers)
            while (line := process.read_line(_CHECK_EVERY_S)) != b"":
                if line is not None:
                    news = _News.model_validate_json(line)
                    guard.stalls.heard(news.frames, news.total, now=time.monotonic())
                if news.error is not None:
                    finished = True
                    raise RenderFailed(news.error)
                if finished := news.stats is not None or news.shown is not None:
                    return news
                guard.check(news.frames)
                report(news.frames, news.total)
            how = describe_exit(process.end(wait_s=1), process.log)
            raise RenderError(f"the render process {how}", code="renderer.died")
        finally:
            self._prepared = None
            process.end(wait_s=5 if finished else 0)


class _Guard:
    """Ends a render that makes no progress, or takes more memory than it may, by an error.

    Args:
        order: The order, whose limits hold.
        pid: The process that those of the render descend from.
        counts: Whether its renderer is known to report frames.
    """

    def __init__(self, order: RenderOrder, pid: int, *, counts: bool) -> None:
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
        try:
            own = own or {scene.name: _renderer_of(scene)}
            answer = _carried_out(InProcessRender(own), task, report)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a scene raises is answered, asyncio's cancel included
            traceback.print_exc()  # for the log; the one line of the error is for people
            send(_News(error=job_error(error, otherwise=FaultDomain.SCENE)))
        else:
            send(answer)


def _carried_out(host: InProcessRender, task: _Task, report: Report) -> _News:
    if task.still is None:
        return _News(stats=host(task.order, task.audio, task.output, report))
    return _News(shown=host.preview(task.order, task.audio, task.output, report, at=task.still.at))


def _renderer_of(scene: _Scene) -> Renderer:
    return find_renderer(scene.name) if scene.where is None else load_renderer(scene.name, scene.where)

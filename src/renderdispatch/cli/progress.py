"""What does somebody see while a job runs?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from renderdispatch.cli.display import console, describe_stage
from renderdispatch.engine.views import segments_of
from renderdispatch.jobs import Job
from renderdispatch.messages import Stage
from renderdispatch.protocols import MAX_POSITION

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SPEED_WINDOW_S: Final = 10.0
_BATCH_WINDOW_S: Final = 600.0
_SHOWN_AT_ONCE: Final = 8
_LONGEST_NAME: Final = 40
_BESIDE: Final = 34
"""How many columns the stage, a short bar, the percentage and the time take."""


class Frames:
    """Counts the frames of a job, for rich to measure their speed over the last ten seconds and the time that is left.

    Args:
        progress: Keeps the count as a task that it does not draw.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._id = progress.add_task("frames", total=None, visible=False)

    def describe(self, done: int, total: int) -> str:
        """Note how many frames are done; return this in words. Fewer than before mean a new attempt."""
        task = self._progress.tasks[self._id]
        if done < task.completed:
            self._progress.reset(self._id)
        self._progress.update(self._id, completed=done, total=total)
        if not task.speed or task.time_remaining is None:
            return f"{done}/{total} frames"
        return f"{done}/{total} frames, {task.speed:.0f}/s, {timedelta(seconds=task.time_remaining)} left"


class PictureBar(ExitStack):
    """Draws how far a preview is. Draws only on a terminal.

    Args:
        quiet: Draw nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self._draw: Callable[..., None] | None = None
        if quiet or not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn())
        progress = Progress(*columns, console=console(), transient=True)
        self._draw = partial(progress.update, progress.add_task("starting", total=None))
        self.enter_context(progress)

    def show(self, frames: int, total: int) -> None:
        """Draw how many frames the scene was stepped through; with 0, the song is being read."""
        if self._draw is not None and total:
            what = "stepping through the song" if frames else "reading the song"
            self._draw(description=what, completed=frames, total=total if frames else None)


def describe_queue(ahead: int | None) -> str:
    """Return how many jobs come before a queued one, for people; a store counts up to `MAX_POSITION`."""
    if ahead is not None and ahead >= MAX_POSITION:
        return f"more than {MAX_POSITION:,} ahead"
    return f"{ahead} ahead" if ahead else "waiting for a free worker"


class ProgressBar(ExitStack):
    """Draws a job as it moves: stage, percent, frames a second and time left. Draws only on a terminal.

    Args:
        quiet: Draw nothing.
        ahead: Returns how many jobs come before a queued one, counted up to `MAX_POSITION`.
    """

    def __init__(self, *, quiet: bool, ahead: Callable[[Job], int | None]) -> None:
        super().__init__()
        self._ahead = ahead
        self._draw: Callable[..., None] | None = None
        if quiet or not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console(),
            transient=True,
            speed_estimate_period=SPEED_WINDOW_S,
        )
        self._frames = Frames(progress)
        self._draw = partial(progress.update, progress.add_task("queued", total=100, detail=""))
        self.enter_context(progress)

    def show(self, job: Job) -> None:
        """Draw the job as it is now."""
        if self._draw is not None:
            self._draw(description=describe_stage(job), completed=job.progress, detail=self._detail(job))

    def _detail(self, job: Job) -> str:
        if job.stage is Stage.QUEUED:
            return describe_queue(self._ahead(job))
        attempt = job.attempt
        if job.stage is Stage.RETRY_WAIT and attempt is not None and attempt.error is not None:
            return f"attempt {attempt.number}: {attempt.error.message[:60]}"
        if job.stage is not Stage.RENDERING or attempt is None or attempt.frames is None or not attempt.frames_total:
            return ""
        frames, shared = self._frames.describe(attempt.frames, attempt.frames_total), describe_shared(job)
        return fitted(frames if shared is None else f"{frames}, {shared}", console().width - _BESIDE)


def fitted(said: str, room: int) -> str:
    """Return as many parts of a list in words as there is room for, one at least."""
    while len(said) > room and ", " in said:
        said = said.rpartition(", ")[0]
    return said


def describe_shared(job: Job) -> str | None:
    """Return how many draw a job's video, and how many of its segments were taken over; None: its run draws alone."""
    segments = segments_of(job)
    if segments is None or (segments.drawing <= 1 and not segments.taken_over):
        return None
    taken = f"{segments.taken_over} of {segments.total} segments taken over"
    return f"{segments.drawing} draw, {taken}" if segments.drawing > 1 else taken


class BatchBars(ExitStack):
    """Draws a batch as it moves: how many videos are done, the time left, and what renders now. Only on a terminal.

    Args:
        quiet: Draw nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if quiet or not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(),
            transient=True,
            speed_estimate_period=_BATCH_WINDOW_S,
        )
        self._all = self._progress.add_task("starting", total=None)
        self.enter_context(self._progress)

    def show(self, running: Sequence[tuple[str, Job]], *, left: int, total: int, failed: int) -> None:
        """Draw the batch as it is now.

        Args:
            running: The videos that are rendered now, by name, with their jobs.
            left: How many jobs have not ended.
            total: How many jobs there are in all.
            failed: How many videos there will not be.
        """
        if self._progress is None:
            return
        part = sum(job.progress for _, job in running) / 100
        said = f"{total - left} of {total}" + (f", {failed} failed" if failed else "")
        self._progress.update(self._all, description=said, completed=total - left + part, total=total)
        shown = dict(running[:_SHOWN_AT_ONCE])
        for name in set(self._tasks) - set(shown):
            self._progress.remove_task(self._tasks.pop(name))
        for name, job in shown.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=100)
            what = f"  {name[:_LONGEST_NAME]}: {describe_stage(job)}"
            self._progress.update(self._tasks[name], description=what, completed=job.progress)

"""What does somebody see while a job runs?"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Final

from renderdispatch.cli.display import console, describe_stage
from renderdispatch.jobs import Job
from renderdispatch.messages import Stage

_WINDOW_S: Final = 10.0


class Speed:
    """Frames a second over the last ten seconds, and the time that is left."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, frames: int) -> None:
        """Note how many frames are done at ``now``, in seconds; fewer than before mean a new attempt."""
        if self._seen and frames < self._seen[-1][1]:
            self._seen.clear()
        if self._seen and frames == self._seen[-1][1]:
            return
        self._seen.append((now, frames))
        while now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    @property
    def fps(self) -> float | None:
        """Frames a second; None until two numbers are known."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began else None

    def left(self, frames: int, total: int) -> timedelta | None:
        """Return how long the frames still to come will take."""
        fps = self.fps
        return timedelta(seconds=round((total - frames) / fps)) if fps else None


class ProgressBar(ExitStack):
    """Draws a job as it moves: stage, percent, frames a second and time left. Draws only on a terminal.

    Args:
        quiet: Draw nothing.
        ahead: Returns how many jobs come before a queued one.
    """

    def __init__(self, *, quiet: bool, ahead: Callable[[Job], int | None]) -> None:
        super().__init__()
        self._speed = Speed()
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
        )
        self._draw = partial(progress.update, progress.add_task("queued", total=100, detail=""))
        self.enter_context(progress)

    def show(self, job: Job) -> None:
        """Draw the job as it is now."""
        if self._draw is not None:
            self._draw(description=describe_stage(job), completed=job.progress, detail=self._detail(job))

    def _detail(self, job: Job) -> str:
        if job.stage is Stage.QUEUED:
            ahead = self._ahead(job)
            return f"{ahead} ahead" if ahead else "waiting for a free worker"
        attempt = job.attempt
        if job.stage is Stage.RETRY_WAIT and attempt is not None and attempt.error is not None:
            return f"attempt {attempt.number}: {attempt.error.message[:60]}"
        if job.stage is not Stage.RENDERING or attempt is None or attempt.frames is None or not attempt.frames_total:
            return ""
        self._speed.note(time.monotonic(), attempt.frames)
        detail = f"{attempt.frames}/{attempt.frames_total} frames"
        if (fps := self._speed.fps) is not None:
            detail += f", {fps:.0f}/s, {self._speed.left(attempt.frames, attempt.frames_total)} left"
        return detail

"""What do people see: progress, tables, log lines?

The progress bar and the log go to stderr, results to stdout. Where those are no terminals, nothing is drawn and no
control character is written.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from renderdispatch.jobs import Job
from renderdispatch.messages import LocalAudio, Stage, StoredAudio

_WINDOW_S: Final = 10.0
_SHORT_ID: Final = 8
_UNBOUNDED: Final = 1000


def print_json(value: Mapping[str, Any]) -> None:
    """Write one line of JSON to stdout, without what holds nothing."""
    shown = {name: part for name, part in value.items() if part is not None}
    line = json.dumps(shown, ensure_ascii=False)
    click.echo(line.encode(errors="backslashreplace").decode())  # a file's name may be no text: JSON escapes it alike


def print_result(job: Job | None, **more: object) -> None:
    """Write one line of JSON that says how a command ended, and for which job."""
    known = {} if job is None else {"jobId": job.id, "status": str(job.status)}
    print_json({**known, **more})


# --- progress -------------------------------------------------------------------------------------


class Speed:
    """Frames a second over the last ten seconds, and so the time that is left."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now: float, frames: int) -> None:
        """Note how many frames are done at ``now``, in seconds; fewer than before is a new attempt."""
        if self._seen and frames < self._seen[-1][1]:
            self._seen.clear()
        if self._seen and frames == self._seen[-1][1]:
            return
        self._seen.append((now, frames))
        while now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    @property
    def fps(self) -> float | None:
        """Frames a second; None before there is anything to tell it from."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began) if now > began else None

    def left(self, frames: int, total: int) -> timedelta | None:
        """Return the time that the frames still to come will take."""
        fps = self.fps
        return timedelta(seconds=round((total - frames) / fps)) if fps else None


class ProgressBar:
    """Draws a job as it moves: stage, percent, frames a second and time left. Draws nothing without a terminal.

    Args:
        ahead: Says how many jobs come before a queued one.
    """

    def __init__(self, *, quiet: bool, ahead: Callable[[Job], int | None]) -> None:
        self._console = console()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("queued", total=100, detail="")
        self._speed = Speed()
        self._ahead = ahead

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job: Job) -> None:
        """Draw the job as it is now."""
        if not self._progress.disable:
            self._progress.update(
                self._task, description=describe_stage(job), completed=job.progress, detail=self._detail(job)
            )

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
        shown = f"{attempt.frames}/{attempt.frames_total} frames"
        if (fps := self._speed.fps) is not None:
            shown += f", {fps:.0f}/s, {self._speed.left(attempt.frames, attempt.frames_total)} left"
        return shown


def describe_stage(job: Job) -> str:
    """Say where a job stands: its stage, or how it ended."""
    return str(job.status if job.ended else job.stage)


# --- jobs -----------------------------------------------------------------------------------------


def job_as_json(job: Job) -> dict[str, Any]:
    """Return what scripts see of a job: the poll answer's names, and what was asked for."""
    request = job.request
    return {
        "jobId": job.id,
        "status": str(job.status),
        "stage": str(job.stage),
        "progress": job.progress,
        "attempt": len(job.attempts),
        "scene": request.scene,
        "audio": audio_name(job),
        "output": request.output.model_dump(mode="json"),
        "createdAt": job.created_at.isoformat(),
        "updatedAt": job.updated_at.isoformat(),
        "retryOf": job.retry_of,
        "artifact": artifact_as_json(job),
        "error": error_as_json(job),
    }


def artifact_as_json(job: Job) -> dict[str, Any] | None:
    """Return what was made, by the names of the wire."""
    return job.artifact.model_dump(mode="json", exclude_none=True) if job.artifact is not None else None


def error_as_json(job: Job) -> dict[str, str] | None:
    """Return why the job failed."""
    return {"code": job.error.code, "message": job.error.message} if job.error is not None else None


def audio_name(job: Job) -> str:
    """Return what the audio is called: a file's path, or a key in storage."""
    match job.request.audio:
        case LocalAudio(path=path):
            return path
        case StoredAudio(key=key):
            return key
    return "a URL"


def jobs_table(jobs: Iterable[Job]) -> Table:
    """Return a table of jobs, one a row."""
    table = plain_table("JOB", "STATUS", "STAGE", "%", "SCENE", "AUDIO", "AGE")
    for job in jobs:
        audio = Path(audio_name(job)).name
        age = _age(datetime.now(UTC) - job.created_at)
        table.add_row(
            short(job.id), str(job.status), str(job.stage), f"{job.progress:.0f}", job.request.scene, audio, age
        )
    return table


def plain_table(*headings: str) -> Table:
    """Return a table without lines."""
    return Table(*headings, box=None, pad_edge=False, header_style="bold")


def facts_table(facts: Sequence[tuple[str, object]]) -> Table:
    """Return a table of names and values; those that are None are left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in facts:
        if value is not None:
            table.add_row(name, str(value))
    return table


def short(job_id: str) -> str:
    """Return the beginning of an id, which commands take too."""
    return job_id[:_SHORT_ID]


def _age(passed: timedelta) -> str:
    seconds = max(0, int(passed.total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


# --- consoles and logs ----------------------------------------------------------------------------


@cache
def console() -> Console:
    """Return the console for people: stderr. There is one, for log lines have to go above a bar that is drawn."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """Write a table to stdout; where that is no terminal, no line is folded or cut."""
    out = Console(highlight=False, markup=False, emoji=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, emoji=False, width=_UNBOUNDED)
        for column in table.columns:
            column.no_wrap = True
    out.print(table)


class _OneLine(logging.Formatter):
    """Warnings as a command line says them: one line, no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"renderdispatch: {record.levelname.lower()}: {record.getMessage()}"


def set_up_logs(*, verbose: int, quiet: bool) -> None:
    """Log to stderr: warnings, or with ``verbose`` more, in detail."""
    handler: logging.Handler = logging.StreamHandler()
    if verbose:
        target = console()
        if target.is_terminal:
            handler = RichHandler(console=target, show_path=False)
        else:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    else:
        handler.setFormatter(_OneLine())
    logger = logging.getLogger("renderdispatch")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel({0: logging.ERROR if quiet else logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))

"""What do commands print: JSON lines, tables, the log?

Results go to stdout, progress and the log to stderr. What is reported after the work is lost if it cannot be written;
what is printed as the work raises. A stream that is not a terminal gets no control character.
rich is loaded when something is drawn.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import click

from renderdispatch.cli import streams
from renderdispatch.engine.names import attached_name
from renderdispatch.engine.views import segments_of

if TYPE_CHECKING:
    from rich.console import Console

    from renderdispatch.jobs import Attempt, Job

_SHORT_ID: Final = 8
_READABLE: Final = 60
_MINUTE_S: Final = 60
_UNBOUNDED: Final = 1000
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# --- for scripts ----------------------------------------------------------------------------------


def print_json(value: Mapping[str, Any], *, on_stderr: bool = False) -> None:
    """Write one line of JSON, without fields that are None."""
    if on_stderr:
        note(_as_line(value))
    else:
        click.echo(_as_line(value))


def _as_line(value: Mapping[str, Any]) -> str:
    # ASCII, for any encoding of stdout, and for names of files that are not text
    return json.dumps({name: part for name, part in value.items() if part is not None})


def result_as_json(job: Job | None, **more: object) -> dict[str, Any]:
    """Return how a command ended, and for which job."""
    known = {} if job is None else {"jobId": job.id, "status": str(job.status)}
    return {**known, **more}


def report_json(value: Mapping[str, Any], *, on_stderr: bool = False) -> None:
    """Write one line of JSON about work that is done, as `report` does."""
    report(_as_line(value), on_stderr=on_stderr)


def job_as_json(job: Job) -> dict[str, Any]:
    """Return what scripts see of a job: the names of the poll response, and the request."""
    return {
        "jobId": job.id,
        "status": str(job.status),
        "stage": str(job.stage),
        "progress": job.progress,
        "attempt": job.attempt_number,
        "attempts": [attempt_as_json(attempt) for attempt in job.attempts],
        "parallel": job.parallel,
        "segments": segments_as_json(job),
        "scene": job.request.scene,
        "sceneFile": scene_file_name(job),
        "audio": audio_name(job),
        "output": job.request.output.model_dump(mode="json"),
        "createdAt": job.created_at.isoformat(),
        "updatedAt": job.updated_at.isoformat(),
        "expiredAt": None if job.expired_at is None else job.expired_at.isoformat(),
        "retryOf": job.retry_of,
        "batch": job.batch,
        "artifact": artifact_as_json(job),
        "warnings": warnings_as_json(job),
        "error": error_as_json(job),
    }


def attempt_as_json(attempt: Attempt) -> dict[str, Any]:
    """Return what scripts see of an attempt: where it ran, and why it failed."""
    ended = {} if attempt.ended_at is None else {"endedAt": attempt.ended_at.isoformat()}
    error = {} if attempt.error is None else {"error": {"code": attempt.error.code, "message": attempt.error.message}}
    return {"number": attempt.number, "backend": attempt.backend, **ended, **error}


def segments_as_json(job: Job) -> dict[str, int] | None:
    """Return how far the segments of a job's video are; None while it is not drawn."""
    segments = segments_of(job)
    return None if segments is None else segments.model_dump(mode="json")


def artifact_as_json(job: Job) -> dict[str, Any] | None:
    """Return the video of a job, with the names of the wire."""
    return None if job.artifact is None else job.artifact.model_dump(mode="json", exclude_none=True)


def warnings_as_json(job: Job) -> list[dict[str, str]] | None:
    """Return what the video of a job lacks; None if it lacks nothing."""
    return None if job.artifact is None else [warning.model_dump() for warning in job.artifact.warnings] or None


def error_as_json(job: Job) -> dict[str, str] | None:
    """Return why the job failed."""
    return None if job.error is None else {"code": job.error.code, "message": job.error.message}


# --- for people -----------------------------------------------------------------------------------


def audio_name(job: Job) -> str:
    """Return the name of the audio: a file's path, or a key in storage."""
    audio = job.request.audio
    if audio.kind == "remote":
        return "a URL"
    return audio.path if audio.kind == "local" else audio.key


def scene_file_name(job: Job) -> str | None:
    """Return the name of the file that the scene draws, without its folder; None if there is none."""
    file = job.request.scene_file
    return None if file is None else attached_name(file) or "a file"


def scene_name(job: Job) -> str:
    """Return what draws the job: a registered scene, or the name of a file."""
    return scene_file_name(job) or job.request.scene


def describe_stage(job: Job) -> str:
    """Return the job's stage, or its status if it has ended."""
    return str(job.status if job.ended else job.stage)


def describe_error(job: Job) -> str | None:
    """Return why the job failed: message and code."""
    return None if job.error is None else f"{job.error.message} [{job.error.code}]"


def describe_attempts(job: Job) -> str:
    """Return where each attempt ran, and why it failed: ``1 on modal (deadline.start), 2 on local``."""
    shown = []
    for attempt in job.attempts:
        why = "" if attempt.error is None else f" ({attempt.error.code})"
        shown.append(f"{attempt.number} on {attempt.backend}{why}")
    waits = () if job.ended or job.ready_at is None or not job.attempts else (f"next on {job.backend}",)
    return ", ".join([*shown, *waits]) or "none"


def describe_segments(job: Job) -> str | None:
    """Return how far the segments of a job's video are, or how they came about; None: it has none, as far as known.

    ``12 of 75 drawn, 4 of them taken over, 63 missing, 3 draw``, and in the end ``75, 50 of them taken over``.
    """
    if (now := segments_of(job)) is not None:
        said = [f"{now.standing} of {now.total} drawn"]
        said += [f"{now.taken_over} of them taken over"] if now.taken_over else []
        said += [f"{now.missing} missing"] if now.missing else []
        said += [f"{now.drawing} draw{'s' if now.drawing == 1 else ''}"] if now.drawing else []
        return ", ".join(said)
    made = job.artifact
    if made is None or not made.segments:
        return None
    taken = f", {made.segments_taken} of them taken over" if made.segments_taken else ""
    return f"{made.segments}{taken}" + (f", {made.segments_twice} drawn twice" if made.segments_twice else "")


def print_warnings(job: Job) -> None:
    """Write to stderr what the video of a job lacks, one line for each warning."""
    for warning in job.artifact.warnings if job.artifact is not None else ():
        note(f"renderdispatch: warning: {' '.join(warning.message.split())} [{warning.code}]")


def clock(seconds: float) -> str:
    """Return a time in a song for people: ``0:09.5``, ``1:05``, ``1:02:03``."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 10 * _MINUTE_S)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest // 10:02}" if rest % 10 == 0 else f"{rest / 10:04.1f}"
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def length(seconds: float) -> str:
    """Return how long something lasts, for people: ``9.5 s``, ``1:05``, ``1:02:03``."""
    return f"{seconds:.1f} s" if seconds < _MINUTE_S else clock(round(seconds))


def short(job_id: str) -> str:
    """Return the beginning of an id; commands accept it too."""
    return job_id[:_SHORT_ID]


def note(line: str) -> None:
    """Write a line to stderr, if it can be written. What it quotes may hold control characters: those are escaped."""
    sys.stderr.write(f"{_CONTROL.sub(lambda found: ascii(found[0])[1:-1], line)}\n")


def report(line: str | bytes, *, on_stderr: bool = False) -> None:
    """Write a line about work that is done; that it cannot be written changes nothing about the work."""
    if on_stderr:
        note(line if isinstance(line, str) else line.decode(errors="replace"))
        return
    with suppress(BrokenPipeError), streams.unprinted():
        click.echo(line)


def print_table(rows: Iterable[Sequence[object]], *headings: str) -> None:
    """Write a table to stdout. If that is not a terminal, no line is folded or cut.

    A terminal that says it has no columns, or next to none, gets some: its own folding is readable.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings, box=None, pad_edge=False, show_header=bool(headings), header_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    if not sys.stdout.isatty():
        for column in table.columns:
            column.no_wrap = True
    shown = Console(highlight=False, markup=False, emoji=False)
    shown.width = max(shown.width, _READABLE) if sys.stdout.isatty() else _UNBOUNDED
    shown.print(table)


# --- the log --------------------------------------------------------------------------------------


@cache
def console() -> Console:
    """Return the one console on stderr: log lines have to appear above a progress bar."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


class _OneLine(logging.Formatter):
    """Formats warnings as a command prints them: one line, without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"renderdispatch: {record.levelname.lower()}: {record.getMessage()}"


def set_up_logs(*, verbose: int, quiet: bool) -> None:
    """Log to stderr: warnings; with ``verbose`` 1 also progress, with 2 details."""
    handler: logging.Handler = logging.StreamHandler()
    if not verbose:
        handler.setFormatter(_OneLine())
    elif sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=console(), show_path=False)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("renderdispatch")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel({0: logging.ERROR if quiet else logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))

"""How does somebody manage the jobs of a home?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from renderdispatch.cli import display
from renderdispatch.cli.interrupts import Interrupts
from renderdispatch.cli.options import json_option, output_path, seconds_reader
from renderdispatch.cli.rendering import cancel_and_wait, follow
from renderdispatch.cli.targets import read_target
from renderdispatch.engine.names import file_name
from renderdispatch.errors import InvalidRequestError, JobNotFoundError, WaitTimeoutError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.runner.scene_files import read_scene_file
from renderdispatch.service import RenderService
from renderdispatch.wiring import from_settings

_CANCEL_S: Final = 15.0
"""How long `cancel` waits for another process to stop computing."""

_ENDS: Final = tuple(str(status) for status in JobStatus if status.terminal)
_age_s: Final = seconds_reader("[smhdw]", "7d, 12h or 30m")
_batch_option: Final = click.option("--batch", metavar="ID", help="The jobs of this batch alone.")
_job_argument: Final = click.argument("job_id", metavar="JOB")


@click.group(invoke_without_command=True)
@click.pass_context
def jobs(context: click.Context) -> None:
    """List, follow, cancel, save and delete the jobs of this home.

    JOB is an id, or the beginning of one.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_jobs)


@jobs.command("list")
@click.option("--status", multiple=True, type=click.Choice([str(s) for s in JobStatus]), help="Only these jobs.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@_batch_option
@json_option
def list_jobs(*, status: tuple[str, ...], limit: int, batch: str | None, as_json: bool) -> None:
    """List jobs, newest first; --json prints one a line."""
    with from_settings(worker=False) as service:
        listed = service.jobs if batch is None else service.batch(batch).jobs
        page = listed(status=[JobStatus(s) for s in status] or None, limit=limit)
    if as_json:
        for job in page.items:
            display.print_json(display.job_as_json(job))
    elif page.items:
        display.print_table([_row(job) for job in page.items], "JOB", "STATUS", "STAGE", "%", "SCENE", "AUDIO", "AGE")
        if page.cursor is not None:
            display.note("There are more jobs; --limit shows them.")
    else:
        display.note("no jobs")


@jobs.command()
@_job_argument
@json_option
def show(*, job_id: str, as_json: bool) -> None:
    """Show one job."""
    with from_settings(worker=False) as service:
        job = _find(service, job_id)
    if as_json:
        display.print_json(display.job_as_json(job))
    else:
        display.print_table([(name, fact) for name, fact in _facts(job).items() if fact is not None])


@jobs.command()
@_job_argument
@json_option
def watch(*, job_id: str, as_json: bool) -> int:
    """Follow a job until it ends. Ctrl-C ends the watching, not the job.

    The exit status is 0 if the job is complete, 1 if it failed or was cancelled.
    """
    with Interrupts() as interrupts, from_settings(worker=False) as service:
        job = follow(service, service.handle(_find(service, job_id).id), interrupts, quiet=as_json)
        _print(job, as_json=as_json)
        if not as_json:
            display.print_warnings(job)
        if interrupts.received:
            return interrupts.exit_status
    return 0 if job.status is JobStatus.COMPLETE else 1


@jobs.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@_batch_option
@json_option
def cancel(*, job_id: str | None, batch: str | None, as_json: bool) -> None:
    """Cancel a job, or all jobs of a batch, wherever they run."""
    if (job_id is None) == (batch is None):
        raise click.UsageError("Name a job, or a batch with --batch.")
    if batch is not None:
        _cancel_batch(batch, as_json=as_json)
        return
    assert job_id is not None
    with from_settings(worker=False) as service:
        job = cancel_and_wait(service.handle(_find(service, job_id).id), _CANCEL_S)
    if not (job.ended or as_json):
        display.note("Its worker has not responded yet; the job ends when a worker runs.")
    _print(job, as_json=as_json)


def _cancel_batch(batch_id: str, *, as_json: bool) -> None:
    with from_settings(worker=False) as service:
        batch = service.batch(batch_id)
        if not any(batch.counts().values()):
            raise JobNotFoundError(
                f"batch {batch_id} has no jobs; 'renderdispatch jobs show' says which batch a job is of"
            )
        asked = batch.cancel()
        with suppress(WaitTimeoutError):
            batch.wait(_CANCEL_S if asked else 0)
        counts = {str(status): count for status, count in batch.counts().items()}
    left = counts[JobStatus.PENDING] + counts[JobStatus.PROCESSING]
    if as_json:
        display.report_json({"batch": batch_id, "asked": asked, "counts": counts})
        return
    if left:
        display.note(f"Workers have not responded for {left} of them yet; these end when a worker runs.")
    display.report(f"batch {batch_id}: cancelled {asked} job{'' if asked == 1 else 's'}")


@jobs.command()
@_job_argument
@json_option
def retry(*, job_id: str, as_json: bool) -> None:
    """Queue a failed or cancelled job again, as a new job."""
    with from_settings(worker=False) as service:
        failed = _find(service, job_id)
        if read_scene_file(failed.request.scene) is not None:
            message = f"scene {failed.request.scene} is a file, which jobs do not keep; render it again with --scene"
            raise InvalidRequestError(message, code="scene.file")
        job = service.retry(failed.id).job
    _print(job, as_json=as_json)
    if not as_json:
        display.note("A worker will render it; 'renderdispatch worker' starts one.")


@jobs.command()
@_job_argument
@click.option("-o", "--output", type=output_path, help="Default: the song's name, with .mp4. '-' is stdout.")
@click.option("--poster", is_flag=True, help="Also save its poster: the output's name, with .jpg.")
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
def save(*, job_id: str, output: str | None, poster: bool, force: bool) -> None:
    """Save the video of a complete job."""
    with Interrupts() as interrupts, from_settings(worker=False) as service:
        job = _find(service, job_id)
        target = read_target(output or file_name(job.request), force=force)
        targets = [target, target.poster] if poster else [target]
        for each in targets:
            each.check()
        if poster:
            service.poster_url(job.id)  # a job without one is refused before anything is written
        with interrupts.abrupt():  # unwinds, so that no half file stays
            for each in targets:
                each.take(service, job.id)
        display.print_warnings(job)
        for each in targets:
            if not each.result_on_stderr:
                display.report(each.name)


@jobs.command()
@click.argument("job_ids", metavar="[JOB]...", nargs=-1)
@click.option("--older-than", "age_s", type=_age_s, metavar="TIME", help="All that ended so long ago: 7d, 12h, 30m.")
@click.option("--all-ended", is_flag=True, help="All that have ended.")
@click.option("--status", multiple=True, type=click.Choice(_ENDS), help="Only these, of those that ended.")
@json_option
def rm(*, job_ids: tuple[str, ...], age_s: int | None, all_ended: bool, status: tuple[str, ...], as_json: bool) -> None:
    """Delete ended jobs and their stored videos, at once.

    A job that may still compute somewhere is left. RENDERDISPATCH_KEEP has workers delete jobs by their age.
    """
    searched = all_ended or age_s is not None or bool(status)
    if searched == bool(job_ids):
        raise click.UsageError("Name jobs, or use --older-than, --status or --all-ended.")
    with from_settings(worker=False) as service:
        doomed = _ended(service, age_s or 0, status) if searched else [_find(service, job_id) for job_id in job_ids]
        removed = 0
        for job in doomed:
            if not job.ended:
                name = display.short(job.id)
                message = f"job {name} is {job.status}; cancel it: renderdispatch jobs cancel {name}"
                raise InvalidRequestError(message, code="job.running")
            try:
                service.delete(job.id, incarnation=job.incarnation)
            except JobNotFoundError:  # somebody else was faster
                continue
            except InvalidRequestError as error:
                if not searched:
                    raise
                display.note(f"renderdispatch: {error}")
                continue
            removed += 1
            if as_json:
                display.report_json({"jobId": job.id, "removed": True})
    if not as_json:
        display.report(f"removed {removed} job{'' if removed == 1 else 's'}")


# --- finding jobs ---------------------------------------------------------------------------------


def _find(service: RenderService, job_id: str) -> Job:
    """Return the job with this id, or the only one whose id begins with it.

    Raises:
        JobNotFoundError: No job matches.
        InvalidRequestError: Several jobs match.
    """
    try:
        return service.get(job_id)
    except JobNotFoundError:
        found = [job for job in _all(service) if job.id.startswith(job_id)] if job_id else []
    if not found:
        raise JobNotFoundError(f"no job begins with {job_id[:80]!r}; 'renderdispatch jobs list' shows them")
    if len(found) > 1:
        ids = ", ".join(job.id for job in found[:5])
        raise InvalidRequestError(f"{len(found)} jobs begin with {job_id[:80]!r}: {ids}", code="job.ambiguous")
    return found[0]


def _all(service: RenderService) -> Iterator[Job]:
    cursor, more = None, True
    while more:
        page = service.jobs(limit=1000, cursor=cursor)
        yield from page.items
        cursor, more = page.cursor, page.cursor is not None


def _ended(service: RenderService, age_s: int, statuses: Sequence[str]) -> Iterator[Job]:
    """Yield the jobs that ended at least so many seconds ago, with one of the statuses, oldest first."""
    ended_by, wanted = datetime.now(UTC) - timedelta(seconds=age_s), [JobStatus(s) for s in statuses or _ENDS]
    cursor, more = None, True
    while more:
        page = service.jobs(status=wanted, ended_by=ended_by, limit=1000, cursor=cursor)
        yield from page.items
        cursor, more = page.cursor, page.cursor is not None


# --- printing jobs --------------------------------------------------------------------------------


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        display.report_json(display.job_as_json(job))
    else:
        parts = (f"job {display.short(job.id)}", display.describe_stage(job), display.describe_error(job))
        display.report(": ".join(filter(None, parts)))


def _row(job: Job) -> tuple[str, ...]:
    progress, audio = f"{job.progress:.0f}", Path(display.audio_name(job)).name
    return display.short(job.id), job.status, job.stage, progress, display.scene_name(job), audio, _age(job)


def _age(job: Job) -> str:
    seconds = max(0, int((datetime.now(UTC) - job.created_at).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _facts(job: Job) -> dict[str, object]:
    """Return what `show` prints; a fact that is None is left out."""
    made, request = job.artifact, job.request
    facts: dict[str, object] = {
        "job": job.id,
        "status": job.status,
        "stage": f"{job.stage}, {job.progress:g} %",
        "attempts": display.describe_attempts(job),
        "parallel": job.parallel if job.parallel > 1 else None,
        "segments": display.describe_segments(job),
        "retry of": job.retry_of,
        "batch": job.batch,
        "scene": display.scene_name(job),
        "parameters": " ".join(f"{name}={json.dumps(value)}" for name, value in request.params.items()) or None,
        "audio": display.audio_name(job),
        "title": request.title,
        "artist": request.artist,
        "from": display.clock(request.start) if request.start else None,
        "length": None if request.duration is None else display.length(request.duration),
        "output": f"{request.output.width}x{request.output.height}, {request.output.fps} fps",
        "created": f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "expired": job.expired_at and f"{job.expired_at:%Y-%m-%d %H:%M:%S} UTC",
        "ended": job.ended_at and f"{job.ended_at:%Y-%m-%d %H:%M:%S} UTC",
        "error": display.describe_error(job),
    }
    if made is not None:
        from rich.filesize import decimal

        facts["warnings"] = "; ".join(f"{warning.message} [{warning.code}]" for warning in made.warnings) or None
        facts["video"] = f"{decimal(made.bytes)}, {made.frames} frames, {display.length(made.duration_s)}"
        facts |= {"rendered by": made.rendered_by, "encoded by": made.encoded_by, "stored as": made.key}
    return facts

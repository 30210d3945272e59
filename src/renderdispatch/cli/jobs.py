"""How does somebody look after the jobs of a home?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
from rich.filesize import decimal

from renderdispatch.cli.display import (
    audio_name,
    describe_stage,
    facts_table,
    job_as_json,
    jobs_table,
    print_json,
    print_table,
    short,
)
from renderdispatch.cli.interrupts import Interrupts
from renderdispatch.cli.options import json_option
from renderdispatch.cli.rendering import check_kind, follow
from renderdispatch.errors import InvalidRequestError, JobNotFoundError, WaitTimeoutError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.service import RenderService
from renderdispatch.wiring import from_settings

_CANCEL_S: Final = 15.0
"""How long `cancel` waits for another process to stop computing."""

_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST: Final = timedelta(days=36525)
"""Further back, and there is no such date."""
_job_argument = click.argument("job_id", metavar="JOB")


@click.group(invoke_without_command=True)
@click.pass_context
def jobs(context: click.Context) -> None:
    """Look after the jobs of this home. JOB is an id, or the beginning of one."""
    if context.invoked_subcommand is None:
        context.invoke(list_jobs)


@jobs.command("list")
@click.option("--status", multiple=True, type=click.Choice([str(s) for s in JobStatus]), help="Only such jobs.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
def list_jobs(*, status: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List jobs, newest first; --json prints one a line."""
    with from_settings(worker=False) as service:
        page = service.jobs(status=[JobStatus(s) for s in status] or None, limit=limit)
    if as_json:
        for job in page.items:
            print_json(job_as_json(job))
    elif page.items:
        print_table(jobs_table(page.items))
        if page.cursor is not None:
            click.echo("There are more; --limit shows them.", err=True)
    else:
        click.echo("no jobs", err=True)


@jobs.command()
@_job_argument
@json_option
def show(*, job_id: str, as_json: bool) -> None:
    """Show one job."""
    with from_settings(worker=False) as service:
        job = _find(service, job_id)
        if as_json:
            print_json(job_as_json(job))
        else:
            print_table(facts_table(_facts(job)))


@jobs.command()
@_job_argument
@json_option
def watch(*, job_id: str, as_json: bool) -> int:
    """Follow a job until it ends. Ctrl-C ends the watching, not the job.

    The exit status is 0 for a job that is complete, 1 for one that failed or was cancelled.
    """
    with Interrupts() as interrupts, from_settings(worker=False) as service:
        job = follow(service, service.handle(_find(service, job_id).id), interrupts, quiet=as_json)
        _say(job, as_json=as_json)
        if interrupts.received:
            return interrupts.exit_status
    return 0 if job.status is JobStatus.COMPLETE else 1


@jobs.command()
@_job_argument
@json_option
def cancel(*, job_id: str, as_json: bool) -> None:
    """Cancel a job, wherever it runs."""
    with from_settings(worker=False) as service:
        job = service.cancel(_find(service, job_id).id)
        try:
            job = service.handle(job.id).wait(_CANCEL_S)
        except WaitTimeoutError:
            if not as_json:
                click.echo("its worker has not answered yet; it ends when a worker runs", err=True)
        _say(service.get(job.id), as_json=as_json)


@jobs.command()
@_job_argument
@json_option
def retry(*, job_id: str, as_json: bool) -> None:
    """Queue a failed or cancelled job again, as a new job."""
    with from_settings(worker=False) as service:
        job = service.retry(_find(service, job_id).id).job
        _say(job, as_json=as_json)
    if not as_json:
        click.echo("a worker renders it: renderdispatch worker", err=True)


@jobs.command()
@_job_argument
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Default: the song's name, with .mp4.")
@click.option("-f", "--force", is_flag=True, help="Replace the output where it exists.")
def save(*, job_id: str, target: Path | None, force: bool) -> None:
    """Save the video of a complete job."""
    with Interrupts() as interrupts, from_settings(worker=False) as service:
        job = _find(service, job_id)
        target = target or Path(f"{Path(audio_name(job)).stem}.mp4")
        check_kind(target)
        if target.exists() and not force:
            raise InvalidRequestError(f"{target} exists; --force replaces it", code="output.exists")
        with interrupts.abrupt():  # unwinds, so that no half file stays
            saved = service.save(job.id, target, overwrite=force)
        click.echo(bytes(saved))  # a file's name may be no text


def _read_age(_context: click.Context, _option: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})([smhdw])", value.strip())
    age = None if found is None else timedelta(seconds=int(found[1]) * _AGES[found[2]])
    if age is None or age > _LONGEST:
        raise click.BadParameter(f"{value[:40]!r} is no time such as 7d, 12h or 30m")
    return age


@jobs.command()
@click.argument("job_ids", metavar="[JOB]...", nargs=-1)
@click.option("--older-than", callback=_read_age, metavar="TIME", help="All that ended so long ago: 7d, 12h, 30m.")
@click.option("--all-ended", is_flag=True, help="All that have ended.")
@json_option
def rm(*, job_ids: tuple[str, ...], older_than: timedelta | None, all_ended: bool, as_json: bool) -> None:
    """Forget ended jobs, and delete their stored videos."""
    by_age = all_ended or older_than is not None
    if by_age == bool(job_ids):
        raise click.UsageError("name jobs, or give --older-than or --all-ended")
    with from_settings(worker=False) as service:
        if by_age:
            doomed = list(_ended_before(service, datetime.now(UTC) - (older_than or timedelta(0))))
        else:
            doomed = [_find(service, job_id) for job_id in job_ids]
        for job in doomed:
            try:
                service.delete(job.id)
            except InvalidRequestError as error:
                if not job.ended:
                    message = f"job {short(job.id)} is {job.status}; renderdispatch jobs cancel {short(job.id)} ends it"
                    raise InvalidRequestError(message, code=error.code) from None
                raise
            if as_json:
                print_json({"jobId": job.id, "removed": True})
    if not as_json:
        click.echo(f"removed {len(doomed)} job{'' if len(doomed) == 1 else 's'}")


# --- finding and telling --------------------------------------------------------------------------


def _find(service: RenderService, job_id: str) -> Job:
    """Return the job with this id, or the only one whose id begins so.

    Raises:
        JobNotFoundError: There is none.
        InvalidRequestError: There are several.
    """
    try:
        return service.get(job_id)
    except JobNotFoundError:
        found = [job for job in _all(service) if job.id.startswith(job_id)] if job_id else []
    if not found:
        raise JobNotFoundError(f"no job begins with {job_id[:80]!r}; renderdispatch jobs list shows them")
    if len(found) > 1:
        ids = ", ".join(job.id for job in found[:5])
        raise InvalidRequestError(f"{len(found)} jobs begin with {job_id[:80]!r}: {ids}", code="job.ambiguous")
    return found[0]


def _all(service: RenderService, *statuses: JobStatus) -> Iterator[Job]:
    cursor = None
    while True:
        page = service.jobs(status=statuses or None, limit=1000, cursor=cursor)
        yield from page.items
        cursor = page.cursor
        if cursor is None:
            return


def _ended_before(service: RenderService, moment: datetime) -> Iterator[Job]:
    for job in _all(service, *(s for s in JobStatus if s.terminal)):
        if job.ended_at is not None and job.ended_at <= moment:
            yield job


def _say(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job_as_json(job))
        return
    said = f"job {short(job.id)}: {describe_stage(job)}"
    if job.error is not None:
        said += f": {job.error.message} [{job.error.code}]"
    click.echo(said)


def _facts(job: Job) -> list[tuple[str, object]]:
    made, output = job.artifact, job.request.output
    facts: list[tuple[str, object]] = [
        ("job", job.id),
        ("status", job.status),
        ("stage", f"{job.stage}, {job.progress:g} %"),
        ("attempts", len(job.attempts)),
        ("retry of", job.retry_of),
        ("scene", job.request.scene),
        ("parameters", " ".join(f"{name}={json.dumps(value)}" for name, value in job.request.params.items()) or None),
        ("audio", audio_name(job)),
        ("output", f"{output.width}x{output.height}, {output.fps} fps"),
        ("created", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", None if job.ended_at is None else f"{job.ended_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("error", None if job.error is None else f"{job.error.message} [{job.error.code}]"),
    ]
    if made is not None:
        facts += [
            ("video", f"{decimal(made.bytes)}, {made.frames} frames, {made.duration_s:.2f} s"),
            ("rendered by", made.rendered_by),
            ("encoded by", made.encoded_by),
            ("stored as", made.key),
        ]
    return facts

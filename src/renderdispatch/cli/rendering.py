"""How does a song become a video file, on the command line?

A render is a job like any other: it is recorded first, rendered by a worker in this process (or by another process of
the same home), and shown by ``renderdispatch jobs``. The command waits for it, and cancels it on a signal.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from pydantic import JsonValue

from renderdispatch import errors
from renderdispatch.batches import Submission
from renderdispatch.cli.display import (
    artifact_as_json,
    length,
    note,
    print_warnings,
    report,
    report_json,
    result_as_json,
    short,
    warnings_as_json,
)
from renderdispatch.cli.failures import tell
from renderdispatch.cli.interrupts import Interrupted, Interrupts
from renderdispatch.cli.options import json_option, logging_options, output_path, read_time
from renderdispatch.cli.pictures import (
    ChosenScene,
    checked,
    cover_option,
    encoder_option,
    picture_options,
    quality_option,
    range_options,
    read_picture,
)
from renderdispatch.cli.progress import ProgressBar
from renderdispatch.cli.songs import STDIN, open_song, statuses_of
from renderdispatch.cli.targets import Target, read_target
from renderdispatch.engine.watching import Pause
from renderdispatch.jobs import Job
from renderdispatch.messages import MAX_PARALLEL, JobStatus, Limits
from renderdispatch.service import JobHandle, RenderService

_CANCEL_S: Final = 5.0
"""How long an interrupted render may take to stop computing."""

_CLEAN_UP_S: Final = 1.0
_DEMO_S: Final = (1, 600)

_PRIORITY: Final = 10
"""Somebody waits for this job, so it goes before jobs that were left in the queue."""

_F = TypeVar("_F", bound=Callable[..., object])


# --- the commands ---------------------------------------------------------------------------------


_OPTIONS: Final = (
    picture_options,
    quality_option,
    encoder_option,
    click.option("--title", metavar="TEXT", help="For the video's tags. Default: as the song's tags say."),
    click.option("--artist", metavar="TEXT", help="For the video's tags. Default: as the song's tags say."),
    cover_option,
    click.option(
        "--poster", is_flag=True, help="Also write a JPEG of the brightest moment: the output's name, with .jpg."
    ),
    click.option("--backend", metavar="NAME", help="Where to render."),
    click.option("--require-gpu", is_flag=True, help="Fail if there is no GPU, instead of drawing on the CPU."),
    click.option(
        "--parallel",
        type=click.IntRange(1, MAX_PARALLEL),
        default=1,
        metavar="NUMBER",
        help="How many draw one video at once, on its backend. The video is the same.",
    ),
    click.option("-f", "--force", is_flag=True, help="Replace the output if it exists."),
    json_option,
    logging_options,
)
"""What `render` and `demo` share."""


def _with_options(command: _F) -> _F:
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)


@click.command()
@click.argument("song", type=click.Path(readable=False, allow_dash=True), required=False)
@click.option(
    "-o", "--output", type=output_path, help="Default: SONG's name, with .mp4. '-' is stdout. A folder for --batch."
)
@click.option(
    "--batch",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="Render many: the songs of a folder, or the rows of a file with one JSON object in each line.",
)
@click.option(
    "slots", "--jobs", type=click.IntRange(1, 64), metavar="NUMBER", help="Of a batch, how many render here at once."
)
@range_options
@click.option("--max-duration", type=read_time, metavar="TIME", help="Refuse a longer video. Default: 4:00:00.")
@_with_options
def render(song: str | None, output: str | None, *, batch: Path | None, slots: int | None, **options: Any) -> int:
    """Render SONG to a video.

    SONG may be '-' for stdin, and the output '-' for stdout: cat song.mp3 | renderdispatch render - -o - > song.mp4

    Ctrl-C cancels it. The job is listed by 'renderdispatch jobs', and its video stays stored, until you delete it with
    'renderdispatch jobs rm'.

    With --batch, a row is an object such as {"audio": "song.mp3", "scene": "wave"}; the options hold for what it leaves
    out. The folder of the videos gets a manifest, so that the same command renders what failed and what is new alone.
    """
    if batch is not None:
        if song is not None or output is None or output == "-":
            raise click.UsageError("--batch takes no SONG, and needs the folder of the videos: -o FOLDER.")
        with Interrupts() as interrupts:
            return _make_many(batch, Path(output), interrupts, slots=slots, **options)
    if song is None:
        raise click.UsageError("Name a SONG, or use --batch.")
    if slots is not None:
        raise click.UsageError("--jobs is for --batch: one song is one render.")
    if output is None:
        if song == STDIN:
            raise click.UsageError("A song from stdin has no name: name the output with -o.")
        output = f"{Path(song).stem}.mp4"
    with Interrupts() as interrupts:
        return _make(song, output, interrupts, **options)


@click.command()
@click.option("-o", "--output", type=output_path, default="demo.mp4", show_default=True, help="'-' is stdout.")
@click.option(
    "--seconds", type=read_time, default="20", show_default=True, metavar="TIME", help="Length, 1 s to 10:00."
)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Another seed, another melody.")
@_with_options
def demo(output: str, *, seconds: float, seed: int, **options: Any) -> int:
    """Compose a short piece of music, and render it."""
    if not _DEMO_S[0] <= seconds <= _DEMO_S[1]:
        raise click.BadParameter("a demo takes 1 s to 10:00.", param_hint="--seconds")
    try:
        from renderdispatch.render.music import compose
    except ModuleNotFoundError as error:
        raise errors.MissingExtraError.of("the demo", "render") from error
    with Interrupts() as interrupts, tempfile.TemporaryDirectory(prefix="renderdispatch-demo-") as folder:
        song = Path(folder) / "demo.wav"
        with interrupts.abrupt():
            compose(song, seconds=seconds, seed=seed)
        return _make(str(song), output, interrupts, **options)


# --- from the song to the file --------------------------------------------------------------------


def _make(
    song: str,
    output: str,
    interrupts: Interrupts,
    *,
    scene: str,
    backend: str | None,
    parallel: int,
    preset: str,
    size: tuple[int, int] | None,
    fps: str | None,
    quality: str | None,
    encoder: str | None,
    poster: bool,
    cover: Path | None,
    images: tuple[Path, ...],
    params: list[tuple[str, JsonValue]],
    force: bool,
    as_json: bool,
    quiet: bool,
    max_duration: float | None = None,
    **request: Any,
) -> int:
    """Render and save; return the exit status. A signal cancels the job; the command ends once nothing computes."""
    began = time.monotonic()
    job: Job | None = None
    target = read_target(output, force=force)
    chosen = ChosenScene.named(scene)
    try:
        targets = [target, target.poster] if poster else [target]
        for each in targets:
            each.check(statuses_of(song, cover=cover, scene=chosen.shader, image=images))
        picture = read_picture(preset, size, fps, quality, encoder)
        if chosen.where is not None or chosen.shader is not None:
            with interrupts.abrupt():  # the import of a file may take any time
                chosen.load()
        bounds: dict[str, object] = {} if max_duration is None else {"max_duration": max_duration}
        limits = checked(Limits, bounds if chosen.where is None else {**bounds, "max_attempts": 1})
        service, where = chosen.open_service(backend, parallel=parallel)
        with closing(service):  # its worker starts with the submit, and so with this job
            fields: dict[str, Any] = {
                "scene": chosen.submitted,
                "output": picture,
                "params": dict(params),
                "limits": limits,
                "cover": cover,
                "images": images,
                "parallel": parallel,
                **where,
            }
            with open_song(song, interrupts) as audio:
                handle = service.submit(audio, poster=poster, priority=_PRIORITY, **fields, **request)
            job = follow(service, handle, interrupts, quiet=quiet or as_json)
            if interrupts.received:
                job = cancel_and_wait(handle, _CANCEL_S)  # closing the service ends what takes longer
            else:
                _let_clean_up(handle)
                if job.artifact is not None and job.artifact.poster_key is None:
                    targets = [target]  # the job's warnings say so
                for each in targets:
                    _save(service, job.id, each, interrupts)
    except errors.RenderDispatchError as error:
        return tell(error, as_json=as_json, job=job, on_stderr=target.result_on_stderr)
    except Interrupted:
        pass
    if interrupts.received:
        _report_interrupted(job, as_json=as_json, quiet=quiet, on_stderr=target.result_on_stderr)
        return interrupts.exit_status
    assert job is not None
    _report_done(job, *targets, seconds=time.monotonic() - began, as_json=as_json, quiet=quiet)
    return 0


def _make_many(
    source: Path,
    output: Path,
    interrupts: Interrupts,
    *,
    slots: int | None,
    scene: str,
    preset: str,
    size: tuple[int, int] | None,
    fps: str | None,
    quality: str | None,
    encoder: str | None,
    images: tuple[Path, ...],
    params: list[tuple[str, JsonValue]],
    max_duration: float | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **request: Any,
) -> int:
    """Render a batch; return the exit status."""
    from renderdispatch.cli.batches import render_batch

    chosen = ChosenScene.named(scene)
    try:
        if chosen.where is not None or chosen.shader is not None:
            with interrupts.abrupt():
                chosen.load()
        bounds: dict[str, object] = {} if max_duration is None else {"max_duration": max_duration}
        defaults = Submission(
            Path(),
            scene=chosen.submitted,
            output=read_picture(preset, size, fps, quality, encoder),
            params=dict(params),
            limits=checked(Limits, bounds if chosen.where is None else {**bounds, "max_attempts": 1}),
            images=images,
            priority=_PRIORITY,
            **request,
        )
    except errors.RenderDispatchError as error:
        return tell(error, as_json=as_json)
    except Interrupted:
        return interrupts.exit_status
    return render_batch(
        source, output, defaults, interrupts, chosen=chosen, slots=slots, force=force, as_json=as_json, quiet=quiet
    )


def follow(service: RenderService, handle: JobHandle, interrupts: Interrupts, *, quiet: bool) -> Job:
    """Show a job until it has ended or a signal came; return it as it is then."""

    def ahead(job: Job) -> int | None:
        place = service.poll(job.id).queue_position
        return None if place is None else place - 1

    pause = Pause(None)
    with ProgressBar(quiet=quiet, ahead=ahead) as bar:
        while True:
            job = handle.job
            bar.show(job)
            if job.ended or interrupts.received:
                return job
            interrupts.wait(pause.after(job))


def cancel_and_wait(handle: JobHandle, seconds: float) -> Job:
    """Cancel the job and wait until it stops computing, at most for ``seconds``; return it as it is then."""
    handle.cancel()
    with suppress(errors.WaitTimeoutError):
        handle.wait(seconds)
    return handle.job


def _let_clean_up(handle: JobHandle) -> None:
    """Give the worker a moment to delete the copy of the song and the segments; otherwise a later worker does it."""
    deadline = time.monotonic() + _CLEAN_UP_S
    while _is_to_clean_up(handle.job) and time.monotonic() < deadline:
        time.sleep(0.02)


def _is_to_clean_up(job: Job) -> bool:
    """Return whether something is to be deleted now. Segments that a retry may need are kept for a day."""
    return job.owes_clean_up or (job.pieces_sweep_at is not None and job.pieces_sweep_at <= job.updated_at)


def _save(service: RenderService, job_id: str, target: Target, interrupts: Interrupts) -> None:
    try:
        with interrupts.abrupt():
            target.take(service, job_id)
    except OSError as error:
        said = str(error) if isinstance(error, errors.StorageError) else f"{os.fsdecode(target.name)}: {error.strerror}"
        message = f"{said}; the video is kept: renderdispatch jobs save {short(job_id)} -o ..."
        raise errors.StorageError(message, code=getattr(error, "code", None)) from error


# --- the last line --------------------------------------------------------------------------------


def _report_done(job: Job, target: Target, *posters: Target, seconds: float, as_json: bool, quiet: bool) -> None:
    made = job.artifact
    assert made is not None
    if as_json:
        output = "-" if target.result_on_stderr else _absolute(target)
        beside = {"poster": _absolute(posters[0])} if posters else {}
        more = {"output": output, **beside, "seconds": round(seconds, 3), "artifact": artifact_as_json(job)}
        result = result_as_json(job, **more, warnings=warnings_as_json(job))
        report_json(result, on_stderr=target.result_on_stderr)
    elif not quiet:
        print_warnings(job)
        picture = f"{made.width}x{made.height}, {float(made.fps):g} fps, {made.frames} frames"
        name = click.format_filename(target.name)
        line = f"{name}: {picture}, {length(made.duration_s)} of music in {length(seconds)}"
        report(line, on_stderr=target.result_on_stderr)
        for poster in posters:
            report(f"{click.format_filename(poster.name)}: the poster")


def _absolute(target: Target) -> str:
    return str(Path(os.fsdecode(target.name)).absolute())


def _report_interrupted(job: Job | None, *, as_json: bool, quiet: bool, on_stderr: bool) -> None:
    if as_json:
        report_json(result_as_json(job), on_stderr=on_stderr)
    elif job is not None and not quiet:
        done = job.status is JobStatus.COMPLETE
        outcome = f"interrupted; the video is kept: renderdispatch jobs save {short(job.id)}" if done else "cancelled"
        note(f"renderdispatch: {outcome} (job {short(job.id)})")

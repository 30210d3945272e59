"""How does a song become a video file, on the command line?

A render is a job like any other: it is recorded first, rendered by a worker in this process (or by another process of
the same home), and shown by ``renderdispatch jobs``. The command waits for it, and cancels it on a signal.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from pydantic import JsonValue, ValidationError

from renderdispatch import errors
from renderdispatch.cli.display import (
    artifact_as_json,
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
from renderdispatch.cli.options import json_option, logging_options, output_path
from renderdispatch.cli.progress import ProgressBar
from renderdispatch.cli.songs import STDIN, open_song, status_of
from renderdispatch.cli.targets import Target, read_target
from renderdispatch.engine.watching import Pause
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_AUDIO_TRACK,
    PRESETS,
    JobStatus,
    Limits,
    Message,
    Output,
    describe_validation,
    read_output,
)
from renderdispatch.service import JobHandle, RenderService
from renderdispatch.wiring import from_settings

_CANCEL_S: Final = 5.0
"""How long an interrupted render may take to stop computing."""

_CLEAN_UP_S: Final = 1.0

_PRIORITY: Final = 10
"""Somebody waits for this job, so it goes before jobs that were left in the queue."""

_F = TypeVar("_F", bound=Callable[..., object])
_M = TypeVar("_M", bound=Message)


# --- the commands ---------------------------------------------------------------------------------


def _read_size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal() and len(text) <= 20):
        raise click.BadParameter(f"{text[:80]!r} is not a size; write WIDTHxHEIGHT, such as 1280x720.")
    return int(width), int(height)


def _read_param(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text[:80]!r} is not a parameter; write NAME=VALUE.")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value  # a word needs no quotes


_OPTIONS: Final = (
    click.option("--scene", default="bars", show_default=True, metavar="NAME", help="See 'renderdispatch scenes'."),
    click.option(
        "--preset", default="flat-1080p-landscape", show_default=True, metavar="NAME", help=", ".join(PRESETS)
    ),
    click.option("--size", type=_read_size, metavar="WIDTHxHEIGHT", help="Pixels, even numbers, such as 1280x720."),
    click.option("--fps", metavar="RATE", help="Frames a second: 30, 29.97, 30000/1001."),
    click.option(
        "params",
        "--set",
        multiple=True,
        type=_read_param,
        metavar="NAME=VALUE",
        help="A parameter of the scene; see 'renderdispatch scenes NAME'.",
    ),
    click.option("--backend", metavar="NAME", help="Where to render."),
    click.option("--require-gpu", is_flag=True, help="Fail if there is no GPU, instead of drawing on the CPU."),
    click.option("-f", "--force", is_flag=True, help="Replace the output if it exists."),
    json_option,
    logging_options,
)
"""What `render` and `demo` share."""


def _with_options(command: _F) -> _F:
    return reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)


@click.command()
@click.argument("song", type=click.Path(readable=False, allow_dash=True))
@click.option("-o", "--output", type=output_path, help="Default: SONG's name, with .mp4. '-' is stdout.")
@click.option("--start", type=float, default=0.0, metavar="SECONDS", help="Where in the song the video begins.")
@click.option("--duration", type=float, metavar="SECONDS", help="Default: to the end of the song.")
@click.option(
    "--audio-track",
    type=click.IntRange(0, MAX_AUDIO_TRACK),
    metavar="NUMBER",
    help="Which audio track of SONG is heard, from 0. Default: the one that players choose.",
)
@click.option("--max-duration", type=float, metavar="SECONDS", help="Refuse a longer video. Default: 14400, 4 hours.")
@_with_options
def render(song: str, output: str | None, **options: Any) -> int:
    """Render SONG to a video.

    SONG may be '-' for stdin, and the output '-' for stdout: cat song.mp3 | renderdispatch render - -o - > song.mp4

    Ctrl-C cancels it. The job is listed by 'renderdispatch jobs', and its video stays stored, until you delete it with
    'renderdispatch jobs rm'.
    """
    if output is None:
        if song == STDIN:
            raise click.UsageError("A song from stdin has no name: name the output with -o.")
        output = f"{Path(song).stem}.mp4"
    with Interrupts() as interrupts:
        return _make(song, output, interrupts, **options)


@click.command()
@click.option("-o", "--output", type=output_path, default="demo.mp4", show_default=True, help="'-' is stdout.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=20.0, show_default=True, help="Length, in seconds.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Another seed, another melody.")
@_with_options
def demo(output: str, *, seconds: float, seed: int, **options: Any) -> int:
    """Compose a short piece of music, and render it."""
    if math.isnan(seconds):  # click's ranges let it pass
        raise click.BadParameter("'nan' is not a length.", param_hint="--seconds")
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
    preset: str,
    size: tuple[int, int] | None,
    fps: str | None,
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
    try:
        target.check(status_of(song))
        picture = _picture(preset, size, fps)
        limits = _checked(Limits, {} if max_duration is None else {"max_duration": max_duration})
        fields = {"output": picture, "params": dict(params), "limits": limits, "priority": _PRIORITY, **request}
        with closing(from_settings(worker=True)) as service:  # its worker starts with the submit, and so with this job
            with open_song(song, interrupts) as audio:
                handle = service.submit(audio, **fields)
            job = follow(service, handle, interrupts, quiet=quiet or as_json)
            if interrupts.received:
                job = cancel_and_wait(handle, _CANCEL_S)  # closing the service ends what takes longer
            else:
                _let_clean_up(handle)
                _save(service, job.id, target, interrupts)
    except errors.RenderDispatchError as error:
        return tell(error, as_json=as_json, job=job, on_stderr=target.result_on_stderr)
    except Interrupted:
        pass
    if interrupts.received:
        _report_interrupted(job, as_json=as_json, quiet=quiet, on_stderr=target.result_on_stderr)
        return interrupts.exit_status
    assert job is not None
    _report_done(job, target, seconds=time.monotonic() - began, as_json=as_json, quiet=quiet)
    return 0


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
    """Give the worker a moment to delete the copy of the song; otherwise a later worker deletes it."""
    deadline = time.monotonic() + _CLEAN_UP_S
    while handle.job.owes_clean_up and time.monotonic() < deadline:
        time.sleep(0.02)


def _save(service: RenderService, job_id: str, target: Target, interrupts: Interrupts) -> None:
    try:
        with interrupts.abrupt():
            target.take(service, job_id)
    except OSError as error:
        said = str(error) if isinstance(error, errors.StorageError) else f"{os.fsdecode(target.name)}: {error.strerror}"
        message = f"{said}; the video is kept: renderdispatch jobs save {short(job_id)} -o ..."
        raise errors.StorageError(message, code=getattr(error, "code", None)) from error


def _picture(preset: str, size: tuple[int, int] | None, fps: str | None) -> Output:
    changes: dict[str, object] = {} if size is None else {"width": size[0], "height": size[1]}
    if fps is not None:
        changes["fps"] = fps
    return _checked(Output, {**dict(read_output(preset)), **changes})


def _checked(model: type[_M], fields: dict[str, object]) -> _M:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise errors.InvalidRequestError(describe_validation(error)) from None


# --- the last line --------------------------------------------------------------------------------


def _report_done(job: Job, target: Target, *, seconds: float, as_json: bool, quiet: bool) -> None:
    made = job.artifact
    assert made is not None
    if as_json:
        output = "-" if target.result_on_stderr else str(Path(os.fsdecode(target.name)).absolute())
        more = {"output": output, "seconds": round(seconds, 3), "artifact": artifact_as_json(job)}
        result = result_as_json(job, **more, warnings=warnings_as_json(job))
        report_json(result, on_stderr=target.result_on_stderr)
    elif not quiet:
        print_warnings(job)
        picture = f"{made.width}x{made.height}, {float(made.fps):g} fps, {made.frames} frames"
        name = click.format_filename(target.name)
        line = f"{name}: {picture}, {made.duration_s:.1f} s of music in {seconds:.1f} s"
        report(line, on_stderr=target.result_on_stderr)


def _report_interrupted(job: Job | None, *, as_json: bool, quiet: bool, on_stderr: bool) -> None:
    if as_json:
        report_json(result_as_json(job), on_stderr=on_stderr)
    elif job is not None and not quiet:
        done = job.status is JobStatus.COMPLETE
        outcome = f"interrupted; the video is kept: renderdispatch jobs save {short(job.id)}" if done else "cancelled"
        note(f"renderdispatch: {outcome} (job {short(job.id)})")

"""How does a song become a video file, on the command line?

A render is a job like any other: recorded first, rendered by a worker in this process (or by any other of the same
home), and seen by ``renderdispatch jobs``. What the command adds is that it waits, and that a signal cancels it.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from attrs import frozen
from pydantic import JsonValue, ValidationError

from renderdispatch.cli.display import ProgressBar, artifact_as_json, print_result, short
from renderdispatch.cli.failures import tell_error
from renderdispatch.cli.interrupts import Interrupted, Interrupts
from renderdispatch.cli.options import json_option, logging_options
from renderdispatch.engine.intake import describe_validation
from renderdispatch.engine.watching import Pause
from renderdispatch.errors import (
    InvalidRequestError,
    MissingExtraError,
    RenderDispatchError,
    StorageError,
    WaitTimeoutError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import PRESETS, JobStatus, Output, read_output
from renderdispatch.service import JobHandle, RenderService
from renderdispatch.wiring import from_settings

_CANCEL_S: Final = 5.0
"""How long an interrupted render may take to stop computing."""


_CLEAN_UP_S: Final = 1.0

_PRIORITY: Final = 10
"""Somebody waits for it: before what others left in the queue."""

_F = TypeVar("_F", bound=Callable[..., object])


@frozen(kw_only=True)
class _Wish:
    """What is to be rendered, and where the video goes."""

    song: Path
    target: Path
    force: bool
    scene: str
    preset: str
    size: tuple[int, int] | None
    fps: str | None
    params: Mapping[str, JsonValue]
    start: float = 0.0
    duration: float | None = None
    backend: str | None
    require_gpu: bool
    as_json: bool
    quiet: bool


# --- the commands ---------------------------------------------------------------------------------


def _read_size(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    width, times, height = value.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal() and len(value) <= 20):
        raise click.BadParameter(f"{value[:80]!r} is no size such as 1280x720")
    return int(width), int(height)


def _read_params(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, JsonValue]:
    params: dict[str, JsonValue] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value[:80]!r} is not of the form NAME=VALUE")
        try:
            params[name] = json.loads(text)
        except (ValueError, RecursionError):
            params[name] = text  # a word needs no quotes
    return params


def _options(*, preset: str) -> Callable[[_F], _F]:
    """Add what `render` and `demo` share."""
    options = (
        click.option("--scene", default="bars", show_default=True, metavar="NAME", help="See 'renderdispatch scenes'."),
        click.option("--preset", default=preset, show_default=True, metavar="NAME", help=f"{', '.join(PRESETS)}."),
        click.option("--size", callback=_read_size, metavar="WxH", help="Pixels, even, such as 1280x720."),
        click.option("--fps", metavar="RATE", help="Frames a second: 30, 29.97, 30000/1001."),
        click.option(
            "params",
            "--set",
            multiple=True,
            callback=_read_params,
            metavar="NAME=VALUE",
            help="A parameter of the scene; see 'renderdispatch scenes NAME'.",
        ),
        click.option("--backend", metavar="NAME", help="Where to render."),
        click.option("--require-gpu", is_flag=True, help="Fail rather than draw on a CPU."),
        click.option("-f", "--force", is_flag=True, help="Replace the output where it exists."),
        json_option,
        logging_options,
    )

    def add(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("song", type=click.Path(path_type=Path, readable=False))
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Default: SONG's name, with .mp4.")
@click.option("--start", type=float, default=0.0, metavar="SECONDS", help="Where in the song the video begins.")
@click.option("--duration", type=float, metavar="SECONDS", help="Default: to the end of the song.")
@_options(preset="flat-1080p-landscape")
def render(song: Path, target: Path | None, **options: Any) -> int:
    """Render SONG to a video.

    Ctrl-C cancels it. The job stays visible in 'renderdispatch jobs', and its video stays stored, until
    'renderdispatch jobs rm'.
    """
    with Interrupts() as interrupts:
        return _carry_out(_Wish(song=song, target=target or Path(f"{song.stem}.mp4"), **options), interrupts)


@click.command()
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), default="demo.mp4", show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=20.0, show_default=True, help="How long the piece is."
)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Another number, another melody.")
@_options(preset="flat-1080p-landscape")
def demo(target: Path, *, seconds: float, seed: int, **options: Any) -> int:
    """Compose a short piece of music, and render it."""
    if math.isnan(seconds):  # no range refuses it
        raise click.BadParameter("'nan' is no length", param_hint="--seconds")
    try:
        from renderdispatch.render.music import compose
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("the demo", "render") from error
    with Interrupts() as interrupts, tempfile.TemporaryDirectory(prefix="renderdispatch-demo-") as folder:
        song = Path(folder) / "demo.wav"
        with interrupts.abrupt():
            compose(song, seconds=seconds, seed=seed)
        return _carry_out(_Wish(song=song, target=target, **options), interrupts)


# --- from the wish to the file --------------------------------------------------------------------


def _carry_out(wish: _Wish, interrupts: Interrupts) -> int:
    """Render and save; return the exit status. A signal cancels the job and waits until nothing computes."""
    began = time.monotonic()
    job: Job | None = None
    try:
        _check_target(wish)
        output = _picture(wish)
        with closing(from_settings(worker=True)) as service:  # its worker starts with the submit, and so with this job
            handle = service.submit(
                wish.song,
                scene=wish.scene,
                params=wish.params,
                output=output,
                start=wish.start,
                duration=wish.duration,
                backend=wish.backend,
                require_gpu=wish.require_gpu,
                priority=_PRIORITY,
            )
            job = follow(service, handle, interrupts, quiet=wish.quiet or wish.as_json)
            if interrupts.received:
                job = _wind_down(handle)
            else:
                _let_clean_up(handle)
                _save(handle, wish, interrupts)
    except RenderDispatchError as error:
        return tell_error(error, as_json=wish.as_json, job=job)
    except Interrupted:
        pass
    if interrupts.received:
        _say_interrupted(job, wish)
        return interrupts.exit_status
    _say_done(job, wish, seconds=time.monotonic() - began)
    return 0


def follow(service: RenderService, handle: JobHandle, interrupts: Interrupts, *, quiet: bool) -> Job:
    """Show a job until it has ended, or a signal came; return it as it is then."""

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


def _wind_down(handle: JobHandle) -> Job:
    """Cancel the job, and wait until nothing of it computes; what takes longer ends when the service is closed."""
    handle.cancel()
    try:
        return handle.wait(_CANCEL_S)
    except WaitTimeoutError:
        return handle.job


def _let_clean_up(handle: JobHandle) -> None:
    """Give the worker the moment that it needs to remove the copy of the song; else a later worker removes it."""
    deadline = time.monotonic() + _CLEAN_UP_S
    while handle.job.owes_clean_up and time.monotonic() < deadline:
        time.sleep(0.02)


def _save(handle: JobHandle, wish: _Wish, interrupts: Interrupts) -> None:
    try:
        with interrupts.abrupt():
            handle.save(wish.target, overwrite=wish.force)
    except StorageError as error:
        message = f"{error}; the video is kept: renderdispatch jobs save {short(handle.id)} -o ..."
        raise StorageError(message, code=error.code) from error


def check_kind(target: Path) -> None:
    """Refuse what can be no file, and what a file must not take the place of: a directory, a device, a pipe."""
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InvalidRequestError(f"{target} cannot be written: {error.strerror}", code="output.denied") from error
    if stat.S_ISDIR(mode):
        raise InvalidRequestError(f"{target} is a directory; name a file", code="output.directory")
    if not stat.S_ISREG(mode):
        raise InvalidRequestError(f"{target} is no regular file; name another one", code="output.denied")


def _check_target(wish: _Wish) -> None:
    """Refuse, before anything is rendered, a target that could not be written in the end."""
    target = wish.target
    check_kind(target)
    if target.exists():
        if wish.song.exists() and target.samefile(wish.song):
            raise InvalidRequestError(f"{target} is the song itself; name another file with -o", code="output.exists")
        if not wish.force:
            raise InvalidRequestError(f"{target} exists; --force replaces it", code="output.exists")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InvalidRequestError(f"{target} cannot be written: no access to {above}", code="output.denied")


def _picture(wish: _Wish) -> Output:
    changes: dict[str, object] = {}
    if wish.size is not None:
        changes["width"], changes["height"] = wish.size
    if wish.fps is not None:
        changes["fps"] = wish.fps
    try:
        return Output.model_validate({**dict(read_output(wish.preset)), **changes})
    except ValidationError as error:
        raise InvalidRequestError(describe_validation(error)) from None


# --- what is said in the end ----------------------------------------------------------------------


def _say_done(job: Job | None, wish: _Wish, *, seconds: float) -> None:
    assert job is not None
    made = job.artifact
    assert made is not None
    if wish.as_json:
        output = str(wish.target.absolute())
        print_result(job, output=output, seconds=round(seconds, 3), artifact=artifact_as_json(job))
    elif not wish.quiet:
        picture = f"{made.width}x{made.height}, {float(made.fps):g} fps, {made.frames} frames"
        click.echo(
            f"{click.format_filename(wish.target)}: {picture}, {made.duration_s:.1f} s of music in {seconds:.1f} s"
        )


def _say_interrupted(job: Job | None, wish: _Wish) -> None:
    if wish.as_json:
        print_result(job)
    elif job is not None and not wish.quiet:
        done = job.status is JobStatus.COMPLETE
        what = f"interrupted; the video is kept: renderdispatch jobs save {short(job.id)}" if done else "cancelled"
        click.echo(f"renderdispatch: {what} (job {short(job.id)})", err=True)

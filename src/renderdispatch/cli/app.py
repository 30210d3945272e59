"""Which commands are there, and how does each one end?"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

import click

from renderdispatch.cli.doctor import doctor
from renderdispatch.cli.failures import tell_error, tell_failure
from renderdispatch.cli.interrupts import Interrupted, Interrupts
from renderdispatch.cli.jobs import jobs
from renderdispatch.cli.modal import modal
from renderdispatch.cli.options import logging_options
from renderdispatch.cli.rendering import demo, render
from renderdispatch.cli.scenes import scenes
from renderdispatch.errors import RenderDispatchError
from renderdispatch.messages import JobStatus
from renderdispatch.wiring import from_settings, read_settings

_log: Final = logging.getLogger("renderdispatch.cli")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("renderdispatch"), prog_name="renderdispatch")
@click.pass_context
def cli(context: click.Context) -> None:
    """Render music to video, and be sure to get the result.

    Jobs and videos lie in a home: 'renderdispatch doctor' shows where, and RENDERDISPATCH_HOME sets another one.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@logging_options
def worker(*, quiet: bool) -> None:
    """Render the jobs of this home until Ctrl-C or SIGTERM.

    Jobs that are not finished then go back to the queue.
    """
    with Interrupts() as interrupts, from_settings(worker=True) as service:
        waiting = service.counts()[JobStatus.PENDING]
        if not quiet:
            home = read_settings().home
            click.echo(f"working for {home}, {waiting} jobs are queued; Ctrl-C ends", err=True)
        interrupts.wait()


for command in (render, demo, scenes, jobs, doctor, modal):
    cli.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status, and say in one line what went wrong."""
    try:
        return _run(arguments, as_json="--json" in arguments)
    except BrokenPipeError:  # whoever read the output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        status = cli.main(list(arguments), prog_name="renderdispatch", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return tell_failure(_with_help(error), error.exit_code, code="command.usage", as_json=as_json)
    except RenderDispatchError as error:
        return tell_error(error, as_json=as_json)
    except Interrupted as interrupted:
        return interrupted.exit_status
    except click.Abort:
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - people get a line, and with -vv the traceback
        _log.debug("the command failed", exc_info=True)
        said = f"this is a bug: {type(error).__name__}: {error} (-vv shows where)"
        return tell_failure(said, 1, code="internal", as_json=as_json)
    return status if isinstance(status, int) else 0


def _with_help(error: click.ClickException) -> str:
    """Return what was wrong with the command line, and which help says what is right."""
    said = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return said
    stop = "" if said.endswith((".", "?")) else "."
    return f"{said}{stop} See '{error.ctx.command_path} --help'."

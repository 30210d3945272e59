"""Which commands exist, and how does each one end?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from renderdispatch.cli import CannotLoadError, streams
from renderdispatch.cli.interrupts import Interrupted

COMMANDS: Final = {
    "demo": ("rendering", "Compose a short piece of music, and render it."),
    "doctor": ("doctor", "Check that this machine can render."),
    "jobs": ("jobs", "List, follow, cancel, save and delete the jobs of this home."),
    "modal": ("modal", "Deploy the render function to Modal, and check it."),
    "preview": ("preview", "Show one frame of a video before it is rendered."),
    "render": ("rendering", "Render SONG to a video."),
    "scenes": ("scenes", "List the scenes, or show the parameters of one."),
    "worker": ("worker", "Render the jobs of this home until Ctrl-C or SIGTERM."),
}
"""The module and the one-line help of each command: a module is imported when its command is called."""


class _Commands(click.Group):
    """Knows its commands by name and help, and imports one when it is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            try:
                command = getattr(import_module(f"renderdispatch.cli.{COMMANDS[name][0]}"), name)
            except Exception as error:
                raise CannotLoadError from error
        return name, command, rest


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="renderdispatch", prog_name="renderdispatch")
@click.pass_context
def cli(context: click.Context) -> None:
    """Render music to video, and be sure to get the result.

    Jobs and videos are kept in a home folder: 'renderdispatch doctor' shows which, and RENDERDISPATCH_HOME sets another
    one.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _name, (_, _help) in COMMANDS.items():
    cli.add_command(click.Command(_name, short_help=_help))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit status, and say in one line what went wrong."""
    try:
        return _run(arguments, as_json="--json" in arguments)
    except BrokenPipeError:  # the reader of the output closed it
        streams.drop_stdout()
        return 1


def _run(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        status = cli.main(list(arguments), prog_name="renderdispatch", standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as interrupted:
        return interrupted.exit_status
    except click.Abort:
        return 130
    except (BrokenPipeError, CannotLoadError):
        raise
    except Exception as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in {"click", "rich"}:
            raise CannotLoadError from error
        from renderdispatch.cli.failures import tell

        return tell(error, as_json=as_json)
    return status if isinstance(status, int) else 0

"""What do people and scripts see when a command fails, and what is its exit status?

Each failure is told once, where it is caught: in one line on stderr, and with ``--json`` in one line on stdout too.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import click

from renderdispatch import errors
from renderdispatch.cli import streams
from renderdispatch.cli.display import error_as_json, note, print_json, result_as_json

if TYPE_CHECKING:
    from renderdispatch.jobs import Job

_log: Final = logging.getLogger("renderdispatch.cli")

_REFUSED: Final = (
    errors.ConfigurationError,
    errors.IdempotencyConflictError,
    errors.InvalidRequestError,
    errors.JobNotFoundError,
    errors.ObjectExistsError,
    errors.QueueLimitError,
)


def tell(error: Exception, *, as_json: bool, job: Job | None = None, on_stderr: bool = False) -> int:
    """Print what went wrong; return the exit status: 2 if it was refused before anything was done, else 1.

    Args:
        error: What was raised. Errors that are neither the library's nor click's are bugs.
        as_json: Whether a script reads stdout.
        job: The job that failed. A script sees its id, its status, and its own error if it has one.
        on_stderr: Whether stdout is taken by a video, so that the script reads stderr.
    """
    _log.debug("the command failed", exc_info=error)
    suffix, more = "", dict[str, int]()
    match error:
        case errors.RenderDispatchError(code=code):
            status, message, suffix = 2 if isinstance(error, _REFUSED) else 1, str(error), f" [{code}]"
        case click.ClickException(exit_code=status):
            code, message = "command.usage", _with_help(error)
        case OSError(strerror=str(why)):
            status, code = 1, "system"
            message = why if error.filename is None else f"{click.format_filename(error.filename)}: {why}"
        case _:
            status, code = 1, "internal"
            message = f"this is a bug: {type(error).__name__}: {error} (-vv shows the traceback)"
    message = " ".join(message.split())
    if as_json:
        own = None if job is None else error_as_json(job)
        if isinstance(error, errors.QueueLimitError):
            more["retryAfterS"] = math.ceil(error.retry_after.total_seconds())
        with streams.unprinted():
            result = result_as_json(job, error=own or {"code": code, "message": message, **more})
            print_json(result, on_stderr=on_stderr)
    note(f"renderdispatch: error: {message}{suffix}")
    return status


def _with_help(error: click.ClickException) -> str:
    """Return what is wrong with the command line, and which help explains it."""
    message = error.format_message()
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return message
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} See '{error.ctx.command_path} --help'."

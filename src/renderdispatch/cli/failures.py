"""What do people and scripts hear when a command fails, and what is its exit status?

Each failure is told once, by whoever catches it: in one line on stderr, and with ``--json`` in one on stdout too.
"""

from __future__ import annotations

import logging
from typing import Final

import click

from renderdispatch.cli.display import error_as_json, print_json, print_result
from renderdispatch.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotFoundError,
    ObjectExistsError,
    RenderDispatchError,
)
from renderdispatch.jobs import Job

_log: Final = logging.getLogger("renderdispatch.cli")

_REFUSED: Final = (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotFoundError,
    ObjectExistsError,
)


def tell_error(error: RenderDispatchError, *, as_json: bool, job: Job | None = None) -> int:
    """Say what went wrong; return 2 for what was refused before anything was done, and 1 for all else.

    Args:
        error: What was raised.
        as_json: Whether a script listens.
        job: What it went wrong with; a script hears its id, its status, and its own error where it has one.
    """
    _log.debug("the command failed", exc_info=error)
    if as_json:
        of_job = None if job is None else error_as_json(job)
        print_result(job, error=of_job or {"code": error.code, "message": _one_line(str(error))})
    return _say(f"{error} [{error.code}]", 2 if isinstance(error, _REFUSED) else 1)


def tell_failure(message: str, status: int, *, code: str, as_json: bool) -> int:
    """Say what went wrong that is no error of the library; return ``status``. Only scripts hear the code."""
    if as_json:
        print_json({"error": {"code": code, "message": _one_line(message)}})
    return _say(message, status)


def _say(message: str, status: int) -> int:
    click.echo(f"renderdispatch: error: {_one_line(message)}", err=True)
    return status


def _one_line(message: str) -> str:
    return " ".join(message.split())

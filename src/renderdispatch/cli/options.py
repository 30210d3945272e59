"""Which options do several commands share?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from renderdispatch.cli.display import set_up_logs

_P = ParamSpec("_P")
_T = TypeVar("_T")

json_option = click.option("as_json", "--json", is_flag=True, help="Answer in JSON, for scripts.")


def logging_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Add ``-v`` and ``-q``, and set up the log before the command runs; it gets ``quiet``."""

    @click.option("-v", "--verbose", count=True, help="Log to stderr; -vv in detail.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
    @wraps(command)
    def logged(*args: Any, verbose: int, quiet: bool, **kwargs: Any) -> _T:
        set_up_logs(verbose=verbose, quiet=quiet)
        return command(*args, quiet=quiet, **kwargs)

    return logged

"""Which options do several commands share?"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import wraps
from typing import Any, Final, TypeVar

import click

from renderdispatch.cli.display import set_up_logs

_T = TypeVar("_T")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CLOCK: Final = re.compile(r"(?:(\d{1,3}):(?=[0-5]?\d:))?(\d{1,4}):([0-5]?\d(?:\.\d{1,9})?)", re.ASCII)
_CENTURY_S: Final = 36525 * 86400

output_path: Final = click.Path(readable=False)
"""The ``type=`` of a file that is written: whether it may be is the question of `renderdispatch.cli.targets`."""

json_option = click.option("as_json", "--json", is_flag=True, help="Print JSON, for scripts.")


def logging_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Add ``-v`` and ``-q``, and set up the log before the command runs; the command gets ``quiet``."""

    @click.option("-v", "--verbose", count=True, help="Log to stderr; -vv in detail.")
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
    @wraps(command)
    def logged(*args: Any, verbose: int, quiet: bool, **kwargs: Any) -> _T:
        set_up_logs(verbose=verbose, quiet=quiet)
        return command(*args, quiet=quiet, **kwargs)

    return logged


def read_time(text: str) -> float:
    """Read a time in a song, the ``type=`` of an option: seconds, m:ss or h:mm:ss, with decimals."""
    text = text.strip()
    with suppress(ValueError):
        return float(text)  # whether it makes sense is the question of the request
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text[:40]!r} is not a time; write seconds, m:ss or h:mm:ss: 90, 1:30 or 0:01:30.5.")
    hours, minutes, seconds = found.groups(default="0")
    return float(Decimal(seconds) + 60 * int(minutes) + 3600 * int(hours))


def seconds_reader(units: str, example: str) -> Callable[[str], int]:
    """Return the ``type=`` of an option that takes a time and gives seconds.

    Args:
        units: A regular expression of the units that are allowed.
        example: What the error message proposes.
    """

    def read(text: str) -> int:
        found = re.fullmatch(rf"(\d{{1,6}})({units})", text.strip())
        seconds = int(found[1]) * _UNITS[found[2]] if found else None
        if seconds is None or seconds > _CENTURY_S:
            raise click.BadParameter(f"{text[:40]!r} is not a time; write {example}.")
        return seconds

    return read

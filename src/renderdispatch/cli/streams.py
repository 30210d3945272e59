"""What if stdin, stdout or stderr are closed, full, or cannot show a character?

Nothing of that changes what a command does. Closed streams become ``/dev/null``. stderr takes what it can. A line on
stdout about work that is done is a line less; where the output is the work, as for ``jobs list``, it is an error.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_STDERR: Final = 2

closed: Final[set[int]] = set()
"""The numbers of the streams that were closed when the process started."""


class _Forgiving(io.TextIOWrapper):
    """Writes what can be written; a log that is full, or a terminal that is gone, ends nothing."""

    def write(self, text: str, /) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def prepare() -> None:
    """Make the standard streams of this process usable, before anything else gets their numbers."""
    with suppress(OSError):  # a system without /dev/null
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
            os.set_inheritable(descriptor, True)
            closed.add(descriptor)
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the life of the process
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    raw = open(2, "wb", buffering=0, closefd=False)  # noqa: SIM115 - for the life of the process
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = _Forgiving(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True)


def drop_stdout() -> None:
    """Send what is still to be written to stdout nowhere, so that the interpreter meets no error when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def unprinted() -> Iterator[None]:
    """Let a command go on whose output cannot be written, with a warning. A reader that had enough raises."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        sys.stderr.write(f"renderdispatch: warning: stdout cannot be written: {error.strerror}\n")


def flush_stdout() -> None:
    """Flush stdout at the end of the process. What cannot be written was told before."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop_stdout()

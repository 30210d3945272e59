"""What happens when somebody types ``renderdispatch``?

`main` runs the command line and exits with its status: 0 for success, 2 for a request that was refused before anything
was done, 1 for every other failure, 128 + n after signal n. People get one line on stderr, and never a traceback. A
line that cannot be printed changes the status only of commands whose work is to print.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

from renderdispatch.cli import streams

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class CannotLoadError(Exception):
    """A command, or the command line itself, cannot be imported; the cause says why."""


def main() -> NoReturn:
    """Run the command line of this process."""
    streams.prepare()
    for number in _SIGNALS:  # until a command has something to clean up, a signal ends the process silently
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda caught, _frame: os._exit(128 + caught))
    try:
        from renderdispatch.cli.app import run

        status = run(sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - `run` catches all but failed imports; those get one line too
        message, status = _explain(error.__cause__ if isinstance(error, CannotLoadError) else error)
        sys.stderr.write(f"renderdispatch: error: {message}\n")
    streams.flush_stdout()
    for number in _SIGNALS:  # the work is done: while the interpreter exits, a signal changes nothing any more
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _explain(error: BaseException | None) -> tuple[str, int]:
    """Return what to tell the user about a failed import, and the exit status."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in {"click", "rich"}:
        return "the command line needs the 'cli' extra: pip install 'renderdispatch[cli]'", 2
    from renderdispatch.cli.requirements import outdated

    message = " ".join(f"{type(error).__name__}: {error}".split())
    step = f"it needs {', '.join(wrong)}" if (wrong := outdated()) else "reinstall renderdispatch"
    return f"this installation is broken ({message}); {step}", 1

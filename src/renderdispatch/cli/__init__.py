"""What happens when somebody types ``renderdispatch``?

`main` loads the command line and turns whatever comes of it into an exit status: 0 when it went well, 2 for what was
refused before anything was done, 1 for everything else that went wrong, 128 + n after signal n. People get one line
on stderr, and never a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final, NoReturn

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_EXTRAS: Final = frozenset({"click", "rich"})


def main() -> NoReturn:
    """Run the command line of this process."""
    for number in _SIGNALS:  # until a command has something to clean up, a signal ends the process silently
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda caught, _frame: os._exit(128 + caught))
    try:
        from renderdispatch.cli.app import run
    except Exception as error:  # noqa: BLE001 - a broken installation is said in one line too
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _EXTRAS:
            sys.exit(_say("the command line needs the 'cli' extra: pip install 'renderdispatch[cli]'", 2))
        message = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(_say(f"this installation is broken ({message}); install renderdispatch anew", 1))
    status = run(sys.argv[1:])
    for number in _SIGNALS:  # all is done: while the interpreter winds up, a signal changes nothing any more
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"renderdispatch: error: {message}\n")
    return status

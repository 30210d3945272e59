"""Worker processes that are cheap to start and to kill: forks of one process that has imported everything.

``python -m tests.support.forked_workers MODULE LIFE_S`` is that process. It reads a command from each line of its input and
answers each with a line: ``start NAME {...}`` forks a worker, which calls a function of the module, and answers its
process id; ``wait PID`` answers how it ended, and ``kill PID`` kills it first. Workers end with the process that forked
them. `Workers` is its client.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module
from typing import Any, Final

_LIFE_S: Final = 100.0


class Workers:
    """The client of the process that forks workers.

    Args:
        module: Where the functions are that workers call.
        life_s: After so long a worker tells where its threads are, and ends: less than the test's time limit.
    """

    def __init__(self, module: str, *, life_s: float = _LIFE_S) -> None:
        command = [sys.executable, "-m", "tests.support.forked_workers", module, str(life_s)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, name: str, **arguments: Any) -> int:
        """Start a worker that calls a function of the module; return its process id."""
        return int(self._ask(f"start {name} {json.dumps(arguments)}"))

    def wait(self, pid: int) -> int:
        """Wait for a worker's end and return how it ended, as `os.waitstatus_to_exitcode` does."""
        return int(self._ask(f"wait {pid}"))

    def kill(self, pid: int) -> None:
        """Kill a worker."""
        self._ask(f"kill {pid}")

    def close(self) -> None:
        """End the process, and every worker with it."""
        self._process.communicate(timeout=_LIFE_S)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks workers has ended"
        return answer


def _fork(module: Any, what: str, lifeline: int, held: int, life_s: float) -> int:
    """Fork a worker that does not hold the other end of its lifeline."""
    if (pid := os.fork()) > 0:
        return pid
    os.close(held)
    name, _, arguments = what.partition(" ")
    faulthandler.dump_traceback_later(life_s, exit=True)
    try:
        threading.Thread(target=lambda: (os.read(lifeline, 1), os._exit(1)), daemon=True).start()
        getattr(module, name)(**json.loads(arguments))
        os._exit(0)
    except BaseException:
        logging.getLogger(__name__).exception("a worker failed")
    finally:
        os._exit(1)


def main() -> None:
    """Fork workers as the input says."""
    logging.basicConfig(level=logging.ERROR)
    module, life_s = import_module(sys.argv[1]), float(sys.argv[2])
    lifeline, held = os.pipe()
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "start":
            print(_fork(module, rest, lifeline, held, life_s), flush=True)
            continue
        if verb == "kill":
            os.kill(int(rest), signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(int(rest), 0)[1]), flush=True)


if __name__ == "__main__":
    main()

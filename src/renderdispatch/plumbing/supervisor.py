"""What ends a render whose parent is gone?

Run as a script, with nothing but the standard library: ``python supervisor.py LIFELINE_FD SCRATCH COMMAND...``; or
`supervise`, in a fork. It starts the command and waits. It ends the command, and everything that descends from it,
when the lifeline closes (a pipe whose other end the parent holds), when its parent process changes, or at SIGTERM:
SIGTERM first, SIGKILL a second later. Last it removes SCRATCH, the folder for temporary files.

``PR_SET_PDEATHSIG`` cannot do this: it follows the thread that started the child, not its process. The lifeline alone
is not enough: a sibling that was forked without exec holds it open. So the supervisor also checks the parent's id. As
a "subreaper" (Linux) it also inherits, and so finds, grandchildren that left the session.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

GRACE_S = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
"""What the supervisor handles, and what the command gets back in its default state."""

_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_RUN = 126


def _become_subreaper() -> None:
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> list[int]:
    found = []
    own = os.getpid()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(name))
    return found


def _kill_descendants() -> None:
    """Kill every child; orphaned grandchildren become children, so repeat until none is left."""
    deadline = time.monotonic() + GRACE_S
    while (children := _children()) and time.monotonic() < deadline:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _status_of(child: int) -> int | None:
    """Return how the child ended, -n by signal n; None while it runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid == child else None


def supervise(lifeline: int, scratch: str, spawn: Callable[[], int]) -> int:
    """Start a command and wait for its end, or bring it about; return its exit status, 128 + n for signal n.

    Args:
        lifeline: A descriptor that is readable, at its end, when the parent is gone.
        scratch: The folder to remove at last.
        spawn: Starts the command and returns its process id.
    """
    parent = os.getppid()
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    _become_subreaper()
    child = spawn()
    status = None
    lost = False
    watching = (
        select.poll()
    )  # `select.select` takes no descriptor above 1023, and a busy parent may only have such left
    watching.register(lifeline, select.POLLIN)
    watching.register(told, select.POLLIN)
    while status is None and not lost:
        ready = {descriptor for descriptor, _ in watching.poll(500)}
        status = _status_of(child)
        numbers = os.read(told, 512) if told in ready else b""
        asked = any(n in numbers for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        lost = lifeline in ready or asked or os.getppid() != parent
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        watching.unregister(lifeline)
        while status is None and time.monotonic() < deadline:
            watching.poll(20)
            status = _status_of(child)
    _kill_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    if lost:
        os.killpg(0, signal.SIGKILL)  # what is left of the session, this process included
    assert status is not None
    return status if status >= 0 else 128 - status


def main(arguments: list[str]) -> int:
    """Supervise the command of a command line; return its exit status, 126 as of shells if it cannot be run."""
    lifeline, scratch, command = int(arguments[0]), arguments[1], arguments[2:]

    def spawn() -> int:
        try:
            return os.posix_spawn(command[0], command, os.environ, setsigdef=SIGNALS)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            sys.stderr.write(f"{command[0]} cannot be run: {error.strerror}\n")
            sys.exit(_CANNOT_RUN)

    return supervise(lifeline, scratch, spawn)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

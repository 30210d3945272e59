"""What ends a render whose parent is gone?

Run as a script, with nothing but the standard library: ``python supervisor.py LIFELINE_FD SCRATCH COMMAND...``. It
starts the command in its own session and waits. When the lifeline (a pipe whose other end the parent holds)
closes, or its parent process changes, or it is told to by SIGTERM, it ends the command and everything that
descends from it: SIGTERM first, SIGKILL a second later. Last it removes SCRATCH, the folder for temporary files.

``PR_SET_PDEATHSIG`` cannot do this: it follows the thread that started the child, not its process. The
lifeline alone would do, but for a sibling that was forked without exec and holds it open: hence also the
look at the parent's id. As a "subreaper" (Linux) the supervisor also inherits, and so finds, grandchildren that
left the session.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time

GRACE_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36


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


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _watching(*descriptors: int) -> select.poll:
    """Not `select.select`, which takes no descriptor above 1023: a parent with many connections has only such ones."""
    watching = select.poll()
    for descriptor in descriptors:
        watching.register(descriptor, select.POLLIN)
    return watching


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status, 128 + n when signal n killed it."""
    lifeline, scratch, command = int(arguments[0]), arguments[1], arguments[2:]
    parent = os.getppid()
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _become_subreaper()
    child = os.posix_spawn(
        command[0], command, os.environ, setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]
    )
    status = None
    lost = False
    both = _watching(lifeline, told)
    while status is None and not lost:
        ready = {descriptor for descriptor, _ in both.poll(500)}
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid == child else None
        numbers = os.read(told, 512) if told in ready else b""
        asked = any(n in numbers for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        lost = lifeline in ready or asked or os.getppid() != parent
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        told_more = _watching(told)
        while status is None and time.monotonic() < deadline:
            told_more.poll(20)
            pid, found = os.waitpid(child, os.WNOHANG)
            status = found if pid == child else None
    _kill_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    if lost:
        os.killpg(0, signal.SIGKILL)  # whatever is left of the session, this process included
    assert status is not None
    return _exit_code(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

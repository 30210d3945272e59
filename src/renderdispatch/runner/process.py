"""How is a Python module run so that it cannot outlive this process?

Behind the supervisor, with JSON lines both ways: what this side writes goes to the module's stdin, what the
module answers comes over a descriptor of its own, so that stray prints from any library cannot spoil it. What
it prints (stdout and stderr) is kept, as the tail of a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO, Final

from renderdispatch.runner import supervisor

_EVENTS_FD: Final = "RENDERDISPATCH_EVENTS_FD"
_SYS_PATH: Final = "RENDERDISPATCH_SYS_PATH"
_LOG_LINES: Final = 200
_LINE_BYTES: Final = 1 << 20
_LOOK_S: Final = 0.5
"""How soon it is seen that the supervisor is gone, while what it watched goes on."""

# `python -m`, but with this process's own sys.path: notebooks and tests extend theirs. PYTHONPATH would leak
# into whatever programs the module starts.
_BOOT: Final = (
    "import json, os, runpy, sys; "
    f"sys.path[:] = json.loads(os.environ.pop({_SYS_PATH!r})); "
    "sys.argv[:] = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


class SupervisedProcess:
    """``python -m module``, its descendants included, bound to the life of this process.

    Its temporary files go to a folder of its own, which goes with it. One thread reads and ends it; any thread may
    write and kill.

    Args:
        module: What to run; `events_pipe` opens its end of the descriptor for answers.
        arguments: Its command line.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        scratch = tempfile.mkdtemp(prefix="renderdispatch-")
        held, lifeline = os.pipe()
        events, answers = os.pipe()
        path = [entry or str(Path.cwd()) for entry in sys.path]
        script = str(Path(supervisor.__file__))
        boot = [sys.executable, "-c", _BOOT, module, *arguments]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", script, str(held), scratch, *boot],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    _EVENTS_FD: str(answers),
                    _SYS_PATH: json.dumps(path),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": scratch,
                },
                pass_fds=(held, answers),
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline)
            os.close(events)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            os.close(held)
            os.close(answers)
        self._scratch = scratch
        self._lock = threading.Lock()
        self._lifeline: int | None = lifeline
        self._events: int | None = events
        self._buffer = b""
        self._lines: deque[bytes] = deque()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._drain = threading.Thread(target=self._keep_log, name="renderdispatch-log", daemon=True)
        try:
            self._drain.start()
        except RuntimeError as error:  # there are as many as there can be
            self.end()
            assert self._process.stdout is not None
            self._process.stdout.close()
            raise OSError(f"{error}") from error

    def write_line(self, line: str) -> None:
        """Send one line to the module's stdin; to one that is gone this does nothing."""
        stdin = self._process.stdin
        assert stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            stdin.write(line.encode() + b"\n")
            stdin.flush()

    def read_line(self, timeout_s: float | None = None) -> bytes | None:
        """Return the module's next line, ``b""`` at its end or its supervisor's, None when ``timeout_s`` passed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._events is None:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while not self._lines:
                orphaned = self._process.poll() is not None  # looked at first: what came before it is still read
                left_s = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
                if not selector.select(0 if orphaned else max(0.0, left_s)):
                    if orphaned:
                        return b""
                    if deadline is not None and time.monotonic() >= deadline:
                        return None
                    continue
                chunk = os.read(self._events, 65536)
                if not chunk or len(self._buffer) > _LINE_BYTES:
                    return b""
                *lines, self._buffer = (self._buffer + chunk).split(b"\n")
                self._lines.extend(line for line in lines if line)
        return self._lines.popleft()

    def kill(self) -> None:
        """Have the supervisor end the module and its descendants. A second call does nothing."""
        with self._lock:
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None

    def end(self, *, wait_s: float = 0.0) -> int:
        """Wait for the module to end, kill it after ``wait_s``, and return its exit status (128 + n for signal n)."""
        try:
            status = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.kill()
            try:
                status = self._process.wait(2 * supervisor.GRACE_S + 1)
            except subprocess.TimeoutExpired:
                status = -signal.SIGKILL
        if status < 0:  # the supervisor is stuck, was killed, or killed its own session: make sure of the session
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait()
        self.kill()
        if self._events is not None:
            os.close(self._events)
            self._events = None
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._drain.is_alive():
            self._drain.join(1)
        shutil.rmtree(self._scratch, ignore_errors=True)  # the supervisor did, unless it was killed
        return status if status >= 0 else 128 - status

    @property
    def log(self) -> list[str]:
        """The last lines that were printed."""
        return list(self._log)

    def _keep_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            while line := stdout.readline(4096):
                self._log.append(line.decode(errors="replace").rstrip())


def events_pipe() -> BinaryIO:
    """Open, in the module that runs, the descriptor for its answers, out of reach of the processes it starts.

    Raises:
        KeyError: No `SupervisedProcess` started this process.
    """
    fd = int(os.environ.pop(_EVENTS_FD))
    os.set_inheritable(fd, False)
    return os.fdopen(fd, "wb", buffering=0)


def describe_exit(status: int, log: list[str]) -> str:
    """Say how a process ended, with the last line that it printed."""
    how = f"was killed by {signal.Signals(status - 128).name}" if status > 128 else f"exited with status {status}"
    last = next((line.strip() for line in reversed(log) if line.strip()), "")
    return f"{how}: {last[:300]}" if last else how

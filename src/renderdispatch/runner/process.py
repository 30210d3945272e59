"""How does a render run so that it cannot outlive this process?

Behind the supervisor, with JSON lines both ways. What this side writes goes to the other side's stdin. What the other
side answers comes over a descriptor of its own, so that stray prints from any library cannot spoil it. What it prints
(stdout and stderr) is kept, as the tail of a log.
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
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from renderdispatch.plumbing import supervisor
from renderdispatch.plumbing.descriptors import beyond_standard_streams
from renderdispatch.plumbing.environment import of_renders
from renderdispatch.plumbing.interpreter import interpreter

_EVENTS_FD: Final = "RENDERDISPATCH_EVENTS_FD"
_HELD_FD: Final = "RENDERDISPATCH_HELD_FD"
_SYS_PATH: Final = "RENDERDISPATCH_SYS_PATH"
_LOG_LINES: Final = 200
_LINE_BYTES: Final = 1 << 20
_CHECK_S: Final = 0.5
"""How soon this side notices that the supervisor is gone while what it watched goes on."""

# `python -m`, but with this process's own sys.path: notebooks and tests extend theirs. PYTHONPATH would leak
# into whatever programs the module starts.
_BOOT: Final = (
    "import json, os, runpy, sys; "
    f"sys.path[:] = json.loads(os.environ.pop({_SYS_PATH!r})); "
    "sys.argv[:] = sys.argv[1:]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


class SupervisedProcess:
    """A process that is bound to the life of this one, its descendants included.

    Its temporary files go to a folder of its own, which goes with it. Of this process's environment it gets what
    `of_renders` lets through. One thread reads and ends it; any thread may
    write and kill.

    Args:
        target: The name of a module, which runs as by ``python -m``; or a function, which runs in a fork of this
            process. A fork starts in milliseconds, but only a process with one thread may fork. Either opens its end
            of the descriptor for answers by `events_pipe`.
        hold: A descriptor, such as that of a lock, that is also held open until nothing of the process runs any more:
            by its supervisor, and by a module too (see `held_descriptor`). It is not closed here.
        variables: More of its environment.

    Raises:
        OSError: It cannot be started.
        ConfigurationError: There is no program to start a module with.
    """

    def __init__(
        self,
        target: str | Callable[[], None],
        *,
        hold: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._scratch = tempfile.mkdtemp(prefix="renderdispatch-")
        ends: list[int] = []
        try:
            for _ in range(4):
                ends += map(beyond_standard_streams, os.pipe())
            held, lifeline, events, answers, read, stdin, stdout, printed = ends
            far = _FarEnds(held, answers, read, printed, self._scratch, hold, dict(variables or {}))
            self._process = _start_module(target, far) if isinstance(target, str) else _Fork(target, far)
        except BaseException:
            _close(ends)
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        _close((held, answers, read, printed))
        self._writing, self._killing = threading.Lock(), threading.Lock()  # two: who writes may wait for who reads
        self._lifeline: int | None = lifeline
        self._events: int | None = events
        self._stdin, self._stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self._buffer = b""
        self._lines: deque[bytes] = deque()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._drain = threading.Thread(target=self._keep_log, name="renderdispatch-log", daemon=True)
        try:
            self._drain.start()
        except RuntimeError as error:  # this process has as many threads as it may
            self.end()
            self._stdout.close()
            raise OSError(f"{error}") from error

    def write_line(self, line: str) -> None:
        """Send one line to its stdin; does nothing once it is gone."""
        with self._writing, contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()

    def read_line(self, timeout_s: float | None = None) -> bytes | None:
        """Return its next line, ``b""`` at its end or its supervisor's, None when ``timeout_s`` passed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._events is None:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while not self._lines:
                orphaned = self._process.poll() is not None  # asked first: what came before its end is still read
                left_s = _CHECK_S if deadline is None else min(_CHECK_S, deadline - time.monotonic())
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

    @property
    def pid(self) -> int:
        """The id of its supervisor, which all of its processes descend from."""
        return self._process.pid

    def kill(self) -> None:
        """Have the supervisor end it and its descendants. A second call does nothing."""
        with self._killing:
            if self._lifeline is not None:
                os.close(self._lifeline)
                self._lifeline = None

    def end(self, *, wait_s: float = 0.0) -> int:
        """Wait for its end, kill it after ``wait_s``, and return its exit status (128 + n for signal n)."""
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
        with self._writing, contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        if self._drain.is_alive():
            self._drain.join(1)
        shutil.rmtree(self._scratch, ignore_errors=True)  # the supervisor did, unless it was killed
        return status if status >= 0 else 128 - status

    @property
    def log(self) -> list[str]:
        """The last lines that were printed."""
        return list(self._log)

    def _keep_log(self) -> None:
        with self._stdout as stdout:
            while line := stdout.readline(4096):
                self._log.append(line.decode(errors="replace").rstrip())


class _FarEnds(NamedTuple):
    """What the other side gets: its ends of the pipes, its folder for temporary files, and what was asked for."""

    lifeline: int
    answers: int
    stdin: int
    output: int
    scratch: str
    hold: int | None
    variables: Mapping[str, str]

    @property
    def of_supervisor(self) -> tuple[int, ...]:
        """The descriptors that the supervisor keeps open."""
        return (self.lifeline,) if self.hold is None else (self.lifeline, self.hold)


def _start_module(module: str, far: _FarEnds) -> subprocess.Popen[bytes]:
    path = [entry or working for entry in sys.path if entry or (working := _working_directory())]
    python = interpreter()
    supervised = [python, "-I", "-S", str(Path(supervisor.__file__)), str(far.lifeline), far.scratch]
    own = {_EVENTS_FD: str(far.answers), _SYS_PATH: json.dumps(path), "PYTHONUNBUFFERED": "1", "TMPDIR": far.scratch}
    if far.hold is not None:
        own[_HELD_FD] = str(far.hold)
    return subprocess.Popen(
        [*supervised, python, "-c", _BOOT, module],
        stdin=far.stdin,
        stdout=far.output,
        stderr=subprocess.STDOUT,
        env={**of_renders(os.environ), **far.variables, **own},
        pass_fds=(*far.of_supervisor, far.answers),
        start_new_session=True,
    )


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was removed, and nothing can be imported from it
        return None


class _Fork:
    """A fork of this process that supervises another fork, which runs a function: as much of `subprocess.Popen`."""

    def __init__(self, function: Callable[[], None], far: _FarEnds) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _end_with(lambda: _supervise_fork(function, far))
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid == self.pid else None
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause_s = 0.0005
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)
        return status


def _supervise_fork(function: Callable[[], None], far: _FarEnds) -> int:
    """Run in the first fork: supervise a second one."""
    os.setsid()
    for descriptor, number in ((far.stdin, 0), (far.output, 1), (far.output, 2)):
        os.dup2(descriptor, number)
    _close_all_but(0, 1, 2, *far.of_supervisor, far.answers)

    def spawn() -> int:
        if (pid := os.fork()) == 0:
            _end_with(lambda: _run_function(function, far))
        return pid

    return supervisor.supervise(far.lifeline, far.scratch, spawn)


def _run_function(function: Callable[[], None], far: _FarEnds) -> int:
    """Run in the second fork, as if it was a program: nothing of the two processes above may leak into it."""
    signal.set_wakeup_fd(-1)
    for number in supervisor.SIGNALS:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    _close_all_but(0, 1, 2, far.answers)
    os.environ |= {**far.variables, _EVENTS_FD: str(far.answers), "TMPDIR": far.scratch}
    tempfile.tempdir = None
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - descriptors
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    function()
    return 0


def _end_with(body: Callable[[], int]) -> None:
    """End this fork with the status that ``body`` returns; its parent's `atexit` functions are not its own."""
    status = 1
    try:
        status = body()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 - for the log, as the interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status & 0xFF)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _close_all_but(*kept: int) -> None:
    _close({int(name) for name in os.listdir("/dev/fd")}.difference(kept))  # noqa: PTH208 - names, not paths


def events_pipe() -> BinaryIO:
    """Open, in the process that was started, the descriptor for its answers, out of reach of the programs it starts.

    Raises:
        KeyError: No `SupervisedProcess` started this process.
    """
    fd = int(os.environ.pop(_EVENTS_FD))
    os.set_inheritable(fd, False)
    return os.fdopen(fd, "wb", buffering=0)


def held_descriptor() -> int | None:
    """Return, in a module that was started, what it is to hold, out of reach of the programs it starts; None: nothing.

    It stays open until this process ends. What this process starts in its turn may outlive it for a moment: have its
    supervisor hold it too.
    """
    said = os.environ.pop(_HELD_FD, None)
    if said is None:
        return None
    os.set_inheritable(int(said), False)
    return int(said)


def has_parent() -> bool:
    """Return whether a `SupervisedProcess` started this process, whose environment then holds no secret."""
    return _EVENTS_FD in os.environ


def describe_exit(status: int, log: list[str]) -> str:
    """Say how a process ended, with the last line that it printed."""
    how = f"was killed by {signal.Signals(status - 128).name}" if status > 128 else f"exited with status {status}"
    last = next((line.strip() for line in reversed(log) if line.strip()), "")
    return f"{how}: {last[:300]}" if last else how

"""How does a program run so that it ends when its render does, and fails clearly when it misbehaves?

It runs behind the supervisor, which ends it and all that it started when this process ends in whatever way. What it
prints is read in bounded memory. It can neither fill the disk nor print without end.
"""

from __future__ import annotations

import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Final, Self

from attrs import define, field, frozen

from renderdispatch.errors import AudioError, ConfigurationError, RenderError, SceneError
from renderdispatch.messages import FaultDomain
from renderdispatch.plumbing import supervisor
from renderdispatch.plumbing.descriptors import beyond_standard_streams
from renderdispatch.plumbing.environment import of_renders
from renderdispatch.plumbing.interpreter import interpreter

FAULTS: Final[Mapping[FaultDomain, type[RenderError]]] = {
    FaultDomain.AUDIO: AudioError,
    FaultDomain.SCENE: SceneError,
    FaultDomain.INFRASTRUCTURE: RenderError,
}
"""Whose fault an exit status may be, and the error that says so."""

_READ_BYTES: Final = 1 << 16
_READ_AT_ONCE: Final = 64
"""Chunks that are read before anything else is checked."""
_LINE_BYTES: Final = 4096
_KEPT_LINES: Final = 20
"""The lines at the end of a chunk that are looked at: a program that prints fast says its progress often."""
_DISK_EVERY_S: Final = 0.25
_TAIL_LINES: Final = 3
_TAIL: Final = 500
"""The lines and the characters that a message quotes: a program often says what is wrong before its last line."""
_NO_SPACE: Final = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_ENDS: Final = re.compile(rb"[\r\n]+")


@frozen(kw_only=True)
class Bounds:
    """What a program may do at most.

    Args:
        printed: Bytes that it prints.
        written: Bytes of its files at one time.
        keep_free: Bytes of the file system that it leaves free; None: 1 GiB, or 5 % of a small one.
    """

    printed: int
    written: int
    keep_free: int | None = None


@define(eq=False)
class Printed:
    """Takes what a program prints, by pieces; keeps the last lines and the latest progress.

    Args:
        progress: A pattern with a group ``frame``, ``seconds`` or ``percent``; None: it is not looked for.
    """

    progress: re.Pattern[str] | None = None
    size: int = 0
    _open: bytes = b""
    _lines: deque[str] = field(factory=lambda: deque[str](maxlen=_KEPT_LINES))
    _latest: tuple[str, float] | None = None

    def take(self, piece: bytes) -> None:
        """Take the next bytes. Lines end with a line feed or, as those of progress, with a carriage return."""
        self.size += len(piece)
        *complete, rest = (self._open + piece).replace(b"\r", b"\n").rsplit(b"\n", _KEPT_LINES)
        self._open = rest[:_LINE_BYTES]
        for line in complete:
            self._see(line)

    def end(self) -> None:
        """Take a last line that has no end."""
        self._see(self._open)
        self._open = b""

    @property
    def tail(self) -> str:
        """The last lines that are not blank, as a part of a message; empty if there are none."""
        said = " | ".join(list(self._lines)[-_TAIL_LINES:])[-2 * _TAIL :]
        said = "".join(sign if sign.isprintable() else " " for sign in said)
        return f": {said if len(said) <= _TAIL else '...' + said[-_TAIL:]}" if said else ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines that are not blank."""
        return tuple(self._lines)

    def frames(self, *, fps: float, total: int) -> int | None:
        """Return how many frames the latest progress means; None if there was none yet."""
        if self._latest is None:
            return None
        unit, number = self._latest
        scale = {"frame": 1.0, "seconds": fps, "percent": total / 100}[unit]
        return min(max(int(number * scale), 0), total)

    def _see(self, line: bytes) -> None:
        # the first of the split lines may hold many earlier ones, which only the last of is kept
        text = line.rpartition(b"\n")[2][-_LINE_BYTES:].decode(errors="replace").strip()
        if not text:
            return
        self._lines.append(text)
        if self.progress is not None and (found := self.progress.search(text)):
            for unit, number in found.groupdict().items():
                with suppress(ValueError, TypeError):
                    if isfinite(value := float(number)):
                        self._latest = unit, value


class Program:
    """A program that runs until its end, or until the ``with`` block ends. Use it in one thread.

    Args:
        words: The program, by its path, and its arguments.
        folder: Where its files are: it works there, and what is in it counts as written by it. A folder for temporary
            files is made there.
        environment: Variables, beside those that renders get.
        bounds: What it may do at most.
        progress: As of `Printed`.

    Raises:
        SceneError: Its arguments are too long for the system (``command.failed``).
        RenderError: The system cannot start it now (``command.failed``).
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        bounds: Bounds,
        progress: re.Pattern[str] | None = None,
    ) -> None:
        self.name: Final = Path(words[0]).name
        self.printed: Final = Printed(progress)
        folder = folder.absolute()  # the program works in it
        self._folder, self._bounds = folder, bounds
        self._next_check = 0.0
        scratch = folder / "tmp"
        scratch.mkdir()
        variables = {**of_renders(os.environ), "TMPDIR": str(scratch), **environment}
        self._selector = selectors.DefaultSelector()
        try:
            held, self._lifeline = map(beyond_standard_streams, os.pipe())
        except BaseException:
            self._selector.close()
            raise
        try:
            self._process = subprocess.Popen(
                [interpreter(), "-I", "-S", supervisor.__file__, str(held), str(scratch), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=variables,
                pass_fds=(held,),
                start_new_session=True,
            )
        except BaseException as error:
            os.close(self._lifeline)
            self._selector.close()
            if isinstance(error, OSError):
                raise self._not_started(error) from error
            raise
        finally:
            os.close(held)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._selector.register(self._output, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait(self, longest_s: float) -> int | None:
        """Read what it prints for a while; return its exit status once it has ended, -n by signal n.

        Raises:
            SceneError: ``command.printed-too-much`` or ``command.wrote-too-much``.
            RenderError: ``disk.full``: it leaves too little of the disk free.
        """
        status = self._process.poll()  # before the last bytes are read
        if status is None:
            if self._selector.get_map():
                self._selector.select(longest_s)
            else:  # it closed its output, and goes on
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(longest_s)
        self._read(_READ_AT_ONCE)
        self._check()
        if status is None:
            return None
        self.printed.end()
        return 128 - status if status - 128 in set(signal.Signals) else status  # the supervisor says 128 + n

    def end(self) -> None:
        """End it, and all that it started. A second call does nothing."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            status = self._process.wait(2 * supervisor.GRACE_S + 1)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        if status < 0:  # the supervisor is stuck, was killed, or killed its own session: make sure of the session
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._selector.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def error_of(self, status: int, faults: Mapping[int, FaultDomain]) -> RenderError:
        """Return what an exit status other than 0 means."""
        last = self.printed.tail
        free, kept = self._free_and_kept()
        if free < kept or any(map(_NO_SPACE.search, self.printed.lines)):
            return RenderError(f"no space is left for the files of {self.name}{last}", code="disk.full")
        if status < 0 and 128 - status not in faults:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            return RenderError(f"{self.name} was killed by {name}{last}", code="command.killed")
        status = 128 - status if status < 0 else status
        kind = FAULTS[faults.get(status, FaultDomain.SCENE)]
        return kind(f"{self.name} exited with status {status}{last}", code="command.failed")

    def _not_started(self, error: OSError) -> RenderError:
        kind = SceneError if error.errno == errno.E2BIG else RenderError
        return kind(f"{self.name} cannot be started: {error.strerror}", code="command.failed")

    def _read(self, most: int) -> None:
        for _ in range(most):
            try:
                piece = os.read(self._output, _READ_BYTES)
            except BlockingIOError:
                return
            if not piece:
                if self._selector.get_map():
                    self._selector.unregister(self._output)
                return
            self.printed.take(piece)

    def _check(self) -> None:
        if self.printed.size > self._bounds.printed:
            message = f"{self.name} printed more than {_mib(self._bounds.printed)}, and was ended"
            raise SceneError(f"{message}{self.printed.tail}", code="command.printed-too-much")
        now = time.monotonic()
        if now < self._next_check:
            return
        written = _size_of(self._folder)
        if written > self._bounds.written:
            message = f"the files of {self.name} took more than {_mib(self._bounds.written)}, and it was ended"
            raise SceneError(f"{message}; max_written raises the limit", code="command.wrote-too-much")
        free, kept = self._free_and_kept()
        if free < kept:
            message = f"{_mib(free)} of the disk are left, and {_mib(kept)} are kept free: {self.name} was ended"
            raise RenderError(message, code="disk.full")
        self._next_check = time.monotonic() + max(_DISK_EVERY_S, 10 * (time.monotonic() - now))

    def _free_and_kept(self) -> tuple[int, int]:
        try:
            disk = shutil.disk_usage(self._folder)
        except FileNotFoundError as error:
            message = f"{self.name} removed the folder that it worked in{self.printed.tail}"
            raise SceneError(message, code="command.no-output") from error
        kept = self._bounds.keep_free
        return disk.free, min(1 << 30, disk.total // 20) if kept is None else kept


def find_program(word: str, environment: Mapping[str, str], *, install: str | None = None) -> str:
    """Return the path of a program.

    Args:
        word: Its name, or its path.
        environment: Variables beside this process's own.
        install: The command that installs it.

    Raises:
        ConfigurationError: ``command.missing``.
    """
    path = environment.get("PATH", os.environ.get("PATH", os.defpath))
    if (found := shutil.which(word, path=path)) is not None:
        return os.path.abspath(found)  # noqa: PTH100 - a link to a program stays one: Python finds its venv so
    why = "cannot be executed" if "/" in word and Path(word).exists() else "was not found"
    advice = f"; install it: {install}" if install else "; install it, or add its folder to PATH"
    raise ConfigurationError(f"the program {word!r} {why}{advice}", code="command.missing")


def _size_of(folder: Path) -> int:
    """Return how many bytes of the disk the files of a folder take. Files may come and go meanwhile."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"

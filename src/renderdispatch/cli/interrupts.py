"""What do Ctrl-C and SIGTERM do while a command works?

The first signal is noted, wakes `Interrupts.wait`, and the command winds down. A second one ends the process at once;
its renders end with it, because their supervisors hold a lifeline. A signal that the process was started to ignore
(``nohup``, a job in the background) stays ignored.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR: Final = b"\x1b[?25h\n"


class Interrupted(BaseException):
    """Raised where `Interrupts.abrupt` allows it. It is not an `Exception`, so that no handler takes it for a failure.

    Args:
        exit_status: The exit status of the process.
    """

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class Interrupts:
    """Notes signals. A context manager for the main thread."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._abrupt = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        self._woken, self._wake = os.pipe()
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # what `getsignal` returned
        os.close(self._woken)
        os.close(self._wake)

    @property
    def received(self) -> bool:
        """Whether a signal came."""
        return self._received is not None

    @property
    def exit_status(self) -> int:
        """The exit status of the process after the signal: 130 after Ctrl-C."""
        assert self._received is not None
        return 128 + self._received

    def wait(self, seconds: float | None = None) -> None:
        """Wait until a signal comes, at most for ``seconds``."""
        select.select([self._woken], [], [], seconds)

    @contextmanager
    def abrupt(self) -> Iterator[None]:
        """Let a signal raise `Interrupted` here, at any instruction."""
        self._abrupt = True
        try:
            if self.received:
                raise Interrupted(self.exit_status)
            yield
        finally:
            self._abrupt = False

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if self._received is not None:
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            os._exit(128 + number)
        self._received = number
        os.write(self._wake, b"!")
        if self._abrupt:
            raise Interrupted(128 + number)

"""What do Ctrl-C and SIGTERM do while a command works?

The first one is noted, and the command winds down: whoever waits, waits here, and is woken at once. A second one
ends the process on the spot; its renders end with it, for their supervisors hold a lifeline. A signal that the
process was started to ignore (``nohup``, a job in the background) stays ignored.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR: Final = b"\x1b[?25h\n"


class Interrupted(BaseException):
    """Raised where `Interrupts.abrupt` allows it; no `Exception`, so that nobody mistakes it for a failure.

    Args:
        exit_status: What the process is to exit with.
    """

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


class Interrupts:
    """Notes signals; a context manager of the main thread."""

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

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        os.close(self._woken)
        os.close(self._wake)

    @property
    def received(self) -> bool:
        return self._received is not None

    @property
    def exit_status(self) -> int:
        """What the process exits with after the signal: 130 after Ctrl-C."""
        assert self._received is not None
        return 128 + self._received

    def wait(self, seconds: float | None = None) -> None:
        """Wait, at most until a signal comes."""
        select.select([self._woken], [], [], seconds)

    @contextmanager
    def abrupt(self) -> Iterator[None]:
        """Have a signal raise `Interrupted` in here, where every instruction may be the last one."""
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

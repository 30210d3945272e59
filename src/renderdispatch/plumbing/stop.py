"""How is work told to stop, from another thread, and why?

By a `Stop`, in the manner of a cancel scope: it has a deadline, a reason, callbacks, and children that stop with it.
The work calls `check` at its steps, or sleeps by `wait`; what blocks elsewhere is cut off by a callback.

A platform that takes a container away throws an exception into its main thread, at any instruction. So `request` takes
no lock: an exception in the midst of it leaves nothing behind, and a second call does all of it again.
"""

from __future__ import annotations

import _thread
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_TIME_IS_UP: Final = "its time is up"


class Stopped(Exception):
    """The work was told to stop; the text says why."""


class Stop:
    """A stop signal for one piece of work. Safe to share between threads.

    Args:
        timeout_s: Seconds from now until the deadline; None is no deadline.
        parent: Stops this one too.
        error: What `check` raises for a request, made from the reason.
        late: What `check` raises past the deadline, made from a text; None is as ``error``.
        monotonic: The clock of the deadline; seconds.
    """

    def __init__(
        self,
        *,
        timeout_s: float | None = None,
        parent: Stop | None = None,
        error: Callable[[str], BaseException] = Stopped,
        late: Callable[[str], BaseException] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._deadline = math.inf if timeout_s is None else monotonic() + timeout_s
        self._parent = parent
        self._error = error
        self._late = late or error
        self._reason: str | None = None
        self._callbacks: list[Callable[[], None]] = []
        if parent is not None:
            parent.on_request(self._call_back)

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the parent: what it is told from now on is no business of this work."""
        if self._parent is not None:
            self._parent.forget(self._call_back)

    def child(
        self,
        *,
        timeout_s: float | None = None,
        error: Callable[[str], BaseException] | None = None,
        late: Callable[[str], BaseException] | None = None,
    ) -> Stop:
        """Return a stop that ends with this one, and may end sooner. Use it as a context manager.

        Args:
            timeout_s: As of `Stop`; the parent's deadline holds all the same.
            error: As of `Stop`; None is the parent's.
            late: As of `Stop`; None is the parent's.
        """
        return Stop(
            timeout_s=timeout_s,
            parent=self,
            error=error or self._error,
            late=late or self._late,
            monotonic=self._monotonic,
        )

    @property
    def reason(self) -> str | None:
        """Why the work is to stop; None while it is to go on."""
        if self._parent is not None and (above := self._parent.reason) is not None:
            return above
        if self._reason is not None:
            return self._reason
        return _TIME_IS_UP if self._monotonic() >= self._deadline else None

    @property
    def requested(self) -> bool:
        """Whether the work is to stop: it was told to, or its time is up."""
        return self.reason is not None

    @property
    def remaining_s(self) -> float:
        """Seconds until the nearest deadline, this one's or a parent's; infinite without one, never below 0."""
        above = math.inf if self._parent is None else self._parent.remaining_s
        return max(0.0, min(above, self._deadline - self._monotonic()))

    def request(self, reason: str) -> None:
        """Have the work stop. The first reason counts; a second call calls the callbacks again, and does no harm."""
        if self._reason is None:
            self._reason = reason
        self._call_back()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the work is told to stop, or now where it was. It may be called again.

        A deadline calls nothing: what waits for long bounds itself by `remaining_s`.
        """
        self._callbacks.append(callback)
        if self._was_requested:
            callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` no longer. One that is not known is no error."""
        with suppress(ValueError):
            self._callbacks.remove(callback)

    def check(self) -> None:
        """Raise what the constructor was given, the parent's first, once the work is to stop."""
        if self._parent is not None:
            self._parent.check()
        if self._reason is not None:
            raise self._error(self._reason)
        if self._monotonic() >= self._deadline:
            raise self._late(_TIME_IS_UP)

    def wait(self, seconds: float) -> bool:
        """Sleep, until the work is told to stop or its deadline at the latest; return whether it is to stop."""
        bell = _thread.allocate_lock()  # not an Event, whose own lock an exception in `request` could leave behind
        bell.acquire()

        def ring() -> None:
            with suppress(RuntimeError):  # it rang before
                bell.release()

        self.on_request(ring)
        try:
            left_s = min(seconds, self.remaining_s)
            if left_s > 0 and not self._was_requested:
                bell.acquire(timeout=min(left_s, _thread.TIMEOUT_MAX))
        finally:
            self.forget(ring)
        return self.requested

    @property
    def _was_requested(self) -> bool:
        stop: Stop | None = self
        while stop is not None:
            if stop._reason is not None:  # noqa: SLF001 - one of its own kind
                return True
            stop = stop._parent  # noqa: SLF001 - likewise
        return False

    def _call_back(self) -> None:
        for callback in tuple(self._callbacks):
            callback()


class RunLeft(BaseException):
    """Raised within a run that is to leave; no `Exception`, so that nobody mistakes it for a failure to report."""


class Leaving:
    """Says to one run that it is to leave. Safe to share between threads.

    No `threading.Event`: what is thrown into `leave` could leave the lock of one behind, and the next call would wait
    for it for good.
    """

    def __init__(self) -> None:
        self._asked = False
        self._cuts: list[Callable[[], None]] = []

    @property
    def asked(self) -> bool:
        return self._asked

    def leave(self) -> None:
        """Have the run leave; what it waits for is cut off. A second call does no harm."""
        self._asked = True
        for cut in tuple(self._cuts):
            cut()

    def on_leave(self, cut: Callable[[], None]) -> None:
        """Have ``cut`` called by `leave`, or now where it was called before. It may be called again."""
        self._cuts.append(cut)
        if self.asked:
            cut()

    def check(self) -> None:
        """Raise `RunLeft` once the run is to leave."""
        if self.asked:
            raise RunLeft

"""How is work told to stop, from another thread, and why?

By a `Stop`, in the manner of a cancel scope. It has a deadline, a reason, callbacks, and children that stop with it.
The work calls `check` at its steps, or sleeps by `wait`. A callback ends whatever blocks elsewhere.

A platform that takes a container away throws an exception into its main thread, at any instruction. So `request` takes
no lock: an exception in the middle of it leaves nothing locked, and a second call repeats all of it.
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


class Bell:
    """Wakes the one thread that waits. A ring while no thread waits ends the next wait at once.

    Unlike `threading.Event`, it has no lock of its own that an exception thrown into `ring` could leave locked.
    """

    def __init__(self) -> None:
        self._silence = _thread.allocate_lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake the thread that waits. A second ring before it wakes does nothing."""
        with suppress(RuntimeError):  # it rang before
            self._silence.release()

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most so many seconds; return whether one came."""
        return self._silence.acquire(timeout=max(0.0, min(seconds, _thread.TIMEOUT_MAX)))


class Stop:
    """A stop signal for one piece of work. Safe to share between threads.

    Args:
        timeout_s: Seconds from now until the deadline; None: no deadline.
        parent: A stop whose end also ends this one. Leave this one as a context manager when its work is done.
        error: Makes, from the reason, what `check` raises after a request.
        late: Makes, from a text, what `check` raises past the deadline; None: as ``error``.
        monotonic: The clock of the deadline, in seconds.
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
        """Leave the parent: later requests to it no longer reach this work."""
        if self._parent is not None:
            self._parent.forget(self._call_back)

    @property
    def reason(self) -> str | None:
        """Why the work is to stop; None while it may go on."""
        asked = self._asked()
        return _TIME_IS_UP if asked is None and self.remaining_s <= 0 else asked

    @property
    def requested(self) -> bool:
        """Whether the work is to stop, by a request or by its deadline."""
        return self.reason is not None

    @property
    def remaining_s(self) -> float:
        """Seconds until the nearest deadline, this one's or a parent's: infinite without one, never below 0."""
        above = math.inf if self._parent is None else self._parent.remaining_s
        return max(0.0, min(above, self._deadline - self._monotonic()))

    def request(self, reason: str) -> None:
        """Have the work stop. The first reason counts. A second call calls the callbacks again, which does no harm."""
        if self._reason is None:
            self._reason = reason
        self._call_back()

    def on_request(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the work is told to stop, or now if it was already. It may be called twice.

        A deadline calls nothing: code that waits for long limits its wait to `remaining_s`.
        """
        self._callbacks.append(callback)
        if self._asked() is not None:
            callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Stop calling ``callback``. An unknown one is ignored."""
        with suppress(ValueError):
            self._callbacks.remove(callback)

    def check(self) -> None:
        """Raise the error of the constructor once the work is to stop; the parent's error comes first."""
        if self._parent is not None:
            self._parent.check()
        if self._reason is not None:
            raise self._error(self._reason)
        if self._monotonic() >= self._deadline:
            raise self._late(_TIME_IS_UP)

    def wait(self, seconds: float) -> bool:
        """Sleep for so many seconds, less when the work is to stop; return whether it is to stop."""
        bell = Bell()
        self.on_request(bell.ring)
        try:
            bell.wait(min(seconds, self.remaining_s))
        finally:
            self.forget(bell.ring)
        return self.requested

    def _asked(self) -> str | None:
        """Return the reason of the highest request, here or above; a deadline is none."""
        above = None if self._parent is None else self._parent._asked()  # noqa: SLF001 - one of its own kind
        return self._reason if above is None else above

    def _call_back(self) -> None:
        for callback in tuple(self._callbacks):
            callback()

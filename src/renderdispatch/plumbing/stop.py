"""How is a run ended at once, from another thread, and without a word to anybody?

A platform that takes a container away throws an exception into its main thread, wherever that may stand. The run goes
on in a thread of its own, where nothing is thrown: it is asked to leave, sees that at its next step, and cleans up.
"""

from __future__ import annotations

from collections.abc import Callable


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

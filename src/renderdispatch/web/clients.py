"""What does a slow client cost? Its own connection, and nothing that other clients need.

`Pace` says how slow a client may be. `Room` bounds how many uploads are open at once, so that the threads of a server
are left for other requests. `Watch` ends, in servers that read and write without a time limit, what is too slow.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from attrs import define, field

from renderdispatch.plumbing.per_process import PerProcess

_TICK_S: Final = 0.25
_SOCKETS: Final = ("gunicorn.socket", "werkzeug.socket")
_NEVER: Final = float("inf")


class BusyError(Exception):
    """As many clients as there is room for are being served already."""


@define
class Pace:
    """How slow a client may be. Only the time in which it is waited for counts.

    Args:
        stall_s: The longest wait in which nothing moves.
        grace_s: How long a client may fall behind the least rate.
        least_rate: Bytes a second.
    """

    stall_s: float = 30.0
    grace_s: float = 30.0
    least_rate: float = 1024.0
    _moved: int = field(default=0, init=False)
    _waited_s: float = field(default=0.0, init=False)

    def patience_s(self, size: int = 0) -> float:
        """Return how long to wait now for a piece of ``size`` bytes; 0: whatever comes."""
        behind_s = self._waited_s - self._moved / self.least_rate
        return max(0.0, min(self.stall_s, self.grace_s - behind_s)) + size / self.least_rate

    def count(self, size: int, waited_s: float) -> None:
        """Count a piece that took ``waited_s`` to come or go."""
        self._moved += size
        self._waited_s += waited_s


def downloads() -> Pace:
    """Return the pace of a download. A player that is paused takes nothing for a while, and may go on."""
    return Pace(stall_s=600.0, grace_s=60.0)


class Room:
    """Bounds how many clients are served at once.

    Args:
        total: Of all kinds.
        each: Of one kind.
    """

    def __init__(self, total: int, *, each: int | None = None) -> None:
        self._total = total
        self._each = total if each is None else each
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def enter(self, kind: str = "") -> Iterator[None]:
        """Take a place for the length of the block.

        Raises:
            BusyError: There is none.
        """
        with self._lock:
            if self._inside.total() >= self._total or self._inside[kind] >= self._each:
                raise BusyError
            self._inside[kind] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[kind] -= 1
                if self._inside[kind] <= 0:
                    del self._inside[kind]


# --- servers that wait without end ----------------------------------------------------------------


class Waiting:
    """A client of a WSGI server. The waits for it end by themselves where the server shows its socket.

    Args:
        environ: Of the request.
        pace: How slow the client may be.
        takes: Whether the client takes a response, and does not send.
    """

    def __init__(self, environ: Mapping[str, Any], pace: Pace, *, takes: bool = False) -> None:
        self._cut = _cutter(environ, socket.SHUT_RDWR if takes else socket.SHUT_RD)
        self.pace = pace
        self.late_at = _NEVER
        self.was_cut = False
        self._began = 0.0

    @property
    def ends(self) -> bool:
        """Whether a wait for this client surely ends."""
        return self._cut is not None

    def begin(self, size: int) -> None:
        """Begin to wait for a piece of at most ``size`` bytes. Call `end` in any case."""
        self._began = time.monotonic()
        if self._cut is not None:
            _watch.get().add(self, self._began + self.pace.patience_s(size))

    def end(self, size: int) -> float:
        """End the wait, with a piece of ``size`` bytes; return how many seconds it took."""
        if self._cut is not None:
            _watch.get().remove(self)
        waited_s = time.monotonic() - self._began
        self.pace.count(size, waited_s)
        return waited_s

    def cut(self) -> None:
        """End the wait of another thread: for the server it looks as if the client had gone."""
        self.was_cut = True
        if self._cut is not None:
            self._cut()


class _Watch:
    """A thread that cuts off clients once they are late."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[Waiting] = set()
        self._thread: threading.Thread | None = None

    def add(self, client: Waiting, late_at: float) -> None:
        client.late_at = late_at
        with self._changed:
            self._waiting.add(client)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="renderdispatch-slow-clients", daemon=True)
                with suppress(RuntimeError):  # no thread can be started now: the next client tries again
                    thread.start()
                    self._thread = thread
            elif len(self._waiting) == 1:
                self._changed.notify()

    def remove(self, client: Waiting) -> None:
        """Forget a client: afterwards its socket may be closed, for nothing here uses it any more."""
        with self._changed:
            self._waiting.discard(client)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._changed.wait()
                now = time.monotonic()
                for client in self._waiting:
                    if client.late_at <= now and not client.was_cut:
                        client.cut()
            time.sleep(_TICK_S)


_watch: Final = PerProcess(_Watch)


def _cutter(environ: Mapping[str, Any], how: int) -> Callable[[], None] | None:
    """Return what shuts the connection of a request down; None where the server hides it."""
    shown = next((environ[name] for name in _SOCKETS if name in environ), None)
    try:
        descriptor = (environ["wsgi.input"] if shown is None else shown).fileno()
        with socket.socket(fileno=os.dup(descriptor)):
            pass  # it is a socket
    except (AttributeError, OSError, ValueError):
        return None

    def cut() -> None:
        # not `SSLSocket.shutdown`, which drops the TLS layer under another thread's hands
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(how)

    return cut

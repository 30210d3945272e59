"""Which renders run in threads of this process, and how did the last ones end?"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Final

from attrs import define, field

from renderdispatch.errors import BackendError
from renderdispatch.messages import Completed, Failed
from renderdispatch.protocols import BackendCall, CallState, CallStatus

_log: Final = logging.getLogger("renderdispatch.backends")

_REMEMBERED: Final = 1000

Body = Callable[[BackendCall], Completed | Failed]


@define
class _Call:
    stop: Callable[[], None]
    thread: threading.Thread | None = None
    outcome: Completed | Failed | None = None
    running: bool = field(default=True)


class ThreadCalls:
    """The calls of a backend that gives each render a thread."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._calls: dict[str, _Call] = {}

    def _here(self) -> threading.Lock:
        """Return the lock of this process: after a fork, the calls of the parent are none of the child's business."""
        if self._pid != os.getpid():
            self._begin()
        return self._lock

    def start(self, body: Body, stop: Callable[[], None]) -> BackendCall:
        """Run ``body`` in a thread; ``stop`` makes it end soon, and may be called at any time, by any thread.

        Raises:
            BackendError: All slots are taken, the backend is closed, or no thread can be started.
        """
        call = BackendCall(uuid.uuid4().hex)
        entry = _Call(stop)
        entry.thread = threading.Thread(
            target=self._run, args=(call, entry, body), name=f"renderdispatch-call-{call.id[:8]}", daemon=True
        )
        with self._here():
            if self._closed:
                raise BackendError("the backend is closed", retryable=True, code="backend.closed")
            if sum(c.running for c in self._calls.values()) >= self.slots:
                raise BackendError(f"all {self.slots} slots are taken", retryable=True, code="backend.busy")
            ended = [key for key, c in self._calls.items() if not c.running]
            for key in ended[: max(0, len(ended) - _REMEMBERED)]:
                del self._calls[key]
            self._calls[call.id] = entry
            try:
                entry.thread.start()
            except RuntimeError as error:
                del self._calls[call.id]
                raise BackendError(f"the call cannot be started: {error}", retryable=True) from error
        return call

    def poll(self, call: BackendCall) -> CallState:
        """Return how the call stands."""
        with self._here():
            entry = self._calls.get(call.id)
        if entry is None:
            return CallState(status=CallStatus.MISSING)
        if entry.running:
            return CallState(status=CallStatus.RUNNING)
        return CallState(status=CallStatus.ENDED, outcome=entry.outcome)

    def cancel(self, call: BackendCall) -> None:
        """Have the call end soon."""
        with self._here():
            entry = self._calls.get(call.id)
        if entry is not None and entry.running:
            entry.stop()

    def close(self, timeout_s: float = 10.0) -> None:
        """End all calls and wait for them."""
        with self._here():
            self._closed = True
            running = [c for c in self._calls.values() if c.running]
        for entry in running:
            entry.stop()
        for entry in running:
            if entry.thread is not None and entry.thread is not threading.current_thread():
                entry.thread.join(timeout_s)

    def _run(self, call: BackendCall, entry: _Call, body: Body) -> None:
        try:
            entry.outcome = body(call)
        except Exception:  # noqa: BLE001 - logged
            _log.exception("call %s ended without an outcome", call.id)
        finally:
            entry.running = False

"""A machine that renders in threads, reports by webhook, and counts what it was asked to start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from renderdispatch.backends.executor import Capacity, Executor, ThreadTask
from renderdispatch.errors import BackendError
from renderdispatch.messages import Completed, Failed, RenderOrder
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.testing.renderers import FAKE_SCENE, FakeRenderer

_PACE: Final = Pace(progress_s=0.05, heartbeat_s=0.3, check_in_s=0.3, final_s=5.0, backoff_s=0.03, backoff_max_s=0.2)


class CountedRenders:
    """Renders the fake scene for orders that come from afar; serve it with `tests.support.http_services.rendering`.

    ``started`` are the tokens of the orders that it started, ``delivered`` of those whose run completed.

    Args:
        refusals: How many starts it refuses first.
    """

    locality = Locality.MACHINE
    slots = None

    def __init__(self, *, refusals: int = 0) -> None:
        self.started: list[str] = []
        self.delivered: list[str] = []
        self._refusals: Iterator[int] = iter(range(refusals))
        self._calls = Executor(lambda: Capacity(slots=1000))
        self._lock = threading.Lock()

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start a thread for the order."""
        with self._lock:
            if next(self._refusals, None) is not None:
                raise BackendError("not now", retryable=True, code="backend.busy")
            self.started.append(order.token)
        stop, callback = Stop(error=told_to_stop), order.callback
        assert callback is not None

        def body(call: BackendCall) -> Completed | Failed:
            with WebhookSender(order, callback, try_s=2.0) as webhook:
                render = InProcessRender({FAKE_SCENE: FakeRenderer()})
                outcome = run_order(
                    order, io=RunnerIO(send=webhook, render=render, call_id=call.id, pace=_PACE, stop=stop)
                )
            if isinstance(outcome, Completed):
                self.delivered.append(order.token)
            return outcome

        return self._calls.start(ThreadTask(body, lambda: stop.request("cancelled")))

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of a call."""
        return self._calls.poll(call) or CallState(status=CallStatus.MISSING)

    def cancel(self, call: BackendCall) -> None:
        """End a call."""
        self._calls.cancel(call)

    def close(self) -> None:
        """End every call."""
        self._calls.stop()

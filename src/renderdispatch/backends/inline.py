"""How is an order rendered in this very process?

In a thread, for tests and notebooks: nothing to start, and scenes that live only in this process can be used.
A scene that crashes takes the process with it, and one that never calls ``report`` cannot be stopped: for
anything else there is `LocalGpuBackend`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from renderdispatch.backends.calls import ThreadCalls
from renderdispatch.messages import Completed, Failed, RenderOrder, RenderRequest
from renderdispatch.protocols import BackendCall, CallState, Locality, OnEvent, Renderer
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.render import check_renderer
from renderdispatch.runner.renderers import find_renderer


class InlineBackend:
    """Renders in threads of this process.

    Args:
        renderers: Scenes beside those that are registered, by name.
        slots: Renders at once.
        pace: How often renders report.
    """

    locality = Locality.PROCESS

    def __init__(
        self, renderers: Mapping[str, Renderer] | None = None, *, slots: int = 1, pace: Pace | None = None
    ) -> None:
        self._renderers = dict(renderers or {})
        self._pace = pace or Pace()
        self._calls = ThreadCalls(slots)

    @property
    def slots(self) -> int:
        return self._calls.slots

    def check(self, request: RenderRequest) -> None:
        """Raise `InvalidRequestError` for what can never be rendered here."""
        renderer = self._renderers.get(request.scene) or find_renderer(request.scene)
        check_renderer(renderer, scene=request.scene, params=request.params, require_gpu=request.require_gpu)

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render in a thread."""
        stopping = _StopSwitch()

        def body(call: BackendCall) -> Completed | Failed:
            io = RunnerIO(
                send=on_event,
                render=InProcessRender(self._renderers),
                call_id=call.id,
                pace=self._pace,
                listen=stopping.connect,
            )
            return run_order(order, io=io)

        return self._calls.start(body, stopping.flip)

    def poll(self, call: BackendCall) -> CallState:
        return self._calls.poll(call)

    def cancel(self, call: BackendCall) -> None:
        self._calls.cancel(call)

    def close(self) -> None:
        self._calls.close()


class _StopSwitch:
    """Stops a run, also one that has yet to listen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flipped = False
        self._stop: Callable[[str], None] | None = None

    def connect(self, stop: Callable[[str], None]) -> None:
        with self._lock:
            self._stop = stop
            flipped = self._flipped
        if flipped:
            stop("cancelled")

    def flip(self) -> None:
        with self._lock:
            self._flipped = True
            stop = self._stop
        if stop is not None:
            stop("cancelled")

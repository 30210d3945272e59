"""How is an order rendered in this very process?

In a thread, for tests and notebooks. Nothing has to be started, and scenes that exist only in this process can be used.
A scene that crashes takes the process with it, and one that never calls ``report`` cannot be stopped: for anything
else there is `LocalGpuBackend`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from renderdispatch.backends.executor import Capacity, ThreadBackend, ThreadTask
from renderdispatch.messages import Completed, Failed, RenderOrder
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, Locality, OnEvent, Renderer
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.reporting import told_to_stop


class InlineBackend(ThreadBackend):
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
        super().__init__(lambda: Capacity(slots=slots), renderers)
        self.slots = slots
        self._pace = pace or Pace()

    @property
    def device_class(self) -> str | None:
        """That of this process, which may have imported NumPy already."""
        from renderdispatch.render.device import declared_class, device_class

        return device_class() if "numpy" in sys.modules else declared_class()

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render in a thread."""
        stop = Stop(error=told_to_stop)

        def render(call: BackendCall) -> Completed | Failed:
            host = InProcessRender(self._renderers)
            io = RunnerIO(send=on_event, render=host, call_id=call.id, pace=self._pace, stop=stop)
            return run_order(order, io=io)

        return self._executor.start(ThreadTask(render, lambda: stop.request("cancelled")))

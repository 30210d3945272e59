"""How is an order rendered on the GPUs of this machine?

By ``python -m renderdispatch.runner``, one process a render, behind the supervisor. A crash takes nothing with it, a
cancel ends it within seconds, and nothing outlives the process that started it, however that process dies.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Final, Literal

from pydantic import ValidationError

from renderdispatch import messages
from renderdispatch.backends.executor import ThreadBackend, ThreadTask, hand_over
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.plumbing.interpreter import interpreter
from renderdispatch.protocols import BackendCall, Locality, OnEvent
from renderdispatch.runner.environment import for_the_runner
from renderdispatch.runner.process import SupervisedProcess, describe_exit
from renderdispatch.runner.renderers import load_renderer
from renderdispatch.runner.reporting import RunEvents

_log: Final = logging.getLogger("renderdispatch.backends.local")

_STOP_S: Final = 5.0
"""How long a render that was told to stop may take to clean up before it is killed."""


class LocalGpuBackend(ThreadBackend):
    """Renders in processes of this machine.

    Args:
        slots: Renders at once; ``auto`` is one.
        report: How renders report: over a pipe, or by webhook as in the cloud, which takes a service with a
            ``webhook_url`` that reaches this machine. Whatever the webhook loses, `poll` knows.
        renderers: Scenes beside those that are registered, each as ``"package.module:name"`` or
            ``"/folder/file.py:name"``. They are imported here, to check parameters, and in the process that renders.

    Raises:
        ConfigurationError: ``slots`` makes no sense, or no program of this Python is found to start renders with.
    """

    locality = Locality.MACHINE

    def __init__(
        self,
        slots: int | Literal["auto"] = "auto",
        *,
        report: Literal["pipe", "webhook"] = "pipe",
        renderers: Mapping[str, str] | None = None,
    ) -> None:
        if slots != "auto" and slots < 1:
            raise ConfigurationError(f"slots must be 'auto' or at least 1, not {slots!r}")
        interpreter()  # where Python is embedded, no render could ever start: say so now
        self._where = dict(renderers or {})
        found = {name: load_renderer(name, where) for name, where in self._where.items()}
        super().__init__(1 if slots == "auto" else slots, found)
        self.reports_by_webhook = report == "webhook"

    @property
    def device_class(self) -> str | None:
        """That of the render processes."""
        from renderdispatch.render.device import declared_class

        return declared_class()

    def start(self, order: messages.RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render in a process of its own."""
        return self._executor.start(_Run(order, None if order.callback is not None else on_event, self._where))


class _Run(ThreadTask):
    """One render process, and the thread that listens to it.

    Args:
        on_event: None where the render reports to a callback; then its outcome alone comes over the pipe.
        renderers: Where scenes are that are not registered.
    """

    def __init__(self, order: messages.RenderOrder, on_event: OnEvent | None, renderers: Mapping[str, str]) -> None:
        super().__init__(self._follow, self._tell)
        self._order = order
        self._renderers = renderers
        self._on_event = on_event
        self._telling = threading.Lock()

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start the process, and the thread."""
        try:
            self._process = SupervisedProcess("renderdispatch.runner")
        except OSError as error:
            raise BackendError(f"the render process cannot be started: {error}", retryable=True) from error
        except ConfigurationError as error:
            raise BackendError(f"the render process cannot be started: {error}", retryable=False) from error
        self._kill = threading.Timer(_STOP_S, self._process.kill)
        self._kill.daemon = True
        # before any cancel can write its line
        self._process.write_line(for_the_runner(self._order, os.environ, self._renderers))
        try:
            return super().begin(queued_as)
        except BackendError:
            self._process.end()
            raise

    def _tell(self) -> None:
        """Tell the render to stop; kill it if it does not."""
        if self._telling.acquire(blocking=False):
            try:
                self._kill.start()
            except RuntimeError:  # the process has as many threads as it may: kill it now
                self._process.kill()
            stop = messages.EventReply(action=messages.Action.STOP, reason="cancelled")
            self._process.write_line(stop.model_dump_json())

    def _follow(self, call: BackendCall) -> messages.Completed | messages.Failed:
        """Hand every event on, write every reply back; return how it ended."""
        process, final, run_id = self._process, None, ""
        try:
            while line := process.read_line():
                try:
                    event = messages.RENDER_EVENT.validate_json(line)
                except ValidationError:
                    _log.warning("job %s: the render process sent a line that is not an event", self._order.job_id)
                    continue
                run_id = event.run_id
                match event:
                    case messages.CheckedIn():
                        event = event.model_copy(update={"call_id": call.id})
                    case messages.Completed() | messages.Failed():
                        final = event
                if self._on_event is not None:
                    reply = hand_over(self._on_event, event)
                    process.write_line("null" if reply is None else reply.model_dump_json())
        finally:
            status = process.end(wait_s=_STOP_S if final is not None else 0.5)
            self._kill.cancel()
        for text in process.log:
            _log.debug("job %s: %s", self._order.job_id, text)
        if final is None:
            how = f"the render process {describe_exit(status, process.log)}"
            died = messages.JobError(code="runner.died", message=how, fault=messages.FaultDomain.INFRASTRUCTURE)
            final = RunEvents(self._order, run_id=run_id).failed(died)
            if self._on_event is not None:
                hand_over(self._on_event, final)
        return final

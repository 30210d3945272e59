"""Where do orders wait while every slot of a backend is taken?

In a queue in this process, for a service that takes orders from others. A dispatcher does not need it: it counts the
slots of its backends itself, and leaves jobs in their store until one is free.
"""

from __future__ import annotations

import logging
from typing import Final

from renderdispatch.backends.executor import Capacity, Executor, hand_over_failure
from renderdispatch.engine import calls
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import CheckedIn, EventReply, HelperOrder, JobError, RenderEvent, RenderOrder
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    Locality,
    OnEvent,
    RenderBackend,
    SupportsHelpers,
)

_log: Final = logging.getLogger("renderdispatch.backends.waiting")


class WaitingLine:
    """Another backend, whose orders wait for a slot, first come first served.

    A waiting order counts as running. It is lost when this process ends, as the renders of a local backend are.

    Args:
        backend: What renders; it is closed with this. Where it has no limit of its own, no order ever waits.
        room: How many orders may wait.
    """

    def __init__(self, backend: RenderBackend, *, room: int = 100) -> None:
        if room < 1:
            raise ConfigurationError(f"room must be at least 1, not {room}")
        self._backend = backend
        self._room = room
        self._executor = Executor(lambda: Capacity(slots=backend.slots, room=room))

    @property
    def locality(self) -> Locality:
        """How far away it renders."""
        return self._backend.locality

    @property
    def slots(self) -> int | None:
        """How many orders it takes at once, those that wait included."""
        return None if self._backend.slots is None else self._backend.slots + self._room

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render, or let it wait."""
        return self._executor.start(_Order(self._backend, order, on_event))

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Start the helper, which never waits.

        Raises:
            BackendError: ``backend.busy``: orders wait, or no slot is free. ``backend.no-helpers``: the backend has
                none.
        """
        if not isinstance(self._backend, SupportsHelpers):
            raise BackendError("this backend draws a video with one call", retryable=False, code="backend.no-helpers")
        return self._executor.start_now(_Helper(self._backend, order))

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of the call, wherever it is."""
        return self._executor.poll(call) or self._backend.poll(call)

    def cancel(self, call: BackendCall) -> None:
        """Have the call end soon, wherever it is."""
        if not self._executor.cancel(call):
            self._backend.cancel(call)

    def close(self) -> None:
        """End the orders that wait, and close the backend."""
        self._executor.close()
        self._backend.close()


class _Helper:
    """One helper at the backend behind the queue; it never waits."""

    kind = ""
    patience_s: float | None = None

    def __init__(self, backend: RenderBackend, order: HelperOrder) -> None:
        self._backend = backend
        self._order = order
        self._call: BackendCall | None = None

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start the helper there."""
        assert queued_as is None
        assert isinstance(self._backend, SupportsHelpers)
        self._call = self._backend.start_helper(self._order)
        return self._call

    def poll(self) -> CallState:
        """Return what the backend says of its call."""
        assert self._call is not None
        return calls.poll(self._backend, self._call)

    def stop(self) -> None:
        """Have the backend stop its call."""
        assert self._call is not None
        calls.cancel(self._backend, self._call)

    def join(self, timeout_s: float) -> None:
        """Wait for nothing: the backend's own `close` does."""

    def give_up(self, error: JobError) -> CallState:
        """Return a state without an outcome."""
        return CallState(status=CallStatus.ENDED, error=error)


class _Order:
    """One order for the backend behind the queue."""

    kind = ""
    patience_s: float | None = None

    def __init__(self, backend: RenderBackend, order: RenderOrder, on_event: OnEvent) -> None:
        self._backend = backend
        self._order = order
        self._on_event = on_event
        self._call: BackendCall | None = None
        self._stopped = False

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start the render there; a call that was queued keeps its name, also towards the service.

        If the backend does not know whether a queued order was started, it counts as running: unknown is not failed
        (rule J2).
        """
        if queued_as is None:
            self._call = self._backend.start(self._order, on_event=self._on_event)
            return self._call

        def renamed(event: RenderEvent) -> EventReply:
            if isinstance(event, CheckedIn):
                if self._call is None and event.call_id is not None:
                    self._call = BackendCall(event.call_id)
                event = event.model_copy(update={"call_id": queued_as.id})
            return self._on_event(event)

        try:
            self._call = calls.start(self._backend, self._order, on_event=renamed)
        except BackendError as error:
            if error.outcome_known:
                raise
            _log.warning("job %s: waiting for a sign of life: %s", self._order.job_id, error)
        return queued_as

    def poll(self) -> CallState:
        """Return what the backend says of its call; a call that is not known runs until it is told to stop."""
        if self._call is None:
            return CallState(status=CallStatus.MISSING if self._stopped else CallStatus.RUNNING)
        return calls.poll(self._backend, self._call)

    def stop(self) -> None:
        """Have the backend stop its call."""
        self._stopped = True
        if self._call is not None:
            calls.cancel(self._backend, self._call)

    def join(self, timeout_s: float) -> None:
        """Wait for nothing: the backend's own `close` does."""

    def give_up(self, error: JobError) -> CallState:
        """Hand over a failure in the place of the run that never began."""
        return hand_over_failure(self._order, self._on_event, error)

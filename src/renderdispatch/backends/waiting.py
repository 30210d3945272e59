"""Where do orders wait while every slot of a backend is taken?

In line, in this process, for a service that takes orders from others: a dispatcher does not need it, for it counts the
slots of its backends itself, and lets jobs wait in their store.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import OrderedDict, deque
from typing import Final

from attrs import define

from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import CheckedIn, EventReply, Failed, FaultDomain, JobError, RenderEvent, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent, RenderBackend

_log: Final = logging.getLogger("renderdispatch.backends.waiting")

_LOOK_S: Final = 0.2
_REMEMBERED: Final = 1000


@define(eq=False)
class _Place:
    id: str
    order: RenderOrder
    on_event: OnEvent
    unwanted: bool = False
    call: BackendCall | None = None
    outcome: Failed | None = None

    def hears(self, event: RenderEvent) -> EventReply:
        """Hand an event on; the call has the id that `start` returned."""
        if isinstance(event, CheckedIn):
            event = event.model_copy(update={"call_id": self.id})
        return self.on_event(event)

    def end(self, code: str, message: str) -> Failed:
        error = JobError(code=code, message=message, fault=FaultDomain.INFRASTRUCTURE)
        order = self.order
        self.outcome = Failed(
            event_id=uuid.uuid4().hex, job_id=order.job_id, token=order.token, run_id=uuid.uuid4().hex, error=error
        )
        return self.outcome


class WaitingLine:
    """Another backend, whose orders wait for a slot, first come first served.

    A waiting order counts as running. It is forgotten with the process, as the renders of a local backend are.

    Args:
        backend: What renders; it is closed with this. Without a limit of its own, nothing ever waits.
        room: How many orders may wait.
    """

    def __init__(self, backend: RenderBackend, *, room: int = 100) -> None:
        if room < 1:
            raise ConfigurationError(f"room must be at least 1, not {room}")
        self._backend = backend
        self._room = room
        self._lock = threading.Lock()
        self._look = threading.Event()
        self._line: deque[_Place] = deque()
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._running: list[BackendCall] = []
        self._feeder: threading.Thread | None = None
        self._closed = False

    @property
    def locality(self) -> Locality:
        return self._backend.locality

    @property
    def slots(self) -> int | None:
        return None if self._backend.slots is None else self._backend.slots + self._room

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render, or let it wait."""
        with self._lock:
            if self._closed:
                raise BackendError("the backend is closed", retryable=True, code="backend.closed")
            self._advance()
            if not self._line and self._has_slot():
                call = self._backend.start(order, on_event=on_event)
                self._running.append(call)
                return call
            if len(self._line) >= self._room:
                raise BackendError(f"{self._room} orders wait already", retryable=True, code="backend.busy")
            place = _Place(uuid.uuid4().hex, order, on_event)
            self._line.append(place)
            self._remember(place)
            if self._feeder is None:
                self._feeder = threading.Thread(target=self._feed, name="renderdispatch-waiting", daemon=True)
                self._feeder.start()
        return BackendCall(place.id)

    def poll(self, call: BackendCall) -> CallState:
        place = self._places.get(call.id)
        if place is None:
            return self._backend.poll(call)
        if place.call is not None:
            return self._backend.poll(place.call)
        if place.outcome is not None:
            return CallState(status=CallStatus.ENDED, outcome=place.outcome)
        return CallState(status=CallStatus.RUNNING)

    def cancel(self, call: BackendCall) -> None:
        with self._lock:
            place = self._places.get(call.id)
            if place is not None and place.call is None:
                place.unwanted = True
                self._look.set()
                return
        self._backend.cancel(call if place is None or place.call is None else place.call)

    def close(self) -> None:
        """End those that wait, and the backend."""
        with self._lock:
            self._closed = True
            for place in self._line:
                place.unwanted = True
            feeder = self._feeder
            self._look.set()
        if feeder is not None and feeder is not threading.current_thread():
            feeder.join(10.0)
        self._backend.close()

    def _remember(self, place: _Place) -> None:
        self._places[place.id] = place
        ended = [key for key, p in self._places.items() if self._has_ended(p)]
        for key in ended[: max(0, len(ended) - _REMEMBERED)]:
            del self._places[key]

    def _has_ended(self, place: _Place) -> bool:
        return place.outcome is not None or (place.call is not None and place.call not in self._running)

    def _has_slot(self) -> bool:
        slots = self._backend.slots
        if slots is None:
            self._running.clear()
            return True
        self._running = [call for call in self._running if self._runs(call)]
        return len(self._running) < slots

    def _runs(self, call: BackendCall) -> bool:
        try:
            return self._backend.poll(call).status is CallStatus.RUNNING
        except BackendError:  # nobody knows: its slot is not given away
            return True

    def _advance(self) -> None:
        """Start whom there is a slot for, let go of whom nobody wants any more."""
        ended = [(place, place.end("render.stopped", "cancelled")) for place in self._line if place.unwanted]
        self._line = deque(place for place in self._line if not place.unwanted)
        while self._line and self._has_slot():
            place = self._line[0]
            try:
                place.call = self._backend.start(place.order, on_event=place.hears)
            except BackendError as error:
                if error.code == "backend.busy":
                    break
                ended.append((place, place.end(error.code, str(error))))
            except Exception as error:  # noqa: BLE001 - those behind it in the line go on waiting for their turn
                _log.exception("job %s: it could not be started", place.order.job_id)
                ended.append((place, place.end("backend.error", f"it could not be started: {type(error).__name__}")))
            else:
                self._running.append(place.call)
            self._line.popleft()
        for place, outcome in ended:
            threading.Thread(target=_hand_over, args=(place, outcome), daemon=True).start()

    def _feed(self) -> None:
        while True:
            self._look.clear()
            with self._lock:
                self._advance()
                if not self._line:
                    self._feeder = None
                    return
            self._look.wait(_LOOK_S)


def _hand_over(place: _Place, outcome: Failed) -> None:
    try:
        place.on_event(outcome)
    except Exception:  # noqa: BLE001 - logged
        _log.exception("job %s: its end was not taken; a poll tells it", outcome.job_id)

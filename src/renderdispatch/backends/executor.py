"""Which orders run here, which wait for a slot, and how did the last ones end?

An `Executor` starts tasks, as many at once as there are slots, and lets some more wait in a queue. Those of one kind
are served first come first served; a kind that has no slot holds up no other. A task computes in a thread
(`ThreadTask`), or by another backend (`renderdispatch.backends.waiting`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from attrs import define, field, frozen

from renderdispatch.engine.rules import BUSY, WAITED, infrastructure_error
from renderdispatch.errors import BackendError, RenderDispatchError
from renderdispatch.messages import (
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    JobError,
    RenderEvent,
    RenderOrder,
    RenderRequest,
)
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.protocols import BackendCall, CallState, CallStatus, OnEvent, Renderer
from renderdispatch.runner.render import check_renderer
from renderdispatch.runner.renderers import check_scene_file, find_renderer
from renderdispatch.runner.reporting import RunEvents

_log: Final = logging.getLogger("renderdispatch.backends")

_CHECK_S: Final = 0.2
_CLOSE_S: Final = 10.0
_REMEMBERED: Final = 1000
"""How many ended calls are kept, so that a poll still finds their outcome."""


class Task(Protocol):
    """One order, as the executor sees it."""

    @property
    def kind(self) -> str:
        """What it waits for; see `Capacity`."""

    @property
    def patience_s(self) -> float | None:
        """The seconds that it may wait before it is given up; None: as long as it takes."""

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start it, without waiting for its end, and return the call that `poll` of the executor shall know.

        Args:
            queued_as: The call under which it was queued, which stays its call; None: it was not queued.

        Raises:
            BackendError: It cannot be started. With the code ``backend.busy`` it waits, and so do others of its kind.
        """

    def poll(self) -> CallState:
        """Return the state of the call; only called after `begin`."""

    def stop(self) -> None:
        """Make it end soon; only called after `begin`, perhaps twice, by any thread."""

    def join(self, timeout_s: float) -> None:
        """Wait for its end."""

    def give_up(self, error: JobError) -> CallState:
        """Report that a queued task ends without having begun, and return how it ended. It must not block."""


@frozen(kw_only=True)
class Capacity:
    """How many tasks an executor takes.

    Args:
        slots: Tasks at once; None: no limit, so that none waits for a slot.
        of_kind: Tasks at once of each kind that has a limit of its own.
        room: Tasks that may wait, beyond the slots.
    """

    slots: int | None
    of_kind: Mapping[str, int] = field(factory=dict)
    room: int = 0


class ThreadTask:
    """A task that runs in a thread of its own.

    Args:
        body: Computes, and returns the outcome; a helper has none.
        stop: Makes ``body`` end soon; may be called at any time, by any thread.
    """

    kind = ""
    patience_s: float | None = None

    def __init__(self, body: Callable[[BackendCall], Completed | Failed | None], stop: Callable[[], None]) -> None:
        self._body = body
        self._stop = stop
        self._state = CallState(status=CallStatus.RUNNING)
        self._thread: threading.Thread | None = None

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start the thread."""
        call = queued_as or BackendCall(uuid.uuid4().hex)
        name = f"renderdispatch-call-{call.id[:8]}"
        self._thread = threading.Thread(target=self._run, args=(call,), name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the process has as many threads as it may
            raise BackendError(f"the call cannot be started: {error}", retryable=True) from error
        return call

    def poll(self) -> CallState:
        """Return whether the thread runs, or how it ended."""
        return self._state

    def stop(self) -> None:
        """Tell the body to end soon."""
        if self._state.status is CallStatus.RUNNING:
            self._stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread; return at once in the thread itself."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def give_up(self, error: JobError) -> CallState:
        """Return a state without an outcome."""
        return CallState(status=CallStatus.ENDED, error=error)

    def _run(self, call: BackendCall) -> None:
        outcome = None
        try:
            outcome = self._body(call)
        except Exception:  # noqa: BLE001 - logged
            _log.exception("call %s ended without an outcome", call.id)
        finally:
            self._state = CallState(status=CallStatus.ENDED, outcome=outcome)


@define(eq=False)
class _Entry:
    task: Task
    call: BackendCall | None = None
    begun: bool = False
    queued_s: float = field(factory=time.monotonic)
    given_up: CallState | None = None
    """How it ended, for a task that never began."""


@define(eq=False)
class _State:
    """What one process knows: the parent's calls are not the child's after a fork."""

    lock: threading.Lock = field(factory=threading.Lock)
    entries: dict[str, _Entry] = field(factory=dict)
    running: list[_Entry] = field(factory=list)
    queue: deque[_Entry] = field(factory=deque)
    feeder: threading.Thread | None = None


class Executor:
    """Runs tasks in a number of slots. Safe to share between threads, and across forks.

    Args:
        capacity: Returns how many tasks it takes, which may change.
    """

    def __init__(self, capacity: Callable[[], Capacity]) -> None:
        self._capacity = capacity
        self._closed = False
        self._here: PerProcess[_State] = PerProcess(_State)

    def start(self, task: Task) -> BackendCall:
        """Begin a task, or let it wait for a slot.

        Raises:
            BackendError: The executor is full or closed, or the task cannot begin.
        """
        return self._start(task, waits=True)

    def start_now(self, task: Task) -> BackendCall:
        """Begin a task that never waits.

        Raises:
            BackendError: ``backend.busy``: no slot is free, or others wait for it; else as `start`.
        """
        return self._start(task, waits=False)

    def _start(self, task: Task, *, waits: bool) -> BackendCall:
        here = self._here.get()
        with here.lock:
            if self._closed:
                raise BackendError("the backend is closed", retryable=True, code="backend.closed")
            self._advance(here)
            capacity = self._capacity()
            held_up = any(entry.task.kind == task.kind for entry in here.queue)
            if not held_up and self._has_slot(here, task.kind):
                try:
                    return self._begin(here, _Entry(task))
                except BackendError as error:
                    if not waits or error.code != BUSY or not capacity.room or capacity.slots is None:
                        raise
            if not waits:
                raise BackendError("no slot is free", retryable=True, code=BUSY)
            if len(here.running) + len(here.queue) >= (capacity.slots or 0) + capacity.room:
                full = f"{len(here.queue)} orders wait already" if here.queue else "all slots are taken"
                raise BackendError(full, retryable=True, code=BUSY)
            self._ensure_feeder(here)
            entry = _Entry(task, BackendCall(uuid.uuid4().hex))
            here.queue.append(entry)
            return self._remember(here, entry)

    def load(self) -> tuple[Counter[str], int]:
        """Return how many tasks of each kind run, and how many tasks wait."""
        here = self._here.get()
        with here.lock:
            self._refresh(here)
            return Counter(entry.task.kind for entry in here.running), len(here.queue)

    def poll(self, call: BackendCall) -> CallState | None:
        """Return the state of the call; None if it is not known here, or no longer."""
        entry = self._here.get().entries.get(call.id)
        if entry is None:
            return None
        waiting = CallState(status=CallStatus.RUNNING)
        return entry.task.poll() if entry.begun else entry.given_up or waiting

    def cancel(self, call: BackendCall) -> bool:
        """Have the call end soon; return whether it is known here. A second call does no harm."""
        here = self._here.get()
        with here.lock:
            entry = here.entries.get(call.id)
            if entry is not None and entry in here.queue:
                here.queue.remove(entry)
                self._give_up(entry, infrastructure_error("render.stopped", "cancelled"))
        if entry is not None and entry.begun:
            entry.task.stop()
        return entry is not None

    def close(self) -> None:
        """Refuse new tasks and end those that wait. A second call does nothing."""
        here = self._here.get()
        with here.lock:
            self._closed = True
            while here.queue:
                self._give_up(here.queue.popleft(), infrastructure_error("render.stopped", "cancelled"))

    def stop(self) -> None:
        """Close, stop every task that runs, and wait for their ends."""
        self.close()
        running = [entry.task for entry in self._here.get().running]
        for task in running:
            task.stop()
        for task in running:
            task.join(_CLOSE_S)

    # --- with the lock held ---------------------------------------------------------------------------

    def _begin(self, here: _State, entry: _Entry) -> BackendCall:
        entry.call = entry.task.begin(entry.call)
        entry.begun = True
        here.running.append(entry)
        return self._remember(here, entry)

    def _remember(self, here: _State, entry: _Entry) -> BackendCall:
        assert entry.call is not None
        here.entries[entry.call.id] = entry
        if len(here.entries) > _REMEMBERED:
            ended = [key for key, known in here.entries.items() if self._has_ended(here, known)]
            for key in ended[: max(0, len(ended) - _REMEMBERED)]:
                del here.entries[key]
        return entry.call

    def _ensure_feeder(self, here: _State) -> None:
        if here.feeder is None:
            feeder = threading.Thread(target=self._feed, args=(here,), name="renderdispatch-queue", daemon=True)
            try:
                feeder.start()
            except RuntimeError as error:  # the process has as many threads as it may
                raise BackendError(f"the order cannot wait here: {error}", retryable=True) from error
            here.feeder = feeder

    def _has_ended(self, here: _State, entry: _Entry) -> bool:
        return entry.given_up is not None or (entry.begun and entry not in here.running)

    def _has_slot(self, here: _State, kind: str) -> bool:
        capacity = self._capacity()
        if capacity.slots is None:
            here.running.clear()
            return True
        self._refresh(here)
        most = capacity.of_kind.get(kind, capacity.slots)
        return len(here.running) < capacity.slots and sum(entry.task.kind == kind for entry in here.running) < most

    def _refresh(self, here: _State) -> None:
        here.running = [entry for entry in here.running if self._runs(entry)]

    def _runs(self, entry: _Entry) -> bool:
        try:
            return entry.task.poll().status is CallStatus.RUNNING
        except BackendError:  # it does not say: its slot is not given away
            return True

    def _advance(self, here: _State) -> None:
        """Start queued tasks while slots are free; give up those that waited for too long."""
        held_up: set[str] = set()
        for entry in tuple(here.queue):
            kind, patience_s = entry.task.kind, entry.task.patience_s
            if kind not in held_up and not self._is_begun(here, entry):
                held_up.add(kind)
            if kind not in held_up:
                here.queue.remove(entry)
            elif patience_s is not None and time.monotonic() - entry.queued_s > patience_s:
                here.queue.remove(entry)
                self._give_up(entry, infrastructure_error(WAITED, f"no slot became free in {patience_s:.0f} s"))

    def _is_begun(self, here: _State, entry: _Entry) -> bool:
        """Begin a queued task if there is a slot for it, or give it up; return False if it has to wait."""
        if not self._has_slot(here, entry.task.kind):
            return False
        try:
            self._begin(here, entry)
        except RenderDispatchError as error:
            if isinstance(error, BackendError) and error.code == BUSY:
                return False
            self._give_up(entry, job_error(error, otherwise=FaultDomain.INFRASTRUCTURE))
        except Exception as error:  # noqa: BLE001 - the tasks behind it in the queue still get their turn
            _log.exception("a queued call could not be started")
            message = f"it could not be started: {type(error).__name__}"
            self._give_up(entry, infrastructure_error("backend.error", message))
        return True

    def _give_up(self, entry: _Entry, error: JobError) -> None:
        entry.given_up = entry.task.give_up(error)

    def _feed(self, here: _State) -> None:
        while True:
            with here.lock:
                self._advance(here)
                if not here.queue:
                    here.feeder = None
                    return
            time.sleep(_CHECK_S)


def hand_over(on_event: OnEvent, event: RenderEvent) -> EventReply | None:
    """Hand an event to the service; None while the store is away: a run tries again, and a poll tells how it ended."""
    try:
        return on_event(event)
    except OSError as error:
        _log.warning("job %s: an event was not taken: %s", event.job_id, error)
    except Exception:  # noqa: BLE001 - logged
        _log.exception("job %s: an event was not taken", event.job_id)
    return None


def hand_over_failure(order: RenderOrder, on_event: OnEvent | None, error: JobError) -> CallState:
    """Report a failure in the place of a run that never began, without waiting; return how its call ended."""
    outcome = RunEvents(order).failed(error)
    if on_event is not None:
        with contextlib.suppress(RuntimeError):  # no thread can be started; a poll tells it
            threading.Thread(target=hand_over, args=(on_event, outcome), daemon=True).start()
    return CallState(status=CallStatus.ENDED, outcome=outcome)


class ThreadBackend:
    """What backends share that give each render a thread.

    Args:
        capacity: Returns how many renders it takes.
        renderers: Scenes beside those that are registered, by name.
    """

    def __init__(self, capacity: Callable[[], Capacity], renderers: Mapping[str, Renderer] | None = None) -> None:
        self._renderers = dict(renderers or {})
        self._executor = Executor(capacity)

    def check(self, request: RenderRequest) -> None:
        """Raise `InvalidRequestError` for what can never be rendered here."""
        check_renderer(self._renderers.get(request.scene) or find_renderer(request.scene), request)

    def check_scene_file(self, text: str, *, name: str) -> None:
        """Raise `InvalidRequestError` for a scene file that can never be drawn."""
        check_scene_file(text, name=name, renderers=self._renderers)

    def poll(self, call: BackendCall) -> CallState:
        """Return whether the render runs, or how it ended."""
        return self._executor.poll(call) or CallState(status=CallStatus.MISSING)

    def cancel(self, call: BackendCall) -> None:
        """Have the render end soon; one that ended, or never was, is no error."""
        self._executor.cancel(call)

    def close(self) -> None:
        """Stop all renders and wait for their ends. A second call does nothing."""
        self._executor.stop()

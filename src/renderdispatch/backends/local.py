"""How is an order rendered on the GPUs of this machine?

By ``python -m renderdispatch.runner``, one process a render, behind the supervisor. A crash takes nothing with it, a
cancel ends it within seconds, and nothing outlives the process that started it, however that process dies. A scene that
draws on a GPU has one to itself, among all services of this machine (`renderdispatch.backends.gpu_slots`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import ValidationError

from renderdispatch import messages
from renderdispatch.backends.executor import Capacity, ThreadBackend, ThreadTask, hand_over, hand_over_failure
from renderdispatch.backends.gpu_slots import GpuSlots
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.plumbing import gpus as installed
from renderdispatch.plumbing.gpus import Gpu
from renderdispatch.plumbing.interpreter import interpreter
from renderdispatch.protocols import BackendCall, CallState, Locality, OnEvent, SupportsGpu
from renderdispatch.runner.environment import for_the_runner
from renderdispatch.runner.process import SupervisedProcess, describe_exit
from renderdispatch.runner.renderers import find_renderer, load_renderer
from renderdispatch.runner.reporting import RunEvents

_log: Final = logging.getLogger("renderdispatch.backends.local")

_STOP_S: Final = 5.0
"""How long a render that was told to stop may take to clean up before it is killed."""

_ON_GPU: Final = "gpu"
_ON_CPU: Final = "cpu"

_AHEAD: Final = 2
"""How many orders more are taken than slots are free, where there are two kinds.

Which kind a job is of shows only when it was taken. So this is how many scenes that wait for a GPU let one behind them
have the CPU, and the other way round. Jobs that wait here cannot begin on another machine: they must be few.
"""

_PATIENCE_S: Final = 300.0
"""How long an order waits here for a slot, unless it is to start soon. Then its job goes back to the queue, where
another machine may take it."""

_LEAST_PATIENCE_S: Final = 2.0

COUNTED_AGAIN_S: Final = 60.0
"""How long it is believed that a machine has no GPU."""


def _check_place(name: str, where: object) -> None:
    """Refuse what only this process has: the renderer itself, or what a notebook defined."""
    if isinstance(where, str) and not where.startswith("__main__:"):
        return
    raise ConfigurationError(
        f"scene {name!r}: a process of its own renders, and finds no object of this one; write the scene to a file and"
        f" name its place, such as '/folder/scene.py:{name}'. InlineBackend takes the object itself"
    )


class LocalGpuBackend(ThreadBackend):
    """Renders in processes of this machine.

    Args:
        slots: Renders at once. ``auto``: one on each GPU, and one that needs none. A number: so many in all, and at
            most one of them on each GPU.
        gpus: The GPUs that renders may use: ``auto`` is all those that NVML lists and ``CUDA_VISIBLE_DEVICES`` leaves;
            or indexes as ``nvidia-smi`` counts, or UUIDs. A `Gpu` is taken as it is, also if it does not exist, which
            simulates one in a test. Where there is none, scenes that draw on a GPU count as any other.
        report: How renders report: over a pipe, or by webhook as in the cloud, which takes a service with a
            ``webhook_url`` that reaches this machine. Whatever the webhook loses, `poll` knows.
        renderers: Scenes beside those that are registered, each as ``"package.module:name"`` or
            ``"/folder/file.py:name"``. They are imported here, to check parameters, and in the process that renders.

    Raises:
        ConfigurationError: ``slots`` makes no sense, there is no such GPU, or no program of this Python is found to
            start renders with.
    """

    locality = Locality.MACHINE

    def __init__(
        self,
        slots: int | Literal["auto"] = "auto",
        *,
        gpus: Literal["auto"] | Sequence[int | str | Gpu] = "auto",
        report: Literal["pipe", "webhook"] = "pipe",
        renderers: Mapping[str, str] | None = None,
    ) -> None:
        if slots != "auto" and slots < 1:
            raise ConfigurationError(f"slots must be 'auto' or at least 1, not {slots!r}")
        interpreter()  # where Python is embedded, no render could ever start: say so now
        self._where = dict(renderers or {})
        for name, where in self._where.items():
            _check_place(name, where)
        found = {name: load_renderer(name, where) for name, where in self._where.items()}
        super().__init__(self._capacity, found)
        self._slots = slots
        self._gpu_slots = FoundGpus(installed.gpus)  # counted when a slot is asked for, which may take a while
        if gpus != "auto":
            known = () if all(isinstance(gpu, Gpu) for gpu in gpus) else installed.gpus()
            chosen = installed.choose(gpus, known)
            self._gpu_slots = FoundGpus(lambda: chosen)
        self.reports_by_webhook = report == "webhook"

    @property
    def slots(self) -> int:
        """How many orders it takes at once: those that render or wait here, and as many as there are slots free now.

        The GPUs that other services of this machine use are not free. While any slot is, a few orders more are taken.
        """
        found = self._gpu_slots.get()
        capacity = self._capacity(len(found.gpus))
        assert capacity.slots is not None
        if not found.gpus:
            return capacity.slots
        running, waiting = self._executor.load()
        for_cpu = capacity.of_kind[_ON_CPU] - running[_ON_CPU]
        free = min(capacity.slots - running.total(), for_cpu + found.free())
        return running.total() + max(waiting, free + _AHEAD if free > 0 else 0)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that renders may use."""
        return self._gpu_slots.get().gpus

    @property
    def device_class(self) -> str | None:
        """That of the render processes."""
        from renderdispatch.render.device import declared_class

        return declared_class()

    def start(self, order: messages.RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render in a process of its own, as soon as there is a slot for it."""
        own = None if order.callback is not None else on_event
        slots = self._gpu_slots.get()
        return self._executor.start(_Run(order, own, self._where, slots if self._on_gpu(order, slots) else None))

    def start_helper(self, order: messages.HelperOrder) -> BackendCall:
        """Start the helper in a process of its own, if there is a slot for it now."""
        slots = self._gpu_slots.get()
        return self._executor.start_now(_Help(order, self._where, slots if self._on_gpu(order, slots) else None))

    def _capacity(self, gpus: int | None = None) -> Capacity:
        count = len(self._gpu_slots.get().gpus) if gpus is None else gpus
        on_cpu = 1 if self._slots == "auto" else self._slots
        if not count:
            return Capacity(slots=on_cpu)
        total = on_cpu + count if self._slots == "auto" else self._slots
        return Capacity(slots=total, of_kind={_ON_CPU: on_cpu, _ON_GPU: count}, room=_AHEAD)

    def _on_gpu(self, order: messages.RenderOrder | messages.HelperOrder, slots: GpuSlots) -> bool:
        if not slots.gpus:
            return False
        try:
            renderer = self._renderers.get(order.scene) or find_renderer(order.scene)
            return isinstance(renderer, SupportsGpu) and renderer.uses_gpu()
        except Exception as error:  # noqa: BLE001 - the render meets it again, and reports it
            _log.warning("job %s: it is not known whether its scene draws on a GPU: %s", order.job_id, error)
            return False


class FoundGpus:
    """The slots of the GPUs that are found. While none is, they are counted again from time to time.

    A service may start before the driver does. Without the slots, its renders would disturb those of other services.

    Args:
        count: Returns the GPUs.
        clock: Monotonic seconds.
    """

    def __init__(self, count: Callable[[], tuple[Gpu, ...]], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._found: GpuSlots | None = None
        self._counted_s = 0.0

    def get(self) -> GpuSlots:
        """Return their slots. Two threads may count at once, which does no harm."""
        found = self._found
        if found is None or (not found.gpus and self._clock() - self._counted_s >= COUNTED_AGAIN_S):
            gpus = self._count()
            if found is None or gpus:
                names = ", ".join(f"{gpu.name} {gpu.uuid}" for gpu in gpus)
                _log.info("GPUs that renders may use: %s", names or "none")
            found = GpuSlots(gpus)
            self._found, self._counted_s = found, self._clock()
        return found


class _Process(ThreadTask):
    """One runner in a process of its own, and the thread that listens to it.

    Args:
        order: What it carries out.
        renderers: Where scenes are that are not registered.
        gpus: The GPUs that it may take one of; None: it needs none.
        follow: Listens to it, and returns how it ended.
    """

    def __init__(
        self,
        order: messages.RenderOrder | messages.HelperOrder,
        renderers: Mapping[str, str],
        gpus: GpuSlots | None,
        follow: Callable[[BackendCall], messages.Completed | messages.Failed | None],
    ) -> None:
        super().__init__(follow, self._tell)
        self._gpus = gpus
        self.kind = _ON_CPU if gpus is None else _ON_GPU
        self._to_do = order
        self._renderers = renderers
        self._telling = threading.Lock()

    def begin(self, queued_as: BackendCall | None) -> BackendCall:
        """Start the process, and the thread."""
        try:
            with nullcontext() if self._gpus is None else self._gpus.taken() as taken:
                self._process = SupervisedProcess(
                    "renderdispatch.runner",
                    hold=None if taken is None else taken.descriptor,
                    variables=None if taken is None else taken.variables,
                )
        except OSError as error:
            raise BackendError(f"the render process cannot be started: {error}", retryable=True) from error
        except ConfigurationError as error:
            raise BackendError(f"the render process cannot be started: {error}", retryable=False) from error
        self._kill = threading.Timer(_STOP_S, self._process.kill)
        self._kill.daemon = True
        # before any cancel can write its line
        self._process.write_line(for_the_runner(self._to_do, os.environ, self._renderers))
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

    def _ended(self, wait_s: float) -> int:
        """Wait for the end of the process, and return its exit status."""
        status = self._process.end(wait_s=wait_s)
        self._kill.cancel()
        return status


class _Run(_Process):
    """One render.

    Args:
        on_event: None where the render reports to a callback; then its outcome alone comes over the pipe.
        renderers: Where scenes are that are not registered.
        gpus: The GPUs that it may take one of; None: it needs none.
    """

    def __init__(
        self,
        order: messages.RenderOrder,
        on_event: OnEvent | None,
        renderers: Mapping[str, str],
        gpus: GpuSlots | None,
    ) -> None:
        super().__init__(order, renderers, gpus, self._follow)
        to_start_s = (order.start_by - datetime.now(UTC)).total_seconds()
        self.patience_s = max(_LEAST_PATIENCE_S, min(_PATIENCE_S, to_start_s / 2))
        self._order = order
        self._on_event = on_event

    def give_up(self, error: messages.JobError) -> CallState:
        """Report that it does not begin."""
        return hand_over_failure(self._order, self._on_event, error)

    def _follow(self, call: BackendCall) -> messages.Completed | messages.Failed:
        """Hand every event on, write every reply back; return how it ended."""
        process, final, run_id = self._process, None, ""
        try:
            while line := process.read_line():
                try:
                    event = messages.read_event(line)
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
            status = self._ended(_STOP_S if final is not None else 0.5)
        for text in process.log:
            _log.debug("job %s: %s", self._order.job_id, text)
        if final is None:
            how = f"the render process {describe_exit(status, process.log)}"
            died = messages.JobError(code="runner.died", message=how, fault=messages.FaultDomain.INFRASTRUCTURE)
            final = RunEvents(self._order, run_id=run_id).failed(died)
            if self._on_event is not None:
                hand_over(self._on_event, final)
        return final


class _Help(_Process):
    """One helper."""

    def __init__(self, order: messages.HelperOrder, renderers: Mapping[str, str], gpus: GpuSlots | None) -> None:
        super().__init__(order, renderers, gpus, self._follow)
        self._order = order

    def _follow(self, call: BackendCall) -> None:
        """Wait for its end; it has no outcome."""
        said: bytes | None = None
        try:
            while line := self._process.read_line():
                said = line
        finally:
            status = self._ended(_STOP_S if said is not None else 0.5)
        for text in self._process.log:
            _log.debug("job %s: %s", self._order.job_id, text)
        try:
            helped = messages.Helped.model_validate_json(said or b"")
        except ValidationError:
            how = describe_exit(status, self._process.log)
            _log.warning("job %s: the process of helper %s %s", self._order.job_id, call.id, how)
        else:
            _log.info(
                "job %s: helper %s drew %d segments: %s", self._order.job_id, call.id, helped.segments, helped.reason
            )

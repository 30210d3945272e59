"""Which container gets an input, when, and how does the call end?

There is one queue. Containers are started when it needs them, are reused, and take one input at a time. Everything here
runs on the server's own thread.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Literal

from attrs import define, field
from modal_proto import api_pb2

from renderdispatch.testing.modal.containers import ContainerProcess
from renderdispatch.testing.modal.deployments import Deployed, new_id, not_found
from renderdispatch.testing.modal.faults import ModalFaults
from renderdispatch.testing.modal.records import (
    CallStatus,
    ModalCall,
    ModalContainer,
    ModalFunction,
    ModalStart,
    StartEnd,
    StartKind,
)

_INTERRUPT_AFTER_S: Final = 30.0
_KILL_AFTER_S: Final = 60.0
_PREEMPTION_NOTICE_S: Final = 30.0
_START_TRIES: Final = 3
_LOG_TAIL: Final = 2000

Stopping = Literal["cancel", "timeout"]


@define(eq=False)
class Start:
    """One delivery of an input."""

    call: Call
    kind: StartKind
    container: Container
    retry_count: int
    at: datetime = field(factory=lambda: datetime.now(UTC))
    began: float = field(factory=time.monotonic)
    ended_at: datetime | None = None
    ended: float | None = None
    ended_by: StartEnd | None = None
    stopping: Stopping | None = None
    timers: list[asyncio.TimerHandle] = field(factory=list)

    def end(self, by: StartEnd) -> None:
        """Record how the delivery ended."""
        self.ended, self.ended_at, self.ended_by = time.monotonic(), datetime.now(UTC), by
        self.container.start = None
        for timer in self.timers:
            timer.cancel()

    def describe(self) -> ModalStart:
        until = self.ended if self.ended is not None else time.monotonic()
        return ModalStart(
            container_id=self.container.id,
            pid=self.container.pid,
            kind=self.kind,
            at=self.at,
            ended_at=self.ended_at,
            ended_by=self.ended_by,
            billed_s=until - self.began,
        )


@define(eq=False)
class Call:
    """One function call with its one input."""

    function: Deployed
    about: ModalFunction
    input: api_pb2.FunctionInput
    args: bytes
    invocation_type: int
    id: str = field(factory=lambda: new_id("fc"))
    input_id: str = field(factory=lambda: new_id("in"))
    created_at: datetime = field(factory=lambda: datetime.now(UTC))
    starts: list[Start] = field(factory=list)
    retry_count: int = 0
    retries_used: int = 0
    deaths: int = 0
    cancels: int = 0
    cancelled_at: datetime | None = None
    ended_at: datetime | None = None
    status: CallStatus = CallStatus.QUEUED
    outputs: int = 0
    result: api_pb2.FunctionGetOutputsItem | None = None
    expired: bool = False
    ended: asyncio.Event = field(factory=asyncio.Event)

    @property
    def running(self) -> list[Start]:
        return [start for start in self.starts if start.ended is None]

    def describe(self) -> ModalCall:
        status = self.status
        if not status.ended:
            status = CallStatus.RUNNING if self.running else CallStatus.QUEUED
        return ModalCall(
            id=self.id,
            input_id=self.input_id,
            app=self.about.app,
            function=self.about.name,
            function_id=self.function.id,
            gpu=next(iter(self.about.gpus), ""),
            timeout_s=self.function.definition.timeout_secs,
            args=self.args,
            created_at=self.created_at,
            starts=tuple(start.describe() for start in self.starts),
            status=status,
            cancels=self.cancels,
            cancelled_at=self.cancelled_at,
            ended_at=self.ended_at,
            outputs=self.outputs,
            expired=self.expired,
        )


@define(eq=False)
class Container:
    """A container, and the input that it runs or waits for."""

    function: Deployed
    id: str = field(factory=lambda: new_id("ta"))
    process: ContainerProcess | None = None
    exit_status: int | None = None
    last_pid: int = 0
    start: Start | None = None
    waiting: asyncio.Future[api_pb2.FunctionGetInputsItem] | None = None
    asked: bool = False  # for an input, at least once
    draining: bool = False
    killed: bool = False  # by request, and not seen to be gone yet
    inputs: int = 0
    told: asyncio.Event = field(factory=asyncio.Event)
    failure: api_pb2.GenericResult | None = None

    @property
    def pid(self) -> int:
        if not self.last_pid and self.process is not None:
            self.last_pid = self.process.pid
        return self.last_pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.exit_status is None

    @property
    def idle(self) -> bool:
        return self.waiting is not None and not self.waiting.done() and not self.draining and not self.killed

    def describe(self) -> ModalContainer:
        return ModalContainer(
            id=self.id,
            function_id=self.function.id,
            pid=self.pid,
            alive=self.alive,
            exit_status=self.exit_status,
            idle=self.idle,
            inputs=self.inputs,
            log=self.process.log if self.process is not None else "",
        )


class Scheduler:
    """Hands inputs to containers.

    Args:
        launch: Starts the process of a container.
        describe: Returns a function as a value.
        faults: What goes wrong.
        max_containers: How many run at once.
        clock_rate: How much faster Modal's own times pass here: function timeouts and the grace that follows.
        max_deaths: After how many lost containers a call is given up; None is never.
        result_ttl_s: How long results are kept; None is forever.
    """

    def __init__(
        self,
        launch: Callable[[Container], ContainerProcess],
        describe: Callable[[Deployed], ModalFunction],
        faults: ModalFaults,
        *,
        max_containers: int,
        clock_rate: float,
        max_deaths: int | None,
        result_ttl_s: float | None,
    ) -> None:
        self._launch = launch
        self._describe = describe
        self._faults = faults
        self._max_containers = max_containers
        self._clock_rate = clock_rate
        self._max_deaths = max_deaths
        self._result_ttl_s = result_ttl_s
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[Call, StartKind]] = deque()
        self._failed_starts: Counter[str] = Counter()
        self.calls: dict[str, Call] = {}
        self.containers: dict[str, Container] = {}
        self.closing = False

    # Calls

    def add(self, function: Deployed, input: api_pb2.FunctionInput, args: bytes, invocation_type: int) -> Call:
        """Take a call and queue its input."""
        call = Call(function, self._describe(function), input, args, invocation_type)
        self.calls[call.id] = call
        self._queue(call, "first")
        return call

    def call(self, call_id: str) -> Call:
        """Return a call.

        Raises:
            GRPCError: There is none with this id.
        """
        if call_id not in self.calls:
            raise not_found(f"function call '{call_id}'")
        return self.calls[call_id]

    def cancel(self, call: Call, *, terminate: bool) -> None:
        """Cancel a call. A call that ended does not change."""
        if call.status.ended or self._faults.happens("ignore_cancels"):
            return
        call.cancels += 1
        call.cancelled_at = call.cancelled_at or datetime.now(UTC)
        self._pending = deque(entry for entry in self._pending if entry[0] is not call)
        for start in call.running:
            self._stop(start, "cancel")
            if terminate:
                self.kill(start.container, signal.SIGKILL)
        if not call.running:
            self._end(call, CallStatus.CANCELLED, _result(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED))

    def expire(self, call: Call) -> None:
        """Forget a call's result."""
        call.expired = True

    def time_out(self, start: Start) -> None:
        """Have a start pass its function's timeout now."""
        self._stop(start, "timeout")

    def give_up(self, call: Call, message: str) -> None:
        """End a call with an internal failure. Containers that run it go on."""
        self._pending = deque(entry for entry in self._pending if entry[0] is not call)
        self._end(call, CallStatus.LOST, _result(api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, message))

    def redeliver(self, call: Call) -> None:
        """Hand a running input to a second container."""
        self._queue(call, "redelivery")

    # What containers ask

    async def next_input(self, container: Container) -> api_pb2.FunctionGetInputsItem:
        """Wait for the container's next input; return the kill switch if it is to end."""
        container.asked = True
        self._failed_starts.pop(container.function.id, None)
        if container.draining or self.closing:
            return api_pb2.FunctionGetInputsItem(kill_switch=True)
        container.waiting = self._loop.create_future()
        self._dispatch()
        try:
            return await container.waiting
        finally:
            container.waiting = None

    def take_output(self, container: Container, item: api_pb2.FunctionPutOutputsItem) -> None:
        """Take the output of a container."""
        start = container.start
        if start is None or start.call.input_id != item.input_id:
            return
        call, statuses = start.call, api_pb2.GenericResult
        stopping = start.stopping
        start.end("stopped" if item.result.status == statuses.GENERIC_STATUS_TERMINATED else "output")
        call.outputs += 1
        if call.status.ended:
            return
        if item.result.status == statuses.GENERIC_STATUS_SUCCESS:
            self._end(call, CallStatus.SUCCEEDED, _output(container, item))
        elif item.result.status == statuses.GENERIC_STATUS_TERMINATED and stopping == "timeout":
            self._timed_out(call)
        elif item.result.status == statuses.GENERIC_STATUS_TERMINATED:
            if not call.running:
                self._end(call, CallStatus.CANCELLED, _result(statuses.GENERIC_STATUS_TERMINATED))
        elif not self._retry(call):
            self._end(call, CallStatus.FAILED, _output(container, item))

    def exited(self, container: Container, status: int) -> None:
        """Handle the end of a container: its input is given to another one, or its call ends."""
        _ = container.pid
        container.exit_status = status
        if container.waiting is not None and not container.waiting.done():
            container.waiting.cancel()
        if self.closing:
            return
        start = container.start
        if start is not None:
            stopping = start.stopping
            start.end("died")
            self._lost(start.call, stopping, preempted=container.draining)
        elif not container.asked and not container.killed:
            self._start_failed(container, status)
        self._dispatch()

    # Containers

    def kill(self, container: Container, number: int) -> None:
        """Send a container a signal. A container that is killed gets no other input."""
        if container.process is not None and container.process.signal(number):
            container.killed |= number == signal.SIGKILL

    def preempt(self, container: Container) -> None:
        """Interrupt a container. It gets no other input, and is killed if it does not end in time."""
        container.draining = True
        self.kill(container, signal.SIGINT)
        self._loop.call_later(_PREEMPTION_NOTICE_S / self._clock_rate, self.kill, container, signal.SIGKILL)

    def stop(self, container: Container) -> None:
        """Let a container end after its input."""
        container.draining = True
        if container.waiting is not None and not container.waiting.done():
            container.waiting.set_result(api_pb2.FunctionGetInputsItem(kill_switch=True))

    def _queue(self, call: Call, kind: StartKind) -> None:
        self._pending.append((call, kind))
        self._dispatch()

    def _dispatch(self) -> None:
        """Hand inputs to the containers that wait, and start containers for the rest."""
        if self.closing:
            return
        for _ in range(len(self._pending)):
            call, kind = self._pending.popleft()
            if call.status.ended:
                continue
            for container in self.containers.values():
                if container.function is call.function and container.idle:
                    self._begin(call, kind, container)
                    break
            else:
                self._pending.append((call, kind))
        starting = Counter(
            id(one.function) for one in self.containers.values() if one.exit_status is None and not one.asked
        )
        for call, _ in self._pending:
            if starting[id(call.function)] > 0:
                starting[id(call.function)] -= 1
            elif not self._make_room(call.function):
                return

    def _make_room(self, function: Deployed) -> bool:
        """Start a container, or end an idle one of another function so that one can be started later."""
        alive = [one for one in self.containers.values() if one.exit_status is None]
        if len(alive) >= self._max_containers:
            if not any((one.draining or one.killed) and one.start is None for one in alive):
                idle = next((one for one in alive if one.idle and one.function is not function), None)
                if idle is not None:
                    self.stop(idle)
            return False
        container = Container(function)
        self.containers[container.id] = container
        container.process = self._launch(container)
        return True

    def _begin(self, call: Call, kind: StartKind, container: Container) -> None:
        if kind in {"restart", "retry"}:
            call.retry_count += 1
        start = Start(call, kind, container, call.retry_count)
        call.starts.append(start)
        container.start = start
        container.inputs += 1
        container.told.clear()
        assert container.waiting is not None
        container.waiting.set_result(
            api_pb2.FunctionGetInputsItem(
                input_id=call.input_id,
                input=call.input,
                function_call_id=call.id,
                # Protobuf's enumerations are numbers.
                function_call_invocation_type=call.invocation_type,  # type: ignore[arg-type]
                retry_count=call.retry_count,
            )
        )
        if timeout_s := call.function.definition.timeout_secs:
            self._later(start, timeout_s / self._clock_rate, lambda: self._stop(start, "timeout"))
        if self._faults.happens("crash"):
            self._later(start, self._faults.delay_s("crash"), lambda: self.kill(container, signal.SIGKILL))
        if self._faults.happens("preempt"):
            self._later(start, self._faults.delay_s("preempt"), lambda: self.preempt(container))
        if kind != "redelivery" and self._faults.happens("duplicate_deliveries"):
            self._loop.call_soon(self.redeliver, call)

    def _stop(self, start: Start, why: Stopping) -> None:
        """Tell a container to stop its input: by heartbeat, later by SIGINT, at last by SIGKILL."""
        if start.stopping is not None or start.ended is not None:
            return
        start.stopping = why
        start.container.told.set()
        interrupt_s, kill_s = _INTERRUPT_AFTER_S / self._clock_rate, _KILL_AFTER_S / self._clock_rate
        self._later(start, interrupt_s, lambda: self.kill(start.container, signal.SIGINT))
        self._later(start, kill_s, lambda: self.kill(start.container, signal.SIGKILL))

    def _later(self, start: Start, delay_s: float, action: Callable[[], None]) -> None:
        start.timers.append(self._loop.call_later(delay_s, action))

    def _lost(self, call: Call, stopping: Stopping | None, *, preempted: bool) -> None:
        """Handle an input whose container was lost."""
        if call.status.ended or call.running:
            return
        if stopping == "cancel":
            self._end(call, CallStatus.CANCELLED, _result(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED))
        elif stopping == "timeout":
            self._timed_out(call)
        else:
            call.deaths += not preempted
            if self._max_deaths is not None and call.deaths >= self._max_deaths:
                self.give_up(call, "the container was lost too often")
            else:
                self._queue(call, "restart")

    def _timed_out(self, call: Call) -> None:
        if call.running or self._retry(call):
            return
        message = f"Task's current input hit its timeout of {call.function.definition.timeout_secs}s"
        result = _result(api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, message)
        self._end(call, CallStatus.TIMED_OUT, result)

    def _retry(self, call: Call) -> bool:
        """Whether the function's own retries run the input again."""
        policy = call.function.definition.retry_policy
        if call.retries_used >= policy.retries or call.cancels:
            return False
        call.retries_used += 1
        self._loop.call_later(policy.initial_delay_ms / 1000 / self._clock_rate, self._queue, call, "retry")
        return True

    def _start_failed(self, container: Container, status: int) -> None:
        """Fail the calls of a function whose containers do not start."""
        function = container.function
        self._failed_starts[function.id] += 1
        if container.failure is None and self._failed_starts[function.id] < _START_TRIES:
            return
        self._failed_starts.pop(function.id)
        log = container.process.log[-_LOG_TAIL:] if container.process is not None else ""
        message = f"the container exited with status {status} before it took an input: {log}"
        result = api_pb2.GenericResult(exception=message)
        if container.failure is not None:
            result.CopyFrom(container.failure)
        result.status = api_pb2.GenericResult.GENERIC_STATUS_INIT_FAILURE
        waiting = [call for call, _ in self._pending if call.function is function]
        self._pending = deque(entry for entry in self._pending if entry[0].function is not function)
        for call in waiting:
            self._end(call, CallStatus.INIT_FAILED, api_pb2.FunctionGetOutputsItem(result=result))

    def _end(self, call: Call, status: CallStatus, item: api_pb2.FunctionGetOutputsItem) -> None:
        if call.status.ended:
            return
        item.input_id = call.input_id
        call.status, call.result, call.ended_at = status, item, datetime.now(UTC)
        if self._faults.happens("expired_results"):
            self.expire(call)
        elif self._result_ttl_s is not None:
            self._loop.call_later(self._result_ttl_s, self.expire, call)
        call.ended.set()


def _result(status: int, message: str = "") -> api_pb2.FunctionGetOutputsItem:
    result = api_pb2.GenericResult(status=status, exception=message)  # type: ignore[arg-type]
    return api_pb2.FunctionGetOutputsItem(result=result)


def _output(container: Container, item: api_pb2.FunctionPutOutputsItem) -> api_pb2.FunctionGetOutputsItem:
    return api_pb2.FunctionGetOutputsItem(
        result=item.result,
        data_format=item.data_format,
        task_id=container.id,
        input_started_at=item.input_started_at,
        output_created_at=item.output_created_at,
        retry_count=item.retry_count,
    )

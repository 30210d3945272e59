"""What happened to each call on the loopback Modal?

These are values, taken at the moment of the request: a test that asserts on them never races with the server.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from attrs import field, frozen
from modal_proto import api_pb2

StartKind = Literal["first", "restart", "redelivery", "retry"]
"""Why a container got the input: it is new; its container was lost; a second copy; the function's own retries."""

StartEnd = Literal["output", "stopped", "died"]
"""The container sent a result; it said that it was stopped; it died before it sent one."""


class CallStatus(StrEnum):
    """The state of a call, as the control plane sees it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the function raised
    CANCELLED = "cancelled"
    TIMED_OUT = "timed-out"
    LOST = "lost"  # an internal failure: the input was given up
    INIT_FAILED = "init-failed"  # no container could be started

    @property
    def ended(self) -> bool:
        """Whether there is a result. It may have expired since."""
        return self not in {CallStatus.QUEUED, CallStatus.RUNNING}


@frozen(kw_only=True)
class ModalStart:
    """One delivery of an input to a container.

    Args:
        container_id: Of the container that got it; see `LoopbackModal.containers`.
        pid: Of the container's entry point.
        kind: Why it got it.
        at: When.
        ended_at: When the container was done with it or gone; None while it runs.
        ended_by: How.
        billed_s: How long it had the input, in seconds; until now if it still has it.
    """

    container_id: str
    pid: int
    kind: StartKind
    at: datetime
    ended_at: datetime | None
    ended_by: StartEnd | None
    billed_s: float


@frozen(kw_only=True)
class ModalCall:
    """One function call.

    Args:
        id: What `FunctionCall.object_id` says.
        input_id: Of its one input, the same at each start.
        app: The app's name.
        function: The function's name.
        function_id: Of the deployed function, or of the variant that `with_options` made.
        gpu: What was asked for: the first of a fallback list, "" for none.
        timeout_s: The function's timeout, with options applied.
        args: The serialised arguments, those that came as a blob included.
        created_at: When the spawn came.
        starts: Each delivery to a container, in order.
        status: Its state.
        cancels: How often it was cancelled, requests that were ignored not counted.
        cancelled_at: When it was first cancelled.
        ended_at: When its result was written.
        outputs: How many results containers sent; the first one counts.
        expired: Whether its result is gone.
    """

    id: str
    input_id: str
    app: str
    function: str
    function_id: str
    gpu: str
    timeout_s: int
    args: bytes = field(repr=False)
    created_at: datetime
    starts: tuple[ModalStart, ...]
    status: CallStatus
    cancels: int
    cancelled_at: datetime | None
    ended_at: datetime | None
    outputs: int
    expired: bool

    @property
    def args_bytes(self) -> int:
        """The size of the serialised arguments."""
        return len(self.args)

    @property
    def pids(self) -> tuple[int, ...]:
        """The entry points of the containers that got it, in order."""
        return tuple(start.pid for start in self.starts)

    @property
    def running(self) -> tuple[ModalStart, ...]:
        """The starts that still run: none, one, or two of a redelivered input."""
        return tuple(start for start in self.starts if start.ended_at is None)

    @property
    def billed_s(self) -> float:
        """How long containers had it, in all starts together, without starting up and idling."""
        return sum(start.billed_s for start in self.starts)


@frozen(kw_only=True)
class ModalFunction:
    """A deployed function, or a variant of one that `with_options` made.

    Args:
        id: Its object id.
        app: The app's name.
        environment: The app's environment.
        name: Its name in the app.
        version: Of the deployment that it came with.
        definition: What the client sent, with options applied; the first of a GPU fallback list.
        gpus: Each GPU that was asked for, in order, such as ``L4`` or ``A100-80GB:2``.
        secrets: The names of its secrets, "" for one made in place.
        options: What `with_options` sent; None for the function itself.
        web_url: Where it is served, "" if it is not a web endpoint.
    """

    id: str
    app: str
    environment: str
    name: str
    version: int
    definition: api_pb2.Function = field(repr=False)
    gpus: tuple[str, ...]
    secrets: tuple[str, ...]
    options: api_pb2.FunctionOptions | None = field(repr=False)
    web_url: str

    @property
    def timeout_s(self) -> int:
        """The timeout of each start."""
        return self.definition.timeout_secs

    @property
    def startup_timeout_s(self) -> int:
        """How long a container may take to start."""
        return self.definition.startup_timeout_secs

    @property
    def cpu(self) -> float:
        """The requested cores, 0 by default."""
        return self.definition.resources.milli_cpu / 1000

    @property
    def memory_mb(self) -> int:
        """The requested memory, 0 by default."""
        return self.definition.resources.memory_mb

    @property
    def retries(self) -> int:
        """How often Modal itself would run a failed input again."""
        return self.definition.retry_policy.retries

    @property
    def schedule(self) -> str:
        """``cron 0 4 * * *``, ``period 60 s``, or "" without one."""
        schedule = self.definition.schedule
        match schedule.WhichOneof("schedule_oneof"):
            case "cron":
                return f"cron {schedule.cron.cron_string}"
            case "period":
                period = schedule.period
                units = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
                return f"period {sum(getattr(period, unit) * s for unit, s in units.items()):g} s"
            case _:
                return ""


@frozen(kw_only=True)
class ModalContainer:
    """A container process.

    Args:
        id: Its task id.
        function_id: Of the function, or variant, that it runs.
        pid: Of its entry point; 0 until that runs.
        alive: Whether it still runs.
        exit_status: How it ended, 128 + n when signal n killed it; None while it runs.
        idle: Whether it waits for an input, and would be given the next one of its function.
        inputs: How many it was given.
        log: What it printed, its last 64 KiB.
    """

    id: str
    function_id: str
    pid: int
    alive: bool
    exit_status: int | None
    idle: bool
    inputs: int
    log: str = field(repr=False)


@frozen(kw_only=True)
class ImageLayer:
    """One layer of an image, as the client asked for it; nothing was built.

    Args:
        id: Its object id.
        base_ids: The images that it is based on.
        commands: Its dockerfile commands.
        context_files: The names of the files that came with them.
        gpu: What the build asked for.
        builder_version: The image builder that the client chose.
    """

    id: str
    base_ids: tuple[str, ...]
    commands: tuple[str, ...]
    context_files: tuple[str, ...]
    gpu: str
    builder_version: str

"""Does every job end rightly, whatever goes wrong, in whatever order? Histories of faults, drawn from a seed.

`Simulation` plays one history in one thread, on fake clocks: several workers share a store, tenants submit, cancel and
delete, and far machines render. Answers of the store are lost before or after they took effect, webhooks are lost, late
or doubled, workers are killed in the middle of a step or stall for longer than their leases, clocks are set, and
backends and storage are away. While one worker is between two of its steps, others act. Then everything works again, and
`Simulation.problems` returns what is wrong once nothing happens any more. One seed always plays the same history, and
`Simulation.told` tells it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from attrs import define

from renderdispatch import errors
from renderdispatch.engine.layout import TOMBSTONES, prefix_of, stop_key
from renderdispatch.engine.rules import UNCOUNTED
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import (
    CheckedIn,
    Completed,
    Failed,
    FaultDomain,
    HelperOrder,
    JobError,
    JobStatus,
    Limits,
    Progressed,
    RenderEvent,
    RenderOrder,
    RenderRequest,
    SegmentCounts,
    Stage,
    StoredAudio,
)
from renderdispatch.plumbing.pieces import plan_name, segment_name
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, CallState, CallStatus, JobQuery, Locality, OnEvent, walk
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.service import RenderService
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.turns import cost
from renderdispatch.testing.builders import make_artifact
from renderdispatch.testing.world import WorldStorage, keep_time

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TENANTS: Final = ("ada", "ben", "cy")
_FAR: Final = ("far", "keyed")
_VIDEO: Final = b"a video of nothing"
_SEGMENTS: Final = 4
_PARALLEL: Final = (1, 1, 3)
"""How many draw a job: a third of the jobs have helpers."""
_URLS: Final = timedelta(minutes=10)
"""How long the URLs of an order outlive its deadline (rule J10)."""

_SECOND: Final = timedelta(seconds=1)
_LONG: Final = timedelta(hours=8)
"""In so long the URLs of all orders expire; in some times as long nothing is kept for a retry any more."""
_PATIENCE: Final = 400
"""Rounds until everything must have settled."""


class Crash(BaseException):
    """The process of a worker is gone: what it was about to do never happens."""


class _Now:
    """A lane that does its work at once, in the thread that submits it."""

    pending = 0
    full = False

    def submit(self, key: str, work: Callable[[], object], **_options: object) -> bool:
        """Do the work. What it raises is dropped, as a lane would log it; a crash is not."""
        with suppress(Exception):
            work()
        return True

    def has(self, key: str) -> bool:
        """Return False: it is done."""
        return False

    def wait_for(self, key: str, timeout_s: float) -> bool:
        """Return True: it is done."""
        return True

    def ensure(self) -> bool:
        """Return that there is a thread."""
        return True

    def drain(self, timeout_s: float | None = None) -> bool:
        """Return that nothing is left."""
        return True

    def close(self) -> None:
        """Do nothing."""

    def join(self, timeout_s: float) -> None:
        """Do nothing."""


# --- the far side


@define(eq=False)
class Call:
    """A render on a far machine, or in a worker's process; or a helper of one.

    Args:
        of: The worker that it ends with; None for a far one.
    """

    id: str
    backend: str
    tenant: str | None
    order: RenderOrder | HelperOrder
    of: Worker | None
    run: int = 1
    step: int = 0
    ended: bool = False
    delivered: bool = False
    outcome: Completed | Failed | None = None
    stopping: bool = False
    hangs: bool = False

    def event(self, kind: type[Any], **fields: Any) -> Any:
        """Return an event as the call's current run sends it."""
        run = f"{self.id}-{self.run}"
        common = {"event_id": f"{kind.__name__}-{run}-{self.step}", "job_id": self.order.job_id, "run_id": run}
        return kind(**common, token=self.order.token, **fields)

    def computes(self, now: datetime) -> bool:
        """Return whether it counts against limits: it computes, and its URLs are not over.

        Helpers hold units, so that less is claimed beside them. They themselves start whatever the limits say.
        """
        return (
            isinstance(self.order, RenderOrder)
            and not self.ended
            and not self.delivered
            and now <= self.order.finish_by + _URLS
        )


class _Backend:
    """A worker's way to the calls of one backend."""

    def __init__(self, world: Simulation, worker: Worker, name: str, locality: Locality, slots: int | None) -> None:
        self._world, self._worker, self._name = world, worker, name
        self.locality, self.slots = locality, slots

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start a call; or refuse it, or lose the order or the answer."""
        return self._start(order)

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Start a helper, as `start` does."""
        return self._start(order)

    def _start(self, order: RenderOrder | HelperOrder) -> BackendCall:
        world, far = self._world, self.locality is Locality.WORLD
        world.step(self._worker, f"{self._name}.start")
        fate = world.fate("start", 0.25) if far else None
        if fate == "refused":
            raise errors.BackendError("not now", retryable=True, code="backend.busy")
        if fate == "lost":
            world.on_the_way.append((self._name, order))
            raise errors.BackendError("lost", retryable=True, outcome_known=False)
        call = world.begin(self._name, order, None if far else self._worker)
        world.step(self._worker, f"{self._name}.started")
        if fate == "answer lost":
            raise errors.BackendError("lost answer", retryable=True, outcome_known=False)
        return BackendCall(call.id)

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of a call."""
        found = self._find(call)
        if found is None:
            return CallState(status=CallStatus.MISSING)
        status = CallStatus.ENDED if found.ended else CallStatus.RUNNING
        return CallState(status=status, outcome=found.outcome)

    def cancel(self, call: BackendCall) -> None:
        """Have a call end soon; or lose that."""
        found = self._find(call)
        if found is None:
            return
        if self.locality is not Locality.WORLD:
            self._world.end(found)
        elif self._world.fate("cancel", 0.3) is None:
            found.stopping = True

    def _find(self, call: BackendCall) -> Call | None:
        self._world.step(self._worker, f"{self._name}.ask")
        if self.locality is Locality.WORLD and self._world.fate("away", 0.15) is not None:
            raise errors.BackendError("away", retryable=True)
        return self._world.calls.get(call.id)

    def close(self) -> None:
        """Do nothing."""


class _Keyed(_Backend):
    """A backend that knows whether an order's call exists, and starts none that it was asked about in vain."""

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call of an order."""
        self._world.step(self._worker, "keyed.find")
        found = next((BackendCall(c.id) for c in self._world.calls.values() if c.order.token == token), None)
        if found is None:
            self._world.refused.add(token)
        return found


# --- the service's side


class _Store:
    """A worker's way to the store that all share."""

    def __init__(self, world: Simulation, worker: Worker) -> None:
        self._world, self._worker = world, worker
        self.server_time = world.server_time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.store, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        world = self._world
        world.step(self._worker, f"store.{name}")
        fate = world.fate("store", world.trouble)
        if fate == "lost":
            raise errors.StoreUnavailableError("away")
        result = getattr(world.store, name)(*args, **kwargs)
        world.step(self._worker, f"store.{name} done")
        if fate is not None:
            raise errors.StoreUnavailableError("the answer was lost")
        return result

    def get(self, job_id: str) -> Any:
        return self._call("get", job_id)

    def create(self, job: Job) -> Any:
        return self._call("create", job)

    def create_many(self, jobs: Any, **options: Any) -> Any:
        return self._call("create_many", jobs, **options)

    def replace(self, job: Job, *, expected_revision: int) -> Any:
        with suppress(errors.JobNotFoundError):
            self._world.check_step(self._world.store.get(job.id), job, expected_revision)
        return self._call("replace", job, expected_revision=expected_revision)

    def delete(self, job_id: str, *, expected_revision: int) -> Any:
        return self._call("delete", job_id, expected_revision=expected_revision)

    def query(self, query: Any) -> Any:
        return self._call("query", query)

    def claim(self, claim: Any, *, limit: int) -> Any:
        return self._call("claim", claim, limit=limit)

    def claimable(self, backends: Any, **options: Any) -> Any:
        return self._call("claimable", backends, **options)

    def claim_looks(self, **options: Any) -> Any:
        return self._call("claim_looks", **options)

    def counts(self, **options: Any) -> Any:
        return self._call("counts", **options)

    def position(self, job: Job, policy: QueuePolicy) -> Any:
        return self._call("position", job, policy)

    def now(self) -> datetime:
        return self._world.store.now()

    def close(self) -> None:
        """Do nothing: all share it."""


class _Storage:
    """A worker's way to the storage that all share."""

    locality = Locality.WORLD

    def __init__(self, world: Simulation, worker: Worker) -> None:
        self._world, self._worker = world, worker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._world.storage, name)
        return partial(self._call, name, found) if callable(found) else found

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._world.step(self._worker, f"storage.{name}")
        if not name.startswith("sign") and self._world.fate("storage", self._world.trouble) is not None:
            raise errors.StorageUnavailableError("away")
        return call(*args, **kwargs)


class _Impatient(Stop):
    """A stop whose waits take no real time."""

    def __init__(self, world: Simulation) -> None:
        super().__init__()
        self._world = world

    def wait(self, seconds: float) -> bool:
        """Let a second pass on the clocks: how many it is to be is drawn at random, and not from the seed."""
        self._world.pass_time(_SECOND)
        return self.requested


class Worker:
    """The process of a worker.

    Args:
        dies_in: After how many of its steps it is killed; None: never.
    """

    def __init__(self, world: Simulation, number: int, dies_in: int | None) -> None:
        self.name, self.dies_in, self.alive, self.busy = f"worker-{number}", dies_in, True, False
        far = {"far": _Backend(world, self, "far", Locality.WORLD, None)}
        keyed = {"keyed": _Keyed(world, self, "keyed", Locality.WORLD, None)}
        here = {"here": _Backend(world, self, "here", Locality.PROCESS, 2)}
        self.service = RenderService(
            _Store(world, self),
            _Storage(world, self),
            {**far, **keyed, **here},
            worker=False,
            policy=world.policy,
            failover=world.failover,
        )
        self.engine = self.service._engine.worker()
        keep_time(self.service, world.monotonic)  # type: ignore[arg-type]  # it is called for the time alone
        self.engine.dispatcher._closing = _Impatient(world)
        _at_once(self.engine.lanes)


def _at_once(lanes: Any) -> None:
    """Have all lanes do their work at once."""
    for name in ("start", "ask", "orders"):
        each = getattr(lanes, name)
        each.update(dict.fromkeys(each, _Now()))
    for name in ("bucket", "tidy", "fetch", "files"):
        object.__setattr__(lanes, name, _Now())


class Simulation:
    """One history.

    Args:
        seed: Draws everything.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.calm = False
        self.server_time = self.rng.random() < 0.5
        self.trouble = self.rng.choice((0.0, 0.02, 0.08))
        self.limited = self.rng.random() < 0.7
        self.told: list[str] = []
        self.wrong: list[str] = []
        self.seconds = 1000.0
        self._now = _START
        self.store = MemoryJobStore(clock=lambda: self._now)
        self.storage = WorldStorage()
        self.calls: dict[str, Call] = {}
        self.late: list[RenderEvent] = []
        self.sent: list[RenderEvent] = []
        self.on_the_way: list[tuple[str, RenderOrder | HelperOrder]] = []
        self.refused: set[str] = set()
        self.ids: list[str] = []
        self.deleting: set[str] = set()
        self.cancelled: set[str] = set()
        self.submits = 0
        self.interrupted = 0
        self._numbers = 0
        self._depth = 0
        tenants = {name: TenantPolicy(weight=weight) for name, weight in zip(_TENANTS, (1, 2, 4), strict=True)}
        tenants["ada"] = TenantPolicy(running=2)
        tenants["ben"] = TenantPolicy(weight=2, running_on={"far": 1})
        self.policy = QueuePolicy(running={"far": 2, "keyed": 1}, tenants=tenants) if self.limited else QueuePolicy()
        self.failover = self._reroute if self.rng.random() < 0.5 else None
        self.workers = [self._new_worker() for _ in range(self.rng.randint(1, 3))]

    def play(self) -> list[str]:
        """Play the history to its end; return what is wrong."""
        acts: tuple[tuple[Callable[[], None], int], ...] = (
            (self._submit, 4),
            (self._tick, 12),
            (self._render, 14),
            (self._wait, 6),
            (self._cancel, 1),
            (self._delete, 1),
            (self._stall, 3),
            (self._kill, 1),
            (self._deliver_late, 4),
            (self._start_late, 1),
            (self._set_clock, 0 if self.server_time else 1),
        )
        choices, weights = zip(*acts, strict=True)
        for _ in range(self.rng.randint(1, 5)):
            self._submit()
        for _ in range(self.rng.randint(30, 70)):
            self.rng.choices(choices, weights)[0]()
            self._check_limits()
        self._settle()
        return self.problems()

    # --- what the parts of a history ask

    def fate(self, what: str, chance: float) -> str | None:
        """Return what goes wrong with a call; mostly None."""
        if self.calm or self.rng.random() >= chance:
            return None
        fate = self.rng.choice(("refused", "lost", "answer lost"))
        self._tell(f"{what}: {fate}")
        return fate

    def monotonic(self) -> datetime:
        """Return the clock that is never set."""
        return datetime.fromtimestamp(self.seconds, UTC)

    def pass_time(self, time: timedelta) -> None:
        """Let time pass on all clocks."""
        self._now += time
        self.seconds += time.total_seconds()

    def step(self, worker: Worker, what: str) -> None:
        """A worker is between two of its steps: it may be killed here, and others may act."""
        if not worker.alive:
            raise Crash
        if worker.dies_in is not None:
            worker.dies_in -= 1
            if worker.dies_in < 0:
                self._bury(worker, what)
                raise Crash
        if not self.calm and self._depth < 1 and self.rng.random() < 0.03:
            self._depth += 1
            busy, worker.busy = worker.busy, True
            try:
                self._tell(f"while {worker.name} is at {what}")
                self.rng.choice((self._tick, self._render, self._render, self._cancel, self._wait, self._delete))()
            finally:
                self._depth -= 1
                worker.busy = busy

    def begin(self, backend: str, order: RenderOrder | HelperOrder, worker: Worker | None) -> Call:
        """Begin a call."""
        if any(call.order.token == order.token for call in self.calls.values()):
            self.wrong.append(f"{order.job_id[:6]}: an attempt or a helper was started twice")
        tenant = None
        if isinstance(order, RenderOrder) and order.video.key.startswith("tenants/"):
            tenant = order.video.key.split("/")[1]
        call = Call(f"call-{len(self.calls) + 1}", backend, tenant, order, worker)
        call.hangs = not self.calm and self.rng.random() < 0.2
        self.calls[call.id] = call
        self._tell(f"{call.id} of {order.job_id[:6]} starts on {backend}{', and hangs' if call.hangs else ''}")
        return call

    def end(self, call: Call, outcome: Completed | Failed | None = None) -> None:
        """End a call."""
        call.ended, call.outcome = True, outcome

    def check_step(self, old: Job, new: Job, expected_revision: int) -> None:
        """Note a write that no job may see."""
        if old.revision != expected_revision:
            return  # it will be refused
        if old.ended and (new.status, new.artifact, new.error) != (old.status, old.artifact, old.error):
            self.wrong.append(f"{old.id[:6]} had ended as {old.status}, and became {new.status}")
        same = old.attempt_number == new.attempt_number and new.stage is not Stage.RETRY_WAIT
        helpers = {helper.token for attempt in new.attempts[-1:] for helper in attempt.helpers}
        stopped = new.compute_stopped_at is not None and not old.ended
        if stopped and any(call.order.token in helpers and not call.ended for call in self.calls.values()):
            self.wrong.append(f"{old.id[:6]}: it was cancelled, and a helper that computes was taken to have stopped")
        if same and new.progress < old.progress:
            self.wrong.append(f"{old.id[:6]}: progress fell from {old.progress} to {new.progress}")

    # --- what happens

    def _reroute(self, request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:
        return _FAR[len(attempts) % 2]

    def _new_worker(self) -> Worker:
        dies_in = None if self.calm or self.rng.random() < 0.6 else self.rng.randint(5, 120)
        self._numbers += 1
        return Worker(self, self._numbers, dies_in)

    def _bury(self, worker: Worker, what: str) -> None:
        worker.alive = False
        self._tell(f"{worker.name} dies at {what}")
        for call in self.calls.values():
            if call.of is worker:
                self.end(call)
        self.workers = [each for each in self.workers if each is not worker]

    def _free(self) -> Worker | None:
        free = [worker for worker in self.workers if not worker.busy]
        if not free and all(not worker.busy for worker in self.workers):
            self.workers.append(self._new_worker())
            return self.workers[-1]
        return self.rng.choice(free) if free else None

    @contextmanager
    def _acting(self, worker: Worker) -> Iterator[None]:
        """Let a worker act; it may die of it, and errors of what is away are its clients'."""
        worker.busy = True
        try:
            with suppress(Crash, errors.RenderDispatchError):
                yield
        finally:
            worker.busy = False

    def _submit(self) -> None:
        if (worker := self._free()) is None or len(self.ids) >= 8:
            return
        tenant, backend = self.rng.choice((None, *_TENANTS)), self.rng.choice((*_FAR, *_FAR, "here", None))
        limits = Limits(
            max_attempts=self.rng.randint(1, 3),
            start_timeout=timedelta(minutes=self.rng.choice((2, 5))),
            total_timeout=timedelta(minutes=self.rng.choice((10, 60, 360))),
        )
        service = worker.service if tenant is None else worker.service.for_tenant(tenant)
        key = f"key-{len(self.ids)}"
        self.submits += 1
        self.interrupted += 1
        with self._acting(worker):
            handle = service.submit(
                b"RIFF",
                scene="bars",
                backend=backend,
                limits=limits,
                priority=self.rng.randint(0, 2),
                parallel=self.rng.choice(_PARALLEL),
                idempotency_key=key,
            )
            self.interrupted -= 1
            self.ids.append(handle.id)
            self._tell(f"{tenant} submits {handle.id[:6]} to {backend} through {worker.name}")

    def _tick(self) -> None:
        if (worker := self._free()) is None:
            return
        self._tell(f"{worker.name} ticks")
        with self._acting(worker):
            worker.service.tick()

    def _wait(self) -> None:
        self.pass_time(_SECOND * self.rng.choice((1, 1, 5, 10, 20)))

    def _stall(self) -> None:
        """Let so much time pass that leases lapse, or even deadlines."""
        seconds = self.rng.choice((35, 70, 110, 150, 300, 700))
        self._tell(f"nothing happens for {seconds} s")
        self.pass_time(_SECOND * seconds)

    def _set_clock(self) -> None:
        by = self.rng.choice((-7200, -30, 30, 3600))
        self._tell(f"the clock is set by {by} s")
        self._now += _SECOND * by

    def _kill(self) -> None:
        if (worker := self._free()) is not None:
            self._bury(worker, "rest")

    def _cancel(self, job_id: str | None = None) -> None:
        worker = self._free()
        if worker is not None and self.ids:
            job_id = job_id or self.rng.choice(self.ids)
            self._tell(f"{job_id[:6]} is cancelled through {worker.name}")
            self.cancelled.add(job_id)
            with self._acting(worker):
                worker.service.cancel(job_id)

    def _delete(self) -> None:
        worker = self._free()
        if worker is not None and self.ids:
            job_id = self.rng.choice(self.ids)
            self.deleting.add(job_id)
            with self._acting(worker):
                worker.service.delete(job_id)
                self._tell(f"{job_id[:6]} is deleted")

    # --- renders

    def _render(self) -> None:
        """Let one call go on."""
        going = [call for call in self.calls.values() if not call.ended and (call.of is None or not call.of.busy)]
        if going:
            self._go_on(self.rng.choice(going))

    def _go_on(self, call: Call) -> None:
        order, now = call.order, self._now
        if isinstance(order, HelperOrder):
            self._help(call, order)
        elif now > order.finish_by + _URLS or (call.stopping and not self._unlucky(0.2)):
            self._stop(call, report=not self._unlucky(0.5))
        elif call.step == 0 and now > order.start_by + timedelta(minutes=1):
            self._stop(call, report=True)
        elif call.hangs and not call.stopping:
            about_time = now > order.start_by - timedelta(seconds=30)
            call.hangs = not self._unlucky(0.5 if about_time else 0.03)  # it goes on after all, perhaps too late
        elif self._unlucky(0.05):
            call.run, call.step = call.run + 1, 0  # it is preempted, and starts again
        elif self._unlucky(0.03):
            self._tell(f"{call.id} vanishes")
            self.end(call)
        else:
            self._advance(call)

    def _help(self, call: Call, order: HelperOrder) -> None:
        """Draw a segment, or end: there is nothing to draw, the helper was told to stop, or something goes wrong."""
        over = self._now > order.finish_by + _URLS
        if over or call.stopping or self._unlucky(0.03) or self._is_to_end(order):
            self._tell(f"{call.id} helps no more")
            self.end(call)
        elif self._unlucky(0.1):
            self._cancel(order.job_id)
        elif not call.hangs or self._unlucky(0.1):
            self._draw(order)

    def _is_to_end(self, order: HelperOrder) -> bool:
        found = self._attempt_of(order)
        if found is None:  # the job was deleted
            return True
        job, attempt = found
        assert attempt.pieces is not None and attempt.result_key is not None
        keys = {info.key for info in self.storage.list(prefix_of(job))}
        drawn = sum(f"{attempt.pieces}{segment_name(index, 0)}" in keys for index in range(_SEGMENTS))
        ends = attempt.result_key in keys or stop_key(prefix_of(job), attempt.token) in keys
        return ends or drawn == _SEGMENTS or f"{attempt.pieces}{plan_name(0)}" not in keys

    def _attempt_of(self, order: RenderOrder | HelperOrder) -> tuple[Job, Attempt] | None:
        """Return the job and the attempt that an order draws for, if the job still exists."""
        if (job := self.store._jobs.get(order.job_id)) is None:
            return None
        found = [a for a in job.attempts if order.token in {a.token, *(helper.token for helper in a.helpers)}]
        return (job, found[0]) if found else None

    def _draw(self, order: RenderOrder | HelperOrder) -> SegmentCounts | None:
        """Keep a segment that is missing; return how many are kept."""
        found = self._attempt_of(order)
        if found is None or (pieces := found[1].pieces) is None:
            return None
        names = [f"{pieces}{segment_name(index, 0)}" for index in range(_SEGMENTS)]
        with suppress(errors.ObjectExistsError):
            self.storage.put(f"{pieces}{plan_name(0)}", b"a plan", if_absent=True)
        keys = {info.key for info in self.storage.list(pieces)}
        for name in [name for name in names if name not in keys][:1]:
            self.storage.put(name, b"a segment", if_absent=True)
            keys.add(name)
        return SegmentCounts(total=_SEGMENTS, standing=sum(name in keys for name in names), own=0)

    def _advance(self, call: Call) -> None:
        order = call.order
        assert isinstance(order, RenderOrder)
        call.step += 1
        if call.step == 1:
            self._report(call, call.event(CheckedIn, call_id=call.id))
        elif call.step < 4:
            drawn = self._draw(order)
            progress = {"stage": Stage.RENDERING, "fraction": call.step / 4}
            self._report(call, call.event(Progressed, **progress, planned=drawn is not None, segments=drawn))
        elif self._unlucky(0.15):
            fault = self.rng.choice((FaultDomain.INFRASTRUCTURE, FaultDomain.SCENE))
            failed: Failed = call.event(Failed, error=JobError(code="sim.failed", message="it broke", fault=fault))
            self.end(call, None if self._unlucky(0.3) else failed)
            self._report(call, failed)
        else:
            self._deliver(call, order)

    def _deliver(self, call: Call, order: RenderOrder) -> None:
        """Store the video, then the result, then report; it may end after each."""
        with suppress(errors.ObjectExistsError):
            self.storage.put(order.video.key, _VIDEO, if_absent=True)
        if self._unlucky(0.05):
            self.end(call)
            return
        artifact = make_artifact(key=order.video.key, bytes=len(_VIDEO), etag=None)
        completed: Completed = call.event(Completed, artifact=artifact)
        with suppress(errors.ObjectExistsError):
            self.storage.put(order.result.key, completed.model_dump_json().encode(), if_absent=True)
        self._tell(f"{call.id} delivers")
        call.delivered = True
        self.end(call, None if self._unlucky(0.3) else completed)
        self._report(call, completed)

    def _stop(self, call: Call, *, report: bool) -> None:
        error = JobError(code="render.stopped", message="stopped", fault=FaultDomain.INFRASTRUCTURE)
        failed: Failed = call.event(Failed, error=error)
        self.end(call, failed)
        self._tell(f"{call.id} stops")
        if report:
            self._report(call, failed)

    def _report(self, call: Call, event: RenderEvent) -> None:
        """Send an event; it may be lost, late or doubled. A run obeys the answer."""
        self.sent.append(event)
        if self._unlucky(0.2):
            if self._unlucky(0.5):
                self.late.append(event)
            return
        stop = self._take(event, call.of)
        if self._unlucky(0.1):
            self.late.append(event)
        if stop and not call.ended:
            self._stop(call, report=not self._unlucky(0.5))

    def _take(self, event: RenderEvent, worker: Worker | None) -> bool:
        """Have a worker take an event; return whether the run is to stop."""
        if (worker := worker or self._free()) is None or not worker.alive:
            return False
        stop, busy = False, worker.busy
        with self._acting(worker):
            self._tell(f"{worker.name} takes {type(event).__name__} of {event.job_id[:6]}")
            stop = worker.engine.inbox.on_event(event).stop
        worker.busy = busy
        return stop

    def _start_late(self) -> None:
        """Have an order arrive whose sender has long given up; a keyed backend that was asked about it refuses it."""
        if self.on_the_way:
            backend, order = self.on_the_way.pop(self.rng.randrange(len(self.on_the_way)))
            if order.token not in self.refused:
                self.begin(backend, order, None)

    def _deliver_late(self) -> None:
        if self.late:
            self._take(self.late.pop(self.rng.randrange(len(self.late))), None)
        elif self.sent and not self.calm:  # a replay, as late as it likes
            self._take(self.rng.choice(self.sent), None)

    def _unlucky(self, chance: float) -> bool:
        return not self.calm and self.rng.random() < chance

    # --- the end

    def _check_limits(self) -> None:
        computing = [call for call in self.calls.values() if call.computes(self._now) and not self._is_abandoned(call)]
        by_backend = Counter(call.backend for call in computing)
        by_tenant = Counter(call.tenant for call in computing)
        by_both = Counter((call.backend, call.tenant) for call in computing)
        self.wrong += [
            f"{by_backend[name]} calls run on {name}"
            for name, limit in self.policy.running.items()
            if by_backend[name] > limit
        ]
        for tenant in _TENANTS:
            own = self.policy.of(tenant)
            if own.running is not None and by_tenant[tenant] > own.running:
                self.wrong.append(f"{by_tenant[tenant]} calls of {tenant} run")
            self.wrong += [
                f"{by_both[name, tenant]} calls of {tenant} run on {name}"
                for name, limit in own.running_on.items()
                if by_both[name, tenant] > limit
            ]

    def _is_abandoned(self, call: Call) -> bool:
        """Return whether it computes in a process that was silent for its whole lease: it is taken for dead (J2)."""
        if call.of is None:
            return False
        if (job := self.store._jobs.get(call.order.job_id)) is None:
            return True
        return all(attempt.token != call.order.token or attempt.unwanted for attempt in job.attempts)

    def _settle(self) -> None:
        """Let everything work from now on, until nothing happens any more, and nothing is kept for a retry."""
        self.calm = True
        self._tell("from here on everything works")
        for worker in self.workers:
            worker.dies_in = None
        for number in range(_PATIENCE):
            while self.late:
                self._deliver_late()
            for call in list(self.calls.values()):
                if not call.ended:
                    self._go_on(call)
            self._tick()
            self._check_limits()
            jobs = self.jobs()
            settled = all(job.ended and not job.owes_clean_up for job in jobs)
            if settled and not any(job.owes_pieces for job in jobs) and not any(self.storage.list(TOMBSTONES)):
                return
            self.pass_time(_LONG if settled else _SECOND * (20 if number < 25 else 600))

    def jobs(self) -> list[Job]:
        """Return all jobs as they are."""
        return list(walk(self.store, JobQuery()))

    def problems(self) -> list[str]:
        """Return what is not as it should be."""
        found = list(dict.fromkeys(self.wrong))
        keys = {info.key for info in self.storage.list("")}
        for job in self.jobs():
            mine = {key for key in keys if key.startswith(prefix_of(job))}
            found += [f"{job.id[:6]}: {problem}" for problem in self._problems_of(job, mine)]
            keys -= mine
        lone = {key for key in keys if key.endswith("/audio/audio")}  # audio of a submit that fell through
        found += [f"an object of no job: {key}" for key in (keys if len(lone) > self.interrupted else keys - lone)]
        return found + list(self._problems_of_turns())

    def _problems_of(self, job: Job, keys: set[str]) -> Iterator[str]:
        if not job.ended:
            yield f"it has not ended: {job.stage}"
            return
        if job.owes_clean_up:
            yield "it owes clean-up"
        if any(holding.until > self._now for holding in job.holdings()):
            yield f"it holds units: {job.holdings()}"
        counted = [a for a in job.attempts if not a.advanced and (a.error is None or a.error.code not in UNCOUNTED)]
        if len(counted) > job.request.limits.max_attempts:
            yield f"{len(counted)} attempts that count"
        audio = job.audio or job.request.audio
        expected = {audio.key} if isinstance(audio, StoredAudio) else set()
        if job.status is JobStatus.COMPLETE:
            assert job.attempt is not None and job.artifact is not None and job.attempt.result_key is not None
            expected |= {job.artifact.key, job.attempt.result_key}
            if [attempt for attempt in job.attempts[:-1] if attempt.error is None] or job.attempt.error is not None:
                yield "more than one attempt won"
        told = {event.token for event in self.sent if isinstance(event, Failed)}
        if any(a.error is not None and a.error.code == "sim.failed" and a.token not in told for a in job.attempts):
            yield "an attempt failed by the error of another one"
        lost = {a.error.code for a in job.attempts if a.error is not None and a.error.code.startswith("artifact.")}
        if lost:
            yield f"its attempts were taken to have delivered something else: {lost}"
        if job.status is JobStatus.CANCELLED and job.id not in self.cancelled:
            yield "it was cancelled, and no client asked for that"
        if keys != expected and not (job.id in self.deleting and keys < expected):  # a delete removes the objects first
            yield f"{job.status}: too many objects {sorted(keys - expected)}, too few {sorted(expected - keys)}"

    def _problems_of_turns(self) -> Iterator[str]:
        """Yield virtual times that no claims can have led to: each of a new job costs as many turns as draw it."""
        dearest = max(_PARALLEL) * max(cost(self.policy, tenant) for tenant in _TENANTS)
        for backend, queue in self.store._queues.items():
            if not all(0 <= time <= self.submits * dearest for time in (queue.clock, *queue.times.values())):
                yield f"virtual times on {backend} are {dict(queue.times)}"

    def _tell(self, what: str) -> None:
        self.told.append(f"{self.seconds - 1000:9.1f} {what}")


def history(seed: int) -> str:
    """Play a history and return it as text, with what is wrong at its end."""
    simulation = Simulation(seed)
    problems = simulation.play()
    return "\n".join([*simulation.told, "", *(problems or ["nothing is wrong"])])

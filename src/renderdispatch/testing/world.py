"""A service whose surroundings do as a test says: `World`, and the doubles that it is made of.

`World` is a `RenderService` with a far backend. Its clock stands until the test moves it, nothing happens between two
ticks, and the test plays the renders by hand: they report, are lost, or repeat themselves. The other doubles are
backends, storages and stores that misbehave in one way each; give them to a service of your own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

from renderdispatch.engine.transitions import Decision
from renderdispatch.errors import BackendError, StorageDeniedError, StorageUnavailableError, StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import Completed, EventReply, Failed, HelperOrder, RenderEvent, RenderOrder, RenderStats
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    Claim,
    JobQuery,
    JobStore,
    Locality,
    ObjectInfo,
    OnEvent,
    Page,
    Report,
)
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing.builders import FakeClock
from renderdispatch.testing.renderers import FakeRenderer

PACE: Final = Pace(progress_s=0.02, heartbeat_s=0.1, check_in_s=0.2, final_s=0.3, backoff_s=0.01, backoff_max_s=0.05)
"""How often runs report in tests: many times a second."""

_PATIENCE_S: Final = 60.0


# --- backends


class Remote:
    """A backend far away, whose renders the test plays by hand.

    ``orders`` are those that were started, ``states`` what `poll` returns for each call, ``asked`` the calls that were
    polled, ``cancelled`` those that were cancelled. While ``refuse`` holds an error, `start` raises it.
    """

    locality = Locality.WORLD
    slots = None

    def __init__(self) -> None:
        self.orders: list[RenderOrder] = []
        self.states: dict[str, CallState] = {}
        self.cancelled: list[str] = []
        self.asked: list[str] = []
        self.refuse: BackendError | None = None

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Note the order. Its call is ``call-1`` for the first order, and so on."""
        self.orders.append(order)
        if self.refuse is not None:
            raise self.refuse
        call = BackendCall(f"call-{len(self.orders)}")
        self.states[call.id] = CallState(status=CallStatus.RUNNING)
        return call

    def poll(self, call: BackendCall) -> CallState:
        """Return what the test put into ``states``."""
        self.asked.append(call.id)
        return self.states.get(call.id, CallState(status=CallStatus.MISSING))

    def cancel(self, call: BackendCall) -> None:
        """End the call."""
        self.cancelled.append(call.id)
        if call.id in self.states:
            self.states[call.id] = CallState(status=CallStatus.ENDED)

    def close(self) -> None:
        """Do nothing."""


class FindingRemote(Remote):
    """A `Remote` that knows whether an order's call exists."""

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call of the order with this token, if it was started."""
        for number, order in enumerate(self.orders, 1):
            if order.token == token and f"call-{number}" in self.states:
                return BackendCall(f"call-{number}")
        return None


class HelpedRemote(FindingRemote):
    """A `FindingRemote` that starts helpers, which the test plays by hand too. It declares what it draws with.

    ``helped`` are the orders of helpers that were started. Their calls are ``helper-1`` for the first share, and so on.
    While ``refuse_help`` holds an error, `start_helper` raises it: before it takes the order if it says that it did not
    take it, else after.
    """

    device_class: str | None = "cpu-test"

    def __init__(self) -> None:
        super().__init__()
        self.helped: list[HelperOrder] = []
        self.refuse_help: BackendError | None = None

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Note the order."""
        if self.refuse_help is not None and self.refuse_help.outcome_known:
            raise self.refuse_help
        self.helped.append(order)
        call = BackendCall(f"helper-{order.share}")
        self.states[call.id] = CallState(status=CallStatus.RUNNING)
        if self.refuse_help is not None:
            raise self.refuse_help
        return call

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call of a run or a helper with this token, if it was started."""
        for order in self.helped:
            if order.token == token:
                return BackendCall(f"helper-{order.share}")
        return super().find(job_id=job_id, token=token)


class DeafRemote(Remote):
    """A `Remote` whose first call cannot be cancelled: `cancel` raises ``error``."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def cancel(self, call: BackendCall) -> None:
        """Raise for the first call; end any other one."""
        if call.id == "call-1":
            raise self.error
        super().cancel(call)


class GoneRemote(Remote):
    """A `Remote` that is away for good once it has started something: `poll` and `cancel` raise ``error``."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def poll(self, call: BackendCall) -> CallState:
        """Raise."""
        raise self.error

    def cancel(self, call: BackendCall) -> None:
        """Raise."""
        raise self.error


class Stuck:
    """A local backend with one slot, whose renders never report and never end, like a process that hangs."""

    locality = Locality.PROCESS
    slots = 1

    def __init__(self) -> None:
        self.orders: list[RenderOrder] = []

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Note the order."""
        self.orders.append(order)
        return BackendCall("stuck")

    def poll(self, call: BackendCall) -> CallState:
        """Return that it runs."""
        return CallState(status=CallStatus.RUNNING)

    def cancel(self, call: BackendCall) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


# --- storages


class WorldStorage(MemoryStorage):
    """A storage that far backends reach. While ``away`` is set, `stat` raises `StorageUnavailableError`."""

    away = False

    @property
    def locality(self) -> Locality:
        """The whole world."""
        return Locality.WORLD

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of the object, unless storage is away."""
        if self.away:
            raise StorageUnavailableError("storage is away")
        return super().stat(key)


class SilentStorage(WorldStorage):
    """A storage that far backends reach. While ``silent`` is set, no object can be read, as after a key was changed."""

    silent = False

    def stat(self, key: str) -> ObjectInfo:
        """Return what is known of the object, or raise."""
        self._check()
        return super().stat(key)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open the object, or raise."""
        self._check()
        return super().open(key)

    def _check(self) -> None:
        if self.silent:
            raise StorageDeniedError("the credentials are not valid any more")


class HeldStorage(WorldStorage):
    """A storage that holds up every read of a result object until the test sets ``let_go``."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.let_go = threading.Event()

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Wait, then open the object."""
        if key.endswith("/result.json"):
            self.asked.append(key)
            assert self.let_go.wait(_PATIENCE_S)
        return super().open(key)


class SlowStorage(MemoryStorage):
    """A storage that takes uploads slowly: 50 ms a chunk. ``began`` is set at the first one; ``chunks`` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.chunks = 0

    def put(self, key: str, source: Any, **options: Any) -> ObjectInfo:
        """Store the object."""

        def slowly() -> Iterator[bytes]:
            for chunk in source:
                self.chunks += 1
                self.began.set()
                time.sleep(0.05)
                yield chunk

        return super().put(key, slowly() if hasattr(source, "__next__") else source, **options)


# --- stores


class ForgetfulStore(MemoryJobStore):
    """A store that forgets on request when jobs were looked at last, as if much time had passed."""

    def look_again(self) -> None:
        """Have every job that is due be due for a look now."""
        with self._lock:
            self._looks.clear()


class FlakyStore:
    """A store that is away now and then: half of the times before a call takes effect, half after.

    `create`, `delete` and `now` always work.

    Args:
        store: Where the jobs are.
        chance: The share of calls that raise `StoreUnavailableError`.
        seed: Of the random choice.
    """

    def __init__(self, store: JobStore, chance: float, seed: int) -> None:
        self.real = store
        self.chance = chance
        self.failures = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            fate = self._random.random()
        if fate < self.chance / 2:
            self.failures += 1
            raise StoreUnavailableError("away")
        result = getattr(self.real, name)(*args, **kwargs)
        if fate < self.chance:
            self.failures += 1
            raise StoreUnavailableError("the answer was lost")
        return result

    def create(self, job: Job) -> Job:
        """Store a new job."""
        return self.real.create(job)

    def get(self, job_id: str) -> Job:
        """Return the job, or raise."""
        found: Job = self._call("get", job_id)
        return found

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store the job, or raise: before it is stored or after."""
        stored: Job = self._call("replace", job, expected_revision=expected_revision)
        return stored

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page, or raise."""
        page: Page[Job] = self._call("query", query)
        return page

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget the job."""
        return self.real.delete(job_id, expected_revision=expected_revision)

    def now(self) -> datetime:
        """Return the store's time."""
        return self.real.now()

    def close(self) -> None:
        """Do nothing: the real store is the test's."""

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        """Return which backends have ready jobs, or raise."""
        found: frozenset[str] = self._call("claimable", backends, machine=machine)
        return found

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Claim jobs, or raise: before they are claimed or after."""
        claimed: list[Job] = self._call("claim", claim, limit=limit)
        return claimed

    def claim_looks(self, *, limit: int, able: Collection[str] | None = None, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, or raise: before their next looks are put off or after."""
        due: list[Job] = self._call("claim_looks", limit=limit, able=able, job_id=job_id)
        return due


# --- renders


class Paused:
    """A scene that sets ``began``, and renders once the test has set ``let_go``."""

    def __init__(self) -> None:
        self.began, self.let_go = threading.Event(), threading.Event()

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Wait, then render as `FakeRenderer` does."""
        self.began.set()
        assert self.let_go.wait(_PATIENCE_S)
        return FakeRenderer().render(order, audio, output, report)


def event_of(order: RenderOrder, kind: type, run_id: str = "run-1", **fields: Any) -> Any:
    """Return an event of this kind, as a run of the order would send it."""
    common = {"event_id": f"{kind.__name__}-{run_id}", "job_id": order.job_id, "token": order.token, "run_id": run_id}
    return kind(**common, **fields)


# --- all together


def keep_time(service: RenderService, clock: FakeClock) -> None:
    """Have a service measure time by a fake clock: no step of it is one, and nothing sleeps."""
    service._engine.worker().reconciler._monotonic = lambda: clock().timestamp()


def outlast_leases(service: RenderService, clock: FakeClock) -> None:
    """Let a service see that nothing renews its leases, for longer than they are."""
    keep_time(service, clock)
    service.tick()
    clock.advance(timedelta(seconds=31))


class World:
    """A service with a far backend, driven by hand: its clock, its ticks, its renders.

    Args:
        backend: Where its jobs are rendered, under the scene's name ``bars``.
        storage: Where its objects are; None makes one.
        options: Of `RenderService`.
    """

    def __init__(self, backend: Remote, storage: WorldStorage | None = None, **options: Any) -> None:
        self.clock = FakeClock(datetime.now(UTC))
        self.store = ForgetfulStore(clock=self.clock)
        self.storage = storage or WorldStorage()
        self.backend = backend
        self.service = RenderService(self.store, self.storage, backend, worker=False, **options)
        self.seconds = time.monotonic()  # what was made by now began to count there
        self.service._engine.worker().reconciler._monotonic = lambda: self.seconds

    def submit(self, **options: Any) -> str:
        """Submit a job, and return its id."""
        return self.service.submit(b"RIFF", scene="bars", **options).id

    def tick(self, times: int = 1) -> None:
        """Have the service take rounds; each reconciles every job that is due, as if the last one was long ago."""
        for _ in range(times):
            self.seconds += 100
            self.store.look_again()
            self.service.tick()

    def pass_time(self, time: timedelta) -> None:
        """Let time pass, on the wall clock and on the service's own."""
        self.clock.advance(time)
        self.seconds += time.total_seconds()

    def job(self, job_id: str) -> Job:
        """Return the job's record."""
        return self.service.get(job_id)

    def send(self, event: RenderEvent) -> Decision:
        """Deliver an event as the webhook does, and return what was decided."""
        return self.service._engine.worker().inbox.take(event)

    def render(self, order: RenderOrder, *, lost: bool = False, **scene: Any) -> Completed | Failed:
        """Render an order as the far side does, and return how that ended.

        Args:
            order: One of the backend's.
            lost: Whether all of its events are lost.
            scene: Arguments of `FakeRenderer`.
        """

        def send(event: RenderEvent) -> EventReply:
            if lost:
                raise ConnectionError("the webhook is lost")
            return self.send(event).reply

        io = RunnerIO(send=send, render=InProcessRender({"bars": FakeRenderer(**scene)}), pace=PACE)
        return run_order(order.model_copy(update={"local": True}), io=io)

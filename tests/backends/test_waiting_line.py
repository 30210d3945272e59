"""Does a waiting line keep the promises of the backend behind it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.waiting import WaitingLine
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import CheckedIn, Completed, Failed, HelperOrder, Pieces, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent, RenderBackend
from renderdispatch.runner import Pace
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import RenderBackendContract, eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import OrderFactory, Recorder
from renderdispatch.testing.renderers import make_helper_order

LONG = {"frames": 6000, "frame_s": 0.01}


class TestWaitingLine(RenderBackendContract):
    """Around the inline backend."""

    renders_apart = False
    helps = False

    @pytest.fixture
    def backend(self) -> Iterator[WaitingLine]:
        backend = WaitingLine(InlineBackend(pace=Pace(progress_s=0.1, backoff_s=0.05)), room=1)
        yield backend
        backend.close()

    def test_slots(self, backend: RenderBackend, order: OrderFactory) -> None:
        """One order renders, one waits, the next is refused; a call that ends makes room in the line."""
        assert backend.slots == 2
        first, second = (backend.start(order(**LONG), on_event=Recorder()) for _ in range(2))
        with pytest.raises(BackendError) as refused:
            backend.start(order(), on_event=Recorder())
        assert (refused.value.code, refused.value.retryable, refused.value.outcome_known) == (
            "backend.busy",
            True,
            True,
        )
        backend.cancel(first)
        self.finish(backend, first)
        third = backend.start(order(), on_event=Recorder())
        backend.cancel(second)
        assert isinstance(self.finish(backend, third).outcome, Completed)


@pytest.fixture
def order(tmp_path: Path) -> Iterator[OrderFactory]:
    storage = FsspecStorage(tmp_path / "objects")
    with registered_scenes(tmp_path / "scenes"):
        yield lambda **params: make_order(storage, params=params)


def _ended(line: WaitingLine, call: BackendCall) -> bool:
    return line.poll(call).status is CallStatus.ENDED


def test_first_come_first_served(order: OrderFactory) -> None:
    """Those that wait render in the order in which they came, each under the id that it was given."""
    line = WaitingLine(InlineBackend())
    heard = [Recorder() for _ in range(5)]
    calls = [line.start(order(frame_s=0.02), on_event=recorder) for recorder in heard]
    for number, call in enumerate(calls):
        eventually(partial(_ended, line, call))
        assert all(_ended(line, before) for before in calls[:number])
    for call, recorder in zip(calls, heard, strict=True):
        first = recorder.events[0]
        assert isinstance(first, CheckedIn) and first.call_id == call.id
        assert isinstance(line.poll(call).outcome, Completed)
    line.close()


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_an_order_that_is_given_up_while_it_waits(order: OrderFactory, end: str) -> None:
    """It ends without having begun, and its end is handed over."""
    line, heard = WaitingLine(InlineBackend()), Recorder()
    running = line.start(order(**LONG), on_event=Recorder())
    waiting = line.start(order(), on_event=heard)
    if end == "cancel":
        line.cancel(waiting)
        line.cancel(waiting)
        eventually(lambda: line.poll(waiting).status is CallStatus.ENDED)
        assert line.poll(running).status is CallStatus.RUNNING
    line.close()
    outcome = line.poll(waiting).outcome
    assert isinstance(outcome, Failed) and outcome.error.code == "render.stopped"
    assert eventually(lambda: heard.events) == [outcome]


class _Puppet:
    """Renders nothing: its calls run until a test says otherwise."""

    locality = Locality.WORLD

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots
        self.started: list[BackendCall] = []
        self.ended: set[BackendCall] = set()
        self.silent = False
        self.broken = False
        self.unknown: Exception | None = None
        self.on_event: OnEvent | None = None
        self.asked = 0

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        if self.broken:
            raise BackendError("it is broken", retryable=True, outcome_known=True)
        if self.unknown is not None:
            self.on_event = on_event
            raise self.unknown
        self.started.append(BackendCall(f"call-{len(self.started)}"))
        return self.started[-1]

    def poll(self, call: BackendCall) -> CallState:
        self.asked += 1
        if self.silent:
            raise BackendError("it does not answer", retryable=True)
        runs = call in self.started and call not in self.ended
        return CallState(status=CallStatus.RUNNING if runs else CallStatus.MISSING)

    def cancel(self, call: BackendCall) -> None:
        self.ended.add(call)

    def close(self) -> None:
        pass


class _HelpingPuppet(_Puppet):
    """Starts helpers too, each in a slot."""

    def start_helper(self, order: HelperOrder) -> BackendCall:
        self.started.append(BackendCall(f"helper-{order.share}"))
        return self.started[-1]


@pytest.fixture
def helper(order: OrderFactory, tmp_path: Path) -> Callable[[int], HelperOrder]:
    """Makes the orders of helpers, by their share."""
    lead = order().model_copy(update={"pieces": Pieces(slots=4, folder=str(tmp_path))})
    return lambda share: make_helper_order(lead, FsspecStorage(tmp_path / "objects"), share=share)


def test_a_helper_takes_a_slot_and_never_waits(order: OrderFactory, helper: Callable[[int], HelperOrder]) -> None:
    """Another helper is refused while it runs; an order waits until it has ended."""
    puppet = _HelpingPuppet()
    line = WaitingLine(puppet)
    call = line.start_helper(helper(1))
    with pytest.raises(BackendError) as refused:
        line.start_helper(helper(2))
    assert (refused.value.code, refused.value.retryable) == ("backend.busy", True)
    line.start(order(), on_event=Recorder())
    assert puppet.started == [call]
    assert line.poll(call).status is CallStatus.RUNNING
    line.cancel(call)
    eventually(lambda: len(puppet.started) == 2)
    line.close()


def test_orders_that_wait_come_before_helpers(order: OrderFactory, helper: Callable[[int], HelperOrder]) -> None:
    """A helper is refused while an order waits."""
    puppet = _HelpingPuppet()
    line = WaitingLine(puppet)
    for _ in range(2):
        line.start(order(), on_event=Recorder())
    with pytest.raises(BackendError) as refused:
        line.start_helper(helper(1))
    assert refused.value.code == "backend.busy"
    line.close()


def test_a_backend_without_helpers_behind_the_line(helper: Callable[[int], HelperOrder]) -> None:
    """Where the backend starts no helpers, none is started, now or later."""
    line = WaitingLine(_Puppet())
    with pytest.raises(BackendError) as refused:
        line.start_helper(helper(1))
    assert (refused.value.code, refused.value.retryable, refused.value.outcome_known) == (
        "backend.no-helpers",
        False,
        True,
    )
    line.close()


def test_a_backend_that_does_not_answer(order: OrderFactory) -> None:
    """Its slots are not given away meanwhile; those that wait go on waiting, and have their turn afterwards."""
    puppet = _Puppet()
    line = WaitingLine(puppet)
    first = line.start(order(), on_event=Recorder())
    line.start(order(), on_event=Recorder())
    puppet.silent, asked = True, puppet.asked
    eventually(lambda: puppet.asked > asked + 1)
    assert puppet.started == [first]
    puppet.silent = False
    puppet.cancel(first)
    eventually(lambda: len(puppet.started) == 2)
    line.close()


def test_a_backend_that_refuses(order: OrderFactory) -> None:
    """The order whose start was refused ends; those behind it still have their turn."""
    puppet, heard = _Puppet(), Recorder()
    line = WaitingLine(puppet)
    first = line.start(order(), on_event=Recorder())
    broken = line.start(order(), on_event=heard)
    puppet.broken = True
    puppet.cancel(first)
    eventually(partial(_ended, line, broken))
    puppet.broken = False
    line.start(order(), on_event=Recorder())
    eventually(lambda: len(puppet.started) == 2)
    outcome = line.poll(broken).outcome
    assert isinstance(outcome, Failed) and outcome.error.code == "backend.error"
    line.close()


@pytest.mark.parametrize(
    "error", [BackendError("its answer was lost", retryable=True, outcome_known=False), ZeroDivisionError()], ids=repr
)
def test_a_queued_start_whose_outcome_is_unknown_counts_as_running(order: OrderFactory, error: Exception) -> None:
    """Its render may run, so it is not failed and keeps its slot, until a check-in names its call or it is cancelled."""
    puppet, heard = _Puppet(), Recorder()
    line, queued = WaitingLine(puppet), order()
    first = line.start(order(), on_event=Recorder())
    unknown = line.start(queued, on_event=heard)
    puppet.unknown = error
    puppet.cancel(first)
    assert eventually(lambda: puppet.on_event is not None)
    assert line.poll(unknown).status is CallStatus.RUNNING
    puppet.started.append(BackendCall("late"))
    assert puppet.on_event is not None
    common = {"event_id": "1", "job_id": queued.job_id, "token": queued.token, "run_id": "run-1"}
    puppet.on_event(CheckedIn.model_validate({**common, "call_id": "late"}))
    assert [event.call_id for event in heard.events if isinstance(event, CheckedIn)] == [unknown.id]
    line.cancel(unknown)
    assert BackendCall("late") in puppet.ended
    assert line.poll(unknown).status is CallStatus.MISSING
    line.close()


def test_a_long_render_is_not_forgotten(order: OrderFactory) -> None:
    """However many orders have passed through the line since; those that have ended are."""
    puppet, some = _Puppet(slots=2), order()
    line = WaitingLine(puppet)
    before = [line.start(some, on_event=Recorder()) for _ in range(2)]
    long = line.start(some, on_event=Recorder())
    puppet.ended.update(before)
    line.start(some, on_event=Recorder())
    brief = []
    for _ in range(1200):  # each waits until the one before it has ended
        brief.append(line.start(some, on_event=Recorder()))
        puppet.ended.update(puppet.started[3:])
    assert line.poll(long).status is CallStatus.RUNNING
    assert line.poll(brief[0]).status is CallStatus.MISSING
    line.close()


def test_room_that_makes_no_sense() -> None:
    """A line has room for one at least."""
    with pytest.raises(ConfigurationError):
        WaitingLine(InlineBackend(), room=0)

"""What must every render backend do?

Each test is a sentence of `renderdispatch.protocols.RenderBackend`::

    class TestMyBackend(RenderBackendContract):
        @pytest.fixture
        def backend(self):
            backend = MyBackend()
            yield backend
            backend.close()

The orders ask for the scene ``fake`` (`renderdispatch.testing.FakeRenderer`), which the backend's renders must find.
If the backend is a `SupportsHelpers`, they must find ``fake-segments`` too (`FakeSegmentsRenderer`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from renderdispatch.errors import BackendError
from renderdispatch.messages import (
    Action,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    HelperOrder,
    Progressed,
    RenderEvent,
    RenderOrder,
)
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    Locality,
    RenderBackend,
    StorageAdapter,
    SupportsHelpers,
)
from renderdispatch.testing.builders import eventually, in_threads
from renderdispatch.testing.renderers import (
    FAKE_SEGMENTS,
    fake_digest,
    make_helper_order,
    make_order,
    make_pieces,
    make_plan,
    registered_scenes,
)

OrderFactory = Callable[..., RenderOrder]
"""``order(**params)``: an order for the fake scene with these parameters; see `FakeRenderer`."""

HelperFactory = Callable[..., HelperOrder]
"""``helper(**params)``: the order of a helper, with these parameters of `FakeSegmentsRenderer`; its plan is kept."""

_PIECES = "contract/pieces/x/"
_STOP_KEY = "contract/stop"
_SLOTS = 40
_LONG = {"frames": 600, "frame_s": 0.05}
_STOP = EventReply(action=Action.STOP, reason="cancelled")


class Recorder:
    """Records the events of a run, and replies to each as the test says."""

    def __init__(self, answer: Callable[[RenderEvent], EventReply] = lambda _event: EventReply()) -> None:
        self._answer = answer
        self.events: list[RenderEvent] = []
        self.threads: set[int] = set()

    def __call__(self, event: RenderEvent) -> EventReply:
        self.threads.add(threading.get_ident())
        self.events.append(event)
        return self._answer(event)

    @property
    def final(self) -> Completed | Failed | None:
        """The final event; None before it came."""
        return next((e for e in self.events if isinstance(e, Completed | Failed)), None)


class RenderBackendContract:
    """Subclass it, override `backend`, and every promise of `RenderBackend` is tested.

    Remote backends ignore ``on_event``: the tests about events are skipped for them.

    Attributes:
        renders_apart: Whether a render that crashes leaves this process alone.
        helps: Whether helpers can be started, if the backend has `start_helper`.
    """

    renders_apart: ClassVar[bool] = True
    helps: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> Iterator[RenderBackend]:
        """The backend under test; closed afterwards."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageAdapter:
        """A storage whose URLs reach where the backend renders."""
        from renderdispatch.storage.fsspec import FsspecStorage

        return FsspecStorage(tmp_path / "objects")

    @pytest.fixture
    def order(self, storage: StorageAdapter, tmp_path: Path) -> Iterator[OrderFactory]:
        """Makes orders for the fake scene."""
        with registered_scenes(tmp_path / "scenes"):
            yield lambda **params: make_order(storage, params=params)

    @pytest.fixture
    def events(self, backend: RenderBackend) -> Recorder:
        """Records the events of local renders; skips for remote ones."""
        if backend.locality is Locality.WORLD:
            pytest.skip("remote renders report to the order's callback")
        return Recorder()

    @pytest.fixture
    def helping(self, backend: RenderBackend) -> SupportsHelpers:
        """The backend, as one that starts helpers; skips for others."""
        if not self.helps or not isinstance(backend, SupportsHelpers):
            pytest.skip("draws a video with one call")
        return backend

    @pytest.fixture
    def helper(self, storage: StorageAdapter, order: OrderFactory) -> HelperFactory:
        """Makes orders of helpers."""

        def make(*, segments: int = 4, share: int = 1, **params: float) -> HelperOrder:
            if not any(info.key == f"{_PIECES}plan.0" for info in storage.list(_PIECES)):
                storage.put(f"{_PIECES}plan.0", make_plan(fake_digest(segments)))
            pieces = make_pieces(storage, _PIECES, slots=_SLOTS)
            lead = order(segments=segments, **params).model_copy(update={"scene": FAKE_SEGMENTS, "pieces": pieces})
            stop = storage.sign_get(_STOP_KEY, expires_in=timedelta(hours=1))
            return make_helper_order(lead, storage, share=share, stop=stop)

        return make

    def finish(self, backend: RenderBackend, call: BackendCall) -> CallState:
        """Wait until the call has ended; return its state."""
        eventually(lambda: backend.poll(call).status is not CallStatus.RUNNING)
        return backend.poll(call)

    # --- start

    def test_it_is_a_backend(self, backend: RenderBackend) -> None:
        """It has every name of the protocol."""
        assert isinstance(backend, RenderBackend)
        assert backend.slots is None or backend.slots >= 1

    def test_start_does_not_wait(self, backend: RenderBackend, order: OrderFactory) -> None:
        """`start` returns long before the render ends."""
        began = time.monotonic()
        call = backend.start(order(**_LONG), on_event=Recorder())
        assert time.monotonic() - began < 5
        assert backend.poll(call).status is CallStatus.RUNNING
        backend.cancel(call)

    def test_calls_are_told_apart(self, backend: RenderBackend, order: OrderFactory) -> None:
        """Each started order has its own call and keeps its own outcome."""
        calls = []
        for video in ("a", "abc"):
            calls.append(backend.start(order(video=video), on_event=Recorder()))
            self.finish(backend, calls[-1])
        assert len({call.id for call in calls}) == 2
        outcomes = [backend.poll(call).outcome for call in calls]
        assert [isinstance(o, Completed) and o.artifact.bytes for o in outcomes] == [1, 3]

    # --- events

    def test_events_come_in_order(self, backend: RenderBackend, order: OrderFactory, events: Recorder) -> None:
        """First the check-in, then rising progress, last and once the outcome, all from one run."""
        asked = order(frames=30, frame_s=0.05)
        self.finish(backend, backend.start(asked, on_event=events))
        eventually(lambda: events.final)
        assert isinstance(events.events[0], CheckedIn)
        assert isinstance(events.events[-1], Completed)
        assert len({e.run_id for e in events.events}) == 1
        assert {(e.job_id, e.token) for e in events.events} == {(asked.job_id, asked.token)}
        shown = [e.frames for e in events.events if isinstance(e, Progressed) and e.frames is not None]
        assert shown and shown == sorted(shown)

    def test_events_come_from_a_thread_of_their_own(
        self, backend: RenderBackend, order: OrderFactory, events: Recorder
    ) -> None:
        """No event is passed on the thread that called `start`."""
        self.finish(backend, backend.start(order(), on_event=events))
        eventually(lambda: events.final)
        assert threading.get_ident() not in events.threads

    def test_the_check_in_brings_the_call(self, backend: RenderBackend, order: OrderFactory, events: Recorder) -> None:
        """The check-in names the call, also if it comes before `start` returns."""
        call = backend.start(order(), on_event=events)
        self.finish(backend, call)
        first = events.events[0]
        assert isinstance(first, CheckedIn)
        assert first.call_id == call.id

    def test_the_video_stands_when_the_outcome_says_so(
        self, backend: RenderBackend, order: OrderFactory, storage: StorageAdapter, events: Recorder
    ) -> None:
        """`Completed` and the result object name a stored video and its size."""
        asked = order(video="abcdef")
        self.finish(backend, backend.start(asked, on_event=events))
        done = eventually(lambda: events.final)
        assert isinstance(done, Completed)
        assert storage.stat(done.artifact.key).size == done.artifact.bytes == 6
        with storage.open(asked.result.key) as file:
            assert Completed.model_validate_json(file.read()).artifact == done.artifact

    @pytest.mark.usefixtures("events")
    @pytest.mark.parametrize("kind", [CheckedIn, Progressed])
    def test_an_answer_stops_the_render(
        self, backend: RenderBackend, order: OrderFactory, storage: StorageAdapter, kind: type
    ) -> None:
        """The reply "stop", to the check-in or later, ends the render without a video."""
        told = Recorder(lambda event: _STOP if isinstance(event, kind) else EventReply())
        asked = order(**_LONG)
        state = self.finish(backend, backend.start(asked, on_event=told))
        final = eventually(lambda: told.final)
        assert isinstance(final, Failed) and final.error.code == "render.stopped"
        assert not isinstance(state.outcome, Completed)
        assert [info.key for info in storage.list("") if info.key == asked.video.key] == []

    @pytest.mark.usefixtures("events")
    def test_an_event_that_is_not_taken_comes_again(self, backend: RenderBackend, order: OrderFactory) -> None:
        """An event that `on_event` refuses is passed again, or `poll` has the outcome."""
        refused: list[RenderEvent] = []

        def refuse_twice(event: RenderEvent) -> EventReply:
            if len(refused) < 2:
                refused.append(event)
                raise ConnectionError("the store is away")
            return EventReply()

        state = self.finish(backend, backend.start(order(), on_event=Recorder(refuse_twice)))
        assert isinstance(state.outcome, Completed)

    def test_a_failure_is_handed_over(self, backend: RenderBackend, order: OrderFactory, events: Recorder) -> None:
        """A scene that fails is an outcome, with the scene's own message."""
        self.finish(backend, backend.start(order(fail="no such star"), on_event=events))
        final = eventually(lambda: events.final)
        assert isinstance(final, Failed)
        assert (final.error.code, final.error.message) == ("scene.fake", "no such star")

    def test_a_render_that_dies_is_handed_over(
        self, backend: RenderBackend, order: OrderFactory, events: Recorder
    ) -> None:
        """A render process that dies before it reports an outcome is an outcome too."""
        if not self.renders_apart:
            pytest.skip("renders in this very process")
        state = self.finish(backend, backend.start(order(die=signal.SIGKILL), on_event=events))
        final = eventually(lambda: events.final)
        assert isinstance(final, Failed)
        assert state.outcome == final
        assert "SIGKILL" in final.error.message

    # --- poll and cancel

    def test_poll_of_an_ended_call(self, backend: RenderBackend, order: OrderFactory) -> None:
        """`poll` returns ``ended`` and the outcome, however often it is called."""
        call = backend.start(order(), on_event=Recorder())
        state = self.finish(backend, call)
        assert state.status is CallStatus.ENDED
        assert isinstance(state.outcome, Completed)
        assert in_threads(4, lambda _: backend.poll(call)) == [state] * 4

    def test_an_unknown_call(self, backend: RenderBackend) -> None:
        """`poll` returns ``missing``, and `cancel` is not an error."""
        unknown = BackendCall("no-such-call")
        assert backend.poll(unknown).status is CallStatus.MISSING
        backend.cancel(unknown)

    def test_cancel_ends_a_call(self, backend: RenderBackend, order: OrderFactory) -> None:
        """A cancelled call ends soon and without a video. Another cancel, also after the end, is not an error."""
        heard = Recorder()
        call = backend.start(order(**_LONG), on_event=heard)
        began = time.monotonic()
        backend.cancel(call)
        backend.cancel(call)
        state = self.finish(backend, call)
        assert time.monotonic() - began < 15
        assert not isinstance(state.outcome, Completed)
        backend.cancel(call)
        assert backend.poll(call) == state

    # --- helpers

    def test_a_helper_draws_what_is_missing(
        self, backend: RenderBackend, helping: SupportsHelpers, helper: HelperFactory, storage: StorageAdapter
    ) -> None:
        """It keeps its segments, and ends without an outcome and without an error."""
        state = self.finish(backend, helping.start_helper(helper(segments=4)))
        assert state == CallState(status=CallStatus.ENDED)
        kept = {info.key.removeprefix(_PIECES) for info in storage.list(_PIECES) if not info.key.endswith("grants")}
        assert kept == {"plan.0", "000.0", "001.0", "002.0", "003.0"}

    def test_a_helper_ends_when_its_attempt_does(
        self, backend: RenderBackend, helping: SupportsHelpers, helper: HelperFactory, storage: StorageAdapter
    ) -> None:
        """It ends soon after the stop object is there, with most segments not drawn."""
        order = helper(segments=_SLOTS, segment_s=0.5)
        call = helping.start_helper(order)
        eventually(lambda: f"{_PIECES}001.0" in {info.key for info in storage.list(_PIECES)})
        storage.put(_STOP_KEY, b"stop")
        assert self.finish(backend, call) == CallState(status=CallStatus.ENDED)
        assert sum(not info.key.endswith("grants") for info in storage.list(_PIECES)) < _SLOTS // 2

    def test_cancel_ends_a_helper(
        self, backend: RenderBackend, helping: SupportsHelpers, helper: HelperFactory
    ) -> None:
        """A cancelled helper ends soon. Another cancel is not an error."""
        call = helping.start_helper(helper(segments=_SLOTS, segment_s=5))
        began = time.monotonic()
        backend.cancel(call)
        backend.cancel(call)
        state = self.finish(backend, call)
        assert time.monotonic() - began < 15
        assert state.outcome is None

    def test_a_helper_never_waits(
        self, backend: RenderBackend, helping: SupportsHelpers, helper: HelperFactory, order: OrderFactory
    ) -> None:
        """Where every slot is taken, a helper is refused as busy."""
        if backend.locality is Locality.WORLD or backend.slots is None:
            pytest.skip("no limit of its own")
        calls = [backend.start(order(**_LONG), on_event=Recorder()) for _ in range(backend.slots)]
        with pytest.raises(BackendError) as refused:
            helping.start_helper(helper())
        assert (refused.value.code, refused.value.retryable, refused.value.outcome_known) == (
            "backend.busy",
            True,
            True,
        )
        for call in calls:
            backend.cancel(call)

    # --- slots and close

    def test_slots(self, backend: RenderBackend, order: OrderFactory) -> None:
        """One order more than there are slots is refused, and accepted when a call has ended."""
        if backend.slots is None:
            pytest.skip("no limit of its own")
        calls = [backend.start(order(**_LONG), on_event=Recorder()) for _ in range(backend.slots)]
        with pytest.raises(BackendError) as refused:
            backend.start(order(), on_event=Recorder())
        assert refused.value.retryable and refused.value.outcome_known
        backend.cancel(calls[0])
        self.finish(backend, calls[0])
        assert isinstance(self.finish(backend, backend.start(order(), on_event=Recorder())).outcome, Completed)
        for call in calls:
            backend.cancel(call)

    def test_close_ends_what_computes(self, backend: RenderBackend, order: OrderFactory) -> None:
        """After `close`, nothing renders here and nothing can be started. A second call does nothing."""
        if backend.locality is Locality.WORLD:
            pytest.skip("remote renders go on without the process that started them")
        call = backend.start(order(**_LONG), on_event=Recorder())
        backend.close()
        assert backend.poll(call).status is CallStatus.ENDED
        backend.close()
        with pytest.raises(BackendError):
            backend.start(order(), on_event=Recorder())

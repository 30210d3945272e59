"""Does anything wait for what is slow, strange or impossible, but its own job?"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from renderdispatch import AudioUrl, JobStatus, RenderService, Stage
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.messages import Limits, RenderOrder
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent, RenderBackend
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeClock, FakeRenderer, eventually
from renderdispatch.testing.world import PACE, Remote, WorldStorage
from tests.support.targets import Target, says, target

SECOND = timedelta(seconds=1)


class Held(Remote):
    """A far backend whose calls hold until the test sets ``let_go``: those named, and no others."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.held = held
        self.let_go = threading.Event()
        self.entered = threading.Semaphore(0)

    def _hold(self, name: str) -> None:
        if name in self.held:
            self.entered.release()
            assert self.let_go.wait(60)

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        self._hold("start")
        return super().start(order, on_event=on_event)

    def poll(self, call: BackendCall) -> CallState:
        self._hold("poll")
        return super().poll(call)

    def cancel(self, call: BackendCall) -> None:
        self._hold("cancel")
        super().cancel(call)

    def close(self) -> None:
        self._hold("close")


class HeldSlots(Held):
    """A far backend that computes how many orders it takes, and holds."""

    @property
    def slots(self) -> int | None:  # type: ignore[override]
        """As many as there are."""
        self._hold("slots")
        return None


class HeldAtHome(Held):
    """A third party's backend on this machine, whose calls hold."""

    locality = Locality.PROCESS


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime.now(UTC))


@pytest.fixture
def home() -> Iterator[InlineBackend]:
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    yield backend
    backend.close()


@pytest.mark.parametrize("held", ["start", "poll", "cancel"])
def test_a_round_of_a_scheduler_ends_whatever_hangs(
    held: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tick` leaves what hangs to its lane; jobs of other backends are dispatched, stopped and ended all the same."""
    for module in ("worker", "reconcile"):
        monkeypatch.setattr(f"renderdispatch.engine.{module}.TICK_S", 0.2)
    slow, other = Held(held), Remote()
    storage = WorldStorage()
    service = RenderService(MemoryJobStore(clock=clock), storage, {"slow": slow, "other": other}, worker=False)
    stuck, mine = (service.submit(b"RIFF", scene="fake", backend=name) for name in ("slow", "other"))
    service.tick()
    assert len(other.orders) == 1
    for handle in (stuck, mine):
        handle.cancel()
    clock.advance(SECOND)
    service.tick()
    assert mine.job.status is JobStatus.CANCELLED
    slow.let_go.set()
    service.close()


def serving(clock: FakeClock, slow: Held, other: RenderBackend) -> RenderService:
    storage = WorldStorage()
    return RenderService(MemoryJobStore(clock=clock), storage, {"slow": slow, "other": other})


class HeldStorage(WorldStorage):
    """A storage whose calls hold until the test sets ``let_go``: the one that is named in ``held``, and no others."""

    held = ""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.entered = threading.Semaphore(0)

    def _hold(self, name: str) -> None:
        if name == self.held:
            self.entered.release()
            assert self.let_go.wait(60)

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        self._hold("open")
        return super().open(key)

    def delete_prefix(self, prefix: str) -> int:
        self._hold("delete_prefix")
        return super().delete_prefix(prefix)


@pytest.mark.parametrize("held", ["open", "delete_prefix"])
def test_a_storage_that_hangs_keeps_no_slot(clock: FakeClock, home: InlineBackend, held: str) -> None:
    """While storage hangs as results are sought or objects removed, renders that ended free their slots for others."""
    storage, backend = HeldStorage(), Remote()
    with RenderService(MemoryJobStore(clock=clock), storage, {"home": home, "far": backend}) as service:
        try:
            storage.held = held
            for _ in range(5):
                running = service.submit(b"RIFF", scene="fake", params={"frames": 3000, "frame_s": 0.01})
                eventually(lambda: running.job.stage is Stage.RENDERING)  # noqa: B023 - it is done within the round
                running.cancel()
                assert running.wait(timeout=30).status is JobStatus.CANCELLED
            far = [service.submit(b"RIFF", scene="fake", backend="far") for _ in range(9)]
            eventually(lambda: all(handle.job.stage is Stage.DISPATCHED for handle in far))
            for call in list(backend.states):
                backend.states[call] = CallState(status=CallStatus.ENDED)
            clock.advance(20 * SECOND)
            service._engine.worker().wake_all()
            assert storage.entered.acquire(timeout=30)
            eventually(lambda: all(handle.job.attempts[0].verdict is not None or handle.job.ready_at for handle in far))
        finally:
            storage.let_go.set()


# --- backends


@pytest.mark.parametrize("held", ["start", "poll", "cancel", "slots"])
def test_a_backend_that_hangs_holds_up_no_other(clock: FakeClock, home: InlineBackend, held: str) -> None:
    """While calls of one backend hang, in whatever method, the jobs of another one begin, complete and are cancelled."""
    slow = HeldSlots(held) if held == "slots" else Held(held)
    with serving(clock, slow, home) as service:
        try:
            handles = [service.submit(b"RIFF", scene="fake", backend="slow") for _ in range(12)]
            if held not in {"start", "slots"}:
                eventually(lambda: all(handle.job.stage is Stage.DISPATCHED for handle in handles))
                clock.advance(20 * SECOND)
                service._engine.worker().wake_all()
            if held == "cancel":
                for handle in handles:
                    handle.cancel()
            assert slow.entered.acquire(timeout=30)
            jobs = [service.submit(b"RIFF", scene="fake", backend="other") for _ in range(3)]
            assert [job.wait(timeout=30).status for job in jobs] == [JobStatus.COMPLETE] * 3
            running = service.submit(b"RIFF", scene="fake", backend="other", params={"frames": 3000, "frame_s": 0.01})
            eventually(lambda: running.job.stage is Stage.RENDERING)
            running.cancel()
            assert running.wait(timeout=30).status is JobStatus.CANCELLED
        finally:
            slow.let_go.set()


def test_a_backend_of_this_machine_that_hangs_holds_up_no_other(clock: FakeClock, home: InlineBackend) -> None:
    """A local backend that hangs when it is polled delays no claim and no renewal of others, and a cancel returns."""
    slow = HeldAtHome("poll", "cancel")
    with serving(clock, slow, home) as service:
        try:
            stuck = service.submit(b"RIFF", scene="fake", backend="slow")
            eventually(lambda: stuck.job.stage is Stage.DISPATCHED)
            assert slow.entered.acquire(timeout=30)
            stuck.cancel()
            assert service.submit(b"RIFF", scene="fake", backend="other").wait(timeout=30).status is JobStatus.COMPLETE
        finally:
            slow.let_go.set()


def test_a_backend_that_computes_its_slots(clock: FakeClock) -> None:
    """What a backend says of its slots in its own lane counts in the same round."""
    backend = HeldSlots()
    service = RenderService(MemoryJobStore(clock=clock), WorldStorage(), backend, worker=False)
    service.submit(b"RIFF", scene="fake")
    service.tick()
    assert len(backend.orders) == 1


def test_a_client_is_not_held_up_by_a_backend_that_hangs(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no worker runs, a poll of a job whose backend hangs returns; another job's poll brings its end."""
    monkeypatch.setattr("renderdispatch.engine.reconcile._CLIENT_S", 0.2)
    slow, other = Held("poll"), Remote()
    service = RenderService(MemoryJobStore(clock=clock), WorldStorage(), {"slow": slow, "other": other}, worker=False)
    try:
        stuck, ended = (service.submit(b"RIFF", scene="fake", backend=name) for name in ("slow", "other"))
        service._engine.worker().dispatcher.tick()
        service._engine.worker().dispatcher.drain(30)
        other.states["call-1"] = CallState(status=CallStatus.ENDED)
        clock.advance(20 * SECOND)
        assert stuck.poll().status is JobStatus.PROCESSING
        assert slow.entered.acquire(timeout=30)
        assert ended.poll().stage is Stage.RETRY_WAIT
    finally:
        slow.let_go.set()
        service.close()


def test_a_cancel_that_hangs_does_not_hold_close_up(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service closes in time though the backend of a job that was cancelled does not respond."""
    for name in ("worker._CLOSE_S", "leases._STOP_S"):
        monkeypatch.setattr(f"renderdispatch.engine.{name}", 0.2)
    slow = HeldAtHome("cancel")
    service = serving(clock, slow, Remote())
    closing = threading.Thread(target=service.close, daemon=True)
    try:
        service.start()
        stuck = service.submit(b"RIFF", scene="fake", backend="slow")
        eventually(lambda: stuck.job.stage is Stage.DISPATCHED)
        stuck.cancel()
        assert slow.entered.acquire(timeout=30)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
    finally:
        slow.let_go.set()


def test_a_part_that_hangs_or_raises_at_close_holds_up_no_other(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every part that a service owns is closed, whatever the parts before it do."""
    monkeypatch.setattr("renderdispatch.engine.runtime._CLOSE_S", 0.2)
    closed: list[str] = []

    class Last(MemoryJobStore):
        def close(self) -> None:
            closed.append("store")

    class Broken(Remote):
        def close(self) -> None:
            raise OSError("it cannot be closed")

    store, slow, broken = Last(clock=clock), Held("close"), Broken()
    backends: dict[str, RenderBackend] = {"slow": slow, "broken": broken}
    RenderService(store, WorldStorage(), backends, owned=[slow, broken, store]).close()
    slow.let_go.set()
    assert closed == ["store"]
    assert "a Held is still closing" in caplog.text and "it cannot be closed" in caplog.text


def test_a_cancel_outlasts_no_start_that_hangs(clock: FakeClock, home: InlineBackend) -> None:
    """A job is cancelled at its start deadline, at the latest, though its backend never says whether it was started."""
    slow = Held("start")
    with serving(clock, slow, home) as service:
        try:
            handle = service.submit(b"RIFF", scene="fake", backend="slow")
            assert slow.entered.acquire(timeout=30)
            assert handle.cancel().stage is Stage.CANCELLING
            for _ in range(7):
                clock.advance(timedelta(minutes=10))
                service._engine.worker().reconciler.round()
            job = handle.job
            assert (job.status, job.compute_stopped_at) == (JobStatus.CANCELLED, None)
            assert job.owes_clean_up
        finally:
            slow.let_go.set()


def test_orders_to_stop_do_not_wait_behind_questions(clock: FakeClock, home: InlineBackend) -> None:
    """While every question to a backend hangs, a cancel still reaches it."""
    slow = Held("poll")
    with serving(clock, slow, home) as service:
        try:
            handles = [service.submit(b"RIFF", scene="fake", backend="slow") for _ in range(12)]
            eventually(lambda: all(handle.job.stage is Stage.DISPATCHED for handle in handles))
            clock.advance(20 * SECOND)
            service._engine.worker().wake_all()
            for _ in range(4):
                assert slow.entered.acquire(timeout=30)
            handles[-1].cancel()
            eventually(lambda: slow.cancelled)
        finally:
            slow.let_go.set()


def test_deadlines_do_not_wait_behind_questions(clock: FakeClock, home: InlineBackend) -> None:
    """While a backend and its questions hang, a job past its deadline is known to be so."""
    slow = Held("poll")
    with serving(clock, slow, home) as service:
        try:
            handles = [
                service.submit(b"RIFF", scene="fake", backend="slow", limits=Limits(total_timeout=timedelta(minutes=5)))
                for _ in range(12)
            ]
            eventually(lambda: all(handle.job.stage is Stage.DISPATCHED for handle in handles))
            clock.advance(20 * SECOND)
            service._engine.worker().wake_all()
            assert slow.entered.acquire(timeout=30)
            clock.advance(timedelta(minutes=10))
            service._engine.worker().wake_all()
            eventually(lambda: all(handle.job.attempts[-1].unwanted or handle.job.ended for handle in handles))
        finally:
            slow.let_go.set()


def test_backends_are_served_in_turn(clock: FakeClock) -> None:
    """A job of the second backend starts while the first one's starts hang, before a long queue in front of it."""
    first, second = Held("start"), Remote()
    service = RenderService(MemoryJobStore(clock=clock), WorldStorage(), {"first": first, "second": second})
    start = service._engine.start
    service._engine.__dict__["start"] = lambda: None  # all are queued before the worker starts
    for _ in range(40):
        service.submit(b"RIFF", scene="fake", backend="first")
    urgent = service.submit(b"RIFF", scene="fake", backend="second", priority=1_000_000)
    service._engine.__dict__["start"] = start
    try:
        service.start()
        eventually(lambda: urgent.job.stage is Stage.DISPATCHED)
        assert len(first.orders) == 0
    finally:
        first.let_go.set()
        service.close()


def test_a_backend_that_hangs_does_not_hold_up_the_end(
    clock: FakeClock, home: InlineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` waits a while for calls in progress, and then leaves them behind."""
    monkeypatch.setattr("renderdispatch.engine.worker._CLOSE_S", 0.2)
    slow = Held("start")
    service = serving(clock, slow, home)
    handle = service.submit(b"RIFF", scene="fake", backend="slow")
    assert slow.entered.acquire(timeout=30)
    closing = threading.Thread(target=service.close)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    assert handle.job.attempts[0].ended_at is None, "it is not known whether it started"
    slow.let_go.set()


# --- audio


@pytest.fixture
def tarpit() -> Iterator[Target]:
    """A host that sends a byte now and then, and never all."""
    over = threading.Event()

    def trickle(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not over.wait(0.1):
            connection.sendall(b"x")

    with target(trickle) as host:
        yield host
        over.set()


def fetching(backend: RenderBackend, storage: MemoryStorage) -> RenderService:
    fetcher = GuardedFetcher(allow_http=True, allow_private=True)
    return RenderService(MemoryJobStore(), storage, backend, fetcher=fetcher)


def url(host: Target, name: str = "127.0.0.1") -> AudioUrl:
    return AudioUrl(f"http://{name}:{host.port}/song.wav")


def test_slow_hosts_hold_no_slot(tarpit: Target, home: InlineBackend, tmp_path: Path) -> None:
    """With a hundred URLs of a slow host before them, jobs whose audio is at hand, or a local file, complete."""
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF")
    with fetching(home, MemoryStorage()) as service:
        for _ in range(100):
            service.submit(url(tarpit), scene="fake", priority=5)
        eventually(lambda: tarpit.hits)
        jobs = [service.submit(audio, scene="fake").wait(timeout=30) for audio in (b"RIFF", song)]
        assert [job.status for job in jobs] == [JobStatus.COMPLETE] * 2
        assert tarpit.hits == 2, "of one host, two are fetched at once"


def test_a_slow_host_holds_up_no_other_host(tarpit: Target, home: InlineBackend) -> None:
    """Audio of another host is fetched while a slow one has many requests."""
    with fetching(home, MemoryStorage()) as service, target(says(b"RIFF")) as quick:
        slow = [service.submit(url(tarpit), scene="fake", priority=5) for _ in range(20)]
        eventually(lambda: tarpit.hits)
        assert service.submit(url(quick, "localhost"), scene="fake").wait(timeout=30).status is JobStatus.COMPLETE
        for handle in slow:
            handle.cancel()
        assert {handle.wait(timeout=30).status for handle in slow} == {JobStatus.CANCELLED}


def test_a_fetch_holds_no_slot_until_it_is_over(home: InlineBackend) -> None:
    """While the audio of one job is fetched, others use the only slot; then it takes the slot."""
    let_go = threading.Event()

    def late(connection: socket.socket, request: bytes) -> None:
        assert let_go.wait(60)
        says(b"RIFF")(connection, request)

    with fetching(home, MemoryStorage()) as service, target(late) as host:
        fetched = service.submit(url(host), scene="fake", priority=9)
        eventually(lambda: fetched.job.stage is Stage.UPLOADING_AUDIO)
        others = [service.submit(b"RIFF", scene="fake") for _ in range(3)]
        assert [other.wait(timeout=30).status for other in others] == [JobStatus.COMPLETE] * 3
        assert fetched.job.stage is Stage.UPLOADING_AUDIO
        let_go.set()
        assert fetched.wait(timeout=30).status is JobStatus.COMPLETE


# --- what cannot start


@pytest.mark.parametrize("thread", ["start", "files", "fetch", "ask", "orders", "bucket", "tidy"])
def test_a_thread_that_cannot_be_started_holds_nothing(
    thread: str, home: InlineBackend, tmp_path: Path, refuse_thread: Callable[[str], None]
) -> None:
    """A job for which no thread can be started is neither lost nor held: it is done as soon as one can be."""
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF")
    with fetching(home, MemoryStorage()) as service, target(says(b"RIFF")) as host:
        for _ in range(3):
            refuse_thread(f"renderdispatch-{thread}")
        handles = [service.submit(audio, scene="fake") for audio in (b"RIFF", song, url(host))]
        jobs = [handle.wait(timeout=50) for handle in handles]
    assert [job.status for job in jobs] == [JobStatus.COMPLETE] * 3
    assert {a.error and a.error.code for job in jobs for a in job.attempts} <= {None, "worker.closed"}


def test_a_render_that_cannot_be_started_frees_its_slot(
    home: InlineBackend, refuse_thread: Callable[[str], None]
) -> None:
    """An inline render whose thread is refused is tried again, and the slot serves other jobs meanwhile."""
    with RenderService(MemoryJobStore(), MemoryStorage(), home) as service:
        refuse_thread("renderdispatch-call")
        first = service.submit(b"RIFF", scene="fake")
        eventually(lambda: first.job.stage is Stage.RETRY_WAIT or first.job.ended)
        assert service.submit(b"RIFF", scene="fake").wait(timeout=30).status is JobStatus.COMPLETE
        assert first.wait(timeout=30).status is JobStatus.COMPLETE

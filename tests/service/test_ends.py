"""Does every job end exactly once, with the right answer, whatever fails, repeats, comes late or never?"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from pydantic import SecretStr

from renderdispatch import JobStatus, Limits, RenderService, Stage
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.engine.commit import forget
from renderdispatch.engine.records import dump_job
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import BackendError, InvalidRequestError, StoreUnavailableError
from renderdispatch.jobs import CleanUp
from renderdispatch.messages import (
    Action,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    JobError,
    LocalAudio,
    Progressed,
    RemoteAudio,
    RenderEvent,
    RenderOrder,
    RenderStats,
)
from renderdispatch.protocols import (
    BackendCall,
    CallState,
    CallStatus,
    ObjectInfo,
    OnEvent,
    RenderBackend,
    Report,
    StorageAdapter,
)
from renderdispatch.runner import InProcessRender, RunnerIO, run_order
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import (
    FakeClock,
    FakeRenderer,
    eventually,
    make_artifact,
    make_job,
    make_request,
    registered_scenes,
)
from renderdispatch.testing.world import (
    PACE,
    DeafRemote,
    FindingRemote,
    FlakyStore,
    GoneRemote,
    HeldStorage,
    Paused,
    Remote,
    SlowStorage,
    Stuck,
    World,
    event_of,
)

LONG = {"frames": 3000, "frame_s": 0.01}
SECOND = timedelta(seconds=1)


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Remote())
    yield world
    world.service.close()


def infrastructure(code: str = "gpu.lost") -> JobError:
    return JobError(code=code, message="lost", fault=FaultDomain.INFRASTRUCTURE)


# --- far away: J1 to J12


def test_a_far_render(world: World) -> None:
    """The order goes out, its events come in, and the video in storage ends the job."""
    job_id = world.submit()
    world.tick()
    assert world.job(job_id).stage is Stage.DISPATCHED
    attempt = world.job(job_id).attempt
    assert attempt is not None and (attempt.call_id, attempt.holder) == ("call-1", None)
    world.render(world.backend.orders[0])
    assert world.job(job_id).stage is Stage.FINALIZING
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_j1_an_older_attempt_changes_nothing(world: World) -> None:
    """An event of an attempt that was replaced is superseded, and told to stop."""
    job_id = world.submit()
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    world.send(event_of(world.backend.orders[0], Failed, error=infrastructure()))
    world.clock.advance(10 * SECOND)
    world.tick()
    first, second = world.backend.orders
    assert first.token != second.token and first.video.key != second.video.key
    before = world.job(job_id)
    for event in (event_of(first, CheckedIn), event_of(first, Failed, error=infrastructure())):
        decision = world.send(event)
        assert (decision.verdict, decision.reply.action) == (Verdict.SUPERSEDED, Action.STOP)
    assert world.job(job_id) == before


def test_j2_an_unknown_start_is_no_failure(world: World) -> None:
    """A start whose answer was lost is waited for: a check-in brings the call id, and the job completes."""
    world.backend.refuse = BackendError("timed out", retryable=True, outcome_known=False)
    job_id = world.submit()
    world.tick(3)
    job = world.job(job_id)
    assert (job.stage, len(job.attempts)) == (Stage.DISPATCHED, 1)
    world.render(world.backend.orders[0])
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_j2_an_unknown_start_is_superseded_at_its_deadline(world: World) -> None:
    """A start that never showed is given up when its start deadline, and a minute, have passed."""
    world.backend.refuse = BackendError("timed out", retryable=True, outcome_known=False)
    job_id = world.submit(limits=Limits(start_timeout=timedelta(minutes=5)))
    world.tick()
    world.clock.advance(timedelta(minutes=5, seconds=59))
    world.tick()
    assert len(world.job(job_id).attempts) == 1
    world.clock.advance(5 * SECOND)
    world.backend.refuse = None
    world.tick()
    world.clock.advance(10 * SECOND)
    world.tick()
    first = world.job(job_id).attempts[0]
    assert first.error is not None and first.error.code == "deadline.start"
    assert len(world.job(job_id).attempts) == 2


def test_j2_a_backend_that_can_find() -> None:
    """A backend that says that the call does not exist lets another attempt begin at once."""
    world = World(FindingRemote())
    world.backend.refuse = BackendError("timed out", retryable=True, outcome_known=False)
    job_id = world.submit()
    world.tick()
    world.backend.refuse = None
    world.clock.advance(20 * SECOND)
    world.tick()
    first = world.job(job_id).attempts[0]
    assert first.error is not None and first.error.code == "backend.call-missing"
    world.service.close()


def test_j2_a_refused_start_fails_the_attempt(world: World) -> None:
    """A start that surely did not happen is tried again, or never where the backend says so."""
    world.backend.refuse = BackendError("no capacity", retryable=True)
    job_id = world.submit(limits=Limits(max_attempts=2))
    for _ in range(3):
        world.tick()
        world.clock.advance(60 * SECOND)
    job = world.job(job_id)
    assert (job.status, len(job.attempts)) == (JobStatus.FAILED, 2)
    world.backend.refuse = BackendError("no such function", retryable=False)
    job_id = world.submit()
    world.tick()
    assert (world.job(job_id).status, len(world.job(job_id).attempts)) == (JobStatus.FAILED, 1)


def test_j3_a_check_in_that_beats_the_dispatcher(world: World) -> None:
    """A run that checks in before `start` returned is right, and so is what follows."""
    start = world.backend.start

    def fast(order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        call = start(order, on_event=on_event)
        world.send(event_of(order, CheckedIn, call_id=call.id))
        world.send(event_of(order, Progressed, stage=Stage.RENDERING, fraction=0.5))
        return call

    world.backend.start = fast  # type: ignore[method-assign]
    job_id = world.submit()
    world.tick()
    job = world.job(job_id)
    assert job.stage is Stage.RENDERING and job.attempt is not None
    assert (job.attempt.call_id, job.attempt.runs) == ("call-1", ("run-1",))


def test_j4_replays_change_nothing(world: World) -> None:
    """Each event that comes again is answered, and the record stays at its revision."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    for event in (
        event_of(order, CheckedIn),
        event_of(order, Progressed, stage=Stage.RENDERING, fraction=0.5),
    ):
        assert world.send(event).verdict is Verdict.APPLIED
        revision = world.job(job_id).revision
        assert world.send(event).verdict is Verdict.IGNORED
        assert world.job(job_id).revision == revision
    assert world.send(event_of(order, CheckedIn)).verdict is Verdict.IGNORED


def test_j5_terminal_absorbs(world: World) -> None:
    """Nothing that comes after the end changes it: no progress, no failure, no success."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.service.cancel(job_id)
    world.tick()
    ended = world.job(job_id)
    assert ended.status is JobStatus.CANCELLED
    assert world.backend.cancelled == ["call-1"]
    assert isinstance(world.render(order), Failed)
    world.send(event_of(order, Progressed, stage=Stage.RENDERING, fraction=0.5))
    world.tick()
    after = world.job(job_id)
    assert (after.status, after.ended_at, after.artifact) == (JobStatus.CANCELLED, ended.ended_at, None)


def test_j5_in_finalizing_completion_wins(world: World) -> None:
    """A cancel that comes when the video was reported changes nothing: the job completes."""
    job_id = world.submit()
    world.tick()
    world.render(world.backend.orders[0])
    assert world.service.cancel(job_id).stage is Stage.FINALIZING
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_j6_the_newest_run_owns_the_attempt(world: World) -> None:
    """A preempted render starts again as a new run; the older one is told to stop."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.send(event_of(order, CheckedIn, "run-1"))
    world.send(event_of(order, Progressed, "run-1", stage=Stage.RENDERING, fraction=0.7))
    world.send(event_of(order, CheckedIn, "run-2"))
    late = world.send(event_of(order, Progressed, "run-1", stage=Stage.RENDERING, fraction=0.9))
    assert (late.verdict, late.reply.action) == (Verdict.SUPERSEDED, Action.STOP)
    assert world.job(job_id).progress < 80
    assert world.job(job_id).attempt.runs == ("run-1", "run-2")  # type: ignore[union-attr]


def test_j6_a_newest_run_that_dies_after_an_older_one_answered_is_no_end_of_the_job(world: World) -> None:
    """Of an input delivered twice, the older run answers for the call and the newest dies: another attempt follows."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.send(event_of(order, CheckedIn, "run-1"))
    world.send(event_of(order, CheckedIn, "run-2"))
    stopped = JobError(code="render.stopped", message="told to stop", fault=FaultDomain.INFRASTRUCTURE)
    world.backend.states["call-1"] = CallState(
        status=CallStatus.ENDED, outcome=event_of(order, Failed, "run-1", error=stopped)
    )
    world.clock.advance(timedelta(minutes=1))
    world.tick()
    assert world.job(job_id).stage is Stage.DISPATCHED, "the newest run may go on"
    world.clock.advance(timedelta(minutes=2))
    world.tick()
    assert world.job(job_id).stage is Stage.RETRY_WAIT
    world.clock.advance(timedelta(minutes=1))
    world.tick()
    world.render(world.backend.orders[1])
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_j11_clean_up_waits_for_every_run_of_an_attempt(world: World) -> None:
    """Of an input delivered twice one run says that it stopped; what the other still uploads is removed as well."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.send(event_of(order, CheckedIn, "run-1"))
    world.send(event_of(order, CheckedIn, "run-2"))
    world.service.cancel(job_id)
    stopped = JobError(code="render.stopped", message="told to stop", fault=FaultDomain.INFRASTRUCTURE)
    world.send(event_of(order, Failed, "run-2", error=stopped))
    world.tick()
    world.storage.put(order.video.key, b"the video of run-1, which was at its upload")
    world.clock.advance(timedelta(minutes=3))
    world.tick()
    assert (world.job(job_id).status, world.job(job_id).owes_clean_up) == (JobStatus.CANCELLED, False)
    assert not [info.key for info in world.storage.list("") if info.key == order.video.key]


def test_j7_storage_away_delays_the_end(world: World) -> None:
    """While storage is away a reported video waits in finalizing, however long; then the job completes."""
    job_id = world.submit()
    world.tick()
    world.render(world.backend.orders[0])
    world.storage.away = True
    for _ in range(5):
        world.clock.advance(timedelta(minutes=10))
        world.tick()
        assert world.job(job_id).stage is Stage.FINALIZING
    world.storage.away = False
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


@pytest.mark.parametrize("way", ["webhook", "result object", "backend's answer"])
def test_j7_a_video_stands_where_its_order_said(world: World, way: str) -> None:
    """A far side that names another object, by whatever way, completes the job with the order's own video alone."""
    foreign = "tenants/victim/jobs/x/y/video.mp4"
    world.storage.put(foreign, b"SECRET")
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.send(event_of(order, CheckedIn))
    completed = event_of(order, Completed, artifact=make_artifact(key=foreign, bytes=6, etag=None))
    match way:
        case "webhook":
            world.send(completed)
        case "result object":
            world.storage.put(order.result.key, completed.model_dump_json().encode())
        case _:
            world.backend.states["call-1"] = CallState(status=CallStatus.ENDED, outcome=completed)
    world.clock.advance(20 * SECOND)
    world.tick(2)
    job = world.job(job_id)
    assert job.artifact is not None
    assert (job.stage, job.status, job.artifact.key) == (Stage.FINALIZING, JobStatus.PROCESSING, order.video.key)
    world.storage.put(order.video.key, b"mine, ")
    world.tick()
    poll = world.service.poll(job_id)
    assert poll.result is not None and poll.result.video_key == order.video.key


def test_j7_a_result_without_its_video(world: World) -> None:
    """A reported video that does not show within two minutes is an infrastructure failure, and is tried again."""
    job_id = world.submit()
    world.tick()
    order = world.backend.orders[0]
    world.render(order)
    world.storage.delete(order.video.key)
    world.tick()
    assert world.job(job_id).stage is Stage.FINALIZING
    world.clock.advance(timedelta(minutes=3))
    world.tick()
    first = world.job(job_id).attempts[0]
    assert first.error is not None and first.error.code == "artifact.missing"
    assert not world.job(job_id).ended


def test_j8_cancel_is_intent_first(world: World) -> None:
    """A cancel is recorded, then told to the backend, then confirmed with the time that computing stopped."""
    job_id = world.submit()
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    job = world.service.cancel(job_id)
    assert (job.stage, job.status) == (Stage.CANCELLING, JobStatus.PROCESSING)
    assert world.service.cancel(job_id).revision == job.revision
    world.tick()
    job = world.job(job_id)
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is not None
    assert world.service.cancel(job_id) == job


def test_j8_cancel_of_an_unknown_call(world: World) -> None:
    """A cancel whose call never showed ends at the start deadline; when computing stopped is not claimed."""
    world.backend.refuse = BackendError("timed out", retryable=True, outcome_known=False)
    job_id = world.submit(limits=Limits(start_timeout=timedelta(minutes=5)))
    world.tick()
    world.service.cancel(job_id)
    world.tick()
    assert world.job(job_id).stage is Stage.CANCELLING
    world.clock.advance(timedelta(minutes=7))
    world.tick()
    job = world.job(job_id)
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is None


def test_j8_a_cancel_that_meets_the_start(world: World) -> None:
    """A call that began while its job was cancelled is stopped, though the backend does not hear it the first time."""
    start, cancel = world.backend.start, world.backend.cancel
    claims: list[datetime | None] = []

    def begin_late(order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        call = start(order, on_event=on_event)
        world.service.cancel(order.job_id)
        return call

    def hear_late(call: BackendCall) -> None:
        claims.append(world.job(job_id).compute_stopped_at)
        if len(claims) == 1:
            raise BackendError("the network is down", retryable=True)
        cancel(call)

    world.backend.start, world.backend.cancel = begin_late, hear_late  # type: ignore[method-assign]
    job_id = world.submit()
    world.tick()
    world.clock.advance(20 * SECOND)
    world.tick()
    job = world.job(job_id)
    assert claims == [None, None], "computing is said to have stopped while the call runs"
    assert world.backend.cancelled == ["call-1"]
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is not None


def test_j11_retry_by_fault(world: World) -> None:
    """Infrastructure is retried with backoff up to the limit; the request, the scene and the audio never are."""
    job_id = world.submit(limits=Limits(max_attempts=3))
    waits = []
    for _ in range(3):
        world.tick()
        world.send(event_of(world.backend.orders[-1], CheckedIn))
        world.send(event_of(world.backend.orders[-1], Failed, error=infrastructure()))
        job = world.job(job_id)
        if not job.ended:
            assert job.stage is Stage.RETRY_WAIT and job.ready_at is not None
            waits.append(job.ready_at - world.clock())
            world.tick()
            assert world.job(job_id).stage is Stage.RETRY_WAIT
            world.clock.advance(waits[-1])
    assert waits == [2 * SECOND, 8 * SECOND]
    assert (world.job(job_id).status, len(world.job(job_id).attempts)) == (JobStatus.FAILED, 3)
    for fault in (FaultDomain.SCENE, FaultDomain.AUDIO, FaultDomain.REQUEST):
        job_id = world.submit()
        world.tick()
        error = JobError(code="x", message="x", fault=fault)
        world.send(event_of(world.backend.orders[-1], Failed, error=error))
        assert (world.job(job_id).status, len(world.job(job_id).attempts)) == (JobStatus.FAILED, 1)


def test_j11_clean_up_stays_owed_until_it_is_done(world: World) -> None:
    """A failed attempt's call is stopped and its objects are removed, also after the job has ended."""
    job_id = world.submit(limits=Limits(start_timeout=timedelta(minutes=1), max_attempts=1))
    world.tick()
    order = world.backend.orders[0]
    world.storage.put(order.video.key, b"half a video")
    world.clock.advance(timedelta(minutes=3))
    world.tick()
    assert world.job(job_id).status is JobStatus.FAILED
    world.tick()
    attempt = world.job(job_id).attempt
    assert attempt is not None and attempt.clean_up is CleanUp.DONE
    assert world.backend.cancelled == ["call-1"]
    assert [o.key for o in world.storage.list("") if "video" in o.key] == []


_TROUBLE = [BackendError("no permission", retryable=False), KeyError("odd")]


@pytest.mark.parametrize("error", _TROUBLE, ids=lambda error: type(error).__name__)
def test_j11_a_clean_up_that_always_fails_holds_no_delivery_up(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The next attempt's video completes the job, while the clean-up of the one before stays owed."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch.engine.reconcile")
    world = World(DeafRemote(error))
    job_id = world.submit(limits=Limits(start_timeout=timedelta(minutes=5)))
    world.tick()
    world.clock.advance(timedelta(minutes=7))
    world.tick()
    world.clock.advance(10 * SECOND)
    world.tick()
    world.render(world.backend.orders[1])
    world.tick()
    job = world.job(job_id)
    assert (job.status, [a.clean_up for a in job.attempts]) == (JobStatus.COMPLETE, [CleanUp.OWED, CleanUp.NONE])
    world.service.close()


def test_j12_every_webhook_is_lost(world: World) -> None:
    """With every report lost, the result object alone ends the job."""
    job_id = world.submit()
    world.tick()
    assert isinstance(world.render(world.backend.orders[0], lost=True), Completed)
    assert world.job(job_id).stage is Stage.DISPATCHED
    world.clock.advance(20 * SECOND)
    world.tick(2)
    assert world.job(job_id).status is JobStatus.COMPLETE


@pytest.mark.parametrize("state", ["failed", "died", "missing"])
def test_j12_the_backend_knows(world: World, state: str) -> None:
    """With every report lost, the backend's answer ends the attempt."""
    job_id = world.submit(limits=Limits(max_attempts=1))
    world.tick()
    order = world.backend.orders[0]
    world.backend.states["call-1"] = {
        "failed": CallState(status=CallStatus.ENDED, outcome=event_of(order, Failed, error=infrastructure())),
        "died": CallState(status=CallStatus.ENDED),
        "missing": CallState(status=CallStatus.MISSING),
    }[state]
    world.clock.advance(20 * SECOND)
    world.tick()
    error = world.job(job_id).error
    assert error is not None
    assert error.code == {"failed": "gpu.lost", "died": "runner.died", "missing": "backend.call-missing"}[state]


@pytest.mark.parametrize("status", [CallStatus.MISSING, CallStatus.ENDED])
def test_j12_a_result_that_comes_while_the_backend_is_asked(world: World, status: CallStatus) -> None:
    """Between a look into the bucket and the backend's answer a run may deliver, and its call be forgotten or lost."""
    job_id = world.submit()
    world.tick()
    poll = world.backend.poll

    def deliver_then_answer(call: BackendCall) -> CallState:
        poll(call)
        world.render(world.backend.orders[0], lost=True)
        return CallState(status=status)

    world.backend.poll = deliver_then_answer  # type: ignore[method-assign]
    world.clock.advance(20 * SECOND)
    world.tick()
    job = world.job(job_id)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 1)


@pytest.mark.parametrize("ask", ["poll", "wait"])
def test_whoever_asks_brings_the_end(world: World, ask: str) -> None:
    """Where no worker runs and every report is lost, a client that asks for the job has it reconciled."""
    job_id = world.submit()
    world.tick()
    assert isinstance(world.render(world.backend.orders[0], lost=True), Completed)
    assert world.service.poll(job_id).stage is Stage.DISPATCHED  # not due yet
    world.clock.advance(20 * SECOND)
    if ask == "poll":
        assert world.service.poll(job_id).status is JobStatus.COMPLETE
    else:
        assert world.service.handle(job_id).wait(timeout=30).status is JobStatus.COMPLETE


def test_polls_do_not_ask_the_backend_each_time(world: World) -> None:
    """A job that does not change is looked at ever less often, however often it is polled."""
    job_id = world.submit()
    world.tick()
    world.clock.advance(20 * SECOND)
    for _ in range(50):
        assert world.service.poll(job_id).stage is Stage.DISPATCHED
    assert len(world.backend.asked) == 1
    world.pass_time(timedelta(seconds=0.6))
    world.service.poll(job_id)
    assert len(world.backend.asked) == 2


def test_a_poll_stops_what_was_cancelled(world: World) -> None:
    """A cancel whose client only polls reaches the backend, and is confirmed."""
    job_id = world.submit()
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    world.service.cancel(job_id)
    assert world.service.poll(job_id).status is JobStatus.CANCELLED
    assert world.backend.cancelled == ["call-1"]
    assert world.job(job_id).compute_stopped_at is not None


def test_the_total_deadline(world: World) -> None:
    """A job that has not ended in time fails: queued, waiting, or out on a backend, which is told to stop."""
    limits = Limits(total_timeout=timedelta(minutes=10))
    out = world.submit(limits=limits)
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    world.clock.advance(timedelta(minutes=12))
    world.tick(2)
    job = world.job(out)
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "deadline.total")
    assert world.backend.cancelled == ["call-1"]


@pytest.mark.parametrize("error", _TROUBLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_backend_that_is_away_outlasts_no_deadline(
    cancelled: bool, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose backend answers nothing any more ends at its total deadline, and nobody claims that it stopped."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch.engine.reconcile")
    world = World(GoneRemote(error))
    job_id = world.submit(limits=Limits(total_timeout=timedelta(minutes=10)))
    world.tick()
    world.send(event_of(world.backend.orders[0], CheckedIn))
    if cancelled:
        world.service.cancel(job_id)
    world.clock.advance(timedelta(minutes=9))
    world.tick()
    assert not world.job(job_id).ended
    world.clock.advance(timedelta(minutes=3))
    world.tick()
    job = world.job(job_id)
    assert job.compute_stopped_at is None
    if cancelled:
        assert job.status is JobStatus.CANCELLED
    else:
        assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "deadline.total")
    world.service.close()


@pytest.mark.parametrize("late", [SECOND, timedelta(hours=1)], ids=str)
def test_a_job_that_waited_past_its_deadline_is_not_begun(world: World, late: timedelta) -> None:
    """A job that a worker saw wait for too long, without room for it, fails, and no order goes out."""
    world.tick()
    job_id = world.submit(limits=Limits(total_timeout=timedelta(minutes=30)))
    world.pass_time(timedelta(minutes=30) + late)
    world.tick()
    job = world.job(job_id)
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "deadline.total")
    assert world.backend.orders == [] and job.attempts == ()


@pytest.mark.parametrize("late", [SECOND, timedelta(days=3)], ids=str)
@pytest.mark.parametrize("seen", [True, False])
def test_a_step_of_the_clock_fails_no_job_that_never_began(world: World, late: timedelta, seen: bool) -> None:
    """A job that is late by the clock alone is begun, with the time that it has left; it may also be nobody's yet."""
    limits = Limits(total_timeout=timedelta(minutes=30))
    if seen:
        world.tick()
    job_id = world.submit(limits=limits)
    world.clock.advance(limits.total_timeout + late)
    world.tick(2)  # the first round moves its deadline
    job = world.job(job_id)
    assert job.stage is Stage.DISPATCHED
    assert timedelta(0) < job.finish_by - world.clock() <= limits.total_timeout
    assert world.backend.orders[0].finish_by == job.finish_by
    world.render(world.backend.orders[0])
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_a_clock_that_was_fast_at_submit_delays_no_job(world: World) -> None:
    """A job is begun at once though it was submitted by a clock that was hours fast, and so is a retry."""
    job_id = world.submit()
    world.clock.advance(timedelta(hours=-5))
    world.tick()
    assert world.job(job_id).stage is Stage.DISPATCHED
    world.send(event_of(world.backend.orders[0], CheckedIn))
    world.send(event_of(world.backend.orders[0], Failed, error=infrastructure()))
    assert world.job(job_id).stage is Stage.RETRY_WAIT
    world.clock.advance(timedelta(hours=-5))
    world.tick()
    assert len(world.backend.orders) == 2


def test_the_deadline_of_a_queued_job() -> None:
    """A job that nobody takes fails at its deadline all the same."""
    clock, seconds = FakeClock(datetime.now(UTC)), [0.0]
    store = MemoryJobStore(clock=clock)
    blocked = InlineBackend({"fake": FakeRenderer()}, slots=1)
    service = RenderService(store, MemoryStorage(), blocked, worker=False)
    keep_time(service, seconds)
    running = service.submit(b"RIFF", scene="fake", params=LONG)
    service.tick()
    waiting = service.submit(b"RIFF", scene="fake", limits=Limits(total_timeout=timedelta(minutes=1)))
    for passed_s in (59, 2):
        assert not waiting.job.ended
        clock.advance(passed_s * SECOND)
        seconds[0] += passed_s
        service.tick()
    assert waiting.job.error is not None and waiting.job.error.code == "deadline.total"
    running.cancel()
    service.close()
    blocked.close()


def test_processes_that_see_little_of_a_queued_job_do_not_keep_it_for_ever() -> None:
    """A job that nobody takes ends also where each round is another process, which has seen none of its time."""
    clock = FakeClock(datetime.now(UTC))
    store, storage, full = MemoryJobStore(clock=clock), MemoryStorage(), Stuck()
    full.slots = 0
    waiting = RenderService(store, storage, full, worker=False).submit(b"RIFF", scene="fake")
    for _ in range(14):
        clock.advance(timedelta(hours=1))
        RenderService(store, storage, full, worker=False).tick()
    assert waiting.job.error is not None and waiting.job.error.code == "deadline.total"


# --- leases


def keep_time(service: RenderService, seconds: list[float]) -> None:
    """Have a service measure time by this number of seconds, which the test raises."""
    service._engine.worker().reconciler._monotonic = lambda: seconds[0]


def test_j13_a_lapsed_lease_is_taken_over() -> None:
    """A job whose holder gives no sign of life for a lease is rendered by another service, whatever the clock says."""
    clock, seconds = FakeClock(datetime.now(UTC)), [0.0]
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()
    dead = RenderService(store, storage, Stuck(), worker=False)
    handle = dead.submit(b"RIFF", scene="fake")
    dead.tick()
    assert handle.job.stage is Stage.DISPATCHED
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    alive = RenderService(store, storage, backend, worker=False)
    keep_time(alive, seconds)
    alive.tick()
    clock.advance(timedelta(minutes=10))  # the machine slept
    seconds[0] += 29
    alive.tick()
    assert len(handle.job.attempts) == 1
    clock.advance(timedelta(minutes=-20))
    seconds[0] += 2
    eventually(lambda: alive.tick() is not None and handle.job.ended)
    job = handle.job
    assert job.status is JobStatus.COMPLETE
    assert job.attempts[0].error is not None and job.attempts[0].error.code == "worker.lost"
    alive.close()
    backend.close()


@pytest.mark.parametrize("anew", [False, True], ids=["same start of the machine", "started anew"])
def test_j13_rounds_that_are_processes_of_their_own_take_over(anew: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that starts a process for each round has later ones go on with what the first one saw.

    What was seen before the machine was started anew counts no more.
    """
    clock, seconds = FakeClock(datetime.now(UTC)), [0.0]
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()
    dead = RenderService(store, storage, Stuck(), worker=False)
    handle = dead.submit(b"RIFF", scene="fake")
    dead.tick()

    def take_a_round() -> None:
        with RenderService(store, storage, Stuck(), worker=False) as service:
            keep_time(service, seconds)
            service.tick()

    clock.advance(31 * SECOND)
    seconds[0] += 31
    take_a_round()
    assert handle.job.attempts[0].doubted is not None
    if anew:
        monkeypatch.setattr("renderdispatch.engine.clocks._boot", lambda: "another-one")
        seconds[0] = 1.0
        take_a_round()
    for passed in (29, 2):
        assert [attempt.ended_at for attempt in handle.job.attempts] == [None]
        clock.advance(passed * SECOND)
        seconds[0] += passed
        take_a_round()
    first = handle.job.attempts[0]
    assert first.error is not None or first.verdict is not None


def test_a_renewed_lease_is_not_taken() -> None:
    """A holder that ticks keeps its job, however long the render takes."""
    clock, seconds = FakeClock(datetime.now(UTC)), [0.0]
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()
    holder, other = (RenderService(store, storage, Stuck(), worker=False) for _ in range(2))
    handle = holder.submit(b"RIFF", scene="fake")
    holder.tick()
    for service in (holder, other):
        keep_time(service, seconds)
    for _ in range(10):
        clock.advance(20 * SECOND)
        seconds[0] += 20
        holder.tick()
        other.tick()
    assert len(handle.job.attempts) == 1


def test_j13_a_laptop_that_slept_keeps_its_renders() -> None:
    """When the clock moved on by hours while nothing ran, neither the holder nor another process ends a living render."""
    clock, seconds = FakeClock(datetime.now(UTC)), [0.0]
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()
    holder, other = (RenderService(store, storage, Stuck(), worker=False) for _ in range(2))
    for service in (holder, other):
        keep_time(service, seconds)
        service.tick()
    handle = holder.submit(
        b"RIFF", scene="fake", limits=Limits(start_timeout=timedelta(hours=3), total_timeout=timedelta(hours=2))
    )
    holder.tick()
    for _ in range(3):
        clock.advance(timedelta(hours=5))
        seconds[0] += 5
        other.tick()
        holder.tick()
    (attempt,) = handle.job.attempts
    assert (attempt.ended_at, handle.job.stage) == (None, Stage.DISPATCHED)
    for _ in range(13):  # its own time goes on
        clock.advance(timedelta(minutes=10))
        seconds[0] += 600
        holder.tick()
    job = handle.job
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "deadline.total")


def test_a_lost_worker_whose_video_stands() -> None:
    """A holder that died after the result object was written has delivered: nothing is rendered again."""
    clock = FakeClock(datetime.now(UTC))
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()
    stuck = Stuck()
    dead = RenderService(store, storage, stuck, worker=False)
    handle = dead.submit(b"RIFF", scene="fake")
    dead.tick()

    def lost(event: RenderEvent) -> EventReply:
        raise ConnectionError("lost")

    run_order(stuck.orders[0], io=RunnerIO(send=lost, render=InProcessRender({"fake": FakeRenderer()}), pace=PACE))
    alive, seconds = RenderService(store, storage, Stuck(), worker=False), [0.0]
    keep_time(alive, seconds)
    for _ in range(3):
        alive.tick()
        clock.advance(31 * SECOND)
        seconds[0] += 31
    assert (handle.job.status, len(handle.job.attempts)) == (JobStatus.COMPLETE, 1)


# --- cancel, at home


@pytest.fixture
def home() -> Iterator[RenderService]:
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        yield service


def test_cancel_while_queued(home: RenderService) -> None:
    """A queued job is cancelled on the spot."""
    first = home.submit(b"RIFF", scene="fake", params=LONG)
    eventually(lambda: first.job.stage is not Stage.QUEUED)
    waiting = home.submit(b"RIFF", scene="fake")
    assert waiting.cancel().status is JobStatus.CANCELLED
    assert waiting.job.attempts == ()
    first.cancel()


def test_cancel_in_mid_render(home: RenderService) -> None:
    """A running render is stopped within a moment, and its scratch and objects are gone."""
    handle = home.submit(b"RIFF", scene="fake", params=LONG)
    eventually(lambda: handle.job.stage is Stage.RENDERING)
    began = time.monotonic()
    handle.cancel()
    job = handle.wait(timeout=30)
    assert time.monotonic() - began < 15, "it waited for the lease of 30 s"
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is not None
    eventually(lambda: not handle.job.owes_clean_up)


def test_cancel_while_the_audio_is_stored(tmp_path: Path) -> None:
    """A cancel in the midst of an upload ends it at the next chunk, long before a lease is over."""
    song = tmp_path / "song.wav"
    song.write_bytes(bytes(200 << 20))
    backend, storage = InlineBackend({"fake": FakeRenderer()}), SlowStorage()
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        handle = service.submit(song, scene="fake")
        assert storage.began.wait(30)
        began = time.monotonic()
        handle.cancel()
        assert handle.wait(timeout=30).status is JobStatus.CANCELLED
        assert time.monotonic() - began < 15, "it waited for the lease of 30 s"
        assert storage.chunks < 200
        eventually(lambda: list(storage.list("")) == [])


def test_close_while_the_audio_is_stored(tmp_path: Path) -> None:
    """A service that closes in the midst of an upload does not finish it: the job goes back to the queue."""
    song = tmp_path / "song.wav"
    song.write_bytes(bytes(200 << 20))
    backend, storage, store = InlineBackend({"fake": FakeRenderer()}), SlowStorage(), MemoryJobStore()
    service = RenderService(store, storage, backend, owned=[backend])
    handle = service.submit(song, scene="fake")
    assert storage.began.wait(30)
    began = time.monotonic()
    service.close()
    assert time.monotonic() - began < 15, "it waited for the lease of 30 s"
    assert storage.chunks < 200
    job = store.get(handle.id)
    assert job.stage is Stage.RETRY_WAIT and job.ready_at is not None and job.ready_at <= store.now()


def on_database(url: str, storage: StorageAdapter, backend: RenderBackend, *, worker: bool = True) -> RenderService:
    """Make a service with connections of its own, as another process would have."""
    store = SqlJobStore(url)
    return RenderService(store, storage, backend, worker=worker, owned=[backend, store])


def test_cancel_from_another_process(tmp_path: Path) -> None:
    """A cancel by a service that does not hold the job reaches the one that does."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    backend, storage = InlineBackend({"fake": FakeRenderer()}, pace=PACE), MemoryStorage()
    with on_database(url, storage, backend) as holder, on_database(url, storage, Stuck(), worker=False) as other:
        handle = holder.submit(b"RIFF", scene="fake", params=LONG)
        eventually(lambda: handle.job.stage is Stage.RENDERING)
        began = time.monotonic()
        other.cancel(handle.id)
        assert handle.wait(timeout=20).status is JobStatus.CANCELLED
        assert time.monotonic() - began < 5


def test_a_job_that_is_deleted_while_it_winds_up(home: RenderService) -> None:
    """A run whose job is gone is told to stop, and the slot becomes free."""
    handle = home.submit(b"RIFF", scene="fake", params=LONG)
    eventually(lambda: handle.job.stage is Stage.RENDERING)
    forget(home._engine.parts.store, handle.job)
    assert home.submit(b"RIFF", scene="fake").wait(timeout=20).status is JobStatus.COMPLETE


# --- what is away


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_store_that_is_away_now_and_then(seed: int, song: Path) -> None:
    """With every fifth call to the store lost, before or after its effect, every job still ends rightly."""
    real = MemoryJobStore()
    store = FlakyStore(real, 0.2, seed)
    backend, storage = InlineBackend({"fake": FakeRenderer()}, slots=4, pace=PACE), MemoryStorage()
    with RenderService(store, storage, backend, lease=SECOND, owned=[backend]) as service:
        good = [service.submit(song, scene="fake").id for _ in range(4)]
        bad = service.submit(song, scene="fake", params={"fail": "no"}).id
        gone = service.submit(song, scene="fake", params=LONG).id
        eventually(lambda: real.get(gone).stage is Stage.RENDERING)
        eventually(lambda: _persists(lambda: service.cancel(gone)))
        for job_id in (*good, bad, gone):
            eventually(partial(_ended, real, job_id))
        store.chance = 0.0
    assert [real.get(i).status.value for i in good] == ["complete"] * 4
    assert real.get(bad).status is JobStatus.FAILED and real.get(bad).error.code == "scene.fake"  # type: ignore[union-attr]
    assert real.get(gone).status is JobStatus.CANCELLED
    assert store.failures > 5


def _ended(store: MemoryJobStore, job_id: str) -> bool:
    return store.get(job_id).ended


def _persists(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailableError:
        return False
    return True


def test_a_store_that_is_away_for_a_while(song: Path) -> None:
    """A store that is away in mid-render costs the job nothing: the outcome waits for it."""
    real = MemoryJobStore()
    store = FlakyStore(real, 0.0, 0)
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    with RenderService(store, MemoryStorage(), backend, owned=[backend]) as service:
        handle = service.submit(song, scene="fake", params={"frames": 20, "frame_s": 0.02})
        eventually(lambda: real.get(handle.id).stage is Stage.RENDERING)
        store.chance = 1.0
        call = real.get(handle.id).attempt.call_id  # type: ignore[union-attr]
        assert call is not None
        eventually(lambda: backend.poll(BackendCall(call)).status is CallStatus.ENDED)
        store.chance = 0.0
        job = handle.wait(timeout=20)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 1)


# --- closing


def test_close_hands_jobs_back(tmp_path: Path) -> None:
    """A closing service ends its render and hands the job back; another finishes it, and no attempt was lost."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    storage = FsspecStorage(tmp_path / "objects")
    with registered_scenes(tmp_path / "scenes"):
        closing = on_database(url, storage, LocalGpuBackend())
        handle = closing.submit(
            b"RIFF", scene="fake", params={"frames": 100, "frame_s": 0.02}, limits=Limits(max_attempts=1)
        )
        eventually(lambda: handle.job.stage is Stage.RENDERING)
        began = time.monotonic()
        closing.close()
        assert time.monotonic() - began < 5
        with on_database(url, storage, LocalGpuBackend()) as successor:
            job = successor.handle(handle.id).wait(timeout=30)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 2)
    assert job.attempts[0].error is not None and job.attempts[0].error.code == "worker.closed"


def test_one_broken_job_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A backend that breaks in strange ways for one job is logged, and the others go on."""

    class Breaks(Remote):
        def poll(self, call: BackendCall) -> CallState:
            if call.id == "call-1":
                raise KeyError("odd")
            return super().poll(call)

    caplog.set_level(logging.CRITICAL, logger="renderdispatch.engine.reconcile")
    world = World(Breaks())
    ids = [world.submit(), world.submit()]
    world.tick()
    by_job = {order.job_id: f"call-{n}" for n, order in enumerate(world.backend.orders, 1)}
    other = next(i for i in ids if by_job[i] == "call-2")
    world.backend.states["call-2"] = CallState(status=CallStatus.ENDED, error=infrastructure())
    world.clock.advance(20 * SECOND)
    world.tick()
    assert world.job(other).stage is Stage.RETRY_WAIT
    world.service.close()


def _make_newer(file: Path, job_id: str) -> str:
    """Give the record a stage that this version does not know, as a newer one would write it; return the record."""
    connection = sqlite3.connect(file, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("SELECT document FROM renderdispatch_jobs WHERE id = ?", (job_id,)).fetchone()
    document = re.sub(r'"stage":"[a-z-]+"', '"stage":"warming-up"', found[0], count=1)
    write = "UPDATE renderdispatch_jobs SET document = ?, revision = revision + 1 WHERE id = ?"
    connection.execute(write, (document, job_id))
    connection.commit()
    connection.close()
    return document


def test_a_record_that_cannot_be_read_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The record of a newer version is left alone, and the jobs before and after it complete."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch.stores.sql")
    file = tmp_path / "jobs.db"
    backend, store = InlineBackend({"fake": FakeRenderer()}, slots=4, pace=PACE), SqlJobStore(f"sqlite:///{file}")
    service = RenderService(store, MemoryStorage(), backend, worker=False, owned=[backend, store])
    first, newer, last = [service.submit(b"RIFF", scene="fake") for _ in range(3)]
    document = _make_newer(file, newer.id)
    eventually(lambda: service.tick() is not None and first.job.ended and last.job.ended)
    assert [first.job.status, last.job.status] == [JobStatus.COMPLETE, JobStatus.COMPLETE]
    connection = sqlite3.connect(file)
    read = "SELECT document FROM renderdispatch_jobs WHERE id = ?"
    assert connection.execute(read, (newer.id,)).fetchone()[0] == document
    connection.close()
    service.close()


def test_a_render_whose_record_cannot_be_read_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A newer version writes the record of a render in progress: its slot becomes free, and others are dispatched."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch")
    file, scene = tmp_path / "jobs.db", Paused()
    store = SqlJobStore(f"sqlite:///{file}")
    backend = InlineBackend({"paused": scene, "fake": FakeRenderer()}, slots=1, pace=PACE)
    service = RenderService(store, MemoryStorage(), backend, worker=False, owned=[backend, store])
    newer = service.submit(b"RIFF", scene="paused")
    service.tick()
    assert scene.began.wait(30)
    _make_newer(file, newer.id)
    late = service.submit(b"RIFF", scene="fake")
    scene.let_go.set()
    eventually(lambda: service.tick() is not None and late.job.ended)
    assert late.job.status is JobStatus.COMPLETE
    service.close()


def test_a_cancel_whose_record_cannot_be_read_any_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A newer version writes the record of a job whose preparation is given up: it takes up no slot."""
    caplog.set_level(logging.CRITICAL, logger="renderdispatch")
    file, song, storage = tmp_path / "jobs.db", tmp_path / "song.wav", SlowStorage()
    song.write_bytes(bytes(200 << 20))
    store = SqlJobStore(f"sqlite:///{file}")
    backend = InlineBackend({"fake": FakeRenderer()}, slots=1, pace=PACE)
    with RenderService(store, storage, backend, owned=[backend, store]) as service:
        newer = service.submit(song, scene="fake")
        assert storage.began.wait(30)
        keeper = service._engine.worker().keeper
        cancelled = evolve(newer.job, stage=Stage.CANCELLING)
        _make_newer(file, newer.id)
        keeper.obey(cancelled)
        eventually(lambda: keeper.count("default") == 0)


def test_a_slow_round_holds_up_neither_dispatch_nor_close() -> None:
    """While looks at jobs wait for storage, others are dispatched; and `close` begins no further look."""
    clock = FakeClock(datetime.now(UTC))
    store, storage = MemoryJobStore(clock=clock), HeldStorage()
    service = RenderService(store, storage, Remote())
    handles = [service.submit(b"RIFF", scene="bars") for _ in range(9)]
    eventually(lambda: all(handle.job.stage is Stage.DISPATCHED for handle in handles))
    clock.advance(20 * SECOND)
    eventually(lambda: storage.asked)
    try:
        late = service.submit(b"RIFF", scene="bars")
        eventually(lambda: late.job.stage is Stage.DISPATCHED)
        worker = service._engine.worker()
        closing = threading.Thread(target=service.close)
        closing.start()
        eventually(lambda: not worker.running)
    finally:
        storage.let_go.set()
    closing.join(30)
    assert not closing.is_alive()
    assert len(storage.asked) < len(handles)


def test_a_hang_in_a_scene_does_not_hold_close_up(tmp_path: Path) -> None:
    """An inline scene that never reports cannot be stopped; closing gives up on it, and the job is handed back."""
    released = threading.Event()

    class Hangs:
        def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
            released.wait(30)
            return FakeRenderer().render(order, audio, output, report)

    store = MemoryJobStore()
    backend = InlineBackend({"fake": Hangs()}, pace=PACE)
    service = RenderService(store, MemoryStorage(), backend)
    handle = service.submit(b"RIFF", scene="fake")
    eventually(lambda: handle.job.stage is Stage.RENDERING)
    threading.Timer(0.5, released.set).start()
    service.close()
    job = store.get(handle.id)
    assert job.attempts[0].error is not None and job.attempts[0].error.code == "worker.closed"
    backend.close()


def test_many_jobs_and_two_services(tmp_path: Path) -> None:
    """Two services on one store share the jobs: each ends once, at its first attempt, whoever submitted it."""
    url, storage = f"sqlite:///{tmp_path / 'jobs.db'}", MemoryStorage()
    backends = [InlineBackend({"fake": FakeRenderer()}, slots=2, pace=PACE) for _ in range(2)]
    services = [on_database(url, storage, backend) for backend in backends]
    with services[0], services[1]:
        handles = [services[n % 2].submit(b"RIFF", scene="fake") for n in range(40)]
        jobs = [handle.wait(timeout=60) for handle in handles]
    assert [(job.status.value, len(job.attempts)) for job in jobs] == [("complete", 1)] * 40
    assert len({job.attempts[0].token for job in jobs}) == 40


def test_j10_a_url_is_forgotten() -> None:
    """A submitted URL stands in the record as a secret until the job ends, and is then gone."""
    store = MemoryJobStore()
    service = RenderService(store, MemoryStorage(), Stuck(), worker=False)
    secret = "https://example.com/song.wav?signature=do-not-tell"
    audio = RemoteAudio(url=SecretStr(secret))
    job = store.create(make_job(request=make_request(audio=audio, scene="bars", backend="default")))
    assert "do-not-tell" in dump_job(job)
    assert "do-not-tell" not in repr(job) + service.poll(job.id).to_json()
    service.tick()
    ended = service.get(job.id)
    assert ended.error is not None and ended.error.code == "audio.no-fetcher"
    assert "do-not-tell" not in dump_job(ended)
    with pytest.raises(InvalidRequestError):
        service.retry(job.id)


def test_audio_of_a_lost_attempt_is_dropped(tmp_path: Path) -> None:
    """A worker whose lease lapsed while it stored the audio removes its copy: the record has another one."""
    song = tmp_path / "song.wav"
    song.write_bytes(bytes(3 << 20))
    clock = FakeClock(datetime.now(UTC))
    store, storage = MemoryJobStore(clock=clock), MemoryStorage()

    class Overtaken(MemoryStorage):
        """Its service is overtaken by another one while it stores something."""

        def put(self, key: str, source: Any, **options: Any) -> ObjectInfo:
            info = storage.put(key, source, **options)
            other.tick()
            clock.advance(31 * SECOND)
            seconds[0] += 31
            eventually(lambda: other.tick() is not None and store.get(handle.id).ended)
            return info

        def delete(self, key: str) -> None:
            storage.delete(key)

    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    other = RenderService(store, storage, backend, worker=False, machine="here")
    slow = RenderService(store, Overtaken(), Stuck(), worker=False, machine="here")
    seconds = [0.0]
    keep_time(other, seconds)
    found = song.stat()
    audio = LocalAudio(path=str(song), machine="here", size=found.st_size, mtime_ns=found.st_mtime_ns)
    request = make_request(audio=audio, scene="fake", backend="default")
    handle = slow.handle(store.create(make_job(request=request, created_at=clock())).id)
    slow.tick()
    assert (handle.job.status, len(handle.job.attempts)) == (JobStatus.COMPLETE, 2)
    other.tick()
    assert [info.key for info in storage.list("") if "audio" in info.key] == []
    backend.close()


def test_a_notebook_shows_a_tenants_video(tmp_path: Path) -> None:
    """A handle of the service without tenants shows a tenant's video: the job was its to see."""
    backend = InlineBackend({"fake": FakeRenderer()}, pace=PACE)
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        handle = service.for_tenant("acme").submit(b"RIFF", scene="fake")
        handle.wait(timeout=20)
        assert "<video" in service.handle(handle.id)._repr_html_()

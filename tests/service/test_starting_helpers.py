"""Are helpers started once, found or left alone after a crash, and stopped with their attempt?"""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import AudioUrl, JobStatus, Limits, RenderService, Stage, StorageKey
from renderdispatch.engine import layout
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import HelperStarting
from renderdispatch.errors import BackendError, InvalidRequestError, StorageUnavailableError
from renderdispatch.jobs import Attempt, HelperState, Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    CheckedIn,
    Failed,
    FaultDomain,
    Grants,
    JobError,
    Progressed,
    RenderOrder,
    SegmentCounts,
)
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, ObjectInfo
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.world import FindingRemote, HelpedRemote, World, WorldStorage, event_of
from tests.support.targets import says, target

SONG = b"RIFF" * 16_000
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
LIMITS = Limits(total_timeout=HOUR, max_attempts=2)


def unknown() -> BackendError:
    return BackendError("the answer was lost", retryable=True, outcome_known=False)


def refused() -> BackendError:
    return BackendError("not now", retryable=True, outcome_known=True, code="backend.busy")


class AwayRemote(HelpedRemote):
    """A `HelpedRemote` that can be told nothing while ``away`` is set."""

    away = False

    def cancel(self, call: BackendCall) -> None:
        if self.away:
            raise unknown()
        super().cancel(call)


class Slots(HelpedRemote):
    """A backend of this machine with a few slots, whose runs and helpers the test plays by hand."""

    locality = Locality.PROCESS
    slots: int | None = 3  # type: ignore[assignment]  # the base has no limit


@pytest.fixture
def remote() -> HelpedRemote:
    return HelpedRemote()


class NotingStorage(WorldStorage):
    """A storage that notes the keys that were written; while ``full_of`` is set, keys that end so cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.put_keys: list[str] = []
        self.refused_keys: list[str] = []
        self.full_of: str | None = None

    def put(self, key: str, source: Any, **options: Any) -> ObjectInfo:
        if self.full_of is not None and key.endswith(self.full_of):
            self.refused_keys.append(key)
            raise StorageUnavailableError("storage is away")
        self.put_keys.append(key)
        return super().put(key, source, **options)


@pytest.fixture
def storage() -> NotingStorage:
    return NotingStorage()


@pytest.fixture
def world(remote: HelpedRemote, storage: NotingStorage) -> Iterator[World]:
    world = World(remote, storage)
    yield world
    world.service.close()


def started(world: World, *, parallel: int = 3, duration: float | None = 70.0) -> tuple[str, RenderOrder]:
    """Submit a job whose run has checked in; return its id and order."""
    job_id = world.service.submit(SONG, scene="bars", parallel=parallel, limits=LIMITS, duration=duration).id
    world.tick()
    order = world.backend.orders[-1]
    world.send(event_of(order, CheckedIn, call_id=f"call-{len(world.backend.orders)}"))
    return job_id, order


def planned(order: RenderOrder, standing: int = 0, run_id: str = "run-1") -> Progressed:
    """Return the report that the plan is kept."""
    counts = SegmentCounts(total=40, standing=standing, own=standing)
    event: Progressed = event_of(order, Progressed, run_id, stage=Stage.RENDERING, planned=True, segments=counts)
    return event


def helping(world: World, **options: Any) -> tuple[str, RenderOrder]:
    """Submit a job whose helpers were started; return its id and the order of its run."""
    job_id, order = started(world, **options)
    world.send(planned(order))
    world.tick()
    return job_id, order


def attempt_of(world: World, job_id: str) -> Attempt:
    attempt = world.job(job_id).attempt
    assert attempt is not None
    return attempt


def states(world: World, job_id: str) -> list[HelperState]:
    return [helper.state for helper in attempt_of(world, job_id).helpers]


def stop_object(job: Job) -> str:
    assert job.attempt is not None
    return layout.stop_key(layout.prefix_of(job), job.attempt.token)


def failed(order: RenderOrder) -> Failed:
    error = JobError(code="x", message="it broke", fault=FaultDomain.INFRASTRUCTURE)
    event: Failed = event_of(order, Failed, error=error)
    return event


# --- starting


def test_helpers_start_once_the_plan_is_reported(world: World, remote: HelpedRemote) -> None:
    """Each has a share and a token of its own, and the record knows its call. No later round starts another one."""
    job_id, order = started(world)
    world.tick()
    assert remote.helped == []
    world.send(planned(order))
    world.tick(3)
    assert sorted(helper.share for helper in remote.helped) == [1, 2]
    helpers = attempt_of(world, job_id).helpers
    assert {helper.token for helper in helpers} == {helper.token for helper in remote.helped}
    assert order.token not in {helper.token for helper in helpers}
    assert [helper.call_id for helper in helpers] == ["helper-1", "helper-2"]
    assert states(world, job_id) == [HelperState.STARTED] * 2


def test_helpers_start_without_any_report(world: World, remote: HelpedRemote) -> None:
    """With every webhook lost, the reconciler sees the plan in the bucket (rule J12)."""
    job_id, _ = started(world)
    world.tick()
    assert remote.helped == []
    world.storage.put(f"{attempt_of(world, job_id).pieces}plan.0", b"plan")
    world.pass_time(MINUTE)
    world.tick(2)
    assert len(remote.helped) == 2 and states(world, job_id) == [HelperState.STARTED] * 2


def test_an_order_of_a_helper_reads_what_its_attempt_keeps(world: World, remote: HelpedRemote) -> None:
    """It reads plan and segments, writes the first generations of segments, and learns when all is over."""
    job_id, order = helping(world)
    helper, attempt = remote.helped[0], attempt_of(world, job_id)
    assert (helper.scene, helper.output, helper.finish_by) == (order.scene, order.output, order.finish_by)
    assert (helper.share, helper.parallel, helper.attempt) == (1, 3, 1)
    assert len(helper.model_dump_json().encode()) <= MAX_ORDER_BYTES
    key = layout.grants_key(layout.prefix_of(world.job(job_id)), attempt.token, helpers=True)
    with world.storage.open(key) as file:
        grants = Grants.model_validate_json(gzip.decompress(file.read()))
    assert key in helper.pieces.grants and stop_object(world.job(job_id)) in helper.stop
    assert attempt.result_key is not None and attempt.result_key in helper.result
    assert {name.rpartition(".")[2] for name in grants.put} == {"0", "1"} and "plan.0" not in grants.put
    assert set(grants.get) > {"plan.0", "plan.3", "000.0", "017.3"}
    assert "callback" not in helper.model_dump() and order.token not in helper.token


def test_the_run_s_grants_are_stored_before_it_starts(world: World) -> None:
    """The run reads and writes plan and segments, in all generations, and no other object."""
    job_id, order = started(world)
    assert order.pieces is not None and order.parallel == 3
    key = layout.grants_key(layout.prefix_of(world.job(job_id)), order.token, helpers=False)
    with world.storage.open(key) as file:
        grants = Grants.model_validate_json(gzip.decompress(file.read()))
    assert set(grants.get) == set(grants.put) and {"plan.3", "017.3"} < set(grants.put) and grants.lent == {}
    prefix = attempt_of(world, job_id).pieces
    assert prefix is not None
    assert all(f"{prefix}{name}" in url for name, url in {**grants.get, **grants.put}.items())


def test_short_videos_keep_nothing(world: World) -> None:
    """What one run draws within a minute is drawn again as soon; with helpers it is kept."""
    for parallel, kept in ((1, False), (2, True)):
        job_id, order = started(world, parallel=parallel, duration=60.0)
        assert (order.pieces is not None, attempt_of(world, job_id).pieces is not None) == (kept, kept)
    assert order.pieces is not None and order.pieces.slots == 16


def test_a_helper_that_is_refused_is_never_started_again(world: World, remote: HelpedRemote) -> None:
    """The render goes on without it."""
    remote.refuse_help = refused()
    job_id, order = helping(world)
    assert states(world, job_id) == [HelperState.STOPPED] * 2
    remote.refuse_help = None
    world.tick(2)
    assert remote.helped == []
    world.render(order)
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE


def test_a_helper_whose_start_is_not_known_is_left_alone(world: World, remote: HelpedRemote) -> None:
    """It is not started again (rule J2), and found when it is to stop."""
    remote.refuse_help = unknown()
    job_id, _ = helping(world)
    assert states(world, job_id) == [HelperState.STARTING] * 2 and len(remote.helped) == 2
    remote.refuse_help = None
    world.tick(2)
    assert len(remote.helped) == 2
    world.service.cancel(job_id)
    world.tick(2)
    assert {"helper-1", "helper-2"} < set(remote.cancelled)


def test_what_was_committed_as_starting_is_never_started(world: World, remote: HelpedRemote) -> None:
    """After a crash between the commit and the call, the backend knows of none: then it has stopped."""
    job_id, order = started(world)
    world.send(planned(order))
    token = order.token
    for helper in attempt_of(world, job_id).helpers:
        commit(world.store, job_id, HelperStarting(token=token, helper=helper.token))
    world.tick(2)
    assert remote.helped == [] and states(world, job_id) == [HelperState.STARTING] * 2
    world.service.cancel(job_id)
    world.tick(2)
    job = world.job(job_id)
    assert job.status is JobStatus.CANCELLED and states(world, job_id) == [HelperState.STOPPED] * 2


def test_many_services_start_each_helper_once(world: World, remote: HelpedRemote) -> None:
    """Of several that see the same intents, the first to write starts a chunk of them."""
    job_id, order = started(world, parallel=20)
    world.send(planned(order))
    job = world.job(job_id)
    others = [RenderService(world.store, world.storage, remote, worker=False) for _ in range(3)]
    checks = [service._engine.worker().reconciler._checks for service in (world.service, *others)]
    barrier = threading.Barrier(len(checks))

    def start(number: int) -> None:
        barrier.wait()
        for chunk in checks[number].helpers.to_start(job):
            checks[number].start_helpers(job, chunk)

    threads = [threading.Thread(target=start, args=[number]) for number in range(len(checks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(helper.share for helper in remote.helped) == list(range(1, 20))
    assert set(states(world, job_id)) == {HelperState.STARTED}
    for service in others:
        service.close()


def test_helpers_wait_for_a_storage_that_is_away(world: World, remote: HelpedRemote, storage: NotingStorage) -> None:
    """Nothing is committed before their grants are stored, so they start at a later round."""
    storage.full_of = "helpers.grants"
    job_id, _ = helping(world)
    assert states(world, job_id) == [HelperState.INTENDED] * 2 and remote.helped == []
    storage.full_of = None
    world.tick()
    assert states(world, job_id) == [HelperState.STARTED] * 2


def test_a_run_does_not_start_without_its_grants(world: World, remote: HelpedRemote, storage: NotingStorage) -> None:
    """The intent comes after them; the job is tried again later."""
    storage.full_of = "lead.grants"
    job_id = world.service.submit(SONG, scene="bars", limits=LIMITS, duration=70.0).id
    world.tick()
    assert remote.orders == [] and world.job(job_id).stage is Stage.RETRY_WAIT
    storage.full_of = None
    world.pass_time(MINUTE)
    world.tick()
    assert len(remote.orders) == 1


def test_a_backend_without_helpers_ignores_them() -> None:
    """Its run draws alone, and the result says so."""
    world = World(FindingRemote())
    job_id, order = helping(world)
    assert order.parallel == 1
    assert states(world, job_id) == [HelperState.STOPPED] * 2
    world.render(order)
    world.tick()
    job = world.job(job_id)
    assert job.status is JobStatus.COMPLETE and job.artifact is not None
    assert [warning.code for warning in job.artifact.warnings] == ["parallel.ignored"]
    world.service.close()


# --- stopping


def test_a_cancel_stops_helpers_and_waits_for_them(world: World, remote: HelpedRemote, storage: NotingStorage) -> None:
    """The backend is told, and so is the bucket; the job is cancelled when all have stopped."""
    job_id, _ = helping(world, parallel=17)
    world.service.cancel(job_id)
    world.tick(2)
    assert set(remote.cancelled) == {"call-1", *(f"helper-{share}" for share in range(1, 17))}
    assert storage.put_keys.count(stop_object(world.job(job_id))) == 1
    job = world.job(job_id)
    assert job.status is JobStatus.CANCELLED and job.compute_stopped_at is not None
    assert set(states(world, job_id)) == {HelperState.STOPPED}


def test_the_bucket_is_told_while_the_backend_is_away() -> None:
    """A helper that the backend does not stop reads there that it is to end."""
    remote, storage = AwayRemote(), NotingStorage()
    world = World(remote, storage)
    job_id, _ = helping(world)
    remote.away = True
    world.service.cancel(job_id)
    world.tick(2)
    job = world.job(job_id)
    assert job.stage is Stage.CANCELLING and storage.stat(stop_object(job)).size > 0
    remote.away = False
    world.tick(2)
    assert world.job(job_id).status is JobStatus.CANCELLED
    world.service.close()


def test_the_backend_is_told_while_the_bucket_is_away(
    world: World, remote: HelpedRemote, storage: NotingStorage
) -> None:
    """Neither waits for the other."""
    job_id, _ = helping(world)
    storage.full_of = "/stop"
    world.service.cancel(job_id)
    world.tick(2)
    assert {"helper-1", "helper-2"} < set(remote.cancelled)
    assert world.job(job_id).compute_stopped_at is not None


@pytest.mark.parametrize("ends", ["completed", "failed"])
def test_helpers_stop_with_their_attempt(world: World, remote: HelpedRemote, ends: str) -> None:
    """However it ends; those that were only intended never start."""
    job_id, order = helping(world)
    if ends == "completed":
        world.render(order)
    else:
        world.send(failed(order))
    world.tick(2)
    assert {"helper-1", "helper-2"} <= set(remote.cancelled)
    first = world.job(job_id).attempts[0]
    assert {helper.state for helper in first.helpers} == {HelperState.STOPPED}


def test_helpers_of_an_attempt_that_was_given_up_are_not_started(world: World, remote: HelpedRemote) -> None:
    """A cancel comes before their start."""
    job_id, order = started(world)
    world.send(planned(order))
    world.service.cancel(job_id)
    world.tick(2)
    assert remote.helped == [] and world.job(job_id).status is JobStatus.CANCELLED


# --- of this machine


@pytest.fixture
def here() -> Iterator[World]:
    world = World(Slots())
    yield world
    world.service.close()


def ticked(world: World) -> bool:
    world.tick()
    return True


def test_helpers_of_this_machine_take_free_slots(here: World) -> None:
    """As many start as there are slots, the lead's own aside; the others when one becomes free."""
    remote = here.backend
    assert isinstance(remote, Slots)
    job_id, order = started(here, parallel=5)
    here.send(planned(order))
    assert eventually(lambda: ticked(here) and len(remote.helped) == 2)
    here.tick(2)
    assert [helper.local for helper in remote.helped] == [True] * 2
    remote.states["helper-1"] = CallState(status=CallStatus.ENDED)
    assert eventually(lambda: ticked(here) and len(remote.helped) == 3)
    assert states(here, job_id).count(HelperState.STOPPED) == 1


def test_jobs_that_wait_go_before_helpers(here: World) -> None:
    """A slot that a ready job wants is not a helper's."""
    remote = here.backend
    assert isinstance(remote, Slots)
    _, order = started(here, parallel=5)
    more = [here.submit(limits=LIMITS, duration=1.0) for _ in range(2)]
    here.send(planned(order))
    here.tick(3)
    assert len(remote.orders) == 3 and remote.helped == []
    assert all(here.job(job_id).stage is Stage.DISPATCHED for job_id in more)


def test_a_job_that_comes_later_gets_the_slot_of_a_helper(here: World) -> None:
    """One helper for each job that waits stops, the last one first; what it has drawn is kept."""
    remote = here.backend
    assert isinstance(remote, Slots)
    job_id, order = started(here, parallel=5)
    here.send(planned(order))
    assert eventually(lambda: ticked(here) and len(remote.helped) == 2)
    here.tick(2)
    assert remote.cancelled == []
    later = here.submit(limits=LIMITS, duration=1.0)
    assert eventually(lambda: ticked(here) and here.job(later).stage is Stage.DISPATCHED)
    assert remote.cancelled == ["helper-2"]
    here.tick(2)
    assert len(remote.helped) == 2
    assert states(here, job_id)[:2] == [HelperState.STARTED, HelperState.STOPPED]


def test_a_job_whose_audio_is_fetched_goes_before_helpers() -> None:
    """It will want a slot, so no helper takes the last one, which it would keep for as long as the video is drawn."""
    let_go = threading.Event()

    def late(connection: socket.socket, request: bytes) -> None:
        assert let_go.wait(60)
        says(b"RIFF")(connection, request)

    remote = Slots()
    remote.slots = 2
    here = World(remote, fetcher=GuardedFetcher(allow_http=True, allow_private=True))
    with target(late) as host, contextlib.closing(here.service):
        worker = here.service._engine.worker()
        _, order = started(here)
        here.service.submit(AudioUrl(f"http://127.0.0.1:{host.port}/song.wav"), scene="bars", limits=LIMITS)
        worker.dispatcher.tick()
        here.send(planned(order))
        worker.keeper.tick()
        worker.dispatcher.tick()
        let_go.set()
        here.tick()
        assert len(remote.orders) == 2 and remote.helped == []


def test_a_helper_of_this_machine_that_cannot_start_is_not_tried_in_a_loop() -> None:
    """While storage takes no grants, the rounds that follow at once leave the attempt's helpers alone."""
    remote, storage = Slots(), NotingStorage()
    here = World(remote, storage)
    job_id, order = started(here)
    storage.full_of = "helpers.grants"
    here.send(planned(order))
    assert eventually(lambda: ticked(here) and storage.refused_keys)
    refused = len(storage.refused_keys)
    here.tick(3)
    assert len(storage.refused_keys) == refused
    assert states(here, job_id) == [HelperState.INTENDED] * 2
    here.service.close()


@pytest.mark.parametrize("ends", ["completed", "cancelled"])
def test_helpers_of_this_machine_stop_with_their_attempt(here: World, ends: str) -> None:
    """Their holder stops them, and their slots are free again."""
    remote = here.backend
    assert isinstance(remote, Slots)
    job_id, order = started(here)
    here.send(planned(order))
    assert eventually(lambda: ticked(here) and states(here, job_id) == [HelperState.STARTED] * 2)
    if ends == "completed":
        here.render(order)
        remote.states["call-1"] = CallState(status=CallStatus.ENDED)
    else:
        here.service.cancel(job_id)
    assert eventually(lambda: ticked(here) and here.job(job_id).status == ends.replace("completed", "complete"))
    here.tick(2)
    assert {"helper-1", "helper-2"} <= set(remote.cancelled)
    assert set(states(here, job_id)) == {HelperState.STOPPED}
    assert here.service._engine.worker().keeper.count("default") == 0


def test_a_folder_of_this_machine_needs_no_grants(tmp_path: Path) -> None:
    """Where storage gives URLs of files, the order names the folder."""
    remote = Slots()
    storage = FsspecStorage(tmp_path)
    service = RenderService(MemoryJobStore(), storage, remote, worker=False)
    job_id = service.submit(SONG, scene="bars").id
    service.tick()
    pieces, attempt = remote.orders[0].pieces, service.get(job_id).attempt
    assert pieces is not None and pieces.folder is not None and pieces.grants == ""
    assert attempt is not None and attempt.pieces is not None
    assert Path(pieces.folder) == tmp_path / attempt.pieces.rstrip("/")
    assert not [info.key for info in storage.list("") if info.key.endswith(".grants")]
    service.close()


# --- the verdict


def test_segments_are_counted_before_a_verdict(world: World, remote: HelpedRemote) -> None:
    """An attempt that drew something does not count against the attempts, also if no report said so (rule J17)."""
    job_id, _ = started(world, parallel=1)
    prefix = attempt_of(world, job_id).pieces
    for name in ("plan.0", "000.0", "000.1", "001.0", "002.3", "x.0", "0003.0"):
        world.storage.put(f"{prefix}{name}", b"piece")
    remote.states["call-1"] = CallState(status=CallStatus.MISSING)
    for _ in range(2):
        world.pass_time(MINUTE)
        world.tick()
    first, second = world.job(job_id).attempts
    assert first.error is not None and first.segments_standing == 3 and first.advanced
    assert second.pieces == first.pieces and second.segments_before == 3


# --- keys


def test_no_request_names_pieces_or_grants(world: World) -> None:
    """Neither a tenant nor the service itself submits them as audio; the video stays a key that may be named."""
    job_id, _ = helping(world)
    job, attempt = world.job(job_id), attempt_of(world, job_id)
    prefix = layout.prefix_of(job)
    denied = [f"{attempt.pieces}plan.0", f"{attempt.pieces}000.0", layout.stop_key(prefix, attempt.token)]
    denied += [layout.grants_key(prefix, attempt.token, helpers=helpers) for helpers in (True, False)]
    for key in denied:
        assert not layout.may_read(None, key)
        with pytest.raises(InvalidRequestError) as refusal:
            world.service.submit(StorageKey(key), scene="bars")
        assert refusal.value.code == "audio.denied"
    assert layout.may_read(None, layout.video_key(prefix, attempt.token))
    tenants = layout.pieces_prefix(layout.job_prefix("acme", "a-job", "life"), "picture")
    assert not layout.may_read("acme", f"{tenants}000.0")

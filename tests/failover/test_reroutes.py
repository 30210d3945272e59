"""How does a job with failover go from one backend to the next, whatever happens in between?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import Failover, Limits, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import AttemptFailed, Claimed, Rerouted
from renderdispatch.engine.parts import Reroute
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import (
    BackendError,
    ConfigurationError,
    InvalidRequestError,
    JobNotFoundError,
    UnknownNameError,
)
from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import (
    CheckedIn,
    Completed,
    Failed,
    FaultDomain,
    JobError,
    JobStatus,
    LocalAudio,
    RenderRequest,
    Stage,
    StoredAudio,
)
from renderdispatch.protocols import BackendCall
from renderdispatch.testing import FakeRenderer, eventually, make_artifact
from renderdispatch.testing.world import GoneRemote, Remote, WorldStorage, event_of
from tests.support.clouds import Clouds

CHAIN = Failover("cloud", "box")
MINUTES = timedelta(minutes=1)
LIMITS = Limits(start_timeout=5 * MINUTES, total_timeout=60 * MINUTES)
BUSY = BackendError("all slots are taken", retryable=True, code="backend.busy")
DENIED = BackendError("check the token", retryable=False, code="backend.denied")
AWAY = BackendError("it does not answer", retryable=True, outcome_known=False)


def infrastructure(code: str) -> JobError:
    return JobError(code=code, message="it broke", fault=FaultDomain.INFRASTRUCTURE)


def miss_start(clouds: Clouds) -> None:
    """Let the start deadline of the running attempt pass."""
    clouds.pass_time(LIMITS.start_timeout + 2 * MINUTES)
    clouds.tick(3)


def codes(job: Job) -> list[str | None]:
    return [attempt.error.code if attempt.error else None for attempt in job.attempts]


# --- moving on


def test_a_start_that_never_comes_is_followed_by_one_on_the_next_backend() -> None:
    """The job keeps its id; the lost call is told to stop, and the second backend's video is the job's."""
    clouds = Clouds(CHAIN)
    job_id = clouds.submit(limits=LIMITS)
    clouds.tick()
    miss_start(clouds)
    assert clouds.where(job_id) == ["cloud", "box"]
    assert clouds.cloud.cancelled
    clouds.render(clouds.box.orders[0])
    clouds.tick(2)
    job = clouds.job(job_id)
    assert job.status is JobStatus.COMPLETE
    assert codes(job) == ["deadline.start", None]
    assert job.artifact is not None and job.attempt is not None and job.artifact.key == job.attempt.video_key


def test_a_late_loser_is_told_to_stop_and_changes_nothing() -> None:
    """A run of the first backend that comes after all is superseded at its check-in, before and after the end."""
    clouds = Clouds(CHAIN)
    job_id = clouds.submit(limits=LIMITS)
    clouds.tick()
    miss_start(clouds)
    (late,) = clouds.cloud.orders
    before = clouds.job(job_id)
    for event in (event_of(late, CheckedIn), event_of(late, Completed, artifact=make_artifact())):
        decision = clouds.send(event)
        assert decision.verdict is Verdict.SUPERSEDED
        assert decision.reply.stop
    assert clouds.job(job_id).attempts == before.attempts
    clouds.render(clouds.box.orders[0])
    clouds.tick(2)
    assert clouds.send(event_of(late, Completed, artifact=make_artifact())).reply.stop
    job = clouds.job(job_id)
    assert job.artifact is not None and job.artifact.key == job.attempts[1].video_key


@pytest.mark.parametrize("refusal", [BUSY, DENIED], ids=lambda error: str(error.code))
def test_a_refused_start_is_followed_at_once_by_one_elsewhere(refusal: BackendError) -> None:
    """No delay protects a backend that was not tried yet; a refusal for good does not fail the job either."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = refusal
    job_id = clouds.submit()
    clouds.tick(3)
    assert clouds.where(job_id) == ["cloud", "box"]
    assert clouds.job(job_id).stage is Stage.DISPATCHED
    assert clouds.job(job_id).attempts[0].refused


def test_a_backend_that_was_tried_before_gets_the_job_after_the_usual_delay() -> None:
    """Where both are busy, the job goes back and forth ever more slowly."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = clouds.box.refuse = BUSY
    job_id = clouds.submit()
    clouds.tick(6)
    assert clouds.where(job_id) == ["cloud", "box"]
    job = clouds.job(job_id)
    assert job.backend == "cloud"
    assert job.ready_at is not None and job.ready_at > clouds.clock()
    clouds.pass_time(10 * MINUTES)
    clouds.tick()
    assert clouds.where(job_id) == ["cloud", "box", "cloud"]


def test_a_job_that_every_backend_refuses_for_good_fails() -> None:
    """It has as many attempts as its limits allow, and fails with the last refusal."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = clouds.box.refuse = DENIED
    job_id = clouds.submit(limits=Limits(max_attempts=2))
    clouds.tick(6)
    job = clouds.job(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None and job.error.code == "backend.denied"
    assert clouds.where(job_id) == ["cloud", "box"]


def test_a_chain_without_another_backend_fails_where_it_is_refused_for_good() -> None:
    """Nothing is tried again that cannot succeed."""
    clouds = Clouds(Failover("cloud"))
    clouds.cloud.refuse = DENIED
    job_id = clouds.submit()
    clouds.tick(4)
    assert clouds.job(job_id).status is JobStatus.FAILED
    assert clouds.where(job_id) == ["cloud"]


def test_a_failure_of_the_render_stays_on_its_backend() -> None:
    """An ordinary failure of the infrastructure is tried again where it was; what the scene did fails the job."""
    clouds = Clouds(CHAIN)
    job_id = clouds.submit()
    clouds.tick()
    clouds.send(event_of(clouds.cloud.orders[0], Failed, error=infrastructure("disk.full")))
    clouds.tick()
    clouds.pass_time(MINUTES)
    clouds.tick()
    assert clouds.where(job_id) == ["cloud", "cloud"]
    scene = JobError(code="scene.failed", message="it broke", fault=FaultDomain.SCENE)
    clouds.send(event_of(clouds.cloud.orders[1], Failed, error=scene))
    assert clouds.job(job_id).status is JobStatus.FAILED


def test_a_hand_back_stays_on_its_backend() -> None:
    """A job that a closing worker hands back is ready at once, and no policy is asked."""
    asked: list[int] = []

    def policy(_request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:
        asked.append(len(attempts))
        return "box" if attempts else "cloud"

    clouds = Clouds(policy)
    job_id = clouds.submit()
    job = clouds.store.get(job_id)
    lease_until = clouds.clock() + MINUTES
    claim = Claimed(token="token", holder="gone", lease_until=lease_until, backend="cloud", local=False)
    commit(clouds.store, job, claim)
    commit(clouds.store, job_id, AttemptFailed(token="token", error=infrastructure("worker.closed"), stopped=True))
    assert clouds.job(job_id).ready_at is not None
    clouds.tick()
    assert clouds.where(job_id) == ["cloud", "cloud"]
    assert asked == [0]


def test_a_named_backend_is_never_left() -> None:
    """The policy chooses for requests that name no backend."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = DENIED
    job_id = clouds.submit(backend="cloud")
    clouds.tick(4)
    assert clouds.job(job_id).status is JobStatus.FAILED
    assert clouds.where(job_id) == ["cloud"]


def test_the_log_says_where_a_job_goes(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each choice: what ended the attempt, and where the next one runs."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    with caplog.at_level(logging.INFO, "renderdispatch.engine.rerouting"):
        clouds.tick(3)
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("rerouting")]
    assert line == f"job {job_id}: attempt 1 on cloud ended (backend.busy), next on box"


# --- the lost attempt


def test_a_lost_attempt_holds_its_unit_until_it_is_known_to_have_stopped() -> None:
    """While its backend is away it counts there, beside the attempt that runs elsewhere; its objects go afterwards."""
    cloud = GoneRemote(AWAY)
    clouds = Clouds(CHAIN, cloud=cloud)
    job_id = clouds.submit(limits=LIMITS)
    clouds.tick()
    miss_start(clouds)
    job = clouds.job(job_id)
    assert [holding.backend for holding in job.holdings()] == ["cloud", "box"]
    lost = job.attempts[0]
    assert lost.video_key is not None
    clouds.storage.put(lost.video_key, b"late")
    cloud.cancel = lambda call: Remote.cancel(cloud, call)  # type: ignore[method-assign]  # it is back
    cloud.poll = lambda call: Remote.poll(cloud, call)  # type: ignore[method-assign]  # it is back
    clouds.tick(2)
    job = clouds.job(job_id)
    assert [holding.backend for holding in job.holdings()] == ["box"]
    assert cloud.cancelled == ["call-1"]
    assert job.attempts[0].clean_up is CleanUp.DONE
    assert lost.video_key not in {info.key for info in clouds.storage.list("")}


class Hanging(Remote):
    """A far backend whose cancels hang until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_to_stop, self.let_go = threading.Event(), threading.Event()

    def cancel(self, call: BackendCall) -> None:
        self.asked_to_stop.set()
        self.let_go.wait(60)
        super().cancel(call)


def test_a_lost_backend_that_hangs_delays_no_order_to_the_next_one() -> None:
    """A cancel of the job reaches the backend that renders it, while the one that lost it takes no order."""
    cloud = Hanging()
    clouds = Clouds(CHAIN, cloud=cloud)
    reconciler = clouds.service._engine.worker().reconciler
    job_id = clouds.submit(limits=LIMITS)
    clouds.tick()
    clouds.pass_time(LIMITS.start_timeout + 2 * MINUTES)

    def reached(condition: Callable[[Job], bool]) -> None:
        def round_and_look() -> bool:
            clouds.seconds += 100
            reconciler.round()
            clouds.service._engine.worker().dispatcher.tick()
            return condition(clouds.job(job_id))

        eventually(round_and_look)

    try:
        reached(lambda job: len(job.attempts) == 2 and job.stage is Stage.DISPATCHED)
        assert cloud.asked_to_stop.wait(60)
        clouds.service.cancel(job_id)
        reached(lambda _job: bool(clouds.box.cancelled))
        reached(lambda job: job.status is JobStatus.CANCELLED)
        assert not cloud.cancelled
    finally:
        cloud.let_go.set()
        clouds.service.close()


def test_a_lost_backend_that_hangs_delays_no_failover_of_a_scheduler() -> None:
    """A round tells it to stop, and goes on after a moment: the job is rendered on the next backend."""
    cloud = Hanging()
    clouds = Clouds(CHAIN, cloud=cloud)
    job_id = clouds.submit(limits=LIMITS)
    clouds.tick()
    try:
        miss_start(clouds)
        assert clouds.where(job_id) == ["cloud", "box"]
        clouds.service.cancel(job_id)
        clouds.tick()
        assert clouds.job(job_id).status is JobStatus.CANCELLED
        assert not cloud.cancelled
    finally:
        cloud.let_go.set()
        clouds.service.close()


# --- the policy


def raises(_request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:
    if attempts:
        raise ZeroDivisionError("the policy is broken")
    return "cloud"


def returns_nothing(_request: RenderRequest, attempts: tuple[Attempt, ...]) -> Any:
    return ["box"] if attempts else "cloud"


@pytest.mark.parametrize("policy", [raises, returns_nothing])
def test_a_policy_that_fails_leaves_the_job_where_it_is(policy: Reroute, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the job is tried again on its backend."""
    clouds = Clouds(policy)
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    clouds.tick(3)
    clouds.cloud.refuse = None
    clouds.pass_time(MINUTES)
    clouds.tick()
    assert clouds.where(job_id) == ["cloud", "cloud"]
    assert clouds.job(job_id).stage is Stage.DISPATCHED
    assert "policy" in caplog.text


def test_a_policy_of_ones_own_is_one_function() -> None:
    """It sees the request and the attempts so far, with their backends and errors."""
    seen: list[list[str]] = []

    def policy(request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:
        seen.append([f"{attempt.backend}: {attempt.error.code}" for attempt in attempts if attempt.error])
        return "box" if request.metadata.get("paid") else "cloud"

    clouds = Clouds(policy)
    clouds.box.refuse = BUSY
    job_id = clouds.submit(metadata={"paid": True})
    clouds.tick(3)
    assert clouds.where(job_id) == ["box"]
    assert seen == [[], ["box: backend.busy"]]


def test_a_policy_that_hangs_holds_up_no_deadline() -> None:
    """It is asked in a lane of its own: other jobs end when they should."""
    let_go, asked = threading.Event(), threading.Event()

    def policy(_request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:
        if attempts:
            asked.set()
            let_go.wait(60)
        return "cloud"

    clouds = Clouds(policy)
    reconciler = clouds.service._engine.worker().reconciler
    late = clouds.submit(backend="box", limits=Limits(total_timeout=timedelta(minutes=10)))
    clouds.tick()
    clouds.cloud.refuse = BUSY
    clouds.submit()
    clouds.service._engine.worker().dispatcher.tick()
    try:

        def rounds(condition: Callable[[], bool]) -> bool:
            clouds.seconds += 100
            reconciler.round()
            return condition()

        eventually(lambda: rounds(asked.is_set))
        clouds.pass_time(timedelta(minutes=12))
        eventually(lambda: rounds(lambda: clouds.job(late).attempts[0].verdict is not None))
    finally:
        let_go.set()
        clouds.service.close()


def test_a_process_without_the_policy_leaves_the_job_to_others_for_a_minute() -> None:
    """Then the job is tried again where it was, so that it is not stuck."""
    clouds = Clouds(CHAIN)
    other = Clouds(None, beside=clouds)
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    other.tick(3)
    assert clouds.job(job_id).retry_at is not None
    assert clouds.job(job_id).ready_at is None
    clouds.cloud.refuse = None
    other.pass_time(2 * MINUTES)
    other.tick(2)
    assert clouds.where(job_id) == ["cloud", "cloud"]


def test_a_process_with_the_policy_takes_up_what_another_one_left() -> None:
    """The choice needs no memory of the process that ran the attempt: a crash in between costs nothing."""
    clouds = Clouds(CHAIN)
    other = Clouds(None, beside=clouds)
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    other.tick(3)
    clouds.tick(2)
    assert clouds.where(job_id) == ["cloud", "box"]


def test_a_backend_that_is_not_here_is_left_to_others_for_a_minute() -> None:
    """A policy may know backends of other processes."""
    clouds = Clouds(lambda _request, attempts: "elsewhere" if attempts else "cloud")
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    clouds.tick(3)
    assert clouds.job(job_id).retry_at is not None
    clouds.cloud.refuse = None
    clouds.pass_time(2 * MINUTES)
    clouds.tick(2)
    assert clouds.where(job_id) == ["cloud", "cloud"]


def test_a_choice_counts_only_after_the_attempt_that_it_was_made_for() -> None:
    """Of two processes that choose, one decides; a choice that comes late moves nothing, also while another is due."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    clouds.tick(3)
    job = clouds.job(job_id)
    (first, second) = job.attempts
    late = Rerouted(after=first.token, backend="cloud")
    assert commit(clouds.store, job_id, late).verdict is Verdict.IGNORED
    clouds.send(event_of(clouds.box.orders[0], Failed, error=infrastructure("disk.full")))
    assert clouds.job(job_id).retry_at is not None
    assert commit(clouds.store, job_id, late).verdict is Verdict.IGNORED
    assert commit(clouds.store, job_id, Rerouted(after=second.token, backend="cloud")).verdict is Verdict.APPLIED


# --- what else may happen while the policy has yet to choose


@pytest.fixture
def undecided() -> Clouds:
    """Two backends, and a process that cannot choose: its job waits for another one's choice."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = BUSY
    clouds.submit(limits=Limits(total_timeout=timedelta(seconds=90)))
    other = Clouds(None, beside=clouds)
    other.tick(3)
    return other


def _only(clouds: Clouds) -> Job:
    (job,) = clouds.service.jobs().items
    assert job.retry_at is not None or job.ended
    return job


def test_a_cancel_ends_a_job_that_waits_for_a_choice(undecided: Clouds) -> None:
    """Nothing runs, so it ends at once; and it can be deleted."""
    job = _only(undecided)
    undecided.service.cancel(job.id)
    assert _only(undecided).status is JobStatus.CANCELLED
    assert commit(undecided.store, job, Rerouted(after=job.attempts[0].token, backend="box")).job.ended
    undecided.tick()
    undecided.service.delete(job.id)
    with pytest.raises(JobNotFoundError):
        undecided.job(job.id)


def test_the_deadline_ends_a_job_that_waits_for_a_choice(undecided: Clouds) -> None:
    """No job waits for a policy without end."""
    reconciler = undecided.service._engine.worker().reconciler
    job = _only(undecided)
    undecided.pass_time(2 * MINUTES)
    reconciler._checks.clock(job)
    job = _only(undecided)
    assert job.error is not None
    assert job.error.code == "deadline.total"


def test_a_job_that_waits_for_a_choice_cannot_be_claimed(undecided: Clouds) -> None:
    """Where it is to run is not known, so that no worker begins an attempt."""
    job = _only(undecided)
    claim = Claimed(token="t", holder="h", lease_until=undecided.clock() + MINUTES, backend="cloud", local=False)
    assert commit(undecided.store, job, claim).verdict is Verdict.IGNORED


# --- submitting


class Picky(Remote):
    """A far backend that takes no request."""

    def check(self, request: RenderRequest) -> None:
        raise InvalidRequestError(f"not here: {request.backend}", code="scene.unknown")


def test_the_first_backend_that_takes_the_request_is_chosen() -> None:
    """A backend that finds something wrong counts as one that refused."""
    clouds = Clouds(CHAIN, cloud=Picky())
    job_id = clouds.submit()
    assert clouds.job(job_id).request.backend == "box"
    clouds.tick()
    assert clouds.where(job_id) == ["box"]


def test_a_request_that_no_backend_takes_is_refused() -> None:
    """The error is that of the first backend, and nothing is recorded."""
    clouds = Clouds(Failover("cloud", "other"), cloud=Picky(), more={"other": Picky()})
    with pytest.raises(InvalidRequestError, match="not here: cloud"):
        clouds.submit()
    assert not clouds.service.jobs().items


def test_a_backend_that_does_not_take_the_request_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """The next one of the chain gets the job, with a line in the log."""
    clouds = Clouds(Failover("cloud", "other", "box"), more={"other": Picky()})
    clouds.cloud.refuse = BUSY
    job_id = clouds.submit()
    clouds.tick(3)
    assert clouds.where(job_id) == ["cloud", "box"]
    assert "backend other cannot take it: not here: other" in caplog.text


def test_a_policy_that_chooses_an_unknown_backend_at_submit_is_refused() -> None:
    """The error says which backends there are."""
    with pytest.raises(UnknownNameError, match="bux"):
        Clouds(lambda _request, _attempts: "bux").submit()


def test_a_repeated_submit_gives_the_same_job_whatever_the_policy_says_by_then() -> None:
    """What the policy chooses is not part of what the application asked for."""
    names = iter(["cloud", "box"])
    clouds = Clouds(lambda _request, _attempts: next(names))
    first = clouds.submit(idempotency_key="once")
    assert clouds.submit(idempotency_key="once") == first
    assert clouds.job(first).request.backend == "cloud"


def test_a_retry_begins_the_chain_anew() -> None:
    """The new job is chosen for as if it were submitted now, and fails over too."""
    clouds = Clouds(CHAIN)
    clouds.cloud.refuse = clouds.box.refuse = DENIED
    job_id = clouds.submit(limits=Limits(max_attempts=2))
    clouds.tick(6)
    clouds.box.refuse = None
    retried = clouds.service.retry(job_id).id
    clouds.tick(4)
    assert clouds.where(retried) == ["cloud", "box"]
    assert clouds.job(retried).stage is Stage.DISPATCHED


def test_a_chain_of_unknown_backends_is_refused() -> None:
    """A misspelt name would send no job anywhere; so would a route that is never asked."""
    with pytest.raises(ConfigurationError, match="did you mean 'cloud'"):
        Clouds(Failover("clud", "box"))
    with pytest.raises(ConfigurationError, match="route and failover"):
        Clouds(CHAIN, route=lambda _request: "box")


# --- a file of this machine


def test_a_song_of_this_machine_is_stored_for_the_next_backend(tmp_path: Path) -> None:
    """Rendered here it is read where it is; rendered far away it is in storage by then."""
    song = tmp_path / "song.wav"
    song.write_bytes(b"RIFF, a song")
    inline = InlineBackend({"bars": FakeRenderer()})
    clouds = Clouds(Failover("here", "box", on={"some.code"}), more={"here": inline}, worker=True)
    service: RenderService = clouds.service
    service._engine.start = lambda: None  # type: ignore[method-assign]  # the test takes the rounds
    job_id = service.submit(song, scene="bars").id
    job = clouds.job(job_id)
    assert isinstance(job.request.audio, LocalAudio)
    machine = job.machine
    assert machine is not None
    claim = Claimed(token="t", holder="h", lease_until=clouds.clock() + MINUTES, backend="here", local=True)
    commit(clouds.store, job, claim)
    commit(clouds.store, job_id, AttemptFailed(token="t", error=infrastructure("some.code"), stopped=True))
    clouds.tick(3)
    job = clouds.job(job_id)
    assert clouds.where(job_id) == ["here", "box"]
    assert isinstance(job.audio, StoredAudio)
    assert isinstance(clouds.storage, WorldStorage)
    with clouds.storage.open(job.audio.key) as stored:
        assert stored.read() == song.read_bytes()
    assert job.machine is None
    service.close()

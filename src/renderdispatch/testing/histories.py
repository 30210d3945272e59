"""Which histories can a job have?

Short histories lead to every stage and every end; Hypothesis strategies draw anything that may follow.
"""

# ruff: noqa: ARG005 - the rows of a table have one signature

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from attrs import evolve, frozen
from hypothesis import strategies as st

from renderdispatch.engine.events import (
    AttachmentsStored,
    AttemptFailed,
    AudioDropped,
    AudioStored,
    CallMissing,
    CallStopped,
    CancelConfirmed,
    CancelRequested,
    Claimed,
    CleanedUp,
    ClockAdvanced,
    Dispatched,
    DispatchIntended,
    Expired,
    HelperStarted,
    HelperStarting,
    HelperStopped,
    JobEvent,
    LeaseDoubted,
    LeaseLapsed,
    LeaseRenewed,
    PiecesGone,
    PiecesLent,
    PiecesNeeded,
    PiecesSwept,
    PlanSeen,
    Rerouted,
    ResultFound,
    ResultMissing,
    RunEvent,
    SegmentsSeen,
    StageEntered,
    StorageSilent,
    Swept,
    VideoMissing,
    VideoSeen,
)
from renderdispatch.engine.rules import helper_token
from renderdispatch.engine.transitions import decide
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    Artifact,
    CheckedIn,
    Completed,
    Failed,
    FaultDomain,
    JobError,
    LocalAudio,
    Progressed,
    RemoteAudio,
    SegmentCounts,
    Stage,
    StoredAudio,
)
from renderdispatch.testing.builders import make_artifact, make_job, make_request

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When the jobs of this module are submitted."""

_SECOND: Final = timedelta(seconds=1)
_LEASE: Final = timedelta(seconds=30)

TOKENS: Final = ("token-1", "token-2", "token-3", "token-4")
RUNS: Final = ("run-1", "run-2", "run-3")
RUN_STAGES: Final = (Stage.DOWNLOADING_AUDIO, Stage.RENDERING, Stage.UPLOADING_VIDEO)
PIECES: Final = "jobs/job/life/pieces/cpu/"
"""Where the attempts of these jobs keep plan and segments, if they keep them."""


def new_job(*, parallel: int = 1) -> Job:
    """Return a job that was submitted at `START`."""
    return make_job(id="job", created_at=START, request=make_request(backend="modal"), parallel=parallel)


# --- events, of the first attempt and its first run unless told otherwise -------------------------


def claimed(token: str = "token-1", *, local: bool = False, now: datetime = START) -> Claimed:
    """Return the claim of an attempt."""
    return Claimed(token=token, holder="worker", lease_until=now + _LEASE, backend="modal", local=local)


def intended(token: str = "token-1", *, now: datetime = START, pieces: str | None = None) -> DispatchIntended:
    """Return the intent to call the backend."""
    keys = {"video_key": f"videos/{token}.mp4", "result_key": f"results/{token}.json"}
    return DispatchIntended(token=token, start_by=now + timedelta(hours=1), pieces=pieces, **keys)


def checked_in(run: str = "run-1", token: str = "token-1", call_id: str | None = "call") -> CheckedIn:
    """Return the check-in of a run."""
    return CheckedIn(event_id=f"in-{run}", job_id="job", token=token, run_id=run, call_id=call_id)


def progressed(
    stage: Stage,
    fraction: float = 0.0,
    run: str = "run-1",
    token: str = "token-1",
    *,
    standing: int | None = None,
    own: int = 0,
) -> Progressed:
    """Return a progress report of a run; with ``standing``, of one whose plan is kept, and that has ten segments."""
    fields = {"event_id": f"progress-{run}-{stage}-{fraction}", "job_id": "job", "token": token, "run_id": run}
    drawn = None if standing is None else SegmentCounts(total=10, standing=standing, own=own)
    more = {"stage": stage, "fraction": fraction, "planned": drawn is not None, "segments": drawn}
    return Progressed.model_validate({**fields, **more})


def completed(run: str = "run-1", token: str = "token-1", artifact: Artifact | None = None) -> Completed:
    """Return the success of a run."""
    artifact = artifact or make_artifact()
    return Completed(event_id=f"completed-{run}", job_id="job", token=token, run_id=run, artifact=artifact)


def failed(
    fault: FaultDomain = FaultDomain.INFRASTRUCTURE,
    run: str = "run-1",
    token: str = "token-1",
    code: str = "some.code",
) -> Failed:
    """Return the failure of a run."""
    error = JobError(code=code, message="it broke", fault=fault)
    return Failed(event_id=f"failed-{run}", job_id="job", token=token, run_id=run, error=error)


def lost(token: str = "token-1", *, stopped: bool = False) -> AttemptFailed:
    """Return a failure of an attempt that its run did not report."""
    error = JobError(code="gpu.lost", message="lost", fault=FaultDomain.INFRASTRUCTURE)
    return AttemptFailed(token=token, error=error, stopped=stopped)


def helper(share: int = 1, token: str = "token-1") -> str:
    """Return the token of a helper of an attempt."""
    return helper_token(token, share)


def helper_starting(share: int = 1, token: str = "token-1") -> HelperStarting:
    """Return that a helper is about to be started."""
    return HelperStarting(token=token, helper=helper(share, token))


def helper_started(share: int = 1, token: str = "token-1") -> HelperStarted:
    """Return that a helper was started."""
    return HelperStarted(token=token, helper=helper(share, token), call_id=f"helper-{share}")


def helper_stopped(share: int = 1, token: str = "token-1") -> HelperStopped:
    """Return that a helper computes no more."""
    return HelperStopped(token=token, helper=helper(share, token))


def rerouted(after: str = "token-1", backend: str = "local") -> Rerouted:
    """Return the choice of a policy. It changes only jobs with failover."""
    return Rerouted(after=after, backend=backend)


def video_seen(token: str = "token-1") -> VideoSeen:
    """Return that storage has the video as reported."""
    return VideoSeen(token=token, size=make_artifact().bytes, etag=make_artifact().etag)


def after(job: Job, events: Iterable[JobEvent], *, start: datetime = START) -> Job:
    """Return ``job`` after ``events``, a second apart."""
    for number, event in enumerate(events, start=1):
        job = decide(job, event, start + number * _SECOND).job
    return job


_dispatching: Final = (claimed(), intended())
_rendering: Final = (*_dispatching, checked_in(), progressed(Stage.RENDERING, 0.5))
_finalizing: Final = (*_rendering, completed())
_helped: Final = (
    *(claimed(), intended(pieces=PIECES), Dispatched(token="token-1", call_id="call"), checked_in()),
    *(progressed(Stage.RENDERING, 0.5, standing=3, own=2), helper_starting(), helper_started(), helper_starting(2)),
)

HISTORIES: Final[dict[str, tuple[JobEvent, ...]]] = {
    "queued": (),
    "resolving-audio": (claimed(),),
    "uploading-audio": (claimed(), StageEntered(token="token-1", stage=Stage.UPLOADING_AUDIO)),
    "generating-url": (claimed(), StageEntered(token="token-1", stage=Stage.GENERATING_URL)),
    "dispatching": _dispatching,
    "dispatched": (*_dispatching, Dispatched(token="token-1", call_id="call")),
    "downloading-audio": (*_dispatching, checked_in(), progressed(Stage.DOWNLOADING_AUDIO, 0.5)),
    "rendering": _rendering,
    "uploading-video": (*_rendering, progressed(Stage.UPLOADING_VIDEO, 0.5)),
    "failing": (*_rendering, lost()),
    "failing, stopped": (*_rendering, lost(stopped=True)),
    "finalizing": _finalizing,
    "cancelling": (*_rendering, CancelRequested()),
    "retry-wait": (*_rendering, failed()),
    "second attempt": (*_rendering, failed(), rerouted(), claimed("token-2"), intended("token-2")),
    "complete": (*_finalizing, video_seen()),
    "failed": (*_rendering, failed(FaultDomain.SCENE)),
    "cancelled": (*_rendering, CancelRequested(), CancelConfirmed(token="token-1", stopped=True)),
    "cancelled in the queue": (CancelRequested(),),
    "expired": (*_finalizing, video_seen(), Expired()),
    "helped": _helped,
    "helped, failing": (*_helped, lost()),
    "helped, finalizing": (*_helped, completed()),
    "helped, cancelling": (*_helped, CancelRequested()),
    "helped, lead stopped": (*_helped, CancelRequested(), CancelConfirmed(token="token-1", stopped=True)),
    "helped, retry-wait": (*_helped, failed()),
    "helped, second attempt": (*_helped, failed(), claimed("token-2"), intended("token-2", pieces=PIECES)),
    "helped, complete": (*_helped, completed(), video_seen()),
}
"""The events that lead a new job to each stage and each end. The token of a first attempt is ``token-1``.

Helpers draw in those that are called so, if the job is to be drawn by several.
"""


# --- anything that may happen ---------------------------------------------------------------------

_DELAYS: Final = (timedelta(0), _SECOND, _LEASE, timedelta(minutes=3), timedelta(hours=2), timedelta(hours=7))
_CODES: Final = ("some.code", "worker.lost", "worker.closed", "render.stopped")
_AUDIO: Final = (
    StoredAudio(key="audio/song.wav", size=44),
    LocalAudio(path="/music/song.wav", machine="here", size=44, mtime_ns=1),
    RemoteAudio.model_validate({"url": "https://example.com/song.wav?s3cret"}),
)

# Plain lists to draw fields from: a new strategy for each event would cost more than the event.
_ERRORS: Final = [JobError(code=code, message="it broke", fault=fault) for code in _CODES for fault in FaultDomain]
_ARTIFACTS: Final = [make_artifact(bytes=size, etag=etag) for size in (5, 6) for etag in (None, "x")]
_CALL_IDS: Final = (None, "call", "other-call")
_BOOLEANS: Final = (False, True)
_COPY: Final = StoredAudio(key="audio/copy", size=44)
_SEGMENTS: Final = (None, *(SegmentCounts(total=10, standing=n, own=n // 2) for n in (0, 3, 10)))
_SHARES: Final = (1, 2, 3)

_Pick = Callable[[Sequence[Any]], Any]


def _picker(draw: st.DrawFn) -> _Pick:
    def pick(choices: Sequence[Any]) -> Any:
        return choices[draw(st.integers(0, len(choices) - 1))]

    return pick


@st.composite
def run_events(draw: st.DrawFn, tokens: Sequence[str] = TOKENS, runs: Sequence[str] = RUNS) -> RunEvent:
    """Draw any event that a run may send."""
    pick = _picker(draw)
    event: type[RunEvent] = pick((CheckedIn, Progressed, Completed, Failed))
    more: dict[str, Any]
    if event is CheckedIn:
        more = {"call_id": pick(_CALL_IDS)}
    elif event is Progressed:
        more = {"stage": pick(RUN_STAGES), "fraction": pick((0.0, 0.3, 0.7, 1.0))}
        more.update(planned=pick(_BOOLEANS), segments=pick(_SEGMENTS))
    elif event is Completed:
        more = {"artifact": pick(_ARTIFACTS)}
    else:
        more = {"error": pick(_ERRORS)}
    return event(event_id="event", job_id="job", token=pick(tokens), run_id=pick(runs), **more)


_ABOUT_ATTEMPTS: Final[tuple[Callable[[_Pick, str, datetime], JobEvent], ...]] = (
    lambda pick, token, now: LeaseRenewed(
        token=token, holder=pick(("worker", "other")), lease_until=now + pick(_DELAYS)
    ),
    lambda pick, token, now: StageEntered(token=token, stage=pick(list(Stage))),
    lambda pick, token, now: AudioStored(token=token, audio=_COPY),
    lambda pick, token, now: AttachmentsStored(token=token, stored={pick(("cover", "scene_file")): _COPY}),
    lambda pick, token, now: intended(token, now=now, pieces=pick((None, PIECES, f"jobs/job/life/pieces/{token}/"))),
    lambda pick, token, now: PlanSeen(token=token),
    lambda pick, token, now: SegmentsSeen(token=token, standing=pick((0, 4, 300))),
    lambda pick, token, now: helper_starting(pick(_SHARES), token),
    lambda pick, token, now: Dispatched(token=token, call_id=pick(_CALL_IDS)),
    lambda pick, token, now: AttemptFailed(
        token=token, error=pick(_ERRORS), stopped=pick(_BOOLEANS), refused=pick(_BOOLEANS)
    ),
    lambda pick, token, now: LeaseLapsed(token=token, lease_until=now + pick(_DELAYS)),
    lambda pick, token, now: LeaseDoubted(token=token, lease_until=now + pick(_DELAYS), seen="boot 1.000 30.000"),
    lambda pick, token, now: CallMissing(token=token),
    lambda pick, token, now: ResultFound(token=token, artifact=pick(_ARTIFACTS)),
    lambda pick, token, now: ResultMissing(token=token),
    lambda pick, token, now: StorageSilent(token=token),
    lambda pick, token, now: VideoSeen(token=token, size=pick((5, 6)), etag=pick((None, "x", "y"))),
    lambda pick, token, now: VideoMissing(token=token),
    lambda pick, token, now: CancelConfirmed(token=token, stopped=pick(_BOOLEANS)),
)

_FREE: Final[tuple[Callable[[_Pick, str, datetime], JobEvent], ...]] = (
    lambda pick, token, now: CancelRequested(),
    lambda pick, token, now: claimed(token, local=pick(_BOOLEANS), now=now),
    lambda pick, token, now: rerouted(token, pick(("modal", "local"))),
    lambda pick, token, now: CallStopped(token=token),
    lambda pick, token, now: Swept(token=token),
    lambda pick, token, now: CleanedUp(token=token),
    lambda pick, token, now: AudioDropped(key=pick((_COPY.key, "audio/other"))),
    lambda pick, token, now: helper_started(pick(_SHARES), token),
    lambda pick, token, now: helper_stopped(pick(_SHARES), token),
    lambda pick, token, now: PiecesLent(to=pick(("a", "b")), instead_of=pick((None, "a"))),
    lambda pick, token, now: PiecesNeeded(until=now + pick(_DELAYS)),
    lambda pick, token, now: PiecesSwept(lent_to=pick((None, "a", "b"))),
    lambda pick, token, now: PiecesGone(),
    lambda pick, token, now: Expired(),
    lambda pick, token, now: ClockAdvanced(),
)


@st.composite
def attempt_events(draw: st.DrawFn, now: datetime, tokens: Sequence[str] = TOKENS) -> JobEvent:
    """Draw any event about an attempt that the dispatcher or the reconciler may make at ``now``."""
    pick = _picker(draw)
    make: Callable[[_Pick, str, datetime], JobEvent] = pick(_ABOUT_ATTEMPTS)
    return make(pick, pick(tokens), now)


@st.composite
def events(draw: st.DrawFn, now: datetime, *, of: Job | None = None) -> JobEvent:
    """Draw any event; with ``of``, mostly one of that job's newest attempt."""
    pick = _picker(draw)
    attempt = of.attempt if of is not None else None
    mine = attempt is not None and pick((True, True, True, False))
    tokens = (attempt.token,) if attempt is not None and mine else TOKENS
    match pick(("run", "run", "attempt", "attempt", "free", "lapse")):
        case "run":
            return draw(run_events(tokens))
        case "attempt":
            return draw(attempt_events(now, tokens))
        case "lapse" if attempt is not None and attempt.lease_until is not None:
            return LeaseLapsed(token=attempt.token, lease_until=attempt.lease_until)
    make: Callable[[_Pick, str, datetime], JobEvent] = pick(_FREE)
    return make(pick, pick(TOKENS), now)


@frozen
class Step:
    """One event of a life, and the job before and after it."""

    before: Job
    event: JobEvent
    now: datetime
    after: Job


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Draw a job that one of the histories leads to: local or remote, with any audio, with failover or without.

    A third of them are to be drawn by several.
    """
    audio = draw(st.sampled_from(_AUDIO))
    job = new_job(parallel=draw(st.sampled_from([1, 1, 3])))
    job = evolve(job, request=make_request(audio=audio, backend="modal"), reroutes=draw(st.booleans()))
    local = draw(st.booleans())
    for number, event in enumerate(draw(st.sampled_from(list(HISTORIES.values()))), start=1):
        if isinstance(event, Claimed):
            event = evolve(event, local=local)  # noqa: PLW2901
        job = decide(job, event, START + number * _SECOND).job
    return job


@st.composite
def lives(draw: st.DrawFn, *, max_steps: int = 12) -> list[Step]:
    """Draw what happens to such a job next. The clock never goes back."""
    job, steps = draw(jobs()), []
    now = job.updated_at
    for _ in range(draw(st.integers(1, max_steps))):
        now += _picker(draw)(_DELAYS[:4] * 3 + _DELAYS[4:])
        event = draw(events(now, of=job))
        steps.append(Step(job, event, now, decide(job, event, now).job))
        job = steps[-1].after
    return steps

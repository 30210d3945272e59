"""Is a video that sixteen helpers draw done in time, and do they stop, whatever is wrong with some of them?

A run and its helpers draw in threads, by the real runner; the service, its webhook and the local R2 are real too.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from attrs import frozen

from renderdispatch import JobHandle, RenderService
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import CLOCK_SLACK, JobStatus, Limits, Output
from renderdispatch.plumbing import pieces
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.webhook_server import webhook_server
from tests.support.crowds import Crowd, FindingCrowd, Trouble, write_speech
from tests.support.mishaps import Gate
from tests.support.sleepy_scene import SLEEPY

HELPERS = 16
FPS = 6
SEGMENT_S = 4
STOPS_WITHIN_S = 10.0
SMALL = Output(width=64, height=36, fps=Fraction(FPS))


@frozen
class Film:
    """A service whose renders a crowd draws."""

    crowd: Crowd
    service: RenderService
    storage: R2Storage
    gate: Gate
    song: Path

    def submit(
        self, *, segments: int, segment_s: float, parallel: int = HELPERS + 1, limits: Limits | None = None
    ) -> JobHandle:
        """Submit a video of so many segments, each of which takes so long to draw."""
        return self.service.submit(
            self.song,
            scene=SLEEPY,
            params={"frame_s": segment_s / (FPS * SEGMENT_S)},
            duration=segments * SEGMENT_S,
            output=SMALL,
            parallel=parallel,
            limits=limits,
        )

    def job(self, handle: JobHandle) -> Job:
        return self.service._engine.parts.store.get(handle.id)

    def helping(self, handle: JobHandle, number: int = HELPERS) -> Job:
        """Wait until so many helpers were started, and return the job."""

        def started() -> bool:
            return len(self.crowd.helpers) == number and all(
                helper.state is not HelperState.INTENDED for helper in self.job(handle).attempts[-1].helpers
            )

        eventually(started)
        return self.job(handle)

    def computing(self) -> list[int]:
        """Return the shares of the helpers that compute."""
        return [share for share, call in self.crowd.helpers.items() if self.crowd.computes(call)]

    def standing(self, job: Job) -> set[int]:
        """Return the segments of the job's attempt that are kept."""
        prefix = job.attempts[-1].pieces
        assert prefix is not None
        keys = [info.key.removeprefix(prefix) for info in self.storage.list(prefix)]
        return {index for key in keys if (index := pieces.index_of(key)) is not None}


@pytest.fixture(scope="session")
def long_song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of sound."""
    return write_speech(tmp_path_factory.mktemp("long") / "song.wav", seconds=300)


@pytest.fixture
def open_film(r2: LocalR2, tmp_path: Path, long_song: Path) -> Iterator[Callable[..., Film]]:
    """``open_film(troubles)``: opens a service of its own, on the same R2."""
    with ExitStack() as stack:

        def opened(troubles: Mapping[int, Trouble] | None = None, crowd: Crowd | None = None) -> Film:
            name = secrets.token_hex(4)
            storage = stack.enter_context(closing(r2.storage(prefix=name)))
            store = stack.enter_context(closing(SqlJobStore(f"sqlite:///{tmp_path / name}.db")))
            crowd = stack.enter_context(closing(crowd or Crowd(troubles)))
            gate = Gate()
            hooks = stack.enter_context(webhook_server(gate))
            secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
            service = RenderService(store, storage, {"crowd": crowd}, secrets=secret, webhook_url=hooks.url)
            gate.service = stack.enter_context(service)
            stack.callback(_end, crowd)
            return Film(crowd, service, storage, gate, long_song)

        yield opened


def _drawn(film: Film, *, segments: int, segment_s: float) -> tuple[float, str, Job]:
    """Render; return the seconds that it took, the hash of the video, and the job."""
    began = time.monotonic()
    handle = film.submit(segments=segments, segment_s=segment_s)
    handle.wait(timeout=300)
    took = time.monotonic() - began
    job = film.job(handle)
    assert job.status is JobStatus.COMPLETE, job.error
    assert job.artifact is not None and job.artifact.sha256 is not None
    return took, job.artifact.sha256, job


TROUBLES: dict[int, Trouble] = {1: "slow", 4: "hangs", 7: "nonsense", 10: "dies", 13: "never starts"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rounds", "segment_s"),
    [pytest.param(3, 2.5, marks=pytest.mark.long), pytest.param(4, 8.0, marks=pytest.mark.soak)],
)
def test_bad_helpers_among_sixteen(open_film: Callable[..., Film], rounds: int, segment_s: float) -> None:
    """One is ten times slower, one hangs, one writes nonsense, one dies at each segment, and one never starts."""
    segments = rounds * (HELPERS + 1)
    undisturbed, sha256, _ = _drawn(open_film(), segments=segments, segment_s=segment_s)
    film = open_film(TROUBLES)
    disturbed, same, job = _drawn(film, segments=segments, segment_s=segment_s)
    print(f"undisturbed {undisturbed:.1f} s, disturbed {disturbed:.1f} s; {job.artifact}; {film.crowd.deaths} deaths")
    assert same == sha256
    assert film.crowd.helpers.keys() == set(range(1, HELPERS + 1))
    assert film.crowd.deaths > 0
    eventually(lambda: not film.computing())
    eventually(
        lambda: (
            {helper.state for helper in film.service._engine.parts.store.get(job.id).attempts[-1].helpers}
            == {HelperState.STOPPED}
        )
    )
    assert disturbed <= 2 * undisturbed


def _end(crowd: Crowd) -> None:
    """Let go of all that still computes."""
    crowd.loses_answers = crowd.ignores_cancels = False
    for call in crowd.helpers.values():
        crowd.cancel(call)


def _cancelled(film: Film, handle: JobHandle) -> tuple[Job, float]:
    """Cancel a job; return it as it ended, and after how many seconds no helper computed any more."""
    told = time.monotonic()
    handle.cancel()
    eventually(lambda: not film.computing())
    took = time.monotonic() - told
    eventually(lambda: film.job(handle).ended)
    return film.job(handle), took


@pytest.mark.parametrize(
    "webhook", [pytest.param("works", marks=pytest.mark.long), pytest.param("is lost", marks=pytest.mark.soak)]
)
def test_a_cancel_stops_sixteen_helpers(open_film: Callable[..., Film], webhook: str) -> None:
    """All have stopped within ten seconds, and the job says so, also if no report ever arrived."""
    film = open_film()
    if webhook == "is lost":
        film.gate.shut = lambda _event: True
    handle = film.submit(segments=HELPERS + 1, segment_s=60)
    film.helping(handle)
    job, took = _cancelled(film, handle)
    print(f"stopped after {took:.1f} s")
    assert took < STOPS_WITHIN_S
    assert job.status is JobStatus.CANCELLED
    assert job.compute_stopped_at is not None
    assert {helper.state for helper in job.attempts[-1].helpers} == {HelperState.STOPPED}


@pytest.mark.long
def test_helpers_whose_start_was_not_answered_stop_by_the_object(open_film: Callable[..., Film]) -> None:
    """No call of theirs is known, and the job claims nothing; the object in storage tells them."""
    film = open_film()
    film.crowd.loses_answers = True
    handle = film.submit(segments=HELPERS + 1, segment_s=60, parallel=3)
    film.helping(handle, 2)
    job, _ = _cancelled(film, handle)
    assert job.status is JobStatus.CANCELLED
    assert job.compute_stopped_at is None
    assert {helper.call_id for helper in job.attempts[-1].helpers} == {None}


@pytest.mark.long
def test_helpers_whose_start_was_not_answered_are_found(open_film: Callable[..., Film], r2: LocalR2) -> None:
    """Where the backend finds calls by their tokens they are told, though no object can be stored."""
    film = open_film(crowd=FindingCrowd())
    film.crowd.loses_answers = True
    handle = film.submit(segments=HELPERS + 1, segment_s=60, parallel=3)
    film.helping(handle, 2)
    r2.fail("403", method="PUT", key="/stop", times=1000)
    job, took = _cancelled(film, handle)
    assert took < STOPS_WITHIN_S
    assert job.compute_stopped_at is not None


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_helpers_that_nobody_reaches_end_at_their_deadline(open_film: Callable[..., Film], r2: LocalR2) -> None:
    """Neither a call nor an object tells them to stop."""
    film = open_film()
    film.crowd.loses_answers = True
    handle = film.submit(
        segments=HELPERS + 1, segment_s=600, parallel=3, limits=Limits(total_timeout=timedelta(seconds=45))
    )
    deadline = film.job(handle).finish_by + CLOCK_SLACK
    film.helping(handle, 2)
    r2.fail("403", method="PUT", key="/stop", times=1000)
    handle.cancel()
    while datetime.now(UTC) < deadline - timedelta(seconds=10):
        assert film.computing() == [1, 2]
        time.sleep(1)
    eventually(lambda: not film.computing())
    assert deadline - timedelta(seconds=5) < datetime.now(UTC) < deadline + timedelta(seconds=15)

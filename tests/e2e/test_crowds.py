"""Is a video that sixteen helpers draw done in time, and do they stop, whatever is wrong with some of them?

A run and its helpers draw in threads, by the real runner; the service, its webhook and the local R2 are real too.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest
from attrs import frozen

from renderdispatch import JobHandle, RenderService
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import JobStatus, Limits, Output, RenderEvent
from renderdispatch.plumbing import pieces
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.webhook_server import webhook_server
from tests.support.crowds import Crowd, Trouble, write_speech
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

    def submit(self, *, segments: int, segment_s: float, parallel: int = HELPERS + 1, **limits: timedelta) -> JobHandle:
        """Submit a video of so many segments, each of which takes so long to draw."""
        return self.service.submit(
            self.song,
            scene=SLEEPY,
            params={"frame_s": segment_s / (FPS * SEGMENT_S)},
            duration=segments * SEGMENT_S,
            output=SMALL,
            parallel=parallel,
            limits=Limits(**limits),
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


OpenFilm = Callable[..., "contextmanager[Film]"]


@pytest.fixture(scope="session")
def long_song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes of sound."""
    return write_speech(tmp_path_factory.mktemp("long") / "song.wav", seconds=300)


@pytest.fixture
def open_film(r2: LocalR2, tmp_path: Path, long_song: Path) -> Iterator[Callable[..., Film]]:
    """``open_film(troubles)``: opens a service of its own, on the same R2."""
    with ExitStack() as stack:

        def opened(troubles: Mapping[int, Trouble] | None = None) -> Film:
            name = secrets.token_hex(4)
            storage = stack.enter_context(closing(r2.storage(prefix=name)))
            store = stack.enter_context(closing(SqlJobStore(f"sqlite:///{tmp_path / name}.db")))
            crowd = stack.enter_context(closing(Crowd(troubles)))
            gate = Gate()
            hooks = stack.enter_context(webhook_server(gate))
            secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
            service = RenderService(store, storage, {"crowd": crowd}, secrets=secret, webhook_url=hooks.url)
            gate.service = stack.enter_context(service)
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
    eventually(lambda: {helper.state for helper in film.service._engine.parts.store.get(job.id).attempts[-1].helpers} == {HelperState.STOPPED})
    assert disturbed <= 2 * undisturbed

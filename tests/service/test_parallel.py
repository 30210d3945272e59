"""How is it asked that several draw one video, and what is told of its segments?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import numpy as np
import pytest
from attrs import evolve

from renderdispatch import AsyncRenderService, JobStatus, RenderService, Submission
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.watching import what_shows
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Attempt, Helper, HelperState, Job
from renderdispatch.messages import Stage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer
from renderdispatch.testing.builders import make_artifact, make_ended_job, make_job

SONG = b"RIFF"
Polled = Callable[[Job], dict[str, Any]]


@pytest.fixture
def store() -> MemoryJobStore:
    return MemoryJobStore()


@pytest.fixture
def service(store: MemoryJobStore) -> Iterator[RenderService]:
    backend = InlineBackend({"fake": FakeRenderer()})
    with RenderService(store, MemoryStorage(), {"inline": backend}, worker=False, owned=[backend]) as opened:
        yield opened


def _drawn(stage: Stage = Stage.RENDERING, **attempt: Any) -> Job:
    """Return a job whose attempt has drawn 41 of 75 segments, 12 of them by its run; two of four helpers draw."""
    states = (HelperState.STARTED, HelperState.STARTED, HelperState.STOPPED, HelperState.STARTING)
    fields: dict[str, Any] = {
        "number": 1,
        "token": "token",
        "backend": "inline",
        "local": False,
        "claimed_at": datetime.now(UTC),
        "planned": True,
        "helpers": tuple(Helper(share=n, token=f"helper {n}", state=state) for n, state in enumerate(states, 1)),
        "segments": 75,
        "segments_standing": 41,
        "segments_own": 12,
    }
    attempts = (Attempt(**{**fields, **attempt}),)
    return make_job(
        status=JobStatus.PROCESSING, stage=stage, progress=60.0, parallel=5, ready_at=None, attempts=attempts
    )


@pytest.fixture
def polled(store: MemoryJobStore, service: RenderService) -> Polled:
    """Answers a poll of a job whose record is this one."""

    def poll(job: Job) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(service.poll(store.create(job).id).to_json())
        return body

    return poll


def test_parallel_is_kept_with_the_job(service: RenderService) -> None:
    """It is an `int` from 1 to 64, 1 unless it is given; the blocking service and its async twin take it alike."""
    assert service.submit(SONG, scene="fake").job.parallel == 1
    assert service.submit(SONG, scene="fake", parallel=64).job.parallel == 64
    counted: Any = np.int64(3)
    assert type(service.submit(SONG, scene="fake", parallel=counted).job.parallel) is int

    async def submit() -> Job:
        return await (await AsyncRenderService(service).submit(SONG, scene="fake", parallel=4)).job()

    assert anyio.run(submit).parallel == 4


@pytest.mark.parametrize("parallel", [0, 65, -1, 1.5, True, "2", None])
def test_what_is_no_number_of_workers_is_refused(service: RenderService, parallel: Any) -> None:
    """The message says the range; nothing is recorded."""
    with pytest.raises(InvalidRequestError, match="parallel: an integer from 1 to 64"):
        service.submit(SONG, scene="fake", parallel=parallel)
    assert list(service.jobs().items) == []


def test_parallel_is_no_part_of_the_request(service: RenderService) -> None:
    """An idempotency key gives the same job back whatever it says, because the video is the same."""
    first = service.submit(SONG, scene="fake", parallel=2, idempotency_key="key")
    again = service.submit(SONG, scene="fake", parallel=8, idempotency_key="key")
    assert (again.id, again.job.parallel) == (first.id, 2)


def test_each_row_has_its_own_parallel(service: RenderService) -> None:
    """Rows of a batch say it each for itself; a wrong one is that row's error alone."""
    made = service.submit_many([Submission(SONG, scene="fake", parallel=n) for n in (1, 7, 0, 3)])
    assert [handle.job.parallel for handle in made.handles] == [1, 7, 3]
    assert list(made.errors) == [2]


def test_a_retry_is_drawn_by_as_many(service: RenderService) -> None:
    """The new job has the parallel of the one that it repeats."""
    cancelled = service.submit(SONG, scene="fake", parallel=6)
    cancelled.cancel()
    assert cancelled.retry().job.parallel == 6


def test_a_poll_says_how_far_the_segments_are(polled: Polled) -> None:
    """Those that stand, its own, taken over and missing, and how many draw: the run and helpers that have not ended."""
    said = polled(_drawn())
    assert said["segments"] == {"total": 75, "standing": 41, "own": 12, "takenOver": 29, "missing": 34, "drawing": 3}


def test_nobody_draws_while_the_video_is_sent(polled: Polled) -> None:
    """What helpers still do is of no use to this video, so it is not counted."""
    said = polled(_drawn(Stage.UPLOADING_VIDEO, segments_standing=75))
    assert (said["segments"]["missing"], said["segments"]["drawing"]) == (0, 0)


@pytest.mark.parametrize("stage", [Stage.DISPATCHED, Stage.CANCELLING, Stage.RETRY_WAIT])
def test_other_stages_say_nothing_of_segments(polled: Polled, stage: Stage) -> None:
    """The numbers are those of a run that draws."""
    assert "segments" not in polled(_drawn(stage))


def test_a_video_without_segments_says_nothing_of_them(polled: Polled) -> None:
    """Neither while it is drawn, nor when it is complete."""
    assert "segments" not in polled(_drawn(segments=None, segments_standing=0, segments_own=0))
    result = polled(make_ended_job(expired_at=None, tenant=None))["result"]
    assert not [name for name in result if name.startswith("segments")]


def test_the_result_says_what_was_drawn_twice(polled: Polled) -> None:
    """Of how many segments the video was made, how many others drew, and how many were drawn in vain."""
    made = make_artifact(segments=75, segments_taken=50, segments_twice=2)
    said = polled(make_ended_job(expired_at=None, tenant=None, artifact=made))
    assert {name: said["result"][name] for name in ("segments", "segmentsTaken", "segmentsTwice")} == {
        "segments": 75,
        "segmentsTaken": 50,
        "segmentsTwice": 2,
    }
    assert "segments" not in said


def test_a_segment_more_is_a_visible_change() -> None:
    """A watcher sees it although no frame was reported since."""
    before = _drawn()
    assert before.attempt is not None
    after = evolve(before, attempts=(evolve(before.attempt, segments_standing=42),))
    assert what_shows(after) != what_shows(before)


def test_a_notebook_shows_segments(store: MemoryJobStore, service: RenderService) -> None:
    """In words, beside the percentage."""
    shown = service.handle(store.create(_drawn()).id)._repr_html_()
    assert "41 of 75 segments · 29 taken over · 3 draw" in shown

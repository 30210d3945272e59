"""What does a notebook show of a queued job, and of one whose video is kept no longer?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from renderdispatch import JobStatus
from renderdispatch.engine.watching import show_html
from renderdispatch.messages import PollResponse, Stage
from renderdispatch.protocols import MAX_POSITION
from renderdispatch.testing.histories import START
from renderdispatch.testing.world import Remote, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Remote(), keep={JobStatus.COMPLETE: timedelta(days=1)})
    yield world
    world.service.close()


@pytest.mark.parametrize(
    ("place", "shown"), [(1, "place 1"), (MAX_POSITION, "place 1000"), (MAX_POSITION + 1, "more than 1,000 ahead")]
)
def test_a_place_beyond_a_thousand_is_not_a_number(place: int, shown: str) -> None:
    """1001 means "more than 1,000", so it is said so."""
    poll = PollResponse(
        job_id="job",
        status=JobStatus.PENDING,
        stage=Stage.QUEUED,
        progress=0,
        attempt=0,
        queue_position=place,
        created_at=START,
        updated_at=START,
    )
    assert f" · {shown}</div>" in show_html(poll, pytest.fail)


def test_an_expired_video_is_said_to_be_gone(world: World) -> None:
    """There is no player for it."""
    job_id = world.submit()
    world.tick()
    world.render(world.backend.orders[0])
    world.tick()
    assert "<video" in world.service.handle(job_id)._repr_html_()
    world.pass_time(timedelta(days=1))
    world.tick()
    shown = world.service.handle(job_id)._repr_html_()
    assert "The video is kept no longer." in shown
    assert "<video" not in shown

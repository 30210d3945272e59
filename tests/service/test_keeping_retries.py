"""Does a retry draw what is missing, and nothing else?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from renderdispatch import JobStatus
from renderdispatch.engine import layout
from renderdispatch.jobs import Job
from renderdispatch.messages import CheckedIn, Completed, EventReply, Failed, FaultDomain, JobError, Limits, RenderEvent
from renderdispatch.plumbing.pieces import plan_name, segment_name
from renderdispatch.runner import InProcessRender, RunnerIO, run_order
from renderdispatch.testing.renderers import FakeSegmentsRenderer, fake_digest, make_plan, make_segment
from renderdispatch.testing.world import PACE, Remote, World, event_of

SEGMENTS = 6
DIGEST = fake_digest(SEGMENTS)
LOST = JobError(code="runner.lost", message="it is gone", fault=FaultDomain.INFRASTRUCTURE)


class Declared(Remote):
    """A backend that declares what it draws with, as far as the test says."""

    device_class: str | None = "cpu-test"


@pytest.fixture
def world() -> Iterator[World]:
    world = World(Declared())
    yield world
    world.service.close()


def lost(world: World, job_id: str, drawn: list[int]) -> Job:
    """Have a job fail by the infrastructure after these segments were drawn, at the first attempt that drew none."""
    world.tick()
    job = world.job(job_id)
    pieces = job.attempts[-1].pieces
    assert pieces is not None
    world.storage.put(pieces + plan_name(0), make_plan(DIGEST))
    for index in drawn:
        body = f"segment {index} of {SEGMENTS}\n".encode()
        world.storage.put(pieces + segment_name(index, 0), make_segment(DIGEST, index, body))
    for _ in range(2):
        world.send(event_of(world.backend.orders[-1], CheckedIn))
        world.send(event_of(world.backend.orders[-1], Failed, error=LOST))
        world.tick()  # storage is asked whether it drew something
        if world.job(job_id).ended:
            break
        world.pass_time(timedelta(minutes=1))
        world.tick()
    assert world.job(job_id).status is JobStatus.FAILED
    return world.job(job_id)


def finish(world: World, job_id: str) -> Job:
    """Have a job drawn to its end, and return it."""

    def send(event: RenderEvent) -> EventReply:
        return world.send(event).reply

    world.tick()
    order = world.backend.orders[-1].model_copy(update={"local": True, "device_class": None})
    renderer = FakeSegmentsRenderer(segments=SEGMENTS)
    ended = run_order(order, io=RunnerIO(send=send, render=InProcessRender({"bars": renderer}), pace=PACE))
    assert isinstance(ended, Completed), ended
    world.tick()
    assert world.job(job_id).status is JobStatus.COMPLETE
    return world.job(job_id)


def taken(job: Job) -> int:
    assert job.artifact is not None
    return job.artifact.segments_taken


def submit(world: World) -> str:
    song = bytes(1 << 16)  # long enough to have so many segments
    return world.service.submit(song, scene="bars", limits=Limits(max_attempts=1)).id


def video_of(world: World, job: Job) -> str:
    with world.storage.open(layout.video_key(layout.prefix_of(job), job.attempts[-1].token)) as video:
        return video.read().decode()


def test_a_retry_takes_over_what_was_drawn(world: World) -> None:
    """Half of the video is there, so it draws the other half; the video is whole."""
    first = lost(world, submit(world), [0, 2, 4])
    second = finish(world, world.service.retry(first.id).id)
    assert taken(second) == 3
    assert video_of(world, second) == "".join(f"segment {index} of {SEGMENTS}\n" for index in range(SEGMENTS))


def test_a_retry_of_a_retry_takes_over_from_both(world: World) -> None:
    """Neither has enough by itself."""
    first = lost(world, submit(world), [0, 1])
    second = lost(world, world.service.retry(first.id).id, [2, 3])
    third = finish(world, world.service.retry(second.id).id)
    assert taken(third) == 4
    assert video_of(world, third) == "".join(f"segment {index} of {SEGMENTS}\n" for index in range(SEGMENTS))


@pytest.mark.parametrize("device_class", ["cpu-other", None])
def test_a_retry_on_another_class_of_device_draws_everything(world: World, device_class: str | None) -> None:
    """Its bytes would be others, or nobody knows."""
    first = lost(world, submit(world), [0, 1, 2])
    assert isinstance(world.backend, Declared)
    world.backend.device_class = device_class
    assert taken(finish(world, world.service.retry(first.id).id)) == 0


def test_a_retry_whose_lender_is_deleted_takes_over_all_the_same(world: World) -> None:
    """The segments stay until no URL of the borrower is good any more."""
    first = lost(world, submit(world), [0, 1, 2])
    second = world.service.retry(first.id).id
    world.service.delete(first.id)
    assert taken(finish(world, second)) == 3


def test_a_retry_whose_segments_vanished_draws_them(world: World) -> None:
    """Nothing depends on what is borrowed."""
    first = lost(world, submit(world), [0, 1, 2])
    second = world.service.retry(first.id).id
    world.tick()
    world.storage.delete_prefix(layout.all_pieces(layout.prefix_of(first)))
    assert taken(finish(world, second)) == 0

"""Does a cancel end the computing, whatever stage the render is at and however it can be told?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from renderdispatch.messages import JobStatus, Stage
from renderdispatch.testing.modal import CallStatus
from tests.support.mishaps import CONTAINERS, Render, Rig

STOPS_WITHIN = timedelta(seconds=10)


def _held_at(rig: Rig, stage: Stage) -> Render:
    """Return a render that is at this stage and does not leave it by itself."""
    match stage:
        case Stage.DOWNLOADING_AUDIO:
            rig.r2.fail("stall", method="GET", key="audio", after_bytes=1000)
            render = rig.submit(audio=bytes(1_000_000))
        case Stage.RENDERING:
            render = rig.submit(hold=True, silent=True, child=True)
            render.wait_for_renders(1)
        case _:
            rig.r2.fail("stall", method="PUT", key="video.mp4", after_bytes=1000)
            render = rig.submit(size=1_000_000)
    render.wait_for_stage(stage)
    return render


def _neither(_rig: Rig) -> None:
    """Webhook and Modal both work."""


def _modal_ignores_it(rig: Rig) -> None:
    rig.modal.faults.ignore_cancels = 1.0


def _webhook_is_blocked(rig: Rig) -> None:
    rig.gate.shut = lambda _event: True


@pytest.mark.parametrize(
    ("stage", "trouble"),
    [
        (Stage.DOWNLOADING_AUDIO, _modal_ignores_it),
        (Stage.DOWNLOADING_AUDIO, _webhook_is_blocked),
        pytest.param(Stage.DOWNLOADING_AUDIO, _neither, marks=pytest.mark.long),
        (Stage.RENDERING, _modal_ignores_it),
        (Stage.RENDERING, _webhook_is_blocked),
        pytest.param(Stage.RENDERING, _neither, marks=pytest.mark.long),
        (Stage.UPLOADING_VIDEO, _modal_ignores_it),
        pytest.param(Stage.UPLOADING_VIDEO, _webhook_is_blocked, marks=pytest.mark.long),
        (Stage.UPLOADING_VIDEO, _neither),
    ],
)
def test_cancel(rig: Rig, stage: Stage, trouble: Callable[[Rig], None]) -> None:
    """The container lets go of the render within ten seconds, nothing is left of it, and the job knows."""
    render = _held_at(rig, stage)
    call = render.call
    trouble(rig)
    told = datetime.now(UTC)
    rig.service.cancel(render.id)
    job = render.wait_for(JobStatus.CANCELLED)
    ended = rig.modal.wait_for_end(call.id)
    (start,) = ended.starts
    assert start.ended_at is not None
    assert start.ended_at - told < STOPS_WITHIN
    render.assert_stopped()
    assert job.compute_stopped_at is not None
    assert job.compute_stopped_at >= told
    assert len(job.attempts) == 1
    render.wait_for_clean_up()
    assert render.objects == {}


def test_cancel_of_a_queued_call(rig: Rig) -> None:
    """A call that waits for a container never gets one."""
    others = [rig.submit(hold=True) for _ in range(CONTAINERS)]
    for other in others:
        other.wait_for_renders(1)
    render = rig.submit()
    call = render.call
    assert call.status is CallStatus.QUEUED
    rig.service.cancel(render.id)
    job = render.wait_for(JobStatus.CANCELLED)
    assert job.compute_stopped_at is not None
    ended = rig.modal.call(call.id)
    assert (ended.status, ended.starts) == (CallStatus.CANCELLED, ())
    for other in others:
        other.go()
        other.wait_for(JobStatus.COMPLETE)
    assert render.starts == 0


def test_cancel_where_the_calls_answer_is_not_the_end(rig: Rig) -> None:
    """If an older copy of the input ended the call, the job does not claim that the newer copy has stopped."""
    render = rig.submit(hold=True)
    render.wait_for_renders(1)
    rig.modal.redeliver(render.call.id)
    render.wait_for_renders(2)
    rig.modal.wait(lambda: len(render.call.running) == 1)
    rig.gate.shut = lambda _event: True
    rig.service.cancel(render.id)
    job = render.wait_for(JobStatus.CANCELLED)
    assert job.compute_stopped_at is None
    assert len(render.call.running) == 1
    rig.gate.shut = lambda _event: False
    render.assert_stopped()

"""What happens to a job whose render, or whose container, gets into trouble?"""

from __future__ import annotations

from typing import Any

import pytest

from renderdispatch.messages import FaultDomain, JobStatus, Limits, Stage
from renderdispatch.testing.modal import CallStatus
from tests.support.mishaps import Render, Rig

HELPED = pytest.mark.parametrize("parallel", [1, pytest.param(2, marks=pytest.mark.long)])
"""A render alone, and one that a helper draws too."""


def _held(rig: Rig, parallel: int, **params: Any) -> Render:
    """Return a render that has begun, with its helpers."""
    render = rig.submit(hold=True, parallel=parallel, **params)
    render.wait_for_renders(1)
    if parallel > 1:
        render.wait_for_helpers(parallel - 1)
    return render


def test_a_render_that_raises(rig: Rig) -> None:
    """The job fails with what the scene said; it is not tried again, and nothing is left of it."""
    render = rig.submit(mishap="raise")
    job = render.wait_for(JobStatus.FAILED)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("scene.star", "there is no such star")
    assert job.error.fault is FaultDomain.SCENE
    assert (len(job.attempts), render.starts) == (1, 1)
    assert render.rig.modal.wait_for_end(render.call.id).status is CallStatus.SUCCEEDED
    render.assert_stopped()
    assert render.objects == {}


@HELPED
def test_a_container_that_is_killed(rig: Rig, parallel: int) -> None:
    """Modal starts the same input again: the attempt goes on as a new run, and delivers."""
    render = _held(rig, parallel)
    render.wait_for_stage(Stage.RENDERING)
    rig.modal.kill_container(render.call.id)
    render.wait_for_renders(2)
    render.go()
    render.assert_delivered_once()
    (attempt,) = render.job.attempts
    assert len(attempt.runs) == 2
    assert [start.kind for start in render.call.starts] == ["first", "restart"]


def test_out_of_memory(rig: Rig) -> None:
    """A render that runs out of memory is tried again, and delivers when there is enough."""
    render = rig.submit(mishap="memory", times=1)
    render.assert_delivered_once()
    failed, delivered = render.job.attempts
    assert failed.error is not None
    assert (failed.error.code, failed.error.fault) == ("memory.full", FaultDomain.INFRASTRUCTURE)
    assert failed.token != delivered.token


def test_out_of_memory_again_and_again(rig: Rig) -> None:
    """A render process that the kernel kills fails the job after as many attempts as it has, and says how it ended."""
    render = rig.submit(mishap="killed", limits=Limits(max_attempts=2))
    job = render.wait_for(JobStatus.FAILED)
    assert job.error is not None
    assert job.error.code == "renderer.died"
    assert job.error.message == "the render process was killed by SIGKILL"
    assert (len(job.attempts), render.starts) == (2, 2)
    render.assert_stopped()
    assert render.objects == {}


@HELPED
def test_a_timeout(rig: Rig, parallel: int) -> None:
    """A render that Modal ends at its timeout fails the job for good; its process is gone."""
    render = _held(rig, parallel, child=True)
    rig.modal.timeout(render.call.id)
    assert rig.modal.wait_for_end(render.call.id).status is CallStatus.TIMED_OUT
    render.assert_stopped()
    job = render.reconcile()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.fault) == ("modal.timeout", FaultDomain.DEADLINE)
    assert (len(job.attempts), render.starts) == (1, 1)


@HELPED
def test_a_preemption(rig: Rig, parallel: int) -> None:
    """A render whose container is taken away starts again in another one, in the same attempt, and delivers."""
    render = _held(rig, parallel, child=True)
    rig.modal.preempt(render.call.id)
    render.wait_for_renders(2)
    render.go()
    render.assert_delivered_once()
    (attempt,) = render.job.attempts
    assert len(attempt.runs) == 2
    assert [start.kind for start in render.call.starts] == ["first", "restart"]


def test_a_preemption_after_the_video(rig: Rig) -> None:
    """A container that is taken away between video and result object has delivered the video: that one counts."""
    rig.r2.fail("stall", method="PUT", key="result.json")
    render = rig.submit()
    render.wait_for_video()
    (video,) = (key for key in render.objects if key.endswith("video.mp4"))
    first = rig.storage.stat(video)
    rig.modal.preempt(render.call.id)
    render.assert_delivered_once()
    artifact = render.job.artifact
    assert artifact is not None
    assert (artifact.key, artifact.etag) == (video, first.etag)
    assert (len(render.job.attempts), render.starts) == (1, 2)


def test_a_preemption_after_the_result(rig: Rig) -> None:
    """A container that is taken away before it could say that it delivered renders nothing when it starts again."""
    rig.gate.shut = lambda event: event.type == "completed"
    render = rig.submit()
    render.wait_for_objects(2)
    rig.modal.preempt(render.call.id)
    rig.modal.wait_for_start(render.call.id, number=2)
    rig.gate.shut = lambda _event: False
    render.assert_delivered_once()
    assert (len(render.job.attempts), render.starts) == (1, 1)


@HELPED
def test_a_second_copy_of_the_input(rig: Rig, parallel: int) -> None:
    """Of two containers with the same input the newer one delivers; the older one is told to stop."""
    render = _held(rig, parallel)
    rig.modal.redeliver(render.call.id)
    render.wait_for_renders(2)
    rig.modal.wait(lambda: len(render.call.running) == 1)
    (goes_on,) = render.call.running
    assert goes_on.kind == "redelivery"
    job = render.reconcile()
    assert (job.stage, len(job.attempts)) == (Stage.RENDERING, 1)
    render.go()
    render.assert_delivered_once()
    (attempt,) = render.job.attempts
    assert len(attempt.runs) == 2


def test_two_copies_that_nobody_stops(rig: Rig) -> None:
    """When no report arrives, both copies render; the job takes the first video and the first result object."""
    rig.gate.shut = lambda event: event.type != "checked-in"
    render = rig.submit(hold=True)
    render.wait_for_renders(1)
    rig.modal.redeliver(render.call.id)
    render.wait_for_renders(2)
    render.go()
    render.wait_for_objects(2)
    render.reconcile()
    rig.gate.shut = lambda _event: False
    render.assert_delivered_once()
    assert (len(render.job.attempts), render.starts) == (1, 2)

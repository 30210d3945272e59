"""Does a job end correctly, and how soon, when no webhook arrives?

A job can end in three ways: by webhook; by the call's result, which Modal keeps for a week; by the result object in the
bucket. The reconciler reads the object first, so tests of the call's result take the object away.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from renderdispatch.jobs import CHECK_INTERVAL
from renderdispatch.messages import JobStatus
from renderdispatch.runner import Pace
from renderdispatch.testing.modal import CallStatus, ModalCall
from tests.support.mishaps import CONTAINERS, Render, Rig

SLACK: Final = timedelta(seconds=20)
"""Rounds of reconciling are two seconds apart; the rest is for slow machines."""


def _lose_every_webhook(rig: Rig) -> None:
    rig.gate.swallow = lambda _event: True


def _end_with_result_hidden(render: Render) -> ModalCall:
    """Let a held render go on to its end while its result object cannot be read; return the call then."""
    render.wait_for_renders(1)
    render.rig.r2.fail("503", method="GET", key="result.json", times=1000)
    render.go()
    return render.rig.modal.wait_for_end(render.call.id)


def _take_result_away(render: Render) -> None:
    render.wait_for_objects(2)
    (result,) = (key for key in render.objects if key.endswith("result.json"))
    render.rig.storage.delete(result)
    render.rig.r2.forget()


def test_modals_answer(rig: Rig) -> None:
    """The job completes from the call's result alone."""
    _lose_every_webhook(rig)
    render = rig.submit(hold=True)
    assert _end_with_result_hidden(render).status is CallStatus.SUCCEEDED
    assert render.job.status is JobStatus.PROCESSING
    _take_result_away(render)
    job = render.reconcile()
    assert job.status is JobStatus.COMPLETE
    assert job.artifact is not None
    assert rig.storage.stat(job.artifact.key).size == job.artifact.bytes
    assert (len(job.attempts), render.starts) == (1, 1)
    assert not rig.gate.events


def test_the_result_object_alone(rig: Rig) -> None:
    """The job completes from the result object when Modal has forgotten the call's result."""
    _lose_every_webhook(rig)
    rig.modal.faults.expired_results = 1.0
    render = rig.submit()
    assert rig.modal.wait_for_end(render.call.id).expired
    render.reconcile()
    render.assert_delivered_once()
    assert (len(render.job.attempts), render.starts) == (1, 1)
    assert not rig.gate.events


def test_a_failure(rig: Rig) -> None:
    """A failure that no webhook reported is found in the call's result, with the scene's own message."""
    _lose_every_webhook(rig)
    render = rig.submit(mishap="raise")
    rig.modal.wait_for_end(render.call.id)
    job = render.reconcile()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("scene.star", "there is no such star")


def test_neither_answer_nor_result(rig: Rig) -> None:
    """A call whose result Modal forgot, and that left no result object, is made again."""
    _lose_every_webhook(rig)
    rig.modal.faults.expired_results = 1.0
    render = rig.submit(hold=True)
    _end_with_result_hidden(render)
    _take_result_away(render)
    job = render.reconcile()
    assert job.attempts[0].error is not None
    assert job.attempts[0].error.code == "backend.call-missing"
    rig.modal.faults.clear()
    rig.gate.swallow = lambda _event: False
    render.assert_delivered_once()
    assert (len(render.job.attempts), render.starts) == (2, 2)


# --- how soon


def _by_webhook(render: Render) -> None:
    """Nothing is in the way."""


def _by_answer(render: Render) -> None:
    _take_result_away(render)


def _by_result(render: Render) -> None:
    render.rig.modal.faults.expired_results = 1.0


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("way", "blocked", "within"),
    [
        (_by_webhook, False, timedelta()),
        # the run tries to report for so long before it returns
        (_by_answer, True, timedelta(seconds=Pace().final_s) + CHECK_INTERVAL),
        (_by_result, True, CHECK_INTERVAL),
    ],
)
def test_how_soon(rig: Rig, way: Callable[[Render], None], blocked: bool, within: timedelta) -> None:
    """From the end of the render to `complete`: at once by webhook, otherwise at the reconciler's next check."""
    rig.gate.shut = lambda _event: blocked
    renders = [rig.submit(hold=True, silent=True) for _ in range(CONTAINERS)]
    took = []
    for number, render in enumerate(renders):
        age = timedelta(seconds=20 + 7 * number)  # a silent job of this age is checked every 15 s; the ages differ
        render.wait_for_renders(1)
        go_at = render.job.created_at + age
        rig.modal.wait(lambda go_at=go_at: datetime.now(UTC) > go_at, timeout=60)  # type: ignore[misc]
        render.go()
        way(render)
    for render in renders:
        job = render.wait_for(JobStatus.COMPLETE)
        assert job.ended_at is not None
        took.append(job.ended_at - render.rendered_at)
        assert len(job.attempts) == 1
    seconds = [one.total_seconds() for one in took]
    name = way.__name__.removeprefix("_")
    print(
        f"\nend of the render to complete, {name}: median {statistics.median(seconds):.1f} s, max {max(seconds):.1f} s"
    )
    assert max(took) < within + SLACK

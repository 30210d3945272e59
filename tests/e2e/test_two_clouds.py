"""Does a job with two backends, a loopback Modal and a render service behind HTTP, end once, whatever goes wrong on both?"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from renderdispatch import Failover, RenderService
from renderdispatch.backends.http import KeyedHttpBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.errors import BackendError
from renderdispatch.failover import MOVES_ON
from renderdispatch.jobs import Job
from renderdispatch.messages import CLOCK_SLACK, JobStatus, Limits, RenderOrder, Stage
from renderdispatch.protocols import BackendCall, CallStatus, OnEvent, RenderBackend
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually, registered_scenes
from tests.support.http_services import TOKEN, rendering
from tests.support.mishaps import Render, Rig
from tests.support.mishaps_scenes import TROUBLE, Trouble

LIMITS = Limits(start_timeout=timedelta(minutes=1), total_timeout=timedelta(minutes=30), max_attempts=8)
SOON = CLOCK_SLACK + timedelta(seconds=10)


class Box(LocalGpuBackend):
    """A GPU machine of one slot, that keeps its calls. Every third start is refused, as if its slot were taken."""

    def __init__(self) -> None:
        super().__init__(slots=1)
        self.calls: list[tuple[str, BackendCall]] = []
        self.moody = False
        self._numbers = itertools.count(1)

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        if self.moody and next(self._numbers) % 3 == 0:
            raise BackendError("all slots are taken", retryable=True, code="backend.busy")
        call = super().start(order, on_event=on_event)
        self.calls.append((order.job_id, call))
        return call


class TwoClouds:
    """Services that render on both; their clock can be put forward, as the far sides' clocks are not."""

    def __init__(self, rig: Rig, box: Box, url: str, stack: ExitStack) -> None:
        self.rig = rig
        self.box = box
        self._url = url
        self._stack = stack
        self._ahead = timedelta(0)

    def open(self, failover: Failover, *, app: str = "renderdispatch", url: str | None = None) -> None:
        """Have the rig's renders be those of a service with this policy, in place of its own service."""
        rig, stack = self.rig, self._stack
        hooks = rig.service._engine.parts.webhook_url
        rig.service.close()
        rig.store = stack.enter_context(closing(SqlJobStore(rig.folder / "two.db", clock=self._now)))
        backends: dict[str, RenderBackend] = {
            "modal": stack.enter_context(closing(ModalBackend(app))),
            "box": stack.enter_context(closing(KeyedHttpBackend(url or self._url, token=TOKEN))),
        }
        service = RenderService(
            rig.store, rig.storage, backends, failover=failover, secrets=rig.secret, webhook_url=hooks
        )
        rig.service = rig.gate.service = stack.enter_context(service)

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def pass_start_deadline(self) -> None:
        """Put the service's clock forward; runs that are told to stop have had time to hear it too."""
        self._ahead += LIMITS.start_timeout + 2 * CLOCK_SLACK

    def wait_for_all(self, renders: list[Render]) -> None:
        """Wait until all are complete. Time passes for the service: it is minutes until a silent run counts as lost."""
        begun, steps = time.monotonic(), 0

        def complete() -> bool:
            nonlocal steps
            if time.monotonic() > begun + 15 * (steps + 1):
                self.pass_start_deadline()
                steps += 1
            return all(render.job.ended for render in renders)

        eventually(complete)
        assert {render.job.status for render in renders} == {JobStatus.COMPLETE}

    def assert_one_winner(self, render: Render, *backends: str) -> None:
        """Assert that one attempt delivered, that nothing else of the job computes, and where the attempts ran."""
        render.assert_delivered_once()
        job = render.job
        assert job.artifact is not None and job.artifact.key == job.attempts[-1].video_key
        assert not backends or [attempt.backend for attempt in job.attempts] == list(backends)
        for call in render.calls:
            for start in call.starts:
                assert start.ended_at is not None and start.ended_at <= job.finish_by + SOON
        mine = [call for job_id, call in self.box.calls if job_id == render.id]
        eventually(lambda: all(self.box.poll(call).status is CallStatus.ENDED for call in mine))
        render.wait_for_clean_up()
        assert not render.job.holdings()


@pytest.fixture
def two(rig: Rig, tmp_path: Path) -> Iterator[TwoClouds]:
    """Both clouds, with nothing wrong; the test opens the service."""
    with ExitStack() as stack:
        stack.enter_context(registered_scenes(tmp_path / "scenes", {TROUBLE: f"{Trouble.__module__}:Trouble"}))
        box = stack.enter_context(closing(Box()))
        url = stack.enter_context(rendering(box))
        inner = stack.enter_context(ExitStack())
        yield TwoClouds(rig, box, url, inner)
        rig.clean_up()


def _runs_on(backend: str) -> Callable[[Job], bool]:
    def condition(job: Job) -> bool:
        return job.attempt is not None and job.attempt.backend == backend and job.stage is Stage.RENDERING

    return condition


@pytest.mark.parametrize(("first", "second"), [("modal", "box"), ("box", "modal")])
def test_a_start_of_which_nothing_is_heard(two: TwoClouds, first: str, second: str) -> None:
    """The silent render is told to stop, again if Modal ignores that once, and the other one delivers."""
    two.open(Failover(first, second))
    passed = threading.Event()
    two.rig.gate.swallow = lambda _event: not passed.is_set()
    two.rig.modal.faults.force("ignore_cancels", 1)
    render = two.rig.submit(hold=True, limits=LIMITS)
    render.wait_for_renders(1)
    render.wait_for_call()
    two.pass_start_deadline()
    render.wait(lambda job: job.attempts[0].unwanted, "given up")
    passed.set()
    render.wait(_runs_on(second), f"rendered on {second}")
    render.go()
    two.assert_one_winner(render, first, second)
    assert render.job.attempts[0].error is not None
    assert render.job.attempts[0].error.code == "deadline.start"


def test_a_backend_that_is_not_there(two: TwoClouds) -> None:
    """An app that was never deployed refuses for good, and the render service delivers."""
    two.open(Failover("modal", "box"), app="never-deployed")
    render = two.rig.submit(limits=LIMITS)
    two.assert_one_winner(render, "modal", "box")
    assert render.job.attempts[0].error is not None
    assert render.job.attempts[0].error.code == "modal.not-deployed"
    assert not render.calls


def test_a_render_service_that_is_down(two: TwoClouds) -> None:
    """Nothing listens at its port, and Modal delivers."""
    two.open(Failover("box", "modal"), url="http://127.0.0.1:9/renders")
    render = two.rig.submit(limits=LIMITS)
    two.assert_one_winner(render, "box", "modal")


def test_a_render_service_that_is_full(two: TwoClouds) -> None:
    """The second job finds its only slot taken, and Modal renders it meanwhile."""
    two.open(Failover("box", "modal"))
    first = two.rig.submit(hold=True, limits=LIMITS)
    first.wait(_runs_on("box"), "rendered on the box")
    second = two.rig.submit(limits=LIMITS)
    two.assert_one_winner(second, "box", "modal")
    first.go()
    two.assert_one_winner(first, "box")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_faults_on_both(two: TwoClouds, rounds: int) -> None:
    """Each job has one winner, whatever dies, is started twice, is refused, or does not hear that it is to stop."""
    on = [*MOVES_ON, "renderer.died", "modal.worker-lost", "modal.ended"]
    two.open(Failover("modal", "box", on=on))
    two.box.moody = True
    faults = two.rig.modal.faults
    faults.lose_spawn_answers = faults.duplicate_deliveries = faults.crash = faults.ignore_cancels = 0.3
    renders: list[Render] = []
    for _ in range(rounds):
        begun = [two.rig.submit(mishap="killed", times=1, limits=LIMITS) for _ in range(6)]
        two.wait_for_all(begun)
        renders += begun
    faults.clear()
    two.pass_start_deadline()
    for render in renders:
        two.assert_one_winner(render)
    assert {attempt.backend for render in renders for attempt in render.job.attempts} == {"modal", "box"}

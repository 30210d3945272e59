"""Do helpers on Modal stop, and is what an attempt drew there taken over by the next one?

The scene is `tests.support.sleepy_scene`, which is drawn for real, and leaves a mark for each frame.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from renderdispatch import Failover, RenderService
from renderdispatch.backends.http import KeyedHttpBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.failover import MOVES_ON
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import FaultDomain, JobStatus, Limits, Output
from renderdispatch.plumbing import pieces
from renderdispatch.protocols import RenderBackend
from renderdispatch.render.device import declared_class
from renderdispatch.testing import eventually, registered_scenes
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from tests.support import ROOT
from tests.support.crowds import write_speech
from tests.support.http_services import TOKEN, rendering
from tests.support.mishaps import Render, Rig, open_rig
from tests.support.sleepy_scene import SLEEPY, painted, painters, processes

STOPS_WITHIN = timedelta(seconds=10)
SMALL = Output(width=64, height=36, fps=Fraction(6))
SEGMENT = 24
"""Frames of a segment."""
SEGMENTS = 17
"""More than a minute: a shorter video that one run draws is not kept."""
HALF = SEGMENTS // 2


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy seconds of sound."""
    return write_speech(tmp_path_factory.mktemp("speech") / "song.wav", seconds=70)


@pytest.fixture(scope="module")
def wide_modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """A loopback Modal with room for a run and sixteen helpers, whose containers know the scene."""
    folder = tmp_path_factory.mktemp("scenes")
    with registered_scenes(folder, {SLEEPY: "tests.support.sleepy_scene:sleepy"}):
        path = os.pathsep.join([str(folder), str(ROOT)])
        with LoopbackModal(max_containers=18, container_env={"PYTHONPATH": path}) as server:
            server.deploy("renderdispatch.modal_app")
            yield server


@define
class Crew:
    """A rig whose renders have helpers."""

    rig: Rig
    song: Path

    def submit(self, name: str, **options: Any) -> Render:
        """Submit a video; ``folder / name`` gets its marks."""
        folder = self.rig.folder / name
        folder.mkdir(exist_ok=True)
        params = {"folder": str(folder), "frame_s": options.pop("frame_s", 0.0)}
        more = {"duration": SEGMENTS * SEGMENT / 6, "output": SMALL, **options}
        handle = self.rig.service.submit(self.song, scene=SLEEPY, params=params, **more)
        return self.take(handle.id, folder)

    def take(self, job_id: str, folder: Path) -> Render:
        render = Render(self.rig, job_id, folder)
        self.rig.renders.append(render)
        return render

    def helped(self, helpers: int) -> Render:
        """Return a render that goes on for minutes, and that so many helpers draw too."""
        render = self.submit("helped", frame_s=1.0, parallel=helpers + 1)
        self.wait_for_painters(render, helpers + 1)
        return render

    def wait_for_painters(self, render: Render, number: int) -> None:
        """Wait until so many processes have drawn."""
        self.rig.modal.wait(lambda: len(painters(render.folder)) == number, timeout=180)

    def standing(self, render: Render) -> set[int]:
        """Return the segments that are kept of the newest attempt."""
        prefix = render.job.attempts[-1].pieces
        assert prefix is not None
        keys = [info.key.removeprefix(prefix) for info in self.rig.storage.list(prefix)]
        return {index for key in keys if (index := pieces.index_of(key)) is not None}


@pytest.fixture
def crew(
    wide_modal: LoopbackModal, r2: LocalR2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speech: Path
) -> Iterator[Crew]:
    with open_rig(wide_modal, r2, tmp_path, monkeypatch) as rig:
        yield Crew(rig, speech)


def _cancel(render: Render) -> Job:
    """Cancel a job; check that everything of it stops in time, and return it."""
    told = datetime.now(UTC)
    render.rig.service.cancel(render.id)
    eventually(lambda: not any(call.running for call in render.calls))
    took = max(start.ended_at for call in render.calls for start in call.starts if start.ended_at is not None) - told
    print(f"stopped after {took.total_seconds():.1f} s")
    assert took < STOPS_WITHIN
    render.assert_stopped()
    return render.wait_for(JobStatus.CANCELLED)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("helpers", "webhook"),
    [
        pytest.param(3, "works", marks=pytest.mark.long),
        pytest.param(16, "works", marks=pytest.mark.soak),
        pytest.param(16, "is lost", marks=pytest.mark.soak),
    ],
)
def test_a_cancel_stops_all_helpers(crew: Crew, helpers: int, webhook: str) -> None:
    """All have stopped within ten seconds, and the job says so, also if no report ever arrived."""
    if webhook == "is lost":
        crew.rig.gate.shut = lambda _event: True
    render = crew.helped(helpers)
    job = _cancel(render)
    assert len(render.calls) == helpers + 1
    assert job.compute_stopped_at is not None
    assert [helper.state for helper in job.attempts[-1].helpers] == [HelperState.STOPPED] * helpers
    render.wait_for_clean_up()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_helpers_whose_start_was_not_answered(crew: Crew) -> None:
    """The object in storage tells them to stop; the job claims nothing of them."""
    render = crew.submit("unknown", frame_s=1.0, parallel=4)
    render.wait_for_call()
    crew.rig.modal.faults.lose_spawn_answers = 1.0
    crew.wait_for_painters(render, 4)
    crew.rig.service.cancel(render.id)
    render.assert_stopped()
    job = render.wait_for(JobStatus.CANCELLED)
    assert {helper.call_id for helper in job.attempts[-1].helpers} == {None}
    assert job.compute_stopped_at is None


class TwoClasses:
    """A service with Modal and a machine behind HTTP, which draw the same bytes, as both declare."""

    def __init__(self, crew: Crew, url: str, stack: ExitStack) -> None:
        self.crew, self._url, self._stack = crew, url, stack

    def open(self, failover: Failover | None = None, *, moved: bool = False) -> None:
        """Have the rig's renders be those of a service with this policy, in place of its own service.

        Args:
            failover: The policy.
            moved: Whether the machine has taken Modal's place.
        """
        rig, same = self.crew.rig, declared_class()
        assert same is not None
        hooks = rig.service._engine.parts.webhook_url
        rig.service.close()
        modal: RenderBackend = self._stack.enter_context(closing(ModalBackend(device_class=same)))
        box: RenderBackend = self._stack.enter_context(
            closing(KeyedHttpBackend(self._url, token=TOKEN, device_class=same))
        )
        backends = {"modal": box if moved else modal, "box": box}
        service = RenderService(
            rig.store, rig.storage, backends, failover=failover, secrets=rig.secret, webhook_url=hooks
        )
        rig.service = rig.gate.service = self._stack.enter_context(service)

    def undisturbed(self) -> str:
        """Return the hash of the video that nothing happens to."""
        render = self.crew.submit("undisturbed", backend="box")
        artifact = render.wait_for(JobStatus.COMPLETE).artifact
        assert artifact is not None and artifact.sha256 is not None
        return artifact.sha256


@pytest.fixture
def two(crew: Crew, tmp_path: Path) -> Iterator[TwoClasses]:
    with ExitStack() as stack:
        box = stack.enter_context(closing(LocalGpuBackend(slots=2, gpus=(), renderers={SLEEPY: f"{_SCENES}:sleepy"})))
        url = stack.enter_context(rendering(box))
        yield TwoClasses(crew, url, stack)
        crew.rig.clean_up()


_SCENES = "tests.support.sleepy_scene"


def _held(crew: Crew, name: str, frames: int, **options: Any) -> Render:
    """Submit a video of which no more than so many frames are drawn until its hold is gone."""
    folder = crew.rig.folder / name
    folder.mkdir()
    (folder / "hold").write_text(str(frames))
    return crew.submit(name, **options)


def _half_drawn(crew: Crew, name: str, **options: Any) -> Render:
    """Return a render on Modal that has kept half of its segments, and waits."""
    render = _held(crew, name, HALF * SEGMENT, **options)
    eventually(lambda: render.job.attempts and render.job.attempts[-1].pieces)
    eventually(lambda: crew.standing(render) == set(range(HALF)))
    return render


def _kill(found: set[int]) -> None:
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _assert_rest_was_drawn(two: TwoClasses, render: Render, folder: Path) -> None:
    """Assert that half was taken over, that no frame was drawn twice, and that the file is the right one."""
    job = render.wait_for(JobStatus.COMPLETE)
    assert job.artifact is not None and job.artifact.key == job.attempts[-1].video_key
    assert job.artifact.segments_taken == HALF
    assert painted(folder) == dict.fromkeys(range(SEGMENTS * SEGMENT), 1)
    assert job.artifact.sha256 == two.undisturbed()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "how", [pytest.param("the process", marks=pytest.mark.long), pytest.param("the call", marks=pytest.mark.soak)]
)
def test_an_attempt_on_another_backend_draws_the_rest(two: TwoClasses, how: str) -> None:
    """Half of the video was drawn on Modal; the machine of the same class takes it over, and the file is the same."""
    crew = two.crew
    two.open(Failover("modal", "box", on=[*MOVES_ON, "renderer.died", "modal.worker-lost", "modal.ended"]))
    render = _half_drawn(crew, "moved")
    if how == "the process":
        _kill(processes(render.folder))
    else:
        crew.rig.modal.lose(render.call.id)
        crew.rig.modal.kill_containers()
    (render.folder / "hold").unlink()
    _assert_rest_was_drawn(two, render, render.folder)
    assert [attempt.backend for attempt in render.job.attempts] == ["modal", "box"]


@pytest.mark.timeout(400)
@pytest.mark.long
def test_a_retry_on_another_backend_draws_the_rest(two: TwoClasses) -> None:
    """The job failed on Modal after half of its video; its retry takes that over on the machine of the same class."""
    crew = two.crew
    two.open()
    render = _half_drawn(crew, "failed", backend="modal", limits=Limits(max_attempts=1))

    def killed_to_the_end() -> bool:
        _kill(processes(render.folder))
        return render.job.ended

    eventually(killed_to_the_end)
    assert len(render.job.attempts) > 1, "an attempt that drew something does not count"
    error = render.wait_for(JobStatus.FAILED).error
    assert error is not None and error.fault is FaultDomain.INFRASTRUCTURE
    (render.folder / "hold").unlink()
    two.open(moved=True)
    again = crew.take(crew.rig.service.retry(render.id).id, render.folder)
    _assert_rest_was_drawn(two, again, render.folder)

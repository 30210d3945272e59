"""Does a helper draw what is missing, end by itself, and never fail the video?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.messages import (
    CLOCK_SLACK,
    Completed,
    Failed,
    Helped,
    HelperOrder,
    Pieces,
    Progressed,
    RenderOrder,
)
from renderdispatch.plumbing.local_urls import local_path
from renderdispatch.plumbing.pieces import segment_name
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import SupportsSegments
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, SupervisedRender, run_order
from renderdispatch.runner.help import HelperIO, run_helper
from renderdispatch.runner.render import RenderHost
from renderdispatch.runner.run import RunLeft
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import FakeRenderer, eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder
from renderdispatch.testing.renderers import (
    FAKE_SEGMENTS,
    FakeSegmentsRenderer,
    fake_digest,
    make_helper_order,
    make_plan,
    make_segment,
)

PREFIX = "job/pieces/x/"
PACE = Pace(progress_s=0.02, heartbeat_s=0.1, check_in_s=0.3, final_s=0.5, backoff_s=0.01)
VIDEO = "".join(f"segment {index} of 6\n" for index in range(6))


class Video:
    """One video of six segments, whose pieces are kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.storage = FsspecStorage(folder)
        self._folder = folder / PREFIX

    def lead(self, *, segments: int = 6, **params: Any) -> RenderOrder:
        """Return the order of a run."""
        return make_order(
            self.storage,
            scene=FAKE_SEGMENTS,
            params={"segments": segments, **params},
            pieces=Pieces(slots=16, folder=str(self._folder)),
            parallel=3,
        )

    def helper(self, *, share: int = 1, changes: dict[str, Any] | None = None, **params: Any) -> HelperOrder:
        """Return the order of a helper."""
        return make_helper_order(self.lead(**params), self.storage, share=share, **(changes or {}))

    def plan(self) -> None:
        """Keep the plan, as a lead does."""
        self.storage.put(f"{PREFIX}plan.0", make_plan(fake_digest(6)))

    def kept(self) -> list[str]:
        """Return the names of the segments that are kept."""
        names = (info.key.removeprefix(PREFIX) for info in self.storage.list(PREFIX))
        return sorted(name for name in names if not name.startswith("plan"))

    def text(self, order: RenderOrder) -> str:
        """Return the finished video."""
        with self.storage.open(order.video.key) as file:
            return file.read().decode()


@pytest.fixture
def video(tmp_path: Path) -> Iterator[Video]:
    with registered_scenes(tmp_path / "scenes"):
        yield Video(tmp_path / "objects")


def write(url: str) -> None:
    """Write the object that a ``file:`` URL reads."""
    path = local_path(url)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def in_process() -> InProcessRender:
    return InProcessRender()


def lead(order: RenderOrder, *, render: RenderHost | None = None, heard: Recorder | None = None) -> Completed | Failed:
    """Carry out the order of a run."""
    return run_order(order, io=RunnerIO(send=heard or Recorder(), render=render or in_process(), pace=PACE))


HOSTS = pytest.mark.parametrize("host", [in_process, SupervisedRender], ids=["in process", "supervised"])


def test_a_helper_draws_what_is_missing(video: Video) -> None:
    """It commits what nobody has drawn, and says how many."""
    video.plan()
    video.storage.put(PREFIX + segment_name(4, 0), make_segment(fake_digest(6), 4, b"segment 4 of 6\n"))
    helped = run_helper(video.helper(), io=HelperIO(render=in_process()))
    assert helped == Helped(segments=5, twice=0, reason="all segments are drawn")
    assert video.kept() == [segment_name(index, 0) for index in range(6)]


@HOSTS
def test_a_lead_takes_over_what_helpers_drew(video: Video, host: Callable[[], RenderHost]) -> None:
    """The video has all segments, whoever drew them, and the artifact says how many were taken over."""
    video.plan()
    run_helper(video.helper(), io=HelperIO(render=host()))
    order = video.lead()
    outcome = lead(order, render=host())
    assert isinstance(outcome, Completed)
    assert video.text(order) == VIDEO
    assert (outcome.artifact.segments, outcome.artifact.segments_taken, outcome.artifact.segments_twice) == (6, 6, 0)


def test_lead_and_helpers_draw_one_video(video: Video) -> None:
    """While a lead waits for a segment, a helper draws it, in a process of its own."""
    order, outcomes = video.lead(wait_at=3), list[Completed | Failed]()
    thread = threading.Thread(target=lambda: outcomes.append(lead(order, render=SupervisedRender())))
    thread.start()
    eventually(lambda: segment_name(2, 0) in video.kept())
    helped = run_helper(video.helper(), io=HelperIO(render=SupervisedRender()))
    thread.join(30)
    assert helped.segments >= 1
    assert isinstance(outcomes[0], Completed)
    assert video.text(order) == VIDEO


def test_a_killed_render_loses_no_segment(video: Video) -> None:
    """After a kill in the midst, the next run takes over what was drawn, and draws the rest."""
    killed = lead(video.lead(die_at=4), render=SupervisedRender())
    assert isinstance(killed, Failed) and killed.error.code == "renderer.died"
    assert len(video.kept()) == 4
    order = video.lead()
    outcome = lead(order, render=SupervisedRender())
    assert isinstance(outcome, Completed) and outcome.artifact.segments_taken == 4
    assert video.text(order) == VIDEO


def test_a_helper_that_is_killed_says_what_it_drew(video: Video) -> None:
    """The segments that it committed before its render process died are counted."""
    video.plan()
    helped = run_helper(video.helper(die_at=2), io=HelperIO(render=SupervisedRender()))
    assert helped.segments == 3  # 1 and 4 are its share, 0 is the first that is missing
    assert "SIGKILL" in helped.reason


@pytest.mark.parametrize("which", ["stop", "result"])
def test_a_helper_ends_when_its_attempt_does(video: Video, which: str) -> None:
    """Once the stop object or the result exists, it draws no more."""
    video.plan()
    order = video.helper(segment_s=0.3)
    ended: list[Helped] = []
    thread = threading.Thread(target=lambda: ended.append(run_helper(order, io=HelperIO(render=in_process()))))
    thread.start()
    eventually(video.kept)
    write(getattr(order, which))
    thread.join(30)
    why = {"stop": "the attempt has ended", "result": "the video is complete"}[which]
    assert ended[0].reason == f"told to stop: {why}"
    assert ended[0].segments == len(video.kept()) < 6


def test_a_helper_looks_without_drawing_too(video: Video) -> None:
    """It ends while a long segment is drawn, at the next of its regular looks."""
    video.plan()
    order = video.helper(segment_s=300)
    ended: list[Helped] = []
    io = HelperIO(render=SupervisedRender(), look_s=0.1)
    thread = threading.Thread(target=lambda: ended.append(run_helper(order, io=io)), daemon=True)
    thread.start()
    write(order.stop)
    thread.join(60)
    assert [helped.segments for helped in ended] == [0]


@pytest.mark.parametrize("field", ["start_by", "finish_by"])
def test_a_helper_that_comes_too_late_draws_nothing(video: Video, field: str) -> None:
    """Past a deadline it ends at once."""
    video.plan()
    late = {field: datetime.now(UTC) - timedelta(hours=1)}
    helped = run_helper(video.helper(changes=late), io=HelperIO(render=in_process()))
    assert (helped.segments, helped.reason) == (0, "it started past its deadline")
    assert video.kept() == []


def test_a_helper_ends_at_its_deadline(video: Video) -> None:
    """A render process that is still drawing is ended then."""
    video.plan()
    clock = datetime.now(UTC) + timedelta(hours=1) - timedelta(seconds=0.5)
    order = video.helper(segment_s=300, changes={"start_by": datetime.now(UTC) + timedelta(hours=2)})
    io = HelperIO(render=SupervisedRender(), now=lambda: clock + CLOCK_SLACK)
    began = time.monotonic()
    assert run_helper(order, io=io).reason == "told to stop: its time is up"
    assert time.monotonic() - began < 60


def test_a_helper_of_another_plan_draws_nothing(video: Video) -> None:
    """If the plan that is kept is not its own, it ends."""
    video.plan()
    helped = run_helper(video.helper(segments=7), io=HelperIO(render=in_process()))
    assert (helped.segments, helped.reason) == (0, "the plan is not ours")


def test_a_helper_of_a_scene_in_one_piece_draws_nothing(video: Video) -> None:
    """A scene whose renderer knows no segments has nothing to help with."""
    helped = run_helper(video.helper(changes={"scene": "fake"}), io=HelperIO(render=in_process()))
    assert helped == Helped(reason="scene 'fake' is drawn in one piece")


@HOSTS
def test_a_helper_never_raises(video: Video, host: Callable[[], RenderHost]) -> None:
    """What goes wrong is its reason."""
    helped = run_helper(video.helper(changes={"scene": "no-such-scene"}), io=HelperIO(render=host()))
    assert helped.segments == 0
    assert "no-such-scene" in helped.reason


def test_a_helper_whose_platform_goes_away_passes_that_on(video: Video) -> None:
    """What is not an `Exception` passes, after the temporary files are gone."""
    video.plan()
    stop = Stop(error=RunLeft)
    stop.request("preempted")
    with pytest.raises(RunLeft):
        run_helper(video.helper(), io=HelperIO(render=in_process(), stop=stop))


# --- the lead


def test_progress_shows_the_segments(video: Video) -> None:
    """Reports say how many segments stand, who drew them, and that helpers may begin."""
    heard = Recorder()
    assert isinstance(lead(video.lead(segment_s=0.1), heard=heard, render=SupervisedRender()), Completed)
    told = [event for event in heard.events if isinstance(event, Progressed) and event.segments is not None]
    assert all(event.planned for event in told)
    counts = [event.segments for event in told if event.segments is not None]
    assert len(counts) > 2
    assert counts == sorted(counts, key=lambda each: each.standing)
    assert counts[-1].total == 6 and counts[-1].own == counts[-1].standing >= 5


def test_what_is_not_kept_is_not_told(video: Video) -> None:
    """Without pieces nothing is kept, and no report speaks of segments."""
    heard = Recorder()
    order = video.lead().model_copy(update={"pieces": None, "parallel": 1})
    assert isinstance(lead(order, heard=heard), Completed)
    assert video.kept() == []
    assert not [event for event in heard.events if isinstance(event, Progressed) and (event.segments or event.planned)]


def test_helpers_that_cannot_help_are_a_warning(video: Video) -> None:
    """A scene without segments renders as ever, and the result says that helpers were ignored."""
    outcome = lead(video.lead().model_copy(update={"scene": "fake"}), render=in_process())
    assert isinstance(outcome, Completed)
    assert [warning.code for warning in outcome.artifact.warnings] == ["parallel.ignored"]
    alone = lead(make_order(video.storage, scene="fake"), render=in_process())
    assert isinstance(alone, Completed) and not alone.artifact.warnings


def test_the_render_process_sees_no_url(video: Video, tmp_path: Path) -> None:
    """Its order names neither the pieces, nor the stop object, nor the result, nor a token."""
    seen: list[HelperOrder] = []

    class Watching(FakeSegmentsRenderer):
        def help(self, order: HelperOrder, *args: Any, **options: Any) -> Helped:
            seen.append(order)
            return super().help(order, *args, **options)

    order = video.helper()
    run_helper(order, io=HelperIO(render=InProcessRender({FAKE_SEGMENTS: Watching()})))
    told = seen[0].model_dump_json()
    assert order.token not in told
    assert str(tmp_path / "objects") not in told


def test_the_fakes_are_what_they_seem() -> None:
    """One fake renders in segments, the other does not."""
    assert isinstance(FakeSegmentsRenderer(), SupportsSegments)
    assert not isinstance(FakeRenderer(), SupportsSegments)

"""Does a run always answer with an outcome, and with the right one?"""

from __future__ import annotations

import errno
import io
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from renderdispatch.errors import AudioError, GpuUnavailableError, RenderError, SceneError
from renderdispatch.messages import (
    CLOCK_SLACK,
    MAX_WARNINGS,
    Action,
    Asset,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    ObjectUrls,
    Progressed,
    RenderEvent,
    RenderOrder,
    RenderStats,
    RenderWarning,
    Stage,
)
from renderdispatch.plumbing.bundles import pack
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Renderer, Report
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, SupervisedRender, run_order
from renderdispatch.runner.reporting import Reporter, told_to_stop
from renderdispatch.runner.run import RunLeft
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import FakeRenderer, eventually, make_artifact, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder
from tests.support.odd_scenes import COUNTS

PACE = Pace(progress_s=0.02, heartbeat_s=0.1, check_in_s=0.3, final_s=0.5, backoff_s=0.01, backoff_max_s=0.05)
STOP = EventReply(action=Action.STOP, reason="cancelled")


class Scene:
    """A renderer made from one function."""

    draws_images = True

    def __init__(self, render: Callable[[RenderOrder, Path, Path, Report], RenderStats]) -> None:
        self.render = render


def run(
    order: RenderOrder,
    *,
    heard: Recorder | None = None,
    scene: Renderer | None = None,
    pace: Pace = PACE,
    work_dir: Path | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Completed | Failed:
    """Carry out the order in this process."""
    render = InProcessRender({"fake": scene or FakeRenderer()})
    return run_order(order, io=RunnerIO(send=heard or Recorder(), render=render, pace=pace, now=now, work_dir=work_dir))


def failure(outcome: Completed | Failed) -> tuple[str, FaultDomain]:
    """Return the code and the fault of a failure."""
    assert isinstance(outcome, Failed)
    return outcome.error.code, outcome.error.fault


@pytest.fixture
def storage(tmp_path: Path) -> FsspecStorage:
    return FsspecStorage(tmp_path / "objects")


def raising(error: BaseException) -> Scene:
    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        raise error

    return Scene(render)


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class _Blameless(RenderError):
    fault = "nobody"  # type: ignore[assignment]


def test_a_video_and_its_result(storage: FsspecStorage) -> None:
    """A run ends as completed: the video stands, and so does the result object, which is the outcome."""
    order, heard = make_order(storage), Recorder()
    outcome = run(order, heard=heard)
    assert isinstance(outcome, Completed)
    assert storage.stat(order.video.key).size == outcome.artifact.bytes
    with storage.open(order.result.key) as file:
        assert Completed.model_validate_json(file.read()) == outcome
    assert heard.final == outcome


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (RuntimeError("boom"), "scene.failed", FaultDomain.SCENE),
        (SceneError("bad", code="scene.mine"), "scene.mine", FaultDomain.SCENE),
        (AudioError("noise"), "audio.invalid", FaultDomain.AUDIO),
        (GpuUnavailableError("none"), "gpu.unavailable", FaultDomain.REQUEST),
        (OSError(errno.ENOSPC, "full"), "disk.full", FaultDomain.INFRASTRUCTURE),
        (MemoryError(), "memory.full", FaultDomain.INFRASTRUCTURE),
        (RuntimeError("\ud800 is no text"), "scene.failed", FaultDomain.SCENE),
        (RuntimeError("x" * 100_000), "scene.failed", FaultDomain.SCENE),
        (_Unspeakable(), "scene.failed", FaultDomain.SCENE),
        (_Blameless("?"), "scene.failed", FaultDomain.SCENE),
        (SystemExit(3), "scene.failed", FaultDomain.SCENE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_a_renderer_raises(
    storage: FsspecStorage, error: BaseException, code: str, fault: FaultDomain
) -> None:
    """Whatever a renderer raises becomes a failure with a code and a fault, and is reported."""
    heard = Recorder()
    outcome = run(make_order(storage), heard=heard, scene=raising(error))
    assert failure(outcome) == (code, fault)
    assert heard.final == outcome
    assert len(outcome.model_dump_json()) < 3000


def test_a_keyboard_interrupt_passes(storage: FsspecStorage, tmp_path: Path) -> None:
    """An interrupt is no outcome: it passes, after the temporary files are gone."""
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(make_order(storage), scene=raising(KeyboardInterrupt()), work_dir=work)
    assert list(work.iterdir()) == []


def test_a_renderer_that_returns_nothing(storage: FsspecStorage) -> None:
    """A renderer that forgets its stats is at fault, not the infrastructure."""
    scene = Scene(lambda order, audio, output, report: None)  # type: ignore[arg-type, return-value]
    assert failure(run(make_order(storage), scene=scene)) == ("scene.failed", FaultDomain.SCENE)


def test_a_renderer_that_writes_nothing(storage: FsspecStorage) -> None:
    """A renderer that writes no video is at fault."""

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        stats = FakeRenderer().render(order, audio, output, report)
        output.unlink()
        return stats

    assert failure(run(make_order(storage), scene=Scene(render))) == ("scene.failed", FaultDomain.SCENE)


def test_an_unknown_scene(storage: FsspecStorage) -> None:
    """A scene that nobody registered fails the request, with the near matches."""
    outcome = run(make_order(storage, scene="brs"))
    assert failure(outcome) == ("scene.unknown", FaultDomain.REQUEST)
    assert isinstance(outcome, Failed) and "'bars'" in outcome.error.message


def test_the_renderer_sees_no_secret(storage: FsspecStorage) -> None:
    """What a scene gets holds no token, URL or key."""
    seen: list[RenderOrder] = []

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        seen.append(order)
        return FakeRenderer().render(order, audio, output, report)

    order = make_order(storage)
    run(order, scene=Scene(render))
    assert order.token not in seen[0].model_dump_json().replace(order.video.key, "").replace(order.result.key, "")
    assert "file:" not in seen[0].model_dump_json()


# --- audio


def test_audio_that_is_gone(storage: FsspecStorage) -> None:
    """Audio that is not in storage any more fails the run as ``audio.missing``."""
    order = make_order(storage)
    storage.delete_prefix("jobs")
    assert failure(run(order))[0] == "audio.missing"


@pytest.mark.parametrize("storage_type", [FsspecStorage, MemoryStorage])
def test_audio_of_another_size(tmp_path: Path, storage_type: type) -> None:
    """Audio that has another size than was ordered fails the run as ``audio.changed``."""
    storage = storage_type(tmp_path) if storage_type is FsspecStorage else storage_type()
    assert failure(run(make_order(storage, audio_size=5)))[0] == "audio.changed"


def test_local_urls_from_afar(storage: FsspecStorage) -> None:
    """An order that came from afar cannot read this machine's files."""
    assert failure(run(make_order(storage, local=False)))[0] == "order.local-url"


# --- cover and poster


def make_urls(storage: FsspecStorage | MemoryStorage, key: str) -> ObjectUrls:
    hour = timedelta(hours=1)
    put = storage.sign_put(key, expires_in=hour, content_type="image/jpeg")
    return ObjectUrls(key=key, put=put, get=storage.sign_get(key, expires_in=hour))


@pytest.mark.parametrize("storage_type", [FsspecStorage, MemoryStorage])
def test_a_cover_is_drawn_and_a_poster_delivered(tmp_path: Path, storage_type: type) -> None:
    """The renderer gets a copy of the cover as a file, and no URL of it; what it wrote as poster is stored."""
    storage = storage_type(tmp_path / "objects") if storage_type is FsspecStorage else storage_type()
    storage.put("cover.png", b"a cover")
    cover = Asset(url=storage.sign_get("cover.png", expires_in=timedelta(hours=1)), size=7)
    seen: list[RenderOrder] = []

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        seen.append(order)
        return FakeRenderer().render(order, audio, output, report)

    outcome = run(make_order(storage, cover=cover, poster=make_urls(storage, "poster.jpg")), scene=Scene(render))
    assert isinstance(outcome, Completed)
    assert (outcome.artifact.poster_key, outcome.artifact.warnings) == ("poster.jpg", ())
    with storage.open("poster.jpg") as file:
        assert file.read() == b"a cover"
    assert seen[0].cover is not None and (seen[0].cover.url, seen[0].cover.size) == ("", 7)
    assert str(tmp_path / "objects") not in seen[0].model_dump_json()


@pytest.mark.parametrize(("size", "code"), [(7, "cover.missing"), (8, "cover.changed")])
def test_a_cover_that_cannot_be_used(storage: FsspecStorage, size: int, code: str) -> None:
    """One that is gone, or has another size, is the fault of the request, and nothing is rendered."""
    if code == "cover.changed":
        storage.put("cover.png", b"a cover")
    cover = Asset(url=storage.sign_get("cover.png", expires_in=timedelta(hours=1)), size=size)
    outcome = run(make_order(storage, cover=cover), scene=raising(AssertionError("rendered")))
    assert failure(outcome) == (code, FaultDomain.REQUEST)


@pytest.mark.parametrize("bundled", [False, True])
def test_a_scene_s_files_are_brought(storage: FsspecStorage, tmp_path: Path, bundled: bool) -> None:
    """The renderer gets them as files, by a URL of each or from one archive, in order and under their own names."""
    data = {"scene_file": b"void mainImage", "image_1": b"rocks", "image_2": b"clouds!", "cover": b"a cover"}
    assets = {}
    for place, content in data.items():
        storage.put(place, content)
        url = "" if bundled else storage.sign_get(place, expires_in=timedelta(hours=1))
        assets[place] = Asset(url=url, size=len(content), name=f"my {place}")
    images = (assets["image_1"], assets["image_2"])
    order = make_order(storage, scene_file=assets["scene_file"], images=images, cover=assets["cover"])
    if bundled:
        order = order.model_copy(update={"bundle": bundle_of(data, storage, tmp_path)})

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        assert order.scene_file is not None and order.cover is not None and order.bundle is None
        brought = (order.scene_file, *order.images, order.cover)
        assert [Path(asset.path or "").read_bytes() for asset in brought] == list(data.values())
        assert [(asset.url, asset.name) for asset in brought] == [("", f"my {place}") for place in data]
        return FakeRenderer().render(order, audio, output, report)

    assert isinstance(run(order, scene=Scene(render)), Completed)


def bundle_of(data: Mapping[str, bytes], storage: FsspecStorage, folder: Path) -> Asset:
    pack({place: partial(io.BytesIO, content) for place, content in data.items()}, folder / "bundle.zip")
    size = storage.put("bundle.zip", folder / "bundle.zip").size
    return Asset(url=storage.sign_get("bundle.zip", expires_in=timedelta(hours=1)), size=size)


@pytest.mark.parametrize(("what", "code"), [("gone", "bundle.missing"), ("broken", "bundle.invalid")])
def test_a_bundle_that_cannot_be_used(storage: FsspecStorage, tmp_path: Path, what: str, code: str) -> None:
    """The run fails and says so; nothing is rendered."""
    bundle = bundle_of({"cover": b"a cover"}, storage, tmp_path)
    if what == "gone":
        storage.delete("bundle.zip")
    order = make_order(storage, images=(Asset(url="", size=5),), bundle=bundle)
    assert failure(run(order, scene=raising(AssertionError("rendered"))))[0] == code


def test_an_earlier_poster_stays(storage: FsspecStorage) -> None:
    """A poster that an earlier run of the attempt delivered is reported as it is."""
    storage.put("poster.jpg", b"an earlier run's")
    outcome = run(make_order(storage, poster=make_urls(storage, "poster.jpg")))
    assert isinstance(outcome, Completed) and outcome.artifact.poster_key == "poster.jpg"
    with storage.open("poster.jpg") as file:
        assert file.read() == b"an earlier run's"


@pytest.mark.parametrize("written", [None, b""])
def test_a_renderer_without_a_poster(storage: FsspecStorage, written: bytes | None) -> None:
    """The video is delivered, with a warning, however many warnings there are already."""
    many = [RenderWarning(code="some.code", message="something") for _ in range(MAX_WARNINGS)]

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        stats = FakeRenderer().render(order.model_copy(update={"poster": None}), audio, output, report)
        if written is not None:
            output.with_suffix(".jpg").write_bytes(written)
        return RenderStats(**{**dict(stats), "warnings": many})

    outcome = run(make_order(storage, poster=make_urls(storage, "poster.jpg")), scene=Scene(render))
    assert isinstance(outcome, Completed)
    assert outcome.artifact.poster_key is None
    assert [warning.code for warning in outcome.artifact.warnings] == ["poster.missing", *["some.code"] * 19]


# --- deadlines


def soon(seconds: float) -> datetime:
    """Return a deadline that a run has passed in so many seconds, with all that it allows for clocks that differ."""
    return datetime.now(UTC) + timedelta(seconds=seconds) - CLOCK_SLACK


@pytest.mark.parametrize("off_s", [-59, 59])
@pytest.mark.parametrize("deadline", ["start_by", "finish_by"])
def test_a_clock_that_is_off_by_less_than_a_minute(storage: FsspecStorage, off_s: int, deadline: str) -> None:
    """No run is refused because its machine's clock is up to a minute ahead of the service's, or behind it."""
    order = make_order(storage).model_copy(update={deadline: datetime.now(UTC) + timedelta(seconds=30)})
    outcome = run(order, now=lambda: datetime.now(UTC) + timedelta(seconds=30 + off_s))
    assert isinstance(outcome, Completed)


def test_too_late_to_start(storage: FsspecStorage) -> None:
    """Past the start deadline nothing is downloaded or rendered."""
    late = make_order(storage, start_by=soon(-1))
    assert failure(run(late, scene=raising(AssertionError("rendered")))) == (
        "deadline.start",
        FaultDomain.START_TIMEOUT,
    )


def test_out_of_time_in_mid_render(storage: FsspecStorage) -> None:
    """A render that passes the deadline is stopped, and the failure says so."""
    order = make_order(storage, finish_by=soon(0.3))
    began = time.monotonic()
    assert failure(run(order, scene=FakeRenderer(frames=1000, frame_s=0.02))) == (
        "deadline.total",
        FaultDomain.DEADLINE,
    )
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("started_late", [False, True])
def test_nothing_is_reported_long_past_the_deadline(storage: FsspecStorage, started_late: bool) -> None:
    """Where no report arrives, a run past its deadline does not wait for that: somebody pays for it."""

    def away(_event: RenderEvent) -> EventReply:
        raise OSError("nobody is there")

    deadline = soon(-1 if started_late else 0.5)
    order = make_order(storage, start_by=deadline, finish_by=deadline)
    render = InProcessRender({"fake": FakeRenderer(frames=1000, frame_s=0.02)})
    began = time.monotonic()
    outcome = run_order(order, io=RunnerIO(send=away, render=render, pace=Pace(check_in_s=10.0 if started_late else 0)))
    assert failure(outcome)[0] == ("deadline.start" if started_late else "deadline.total")
    assert time.monotonic() - began < 9


# --- stopping


def test_stop_at_the_check_in(storage: FsspecStorage) -> None:
    """A run that is told to stop at its check-in renders nothing."""
    heard = Recorder(lambda event: STOP if isinstance(event, CheckedIn) else EventReply())
    outcome = run(make_order(storage), heard=heard, scene=raising(AssertionError("rendered")))
    assert failure(outcome)[0] == "render.stopped"
    assert heard.final == outcome


def test_stop_in_mid_render(storage: FsspecStorage) -> None:
    """An answer of "stop" ends a render at its next report, and nothing is uploaded."""
    told = threading.Event()

    def answer(event: RenderEvent) -> EventReply:
        if not isinstance(event, Progressed) or event.stage is not Stage.RENDERING:
            return EventReply()
        told.set()
        return STOP

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        assert told.wait(10)
        return FakeRenderer(frames=1000, frame_s=0.01).render(order, audio, output, report)

    heard, order = Recorder(answer), make_order(storage)
    outcome = run(order, heard=heard, scene=Scene(render))
    assert failure(outcome)[0] == "render.stopped"
    assert heard.final == outcome
    assert [info.key for info in storage.list("") if "audio" not in info.key] == []


def test_a_stop_that_nobody_asked_for(storage: FsspecStorage) -> None:
    """A transport that can speak unasked stops a run at its next step."""
    stop = Stop(error=told_to_stop)

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        stop.request("cancelled")
        return FakeRenderer().render(order, audio, output, report)

    heard = Recorder()
    io = RunnerIO(send=heard, render=InProcessRender({"fake": Scene(render)}), pace=PACE, stop=stop)
    outcome = run_order(make_order(storage), io=io)
    assert failure(outcome)[0] == "render.stopped"
    assert heard.final == outcome


def test_a_run_that_the_platform_takes_away(storage: FsspecStorage, tmp_path: Path) -> None:
    """It ends at its next step, cleans up, and reports no end: it may be started again."""
    stop, work = Stop(error=RunLeft), tmp_path / "work"
    work.mkdir()

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        stop.request("preempted")
        return FakeRenderer().render(order, audio, output, report)

    heard = Recorder()
    io = RunnerIO(send=heard, render=InProcessRender({"fake": Scene(render)}), pace=PACE, stop=stop, work_dir=work)
    with pytest.raises(RunLeft):
        run_order(make_order(storage), io=io)
    assert heard.final is None
    assert list(work.iterdir()) == []


def test_a_run_that_is_taken_away_while_it_reports_its_end(storage: FsspecStorage) -> None:
    """It ends at once, however long the report would have been tried."""
    stop = Stop(error=RunLeft)

    def away(event: RenderEvent) -> EventReply:
        if isinstance(event, Completed):
            stop.request("preempted")
            raise ConnectionError("down")
        return EventReply()

    io = RunnerIO(send=away, render=InProcessRender({"fake": FakeRenderer()}), stop=stop)
    began = time.monotonic()
    with pytest.raises(RunLeft):
        run_order(make_order(storage), io=io)
    assert time.monotonic() - began < 5


# --- earlier runs (rule J6)


def test_an_earlier_result_is_reported(storage: FsspecStorage) -> None:
    """Where the result object stands, an earlier run delivered: that is reported, and nothing is rendered."""
    order = make_order(storage)
    first = run(order)
    again = run(order, scene=raising(AssertionError("rendered")))
    assert isinstance(first, Completed) and isinstance(again, Completed)
    assert again.artifact == first.artifact


def test_an_earlier_result_is_reported_however_late(storage: FsspecStorage) -> None:
    """A run that begins again past the start deadline, after its attempt has delivered, is not too late to say so."""
    order = make_order(storage)
    first = run(order)
    late = run(order.model_copy(update={"start_by": soon(-1)}))
    assert isinstance(first, Completed) and isinstance(late, Completed)
    assert late.artifact == first.artifact


def test_an_earlier_video_is_reported(storage: FsspecStorage) -> None:
    """Where the video stands without a result, it is looked at and reported as it is."""
    order = make_order(storage)
    storage.put(order.video.key, b"an earlier run's video, longer")
    outcome = run(order)
    assert isinstance(outcome, Completed)
    assert outcome.artifact.bytes == 30
    assert outcome.artifact.sha256 is None
    with storage.open(order.video.key) as file:
        assert file.read() == b"an earlier run's video, longer"


def test_another_run_delivers_meanwhile(storage: FsspecStorage) -> None:
    """Where another run writes the result first, its result is what this one reports."""
    order = make_order(storage)
    theirs = Completed(
        event_id="e", job_id=order.job_id, token=order.token, run_id="r", artifact=make_artifact(key=order.video.key)
    )

    def render(asked: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        storage.put(order.result.key, theirs.model_dump_json().encode())
        return FakeRenderer().render(asked, audio, output, report)

    outcome = run(order, scene=Scene(render))
    assert isinstance(outcome, Completed)
    assert outcome.artifact == theirs.artifact


def test_a_result_that_no_run_wrote(storage: FsspecStorage) -> None:
    """A result object that cannot be read is a failure, not an exception."""
    order = make_order(storage)
    storage.put(order.result.key, b"{}")
    assert failure(run(order))[0] == "result.invalid"


# --- the disk


def test_a_full_disk_at_the_upload(small_disk: Path) -> None:
    """A storage without space fails the run as ``disk.full``, and leaves no part of the video."""
    storage = FsspecStorage(small_disk / "objects")
    order = make_order(storage)
    outcome = run(order, scene=FakeRenderer(video="x" * (3 << 20)))
    assert failure(outcome) == ("disk.full", FaultDomain.INFRASTRUCTURE)
    assert [info.key for info in storage.list("") if "video" in info.key] == []


def test_a_full_disk_in_the_render(small_disk: Path, storage: FsspecStorage) -> None:
    """A scratch disk without space fails the run as ``disk.full``, and its folder is gone."""
    outcome = run(make_order(storage), scene=FakeRenderer(video="x" * (3 << 20)), work_dir=small_disk)
    assert failure(outcome) == ("disk.full", FaultDomain.INFRASTRUCTURE)
    assert list(small_disk.iterdir()) == []


# --- reports


def test_nobody_listens(storage: FsspecStorage) -> None:
    """With the way to the service down all the time, the run still ends, within bounds, and delivers."""

    def down(event: RenderEvent) -> EventReply:
        raise ConnectionError("down")

    order = make_order(storage)
    began = time.monotonic()
    outcome = run(order, heard=Recorder(down))
    assert isinstance(outcome, Completed)
    assert time.monotonic() - began < PACE.check_in_s + 2 * PACE.final_s + 2
    assert storage.stat(order.result.key).size > 0


def test_a_way_that_breaks_in_strange_ways(storage: FsspecStorage) -> None:
    """Whatever a transport raises counts as "did not arrive"."""
    broken = [KeyError("odd"), RuntimeError("odder"), ConnectionError("usual")]

    def answer(event: RenderEvent) -> EventReply:
        if broken:
            raise broken.pop()
        return EventReply()

    heard = Recorder(answer)
    outcome = run(make_order(storage), heard=heard)
    assert isinstance(outcome, Completed)
    assert heard.final == outcome


def test_the_service_comes_back_late(storage: FsspecStorage) -> None:
    """A service that was away from the start hears the check-in before the outcome."""
    down = threading.Event()
    down.set()

    def answer(event: RenderEvent) -> EventReply:
        if down.is_set():
            raise ConnectionError("down")
        heard_by_service.append(event)
        return EventReply()

    heard_by_service: list[RenderEvent] = []

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        stats = FakeRenderer(frames=20, frame_s=0.01).render(order, audio, output, report)
        down.clear()
        return stats

    outcome = run(make_order(storage), heard=Recorder(answer), scene=Scene(render))
    assert heard_by_service[0].type == "checked-in"
    assert heard_by_service[-1] == outcome


def test_progress_is_paced(storage: FsspecStorage) -> None:
    """However often the renderer reports, progress goes out at the pace, the newest first, and never backwards."""
    heard = Recorder()
    pace = Pace(progress_s=0.2, heartbeat_s=5, check_in_s=1, final_s=2)
    run(make_order(storage), heard=heard, scene=FakeRenderer(frames=500, frame_s=0.002), pace=pace)
    rendering = [e for e in heard.events if isinstance(e, Progressed) and e.stage is Stage.RENDERING]
    assert 4 <= len(rendering) <= 12
    fractions = [e.fraction for e in rendering]
    assert fractions == sorted(fractions)


def test_a_slow_listener_holds_nothing_up(storage: FsspecStorage) -> None:
    """Rendering never waits for a report: what was not sent in time is dropped."""
    released = threading.Event()

    def answer(event: RenderEvent) -> EventReply:
        if isinstance(event, Progressed):
            released.wait(5)
        return EventReply()

    frames: list[int] = []

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        def count(done: int, total: int) -> None:
            frames.append(done)
            report(done, total)

        stats = FakeRenderer(frames=100).render(order, audio, output, count)
        released.set()
        return stats

    began = time.monotonic()
    assert isinstance(run(make_order(storage), heard=Recorder(answer), scene=Scene(render)), Completed)
    assert len(frames) == 100
    assert time.monotonic() - began < 4


def test_a_heartbeat(storage: FsspecStorage) -> None:
    """A renderer that reports nothing for a while is heard of all the same."""
    heard = Recorder()

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        seen = len(heard.events)
        deadline = time.monotonic() + 10
        while len(heard.events) < seen + 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return FakeRenderer().render(order, audio, output, report)

    assert isinstance(run(make_order(storage), heard=heard, scene=Scene(render)), Completed)


def after(heard: Recorder, events: int) -> None:
    """Wait until so many more events came."""
    seen = len(heard.events)
    eventually(lambda: len(heard.events) >= seen + events)


@pytest.mark.parametrize("count", COUNTS)
def test_a_renderer_that_counts_oddly(storage: FsspecStorage, count: str) -> None:
    """Whatever a renderer reports, it renders to the end, and is heard of all the while."""
    heard = Recorder()

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        report(*COUNTS[count])
        after(heard, 3)
        return FakeRenderer().render(order, audio, output, report)

    assert isinstance(run(make_order(storage), heard=heard, scene=Scene(render)), Completed)
    assert isinstance(heard.final, Completed)


@pytest.mark.parametrize("count", COUNTS)
def test_a_renderer_that_counts_oddly_is_stopped(storage: FsspecStorage, count: str) -> None:
    """Whatever a renderer reports, it hears of a stop at its next report."""
    told = threading.Event()
    heard = Recorder(lambda _event: STOP if told.is_set() else EventReply())

    def render(order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        report(*COUNTS[count])
        after(heard, 1)
        told.set()
        after(heard, 2)
        report(*COUNTS[count])
        raise AssertionError("rendered on")

    assert failure(run(make_order(storage), heard=heard, scene=Scene(render)))[0] == "render.stopped"


def test_progress_that_no_event_can_carry(storage: FsspecStorage) -> None:
    """It is dropped, and signs of life go on in its place."""
    heard = Recorder()
    with Reporter(make_order(storage), heard, pace=PACE) as reporter:
        reporter.progress(Stage.RENDERING, frames=math.inf)  # type: ignore[arg-type]
        after(heard, 3)
        assert {event.type for event in heard.events} == {"checked-in"}
        reporter.progress(Stage.RENDERING, 0.5, frames=5, frames_total=10)
        eventually(lambda: isinstance(heard.events[-1], Progressed))


# --- in a process of its own


@pytest.mark.parametrize("count", ["an unknown total", "no total", "NumPy's floats", "no number"])
def test_apart_it_may_count_oddly(storage: FsspecStorage, count: str) -> None:
    """In a process of its own, too, a renderer reports what it likes and renders to the end."""
    io = RunnerIO(send=Recorder(), render=SupervisedRender({"odd": "tests.support.odd_scenes:Odd"}), pace=PACE)
    assert isinstance(run_order(make_order(storage, scene="odd", params={"count": count}), io=io), Completed)


def test_apart_it_is_blamed_for_what_is_no_exception(storage: FsspecStorage) -> None:
    """A scene that lets a cancelled coroutine through is at fault: the same would happen at each attempt."""
    scenes = {"odd": "tests.support.odd_scenes:Cancelling"}
    io = RunnerIO(send=Recorder(), render=SupervisedRender(scenes), pace=PACE)
    assert failure(run_order(make_order(storage, scene="odd"), io=io)) == ("scene.failed", FaultDomain.SCENE)


def test_a_render_process_that_cannot_be_started(storage: FsspecStorage, refuse_thread: Callable[[str], None]) -> None:
    """Where there is no room for one more thread, that is no scene's fault, and worth another attempt."""
    refuse_thread("renderdispatch-log")
    outcome = run_order(make_order(storage), io=RunnerIO(send=Recorder(), render=SupervisedRender(), pace=PACE))
    assert failure(outcome) == ("renderer.died", FaultDomain.INFRASTRUCTURE)


def test_apart_it_is_the_same(storage: FsspecStorage, tmp_path: Path) -> None:
    """The same order in a process of its own gives the same video; failures keep their words across the pipe."""
    with registered_scenes(tmp_path / "scenes"):
        io = RunnerIO(send=Recorder(), render=SupervisedRender(), pace=PACE)
        outcome = run_order(make_order(storage, params={"video": "abc"}), io=io)
        assert isinstance(outcome, Completed) and outcome.artifact.bytes == 3
        failed = run_order(make_order(storage, params={"fail": "no star"}), io=io)
        assert isinstance(failed, Failed) and failed.error.message == "no star"
        assert failure(failed) == ("scene.fake", FaultDomain.SCENE)
        died = run_order(make_order(storage, params={"die": 11}), io=io)
        assert failure(died) == ("renderer.died", FaultDomain.INFRASTRUCTURE)
        assert isinstance(died, Failed) and "SIGSEGV" in died.error.message

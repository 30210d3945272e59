"""Is a video the same file, however many draw it, and is nothing drawn again that is kept?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import Helped, HelperOrder, ObjectUrls, Output, Pieces, RenderOrder, RenderStats, SignedPut
from renderdispatch.plumbing.pieces import HEAD_BYTES, SegmentHead
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.testing.slots import FolderSlots

WriteWav = Callable[..., Path]
Order = Callable[..., RenderOrder]

SMALL = Output(width=64, height=36, fps=Fraction(10))


def helper_of(order: RenderOrder, share: int, parallel: int) -> HelperOrder:
    """Return the order of a helper of a lead."""
    shared = RenderOrder.model_fields.keys() & HelperOrder.model_fields.keys()
    given = {name: getattr(order, name) for name in shared - {"protocol", "pieces", "parallel", "result"}}
    return HelperOrder(**given, share=share, parallel=parallel, pieces=Pieces(slots=256), stop="stop", result="result")


def quiet(_done: int, _total: int) -> None:
    pass


class Film:
    """Renders one song into a folder, with helpers beside the lead in threads."""

    def __init__(self, folder: Path, song: Path, order: RenderOrder, renderer: VideoRenderer = bars) -> None:
        self.folder, self.song, self.order, self.renderer = folder, song, order, renderer
        self.pieces = folder / "pieces"
        self.pieces.mkdir(parents=True)
        self.helped: list[Helped] = []

    def draw(
        self, parallel: int = 1, *, slots: FolderSlots | None = None, report: Any = quiet
    ) -> tuple[bytes, RenderStats]:
        """Return the file, and what the lead says of it."""
        lead = slots or FolderSlots(folder=self.pieces, parallel=parallel)
        over = threading.Event()
        with ThreadPoolExecutor(max(parallel - 1, 1)) as pool:
            helping = [pool.submit(self.help, lead.beside(share), over) for share in range(1, parallel)]
            video = self.folder / "video.mp4"
            try:
                stats = self.renderer.render_segments(self.order, self.song, video, report, slots=lead)
            finally:
                over.set()
            self.helped = [one.result() for one in helping]
        return video.read_bytes(), stats

    def help(self, slots: FolderSlots, over: threading.Event) -> Helped:
        """Help as soon as the plan is kept, until the lead is done."""

        def check() -> None:
            if over.is_set():
                raise RenderStopped("the video is complete")

        slots.check = check
        folder = self.folder / f"helper-{slots.share}"
        folder.mkdir(exist_ok=True)
        order = helper_of(self.order, slots.share, slots.parallel)
        try:
            while slots.read_plan(0, 1) is None:
                over.wait(0.05)
            return self.renderer.help(order, folder, quiet, slots=slots)
        except RenderStopped:
            return Helped(reason="stopped")


@pytest.fixture
def film(tmp_path: Path, write_wav: WriteWav, order: Order) -> Callable[..., Film]:
    """Return a film of noise of so many seconds."""

    def make(seconds: float, name: str = "film", renderer: VideoRenderer = bars, **given: Any) -> Film:
        song = tmp_path / f"{seconds}.wav"
        if not song.exists():
            loud = np.linspace(0.1, 0.9, round(seconds * 44_100))
            write_wav(song, np.random.default_rng(7).uniform(-1, 1, len(loud)) * loud)
        return Film(tmp_path / name, song, order(**{"output": SMALL} | given), renderer)

    return make


@pytest.mark.parametrize(
    ("seconds", "fps"),
    [
        (0.4, Fraction(10)),
        (12.0, Fraction(10)),  # three segments, exactly
        pytest.param(4.0, Fraction(10), marks=pytest.mark.long),
        pytest.param(21.3, Fraction(30000, 1001), marks=pytest.mark.long),
    ],
)
def test_any_number_of_workers_makes_the_same_file(film: Callable[..., Film], seconds: float, fps: Fraction) -> None:
    """The file has the same bytes with 1, 2, 4 and 16 workers, whoever drew which segment."""
    output = SMALL.model_copy(update={"fps": fps})
    files = {workers: film(seconds, f"by-{workers}", output=output).draw(workers)[0] for workers in (1, 2, 4, 16)}
    assert len(set(files.values())) == 1


@pytest.mark.parametrize("renderer", [wave, pytest.param(radial, marks=pytest.mark.long)])
def test_scenes_with_states_are_the_same(film: Callable[..., Film], renderer: VideoRenderer) -> None:
    """Segments begin in the state that the frames before them led to."""
    one = film(17, "one", renderer).draw(1)[0]
    assert film(17, "three", renderer).draw(3)[0] == one


def test_a_render_without_slots_is_the_same_file(film: Callable[..., Film], tmp_path: Path) -> None:
    """`render`, which keeps nothing, makes the same file."""
    made = film(9)
    video = tmp_path / "plain.mp4"
    made.renderer.render(made.order, made.song, video, quiet)
    assert made.draw(2)[0] == video.read_bytes()


def test_the_next_run_draws_only_what_is_missing(film: Callable[..., Film]) -> None:
    """A render that is stopped after half of its segments goes on where it was; the file is the same."""
    whole = film(33, "whole").draw()[0]
    made = film(33, "stopped")
    slots = FolderSlots(folder=made.pieces)

    def stop_at_half(done: int, total: int) -> None:
        if sum(1 for path in made.pieces.iterdir() if path.name[0].isdigit()) >= 4:
            raise RenderStopped("half is drawn")

    with pytest.raises(RenderStopped):
        made.draw(slots=slots, report=stop_at_half)
    kept = sum(1 for path in made.pieces.iterdir() if path.name[0].isdigit())
    again = FolderSlots(folder=made.pieces)
    file, stats = made.draw(slots=again)
    assert file == whole
    assert stats.segments == 8
    assert stats.segments_taken == kept
    assert again.calls["commit"] == 8 - kept


def test_progress_begins_with_what_is_kept_and_never_falls(film: Callable[..., Film]) -> None:
    """Frames count the segments that are there; the last report is of all frames."""
    made = film(25)
    made.draw(2)
    done = list[int]()
    made.draw(report=lambda frames, total: done.append(frames) if total == 250 else None)
    assert done == sorted(done)
    assert done[0] > 0
    assert done[-1] == 250


def test_the_lead_tells_of_segments_and_of_the_plan(film: Callable[..., Film]) -> None:
    """Counts rise to all segments, and say since when others can read the plan."""
    made = film(25)
    slots = FolderSlots(folder=made.pieces, parallel=2)
    _, stats = made.draw(slots=slots, parallel=2)
    counts, planned = zip(*slots.reports, strict=True)
    assert [one.standing for one in counts] == sorted(one.standing for one in counts)
    assert counts[-1].standing == counts[-1].total == 6
    assert list(planned) == sorted(planned)
    assert planned[-1]
    assert counts[-1].own + stats.segments_taken == 6
    assert sum(one.segments for one in made.helped) <= 6


def test_what_is_drawn_here_is_never_told_as_taken_over(film: Callable[..., Film]) -> None:
    """A segment of the lead counts as its own from its last frame on, also while it is still being encoded."""
    one = film(24)
    slots = FolderSlots(folder=one.pieces)
    one.draw(slots=slots)
    taken = [(counts.standing, counts.own) for counts, _ in slots.reports if counts.standing != counts.own]
    assert taken == []


def test_storage_that_is_away_costs_nothing_but_what_it_would_keep(film: Callable[..., Film]) -> None:
    """The lead joins what is on its own disk."""
    whole = film(13, "whole").draw()[0]
    made = film(13, "away")
    file, stats = made.draw(slots=FolderSlots(folder=made.pieces, is_away=True, parallel=2))
    assert file == whole
    assert stats.segments_taken == 0
    assert not list(made.pieces.iterdir())


def test_a_helper_outlasts_storage_that_is_away(film: Callable[..., Film]) -> None:
    """It waits for the plan, and offers again what it drew meanwhile."""
    made = film(33)
    made.draw()
    for path in made.pieces.glob("[0-9]*"):
        path.unlink()
    (folder := made.folder / "helper").mkdir()
    slots = FolderSlots(folder=made.pieces, parallel=2, share=1)
    began = list[int]()

    def check() -> None:
        """Go away at the second segment that is to be kept, and come back some calls later."""
        calls = slots.calls.copy()
        if calls.get("commit") == 2 and not began:
            began.append(sum(calls.values()))
        slots.is_away = bool(began) and sum(calls.values()) < began[0] + 6

    slots.check = check
    helped = made.renderer.help(helper_of(made.order, 1, 2), folder, quiet, slots=slots)
    assert helped.segments == len(list(made.pieces.glob("[0-9]*.0"))) == 8
    assert not list(folder.iterdir())


def other_last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def backwards(data: bytes) -> bytes:
    return data[::-1]


@pytest.mark.parametrize("spoil", [other_last_byte, backwards])
def test_nonsense_of_helpers_is_drawn_again(film: Callable[..., Film], spoil: Callable[[bytes], bytes]) -> None:
    """Segments whose hash is wrong, and those that are no segments, are passed over."""
    made = film(13)
    whole = made.draw()[0]
    for path in made.pieces.glob("[0-9]*"):
        path.unlink()
    calls = iter(range(100))

    def check() -> None:
        if next(calls, None) is None:
            raise RenderStopped("it wrote enough")

    bad = FolderSlots(folder=made.pieces, parallel=2, share=1, spoil=spoil, check=check)
    with suppress(RenderStopped):
        made.renderer.help(helper_of(made.order, 1, 2), made.folder, quiet, slots=bad)
    assert list(made.pieces.glob("[0-9]*"))
    file, stats = made.draw(slots=FolderSlots(folder=made.pieces, parallel=2))
    assert file == whole
    assert stats.segments_taken == 0


def test_the_figures_of_helpers_are_bounded(film: Callable[..., Film]) -> None:
    """A segment that is good but for what its head says of its worker cannot spoil the facts of the video."""
    made = film(13)
    whole, facts = made.draw()
    for path in made.pieces.glob("[0-9]*"):
        data = path.read_bytes()
        head = SegmentHead.read(data)
        assert head is not None
        path.write_bytes(evolve(head, twice=(1 << 53) - 1).pack() + data[HEAD_BYTES:])
    file, stats = made.draw(slots=FolderSlots(folder=made.pieces))
    assert file == whole
    assert stats.segments == stats.segments_taken == facts.segments == 3
    assert stats.segments_twice <= 9


def test_a_helper_of_another_order_draws_nothing(film: Callable[..., Film]) -> None:
    """The plan belongs to an order: a helper with other parameters ends."""
    made = film(9)
    made.draw()
    folder = made.folder / "helper"
    folder.mkdir()
    other = made.order.model_copy(update={"start": 1.0})
    slots = FolderSlots(folder=made.pieces, share=1, parallel=2)
    assert made.renderer.help(helper_of(other, 1, 2), folder, quiet, slots=slots).segments == 0
    assert "commit" not in slots.calls


def test_a_helper_without_a_plan_ends(film: Callable[..., Film]) -> None:
    """There is nothing to draw before the plan is kept."""
    made = film(9)
    slots = FolderSlots(folder=made.pieces, share=1, parallel=2)
    assert made.renderer.help(helper_of(made.order, 1, 2), made.folder, quiet, slots=slots).reason == "no plan is kept"


def test_another_plan_is_not_mixed_in(film: Callable[..., Film]) -> None:
    """A lead that finds the plan of another order draws without slots."""
    whole = film(9, "whole", start=1.0).draw()[0]
    made = film(9, "mixed")
    made.draw()
    before = {path.name: path.read_bytes() for path in made.pieces.iterdir()}
    made.order = made.order.model_copy(update={"start": 1.0})
    file, stats = made.draw()
    assert file == whole
    assert stats.segments_taken == 0
    assert {path.name: path.read_bytes() for path in made.pieces.iterdir()} == before


@pytest.mark.parametrize("damaged", [4000, 10])
def test_a_plan_that_is_damaged_is_made_anew(film: Callable[..., Film], damaged: int) -> None:
    """The lead does not fail because of what storage returns: it makes the plan itself, and progress never falls."""
    made = film(9)
    whole = made.draw()[0]
    for path in made.pieces.glob("[0-9]*"):
        path.unlink()
    plan = made.pieces / "plan.0"
    data = plan.read_bytes()
    plan.write_bytes(data[:-damaged] + bytes(255 - byte for byte in data[-damaged:]))
    done = list[int]()
    assert made.draw(report=lambda frames, _total: done.append(frames))[0] == whole
    assert done == sorted(done)


def test_the_poster_is_the_same_whoever_draws(film: Callable[..., Film]) -> None:
    """The brightest frame is drawn for the poster, also if another worker drew its segment."""
    poster = ObjectUrls(key="poster", put=SignedPut(url=""), get="")
    posters = set()
    for workers in (1, 3):
        made = film(13, f"by-{workers}", poster=poster)
        made.draw(workers)
        posters.add((made.folder / "video.jpg").read_bytes())
        made.draw(1)
        posters.add((made.folder / "video.jpg").read_bytes())
    assert len(posters) == 1


def test_no_more_places_than_segments_are_needed(film: Callable[..., Film]) -> None:
    """Segments for which there is no place are drawn by the lead, and joined from its disk."""
    whole = film(25, "whole").draw()[0]
    made = film(25, "few")
    assert made.draw(slots=FolderSlots(folder=made.pieces, parallel=2, count=3), parallel=2)[0] == whole
    assert {path.name for path in made.pieces.glob("[0-9]*")} == {"000.0", "001.0", "002.0"}


def test_the_plan_is_told_before_the_first_frame(film: Callable[..., Film]) -> None:
    """Helpers start as soon as they can read the plan, however long the first frame takes."""
    made = film(9)
    told = threading.Event()

    class Slow(VideoRenderer):
        """Draws no frame before the plan was told."""

        @contextmanager
        def artist(self, order: RenderOrder, *, cover: Any = None) -> Iterator[Any]:
            with bars.artist(order, cover=cover) as artist:
                draw: Any = artist.pictures

                def pictures(moments: Any) -> Any:
                    assert told.wait(20)
                    return draw(moments)

                vars(artist)["pictures"] = pictures
                yield artist

    class Telling(FolderSlots):
        def report(self, counts: Any, *, planned: bool) -> None:
            super().report(counts, planned=planned)
            if planned:
                told.set()

    slots = Telling(folder=made.pieces, parallel=2)
    made.renderer = Slow(bars.params)
    made.renderer.render_segments(made.order, made.song, made.folder / "video.mp4", quiet, slots=slots)
    assert told.is_set()
    assert slots.reports[0][1]


def test_a_renderer_that_makes_the_file_itself_is_asked_for_it(film: Callable[..., Film]) -> None:
    """A subclass with a `render` of its own makes the whole video; that it was to be shared is a warning."""
    made = film(0.4)

    class Own(VideoRenderer):
        def artist(self, order: RenderOrder, *, cover: Any = None) -> Any:
            raise AssertionError("it draws no frames")

        def render(self, order: RenderOrder, audio: Path, output: Path, report: Any) -> RenderStats:
            return bars.render(order, audio, output, report)

    made.renderer = Own(bars.params)
    assert made.draw(1)[1].warnings == ()
    (made.folder / "video.mp4").unlink()
    slots = FolderSlots(folder=made.pieces, parallel=2)
    stats = made.renderer.render_segments(made.order, made.song, made.folder / "video.mp4", quiet, slots=slots)
    assert [warning.code for warning in stats.warnings] == ["parallel.ignored"]

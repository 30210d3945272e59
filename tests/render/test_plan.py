"""Is the plan of a video the same for all who draw it, and is nothing wrong ever drawn from a bad one?"""

from __future__ import annotations

import threading
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from attrs import evolve, frozen

from renderdispatch.errors import AudioError, SceneError
from renderdispatch.messages import (
    MAX_SEGMENTS,
    Asset,
    HelperOrder,
    ObjectUrls,
    Output,
    Pieces,
    RenderOrder,
    RenderWarning,
    SignedPut,
)
from renderdispatch.plumbing.pieces import HEAD_BYTES
from renderdispatch.render import bars
from renderdispatch.render.covers import Cover
from renderdispatch.render.features import Frame
from renderdispatch.render.params import SceneParams
from renderdispatch.render.plan import Part, Plan, cut, plan_digest
from renderdispatch.render.plan_file import DATA_AT, Index, KeptPlan, PlanError
from renderdispatch.render.planner import KeptOrPlanned, Planner, keep_audio
from renderdispatch.render.poster import brightest
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scene_artist import SceneArtist
from renderdispatch.render.snapshots import dump_state
from renderdispatch.render.versions import scene_version

FPS = Fraction(10)
SMALL = Output(width=64, height=36, fps=FPS)


class Steps(NamedTuple):
    """How many frames were stepped, and what was heard."""

    done: int
    heard: np.ndarray[Any, Any]


class Counting(SceneArtist):
    """Steps through a state that tells all frames before it; a test can stop it before a frame, or let it fail."""

    def __init__(self, *, run_up: int = 0, waits_at: int = -1, fails_at: int = -1) -> None:
        self.run_up = run_up
        self.may_go_on = threading.Event()
        self._waits_at, self._fails_at = waits_at, fails_at

    def start(self) -> Steps:
        return Steps(0, np.zeros(96, np.float32))

    def step(self, state: Steps, frame: Frame) -> Steps:
        assert state.done == frame.index
        if frame.index == self._waits_at:
            assert self.may_go_on.wait(30)
        if frame.index == self._fails_at:
            raise SceneError(f"failed at frame {frame.index}")
        return Steps(state.done + 1, state.heard + frame.bands)

    def light(self, state: Steps, frame: Frame) -> float:
        return frame.level


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16.2 s of sound that rises and falls: at 10 frames a second, three segments of 4 s and the rest."""
    path, random = tmp_path_factory.mktemp("music") / "song.wav", np.random.default_rng(1)
    times = np.arange(round(16.2 * 44_100)) / 44_100
    tone = np.sin(2 * np.pi * 40 * times * times) * np.abs(np.sin(2.2 * times)) * 0.6
    stereo = np.stack([tone, random.normal(0, 0.05, len(times))], axis=1)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", "not compressed"))
        file.writeframes((stereo * 32_000).astype("<i2").tobytes())
    return path


@frozen
class Made:
    """A plan in the making, and its artist."""

    planner: Planner
    artist: Counting

    @property
    def plan(self) -> Plan:
        return self.planner.plan


@pytest.fixture
def made(tmp_path: Path, song: Path, order: Callable[..., RenderOrder]) -> Callable[..., Any]:
    @contextmanager
    def making(artist: Counting | None = None, audio: Path = song, cover: Cover | None = None, **given: Any) -> Any:
        counting = Counting() if artist is None else artist
        one = order(**{"output": SMALL, **given})
        with Planner(one, audio, tmp_path, artist=counting, digest=lambda sha256: sha256[::-1], cover=cover) as planner:
            yield Made(planner, counting)

    return making


def reader(stored: bytes) -> Callable[[int, int], bytes]:
    return lambda begin, size: stored[begin : begin + size]


def shown(part: Part) -> tuple[Any, ...]:
    """Return all that a segment is drawn from."""
    frames = [
        (f.index, f.level, f.beat, f.bands.tobytes(), f.wave.tobytes(), f.texture.tobytes()) for f in part.features
    ]
    return part.first, part.begin, part.end, dump_state(part.state), frames


# --- where a video is cut -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "fps", "run_up", "bounds"),
    [
        (1, Fraction(30), 0, (0, 1)),
        (12, Fraction(30), 0, (0, 12)),
        (120, Fraction(30), 0, (0, 120)),
        (239, Fraction(30), 0, (0, 239)),
        (240, Fraction(30), 0, (0, 120, 240)),
        (300, Fraction(30), 0, (0, 120, 300)),
        (240, Fraction(30_000, 1001), 0, (0, 120, 240)),
        (100, Fraction(1), 0, (0, 24, 48, 72, 100)),
        (720, Fraction(30), 90, (0, 360, 720)),
    ],
)
def test_segments_have_four_seconds_and_the_last_one_the_rest(
    frames: int, fps: Fraction, run_up: int, bounds: tuple[int, ...]
) -> None:
    """They also have at least 24 frames, and four times their run-up."""
    assert cut(frames, fps, run_up=run_up) == bounds


@pytest.mark.parametrize("fps", [Fraction(1, 2), Fraction(24), Fraction(30_000, 1001), Fraction(60), Fraction(240)])
def test_a_video_has_at_most_256_segments(fps: Fraction) -> None:
    """Long videos have longer ones; the last one is the longest, and less than twice as long as the others."""
    for frames in [*range(1, 300), *range(30_000, 31_000, 7), *range(200_000, 2_000_000, 99_991)]:
        bounds = cut(frames, fps)
        lengths = np.diff(bounds)
        assert bounds[0] == 0
        assert bounds[-1] == frames
        assert 1 <= len(lengths) <= MAX_SEGMENTS
        assert lengths[-1] == lengths.max()
        assert len(lengths) == 1 or max(ceil(4 * fps), 24) <= lengths[0] <= lengths[-1] < 2 * lengths[0]


# --- what decides about the bytes -----------------------------------------------------------------


def helper_order(of: RenderOrder, **changes: Any) -> HelperOrder:
    shared = {name: getattr(of, name) for name in RenderOrder.model_fields if name in HelperOrder.model_fields}
    mine = {"token": "own", "share": 1, "parallel": 2, "pieces": Pieces(slots=3, folder="/x"), "stop": "", "result": ""}
    return HelperOrder.model_validate(shared | mine | changes)


def digest_of(order: RenderOrder | HelperOrder, **changes: str) -> str:
    given = {"audio_sha256": "ab", "scene": "bars", "device": "cpu", "encoder": "libx264", "software": "3"}
    return plan_digest(order, **given | changes)


def test_lead_and_helper_have_the_same_digest(order: Callable[..., RenderOrder], tmp_path: Path) -> None:
    """Wherever their files are, and whatever else their orders say."""
    for name in ("here", "there"):
        (tmp_path / name).write_bytes(b"the same")
    orders = [
        order(
            params={"gain": 1, "colours": ["#ff0000"]},
            start=1.5,
            duration=20,
            cover=Asset(url="", size=8, path=str(tmp_path / name)),
            images=(Asset(url="", size=8, path=str(tmp_path / name)),),
        )
        for name in ("here", "there")
    ]
    again: RenderOrder = orders[1].model_copy(update={"title": "a title", "attempt": 2, "parallel": 7})
    assert {*map(digest_of, orders), digest_of(again), digest_of(helper_order(again))} == {digest_of(orders[0])}


def test_all_that_decides_changes_the_digest(order: Callable[..., RenderOrder], tmp_path: Path) -> None:
    """Each input, and the bytes of each file."""
    (tmp_path / "file").write_bytes(b"bytes")
    (tmp_path / "other").write_bytes(b"other bytes")
    file, other = (Asset(url="", size=8, path=str(tmp_path / name)) for name in ("file", "other"))
    changes: list[dict[str, Any]] = [
        {},
        {"start": 1},
        {"duration": 1},
        {"audio_track": 1},
        {"params": {"gain": 2}},
        {"output": Output(width=64, height=38)},
        {"output": Output(width=64, height=36, fps=Fraction(30_000, 1001))},
        {"output": Output(width=64, height=36, quality="fast")},
        *({name: asset} for name in ("cover", "scene_file") for asset in (file, other)),
        {"images": (file,)},
        {"images": (file, other)},
        {"images": (other, file)},
    ]
    digests = {digest_of(order(**change)) for change in changes}
    digests |= {
        digest_of(order(), **{name: "x"}) for name in ("audio_sha256", "scene", "device", "encoder", "software")
    }
    assert len(digests) == len(changes) + 5


SCENE = """
from renderdispatch.render.scene import Scene, SceneParams

class Params(SceneParams):
    pass

class Plain(Scene):
    def __init__(self, params, *, width, height, fps): pass
    def paint(self, state, frame, canvas): canvas[:] = {shade}
"""


def test_the_version_of_a_scene_follows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text is the same version; shipped scenes have their name alone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    versions = []
    for module, shade in (("plain_one", 1), ("plain_two", 2)):
        (tmp_path / f"{module}.py").write_text(SCENE.format(shade=shade))
        versions.append(scene_version(NumpyRenderer(f"{module}:Plain", SceneParams)))
        assert scene_version(NumpyRenderer(f"{module}:Plain", SceneParams)) == versions[-1]
    before = versions[0]
    (tmp_path / "plain_one.py").write_text(SCENE.format(shade=3))
    assert scene_version(NumpyRenderer("plain_one:Plain", SceneParams)) != before
    assert scene_version(bars).startswith(bars.scene)


# --- the plan, while it is made and afterwards ------------------------------------------------------


def test_a_plan_that_is_kept_is_the_plan_that_was_made(made: Callable[..., Any], tmp_path: Path, song: Path) -> None:
    """All that is drawn from it is equal, whoever reads it."""
    with made(start=0.05, duration=15) as one:
        stored = one.planner.finish().read_bytes()
        kept = Plan.read(reader(stored), tmp_path)
        assert kept is not None
        like = one.artist.start()
        assert [len(kept.frames_of(index)) for index in range(len(kept))] == [40, 40, 70]
        for index in range(len(one.plan)):
            with one.plan.part(index, like) as mine, kept.part(index, like) as theirs:
                assert shown(mine) == shown(theirs)
                assert mine.state.done == mine.first == one.plan.bounds[index]
        names = ("digest", "audio_sha256", "frames", "fps", "rate", "layout", "duration", "bounds", "brightest")
        assert all(getattr(kept, name) == getattr(one.plan, name) for name in names)
        assert (kept.frames, kept.duration, kept.layout) == (150, Fraction(15), "stereo")
        assert kept.digest == kept.audio_sha256[::-1]
        assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_pictures_from_the_plan_are_those_of_a_whole_render(
    tmp_path: Path, song: Path, order: Callable[..., RenderOrder]
) -> None:
    """A shipped scene, drawn segment by segment in any order, has the pictures that it has from the begin on."""
    one = order(output=SMALL)
    with (
        bars.artist(one) as artist,
        Planner(one, song, tmp_path, artist=artist, digest=lambda sha256: sha256) as planner,
    ):
        kept = Plan.read(reader(planner.finish().read_bytes()), tmp_path)
        assert kept is not None
        found = dict[int, bytes]()
        for index in reversed(range(len(kept))):
            with kept.part(index, artist.start()) as part:
                state = part.state
                for frame in part.features:
                    state = artist.step(state, frame)
                    found[frame.index] = b"".join(plane.tobytes() for plane in artist.draw(state, frame).planes)
        state = artist.start()
        with planner._states.features.slice(0, kept.frames) as features:
            for frame in features:
                state = artist.step(state, frame)
                picture = artist.draw(state, frame)
                assert found[frame.index] == b"".join(plane.tobytes() for plane in picture.planes)
            assert kept.brightest == brightest(artist, features)


def test_a_segment_can_be_drawn_before_the_plan_is_complete(made: Callable[..., Any]) -> None:
    """Its own state is enough. Who needs a later one waits for it."""
    with made(Counting(waits_at=50)) as one:
        like = one.artist.start()
        for index in (0, 1):
            with one.plan.part(index, like) as part:
                assert part.state.done == one.plan.bounds[index]
                assert [frame.index for frame in part.features] == list(one.plan.frames_of(index))
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(one.plan.part, 2, like)
            assert not waiting.done()
            one.artist.may_go_on.set()
            with waiting.result(30) as part:
                assert part.state.done == 80
        assert one.planner.finish().stat().st_size > DATA_AT


def test_a_scene_that_fails_fails_where_its_states_are_needed(made: Callable[..., Any]) -> None:
    """Segments before the failure can be drawn; the plan never is complete."""
    with made(Counting(fails_at=90)) as one:
        like = one.artist.start()
        one.plan.part(2, like).close()
        for fails in (lambda: one.plan.part(3, like), lambda: one.plan.brightest, one.planner.finish):
            with pytest.raises(SceneError, match="failed at frame 90"):
                fails()


def test_closing_ends_a_wait_for_the_plan(made: Callable[..., Any]) -> None:
    """A thread that waits for the complete plan does not keep a render that failed."""
    with made(Counting(waits_at=50)) as one, ThreadPoolExecutor(1) as other:

        def wait() -> None:
            try:
                one.planner.finish()
            finally:
                one.artist.may_go_on.set()

        waiting = other.submit(wait)
        one.planner.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="the planner is closed"):
            waiting.result(30)


def test_a_run_up_is_part_of_what_is_drawn(made: Callable[..., Any], tmp_path: Path) -> None:
    """State and features begin before the segment, but not before the video."""
    with made(Counting(run_up=9)) as one:
        kept = Plan.read(reader(one.planner.finish().read_bytes()), tmp_path)
        assert kept is not None
        assert kept.run_up == 9
        for plan in (one.plan, kept):
            for index, first in ((0, 0), (1, 31), (2, 71)):
                with plan.part(index, one.artist.start()) as part:
                    assert (part.first, part.begin) == (first, plan.bounds[index])
                    assert part.state.done == first
                    assert [frame.index for frame in part.features] == list(range(first, part.end))


def test_the_cover_comes_with_the_plan(made: Callable[..., Any], tmp_path: Path) -> None:
    """Helpers do not have the song, in whose tags it may be. No pixel changes."""
    pixels = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), np.uint8)
    with made(cover=Cover(pixels), duration=1) as one:
        kept = Plan.read(reader(one.planner.finish().read_bytes()), tmp_path)
    assert kept is not None
    assert kept.cover is not None
    np.testing.assert_array_equal(kept.cover.pixels, pixels)


def test_what_is_wrong_with_the_sound_comes_with_the_plan(made: Callable[..., Any], tmp_path: Path, song: Path) -> None:
    """Whoever takes over a plan warns of what its maker heard."""
    short = tmp_path / "short.wav"
    short.write_bytes(song.read_bytes()[: 6 * 44_100 * 4])
    with made(audio=short) as one:
        kept = Plan.read(reader(one.planner.finish().read_bytes()), tmp_path)
    assert kept is not None
    assert [warning.code for warning in kept.warnings] == ["audio.truncated"]
    assert kept.warnings == one.plan.warnings


def test_too_little_sound_is_refused(made: Callable[..., Any]) -> None:
    """Half a frame is the least."""
    with pytest.raises(AudioError) as caught, made(duration=0.04):
        pass
    assert caught.value.code == "audio.too-short"


def test_a_long_range_is_refused(made: Callable[..., Any]) -> None:
    """The order's limit holds for the plan."""
    with pytest.raises(AudioError) as caught, made(max_duration=5.0):
        pass
    assert caught.value.code == "audio.too-long"


def test_the_submitted_file_itself_is_copied(order: Callable[..., RenderOrder], tmp_path: Path) -> None:
    """Its later changes change nothing; a file that is the run's own is not copied."""
    audio, folder = tmp_path / "song.wav", tmp_path / "temporary"
    folder.mkdir()
    audio.write_bytes(b"before")
    copy = keep_audio(order(audio_mtime_ns=1), audio, folder)
    audio.write_bytes(b"after")
    assert copy.read_bytes() == b"before"
    assert keep_audio(order(), audio, folder) == audio
    audio.unlink()
    with pytest.raises(AudioError, match="cannot be read"):
        keep_audio(order(audio_mtime_ns=1), audio, folder)


# --- bad plans ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(song: Path, tmp_path_factory: pytest.TempPathFactory, order_of: Callable[..., RenderOrder]) -> bytes:
    """A plan of three segments, with a cover."""
    cover = Cover(np.full((8, 8, 3), 7, np.uint8))
    with Planner(
        order_of(duration=13),
        song,
        tmp_path_factory.mktemp("plan"),
        artist=Counting(),
        digest=lambda sha256: sha256,
        cover=cover,
    ) as planner:
        return planner.finish().read_bytes()


@pytest.fixture(scope="module")
def order_of() -> Callable[..., RenderOrder]:
    """Return an order; the rest are its fields."""
    nowhere = ObjectUrls(key="key", put=SignedPut(url=""), get="")
    now = datetime.now(UTC)
    fixed: dict[str, Any] = {"job_id": "job", "attempt": 1, "token": "", "audio_url": "", "audio_size": 0}
    fixed |= {"video": nowhere, "result": nowhere, "start_by": now, "finish_by": now, "scene": "s", "output": SMALL}
    return lambda **given: RenderOrder(**fixed | given)


def all_of(stored: bytes, folder: Path) -> list[Any] | None:
    """Return all that can be drawn from a plan; None: it is refused at once."""
    plan = Plan.read(reader(stored), folder)
    if plan is None:
        return None
    parts = []
    for index in range(len(plan)):
        with plan.part(index, Counting().start()) as part:
            parts.append(shown(part))
    return [plan.digest, plan.audio_sha256, plan.rate, plan.duration, plan.brightest, parts]


def test_no_damage_is_drawn(stored: bytes, tmp_path: Path) -> None:
    """A byte that changed anywhere is noticed before it is used, or is one that means nothing."""
    good = all_of(stored, tmp_path)
    assert good is not None
    random = np.random.default_rng(5)
    places = [0, 30, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 5, DATA_AT - 1, DATA_AT, len(stored) - 1]
    refused = 0
    for place in [*places, *random.integers(0, len(stored), 30), *random.integers(0, HEAD_BYTES + 1500, 60)]:
        damaged = bytearray(stored)
        damaged[place] ^= 1 << int(random.integers(0, 8))
        try:
            found = all_of(bytes(damaged), tmp_path)
        except PlanError:
            found = None
        refused += found is None
        # Those who use a plan compare the digest in its head with their own.
        assert found is None or found[1:] == good[1:], place
    assert refused > 60
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES, DATA_AT - 1, DATA_AT, DATA_AT + 100, -1])
def test_a_part_of_a_plan_is_not_a_plan(stored: bytes, tmp_path: Path, size: int) -> None:
    """Whatever is missing is noticed."""
    found: Any = None
    with suppress(PlanError):
        found = all_of(stored[:size], tmp_path)
    assert found is None


def test_storage_may_give_less_than_asked_for(stored: bytes, tmp_path: Path) -> None:
    """Then the rest is asked for; nothing is read twice."""
    asked = list[tuple[int, int]]()

    def read(begin: int, size: int) -> bytes:
        asked.append((begin, min(size, 50_000)))
        return stored[begin : begin + min(size, 50_000)]

    plan = Plan.read(read, tmp_path)
    assert plan is not None
    with plan.part(1, Counting().start()) as part:
        assert len(list(part.features)) == 40
    ends = [begin + size for begin, size in asked]
    assert len(set(ends)) == len(ends)


def test_a_plan_takes_two_requests_and_each_segment_two(stored: bytes, tmp_path: Path) -> None:
    """Requests to storage cost money."""
    asked = list[int]()

    def read(begin: int, size: int) -> bytes:
        asked.append(begin)
        return stored[begin : begin + size]

    plan = Plan.read(read, tmp_path)
    assert plan is not None
    assert len(asked) == 2
    plan.part(2, Counting().start()).close()
    assert len(asked) == 4


def test_a_plan_that_goes_away_is_made_anew(
    stored: bytes, song: Path, tmp_path: Path, order_of: Callable[..., RenderOrder]
) -> None:
    """Storage that is lost while a lead draws from a plan that is kept costs time, and no segment differs."""
    whole = all_of(stored, tmp_path)
    assert whole is not None
    is_there = True
    kept = Plan.read(lambda begin, size: stored[begin : begin + size] if is_there else None, tmp_path)
    assert kept is not None
    planner = Planner(order_of(duration=13), song, tmp_path, artist=Counting(), digest=lambda sha256: sha256)
    like, parts = Counting().start(), []
    with KeptOrPlanned(kept, planner) as plan:
        for index in range(len(plan)):
            with plan.part(index, like) as part:
                parts.append(shown(part))
            if index == 0:
                assert not (tmp_path / "plan").exists()
            is_there = False
        assert [plan.digest, plan.audio_sha256, plan.rate, plan.duration, plan.brightest, parts] == whole
        assert plan.cover is not None


def test_another_plan_is_no_replacement(
    stored: bytes, song: Path, tmp_path: Path, order_of: Callable[..., RenderOrder]
) -> None:
    """If the inputs changed meanwhile, nothing is drawn from the new plan."""
    kept = Plan.read(reader(stored), tmp_path)
    assert kept is not None
    kept = evolve(kept, source=KeptPlan(read_back(stored), Gone(stored), tmp_path))
    planner = Planner(order_of(duration=13), song, tmp_path, artist=Counting(), digest=lambda _: "another")
    with KeptOrPlanned(kept, planner) as plan, pytest.raises(PlanError, match="another one was made"):
        plan.part(0, Counting().start())


class Gone:
    """Storage that gives what all segments share, and then nothing."""

    def __init__(self, stored: bytes) -> None:
        self._stored: bytes | None = stored

    def __call__(self, begin: int, size: int) -> bytes | None:
        stored, self._stored = self._stored, None
        return None if stored is None else stored[begin : begin + size]


def test_a_state_of_another_scene_is_refused(stored: bytes, tmp_path: Path) -> None:
    """It is not interpreted."""
    plan = Plan.read(reader(stored), tmp_path)
    assert plan is not None

    class Other(NamedTuple):
        done: float

    with pytest.raises(PlanError, match="another scene"):
        plan.part(0, Other(0.0))
    assert [*tmp_path.iterdir()] == []


def test_strangers_numbers_are_refused(stored: bytes) -> None:
    """An index whose hash is right may still hold nonsense."""
    index = read_back(stored)
    for change in (
        {"frames": 0},
        {"frames": -1},
        {"frames": 1 << 40},
        {"fps": Fraction(0)},
        {"rate": 0},
        {"layout": "5.1"},
        {"brightest": 1 << 20},
        {"cover_bytes": 1 << 40},
        {"run_up": -1},
        {"tops_db": np.full(96, np.nan, np.float32)},
        {"duration": Fraction(-1)},
        {"duration": Fraction(1, 10**30)},
        {"tops_db": np.zeros(95, np.float32)},
        {"segments": [("ab", 1 << 30)]},
    ):
        packed = evolve(index, **change).pack("digest")[HEAD_BYTES:]
        with pytest.raises(ValueError, match="the plan"):
            Index.read(packed)
    for nonsense in (b"", b"[]", b"null", b"{", b'{"frames": "1"}', b"[" * 5000, b"\xff"):
        with pytest.raises(ValueError):
            Index.read(nonsense)


def read_back(stored: bytes) -> Index:
    end = stored.rindex(b"}", HEAD_BYTES, DATA_AT) + 1
    return Index.read(stored[HEAD_BYTES:end])


def test_the_largest_index_has_room(stored: bytes) -> None:
    """256 segments, and more warnings than there ever are."""
    warnings = tuple(RenderWarning(code=f"{n}", message="\N{EURO SIGN}" * 400) for n in range(20))
    index = evolve(read_back(stored), segments=[("f" * 64, 500_000)] * MAX_SEGMENTS, warnings=warnings)
    packed = index.pack("f" * 64)
    assert len(packed) == DATA_AT
    assert Index.read(packed[HEAD_BYTES:].rstrip()) == index

"""Can any frame be drawn from a stored state, and is what is stored safe to read?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.errors import SceneError
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.music import compose
from renderdispatch.render.picture import PlanarScene
from renderdispatch.render.scene import NumpyRenderer, Scene
from renderdispatch.render.snapshots import MAX_STATE_BYTES, dump_state, load_state
from renderdispatch.testing.scenes import flash

SHIPPED = [bars, wave, radial]
FRAMES = 300
EVERY = 10


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Features]:
    """Ten seconds of music."""
    folder = tmp_path_factory.mktemp("music")
    compose(folder / "music.wav", seconds=10)
    with (
        SoundReader(folder / "music.wav", start=Fraction(0), duration=None) as sound,
        Analyser(folder / "features", rate=sound.rate, fps=Fraction(30)) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        with analyser.finish(FRAMES) as found:
            yield found


def scene_of(renderer: NumpyRenderer, width: int = 128, height: int = 72, fps: int = 30) -> Scene[Any]:
    module, _, name = renderer.scene.partition(":")
    scene: type[Scene[Any]] = getattr(import_module(module), name)
    return scene(renderer.params(), width=width, height=height, fps=Fraction(fps))


def drawn(scene: Scene[Any], state: Any, features: Features, index: int) -> bytes:
    if isinstance(scene, PlanarScene):
        return b"".join(plane.tobytes() for plane in scene.picture(state, features.frame(index)).planes)
    canvas = np.zeros((72, 128, 3), np.uint8)
    scene.paint(state, features.frame(index), canvas)
    return canvas.tobytes()


@pytest.mark.parametrize("renderer", [*SHIPPED, flash], ids=repr)
def test_any_frame_can_be_drawn_from_a_snapshot(features: Features, renderer: NumpyRenderer) -> None:
    """200 frames in a random order, each stepped to from the snapshot before it, equal those drawn in order."""
    scene = scene_of(renderer)
    state = scene.start()
    in_order, snapshots = [], []
    for frame in features:
        if frame.index % EVERY == 0:
            snapshots.append(dump_state(state))
        state = scene.step(state, frame)
        in_order.append(drawn(scene, state, features, frame.index))
    assert len(set(in_order)) > FRAMES // 3

    elsewhere = scene_of(renderer)
    for index in random.Random(11).sample(range(FRAMES), 200):
        state = load_state(snapshots[index // EVERY], elsewhere.start())
        for before in range(index // EVERY * EVERY, index + 1):
            state = elsewhere.step(state, features.frame(before))
        assert drawn(elsewhere, state, features, index) == in_order[index], index


@pytest.mark.parametrize("renderer", SHIPPED, ids=repr)
def test_neither_step_nor_drawing_changes_a_state(features: Features, renderer: NumpyRenderer) -> None:
    """The state of a frame is the same bytes after the next one was computed, and after it was drawn."""
    scene = scene_of(renderer)
    state = scene.start()
    for index in range(40):
        state = scene.step(state, features.frame(index))
    before = dump_state(state)
    scene.step(state, features.frame(40))
    scene.paint(state, features.frame(39), np.zeros((72, 128, 3), np.uint8))
    assert dump_state(state) == before


@pytest.mark.parametrize("renderer", SHIPPED, ids=repr)
def test_a_step_does_no_work_that_grows_with_the_picture(features: Features, renderer: NumpyRenderer) -> None:
    """The state has the same size in a picture of 100 times as many pixels, so a step costs next to nothing there."""
    sizes = [len(dump_state(scene_of(renderer, width, width // 2).start())) for width in (192, 1920)]
    assert sizes[1] < 2 * sizes[0] + 8192


@pytest.mark.long
@pytest.mark.parametrize("renderer", SHIPPED, ids=repr)
def test_states_are_small_at_8k(renderer: NumpyRenderer) -> None:
    """A snapshot has less than 256 KiB in the largest picture that there is a preset for, at 60 frames a second."""
    assert len(dump_state(scene_of(renderer, 8192, 4096, 60).start())) < MAX_STATE_BYTES


class Sample(NamedTuple):
    number: int
    speed: float
    lit: bool
    gain: np.float32
    places: NDArray[np.float32]
    grid: NDArray[np.uint8]


def sample(**changed: Any) -> Sample:
    state = Sample(3, 0.1, True, np.float32(0.7), np.arange(4, dtype=np.float32), np.eye(3, dtype=np.uint8))
    return state._replace(**changed)


def test_a_state_comes_back_as_it_was() -> None:
    """With the types of its fields, however its arrays lay in memory; and they may be written to."""
    state = sample(grid=np.arange(9, dtype=np.uint8).reshape(3, 3).T, places=np.arange(8, dtype=">f4")[::2])
    back = load_state(dump_state(state), sample())
    assert [type(value) for value in back] == [type(value) for value in state]
    assert back[:4] == state[:4]
    np.testing.assert_array_equal(back.places, [0, 2, 4, 6])
    np.testing.assert_array_equal(back.grid, state.grid)
    back.places[:] = 0


def test_a_scene_without_a_state_has_a_snapshot_too() -> None:
    """It is the empty tuple."""
    assert load_state(dump_state(()), ()) == ()


def test_equal_states_are_equal_bytes() -> None:
    """Bytes tell whether two machines came to the same state: they hold no time, and no order of memory."""
    assert dump_state(sample()) == dump_state(sample(places=np.arange(8, dtype=np.float32)[::2] / 2))


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (b"", "expected renderdispatch state 1"),
        (b"PK\x03\x04" + bytes(100), "expected renderdispatch state 1"),
        (b"\xff\xfe\n\n" * 50, "expected renderdispatch state 1"),
        (dump_state(()), "expected number: <i8"),
        (dump_state(sample())[:-1], "incomplete or damaged"),
        (dump_state(sample()) + b"x", "incomplete or damaged"),
        (dump_state(sample(places=np.zeros(5, np.float32))), r"expected places: <f4 \(4,\)"),
        (dump_state(sample(places=np.zeros(4))), "expected places: <f4"),
        (dump_state(sample(number=2.5)), "expected number: <i8"),
    ],
    ids=["empty", "zip", "binary", "other-scene", "cut", "longer", "shape", "dtype", "type"],
)
def test_bytes_that_are_no_state_of_the_scene_are_refused(stored: bytes, what: str) -> None:
    """The message names what was expected, and nothing of the foreign bytes."""
    with pytest.raises(SceneError, match=what):
        load_state(stored, sample())


class Inner(NamedTuple):
    first: int
    second: float


NEITHER = ["text", None, {"a": 1}, np.array(["a"]), 1j, 2**70, np.zeros(2, object)]
"""Neither numbers nor arrays of numbers."""
SEQUENCES = [(1, 2.5), [1, 2], [[1], [2, 3]], Inner(1, 2.5), np.ma.masked_array([1, 2])]


@pytest.mark.parametrize("value", [*NEITHER, *SEQUENCES], ids=repr)
def test_a_state_holds_numbers_alone(value: object) -> None:
    """So it can be stored without pickle, and comes back as it was: no nested tuple, and no list."""
    with pytest.raises(SceneError, match="numbers and arrays of numbers; 'number'"):
        dump_state(sample(number=value))


def test_a_state_is_a_named_tuple() -> None:
    """A plain tuple has no names to store."""
    with pytest.raises(SceneError, match="a NamedTuple, not tuple"):
        dump_state((1, 2))


def test_a_state_that_is_too_large_is_refused() -> None:
    """At 256 KiB."""
    with pytest.raises(SceneError, match=f"at most {MAX_STATE_BYTES}"):
        dump_state(sample(places=np.zeros(MAX_STATE_BYTES // 4, np.float32)))

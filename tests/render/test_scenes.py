"""Does the music move the picture, at any size?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import Output, RenderStats
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.music import compose
from renderdispatch.render.scene import NumpyRenderer, Scene

SCENES = [bars, wave, radial]
Frames = Callable[..., list[NDArray[np.uint8]]]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("music") / "music.wav"
    compose(path, seconds=14)
    return path


@pytest.fixture
def features(tmp_path: Path) -> Callable[[NDArray[np.float64]], Features]:
    def of(sound: NDArray[np.float64]) -> Features:
        with Analyser(tmp_path / "features", rate=44_100, fps=Fraction(30)) as analyser:
            analyser.feed(np.atleast_2d(sound).astype(np.float32))
            return analyser.finish(round(sound.shape[-1] * 30 / 44_100))

    return of


def scene_of(renderer: NumpyRenderer, width: int, height: int, **params: Any) -> Scene[Any]:
    module, _, name = renderer.scene.partition(":")
    made: Scene[Any] = getattr(import_module(module), name)(
        renderer.params(**params), width=width, height=height, fps=Fraction(30)
    )
    return made


def paintings(scene: Scene[Any], features: Features, canvas: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Paint frame after frame over the same canvas."""
    state = scene.start()
    for frame in features:
        state = scene.step(state, frame)
        scene.paint(state, frame, canvas)
        yield canvas


def canvas_of(width: int, height: int, value: int = 0) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("renderer", SCENES, ids=repr)
def test_brightness_follows_loudness(
    music: Path,
    render: Callable[..., tuple[Path, RenderStats]],
    brightness: Callable[[Path], NDArray[np.float64]],
    renderer: NumpyRenderer,
) -> None:
    """Over music with loud and quiet parts, the frames' brightness and the sound's loudness correlate."""
    video, stats = render(renderer, music, output=Output(width=160, height=90))
    with SoundReader(music, start=Fraction(0), duration=None) as reader:
        sound = np.concatenate(list(reader.blocks()), axis=1)
    rms = np.array([np.sqrt(np.mean(part**2)) for part in np.array_split(sound, stats.frames, axis=1)])
    seen = brightness(video)
    for loudness in (rms, 20 * np.log10(rms + 1e-4)):
        assert np.corrcoef(loudness, seen)[0, 1] > 0.6


@pytest.mark.parametrize("renderer", SCENES, ids=repr)
def test_silence_is_a_still_picture(
    features: Callable[[NDArray[np.float64]], Features], renderer: NumpyRenderer
) -> None:
    """Every frame of silence is the same, and shows the shapes at rest, brighter than what is behind them."""
    with features(np.zeros(44_100)) as silence:
        painted = [picture.copy() for picture in paintings(scene_of(renderer, 320, 180), silence, canvas_of(320, 180))]
    assert int(painted[0].max()) > 100
    for picture in painted[1:]:
        np.testing.assert_array_equal(picture, painted[0])


@pytest.mark.parametrize("renderer", SCENES, ids=repr)
@pytest.mark.parametrize(
    ("width", "height"), [(16, 16), (16, 1000), (1000, 16), (8192, 16), (90, 160), (122, 122), (18, 34), (1922, 1082)]
)
def test_every_size_is_painted_whole(
    features: Callable[[NDArray[np.float64]], Features], renderer: NumpyRenderer, width: int, height: int
) -> None:
    """Any size and shape works, and no pixel keeps what the canvas held before."""
    loud = np.random.default_rng(3).normal(0, 0.3, 8820)
    with features(loud) as noise:
        scene = scene_of(renderer, width, height)
        over_black, over_white = (paintings(scene, noise, canvas_of(width, height, value)) for value in (0, 255))
        for black, white in zip(over_black, over_white, strict=True):
            np.testing.assert_array_equal(black, white)


@pytest.mark.parametrize("renderer", SCENES, ids=repr)
def test_parameters_change_the_picture(
    features: Callable[[NDArray[np.float64]], Features], renderer: NumpyRenderer
) -> None:
    """Each parameter but those that need time is seen within some frames."""
    loud = np.random.default_rng(3).normal(0, 0.2, 44_100)
    changed: dict[str, Any] = {
        "colours": ("#00ff00",),
        "background": "#402010",
        "gain": 0.3,
        "glow": 0.0,
        "pulse": 0.0,
        "bars": 24,
        "peaks": False,
        "thickness": 3.0,
        "spin": 20.0,
    }
    with features(loud) as noise:

        def last_frame(**params: Any) -> NDArray[np.uint8]:
            scene = scene_of(renderer, 320, 180, **params)
            return list(islice(paintings(scene, noise, canvas_of(320, 180)), 20))[-1]

        usual = last_frame()
        for name in renderer.params.model_fields:
            assert not np.array_equal(last_frame(**{name: changed[name]}), usual), name


@pytest.mark.parametrize("name", ["bars", "wave", "radial"])
def test_a_scene_module_does_not_take_the_renderers_place(name: str) -> None:
    """The names of `renderdispatch.render` are renderers, also once the scenes were imported."""
    import_module(f"renderdispatch.render.scenes.{name}")
    assert isinstance(getattr(import_module("renderdispatch.render"), name), NumpyRenderer)

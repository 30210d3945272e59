"""Do the scenes in GLSL follow the music, and are they never black, still or clipped?"""

from __future__ import annotations

import wave
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.messages import Output
from renderdispatch.render.alone import order_alone
from renderdispatch.render.artist import picture_at
from renderdispatch.render.gl.renderer import GlslRenderer
from renderdispatch.render.music import compose
from tests.support.following import LEAST, WHITE, features_of, follow, shipped_gl_scenes
from tests.support.needs import need_opengl

SCENES = shipped_gl_scenes()
SHAPES = [
    Output(width=160, height=90),
    Output(width=90, height=160),
    Output(width=120, height=120),
    Output(width=256, height=128, projection="360-mono"),
    Output(width=128, height=128, projection="360-stereo"),
]


@pytest.fixture(scope="module", autouse=True)
def _gl() -> None:
    need_opengl()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pieces with quiet and loud parts, drums and different melodies."""
    folder = tmp_path_factory.mktemp("music")
    found = []
    for seed in (7, 11):
        found.append(folder / f"{seed}.wav")
        compose(found[-1], seconds=20, seed=seed)
    return found


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("music") / "silence.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44_100, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 44_100 * 5))
    return path


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_pictures_follow_the_music(scene: GlslRenderer, pieces: list[Path]) -> None:
    """Brightness or motion goes with loudness or beat, no frame is black, and almost nothing is white."""
    for piece in pieces:
        with features_of(piece, fps=10) as features:
            followed = follow(scene, piece, features)
        assert followed.best > LEAST, followed.correlations
        assert 30 < followed.brightness.min() < followed.brightness.max() < 215
        assert followed.motion.min() > 0
        assert followed.clipped < 0.01


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_silence_is_neither_black_nor_still(scene: GlslRenderer, silence: Path) -> None:
    """Without sound, the picture rests: it is visible, and moves slowly."""
    with features_of(silence, fps=10) as features:
        followed = follow(scene, silence, features)
    assert followed.brightness.min() > 22
    assert followed.motion.min() > 0.01
    assert followed.motion.mean() < 8


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_every_shape_is_filled(scene: GlslRenderer, pieces: list[Path]) -> None:
    """In loud music, the pictures of all shapes have dark and light parts, and less than a hundredth is clipped."""
    with features_of(pieces[0], fps=30, start=14, seconds=0.5) as features:
        for output in SHAPES:
            with scene.artist(order_alone(pieces[0], scene="alone", output=output)) as artist:
                luma = picture_at(artist, features, len(features) - 1).luma
            assert luma.shape == (output.height, output.width)
            assert (luma > 28).mean() > 0.5
            assert (luma >= WHITE).mean() < 0.01
            assert luma.std() > 5


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_a_frame_is_the_same_from_its_run_up_on(scene: GlslRenderer, pieces: list[Path]) -> None:
    """A frame that is drawn after the run-up alone equals, bit by bit, the one that is drawn from the start."""
    order = order_alone(pieces[0], scene="alone", output=Output(width=96, height=54))
    with features_of(pieces[0], fps=30, start=6, seconds=8) as features, scene.artist(order) as artist:
        assert artist.run_up is not None
        last = min(artist.run_up + 47, len(features) - 1)
        state = artist.start()
        for frame in islice(features, last + 1):
            state = artist.step(state, frame)
            whole = artist.draw(state, frame)
        alone = picture_at(artist, features, last)
    for one, other in zip(whole.planes, alone.planes, strict=True):
        np.testing.assert_array_equal(one, other)

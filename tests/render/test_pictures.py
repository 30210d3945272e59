"""Are the pictures of every scene, in every shape, neither black nor still nor clipped?"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.music import compose
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scene_artist import SceneArtist

BLACK, WHITE = 16, 235
SHAPES = [
    Output(width=320, height=180),
    Output(width=180, height=320),
    Output(width=240, height=240),
    Output(width=512, height=256, projection="360-mono"),
    Output(width=256, height=256, projection="360-stereo"),
]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Features]:
    """Those of four seconds of music, in which all instruments play."""
    folder = tmp_path_factory.mktemp("music")
    compose(folder / "song.wav", seconds=12)
    with (
        SoundReader(folder / "song.wav", start=Fraction(8), duration=Fraction(3)) as sound,
        Analyser(folder / "features", rate=sound.rate, fps=Fraction(30)) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        with analyser.finish(90) as computed:
            yield computed


@pytest.mark.parametrize("output", SHAPES, ids=lambda output: f"{output.projection}-{output.width}x{output.height}")
@pytest.mark.parametrize("renderer", [bars, wave, radial], ids=repr)
def test_pictures_are_neither_black_nor_still_nor_clipped(
    features: Features, renderer: NumpyRenderer, output: Output
) -> None:
    """Each frame of music has something bright, differs from those just before, and is white almost nowhere."""
    module, _, name = renderer.scene.partition(":")
    artist = SceneArtist(getattr(import_module(module), name), renderer.params(), output)
    state, drawn = artist.start(), deque[NDArray[np.int16]](maxlen=5)
    for frame in features:
        state = artist.step(state, frame)
        if frame.index < 10:
            continue
        luma = artist.draw(state, frame).luma.astype(np.int16)
        assert (luma > 90).mean() > 0.002
        assert ((luma >= WHITE) | (luma <= BLACK - 1)).mean() < 0.01
        assert (luma > BLACK + 1).mean() > 0.5
        if len(drawn) == drawn.maxlen:
            assert np.abs(luma - drawn[0]).mean() > 0.2
        drawn.append(luma)

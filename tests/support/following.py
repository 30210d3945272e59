"""Does a picture follow the music? This measures how its brightness and its motion go with loudness and beat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

import renderdispatch.render
from renderdispatch.messages import Output
from renderdispatch.render.alone import order_alone
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.gl.renderer import GlslRenderer
from renderdispatch.render.renderer import VideoRenderer

WHITE: Final = 235
LEAST: Final = 0.4
"""A scene follows a song if one of the correlations is above this."""


def shipped_gl_scenes() -> dict[str, GlslRenderer]:
    """Return the scenes in GLSL that come with the library, by name."""
    found = {name: getattr(renderdispatch.render, name) for name in renderdispatch.render.__all__}
    return {name: scene for name, scene in sorted(found.items()) if isinstance(scene, GlslRenderer)}


@frozen
class Followed:
    """How the pictures of a song go with its sound.

    Args:
        correlations: Of ``brightness`` (the mean luma) and ``motion`` (the mean absolute difference from the frame
            before) with ``level`` and ``beat``, by names such as ``motion/beat``. 0 where one of the two is constant.
        brightness: The mean luma of each frame.
        motion: Of each frame but the first.
        clipped: The largest part of a frame that is as bright as the encoder's white.
    """

    correlations: dict[str, float]
    brightness: NDArray[np.float64]
    motion: NDArray[np.float64]
    clipped: float

    @property
    def best(self) -> float:
        """The largest correlation."""
        return max(self.correlations.values())


@contextmanager
def features_of(song: Path, *, fps: int, start: float = 0, seconds: float | None = None) -> Iterator[Features]:
    """Return the features of a part of a song."""
    duration = None if seconds is None else Fraction(seconds)
    with (
        TemporaryDirectory() as folder,
        SoundReader(song, start=Fraction(start), duration=duration) as sound,
        Analyser(Path(folder, "features"), rate=sound.rate, fps=Fraction(fps)) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        with analyser.finish(max(round(float(sound.duration) * fps), 1)) as features:
            yield features


def follow(renderer: VideoRenderer, song: Path, features: Features, *, width: int = 96, height: int = 54) -> Followed:
    """Draw all frames of a song and measure them."""
    output = Output(width=width, height=height, fps=features.fps)
    brightness, motion, levels, beats, clipped = [], list[float](), list[float](), list[float](), 0.0
    last: NDArray[np.int16] | None = None
    with renderer.artist(order_alone(song, scene="alone", output=output)) as artist:
        state = artist.start()
        for frame in features:
            state = artist.step(state, frame)
            luma = artist.draw(state, frame).luma.astype(np.int16)
            brightness.append(float(luma.mean()))
            if last is not None:
                motion.append(float(np.abs(luma - last).mean()))
            levels.append(frame.level)
            beats.append(frame.beat)
            clipped = max(clipped, float((luma >= WHITE).mean()))
            last = luma
    correlations = {
        f"{seen}/{heard}": _correlation(np.array(values), np.array(sound)[len(sound) - len(values) :])
        for seen, values in (("brightness", brightness), ("motion", motion))
        for heard, sound in (("level", levels), ("beat", beats))
    }
    return Followed(correlations, np.array(brightness), np.array(motion), clipped)


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])

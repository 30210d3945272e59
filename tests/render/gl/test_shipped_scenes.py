"""Are the pictures of the scenes in GLSL what a musician publishes, in every shape and with every parameter?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from numpy.typing import NDArray

import renderdispatch.render
from renderdispatch.messages import Output, RenderOrder
from renderdispatch.render.artist import picture_at
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.gl.renderer import GlslRenderer
from renderdispatch.render.gl.shader import read_shader
from renderdispatch.render.music import compose
from renderdispatch.render.picture import Converter, Picture
from tests.support.needs import need_opengl

BLACK, WHITE = 16, 235
FPS = Fraction(10)
SCENES = {
    name: scene
    for name in renderdispatch.render.__all__
    if isinstance(scene := getattr(renderdispatch.render, name), GlslRenderer)
}
SHAPES = [
    Output(width=128, height=72, fps=FPS),
    Output(width=72, height=128, fps=FPS),
    Output(width=96, height=96, fps=FPS),
    Output(width=192, height=96, projection="360-mono", fps=FPS),
    Output(width=128, height=128, projection="360-stereo", fps=FPS),
]
LANDSCAPE = SHAPES[0]


ALL_AROUND = ["nebula", "orb", "terrain", "tunnel"]
"""The scenes that offer ``mainVR``."""

Draw = Callable[..., list[Picture]]


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    need_opengl()


def features_of(path: Path, folder: Path, *, start: int, seconds: int) -> Features:
    with (
        SoundReader(path, start=Fraction(start), duration=Fraction(seconds)) as sound,
        Analyser(folder / f"features {start}", rate=sound.rate, fps=FPS) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        return analyser.finish(int(seconds * FPS))


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Features]:
    """The features of two seconds of music, in which all instruments play."""
    folder = tmp_path_factory.mktemp("music")
    compose(folder / "song.wav", seconds=12)
    with features_of(folder / "song.wav", folder, start=8, seconds=2) as computed:
        yield computed


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Features]:
    """The features of two seconds of silence."""
    with Analyser(tmp_path_factory.mktemp("silence") / "features", rate=44_100, fps=FPS) as analyser:
        analyser.feed(np.zeros((1, 88_200), np.float32))
        with analyser.finish(20) as computed:
            yield computed


@pytest.fixture
def draw(order: Callable[..., RenderOrder]) -> Draw:
    """Return what draws all frames of some features."""

    def drawn(name: str, features: Features, output: Output = LANDSCAPE, **params: Any) -> list[Picture]:
        with SCENES[name].artist(order(output=output, params=params)) as artist:
            state, pictures = artist.start(), []
            for frame in features:
                state = artist.step(state, frame)
                pictures.append(artist.draw(state, frame))
        return pictures

    return drawn


def lumas(pictures: list[Picture]) -> NDArray[np.int16]:
    return np.stack([picture.luma.astype(np.int16) for picture in pictures])


def rgb_of(picture: Picture) -> NDArray[np.uint8]:
    canvas = np.zeros((*picture.luma.shape, 3), np.uint8)
    Converter().to_rgb(picture, canvas)
    return canvas


@pytest.mark.parametrize("output", SHAPES, ids=lambda output: f"{output.projection}-{output.width}x{output.height}")
@pytest.mark.parametrize("name", SCENES)
def test_pictures_are_neither_black_nor_still_nor_clipped(
    draw: Draw, music: Features, name: str, output: Output
) -> None:
    """Frames of music are of a pleasant brightness, each differs from the one before, and almost nothing is white."""
    luma = lumas(pictures := draw(name, music, output)[5:])
    assert 26 < luma.mean() < 170
    assert luma.std(axis=(1, 2)).min() > 8
    assert np.abs(np.diff(luma, axis=0)).mean(axis=(1, 2)).min() > 0.1
    for picture in pictures[::5]:
        assert (rgb_of(picture) >= 253).any(axis=2).mean() < 0.01


@pytest.mark.parametrize("name", SCENES)
def test_silence_is_neither_black_nor_still(draw: Draw, silence: Features, name: str) -> None:
    """Without a sound a scene rests: it is darker than music, is seen, and moves slowly."""
    luma = lumas(draw(name, silence))
    assert luma[-1].mean() > BLACK + 6
    assert luma[-1].max() > 70
    assert np.abs(luma[-1] - luma[9]).mean() > 0.15
    assert np.abs(np.diff(luma, axis=0)).mean(axis=(1, 2)).max() < 15


@pytest.mark.parametrize("name", SCENES)
def test_music_is_brighter_than_silence(draw: Draw, silence: Features, music: Features, name: str) -> None:
    """The loudest frame is well apart from a resting one."""
    loudest = int(music.level.argmax())
    assert abs(lumas(draw(name, music))[loudest].mean() - lumas(draw(name, silence))[loudest].mean()) > 6


@pytest.mark.parametrize("name", SCENES)
def test_flicker_of_the_level_is_not_seen(order: Callable[..., RenderOrder], music: Features, name: str) -> None:
    """Where the level goes up and down from frame to frame, the brightness does not."""
    frame, fps = music.frame(len(music) - 1), Fraction(30)
    means = []
    with SCENES[name].artist(order(output=LANDSCAPE.model_copy(update={"fps": fps}))) as artist:
        state = artist.start()
        for index in range(24):
            one = evolve(frame, index=index, level=0.5 + 0.3 * (index % 2), beat=0.0)
            state = artist.step(state, one)
            means.append(artist.draw(state, one).luma.mean())
    changes = np.diff(means[8:])
    assert np.minimum(abs(changes[1:]), abs(changes[:-1]))[changes[1:] * changes[:-1] < 0].max(initial=0) < 2


@pytest.mark.parametrize("output", SHAPES[:2], ids=["landscape", "portrait"])
@pytest.mark.parametrize("name", SCENES)
def test_a_beat_is_no_flash(order: Callable[..., RenderOrder], music: Features, name: str, output: Output) -> None:
    """In a loud passage, a beat brightens the whole picture a little, and no quarter of it so much that it hurts."""
    frame = evolve(music.frame(music.first + int(music.level.argmax())), index=0, level=0.7)
    with SCENES[name].artist(order(output=output)) as artist:
        state = artist.start()
        for _ in range(20):
            state = artist.step(state, frame)
        rest, beat = (artist.draw(state, evolve(frame, beat=beat)).luma.astype(float) for beat in (0.0, 1.0))
    assert 0.5 < (beat - rest).mean() < 16
    assert max(quarter.mean() for quarter in np.split(beat - rest, 4)) < 26


def ends_of(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all parameters at the one end of what is allowed, and at the other."""
    low, high = dict[str, Any](), dict[str, Any]()
    for field, schema in SCENES[name].params.model_json_schema()["properties"].items():
        if "minimum" in schema:
            low[field], high[field] = schema["minimum"], schema["maximum"]
        elif schema["type"] == "array":
            low[field], high[field] = ["#30c040"], ["#30c040", "#c03040", "#3040c0", "#c0c0c0"]
        else:
            low[field], high[field] = "#102040", "#90a0b0"
    return low, high


@pytest.mark.parametrize("name", SCENES)
def test_every_parameter_is_seen(draw: Draw, music: Features, name: str) -> None:
    """One after the other is set to its end. No picture has holes, as pixels without a number would be."""
    low, high = ends_of(name)
    loudest, params = int(music.level.argmax()), dict[str, Any]()
    with music.slice(max(loudest - 3, 0), loudest + 1) as part:
        last = draw(name, part)[-1].luma
        for field in high:
            params[field] = high[field]
            luma = draw(name, part, **params)[-1].luma
            assert not np.array_equal(luma, last), field
            assert (luma <= BLACK).mean() < 0.02, params
            assert luma.std() > 2, params
            last = luma
        lowest = draw(name, part, **low)[-1].luma
    assert (lowest <= BLACK).mean() < 0.02
    assert lowest.std() > 2


@pytest.mark.parametrize("name", SCENES)
def test_a_frame_alone_is_the_same_to_the_bit(
    draw: Draw, order: Callable[..., RenderOrder], music: Features, name: str
) -> None:
    """What was drawn before does not matter."""
    in_order = draw(name, music)[-1]
    with SCENES[name].artist(order(output=LANDSCAPE)) as artist:
        alone = picture_at(artist, music, len(music) - 1)
    for one, other in zip(in_order.planes, alone.planes, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SCENES)
def test_the_picture_scales(draw: Draw, music: Features, name: str) -> None:
    """At three times the size it is the same one, but for what is smaller than a pixel."""
    with music.slice(len(music) - 1, len(music)) as last:
        small = lumas(draw(name, last))[0]
        large = lumas(draw(name, last, Output(width=384, height=216, fps=FPS)))[0]
    coarse, shrunk = small.reshape(9, 8, 16, 8).mean(axis=(1, 3)), large.reshape(9, 24, 16, 24).mean(axis=(1, 3))
    assert np.abs(shrunk - coarse).mean() < 5
    assert np.corrcoef(shrunk.ravel(), coarse.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", SCENES)
def test_scenes_offer_all_directions(name: str) -> None:
    """In 360, these are drawn all around the viewer; the others are shown on a screen."""
    package, _, file = SCENES[name].shader.partition(":")
    shader = read_shader(files(package).joinpath(file).read_text(), name=file)
    assert shader.has_vr == (name in ALL_AROUND)


@pytest.mark.parametrize("name", ALL_AROUND)
def test_360_has_no_seam(draw: Draw, music: Features, name: str) -> None:
    """Behind the viewer the picture's ends meet, and above and below him a row is one place."""
    with music.slice(len(music) - 1, len(music)) as last:
        luma = lumas(draw(name, last, Output(width=512, height=256, projection="360-mono", fps=FPS)))[0]
    beside = np.abs(np.diff(luma, axis=1)).mean(axis=0)
    assert np.abs(luma[:, 0] - luma[:, -1]).mean() < max(2 * beside.mean(), 1.5)
    for pole in (luma[0], luma[-1]):
        assert np.ptp(pole) < 25
        assert np.abs(np.diff(pole, append=pole[:1])).max() < 12


def test_the_orb_is_near(draw: Draw, music: Features) -> None:
    """In stereo the left eye sees it further to the right, by the angle between the eyes."""
    output = Output(width=1024, height=1024, projection="360-stereo", fps=FPS)
    with music.slice(len(music) - 1, len(music)) as last:
        luma = lumas(draw("orb", last, output))[0]
    left, right = luma[:512], luma[512:]
    middle = slice(206, 306), slice(470, 554)
    shifts = range(-15, 16)
    errors = [np.abs(np.roll(right, shift, axis=1)[middle] - left[middle]).mean() for shift in shifts]
    assert 7 <= shifts[int(np.argmin(errors))] <= 13  # 64 mm at 1.5 m, and at 0.8 m, where its surface is


def test_the_largest_orb_is_not_in_the_viewers_face(draw: Draw, music: Features) -> None:
    """In stereo, the eyes need not turn inwards further than for one of the usual size."""
    output = Output(width=1024, height=1024, projection="360-stereo", fps=FPS)
    loudest = int(music.level.argmax())
    with music.slice(max(loudest - 2, 0), loudest + 1) as part:
        luma = lumas(draw("orb", part, output, size=1.4))[-1]
    left, right = luma[:512], luma[512:]
    middle = slice(206, 306), slice(470, 554)
    errors = [np.abs(np.roll(right, shift, axis=1)[middle] - left[middle]).mean() for shift in range(40)]
    assert int(np.argmin(errors)) <= 11


@pytest.mark.parametrize("energy", [60.0, 295.0, 345.0, 435.0])
def test_the_flight_over_the_lake_keeps_away_from_land(
    order: Callable[..., RenderOrder], music: Features, energy: float
) -> None:
    """All around the viewer is water: no land is so near that he would fly through it."""
    output = Output(width=256, height=128, projection="360-mono", fps=FPS)
    frame = evolve(music.frame(music.first + len(music) - 1), beat=0.0)
    with SCENES["terrain"].artist(order(output=output)) as artist:
        state = artist.step(artist.start()._replace(energy=energy), frame)
        below = artist.draw(state, frame).luma[106:124].astype(float)  # 59 to 85 degrees down
    assert below.std(axis=1).max() < 5


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_ink_fades_alike_at_every_frame_rate(order: Callable[..., RenderOrder], music: Features, fps: int) -> None:
    """Its life is six seconds, which are more frames where frames are short."""
    output = Output(width=96, height=54, fps=Fraction(fps))
    frame = evolve(music.frame(music.first + int(music.level.argmax())), beat=0.0)
    with SCENES["ink"].artist(order(output=output)) as artist:
        assert artist.run_up == 6 * fps
        state = artist.start()
        for index in range(5 * fps):
            one = evolve(frame, index=index)
            state = artist.step(state, one)
            picture = artist.draw(state, one)
    assert abs(picture.luma.mean() - 150) < 8

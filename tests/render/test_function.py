"""Does a plain function become a scene, and is each mistake in it named?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import ConfigurationError, InvalidRequestError, RenderStopped, SceneError
from renderdispatch.messages import Asset, ObjectUrls, Output, RenderOrder, RenderStats, SignedPut
from renderdispatch.protocols import Renderer, SupportsGpu
from renderdispatch.render.function import renderer
from renderdispatch.render.params import Colour, Colours
from renderdispatch.render.preview import preview
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore

if TYPE_CHECKING:
    from renderdispatch.render.features import Features

Pixels = NDArray[np.uint8]
Render = Callable[..., tuple[Path, RenderStats]]
Order = Callable[..., RenderOrder]


@pytest.fixture
def song(write_wav: Callable[..., Path], tmp_path: Path) -> Path:
    """Half a second, loudest at 0.3 s: 15 frames."""
    time = np.arange(22_050) / 44_100
    return write_wav(tmp_path / "song.wav", np.exp(-200 * (time - 0.3) ** 2) * np.sin(2000 * time))


@renderer
def grey(
    song: Features,
    *,
    width: int,
    height: int,
    gain: Annotated[float, Field(ge=0, le=2, description="how bright")] = 1.0,
    colour: Colour = "#ffffff",
) -> Iterator[Pixels]:
    """As bright as the sound is loud."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for frame in song:
        canvas[:] = round(min(255 * gain * frame.level, 255))
        yield canvas


def frames(*made: Any) -> Callable[..., Any]:
    """Return a function that yields these, whatever the song."""

    def function(song: Features) -> Iterator[Any]:
        yield from made

    return function


def black(count: int = 15) -> list[Pixels]:
    return [np.zeros((36, 64, 3), np.uint8) for _ in range(count)]


def test_each_picture_is_a_frame(render: Render, song: Path, brightness: Callable[[Path], NDArray[np.float64]]) -> None:
    """The function may paint on one canvas again and again."""
    path, stats = render(grey, song)
    shown = brightness(path)
    assert (stats.frames, stats.rendered_by, len(shown)) == (15, "python", 15)
    assert 8 <= int(shown.argmax()) <= 9
    assert shown.max() > 200 and shown.min() < 40


def test_it_is_a_renderer_with_parameters() -> None:
    """Arguments with a default are the scene's parameters, described and checked; the docstring says what it draws."""
    scene: object = grey
    assert isinstance(scene, Renderer) and isinstance(scene, SupportsGpu)
    assert not scene.uses_gpu()
    assert [(one.name, one.type, one.default, one.help) for one in grey.describe_params()] == [
        ("gain", "number 0 to 2", "1.0", "how bright"),
        ("colour", "#rrggbb", "#ffffff", ""),
    ]
    assert grey.__doc__ == "As bright as the sound is loud."
    with pytest.raises(InvalidRequestError, match="'gain'"):
        grey.check_params({"gain": 3})
    with pytest.raises(InvalidRequestError, match="did you mean 'colour'"):
        grey.check_params({"color": "#000000"})


def test_parameters_reach_the_function(render: Render, song: Path) -> None:
    """As their types say; beside them what it asks for of size, rate and cover."""
    got: dict[str, Any] = {}

    @renderer(about="Looks.", uses_gpu=True)
    def looking(  # type: ignore[no-untyped-def]  # the type of one argument is that of its default
        song: Features,
        width: int,
        height: int,
        *,
        fps: Fraction,
        cover: Any,
        colours: Colours = "#102030,#405060",  # type: ignore[assignment]  # as a command line writes it
        mode: Literal["a", "b"] = "a",
        size: float = Field(default=2, description="of it"),
        plain=5,
    ) -> Any:
        got.update(locals())
        got["levels"], got["beats"] = song.level.copy(), song.beat.copy()
        return black()

    Image.new("RGB", (9, 7), "red").save(song.parent / "cover.png")
    cover = Asset(url="", size=1, path=str(song.parent / "cover.png"))
    render(looking, song, params={"mode": "b"}, cover=cover)
    assert looking.uses_gpu() and looking.__doc__ == "Looks."
    assert (got["width"], got["height"], got["fps"]) == (64, 36, 30)
    assert (got["colours"], got["mode"], got["size"], got["plain"]) == (("#102030", "#405060"), "b", 2, 5)
    assert got["cover"].shape == (7, 7, 3)
    assert got["levels"].shape == got["beats"].shape == (15,)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (64, 36), "white"),
        np.broadcast_to(np.uint8(255), (36, 64, 3)),
        np.full((3, 36, 64), 255, np.uint8).transpose(1, 2, 0),
        np.full((36, 64, 3), 255, np.uint8)[::-1, ::-1],
    ],
    ids=["Pillow", "read-only", "planes", "reversed"],
)
def test_whatever_numpy_takes(
    picture: Any, render: Render, song: Path, brightness: Callable[[Path], NDArray[np.float64]]
) -> None:
    """Laid out in memory as it likes."""
    path, _ = render(renderer(frames(*[picture] * 15)), song)
    assert brightness(path).min() > 230


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        (frames(*black(14)), "frames.too-few", "made 14 frames; 15 were ordered"),
        (frames(*black(16)), "frames.too-many", "more than the 15 frames"),
        (frames(), "frames.too-few", "made 0 frames"),
        (frames(black()[0][:, :, 0]), "frames.wrong", r"frame 0 of function is \(36, 64\) uint8; \(36, 64, 3\) uint8"),
        (frames(black()[0][:20]), "frames.wrong", r"is \(20, 64, 3\) uint8"),
        (frames(*black(3), black()[0] / 255), "frames.wrong", r"frame 3 .* float64; .*\(picture \* 255\)"),
        (frames(None), "frames.wrong", "yielded None for frame 0"),
        (frames("text"), "frames.wrong", r"is \(\) <U4"),
        (lambda song: None, "frames.wrong", "returned None, and is to yield pictures"),
        (lambda song: 7, "scene.failed", "'int' object is not iterable"),
        (lambda song: 1 / 0, "scene.failed", "at its start: ZeroDivisionError"),
        (lambda song: (1 // n for n in [0]), "scene.failed", "at frame 0: ZeroDivisionError"),
    ],
)
def test_mistakes_are_named(function: Any, code: str, said: str, render: Render, song: Path, tmp_path: Path) -> None:
    """With the frame, what came and what is needed."""
    with pytest.raises(SceneError, match=said) as failed:
        render(renderer(function), song)
    assert failed.value.code == code
    assert [one.name for one in tmp_path.iterdir()] == ["song.wav"]


def test_what_no_scene_can_have_is_refused_when_it_is_made() -> None:
    """By the decorator: a program that imports it says so at once."""

    def no_default(song: Features, size: int) -> None: ...
    def many(song: Features, *sizes: int) -> None: ...
    def any_name(song: Features, **sizes: int) -> None: ...
    def nothing() -> None: ...
    def unknown(song: Features, size: Missing = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def wrong(song: Features, size: Annotated[int, Field(ge=3)] = 1) -> None: ...
    async def later(song: Features) -> None: ...
    async def stream(song: Features) -> Any:
        yield 1

    def undescribed(song: Features, key: Callable[[int], int] = abs) -> None: ...

    mistakes: tuple[tuple[Any, str], ...] = (
        (no_default, "'size' needs a default"),
        (many, "no one name"),
        (any_name, "no one name"),
        (nothing, "first argument is the song"),
        (unknown, "'Missing' is not defined"),
        (wrong, "greater than or equal to 3"),
        (later, "is async"),
        (stream, "is async"),
        (functools.partial(stream), "is async"),
        (undescribed, "the parameters of undescribed"),
    )
    for function, said in mistakes:
        with pytest.raises(ConfigurationError, match=said):
            renderer(function)


class Greys:
    """Draws as an object that is called."""

    def __call__(self, song: Features, *, width: int, height: int, colour: Colour = "#ffffff") -> Any:
        return grey.function(song, width=width, height=height, colour=colour)

    def method(self, width: Features, *, height: int, colour: Colour = "#ffffff") -> Any:
        """Draw as a method, whose song has an unlucky name."""
        return grey.function(width, width=64, height=height, colour=colour)


@functools.wraps(grey.function)
def wrapped(*given: Any, **named: Any) -> Any:
    return grey.function(*given, **named)


@pytest.mark.parametrize(
    ("function", "about"),
    [
        (functools.partial(grey.function, gain=0.5), "As bright as the sound is loud."),
        (Greys(), "Draws as an object that is called."),
        (Greys().method, "Draw as a method, whose song has an unlucky name."),
        (wrapped, "As bright as the sound is loud."),
    ],
    ids=["partial", "object", "method", "wrapped"],
)
def test_whatever_can_be_called(function: Any, about: str, render: Render, song: Path) -> None:
    """Its annotations are read where its author wrote them, and so is what it draws."""
    made = renderer(function)
    assert made.__doc__ == about
    made.check_params({"colour": "#102030"})
    assert render(made, song)[1].frames == 15


def test_a_failing_end_hides_nothing(order: Order, song: Path) -> None:
    """A job that was cancelled stays so, and the first failure is the one that is told."""

    def failing(pictures: list[Any]) -> Callable[..., Any]:
        def function(song: Features) -> Iterator[Any]:
            try:
                yield from pictures
            finally:
                raise OSError("cannot let go")

        return function

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped):
        renderer(failing(black())).render(order(), song, song.with_suffix(".mp4"), stop)
    with pytest.raises(SceneError, match="cannot let go"):
        renderer(failing(black())).render(order(), song, song.with_suffix(".mp4"), lambda done, total: None)
    wrong = renderer(failing([np.zeros((2, 2, 3), np.uint8)]))
    with pytest.raises(SceneError, match=r"frame 0 of function is \(2, 2, 3\)"):
        wrong.render(order(), song, song.with_suffix(".mp4"), lambda done, total: None)


def test_it_can_still_be_called() -> None:
    """For tests of the function, and to use it in another one."""

    @renderer
    def counted(song: Features, *, to: int = 3) -> Iterator[int]:
        yield from range(to)

    assert list(counted(None)) == [0, 1, 2]
    assert list(renderer(functools.partial(counted.function, to=2))(None)) == [0, 1]


def test_a_stop_runs_its_end(order: Order, song: Path) -> None:
    """What the function holds is let go, also in the middle."""
    ended: list[bool] = []

    @renderer
    def holding(song: Features) -> Iterator[Pixels]:
        try:
            yield from black()
        finally:
            ended.append(True)

    def report(done: int, total: int) -> None:
        if done == 3:
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped):
        holding.render(order(), song, song.with_suffix(".mp4"), report)
    assert ended == [True]


def test_a_preview_is_a_frame_of_the_video(song: Path) -> None:
    """All frames before it are drawn, for the function may remember them; the brightest of a short song is in its middle."""

    @renderer
    def counting(song: Features, *, width: int, height: int) -> Iterator[Pixels]:
        for frame in song:
            yield np.full((height, width, 3), 10 * frame.index, np.uint8)

    size = Output(width=64, height=36)
    assert np.asarray(preview(song, scene=counting, at=0.4, output=size)).mean() == pytest.approx(120, abs=2)
    assert np.asarray(preview(song, scene=counting, output=size)).mean() == pytest.approx(60, abs=2)


def test_a_360_video_with_a_poster(render: Render, song: Path) -> None:
    """The pictures are shown on the screen; the poster is the screen's picture, kept when it came by."""
    sphere = Output(width=128, height=64, projection="360-mono")
    path, _ = render(grey, song, output=sphere, poster=ObjectUrls(key="poster", put=SignedPut(url="")))
    assert b"equi" in path.read_bytes()
    with Image.open(path.with_suffix(".jpg")) as poster:
        assert poster.size == (40, 22)
        assert np.ptp(np.asarray(poster)) <= 2  # of one grey, as the function's picture


def test_a_render_process_finds_it_by_name(song: Path, tmp_path: Path) -> None:
    """In a file or a package, as every renderer."""
    backend = LocalGpuBackend(renderers={"grey": f"{__file__}:grey"})
    storage = FsspecStorage(tmp_path / "objects")
    with RenderService(MemoryJobStore(), storage, backend) as service:
        handle = service.submit(song, scene="grey", params={"gain": 0.5}, output=Output(width=64, height=36))
        result = handle.wait(60)
        assert result.status == "complete", result.error


@pytest.mark.parametrize("where", [grey, "__main__:grey"])
def test_a_render_process_cannot_be_given_an_object(where: Any) -> None:
    """As one writes it in a notebook; the message says what to do."""
    with pytest.raises(ConfigurationError, match=r"write the scene to a file.*scene\.py:grey.*InlineBackend"):
        LocalGpuBackend(renderers={"grey": where})

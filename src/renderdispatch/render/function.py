"""How does a plain Python function become a scene: features in, frames out?

A generator yields one picture for each frame, and `renderer` makes a renderer of it::

    from renderdispatch.render.function import renderer


    @renderer
    def pulse(
        song: Features,
        *,
        width: int,
        height: int,
        colour: Annotated[Colour, Field(description="of the screen")] = "#ff5500",
    ) -> Iterator[Picture]:
        \"\"\"The whole screen gets brighter with the music.\"\"\"
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        for frame in song:
            yield np.broadcast_to((rgb * frame.level).astype(np.uint8), (height, width, 3))

``pulse`` is a renderer then: ``--scene file.py:pulse``, ``InlineBackend({"pulse": pulse})``, or an entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, Signature, isasyncgenfunction, iscoroutinefunction, isroutine, signature, unwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, get_type_hints, overload

from pydantic import ConfigDict, create_model
from pydantic.errors import PydanticUserError

from renderdispatch.errors import ConfigurationError
from renderdispatch.messages import RenderOrder
from renderdispatch.render.params import SceneParams, describe_params
from renderdispatch.render.renderer import VideoRenderer, extra_is_named

if TYPE_CHECKING:
    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover

Drawing = Callable[..., Iterable[Any]]
"""Takes the song's `Features` and keyword arguments; gives pictures, (height, width, 3) uint8 in RGB."""

GIVEN: Final = ("width", "height", "fps", "cover")
"""What a function gets, of those that it names: pixels, pixels, frames a second as a `Fraction`, and the song's cover,
(n, n, 3) uint8, RGB, or None."""


_ASYNC: Final = (isasyncgenfunction, iscoroutinefunction)


class FunctionParams(SceneParams):
    """The base of the parameters of functions, whose defaults are checked as given values are."""

    model_config = ConfigDict(validate_default=True)


class FunctionRenderer(VideoRenderer):
    """Renders the pictures of a function; see `renderer`. Calling it calls the function."""

    def __init__(self, function: Drawing, *, about: str | None = None, uses_gpu: bool = False) -> None:
        written = _written(function)
        self.__name__ = getattr(written, "__name__", type(written).__name__)
        self.__module__ = written.__module__
        said = signature(function)
        self._check(said, written)
        first = (written.__doc__ or "").strip().partition("\n")[0]
        super().__init__(_params_of(written, said, self.__name__), about=first if about is None else about)
        self.function: Final = function
        self.given: Final[tuple[str, ...]] = tuple(name for name in GIVEN if name in [*said.parameters][1:])
        """Which of `GIVEN` the function takes."""
        self._uses_gpu = uses_gpu

    def __repr__(self) -> str:
        return f"renderer({self.__module__}.{self.__name__})"

    def __call__(self, *given: Any, **named: Any) -> Iterable[Any]:
        """Call the function."""
        return self.function(*given, **named)

    def uses_gpu(self) -> bool:
        """Return whether the function draws on a GPU, as its author says."""
        return self._uses_gpu

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws an order; see `VideoRenderer.artist`."""
        with extra_is_named():
            from renderdispatch.render.device import UNHELD, device_class
            from renderdispatch.render.function_artist import FunctionArtist
        drawn_by = f"{device_class()}+gpu{UNHELD}" if self._uses_gpu else device_class()
        given: Mapping[str, Any] = {"fps": order.output.fps, "cover": None if cover is None else cover.pixels}
        given = {name: value for name, value in given.items() if name in self.given}
        params = self.read_params(order.params)
        yield FunctionArtist(self, order.output, {**given, **dict(params)}, device_class=drawn_by)

    def _check(self, said: Signature, written: Callable[..., Any]) -> None:
        if any(is_async(one) for one in (written, _code_of(written)) for is_async in _ASYNC):
            raise ConfigurationError(f"{self.__name__} is async, and a scene is a plain function: def {self.__name__}")
        song, others = next(iter(said.parameters.values()), None), [*said.parameters.values()][1:]
        if song is None or song.kind not in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
            raise ConfigurationError(f"{self.__name__}: its first argument is the song: def {self.__name__}(song, ...)")
        for one in others:
            if one.kind not in {Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
                raise ConfigurationError(f"{self.__name__}: {one} cannot be a parameter of a scene: it has no one name")
            if one.default is Parameter.empty and one.name not in GIVEN:
                known = ", ".join(GIVEN)
                message = f"{self.__name__}: parameter {one.name!r} needs a default; without one there are {known}"
                raise ConfigurationError(message)


@overload
def renderer(function: Drawing, /) -> FunctionRenderer: ...
@overload
def renderer(*, about: str | None = None, uses_gpu: bool = False) -> Callable[[Drawing], FunctionRenderer]: ...
def renderer(
    function: Drawing | None = None, /, *, about: str | None = None, uses_gpu: bool = False
) -> FunctionRenderer | Callable[[Drawing], FunctionRenderer]:
    """Make a renderer of a function that yields the frames of a video.

    The function's first argument is the song: `renderdispatch.render.features.Features`. Iterate over it for each
    frame's `Frame`; ``len(song)`` frames are wanted, and ``song.level`` and ``song.beat`` are arrays of the whole song.
    The arguments ``width``, ``height``, ``fps`` and ``cover`` are filled in if they are named (`GIVEN`). All others
    have a default and an annotation, as a field of `SceneParams`: they are the scene's parameters, and are checked.

    It yields one picture for each frame, in order: (height, width, 3) uint8, RGB, row 0 at the top, as an array or what
    `numpy.asarray` takes, such as an image of Pillow or a tensor on the CPU. It may yield the same array again and
    again. In a 360 video the pictures are shown on a screen. One picture too few or too many fails the render.

    Args:
        function: The function; or used as ``@renderer(about=...)``.
        about: What it draws, in one line; None is the first line of its docstring.
        uses_gpu: Whether it draws on a GPU, so that it may render where a GPU is required.

    Raises:
        ConfigurationError: An argument of the function is of no use for a scene.
    """

    def made(function: Drawing) -> FunctionRenderer:
        return FunctionRenderer(function, about=about, uses_gpu=uses_gpu)

    return made if function is None else made(function)


def _written(function: Drawing) -> Drawing:
    """Return what the author wrote, of a function that is wrapped, or has some arguments (`functools.partial`)."""
    function = unwrap(function)
    return _written(function.func) if isinstance(function, partial) else function


def _code_of(written: Drawing) -> Any:
    """Return the function or the method itself; of another object, the method that calls it."""
    return written if isroutine(written) else type(written).__call__


def _params_of(function: Drawing, said: Signature, name: str) -> type[SceneParams]:
    """Return the model of a function's parameters."""
    own = [one for one in [*said.parameters.values()][1:] if one.name not in GIVEN]
    annotated = SimpleNamespace(
        __annotations__={one.name: one.annotation for one in own if one.annotation is not Parameter.empty}
    )
    try:
        types = get_type_hints(annotated, getattr(_code_of(function), "__globals__", {}), include_extras=True)
        fields: dict[str, Any] = {one.name: (types.get(one.name, type(one.default)), one.default) for one in own}
        model: type[SceneParams] = create_model(f"{name}_params", __base__=FunctionParams, **fields)
        describe_params(model)
        model()
    except (NameError, TypeError, ValueError, PydanticUserError) as error:
        raise ConfigurationError(f"the parameters of {name}: {error}") from error
    return model

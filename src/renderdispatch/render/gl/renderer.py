"""What do jobs name to have GLSL drawn?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from renderdispatch.errors import InvalidRequestError, MissingExtraError, SceneError
from renderdispatch.messages import RenderOrder
from renderdispatch.render.params import MAX_COLOURS, SceneParams
from renderdispatch.render.renderer import VideoRenderer, extra_is_named

if TYPE_CHECKING:
    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover


_INTEGERS: Final = -(2**31), 2**31 - 1


class _OpenGlRenderer(VideoRenderer):
    """Draws with OpenGL."""

    def uses_gpu(self) -> bool:
        """Return whether a render started now would draw on a GPU; see `SupportsGpu`.

        The process that renders opens the device for it; others ask a process of its own, so that no driver is loaded.
        """
        from renderdispatch.runner.probe import opengl_here

        return opengl_here().on_gpu

    def why_no_gpu(self) -> str:
        """Return what would draw instead of a GPU, and what to do; see `SupportsGpuReason`."""
        from renderdispatch.runner.probe import opengl_here

        return opengl_here().why_no_gpu


class GlslRenderer(_OpenGlRenderer):
    """Renders a scene in GLSL, as Shadertoy has it, to H.264 and AAC in mp4.

    Each parameter is a uniform of its name: a number is a ``float`` or an ``int``, true or false a ``bool``, a
    `Colour` a ``vec3``. `Colours` are ``vec3 <name>[8]``, in which the last one is repeated, and ``int <name>Count``.

    Args:
        shader: ``package:file.glsl``, a file of the package.
        params: The model of the scene's parameters.
        about: What the scene draws, in one line, for lists of scenes.
    """

    def __init__(self, shader: str, params: type[SceneParams] = SceneParams, *, about: str = "") -> None:
        super().__init__(params, about=about)
        self.shader: Final = shader

    @property
    def draws_images(self) -> bool:
        """Whether it reads one of an order's images."""
        from renderdispatch.render.gl.shader import read_shader, reads_images

        text, name = self._text()
        return reads_images(read_shader(text, name=name))

    def _text(self) -> tuple[str, str]:
        """Return what the file says, and its name."""
        package, _, name = self.shader.partition(":")
        return files(package).joinpath(name).read_text(), name

    def __repr__(self) -> str:
        return f"GlslRenderer({self.shader!r}, {self.params.__name__})"

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws an order; see `VideoRenderer.artist`."""
        text, name = self._text()
        declarations, values = uniforms_of(self.read_params(order.params))
        with _drawing(text, name, order, cover, declarations=declarations, values=values) as artist:
            yield artist


class ShaderFileRenderer(_OpenGlRenderer):
    """Renders the Shadertoy file of an order, with the order's images."""

    draws_images = True

    def __init__(self) -> None:
        super().__init__(SceneParams, about="A Shadertoy file of yours: --scene file.glsl, submit(scene=Path(...)).")

    def check_scene_file(self, text: str, *, name: str) -> None:
        """Check the lines that begin with ``//!``; see `renderdispatch.protocols.SupportsSceneFiles`."""
        from renderdispatch.render.gl.shader import read_shader

        try:
            read_shader(text, name=name)
        except SceneError as error:
            raise InvalidRequestError(str(error), code=error.code) from error

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws an order; see `VideoRenderer.artist`."""
        file = order.scene_file
        if file is None or file.path is None:
            message = f"scene {order.scene!r} draws a Shadertoy file: submit its path as the scene"
            raise SceneError(message, code="scene.file")
        self.read_params(order.params)
        path = Path(file.path)
        name = file.name or path.name
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise SceneError(f"{name} is not text in UTF-8", code="shader.invalid") from None
        with _drawing(text, name, order, cover) as artist:
            yield artist


@contextmanager
def _drawing(text: str, name: str, order: RenderOrder, cover: Cover | None, **uniforms: Any) -> Iterator[Artist]:
    """Return what draws the text of a shader."""
    with extra_is_named(), gl_is_named():
        from renderdispatch.render.covers import read_image
        from renderdispatch.render.gl.artist import GlArtist
        from renderdispatch.render.gl.context import open_device
        from renderdispatch.render.gl.shader import COVER, IMAGES, read_shader
    shader = read_shader(text, name=name)
    pictures: dict[str, Any] = {} if cover is None else {COVER: cover.pixels, IMAGES[0]: cover.pixels}
    for source, image in zip(IMAGES, order.images, strict=False):
        assert image.path is not None
        pictures[source] = read_image(Path(image.path))
    with open_device(require_gpu=order.require_gpu) as device:
        yield GlArtist(device, shader, order.output, pictures=pictures, **uniforms)


def uniforms_of(params: SceneParams) -> tuple[str, Mapping[str, Any]]:
    """Return the declarations of a scene's parameters in GLSL, and their values; see `GlslRenderer`.

    Raises:
        SceneError: ``param.invalid``: OpenGL has no such integer.
    """
    declarations, values = "", dict[str, Any]()
    for name, value in params:
        size = ""
        match value:
            case bool():
                kind = "bool"
            case int():
                kind = "int"
                if not _INTEGERS[0] <= value <= _INTEGERS[1]:
                    message = f"parameter {name!r} is too large: an int of GLSL has 32 bits"
                    raise SceneError(message, code="param.invalid")
            case float():
                kind = "float"
            case str():
                kind, value = "vec3", _rgb(value)  # noqa: PLW2901 - the same one, as OpenGL takes it
            case (str(), *_):
                kind, size = "vec3", f"[{MAX_COLOURS}]"
                declarations += f"uniform int {name}Count;\n"
                values[f"{name}Count"] = len(value)
                value = _filled([_rgb(colour) for colour in value])  # noqa: PLW2901 - the same one, as OpenGL takes it
            case _:
                raise TypeError(f"parameter {name!r}: {type(value).__name__} cannot be a uniform")
        declarations += f"uniform {kind} {name}{size};\n"
        values[name] = value
    return declarations, values


def _filled(colours: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return as many colours as the array of a uniform has."""
    return colours + colours[-1:] * (MAX_COLOURS - len(colours))


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))


@contextmanager
def gl_is_named() -> Iterator[None]:
    """Say which extra holds a library that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in {"moderngl", "glcontext"}:
            raise MissingExtraError.of("drawing with OpenGL", "gl") from error
        raise

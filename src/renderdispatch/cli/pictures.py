"""Which picture does a command line ask for: scene, parameters, size, range?

`render`, `demo` and `preview` share these options.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar, get_args

import click
from attrs import evolve, frozen
from click.shell_completion import CompletionItem
from pydantic import JsonValue, ValidationError

from renderdispatch import errors
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.cli.options import read_time
from renderdispatch.cli.slots import backends_with_slots
from renderdispatch.cli.songs import as_text
from renderdispatch.engine.attachments import read_scene_file as shader_text
from renderdispatch.engine.intake import is_shader_name
from renderdispatch.engine.names import safe_name
from renderdispatch.messages import (
    MAX_AUDIO_TRACK,
    PRESETS,
    SCENE_OF_FILES,
    Message,
    Output,
    Quality,
    VideoEncoder,
    describe_validation,
    read_output,
)
from renderdispatch.protocols import Renderer
from renderdispatch.render.gl.shader import Shader, read_shader
from renderdispatch.runner.renderers import check_scene_file, find_renderer, load_renderer, scene_names
from renderdispatch.runner.scene_files import read_scene_file
from renderdispatch.service import RenderService
from renderdispatch.wiring import from_settings

_F = TypeVar("_F", bound=Callable[..., object])
_M = TypeVar("_M", bound=Message)


# --- options --------------------------------------------------------------------------------------


def _read_size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not (times and width.isdecimal() and height.isdecimal() and len(text) <= 20):
        raise click.BadParameter(f"{text[:80]!r} is not a size; write WIDTHxHEIGHT, such as 1280x720.")
    return int(width), int(height)


def _read_param(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{text[:80]!r} is not a parameter; write NAME=VALUE.")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value  # a word needs no quotes


def complete_scene(_context: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the scenes whose names begin so, for a shell; it adds files by itself. Bash wants those to come first."""
    names = [name for name in scene_names() if name.startswith(begun) and name != SCENE_OF_FILES]
    return [CompletionItem(begun, type="file"), *map(CompletionItem, names)]


def _complete_preset(_context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(begun)]


_PICTURE: Final = (
    click.option(
        "--scene",
        default="bars",
        show_default=True,
        metavar="NAME",
        shell_complete=complete_scene,
        help="See 'renderdispatch scenes'; or a file of yours: a Shadertoy file, such as my.glsl, or file.py:NAME.",
    ),
    click.option(
        "images",
        "--image",
        multiple=True,
        type=click.Path(path_type=Path, readable=False),
        metavar="FILE",
        help="A picture that a Shadertoy file reads from iChannel1; the second one from iChannel2, and so on to three.",
    ),
    click.option(
        "--preset",
        default="flat-1080p-landscape",
        show_default=True,
        metavar="NAME",
        shell_complete=_complete_preset,
        help=", ".join(PRESETS),
    ),
    click.option("--size", type=_read_size, metavar="WIDTHxHEIGHT", help="Pixels, even numbers, such as 1280x720."),
    click.option("--fps", metavar="RATE", help="Frames a second: 30, 29.97, 30000/1001."),
    click.option(
        "params",
        "--set",
        multiple=True,
        type=_read_param,
        metavar="NAME=VALUE",
        help="A parameter of the scene; see 'renderdispatch scenes NAME'.",
    ),
)
_RANGE: Final = (
    click.option(
        "--start",
        type=read_time,
        default="0",
        metavar="TIME",
        help="Where in the song the video begins: seconds, m:ss or h:mm:ss, such as 90, 1:30 or 1:30.5.",
    ),
    click.option("--duration", type=read_time, metavar="TIME", help="Default: to the end of the song."),
    click.option(
        "--audio-track",
        type=click.IntRange(0, MAX_AUDIO_TRACK),
        metavar="NUMBER",
        help="Which audio track of SONG is heard, from 0. Default: the one that players choose.",
    ),
)
cover_option: Final = click.option(
    "--cover",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="A picture for scenes that show the cover, and for the video's tags. Default: the one in SONG's tags.",
)
quality_option: Final = click.option(
    "--quality", type=click.Choice(get_args(Quality)), help="How much time the encoder takes. Default: balanced."
)

encoder_option: Final = click.option(
    "--encoder",
    type=click.Choice(get_args(VideoEncoder)),
    help="What encodes the video. Default: auto, which is h264_nvenc where a GPU draws and can encode, else libx264.",
)


def picture_options(command: _F) -> _F:
    """Add the options that say what is drawn."""
    return _with(_PICTURE, command)


def range_options(command: _F) -> _F:
    """Add the options that say what of the song is heard."""
    return _with(_RANGE, command)


def _with(options: tuple[Callable[[Any], Any], ...], command: _F) -> _F:
    return reduce(lambda decorated, option: option(decorated), reversed(options), command)


def read_picture(
    preset: str,
    size: tuple[int, int] | None = None,
    fps: str | None = None,
    quality: str | None = None,
    encoder: str | None = None,
) -> Output:
    """Return the output that the options describe.

    Raises:
        InvalidRequestError: A value makes no sense.
    """
    changes: dict[str, object] = {} if size is None else {"width": size[0], "height": size[1]}
    more = {"fps": fps, "quality": quality, "encoder": encoder}
    changes |= {name: value for name, value in more.items() if value is not None}
    return checked(Output, {**dict(read_output(preset)), **changes})


def checked(model: type[_M], fields: Mapping[str, object]) -> _M:
    """Return a message with these fields. Raises `InvalidRequestError`."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise errors.InvalidRequestError(describe_validation(error)) from None


# --- scenes ---------------------------------------------------------------------------------------


def _is_shader(text: str) -> bool:
    """Return whether a command line names a Shadertoy file, whether or not it exists."""
    if text in scene_names():
        return False
    return is_shader_name(text) or os.sep in text or os.path.isfile(text)  # noqa: PTH113 - never raises


@frozen
class ChosenScene:
    """A registered scene, or one in a file.

    Args:
        name: What a job records.
        where: ``/folder/file.py:name`` for a scene in Python; None for any other.
        shader: The Shadertoy file; None for any other scene.
    """

    name: str
    where: str | None = None
    shader: Path | None = None

    @classmethod
    def named(cls, text: str) -> ChosenScene:
        """Return the scene that a command line names."""
        if (file := read_scene_file(text)) is not None:
            return cls(file.short, f"{file.path.absolute()}:{file.name}")
        return cls(SCENE_OF_FILES, shader=Path(text)) if _is_shader(text) else cls(text)

    @property
    def submitted(self) -> str | Path:
        """The scene as `submit` takes it."""
        return self.name if self.shader is None else self.shader

    @property
    def stem(self) -> str:
        """The name without folder and suffix, for files that are named after the scene."""
        return self.name.rpartition(":")[2] if self.shader is None else self.shader.stem

    @contextmanager
    def as_text(self) -> Iterator[Self]:
        """Yield the scene with a file whose name JSON can hold."""
        with ExitStack() as stack:
            path = None if self.shader is None else stack.enter_context(as_text(str(self.shader)))
            yield evolve(self, shader=path)

    def load(self) -> Renderer:
        """Return the renderer. A Python file is imported in this process, as Python would run it.

        Raises:
            InvalidRequestError: There is no such scene, or the file cannot be used.
        """
        if self.where is not None:
            return load_renderer(self.name, self.where)
        if self.shader is not None:
            self.read_shader()
        return find_renderer(self.name)

    def read_shader(self) -> Shader:
        """Return what the Shadertoy file says.

        Raises:
            InvalidRequestError: There is no such file, or it cannot be used.
        """
        assert self.shader is not None
        if not os.path.lexists(self.shader):
            step = "check its path, or name a scene that 'renderdispatch scenes' lists"
            name = click.format_filename(self.shader)
            raise errors.InvalidRequestError(f"there is no file {name}; {step}", code="scene-file.missing")
        text, name = shader_text(self.shader), safe_name(self.shader.name)
        check_scene_file(text, name=name)
        return read_shader(text, name=name)

    @property
    def files(self) -> dict[str, str]:
        """The table with which a process that renders finds the file; empty for a registered scene."""
        return {} if self.where is None else {self.name: self.where}

    def open_service(
        self, backend: str | None, *, slots: int | None = None, parallel: int = 1
    ) -> tuple[RenderService, dict[str, Any]]:
        """Return a service that renders this scene, and what a request for it says.

        A file is drawn by this process alone: the job names a backend that no other process has, so that no worker
        takes what it could not find, and is tried once, so that it ends where this process was killed.

        Args:
            backend: The one that was asked for.
            slots: How many renders this machine does at once; None: as many as suit it.
            parallel: How many draw a video at once: without ``slots`` there is one for each of them.

        Raises:
            InvalidRequestError: A file cannot be drawn by the backend that was asked for, or renders at once were asked
                for where other machines render.
            ConfigurationError: The settings make no sense.
        """
        if self.where is None:
            named = backends_with_slots(slots, parallel=parallel)
            return from_settings(worker=True, backends=named), {"backend": backend}
        if backend not in {None, "local"}:
            message = f"a scene file is drawn on this machine, not by backend {backend!r}; leave --backend out"
            raise errors.InvalidRequestError(message, code="scene.file")
        ours = f"command-{Path(self.where).stem[:20]}-{uuid.uuid4().hex[:8]}"
        at_once: int | Literal["auto"] = slots or (parallel if parallel > 1 else "auto")
        service = from_settings(worker=True, backends={ours: LocalGpuBackend(renderers=self.files, slots=at_once)})
        return service, {"backend": ours}

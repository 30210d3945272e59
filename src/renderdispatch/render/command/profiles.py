"""How are FFmpeg and Blender called, so that they draw a song?"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from renderdispatch.errors import ConfigurationError
from renderdispatch.render.command.renderer import CommandRenderer
from renderdispatch.render.params import SceneParams

_ENCODING: Final = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "19")

_PLAIN: Final = r"[\w .#+-]*"
"""The text parameters of a filter graph: nothing that has a meaning there."""

_PRINTED: Final = 8 << 30
"""Blender prints some 8 KiB for each frame."""


def ffmpeg(
    graph: str,
    *,
    params: type[SceneParams] = SceneParams,
    encoding: Sequence[str] = _ENCODING,
    about: str = "",
    **options: Any,
) -> CommandRenderer:
    """Return a renderer of what FFmpeg's filters make of the sound: ``showcqt``, ``showwaves`` and others.

    Args:
        graph: A filter graph whose first filter takes the sound, and whose last one makes pictures of {width} by
            {height}: ``"showcqt=size={width}x{height}:rate={fps}"``. Parameters have a place in it as
            ``{param.NAME}``; a text parameter may then hold letters, digits, spaces and ``._#+-`` alone.
        params: The model of the parameters.
        encoding: Options of the encoder, which makes H.264.
        about: What the scene draws, in one line.
        options: Further ones of `CommandRenderer`.
    """
    # the sound goes on as silence, so that filters which answer late make the last frame too
    pictures = f"[0:a]apad,{graph},fps={{fps}},setsar=1,format=yuv420p[v]"
    command = [
        *("ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "warning", "-nostats", "-progress", "pipe:1"),
        *("-i", "{sound}", "-filter_complex", pictures, "-map", "[v]", "-frames:v", "{frame_count}"),
        *(*encoding, "-threads", "{threads}", "-y", "{output}"),
    ]
    return CommandRenderer(
        command,
        makes="video",
        progress=r"^frame=\s*(?P<frame>\d+)",
        params=params,
        texts=_PLAIN,
        install="apt-get install ffmpeg",
        about=about,
        **options,
    )


def blender(
    script: Path | str,
    *,
    params: type[SceneParams] = SceneParams,
    program: str = "blender",
    about: str = "",
    **options: Any,
) -> CommandRenderer:
    """Return a renderer of what a script draws in Blender, which needs no display with Cycles.

    The script finds its arguments behind ``--``: ``--features FILE --params FILE --frames FOLDER --width N --height N
    --fps-num N --fps-den N --frame-count N --first-frame N``. It writes the frames to the folder, as ``000000.png``,
    ``000001.png`` and so on: from the first one (0 unless a preview is drawn) to the last one (the count less 1). See
    `write_features` of `renderdispatch.render.command.inputs` for the features. An exception in the script fails the
    render.

    Args:
        script: A file, or ``"package:file.py"``, a file of a package.
        params: The model of the parameters.
        program: Blender, by its name or path.
        about: What the scene draws, in one line.
        options: Further ones of `CommandRenderer`.

    Raises:
        ConfigurationError: There is no such script.
    """
    path = _file_of(script)
    command = [
        *(program, "--background", "-noaudio", "--factory-startup", "--threads", "{threads}"),
        *("--python-exit-code", "1", "--python", _literal(str(path)), "--"),
        *("--features", "{features}", "--params", "{params}", "--frames", "{frames}"),
        *("--width", "{width}", "--height", "{height}", "--fps-num", "{fps_num}", "--fps-den", "{fps_den}"),
        *("--frame-count", "{frame_count}", "--first-frame", "{first_frame}"),
    ]
    options = {"max_printed": _PRINTED, **options}
    return CommandRenderer(
        command, makes="frames", params=params, install="apt-get install blender", about=about, **options
    )


def _file_of(script: Path | str) -> Path:
    if isinstance(script, str):
        package, _, name = script.partition(":")
        script = Path(str(files(package).joinpath(name)))
    if not script.is_file():
        raise ConfigurationError(f"there is no script {script} for Blender")
    return script.absolute()


def _literal(word: str) -> str:
    return word.replace("{", "{{").replace("}", "}}")

"""How does a program make a whole video, and this side only what belongs around it?"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import av

from renderdispatch.errors import SceneError
from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.plumbing.failures import translated
from renderdispatch.protocols import Report
from renderdispatch.render.boxes import finish
from renderdispatch.render.command.delivered import inspect, picture_of, write_anew
from renderdispatch.render.command.inputs import values_of
from renderdispatch.render.device import check_device, picture_version
from renderdispatch.render.features import Features
from renderdispatch.render.poster import loudest, write_poster
from renderdispatch.render.song import open_song
from renderdispatch.render.tags import Song, describe_song
from renderdispatch.render.video import read_sound, render_error

if TYPE_CHECKING:
    from renderdispatch.render.command.renderer import CommandRenderer

_CHECK_S: Final = 0.1


def video_by_program(
    order: RenderOrder, audio: Path, output: Path, report: Report, *, renderer: CommandRenderer
) -> RenderStats:
    """Have a program write the order's video; see `renderdispatch.protocols.Renderer`."""
    device_class, picture = renderer.device_class(), order.output
    check_device(order.device_class, device_class)
    if picture.projection != "flat" and not renderer.draws_projection:
        raise SceneError(f"{renderer.name} makes flat videos, and {picture.projection} was ordered")
    song = describe_song(order, audio)
    silent: Report = report if renderer.shows_progress else lambda _done, _total: report(0, 0)
    with (
        translated({OSError: render_error, av.FFmpegError: render_error}, chain=True),
        TemporaryDirectory(dir=output.parent, prefix=".rendering-", ignore_cleanup_errors=True) as temporary,
    ):
        folder = Path(temporary)
        with (
            open_song(audio, order) as sound,
            read_sound(
                sound, None, folder / "features", fps=picture.fps, report=silent, longest_s=order.max_duration
            ) as features,
        ):
            made = _run(order, audio, folder / "program", silent, renderer=renderer, features=features, song=song)
            delivered = inspect(made, picture, frames=len(features), name=renderer.name)
            total = len(features)
            write_anew(delivered, folder / "raw.mp4", order=order, audio=audio, check=lambda: silent(total, total))
            finish(folder / "raw.mp4", folder / "video.mp4", projection=picture.projection, tags=song.tags)
            if order.poster is not None:
                write_poster(folder / "poster.jpg", picture_of(delivered, loudest(features)))
                (folder / "poster.jpg").replace(output.with_suffix(".jpg"))
        (folder / "video.mp4").replace(output)
        return RenderStats(
            width=picture.width,
            height=picture.height,
            fps=picture.fps,
            frames=len(delivered.times),
            duration_s=float(sound.duration),
            rendered_by=renderer.name,
            encoded_by=renderer.name,
            device_class=device_class,
            picture_version=picture_version(),
            warnings=(*sound.warnings, *song.warnings),
        )


def _run(
    order: RenderOrder,
    audio: Path,
    folder: Path,
    report: Report,
    *,
    renderer: CommandRenderer,
    features: Features,
    song: Song,
) -> Path:
    """Run the program to its end; return its file.

    Raises:
        SceneError: It failed, or wrote no file.
        RenderError: It was killed, or left no space.
    """
    folder.mkdir()
    target = folder / "output.mp4"
    params = renderer.read_params(order.params)
    values = values_of(
        renderer.template.uses,
        order,
        params,
        audio=audio,
        features=features,
        folder=folder,
        target=target,
        size=(order.output.width, order.output.height),
        cover=song.cover,
    )
    with renderer.start(values, params, folder=folder) as program:
        while (status := program.wait(_CHECK_S)) is None:
            done = program.printed.frames(fps=float(features.fps), total=len(features))
            report(done or 0, len(features))
        if status != 0:
            raise program.error_of(status, renderer.faults)
        if target.is_symlink() or (target.exists() and not target.is_file()):
            message = f"{program.name} made {target.name}, which is not a regular file"
            raise SceneError(message, code="command.wrong-output")
        if not target.exists() or target.stat().st_size == 0:
            message = f"{program.name} exited with status 0 and wrote no video{program.printed.tail}"
            raise SceneError(message, code="command.no-output")
    return target

"""How does a video look before it is rendered, on the command line?

A frame is drawn in a process of its own, under the limits of a render and with its instructions: a song that is hostile
takes nothing with it, and the frame is the one that the video will have. No job is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from attrs import frozen
from pydantic import JsonValue

from renderdispatch import errors
from renderdispatch.cli.display import clock, note, report, report_json
from renderdispatch.cli.failures import tell
from renderdispatch.cli.interrupts import Interrupted, Interrupts
from renderdispatch.cli.options import json_option, logging_options, output_path, read_time
from renderdispatch.cli.pictures import ChosenScene, cover_option, picture_options, range_options, read_picture
from renderdispatch.cli.progress import PictureBar
from renderdispatch.cli.songs import STDIN, files_beside, song_file, status_of, statuses_of
from renderdispatch.cli.targets import FileTarget, Target, check_picture_name, read_target
from renderdispatch.messages import SCENE_OF_FILES, RenderOrder
from renderdispatch.render.alone import check_moment, order_alone
from renderdispatch.runner.render import SupervisedRender, check_renderer, with_preview
from renderdispatch.runner.renderers import scene_names

_NOT_HERE: Final = frozenset({errors.MissingExtraError.code, "gl.unavailable"})
"""The codes of what this machine lacks."""

_DEMO_S: Final = 12.0
_DEMO_PRESET: Final = "flat-720p-landscape"


@click.command()
@click.argument("song", type=click.Path(readable=False, allow_dash=True))
@click.option("-o", "--output", type=output_path, help="PNG or JPEG. Default: SONG's name, with .png. '-' is stdout.")
@click.option(
    "--at", type=read_time, metavar="TIME", help="Where in the song: 90, 1:30. Default: where it is brightest."
)
@range_options
@picture_options
@cover_option
@click.option("-f", "--force", is_flag=True, help="Replace the output if it exists.")
@json_option
@logging_options
def preview(
    song: str,
    output: str | None,
    *,
    at: float | None,
    scene: str,
    cover: Path | None,
    images: tuple[Path, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Show one frame of a video before it is rendered.

    It is the frame that 'renderdispatch render' with the same options shows at this moment of the song.
    """
    if output is None:
        if song == STDIN:
            raise click.UsageError("A song from stdin has no name: name the output with -o.")
        output = f"{Path(song).stem}.png"
    target = read_target(output, force=force, check_name=check_picture_name)
    try:
        with Interrupts() as interrupts:
            chosen = ChosenScene.named(scene)
            target.check(statuses_of(song, cover=cover, scene=chosen.shader, image=images))
            with (
                song_file(song, interrupts) as path,
                files_beside("cover", () if cover is None else [cover]) as covers,
                files_beside("image", images) as pictures,
                chosen.as_text() as readable,
            ):
                with interrupts.abrupt():  # the import of a scene file may take any time
                    wish = _Wish.of(path, at, readable, cover=next(iter(covers), None), images=pictures, **options)
                index = wish.draw(target, interrupts, quiet=quiet or as_json)
    except errors.RenderDispatchError as error:
        return tell(error, as_json=as_json, on_stderr=target.result_on_stderr)
    _report(wish, index, target, as_json=as_json, quiet=quiet)
    return 0


@frozen
class _Wish:
    """A frame to draw, as the options describe it."""

    song: Path
    at: float | None
    scene: ChosenScene
    order: RenderOrder

    @classmethod
    def of(
        cls,
        song: Path,
        at: float | None,
        chosen: ChosenScene,
        *,
        preset: str,
        size: tuple[int, int] | None = None,
        fps: str | None = None,
        params: Sequence[tuple[str, JsonValue]] = (),
        cover: Path | None = None,
        images: Sequence[Path] = (),
        **request: Any,
    ) -> _Wish:
        """Return what the options say.

        Raises:
            InvalidRequestError: They make no sense, or the scene cannot draw a single frame.
        """
        renderer = chosen.load()
        request.update(scene=chosen.name, params=dict(params), output=read_picture(preset, size, fps))
        order = order_alone(song, cover=cover, scene_file=chosen.shader, images=images, **request)
        check_renderer(renderer, order)
        with_preview(renderer, chosen.name)
        return cls(song, check_moment(at), chosen, order)

    def draw(self, target: Target, interrupts: Interrupts, *, quiet: bool) -> int:
        """Draw the frame to a target, unless a signal comes; return its index."""
        suffix = Path(os.fsdecode(target.name)).suffix or ".png"
        with (
            TemporaryDirectory(prefix="renderdispatch-preview-") as folder,
            PictureBar(quiet=quiet) as bar,
            SupervisedRender(self.scene.files) as render,
        ):

            def reached(frames: int, total: int) -> None:
                if interrupts.received:
                    raise Interrupted(interrupts.exit_status)
                bar.show(frames, total)

            picture = Path(folder, f"frame{suffix}")
            index = render.preview(self.order, self.song, picture, reached, at=self.at)
            target.put(picture.read_bytes())
        return index


def _report(wish: _Wish, index: int, target: Target, *, as_json: bool, quiet: bool) -> None:
    picture, at = wish.order.output, wish.order.start + float(index / wish.order.output.fps)
    if as_json:
        output = "-" if target.result_on_stderr else str(Path(os.fsdecode(target.name)).absolute())
        size = {"width": picture.width, "height": picture.height}
        report_json({"output": output, "frame": index, "at": round(at, 6), **size}, on_stderr=target.result_on_stderr)
    elif not quiet:
        line = f"{click.format_filename(target.name)}: {picture.width}x{picture.height}, frame {index}, at {clock(at)}"
        report(line, on_stderr=target.result_on_stderr)


def draw_scenes(name: str | None, folder: str, interrupts: Interrupts, *, force: bool, as_json: bool) -> int:
    """Draw the brightest moment of each scene over the demo's music to a folder, named after the scene.

    A scene that cannot draw a single frame, or none here, is left out with a word, unless it is the one that was named.
    """
    try:
        from renderdispatch.render.music import compose
    except ModuleNotFoundError as error:
        raise errors.MissingExtraError.of("a preview", "render") from error
    with TemporaryDirectory(prefix="renderdispatch-demo-") as scratch:
        song = Path(scratch, "demo.wav")
        with interrupts.abrupt():
            compose(song, seconds=_DEMO_S)
        drawn = [known for known in scene_names() if known != SCENE_OF_FILES] if name is None else [name]
        for chosen in map(ChosenScene.named, drawn):
            target = FileTarget(Path(folder, f"{chosen.stem}.png"), force, check_picture_name)
            with chosen.as_text() as readable:
                _draw_scene(readable, song, target, interrupts, named=name is not None, as_json=as_json)
    return 0


def _draw_scene(
    chosen: ChosenScene, song: Path, target: FileTarget, interrupts: Interrupts, *, named: bool, as_json: bool
) -> None:
    try:
        with interrupts.abrupt():
            wish = _Wish.of(song, None, chosen, preset=_DEMO_PRESET)
    except errors.RenderDispatchError as error:
        if named:
            raise
        note(f"renderdispatch: warning: {error}")
        return
    target.check({} if chosen.shader is None else {"scene file": status_of(str(chosen.shader))})
    try:
        index = wish.draw(target, interrupts, quiet=as_json)
    except errors.RenderDispatchError as error:
        if named or error.code not in _NOT_HERE:
            raise
        note(f"renderdispatch: warning: {chosen.name} cannot be drawn here: {error}")
        return
    _report(wish, index, target, as_json=as_json, quiet=False)

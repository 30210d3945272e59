"""How will a video look at one moment?

The whole range of the song is read and the scene is stepped up to the frame, so the picture is the one that the video
has there: features, springs and turns depend on what came before. Nothing else is drawn or encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import av
from attrs import frozen
from PIL import Image
from pydantic import JsonValue

from renderdispatch.errors import InvalidRequestError, RenderError
from renderdispatch.messages import Output, RenderOrder, read_output
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.protocols import Report
from renderdispatch.render import glsl
from renderdispatch.render.alone import check_moment, order_alone
from renderdispatch.render.artist import picture_at
from renderdispatch.render.features import Features
from renderdispatch.render.one_pass import heard
from renderdispatch.render.picture import Picture
from renderdispatch.render.poster import brightest, to_image
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.render.song import open_song
from renderdispatch.render.tags import describe_song
from renderdispatch.render.video import read_sound

_JPEG_QUALITY: Final = 92


@frozen(eq=False)
class Moment:
    """A frame of a video.

    Args:
        index: Its number, from 0.
        picture: What the encoder would get.
    """

    index: int
    picture: Picture


def preview(
    song: Path,
    *,
    scene: VideoRenderer | Path,
    at: float | None = None,
    params: Mapping[str, JsonValue] | None = None,
    output: Output | str = "flat-1080p-landscape",
    start: float = 0,
    duration: float | None = None,
    audio_track: int | None = None,
    cover: Path | None = None,
    images: Iterable[Path] = (),
) -> Image.Image:
    """Return the picture that a render with these arguments would show at a moment of the song.

    It is drawn in this process, without a job and without the limits of one: for songs of strangers, use the command.

    Args:
        song: The file.
        scene: Such as `renderdispatch.render.bars`; or the path of a Shadertoy file.
        at: Seconds into the song; None is the brightest moment.
        params: The scene's parameters.
        output: As of `RenderService.submit`; so are ``start``, ``duration`` and ``audio_track``.
        start: Seconds into the song.
        duration: Seconds of video; None is to the end.
        audio_track: Which of the file's audio streams is heard.
        cover: A picture; None is that of the song's tags.
        images: As of `RenderService.submit`.

    Raises:
        InvalidRequestError: ``preview.range``: the video does not hold the moment; ``audio.missing`` or the like: there
            is no such file.
        AudioError: The song cannot be used.
        SceneError: The scene failed, or does not accept the parameters.
    """
    shader, pictures = scene if isinstance(scene, Path) else None, tuple(images)
    named = ((song, "audio"), (cover, "cover"), (shader, "scene-file"), *((image, "image") for image in pictures))
    for path, what in named:
        if path is not None and not path.is_file():  # to open a pipe could wait for ever
            raise InvalidRequestError(f"there is no file {path}", code=f"{what}.missing")
    request: dict[str, Any] = {"params": params or {}, "output": read_output(output)}
    request.update(start=start, duration=duration, audio_track=audio_track)
    renderer = glsl if isinstance(scene, Path) else scene
    order = order_alone(song, cover=cover, scene_file=shader, images=pictures, scene=repr(renderer), **request)
    moment = draw_moment(order, song, lambda _done, _total: None, at=check_moment(at), renderer=renderer)
    return to_image(moment.picture)


def draw_moment(
    order: RenderOrder, audio: Path, report: Report, *, at: float | None, renderer: VideoRenderer
) -> Moment:
    """Draw one frame of an order; see `renderdispatch.protocols.SupportsPreview`."""
    song = describe_song(order, audio)
    with (
        renderer.artist(order, cover=song.cover) as artist,
        translated({OSError: _failed, av.FFmpegError: _failed}, chain=True),
        TemporaryDirectory(prefix="renderdispatch-preview-", ignore_cleanup_errors=True) as folder,
        open_song(audio, order) as sound,
        read_sound(
            sound,
            None,
            Path(folder, "features"),
            fps=order.output.fps,
            report=report,
            longest_s=order.max_duration,
        ) as features,
        heard(artist, features, audio=audio, folder=Path(folder), report=report),
    ):
        if at is None:
            index = brightest(artist, features, report)
        else:
            index = _index_at(Fraction(str(at)), order, features, sound.duration)
        return Moment(index, picture_at(artist, features, index, report))


def _index_at(at: Fraction, order: RenderOrder, features: Features, duration: Fraction) -> int:
    start = Fraction(str(order.start))  # as it was written: 0.7 s is frame 21 of 30, not 20.99
    if not 0 <= at - start <= duration:
        covered = f"the video shows the song from {float(start):g} s to {float(start + duration):.6g} s"
        raise InvalidRequestError(f"{covered}; {float(at):g} s is outside of it", code="preview.range")
    return min(int((at - start) * order.output.fps), len(features) - 1)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG, or as JPEG where the name ends so."""
    image = to_image(picture)
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        image.save(path, "JPEG", quality=_JPEG_QUALITY)
    else:
        image.save(path, "PNG")


def _failed(error: OSError | av.FFmpegError) -> RenderError:
    if isinstance(error, OSError) and is_disk_full(error):
        return RenderError("no space is left for temporary files", code="disk.full")
    return RenderError(f"the frame cannot be drawn: {error}", code="output.unwritable")

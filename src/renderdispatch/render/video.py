"""How do a scene and a song become a video?

The song is decoded once, and analysed and encoded meanwhile. Then frame after frame is drawn. Encoding has a thread of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import av

from renderdispatch.errors import AudioError, InvalidRequestError, RenderError, SceneError
from renderdispatch.messages import Output, RenderOrder, RenderStats
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.plumbing.unkept_slots import UnkeptSlots
from renderdispatch.protocols import Report, Slots
from renderdispatch.render.artist import Artist
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.boxes import finish
from renderdispatch.render.consumer import Consumer
from renderdispatch.render.device import check_device, join_class, picture_version
from renderdispatch.render.encoders import Encoder, find_encoder
from renderdispatch.render.features import Analyser, Features, Frame
from renderdispatch.render.lead import Drawing, render_segments
from renderdispatch.render.mp4 import Mp4Writer
from renderdispatch.render.one_pass import OnePassArtist, heard
from renderdispatch.render.poster import brightest, write_poster
from renderdispatch.render.renderer import VideoRenderer, drawn_by_one
from renderdispatch.render.snapshots import dump_state
from renderdispatch.render.song import open_song, read_song
from renderdispatch.render.tags import describe_song
from renderdispatch.render.worker import Tools

_AHEAD: Final = 2
"""What may wait for the encoder: enough that neither side waits for a slow frame of the other."""


def render_video(
    order: RenderOrder,
    audio: Path,
    output: Path,
    report: Report,
    *,
    renderer: VideoRenderer,
    slots: Slots | None = None,
) -> RenderStats:
    """Render the order's range of ``audio`` to ``output``; see `renderdispatch.protocols.Renderer`.

    Temporary files are in a folder beside ``output``, which does not exist until the video is complete.

    Args:
        order: The order.
        audio: The song.
        output: The file.
        report: Called for each frame.
        renderer: The scene.
        slots: Where segments are kept; None: nowhere.
    """
    song = describe_song(order, audio)
    with (
        renderer.artist(order, cover=song.cover) as artist,
        translated({OSError: render_error, av.FFmpegError: render_error}, chain=True),
        TemporaryDirectory(dir=output.parent, prefix=".rendering-", ignore_cleanup_errors=True) as folder,
    ):
        encoder = find_encoder(order.output, artist.gpu)
        device = join_class(artist.device_class, encoder.device_class)
        check_device(order.device_class, device)
        tools = Tools(artist=artist, encoder=encoder, output=order.output, folder=Path(folder))
        drawing = Drawing(renderer=renderer, song=song, tools=tools, device=device)
        video = Path(folder, "video.mp4")
        if (reason := _why_whole(artist)) is None:
            stats = render_segments(order, audio, video, report, drawing=drawing, slots=slots or UnkeptSlots())
        else:
            stats = drawn_by_one(_render_whole(order, audio, video, report, drawing=drawing), slots, reason)
        if (poster := video.with_suffix(".jpg")).exists():
            poster.replace(output.with_suffix(".jpg"))
        video.replace(output)
        return stats


def _why_whole(artist: Artist) -> str | None:
    """Return why a video cannot be cut into segments; None: it can."""
    if isinstance(artist, OnePassArtist):
        return "its pictures come from a function or a program, one after the other"
    if artist.run_up is None:
        return "each of its frames is drawn from all frames before; say how many are needed by //! run-up"
    try:
        dump_state(artist.start())
    except SceneError as error:
        return str(error)
    return None


def _render_whole(order: RenderOrder, audio: Path, video: Path, report: Report, *, drawing: Drawing) -> RenderStats:
    """Render a video that cannot be cut, in one piece."""
    picture, song, artist = order.output, drawing.song, drawing.tools.artist
    folder = drawing.tools.folder
    with (
        open_song(audio, order) as sound,
        _open_writer(folder, picture, sound, drawing.tools.encoder) as writer,
        read_sound(
            sound, writer, folder / "features", fps=picture.fps, report=report, longest_s=order.max_duration
        ) as features,
    ):
        if order.poster is not None:
            artist.keep = brightest(artist, features, lambda _done, total: report(0, total))
        with heard(artist, features, audio=audio, folder=folder, report=report):
            draw_and_encode(artist, features, writer, report)
        writer.close()
        finish(folder / "raw.mp4", video, projection=picture.projection, tags=song.tags)
        if artist.kept is not None:
            write_poster(video.with_suffix(".jpg"), artist.kept)
        return RenderStats(
            width=picture.width,
            height=picture.height,
            fps=picture.fps,
            frames=len(features),
            duration_s=float(sound.duration),
            rendered_by=artist.rendered_by,
            encoded_by=writer.encoder.name,
            device_class=drawing.device,
            picture_version=picture_version(),
            warnings=(*sound.warnings, *song.warnings),
        )


def _open_writer(folder: Path, picture: Output, sound: SoundReader, encoder: Encoder) -> Mp4Writer:
    """Return the writer of the video. What the encoder refuses now, it will refuse at each attempt."""

    def refused(error: av.FFmpegError) -> Exception:
        if isinstance(error, OSError | MemoryError):
            return error
        what = f"{picture.width}x{picture.height} at {picture.fps} frames a second"
        return InvalidRequestError(f"the encoder cannot make a video of {what}", code="output.unsupported")

    with translated({av.FFmpegError: refused}, chain=True):
        files = folder / "raw.mp4", folder / "sound"
        return Mp4Writer(*files, picture, rate=sound.rate, layout=sound.layout, encoder=encoder)


def read_sound(
    sound: SoundReader,
    writer: Mp4Writer | None,
    path: Path,
    *,
    fps: Fraction,
    report: Report,
    longest_s: float | None = None,
) -> Features:
    """Analyse and encode the song; return its features, which are kept in the file ``path``.

    Without a ``writer``, nothing is encoded.

    Raises:
        AudioError: As of `read_song`; or the range is shorter than half a frame (``audio.too-short``).
    """
    expected = max(round(sound.expected_s * fps), 1)
    encode = (lambda _: None) if writer is None else writer.write_sound
    with Analyser(path, rate=sound.rate, fps=fps) as analyser:
        with Consumer(encode, ahead=_AHEAD) as encoder:
            for block in read_song(sound, longest_s=longest_s):
                encoder.put(block)
                analyser.feed(block)
                report(0, expected)
        if writer is not None:
            writer.finish_sound()
        frames = round(sound.duration * fps)
        if frames < 1:
            what = f"{float(sound.duration):g} s of audio is less than one frame at {fps} frames a second"
            raise AudioError(what, code="audio.too-short")
        return analyser.finish(frames)


def draw_and_encode(artist: Artist, features: Features, writer: Mp4Writer, report: Report) -> None:
    """Draw each frame here, while another thread encodes the frames before it."""

    def moments() -> Iterator[tuple[Any, Frame]]:
        state = artist.start()
        for frame in features:
            state = artist.step(state, frame)
            yield state, frame

    with Consumer(writer.write_frame, ahead=_AHEAD) as encoder:
        for done, picture in enumerate(artist.pictures(moments()), start=1):
            encoder.put(picture.frame)
            report(done, len(features))


def render_error(error: OSError | av.FFmpegError) -> RenderError:
    """Translate an error of the file system or of FFmpeg; some are both."""
    if isinstance(error, MemoryError):
        return RenderError("out of memory", code="memory.full")
    if not isinstance(error, OSError):
        return RenderError(f"the encoder failed: {error}", code="encode.failed")
    if is_disk_full(error):
        return RenderError("no space is left for the video", code="disk.full")
    return RenderError(f"the video cannot be written: {error.strerror}", code="output.unwritable")

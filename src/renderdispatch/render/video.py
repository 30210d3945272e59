"""How do a scene and a song become a video?

The song is decoded once, and analysed and encoded meanwhile. Then frame after frame is drawn, and encoded in another
thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import av
import numpy as np

from renderdispatch.errors import AudioError, RenderError, SceneError
from renderdispatch.messages import Output, RenderOrder, RenderStats
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.protocols import Report
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.mp4 import ENCODER, Mp4Writer
from renderdispatch.render.overlap import Consumer
from renderdispatch.render.paint import Canvas
from renderdispatch.render.params import SceneParams
from renderdispatch.render.scene import Scene

_AHEAD: Final = 2
"""Frames that may wait for the encoder: enough that neither side waits for a slow frame of the other."""


def render_video(
    order: RenderOrder, audio: Path, output: Path, report: Report, *, scene: type[Scene], params: SceneParams
) -> RenderStats:
    """Render the order's range of ``audio`` to ``output``; see `renderdispatch.protocols.Renderer`.

    Temporary files are in a folder beside ``output``, which does not exist until the video is complete.
    """
    picture = order.output
    duration = None if order.duration is None else Fraction(order.duration)
    with (
        translated({OSError: _render_error, av.FFmpegError: _render_error}, chain=True),
        TemporaryDirectory(dir=output.parent, prefix=".rendering-", ignore_cleanup_errors=True) as folder,
        SoundReader(audio, start=Fraction(order.start), duration=duration) as sound,
        Mp4Writer(
            Path(folder, "video.mp4"), Path(folder, "sound"), picture, rate=sound.rate, layout=sound.layout
        ) as writer,
        read_sound(sound, writer, Path(folder, "features"), fps=picture.fps, report=report) as features,
    ):
        artist = Artist(scene, params, picture, features)
        draw_and_encode(artist, writer, report)
        writer.close()
        Path(folder, "video.mp4").replace(output)
        return RenderStats(
            width=picture.width,
            height=picture.height,
            fps=picture.fps,
            frames=len(features),
            duration_s=float(sound.duration),
            rendered_by="numpy",
            encoded_by=ENCODER,
        )


def read_sound(sound: SoundReader, writer: Mp4Writer, path: Path, *, fps: Fraction, report: Report) -> Features:
    """Analyse and encode the song; return its features, which are kept in the file ``path``.

    Raises:
        AudioError: As of `SoundReader.blocks`; or the range is shorter than half a frame (``audio.too-short``).
    """
    expected = max(round(sound.expected_s * fps), 1)
    with Analyser(path, rate=sound.rate, fps=fps) as analyser:
        for block in sound.blocks():
            analyser.feed(block)
            writer.write_sound(block)
            report(0, expected)
        writer.finish_sound()
        frames = round(sound.duration * fps)
        if frames < 1:
            what = f"{float(sound.duration):g} s of audio is less than one frame at {fps} frames a second"
            raise AudioError(what, code="audio.too-short")
        return analyser.finish(frames)


def draw_and_encode(artist: Artist, writer: Mp4Writer, report: Report) -> None:
    """Draw and convert each frame here, while another thread encodes the frames before it."""
    canvas = artist.canvas()
    with Consumer(writer.write_frame, ahead=_AHEAD) as encoder:
        for index in range(artist.frames):
            artist.draw(index, canvas)
            encoder.put(writer.convert(canvas))
            report(index + 1, artist.frames)


class Artist:
    """Draws the frames of an output with a scene, and places them as the projection demands."""

    def __init__(self, scene: type[Scene], params: SceneParams, output: Output, features: Features) -> None:
        self._output = output
        self._features = features
        self.frames: Final = len(features)
        self._eyes = 2 if output.projection == "360-stereo" else 1
        self._height = output.height // self._eyes
        with _blamed_on_the_scene("could not be set up"):
            self._scene = scene(params, width=output.width, height=self._height, fps=output.fps)

    def canvas(self) -> Canvas:
        """Return a black canvas of the output's size."""
        return np.zeros((self._output.height, self._output.width, 3), np.uint8)

    def draw(self, index: int, canvas: Canvas) -> None:
        """Paint frame ``index``.

        Raises:
            SceneError: The scene raised an exception.
        """
        frame = self._features.frame(index)
        with _blamed_on_the_scene(f"failed at frame {index}"):
            self._scene.draw(frame, canvas[: self._height])
        if self._eyes == 2:
            canvas[self._height :] = canvas[: self._height]


@contextmanager
def _blamed_on_the_scene(what: str) -> Iterator[None]:
    try:
        yield
    except (SceneError, MemoryError):
        raise
    except Exception as error:
        raise SceneError(f"the scene {what}: {type(error).__name__}: {error}") from error


def _render_error(error: OSError | av.FFmpegError) -> RenderError:
    """Translate an error of the file system or of FFmpeg; some are both."""
    if not isinstance(error, OSError):
        return RenderError(f"the encoder failed: {error}", code="encode.failed")
    if is_disk_full(error):
        return RenderError("no space is left for the video", code="disk.full")
    return RenderError(f"the video cannot be written: {error.strerror}", code="output.unwritable")

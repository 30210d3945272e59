"""How do a scene and a song become a video?

The song is decoded once, and analysed and encoded meanwhile. Then frame after frame is drawn. Encoding has a thread of
its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Generic, Self, TypeVar

import av
import numpy as np

from renderdispatch.errors import AudioError, InvalidRequestError, RenderError, SceneError
from renderdispatch.messages import Output, RenderOrder, RenderStats
from renderdispatch.plumbing.failures import is_disk_full, translated
from renderdispatch.protocols import Report
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.boxes import finish
from renderdispatch.render.covers import Cover
from renderdispatch.render.device import check_device, picture_version
from renderdispatch.render.features import Analyser, Features, Frame
from renderdispatch.render.mp4 import ENCODER, Mp4Writer
from renderdispatch.render.params import SceneParams
from renderdispatch.render.picture import Converter, Picture, PlanarScene
from renderdispatch.render.poster import PosterMoment, write_poster
from renderdispatch.render.projection import projection_of
from renderdispatch.render.scene import Scene, SupportsCover
from renderdispatch.render.song import open_song, read_song
from renderdispatch.render.tags import describe_song

T = TypeVar("T")

_AHEAD: Final = 2
"""What may wait for the encoder: enough that neither side waits for a slow frame of the other."""


def render_video(
    order: RenderOrder, audio: Path, output: Path, report: Report, *, scene: type[Scene[Any]], params: SceneParams
) -> RenderStats:
    """Render the order's range of ``audio`` to ``output``; see `renderdispatch.protocols.Renderer`.

    Temporary files are in a folder beside ``output``, which does not exist until the video is complete.
    """
    device_class = check_device(order.device_class)
    picture, song = order.output, describe_song(order, audio)
    with (
        translated({OSError: _render_error, av.FFmpegError: _render_error}, chain=True),
        TemporaryDirectory(dir=output.parent, prefix=".rendering-", ignore_cleanup_errors=True) as folder,
        open_song(audio, order) as sound,
        _open_writer(Path(folder), picture, sound) as writer,
        read_sound(
            sound, writer, Path(folder, "features"), fps=picture.fps, report=report, longest_s=order.max_duration
        ) as features,
    ):
        artist = Artist(scene, params, picture, cover=song.cover)
        poster = None if order.poster is None else PosterMoment(len(features), picture.fps)
        draw_and_encode(artist, features, writer, report, poster=poster)
        writer.close()
        finish(Path(folder, "raw.mp4"), Path(folder, "video.mp4"), projection=picture.projection, tags=song.tags)
        if poster is not None:
            write_poster(Path(folder, "poster.jpg"), artist.flat(*poster.best))
            Path(folder, "poster.jpg").replace(output.with_suffix(".jpg"))
        Path(folder, "video.mp4").replace(output)
        return RenderStats(
            width=picture.width,
            height=picture.height,
            fps=picture.fps,
            frames=len(features),
            duration_s=float(sound.duration),
            rendered_by="numpy",
            encoded_by=ENCODER,
            device_class=device_class,
            picture_version=picture_version(),
            warnings=(*sound.warnings, *song.warnings),
        )


def _open_writer(folder: Path, picture: Output, sound: SoundReader) -> Mp4Writer:
    """Return the writer of the video. What the encoder refuses now, it will refuse at each attempt."""

    def refused(error: av.FFmpegError) -> Exception:
        if isinstance(error, OSError | MemoryError):
            return error
        what = f"{picture.width}x{picture.height} at {picture.fps} frames a second"
        return InvalidRequestError(f"the encoder cannot make a video of {what}", code="output.unsupported")

    with translated({av.FFmpegError: refused}, chain=True):
        return Mp4Writer(folder / "raw.mp4", folder / "sound", picture, rate=sound.rate, layout=sound.layout)


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


def draw_and_encode(
    artist: Artist, features: Features, writer: Mp4Writer, report: Report, *, poster: PosterMoment | None = None
) -> None:
    """Draw each frame here, while another thread encodes the frames before it."""
    state = artist.start()
    with Consumer(writer.write_frame, ahead=_AHEAD) as encoder:
        for frame in features:
            state = artist.step(state, frame)
            if poster is not None:
                poster.see(state, frame, artist.light(state, frame))
            encoder.put(artist.draw(state, frame).frame)
            report(frame.index + 1, len(features))


class Consumer(Generic[T]):
    """Passes items to ``consume`` in another thread, in order.

    The end of the ``with`` block waits for this thread, which consumes all items first; if the block raised, it drops
    those that wait. An error of ``consume`` is raised by a later `put`, or at the end.

    Args:
        consume: Called in the other thread, with one item after the other.
        ahead: How many items may wait while one is consumed.
    """

    def __init__(self, consume: Callable[[T], object], *, ahead: int) -> None:
        self._consume = consume
        self._ahead = ahead
        self._unfinished: deque[Future[object]] = deque()
        self._thread = ThreadPoolExecutor(1, "renderdispatch-encoder")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for item in self._unfinished:
                item.result()

    def put(self, item: T) -> None:
        """Pass an item on; wait while too many are waiting."""
        if len(self._unfinished) > self._ahead:
            self._unfinished.popleft().result()
        self._unfinished.append(self._thread.submit(self._consume, item))


class Artist:
    """Draws frames of an output with a scene: any frame, from the state that belongs to it."""

    def __init__(
        self, scene: type[Scene[Any]], params: SceneParams, output: Output, *, cover: Cover | None = None
    ) -> None:
        self._projection = projection_of(output)
        width, height = self._projection.width, self._projection.height
        with _blamed_on_the_scene("could not be set up"):
            self.scene: Final = scene(params, width=width, height=height, fps=output.fps)
            if cover is not None and isinstance(self.scene, SupportsCover):
                self.scene.set_cover(cover.pixels)
        self._canvas = np.zeros((height, width, 3), np.uint8)
        self._converter = Converter()

    def start(self) -> Any:
        """Return the state before the first frame."""
        with _blamed_on_the_scene("failed at its start"):
            return _read_only(self.scene.start())

    def step(self, state: Any, frame: Frame) -> Any:
        """Return the state at a frame, from the state at the frame before.

        Raises:
            SceneError: The scene raised an exception.
        """
        with _blamed_on_the_scene(f"failed at frame {frame.index}"):
            return _read_only(self.scene.step(state, frame))

    def light(self, state: Any, frame: Frame) -> float:
        """Return how bright the scene shines at a frame.

        Raises:
            SceneError: The scene raised an exception.
        """
        with _blamed_on_the_scene(f"failed at frame {frame.index}"):
            return float(self.scene.light(state, frame))

    def draw(self, state: Any, frame: Frame) -> Picture:
        """Return a new picture of a frame, of the output's size.

        Raises:
            SceneError: The scene raised an exception.
        """
        return self._projection.place(self.flat(state, frame))

    def flat(self, state: Any, frame: Frame) -> Picture:
        """Return the scene's own picture of a frame: in a 360 video, what is on the screen.

        Raises:
            SceneError: The scene raised an exception.
        """
        with _blamed_on_the_scene(f"failed at frame {frame.index}"):
            if isinstance(self.scene, PlanarScene):
                return self.scene.picture(state, frame)
            self.scene.paint(state, frame, self._canvas)
        height, width, _ = self._canvas.shape
        return self._converter.from_rgb(self._canvas, width, height)


def _read_only(state: Any) -> Any:
    """Return a state whose arrays cannot be written to: that would change what frames before are drawn from."""
    for value in state if isinstance(state, tuple) else ():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return state


def _blamed_on_the_scene(what: str) -> AbstractContextManager[None]:
    def blame(error: Exception) -> SceneError:
        return SceneError(f"the scene {what}: {type(error).__name__}: {error}")

    def full_or_blame(error: OSError) -> Exception:
        return error if is_disk_full(error) else blame(error)

    def same(error: Exception) -> Exception:
        return error

    return translated({Exception: blame, OSError: full_or_blame, RenderError: same, MemoryError: same}, chain=True)


def _render_error(error: OSError | av.FFmpegError) -> RenderError:
    """Translate an error of the file system or of FFmpeg; some are both."""
    if isinstance(error, MemoryError):
        return RenderError("out of memory", code="memory.full")
    if not isinstance(error, OSError):
        return RenderError(f"the encoder failed: {error}", code="encode.failed")
    if is_disk_full(error):
        return RenderError("no space is left for the video", code="disk.full")
    return RenderError(f"the video cannot be written: {error.strerror}", code="output.unwritable")

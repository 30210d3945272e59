"""What do jobs name to have a program draw?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from renderdispatch.errors import ConfigurationError, InvalidRequestError
from renderdispatch.messages import FaultDomain, RenderOrder, RenderStats
from renderdispatch.protocols import Report
from renderdispatch.render.command.program import FAULTS, Bounds, Program, find_program
from renderdispatch.render.command.template import Makes, Template
from renderdispatch.render.params import SceneParams
from renderdispatch.render.renderer import VideoRenderer, extra_is_named

if TYPE_CHECKING:
    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover

_UNITS: Final = frozenset({"frame", "seconds", "percent"})


class CommandRenderer(VideoRenderer):
    """Renders by a program: FFmpeg, Blender, a script in any language.

    The command is a template, which belongs to this renderer and never to a request. It is a list of words, and no
    shell sees it. Braces in a word name what is put there; a brace itself is written twice.

    ======================================  ==========================================================================
    ``{output}``                            the video file to write, of a command that makes ``video``
    ``{frames}``                            the folder to write pictures to, of a command that makes ``frames``
    ``{audio}``                             the song as it was submitted
    ``{sound}``                             the ordered range of the song, as 16-bit WAV
    ``{start}``                             seconds into ``{audio}`` at which the range begins
    ``{duration}``, ``{frame_count}``       seconds and frames of the video
    ``{first_frame}``                       the frame to begin with, counted from 0, of a command that makes ``frames``:
                                            it can draw any frame without those before it, and so has quick previews
    ``{width}``, ``{height}``               of the pictures
    ``{fps}``, ``{fps_num}``, ``{fps_den}`` frames a second as ``30`` or ``30000/1001``; numerator and denominator
    ``{features}``                          a JSON file with the sound's level, beat and bands of each frame; see
                                            `renderdispatch.render.command.inputs.write_features`
    ``{params}``                            a JSON file with the scene's parameters
    ``{param.NAME}``                        one parameter as text; lists with commas
    ``{cover}``                             the song's cover as JPEG; nothing if it has none
    ``{projection}``                        ``flat``, ``360-mono`` or ``360-stereo``. A command with this place makes
                                            the whole picture of a 360 video. Without it, pictures of a 360 video are
                                            shown on a screen as those of other scenes, and a video is refused
    ``{threads}``                           how many threads run at once here
    ======================================  ==========================================================================

    A text parameter may not begin with ``-`` where it would begin a word, so that it never becomes an option.

    The program works in a folder of its own, without stdin, with the variables that renders get. A video is H.264 in
    yuv420p of the ordered size, frame rate and number of frames (one more or less is taken), in any container that
    FFmpeg reads; its AAC sound is kept, and without sound it gets the song's. It is not encoded again. Pictures are
    PNG or JPEG of the ordered size. They may be written ahead and in any order, and are removed when they were read.

    Args:
        command: The template.
        makes: ``video`` or ``frames``.
        progress: A regular expression with a group ``frame`` (how many are done), ``seconds`` (of the video) or
            ``percent``, searched for in each line that the program prints. For ``video`` alone: pictures are counted.
            Without it, a program that hangs is ended only where the job has ``Limits(stall_timeout=...)``.
        pictures: The names of pictures, with ``%d`` or such as ``%06d`` for the number.
        first: The number of the first picture.
        faults: Whose fault an exit status is: the audio's, the scene's or the infrastructure's. Any other status is the
            scene's fault, and such a job is not tried again. A signal that killed the program is the infrastructure's,
            unless ``128 + n`` for signal n says otherwise.
        params: The model of the scene's parameters.
        texts: A regular expression that each text parameter in the command must match as a whole.
        uses_gpu: Whether the program draws on a GPU.
        environment: Further variables.
        install: The command that installs the program, for the error where there is none.
        max_printed: Bytes that it may print.
        max_written: Bytes that its files may take at one time, pictures that wait included.
        keep_free: Bytes of the disk that it must leave free; None: 1 GiB, or 5 % of a disk of less than 20 GiB.
        about: What the scene draws, in one line, for lists of scenes.

    Raises:
        ConfigurationError: The template or another argument makes no sense.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        makes: Makes,
        progress: str | None = None,
        pictures: str = "%06d.png",
        first: int = 0,
        faults: Mapping[int, FaultDomain] | None = None,
        params: type[SceneParams] = SceneParams,
        texts: str | None = None,
        uses_gpu: bool = False,
        environment: Mapping[str, str] | None = None,
        install: str | None = None,
        max_printed: int = 256 << 20,
        max_written: int = 20 << 30,
        keep_free: int | None = None,
        about: str = "",
    ) -> None:
        super().__init__(params, about=about)
        self.template: Final = Template(command, params=params, makes=makes, texts=texts)
        self.makes: Final = makes
        self.name: Final = Path(self.template.words[0]).name
        self.faults: Final = dict(faults or {})
        self.draws_projection: Final = "projection" in self.template.uses
        # a video without sound gets the song's at the end
        self.reads_audio_first = makes == "frames" and "audio" not in self.template.uses
        self._progress = _read_progress(progress, makes)
        self._pictures, self._first = _read_pictures(pictures), first
        self._uses_gpu = uses_gpu
        self._environment = dict(environment or {})
        self._install = install
        self._bounds = Bounds(printed=max_printed, written=max_written, keep_free=keep_free)
        if not {*self.faults.values()} <= FAULTS.keys() or not all(0 < status < 256 for status in self.faults):
            known = ", ".join(FAULTS)
            message = f"faults: an exit status from 1 to 255, or 128 + n for signal n, is the fault of one of {known}"
            raise ConfigurationError(message)

    def __repr__(self) -> str:
        return f"CommandRenderer({self.name[:80]!r}, makes={self.makes!r})"

    @property
    def shows_progress(self) -> bool:
        """Whether the program says how far it is."""
        return self.makes == "frames" or self._progress is not None

    def uses_gpu(self) -> bool:
        """Return whether the program draws on a GPU."""
        return self._uses_gpu

    def check_params(self, params: Mapping[str, JsonValue]) -> None:
        """Check the parameters, and that there is the program.

        Raises:
            UnknownNameError: ``param.unknown``.
            InvalidRequestError: ``param.invalid``.
            ConfigurationError: ``command.missing``.
        """
        super().check_params(params)
        self.template.check_texts(self.read_params(params))
        self._find()

    def picture_name(self, number: int) -> str:
        """Return the name of the picture of a frame, counted from 0."""
        return self._pictures % (self._first + number)

    def is_picture(self, path: Path) -> bool:
        """Return whether a file has the name of a picture of any frame."""
        before, _, after = re.split(r"(%0?\d*d)", self._pictures)
        pattern = rf"{re.escape(before)}\d+{re.escape(after)}"
        return re.fullmatch(pattern, path.name) is not None

    def start(self, values: Mapping[str, str], params: SceneParams, *, folder: Path) -> Program:
        """Start the program, for a ``with`` block.

        Args:
            values: Of the placeholders.
            params: The parameters.
            folder: Where its files are.
        """
        return Program(
            [self._find(), *self.template.fill(values, params)[1:]],
            folder=folder,
            environment=self._environment,
            bounds=self._bounds,
            progress=self._progress,
        )

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write the video; see `VideoRenderer.render`.

        Raises:
            SceneError: ``command.failed``, ``command.no-output``, ``command.wrong-output``,
                ``command.printed-too-much``, ``command.wrote-too-much``, ``frames.too-few`` or ``frames.too-many``.
            RenderError: ``command.killed`` or ``disk.full``.
            ConfigurationError: ``command.missing``.
        """
        if self.makes == "frames":
            return super().render(order, audio, output, report)
        with extra_is_named():
            from renderdispatch.render.command.video import video_by_program
        return video_by_program(order, audio, output, report, renderer=self)

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return what draws an order; see `VideoRenderer.artist`.

        Raises:
            InvalidRequestError: ``preview.unsupported``: the program makes a video, and no single frames.
        """
        if self.makes == "video":
            message = f"{self.name} makes videos, and has no preview; render a second of it: --start 0:30 --duration 1"
            raise InvalidRequestError(message, code="preview.unsupported")
        with extra_is_named():
            from renderdispatch.render.command.pictures import ProgramArtist
        yield ProgramArtist(self, order, cover=cover, device_class=self.device_class())

    def device_class(self) -> str:
        """Return the class of what draws, which promises nothing: the program's version decides about the bytes."""
        from renderdispatch.render.device import UNHELD, device_class

        return f"{device_class()}+{re.sub(r'[^A-Za-z0-9._-]', '-', self.name)[:40]}{UNHELD}"

    def _find(self) -> str:
        return find_program(self.template.words[0], self._environment, install=self._install)


def _read_progress(progress: str | None, makes: Makes) -> re.Pattern[str] | None:
    if progress is None:
        return None
    if makes == "frames":
        raise ConfigurationError("progress: the pictures of a command that makes frames are counted")
    pattern = re.compile(progress)
    if len(pattern.groupindex) != 1 or not pattern.groupindex.keys() <= _UNITS:
        raise ConfigurationError("progress: a pattern with one group, named frame, seconds or percent: (?P<frame>\\d+)")
    return pattern


def _read_pictures(pictures: str) -> str:
    if not re.fullmatch(r"[^%/]*%(0?[1-9])?d[^%/]*\.(png|jpe?g)", pictures, re.IGNORECASE):
        raise ConfigurationError(f"pictures: a name such as %06d.png or frame-%d.jpg, not {pictures!r}")
    return pictures

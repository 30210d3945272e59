"""How do the numbered pictures that a program writes become frames?

Each is read when it is complete, and removed: a long video takes little of the disk. What has run ahead waits there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from renderdispatch.errors import SceneError
from renderdispatch.messages import RenderOrder
from renderdispatch.plumbing.failures import text_of
from renderdispatch.render.command.inputs import values_of
from renderdispatch.render.command.program import Program
from renderdispatch.render.covers import Cover
from renderdispatch.render.one_pass import OnePassArtist
from renderdispatch.render.picture import Converter, Picture

if TYPE_CHECKING:
    from renderdispatch.render.command.renderer import CommandRenderer

_ENDINGS: Final = (b"IEND\xaeB`\x82", b"\xff\xd9")
"""The last bytes of a PNG and of a JPEG: such a file is complete."""
_FORMATS: Final = ("PNG", "JPEG")
_CHECK_S: Final = 0.005
_SLOWEST_CHECK_S: Final = 0.1


class ProgramArtist(OnePassArtist):
    """Takes its pictures from a program.

    Args:
        renderer: How it runs.
        order: The order.
        cover: The song's cover.
        device_class: The class of what draws.
    """

    def __init__(
        self, renderer: CommandRenderer, order: RenderOrder, *, cover: Cover | None, device_class: str
    ) -> None:
        output = order.output
        if renderer.draws_projection:
            output = output.model_copy(update={"projection": "flat"})  # its pictures are those of the video
        super().__init__(output, what=renderer.name)
        if "first_frame" in renderer.template.uses:
            self.run_up = 0
        self.rendered_by, self.device_class = renderer.name, device_class
        self._renderer, self._order, self._cover = renderer, order, cover
        self._params = renderer.read_params(order.params)

    def make(self, first: int) -> Generator[Picture, None, None]:
        """Run the program, and iterate over its pictures."""
        with ExitStack() as stack:
            folder = self.folder / "program"
            frames = folder / "frames"
            frames.mkdir(parents=True)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            program = stack.enter_context(self._start(folder, frames, first))
            converter, status = Converter(), None
            for number in range(first, self._total):
                path = frames / self._renderer.picture_name(number)
                pause_s = _CHECK_S
                while status is None and not _is_complete(path):
                    status = program.wait(pause_s)
                    self.report(number, self._total)
                    pause_s = min(2 * pause_s, _SLOWEST_CHECK_S)
                if status:
                    raise program.error_of(status, self._renderer.faults)
                if not os.path.lexists(path):
                    self._say_what_is_missing(number, first, program, frames)
                    return
                yield self._read(path, converter)
                path.unlink()
                if status is None:
                    status = program.wait(0)
            while status is None:
                status = program.wait(_SLOWEST_CHECK_S)
                self.report(self._total, self._total)
            if status:
                raise program.error_of(status, self._renderer.faults)
            if self._names_in(frames):
                raise self.too_many()

    def _start(self, folder: Path, frames: Path, first: int) -> Program:
        values = values_of(
            self._renderer.template.uses,
            self._order,
            self._params,
            audio=self.audio,
            features=self.features,
            folder=folder,
            target=frames,
            first=first,
            size=(self.columns, self.rows),
            cover=self._cover,
        )
        return self._renderer.start(values, self._params, folder=folder)

    def _say_what_is_missing(self, number: int, first: int, program: Program, frames: Path) -> None:
        """Raise an error if a picture is missing before others; `OnePassArtist` does if there are too few."""
        expected = self._renderer.picture_name(number)
        other = min(self._names_in(frames), default=None)
        if number != first and other is None:
            return
        instead = "" if other is None else f", but {other[:80]!r}"
        message = f"{program.name} exited with status 0 and wrote no picture {expected}{instead}{program.printed.tail}"
        raise SceneError(message, code="command.no-output" if number == first else "command.wrong-output")

    def _names_in(self, frames: Path) -> list[str]:
        """Return the names of the pictures that are there."""
        with suppress(FileNotFoundError):  # the program removed the folder
            return [path.name for path in frames.iterdir() if self._renderer.is_picture(path)]
        return []

    def _read(self, path: Path, converter: Converter) -> Picture:
        """Return a picture of a file, over black where it is clear."""
        if not _is_file(path):
            message = f"{self._what} made {path.name}, which is not a regular file"
            raise SceneError(message, code="command.wrong-output")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.size == (self.columns, self.rows):
                    pixels = _in_rgb(image)
                    return converter.from_rgb(pixels, self.columns, self.rows)
                found = f"{image.width}x{image.height}"
        except MemoryError:
            raise
        except Exception as error:
            message = f"{self._what} wrote {path.name}, which cannot be read: {text_of(error)}"
            raise SceneError(message, code="command.wrong-output") from error
        message = f"{self._what} wrote {path.name} of {found}; {self.columns}x{self.rows} were ordered"
        raise SceneError(message, code="command.wrong-output")


def _in_rgb(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), clear)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        return np.repeat((np.asarray(image, np.int32)[..., np.newaxis] >> 8).astype(np.uint8), 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _is_complete(path: Path) -> bool:
    """Return whether a file is complete. A folder or a pipe counts as complete: opening a pipe could wait for ever."""
    try:
        if not _is_file(path):
            return True
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 8, 0))
            return file.read(8).endswith(_ENDINGS)
    except FileNotFoundError:
        return False

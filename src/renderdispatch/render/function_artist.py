"""How do the pictures that a function yields become frames, and who is to blame if that fails?"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from renderdispatch.errors import SceneError
from renderdispatch.messages import Output
from renderdispatch.render.one_pass import OnePassArtist
from renderdispatch.render.picture import Canvas, Converter, Picture
from renderdispatch.render.scene_artist import blamed_on_the_scene

if TYPE_CHECKING:
    from renderdispatch.render.function import FunctionRenderer


class FunctionArtist(OnePassArtist):
    """Takes its pictures from a function.

    Args:
        renderer: The function.
        output: Size, frame rate and projection.
        arguments: What it is called with, beside the song and the size.
        device_class: The class of what draws.
    """

    rendered_by = "python"

    def __init__(
        self, renderer: FunctionRenderer, output: Output, arguments: Mapping[str, Any], *, device_class: str
    ) -> None:
        super().__init__(output, what=renderer.__name__)
        self.device_class = device_class
        self._function = renderer.function
        size = {"width": self.columns, "height": self.rows}
        self._arguments = {**arguments, **{name: pixels for name, pixels in size.items() if name in renderer.given}}

    def make(self, first: int) -> Generator[Picture, None, None]:
        """Call the function, and iterate over its pictures, from frame 0 on."""
        assert first == 0  # only the function knows what it remembers
        with blamed_on_the_scene("failed at its start"):
            made = self._function(self.features, **self._arguments)
            if made is None:
                raise SceneError(f"{self._what} returned None, and is to yield pictures", code="frames.wrong")
            arrays = iter(made)
        converter, number = Converter(), 0
        try:
            while (array := self._next_of(arrays, number)) is not None:
                yield converter.from_rgb(self._checked(array, number), self.columns, self.rows)
                number += 1
        except SceneError:
            with suppress(SceneError):  # the first failure is the one to tell
                _close(arrays)
            raise
        except GeneratorExit:
            _close(arrays)
            raise
        _close(arrays)

    def _next_of(self, arrays: Iterator[Any], number: int) -> Any:
        with blamed_on_the_scene(f"failed at frame {number}"):
            for array in arrays:
                if array is None:
                    raise SceneError(f"{self._what} yielded None for frame {number}", code="frames.wrong")
                return array
        return None

    def _checked(self, array: Any, number: int) -> Canvas:
        with blamed_on_the_scene(f"yielded frame {number}, which is no array"):
            picture = np.asarray(array)
        wanted = (self.rows, self.columns, 3)
        if picture.shape != wanted or picture.dtype != np.uint8:
            found = f"frame {number} of {self._what} is {picture.shape} {picture.dtype}"
            advice = "; (picture * 255).astype(np.uint8)" if picture.dtype.kind == "f" else ""
            raise SceneError(f"{found}; {wanted} uint8, in RGB, is needed{advice}", code="frames.wrong")
        return np.ascontiguousarray(picture)


def _close(arrays: Iterator[Any]) -> None:
    """End a generator, or another iterator that has an end."""
    if hasattr(arrays, "close"):
        with blamed_on_the_scene("failed at its end"):
            arrays.close()

"""Draws shaders for tests: with sound and images that are known to the last bit."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.render.artist import Artist
from renderdispatch.render.features import Frame
from renderdispatch.render.gl.artist import GlArtist
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.gl.shader import read_shader
from renderdispatch.render.picture import Converter, Picture

SIZE: Final = Output(width=64, height=36, fps=Fraction(30))
GREEN: Final = (0, 255, 0)

_k: Final = np.arange(512)
TEXTURE: Final = np.stack([7 * _k % 256, (13 * _k + 5) % 256]).astype(np.uint8)


def _image() -> NDArray[np.uint8]:
    """Return 40 x 24: red 5 x column, green 9 x row from the top, blue 77, alpha 200."""
    image = np.empty((24, 40, 4), np.uint8)
    image[..., 0], image[..., 1] = 5 * np.arange(40), 9 * np.arange(24)[:, None]
    image[..., 2:] = 77, 200
    return image


_second: Final = np.zeros((2, 3, 3), np.uint8)
_second[0, 0], _second[1, 2] = (255, 0, 0), (0, 0, 255)

PICTURES: Final = {"image 1": _image(), "image 2": _second, "cover": np.full((8, 8, 3), 50, np.uint8)}


def frame(index: int) -> Frame:
    """Return a frame whose sound is known; see the files."""
    bands = (np.arange(96) / 95).astype(np.float32)
    return Frame(index, index / 30, 0.5, 0.25, bands, np.zeros(512, np.float32), TEXTURE, 48_000)


def artist_of(device: GlDevice, text: str, *, name: str = "test.glsl", **given: Any) -> GlArtist:
    """Return what draws a text."""
    pictures, output = given.pop("pictures", PICTURES), given.pop("output", SIZE)
    return GlArtist(device, read_shader(text, name=name), output, pictures=pictures, **given)


def draw_each(artist: Artist, indexes: Iterable[int]) -> list[Picture]:
    """Return the pictures of frames, drawn one after the other, each from the state that belongs to it."""
    pictures = []
    for index in indexes:
        state = artist.start()
        for before in range(index + 1):
            state = artist.step(state, frame(before))
        pictures.append(artist.draw(state, frame(index)))
    return pictures


def bytes_of(picture: Picture) -> bytes:
    """Return the pixels of a picture."""
    return b"".join(plane.tobytes() for plane in picture.planes)


def is_all(picture: Picture, colour: tuple[int, int, int]) -> bool:
    """Return whether every pixel of a picture has a colour."""
    rows, columns = picture.luma.shape
    pixels = np.empty((rows, columns, 4), np.uint8)
    pixels[...] = (*colour, 255)
    return bytes_of(Converter().from_rgba(pixels, columns, rows)) == bytes_of(picture)

"""What do a shader's channels read, and how?

A texture is shared by the passes that read it, and each of them may read it in its own way: so filters and wraps belong
to samplers, one for each way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import moderngl
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from renderdispatch.render.features import TEXTURE_WIDTH, Frame
from renderdispatch.render.gl.shader import BUFFERS, COVER, IMAGES, NOTHING, SOUND, Channel, Filter, Shader, Wrap

Image = NDArray[np.uint8]
"""(rows, columns, 3 or 4) uint8: RGB, or RGBA that is not multiplied with its alpha; row 0 is at the top."""

_FILTERS: Final[Mapping[Filter, tuple[int, int]]] = {
    "nearest": (moderngl.NEAREST, moderngl.NEAREST),
    "linear": (moderngl.LINEAR, moderngl.LINEAR),
    "mipmap": (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR),
}


@frozen(eq=False)
class Input:
    """What a channel reads in a frame.

    Args:
        texture: Its pixels.
        sampler: How they are read.
        size: Its columns and rows; zeros if the channel reads nothing.
        time_s: When it is, of sound.
    """

    texture: moderngl.Texture = field(repr=False)
    sampler: moderngl.Sampler = field(repr=False)
    size: tuple[int, int]
    time_s: float = 0.0

    def use(self, number: int) -> None:
        """Bind it to a channel."""
        self.texture.use(number)
        self.sampler.use(number)


class Inputs:
    """The textures that do not change with the picture: the sound, images, and the cover.

    Args:
        context: Makes them.
        shader: Reads them.
        pictures: By source: images, the cover.
    """

    def __init__(self, context: moderngl.Context, shader: Shader, pictures: Mapping[str, Image]) -> None:
        self._context: Final = context
        self._samplers: Final[dict[tuple[Filter, Wrap], moderngl.Sampler]] = {}
        self._nothing: Final = context.texture((1, 1), 4, bytes((0, 0, 0, 255)))
        # Of floats: llvmpipe reads them in two thirds of the time of bytes, and does not round between two of them.
        self._sound: Final = context.texture((TEXTURE_WIDTH, 2), 1, dtype="f4")
        self._time_s = 0.0
        read = {channel.source: channel for one in shader.passes for channel in one.channels}
        self._pictures: Final = {name: self._texture(image) for name, image in pictures.items() if name in read}
        self._mipmapped: Final = mipmapped(shader)

    def hear(self, frame: Frame) -> None:
        """Show the sound of a frame: the spectrum in row 0, which is the lower one in OpenGL, and the wave in row 1."""
        self._time_s = frame.time_s
        self._sound.write(np.divide(frame.texture, 255, dtype=np.float32).tobytes())
        if SOUND in self._mipmapped:
            self._sound.build_mipmaps()

    def of(self, channel: Channel, buffers: Mapping[str, moderngl.Texture]) -> Input:
        """Return what a channel reads now.

        Args:
            channel: The channel.
            buffers: What each buffer shows.
        """
        source = channel.source
        sampler = self._sampler(filter_of(channel), channel.wrap or ("repeat" if _is_picture(source) else "clamp"))
        texture = {**buffers, **self._pictures, SOUND: self._sound}.get(source)
        if texture is None:
            return Input(self._nothing, self._sampler("nearest", "clamp"), (0, 0))
        return Input(texture, sampler, texture.size, self._time_s if source == SOUND else 0.0)

    def _sampler(self, filters: Filter, wrap: Wrap) -> moderngl.Sampler:
        if (filters, wrap) not in self._samplers:
            sampler = self._context.sampler(repeat_x=wrap == "repeat", repeat_y=wrap == "repeat")
            sampler.filter = _FILTERS[filters]
            self._samplers[filters, wrap] = sampler
        return self._samplers[filters, wrap]

    def _texture(self, image: Image) -> moderngl.Texture:
        """Return a texture whose first row is the image's lowest one, as Shadertoy flips pictures."""
        rows, columns, colours = image.shape
        pixels = np.ascontiguousarray(image[::-1]).tobytes()
        texture = self._context.texture((columns, rows), colours, pixels, alignment=1)
        texture.build_mipmaps()
        return texture


def filter_of(channel: Channel) -> Filter:
    """Return how a channel is read between pixels: as it says, else as on Shadertoy."""
    return channel.filter or ("mipmap" if _is_picture(channel.source) else "linear")


def mipmapped(shader: Shader) -> frozenset[str]:
    """Return the sources that a pass reads through mipmaps."""
    channels: Iterable[Channel] = (channel for one in shader.passes for channel in one.channels)
    return frozenset(channel.source for channel in channels if filter_of(channel) == "mipmap")


def _is_picture(source: str) -> bool:
    return source not in {SOUND, NOTHING, *BUFFERS}


def check_images(shader: Shader, reads: Mapping[str, Iterable[int]], pictures: Iterable[str]) -> None:
    """Check that there is each image that a pass reads.

    Args:
        shader: The file.
        reads: For each pass, the channels that its program reads.
        pictures: The sources that there are.

    Raises:
        SceneError: ``shader.image``: an image is missing. A song may have no cover: then a cover is black.
    """
    there = {*pictures}
    for one in shader.passes:
        for number in reads[one.name]:
            source = one.channels[number].source
            if source in IMAGES and source not in there:
                what = f"{one.name} reads {source} from iChannel{number}, and the job has no such image"
                advice = f"submit it, or say what it reads: '//! iChannel{number}: {COVER}'"
                raise shader.wrong(f"{what}; {advice}", code="shader.image")

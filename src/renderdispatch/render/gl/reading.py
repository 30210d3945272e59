"""How do the pixels that OpenGL drew become a picture for the encoder?

llvmpipe draws with all cores, and these pixels are in memory already: `RgbaReader` copies them and swscale converts
them, which takes a third of the CPU of a conversion that llvmpipe draws. A GPU converts for nothing and draws while its
last frame is fetched: `PlanarReader` draws the planes of yuv420p and fetches 1.5 bytes a pixel, not 4.

OpenGL is called through `ctypes` where it waits or copies, so that other threads of Python work meanwhile.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Final, Protocol

import moderngl
import numpy as np
from numpy.typing import NDArray

from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.gl.program import VERTEX
from renderdispatch.render.picture import Converter, Picture

Pixels = NDArray[np.uint8]

_PACK_INVERT: Final = 0x8758
"""GL_PACK_INVERT_MESA: read the rows from the top down."""
_RGBA: Final = 0x1908
_UNSIGNED_BYTE: Final = 0x1401
_PIXEL_PACK_BUFFER: Final = 0x88EB
_BUFFERS: Final = 2

_PLANES: Final = """#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D drawn;
uniform ivec2 size;
uniform int columns;
out vec4 bytes;

const vec3 LUMA = vec3(0.2126, 0.7152, 0.0722);

vec3 at(int column, int row) {
    return texelFetch(drawn, ivec2(column, size.y - 1 - clamp(row, 0, size.y - 1)), 0).rgb;
}

vec3 pair(int column, int row) {
    return at(column, row) + at(column + 1, row);
}

float byteOf(int number) {
    int pixels = size.x * size.y;
    if (number < pixels) {
        return (16.0 + 219.0 * dot(at(number % size.x, number / size.x), LUMA)) / 255.0;
    }
    number -= pixels;
    bool red = number >= pixels / 4;
    number = min(red ? number - pixels / 4 : number, pixels / 4 - 1);
    int column = 2 * (number % (size.x / 2)), row = 2 * (number / (size.x / 2));
    vec3 inner = pair(column, row) + pair(column, row + 1), outer = pair(column, row - 1) + pair(column, row + 2);
    vec3 mean = (3.0 * inner + outer) / 16.0;
    float difference = red ? (mean.r - dot(mean, LUMA)) / 1.5748 : (mean.b - dot(mean, LUMA)) / 1.8556;
    return (128.0 + 224.0 * difference) / 255.0;
}

void main() {
    int first = 4 * (int(gl_FragCoord.y) * columns + int(gl_FragCoord.x));
    bytes = vec4(byteOf(first), byteOf(first + 1), byteOf(first + 2), byteOf(first + 3));
}
"""
"""ITU-R BT.709-6, 3.2 to 3.4, in limited range: luma, Cb and Cr one after the other, four bytes in each pixel, from the
top down. A colour is the mean of two columns and four rows with swscale's weights, so that both readers give the same
picture but for rounding."""


class Reader(Protocol):
    """Reads frame after frame, in the thread of the device: `ask` after each drawing, then `fetch` and `picture`."""

    ahead: int
    """How many frames may be drawn and asked for before the first of them is fetched."""

    def ask(self, drawn: moderngl.Framebuffer) -> None:
        """Ask for the pixels that were just drawn; do not wait for them."""

    def fetch(self) -> Pixels:
        """Wait for the first pixels that were asked for, and return them. The next `fetch` may overwrite them.

        Raises:
            RenderError: OpenGL failed since the last `fetch`; see `GlDevice.check`.
        """

    def picture(self, pixels: Pixels) -> Picture:
        """Return a new picture of what was fetched."""

    def forget(self) -> None:
        """Forget what was asked for."""


def reader_for(device: GlDevice, size: tuple[int, int], *, planar: bool | None = None) -> Reader:
    """Return what reads pictures of a size.

    Args:
        device: Draws.
        size: Columns and rows, even.
        planar: Whether OpenGL makes yuv420p; None is what is faster on this device.
    """
    if planar is None:
        planar = device.on_gpu or "GL_MESA_pack_invert" not in device.context.extensions
    return PlanarReader(device, size) if planar else RgbaReader(device, size)


class RgbaReader:
    """Reads RGBA, which swscale converts.

    In llvmpipe, to read one frame waits for all that were asked for, and a buffer object does not change that. So one
    frame is in flight: fetch it, have the next one drawn, and convert meanwhile.
    """

    ahead: int = 1

    def __init__(self, device: GlDevice, size: tuple[int, int]) -> None:
        self._device, self._library = device, device.library
        self._width, self._height = size
        self._pixels = np.empty((self._height, self._width, 4), np.uint8)
        self._converter = Converter()
        self._drawn: moderngl.Framebuffer | None = None

    def ask(self, drawn: moderngl.Framebuffer) -> None:
        self._drawn = drawn
        self._library.glFlush()

    def fetch(self) -> Pixels:
        assert self._drawn is not None
        self._drawn.use()
        self._library.glPixelStorei(_PACK_INVERT, 1)
        self._library.glReadPixels(0, 0, self._width, self._height, _RGBA, _UNSIGNED_BYTE, _address(self._pixels))
        self._library.glPixelStorei(_PACK_INVERT, 0)
        self._device.check("a frame was not drawn")
        self._drawn = None
        return self._pixels

    def picture(self, pixels: Pixels) -> Picture:
        return self._converter.from_rgba(pixels, self._width, self._height)

    def forget(self) -> None:
        self._drawn = None


class PlanarReader:
    """Draws the planes of yuv420p and reads them through two buffer objects, one frame while the next one is drawn."""

    ahead: int = _BUFFERS

    def __init__(self, device: GlDevice, size: tuple[int, int]) -> None:
        context = device.context
        self._device, self._library = device, device.library
        self._width, self._height = size
        self._length = self._width * self._height * 3 // 2
        columns = self._width // 2  # neither side is longer than the picture's, which OpenGL can draw
        rows = -(-self._length // (4 * columns))
        self._pixels = np.empty(self._length, np.uint8)
        self._program = context.program(VERTEX, _PLANES)
        self._program["size"], self._program["columns"] = size, columns
        self._vertices = context.vertex_array(self._program, [])
        self._planes = context.framebuffer([context.texture((columns, rows), 4)])
        self._free = deque(context.buffer(reserve=4 * columns * rows) for _ in range(_BUFFERS))
        self._asked = deque[moderngl.Buffer]()

    def ask(self, drawn: moderngl.Framebuffer) -> None:
        (texture,) = drawn.color_attachments
        assert isinstance(texture, moderngl.Texture)
        texture.use(0)
        self._library.glBindSampler(0, 0)  # that of a pass: with mipmaps, which this texture has not, it would be black
        self._planes.use()
        self._vertices.render(moderngl.TRIANGLES, vertices=3)
        buffer = self._free.popleft()
        self._asked.append(buffer)
        self._library.glBindBuffer(_PIXEL_PACK_BUFFER, buffer.glo)
        self._library.glReadPixels(0, 0, *self._planes.size, _RGBA, _UNSIGNED_BYTE, None)
        self._library.glBindBuffer(_PIXEL_PACK_BUFFER, 0)
        self._library.glFlush()

    def fetch(self) -> Pixels:
        buffer = self._asked.popleft()
        self._free.append(buffer)
        length = ctypes.c_ssize_t(self._length)
        self._library.glBindBuffer(_PIXEL_PACK_BUFFER, buffer.glo)
        self._library.glGetBufferSubData(_PIXEL_PACK_BUFFER, ctypes.c_ssize_t(0), length, _address(self._pixels))
        self._library.glBindBuffer(_PIXEL_PACK_BUFFER, 0)
        self._device.check("a frame was not drawn")
        return self._pixels

    def picture(self, pixels: Pixels) -> Picture:
        picture = Picture.empty(self._width, self._height)
        luma = self._width * self._height
        for plane, values in zip(picture.planes, np.split(pixels, (luma, luma * 5 // 4)), strict=True):
            plane[:] = values.reshape(plane.shape)
        return picture

    def forget(self) -> None:
        self._free += self._asked
        self._asked.clear()


def _address(pixels: Pixels) -> ctypes.c_void_p:
    return ctypes.c_void_p(pixels.ctypes.data)

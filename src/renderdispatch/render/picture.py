"""What does the encoder take, and how do scenes draw in it?

A `Picture` is yuv420p in BT.709, limited range: luma for each pixel, colour for each square of four. Scenes of other
authors paint RGB, which is converted. A `PlanarScene` draws in the planes themselves, which saves the conversion and
half of the bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Final, Self

import numpy as np
from attrs import frozen
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray
from typing_extensions import TypeVar

from renderdispatch.render.features import Floats, Frame
from renderdispatch.render.scene import Scene

Canvas = NDArray[np.uint8]
"""The picture: (rows, columns, 3) uint8, RGB with full range. It holds an older frame: paint all of it."""

Plane = NDArray[np.uint8]
"""(rows, columns) uint8: the luma or one of the colours of a picture."""

Shade = NDArray[np.int16]
"""Values of one plane, ready to be blended into it."""

FULL: Final = 128
"""The cover of a pixel that a shape hides whole."""

S = TypeVar("S", bound=tuple[Any, ...], default=tuple[()])

_LUMA: Final = (0.2126, 0.7152, 0.0722)
"""ITU-R BT.709: how much red, green and blue contribute to the luma."""


@frozen(eq=False)
class Picture:
    """A picture in planes, usually yuv420p of an even size. The planes are views of the frame, and may be written to.

    Args:
        frame: The encoder's own frame.
        luma: (rows, columns) uint8, 16 (black) to 235 (white).
        blue: (rows / 2, columns / 2) uint8, 16 to 240, 128 is grey: Cb.
        red: (rows / 2, columns / 2) uint8, 16 to 240, 128 is grey: Cr.
    """

    frame: VideoFrame
    luma: Plane
    blue: Plane
    red: Plane

    @classmethod
    def of(cls, frame: VideoFrame) -> Self:
        """Return the planes of a yuv420p frame."""
        luma, blue, red = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
            for plane in frame.planes
        )
        return cls(frame, luma, blue, red)

    @classmethod
    def empty(cls, width: int, height: int) -> Self:
        """Return a new picture; its pixels are to be set."""
        return cls.of(VideoFrame(width, height, "yuv420p"))

    @property
    def planes(self) -> tuple[Plane, Plane, Plane]:
        """The luma, Cb and Cr."""
        return self.luma, self.blue, self.red


def pitches(width: int) -> tuple[int, int]:
    """Return how many bytes there are from row to row in the luma, and in the colours, of the pictures of a width.

    They are those of `Picture.empty` and `Backdrop.picture`.
    """
    luma, colour, _ = VideoFrame(width, 2, "yuv420p").planes
    return luma.line_size, colour.line_size


def in_a_row(plane: Plane) -> Plane:
    """Return the plane of a picture as one long row, (n,), without copying.

    The pixel (row, column) is at ``row * pitch + column``; see `pitches`. One index is three times faster than two.
    """
    rows, columns = plane.shape
    return np.lib.stride_tricks.as_strided(plane, ((rows - 1) * plane.strides[0] + columns,), (1,))


def blended(under: Plane | Shade, shade: Shade, cover: NDArray[np.int16] | int) -> NDArray[np.int16]:
    """Return pixels that a shape covers, 0 to `FULL`, with a shade; shapes broadcast. All is in integers."""
    away = shade - under
    away *= cover
    away >>= 7
    away += under
    return away


def blend_at(row: Plane, at: NDArray[np.intp], shade: Shade, cover: NDArray[np.int16]) -> None:
    """Blend a shade into single pixels.

    Args:
        row: A plane, as of `in_a_row`.
        at: (n,), which of its pixels; each one at most once.
        shade: (n,) or a number.
        cover: (n,), 0 to `FULL`.
    """
    # `take` is twice as fast as an index; to cast while it is scattered would take twice as long.
    row[at] = blended(row.take(at, mode="clip"), shade, cover).astype(np.uint8)


def put_where(pixels: Plane, shown: Plane, where: Plane) -> None:
    """Replace pixels where ``where`` is 255, and keep them where it is 0; all three have the same shape.

    It is forty times faster than `numpy.copyto` through a mask of truths.
    """
    change = pixels ^ shown
    change &= where
    pixels ^= change


class Converter:
    """Converts between RGB and yuv420p, and scales. Use each one in one thread and for one pair of sizes."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_rgb(self, canvas: Canvas, width: int, height: int) -> Picture:
        """Return an RGB picture, scaled bilinearly to a size."""
        return self._converted(VideoFrame.from_numpy_buffer(canvas, format="rgb24"), width, height)

    def from_rgba(self, canvas: Canvas, width: int, height: int) -> Picture:
        """Return an RGBA picture, (rows, columns, 4) uint8, whatever its alpha, scaled bilinearly to a size."""
        return self._converted(VideoFrame.from_numpy_buffer(canvas, format="rgba"), width, height)

    def _converted(self, frame: VideoFrame, width: int, height: int) -> Picture:
        frame = self._reformatter.reformat(
            frame,
            width,
            height,
            "yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        return Picture.of(frame)

    def scaled(self, picture: Picture, width: int, height: int) -> Picture:
        """Return a picture as yuv420p, scaled bilinearly to a size."""
        bilinear = Interpolation.BILINEAR
        frame = self._reformatter.reformat(picture.frame, width, height, "yuv420p", interpolation=bilinear, threads=1)
        return Picture.of(frame)

    def to_rgb(self, picture: Picture, canvas: Canvas) -> None:
        """Fill the canvas, which has the picture's size."""
        frame = self._reformatter.reformat(
            picture.frame,
            format="rgb24",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        canvas[:] = frame.to_ndarray()


class PlanarScene(Scene[S]):
    """A scene that draws in the encoder's planes. `paint` shows the same picture in RGB."""

    @abstractmethod
    def picture(self, state: S, frame: Frame) -> Picture:
        """Return a new picture of a frame; arguments are as of `paint`."""

    def paint(self, state: S, frame: Frame, canvas: Canvas) -> None:
        """Fill the canvas with the picture."""
        Converter().to_rgb(self.picture(state, frame), canvas)


def in_planes(colour: Floats) -> NDArray[np.float32]:
    """Return RGB in full range, (..., 3) 0 to 255, as luma, Cb and Cr in limited range, (..., 3) float32.

    ITU-R BT.709-6, 3.2 to 3.4.
    """
    red, green, blue = (np.asarray(colour)[..., channel] / 255 for channel in range(3))
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    planes = 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748
    return np.stack(planes, axis=-1).astype(np.float32)


def shades(colour: Floats) -> tuple[Shade, Shade, Shade]:
    """Return RGB in full range, (..., 3) 0 to 255, as the luma, Cb and Cr to draw with, each (...)."""
    planes = np.rint(in_planes(np.clip(colour, 0, 255))).astype(np.int16)
    return planes[..., 0].copy(), planes[..., 1].copy(), planes[..., 2].copy()


def halved(values: Floats) -> Floats:
    """Return the means of squares of four: (rows, columns, ...) for each pixel become those of each colour's pixel."""
    rows, columns = values.shape[0] // 2, values.shape[1] // 2
    squares = values[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, *values.shape[2:])
    return np.asarray(squares.mean(axis=(1, 3), dtype=np.float32))

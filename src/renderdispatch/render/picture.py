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

S = TypeVar("S", bound=tuple[Any, ...], default=tuple[()])

_LUMA: Final = (0.2126, 0.7152, 0.0722)
"""ITU-R BT.709: how much red, green and blue contribute to the luma."""


@frozen(eq=False)
class Picture:
    """A yuv420p picture of an even size. The planes are views of the frame, and may be written to.

    Args:
        frame: The encoder's own frame.
        luma: (rows, columns) uint8, 16 (black) to 235 (white).
        blue: (rows / 2, columns / 2) uint8, 16 to 240, 128 is grey: Cb.
        red: (rows / 2, columns / 2) uint8, 16 to 240, 128 is grey: Cr.
    """

    frame: VideoFrame
    luma: NDArray[np.uint8]
    blue: NDArray[np.uint8]
    red: NDArray[np.uint8]

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


class Converter:
    """Converts between RGB and yuv420p, and scales. Use each one in one thread and for one pair of sizes."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def from_rgb(self, canvas: Canvas, width: int, height: int) -> Picture:
        """Return an RGB picture, scaled bilinearly to a size."""
        frame = self._reformatter.reformat(
            VideoFrame.from_numpy_buffer(canvas, format="rgb24"),
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

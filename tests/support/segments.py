"""Segments of a made-up video, drawn in microseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.plumbing.pieces import SegmentHead
from renderdispatch.render.encoders import LIBX264
from renderdispatch.render.segment import SegmentWriter

DIGEST: Final = "d" * 64


@cache
def _texture(height: int, width: int) -> NDArray[np.uint8]:
    """Return something that moves well: soft shapes with a little noise."""
    rows, columns = np.mgrid[0:height, 0:width] / 8
    soft = 120 + 60 * np.sin(rows) * np.cos(columns / 2) + 30 * np.sin(columns / 5)
    noise = np.random.default_rng(5).normal(0, 3, (height, width))
    return np.asarray((soft + noise).clip(16, 235), np.uint8)


def picture(output: Output, number: int) -> VideoFrame:
    """Return a frame; each differs from the others."""
    height, width = output.height, output.width
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.roll(_texture(height, width), (number // 3, 2 * number), (0, 1))
    planes[:4, : width // 2] = 16 + number % 220
    return VideoFrame.from_ndarray(planes, format="yuv420p")


def noisy(output: Output, number: int) -> VideoFrame:
    """Return a frame with grain, which no frame before it predicts."""
    planes = picture(output, number).to_ndarray()
    grain = np.random.default_rng(number).integers(0, 12, (output.height, output.width), np.uint8)
    planes[: output.height] = np.minimum(planes[: output.height], 220) + grain
    return VideoFrame.from_ndarray(planes, format="yuv420p")


def write_segment(
    path: Path, output: Output, *, frames: int, index: int = 0, begin: int = 0, first: int | None = None
) -> SegmentHead:
    """Write a segment of the video.

    Args:
        path: The file.
        output: The picture.
        frames: How many.
        index: Of the segment.
        begin: Where it begins in the video.
        first: The frame to begin with, if it is another one.
    """
    first = begin if first is None else first
    with SegmentWriter(path, output, LIBX264, digest=DIGEST, index=index, begin=begin) as writer:
        for number in range(first, first + frames):
            writer.write_frame(picture(output, number))
        return writer.close()

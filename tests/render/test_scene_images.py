"""Does every picture become an image for a scene: whole, upright, with its alpha, and not too large?"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_COVER_BYTES, FaultDomain
from renderdispatch.plumbing.failures import job_error
from renderdispatch.render.covers import IMAGE_SIDE, read_image

CORNERS = np.zeros((30, 60, 3), np.uint8)
CORNERS[:15, :30], CORNERS[:15, 30:], CORNERS[15:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    rows, columns, _ = pixels.shape
    places = [(rows // 4, columns // 4), (rows // 4, 3 * columns // 4), (3 * rows // 4, columns // 4)]
    return [tuple(255 if value > 200 else 0 if value < 55 else int(value) for value in pixels[at][:3]) for at in places]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_formats(kind: str) -> None:
    """An image keeps its proportions, and row 0 is at the top."""
    pixels = read_image(save(Image.fromarray(CORNERS), kind))
    assert pixels.shape == (30, 60, 3) and pixels.dtype == np.uint8
    assert corners(pixels) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("1", "PNG")])
def test_modes(mode: str, kind: str) -> None:
    """Greys, palettes and CMYK become RGB; what has alpha keeps it."""
    pixels = read_image(save(Image.fromarray(CORNERS).convert(mode), kind))
    assert pixels.shape == (30, 60, 4 if mode == "LA" else 3)


def test_alpha() -> None:
    """Colours are not multiplied with the alpha, and clear pixels keep theirs."""
    clear = np.zeros((2, 3, 4), np.uint8)
    clear[0], clear[1] = (200, 100, 50, 0), (200, 100, 50, 128)
    assert np.array_equal(read_image(save(Image.fromarray(clear), "PNG")), clear)


def test_upright() -> None:
    """A picture is turned as its EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(CORNERS)))
    pixels = read_image(save(turned, "JPEG", exif=exif, quality=95))
    assert pixels.shape == (30, 60, 3)
    assert corners(pixels) == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize(("size", "to"), [((5000, 100), (2048, 41)), ((100, 4096), (50, 2048)), ((2048, 3), (2048, 3))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images(kind: str, size: tuple[int, int], to: tuple[int, int]) -> None:
    """They are scaled down, in proportion, so that no side is longer than the limit."""
    assert max(to) == IMAGE_SIDE
    assert read_image(save(Image.new("RGB", size), kind)).shape == (to[1], to[0], 3)


def test_a_long_thin_image() -> None:
    """It keeps a row."""
    assert read_image(save(Image.new("L", (20_000, 1)), "PNG")).shape == (1, 2048, 3)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image.invalid"),
        (b"not a picture", "image.invalid"),
        (save(Image.fromarray(CORNERS), "PNG")[:-40], "image.invalid"),
        (b"\x89PNG" + bytes(MAX_COVER_BYTES), "image.too-large"),
        (save(Image.new("1", (6000, 6000)), "PNG"), "image.too-large"),
    ],
    ids=["empty", "text", "cut off", "bytes", "pixels"],
)
def test_refused(data: bytes, code: str) -> None:
    """The error is the request's, and names the image."""
    with pytest.raises(InvalidRequestError, match="the image ") as caught:
        read_image(data)
    assert job_error(caught.value, otherwise=FaultDomain.SCENE).code == code
    assert job_error(caught.value, otherwise=FaultDomain.SCENE).fault is FaultDomain.REQUEST


def test_a_missing_file(tmp_path: Path) -> None:
    """It cannot be read."""
    with pytest.raises(InvalidRequestError) as caught:
        read_image(tmp_path / "nothing.png")
    assert caught.value.code == "image.unreadable"

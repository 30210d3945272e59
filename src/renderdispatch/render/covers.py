"""How does a picture file become what scenes can use: upright, in 8 bits, not too large, and a cover a square?

Files come from strangers. Their formats, bytes, pixels and scans are limited before anything is decoded, and a cover
that is passed on is encoded anew.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_COVER_BYTES
from renderdispatch.plumbing.failures import Translation, text_of, translated

SIDE: Final = 1024
"""The most pixels of a side of a cover."""

IMAGE_SIDE: Final = 2048
"""The most pixels of a side of an image."""

_MOST_PIXELS: Final = 25_000_000
_MOST_PIXELS_OF_JPEG: Final = 50_000_000
"""As of a telephone's camera. To decode this many takes 310 MiB of memory, of other formats up to 390."""

_MOST_SCANS: Final = 50
"""Of a progressive JPEG, which has about ten; each takes as long as decoding the picture."""

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SCALABLE: Final = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr"})
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations, and how such a picture is turned (CIPA DC-008, 4.6.4)."""


@frozen(eq=False)
class Cover:
    """A cover.

    Args:
        pixels: (n, n, 3) uint8, RGB; n is at most `SIDE`.
        is_animated: Whether the file holds more pictures; this is the first.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    is_animated: bool = False

    def to_jpeg(self) -> bytes:
        """Return a JPEG of the cover, without anything else that the file held."""
        return to_jpeg(self.pixels)


def to_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return a JPEG of a picture: (rows, columns, 3) uint8, RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, optimize=True)
    return file.getvalue()


def read_cover(source: Path | bytes) -> Cover:
    """Read a cover: the square in the middle of a picture, scaled down if it is large, over black where it is clear.

    Raises:
        InvalidRequestError: ``cover.unreadable``; ``cover.invalid``: it is broken, or not a JPEG, PNG, WebP, GIF or
            BMP; ``cover.too-large``: in bytes or in pixels.
    """
    file = _File("cover")
    with file.opened(source, side=SIDE) as image:
        is_animated = False
        with suppress(Exception):  # the first picture may be good where the others are not
            is_animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        pixels = _upright(image, _square)
    return Cover(pixels, is_animated=is_animated)


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Read an image for a scene: (rows, columns, 3) uint8, RGB, or (rows, columns, 4) if parts of it are clear.

    It keeps its proportions, and is scaled down if a side has more than `IMAGE_SIDE` pixels. Colours are not multiplied
    with the alpha.

    Raises:
        InvalidRequestError: ``image.unreadable``, ``image.invalid`` or ``image.too-large``, as of `read_cover`.
    """
    with _File("image").opened(source, side=IMAGE_SIDE) as image:
        return _upright(image, _whole)


@frozen
class _File:
    """A picture file of a stranger: a cover, or an image for a scene."""

    what: str

    @contextmanager
    def opened(self, source: Path | bytes, *, side: int) -> Iterator[Image.Image]:
        """Return the decoded picture for a block, whose errors are the file's. No side need be larger than ``side``."""
        data = source if isinstance(source, bytes) else self._read(source)
        if len(data) > MAX_COVER_BYTES:
            raise self._too_large(f"more than {MAX_COVER_BYTES >> 20} MiB")
        with translated(self._blame, chain=True), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            is_jpeg = image.format in {"JPEG", "MPO"}
            most = _MOST_PIXELS_OF_JPEG if is_jpeg else _MOST_PIXELS
            if image.width * image.height > most:
                raise self._too_large(f"{image.width}x{image.height}, more than {most // 1_000_000} megapixels")
            if is_jpeg and data.count(b"\xff\xda") > _MOST_SCANS:
                raise self._too_large(f"a JPEG of more than {_MOST_SCANS} scans")
            image.draft(None, (side, side))  # a JPEG is decoded at a fraction of its size
            image.load()
            yield image

    def _read(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_COVER_BYTES + 1)
        except OSError as error:
            message = f"the {self.what} cannot be read: {error.strerror}"
            raise InvalidRequestError(message, code=f"{self.what}.unreadable") from error

    @property
    def _blame(self) -> Translation:
        def same(error: InvalidRequestError | MemoryError) -> InvalidRequestError | MemoryError:
            return error

        def too_many_pixels(_: Exception) -> InvalidRequestError:
            return self._too_large("too many pixels")

        def not_a_picture(_: UnidentifiedImageError) -> InvalidRequestError:
            return self._invalid("is not a JPEG, PNG, WebP, GIF or BMP picture")

        def undecodable(error: Exception) -> InvalidRequestError:
            return self._invalid(f"cannot be decoded: {type(error).__name__}: {text_of(error)}")

        return {
            InvalidRequestError: same,
            MemoryError: same,
            Image.DecompressionBombError: too_many_pixels,
            Image.DecompressionBombWarning: too_many_pixels,
            UnidentifiedImageError: not_a_picture,
            Exception: undecodable,  # Pillow raises many kinds for broken files
        }

    def _invalid(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"the {self.what} {what}", code=f"{self.what}.invalid")

    def _too_large(self, what: str) -> InvalidRequestError:
        message = f"the {self.what} is too large: {what}; use a smaller picture"
        return InvalidRequestError(message, code=f"{self.what}.too-large")


def _upright(image: Image.Image, scaled: Callable[[Image.Image], Image.Image]) -> NDArray[np.uint8]:
    """Return the pixels of a picture, scaled, and turned as its EXIF says."""
    turn = None
    with suppress(Exception):  # it is a picture even if its EXIF is broken
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    if image.mode not in _SCALABLE or "transparency" in image.info:
        image = _in_eight_bits(image)
    part = scaled(image)
    return np.array(part if turn is None else part.transpose(turn))


def _square(image: Image.Image) -> Image.Image:
    """Return the square in the middle, in RGB, scaled down to `SIDE`."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    to, part = (min(side, SIDE),) * 2, (left, top, left + side, top + side)
    square = _in_eight_bits(image.resize(to, Image.Resampling.LANCZOS, box=part, reducing_gap=3.0))
    if square.mode == "RGBA":
        square = Image.alpha_composite(Image.new("RGBA", to, (0, 0, 0, 255)), square).convert("RGB")
    return square


def _whole(image: Image.Image) -> Image.Image:
    """Return a picture in RGB or RGBA, scaled down so that no side is longer than `IMAGE_SIDE`."""
    scale = min(IMAGE_SIDE / max(image.size), 1)
    to = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    if to != image.size:
        image = image.resize(to, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return _in_eight_bits(image)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Return an image in RGB, or RGBA if parts of it are clear."""
    if image.mode.startswith("I"):  # greys of 16 bits
        greys = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(greys).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")

"""Does every picture become an upright square in RGB, and what becomes of those that are broken or hostile?"""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_COVER_BYTES, Asset, FaultDomain
from renderdispatch.plumbing.failures import job_error
from renderdispatch.render.covers import SIDE, read_cover, to_jpeg
from renderdispatch.render.params import SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene

Pixels = NDArray[np.uint8]

CORNERS = np.zeros((64, 64, 3), np.uint8)
CORNERS[:32, :32], CORNERS[:32, 32:], CORNERS[32:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners(pixels: Pixels) -> list[tuple[int, ...]]:
    """Return the colours in the middle of the four quarters, rounded to full ones."""
    near, far = len(pixels) // 4, 3 * len(pixels) // 4
    quarters = (pixels[near, near], pixels[near, far], pixels[far, near], pixels[far, far])
    return [tuple(255 if value > 200 else 0 if value < 55 else int(value) for value in colour) for colour in quarters]


RIGHT = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_pictures_of_every_format_are_read(kind: str, mode: str, options: dict[str, Any]) -> None:
    """In their colours, as (n, n, 3) uint8."""
    cover = read_cover(save(Image.fromarray(CORNERS).convert(mode), kind, **options))
    assert (cover.pixels.shape, str(cover.pixels.dtype), cover.is_animated) == ((64, 64, 3), "uint8", False)
    assert corners(cover.pixels) == RIGHT


def test_what_is_clear_is_black() -> None:
    """Also where it is one colour of a palette, or of an RGB picture."""
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    red.paste((0, 255, 0, 0), (0, 0, 32, 64))
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    palette.paste(0, (0, 0, 32, 64))
    keyed = Image.new("RGB", (64, 64), (255, 0, 0))
    keyed.paste((1, 255, 1), (0, 0, 32, 64))
    for data in (
        save(red, "PNG"),
        save(red, "WEBP", lossless=True),
        save(palette, "PNG", transparency=0),
        save(palette, "GIF", transparency=0),
        save(keyed, "PNG", transparency=(1, 255, 1)),
    ):
        assert corners(read_cover(data).pixels) == [(0, 0, 0), (255, 0, 0)] * 2


def test_colours_of_the_printer_are_converted() -> None:
    """CMYK is common in covers that were made for print."""
    cover = read_cover(save(Image.fromarray(CORNERS).convert("CMYK"), "JPEG", quality=95))
    assert corners(cover.pixels) == RIGHT


def _png(width: int, height: int, *, depth: int, colour: int, rows: bytes, claimed: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", claimed or width, claimed or height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_16_bits_become_8(colour: int, channels: int) -> None:
    """A grey of 50 % is neither white nor black, in greys and in RGB."""
    rows = (b"\0" + b"\x80\x10" * 8 * channels) * 8
    pixels = read_cover(_png(8, 8, depth=16, colour=colour, rows=rows)).pixels
    assert (pixels == 0x80).all()


def test_black_and_white_are_black_and_white() -> None:
    """One bit a pixel."""
    pixels = read_cover(_png(8, 8, depth=1, colour=0, rows=b"\0\xf0" * 8)).pixels
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_of_a_telephone_is_upright(kind: str, orientation: int) -> None:
    """It is stored as the sensor saw it, with an orientation in EXIF: each of the eight is turned back."""
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS),
        7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(CORNERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, quality=95)
    assert corners(read_cover(data).pixels) == RIGHT


@pytest.mark.parametrize("size", [(300, 64), (64, 300), (3000, 1100)])
def test_the_middle_is_cut_out(size: tuple[int, int]) -> None:
    """Of what is not square; what is large is scaled down, what is small stays."""
    image = Image.new("RGB", size, (255, 0, 0))
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste((0, 0, 255), (left, top, left + side, top + side))
    for kind in ("JPEG", "PNG"):
        pixels = read_cover(save(image, kind, **({"quality": 95} if kind == "JPEG" else {}))).pixels
        assert pixels.shape == (min(side, SIDE), min(side, SIDE), 3)
        assert np.abs(pixels[8:-8, 8:-8].astype(int) - (0, 0, 255)).max() < 8


def test_of_an_animation_the_first_picture_is_taken() -> None:
    """In each format that has some; whether it is one is said."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "PNG", "WEBP"):
        cover = read_cover(save(frames[0], kind, save_all=True, append_images=frames[1:], duration=100))
        assert cover.is_animated
        assert corners(cover.pixels) == [(255, 0, 0)] * 4


JPEG = to_jpeg(np.random.default_rng(2).integers(0, 255, (64, 64, 3), np.uint8))
SCANS = save(Image.fromarray(CORNERS), "JPEG", progressive=True)
BAD = {
    "empty": (b"", "cover.invalid"),
    "a text": (b"hello", "cover.invalid"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cover.invalid"),
    "tiff": (save(Image.fromarray(CORNERS), "TIFF"), "cover.invalid"),
    "postscript": (save(Image.fromarray(CORNERS), "EPS"), "cover.invalid"),
    "cut off": (JPEG[: len(JPEG) // 2], "cover.invalid"),
    "a broken png": (_png(8, 8, depth=8, colour=2, rows=b"\0" * 10), "cover.invalid"),
    "60000 x 60000": (_png(8, 8, depth=8, colour=2, rows=b"\0" * 10, claimed=60_000), "cover.too-large"),
    "12000 x 12000": (_png(8, 8, depth=8, colour=2, rows=b"\0" * 10, claimed=12_000), "cover.too-large"),
    "6000 x 6000": (_png(8, 8, depth=8, colour=2, rows=b"\0" * 10, claimed=6000), "cover.too-large"),
    "a thousand scans": (
        SCANS[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x01\x00" * 1000 + b"\xff\xd9",
        "cover.too-large",
    ),
    "too many bytes": (JPEG + bytes(MAX_COVER_BYTES), "cover.too-large"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_picture_is_a_clear_error(what: str) -> None:
    """It costs next to nothing, is the request's fault, and so is not tried again."""
    data, code = BAD[what]
    began = time.thread_time()
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match="the cover") as caught:
        read_cover(data)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    assert time.thread_time() - began < 0.5
    error = job_error(caught.value, otherwise=FaultDomain.SCENE)
    assert (error.code, error.fault) == (code, FaultDomain.REQUEST)
    assert not error.fault.retryable


def test_a_file_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    """``cover.unreadable``."""
    with pytest.raises(InvalidRequestError, match="cannot be read") as caught:
        read_cover(tmp_path / "gone.jpg")
    assert caught.value.code == "cover.unreadable"


@given(
    st.sampled_from(
        [JPEG, SCANS, BAD["tiff"][0], *(save(Image.fromarray(CORNERS), k) for k in ("PNG", "GIF", "WEBP", "BMP"))]
    ),
    st.integers(0, 5000),
    st.binary(min_size=1, max_size=20),
)
def test_no_bytes_raise_anything_else(data: bytes, at: int, junk: bytes) -> None:
    """A picture is read or refused, whatever is wrong in it."""
    at %= len(data)
    with suppress(InvalidRequestError):
        pixels = read_cover(data[:at] + junk + data[at + len(junk) :]).pixels
        assert pixels.shape == (len(pixels), len(pixels), 3)


def test_what_is_passed_on_is_encoded_anew() -> None:
    """Nothing of the file but its pixels: no EXIF, no comment, no bytes behind the end; the same bytes each time."""
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    data = save(Image.fromarray(CORNERS), "JPEG", exif=exif, comment=b"a secret word") + b"a secret tail"
    made = read_cover(data).to_jpeg()
    assert b"secret" in data and b"secret" not in made
    assert made == read_cover(data).to_jpeg()
    assert corners(read_cover(made).pixels) == RIGHT


class NoParams(SceneParams):
    """None."""


class Sleeve(Scene):
    """Shows the cover's first pixel; grey without a cover."""

    def __init__(self, params: NoParams, *, width: int, height: int, fps: Any) -> None:
        self.colour: Any = (128, 128, 128)

    def set_cover(self, cover: Pixels) -> None:
        self.colour = cover[0, 0]

    def paint(self, state: Any, frame: Any, canvas: Any) -> None:
        canvas[:] = self.colour


sleeve = NumpyRenderer(f"{__name__}:Sleeve", NoParams)


@pytest.mark.parametrize("has_cover", [True, False])
def test_a_scene_gets_the_cover(
    tmp_path: Path, write_wav: Callable[..., Path], render: Callable[..., Any], has_cover: bool
) -> None:
    """Before the first frame, if it has a place for it."""
    picture = tmp_path / "cover.png"
    picture.write_bytes(save(Image.new("RGB", (16, 16), (255, 255, 255)), "PNG"))
    given = {"cover": Asset(url="", size=picture.stat().st_size, path=str(picture))} if has_cover else {}
    video, _ = render(sleeve, write_wav(tmp_path / "a.wav", np.zeros(4410)), **given)
    with av.open(str(video)) as container:
        luma = next(container.decode(video=0)).to_ndarray()[:36]
    assert abs(float(luma.mean()) - (235 if has_cover else 126)) < 2


def test_a_bad_cover_is_refused_before_anything_is_drawn(
    tmp_path: Path, write_wav: Callable[..., Path], order: Callable[..., Any]
) -> None:
    """No frame is reported, and nothing is left."""
    picture, reports = tmp_path / "cover.png", list[int]()
    picture.write_bytes(b"no picture")
    song = write_wav(tmp_path / "a.wav", np.zeros(4410))
    with pytest.raises(InvalidRequestError):
        sleeve.render(
            order(cover=Asset(url="", size=10, path=str(picture))),
            song,
            tmp_path / "video.mp4",
            lambda done, total: reports.append(done),
        )
    assert not reports
    assert sorted(tmp_path.iterdir()) == [song, picture]

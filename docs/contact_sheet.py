# ruff: noqa: INP001 - a script
"""Draw every scene over pieces of music, at four moments each, in each shape of picture.

``python docs/contact_sheet.py SONG SONG SONG -o docs/images`` writes one JPEG for each shape. They are on the page
``docs/gallery.md``, which names the songs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from attrs import frozen
from PIL import Image, ImageDraw

from renderdispatch.messages import Output
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.covers import Cover, read_cover
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.picture import Picture
from renderdispatch.render.poster import to_image
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scene_artist import SceneArtist
from renderdispatch.render.tags import read_tags

SCENES: Final = {"bars": bars, "wave": wave, "radial": radial}
MOMENTS: Final = (0.14, 0.38, 0.62, 0.86)
"""Parts of the song."""
MARGIN: Final = 6
TITLE: Final = 18
JPEG_QUALITY: Final = 84


@frozen
class Shape:
    """A shape of picture.

    Args:
        output: What is drawn.
        width: Columns of each picture on the sheet.
        songs: How many songs share a row of the sheet.
    """

    output: Output
    width: int
    songs: int

    @property
    def height(self) -> int:
        return self.width * self.output.height // self.output.width


def shapes() -> dict[str, Shape]:
    """Return the shapes by name."""
    return {
        "landscape": Shape(Output(width=1280, height=720), width=320, songs=1),
        "portrait": Shape(Output(width=720, height=1280), width=144, songs=3),
        "square": Shape(Output(width=720, height=720), width=156, songs=3),
        "360": Shape(Output(width=2048, height=1024, projection="360-mono"), width=400, songs=1),
    }


def read(song: Path, kept: Path) -> Features:
    """Return the features of a song, which are kept in a file."""
    fps = Output.model_fields["fps"].default
    with (
        SoundReader(song, start=Fraction(0), duration=None) as sound,
        Analyser(kept, rate=sound.rate, fps=fps) as analyser,
    ):
        for block in sound.blocks():
            analyser.feed(block)
        return analyser.finish(max(round(sound.duration * fps), 1))


def draw(renderer: NumpyRenderer, output: Output, features: Features, cover: Cover | None) -> Iterator[Picture]:
    """Yield the pictures of the moments."""
    artist = SceneArtist(*renderer.load({}), output, cover=cover)
    state = artist.start()
    wanted = {int(moment * len(features)) for moment in MOMENTS}
    for frame in features:
        state = artist.step(state, frame)
        if frame.index in wanted:
            yield artist.draw(state, frame)


def sheet(shape: Shape, songs: Sequence[tuple[str, Features]], cover: Cover | None) -> Image.Image:
    """Return the sheet of a shape: a row, or a part of one, for each scene and song. The first song has the cover."""
    rows = [(scene, part) for scene in SCENES for part in range(0, len(songs), shape.songs)]
    across, down = shape.width + MARGIN, shape.height + MARGIN + TITLE
    size = across * len(MOMENTS) * shape.songs + MARGIN, down * len(rows) + MARGIN
    paper = Image.new("RGB", size, "#202020")
    pen = ImageDraw.Draw(paper)
    for row, (scene, part) in enumerate(rows):
        for at, (title, features) in enumerate(songs[part : part + shape.songs]):
            left, top = MARGIN + at * len(MOMENTS) * across, MARGIN + row * down
            pen.text((left, top + 2), f"{scene}: {title}", fill="#d0d0d0")
            song_cover = cover if part + at == 0 else None
            for picture in draw(SCENES[scene], shape.output, features, song_cover):
                paper.paste(shrunk(picture, shape), (left, top + TITLE))
                left += across
    return paper


def shrunk(picture: Picture, shape: Shape) -> Image.Image:
    """Return a picture in its size on the sheet."""
    return to_image(picture).resize((shape.width, shape.height), Image.Resampling.LANCZOS, reducing_gap=3)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Draw every scene over songs, in each shape of picture.")
    parser.add_argument("songs", nargs=3, type=Path, metavar="SONG", help="three pieces of music")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder of the JPEGs")
    parser.add_argument("--cover", type=Path, metavar="PICTURE", help="the cover of the first song")
    parser.add_argument("--shape", action="append", choices=shapes(), help="draw only this one; can be repeated")
    return parser.parse_args()


def main() -> int:
    """Write the sheets."""
    options = arguments()
    cover = read_cover(options.cover) if options.cover else None
    with TemporaryDirectory() as folder:
        songs = [
            (read_tags(song).title or song.stem, read(song, Path(folder, str(number))))
            for number, song in enumerate(options.songs)
        ]
        for name, shape in shapes().items():
            if not options.shape or name in options.shape:
                drawn = sheet(shape, songs, cover)
                drawn.save(options.output / f"contact-{name}.jpg", quality=JPEG_QUALITY, optimize=True)
        for _, features in songs:
            features.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

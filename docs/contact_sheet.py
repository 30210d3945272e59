# ruff: noqa: INP001 - a script
"""Draw every scene over pieces of music, at four moments each, in each shape of picture.

``python docs/contact_sheet.py SONG SONG SONG -o docs/images`` writes two JPEGs for each shape: of the scenes that NumPy
draws, and of those in GLSL. They are on the page ``docs/gallery.md``, which names the songs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from attrs import frozen
from PIL import Image, ImageDraw

import renderdispatch.render
from renderdispatch.messages import Output
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.alone import order_alone
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.covers import Cover, read_cover
from renderdispatch.render.features import Analyser, Features
from renderdispatch.render.gl.renderer import GlslRenderer
from renderdispatch.render.picture import Picture
from renderdispatch.render.poster import to_image
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.render.tags import read_tags

Scenes = Mapping[str, VideoRenderer]
Song = tuple[str, Path, Features]

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


def numpy_scenes() -> Scenes:
    """Return the scenes that NumPy draws."""
    return {"bars": bars, "wave": wave, "radial": radial}


def gl_scenes() -> Scenes:
    """Return the scenes in GLSL, in the order of their names."""
    found = ((name, getattr(renderdispatch.render, name)) for name in sorted(renderdispatch.render.__all__))
    return {name: scene for name, scene in found if isinstance(scene, GlslRenderer)}


def shapes() -> dict[str, Shape]:
    """Return the shapes by name.

    Those whose names begin with ``gl-`` are of the scenes in GLSL. They are drawn smaller: ink has a long run-up.
    """
    return {
        "landscape": Shape(Output(width=1280, height=720), width=320, songs=1),
        "portrait": Shape(Output(width=720, height=1280), width=144, songs=3),
        "square": Shape(Output(width=720, height=720), width=156, songs=3),
        "360": Shape(Output(width=2048, height=1024, projection="360-mono"), width=400, songs=1),
        "gl-landscape": Shape(Output(width=640, height=360), width=256, songs=1),
        "gl-portrait": Shape(Output(width=360, height=640), width=120, songs=3),
        "gl-square": Shape(Output(width=360, height=360), width=128, songs=3),
        "gl-360": Shape(Output(width=1024, height=512, projection="360-mono"), width=300, songs=1),
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


def draw(
    scene: VideoRenderer, output: Output, song: Path, features: Features, cover: Cover | None
) -> Iterator[Picture]:
    """Yield the pictures of the moments, each after its run-up."""
    wanted = sorted({int(moment * len(features)) for moment in MOMENTS})
    with scene.artist(order_alone(song, scene="alone", output=output), cover=cover) as artist:
        run_up = len(features) if artist.run_up is None else artist.run_up
        state = artist.start()
        for frame in features:
            state = artist.step(state, frame)
            if any(0 <= moment - frame.index <= run_up for moment in wanted):
                picture = artist.draw(state, frame)
                if frame.index in wanted:
                    yield picture


def sheet(scenes: Scenes, shape: Shape, songs: Sequence[Song], cover: Cover | None) -> Image.Image:
    """Return the sheet of a shape: a row, or a part of one, for each scene and song. The first song has the cover."""
    rows = [(scene, part) for scene in scenes for part in range(0, len(songs), shape.songs)]
    across, down = shape.width + MARGIN, shape.height + MARGIN + TITLE
    size = across * len(MOMENTS) * shape.songs + MARGIN, down * len(rows) + MARGIN
    paper = Image.new("RGB", size, "#202020")
    pen = ImageDraw.Draw(paper)
    for row, (scene, part) in enumerate(rows):
        for at, (title, song, features) in enumerate(songs[part : part + shape.songs]):
            left, top = MARGIN + at * len(MOMENTS) * across, MARGIN + row * down
            pen.text((left, top + 2), f"{scene}: {title}", fill="#d0d0d0")
            song_cover = cover if part + at == 0 else None
            for picture in draw(scenes[scene], shape.output, song, features, song_cover):
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
            (read_tags(song).title or song.stem, song, read(song, Path(folder, str(number))))
            for number, song in enumerate(options.songs)
        ]
        for name, shape in shapes().items():
            if not options.shape or name in options.shape:
                drawn = sheet(gl_scenes() if name.startswith("gl-") else numpy_scenes(), shape, songs, cover)
                drawn.save(options.output / f"contact-{name}.jpg", quality=JPEG_QUALITY, optimize=True)
        for _, _, features in songs:
            features.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Do the pictures that a program writes become the frames of the video, while it still runs?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from renderdispatch.errors import SceneError
from renderdispatch.messages import ObjectUrls, Output, RenderStats, SignedPut
from renderdispatch.render.command import CommandRenderer
from renderdispatch.render.preview import preview

Render = Callable[..., tuple[Path, RenderStats]]

HEAD = """
import json, os, sys, time
from PIL import Image
folder, width, height, count, features = sys.argv[1], *map(int, sys.argv[2:5]), json.load(open(sys.argv[5]))

def save(number, picture, name="%06d.png"):
    picture.save(os.path.join(folder, "part.png"), name[-3:].replace("jpg", "jpeg"))
    os.rename(os.path.join(folder, "part.png"), os.path.join(folder, name % number))

def grey(value):
    return Image.new("RGB", (width, height), (value, value, value))
"""


def drawing(code: str, **options: Any) -> CommandRenderer:
    """Return a renderer whose program is Python with Pillow."""
    words = (HEAD + code).replace("{", "{{").replace("}", "}}")
    places = ("{frames}", "{width}", "{height}", "{frame_count}", "{features}")
    return CommandRenderer([sys.executable, "-c", words, *places], makes="frames", **options)


LEVELS = "for n in range(count): save(n, grey(round(255 * features['level'][n])))"


@pytest.fixture
def song(write_wav: Callable[..., Path], tmp_path: Path) -> Path:
    """Half a second, loudest at 0.3 s: 15 frames."""
    time = np.arange(22_050) / 44_100
    return write_wav(tmp_path / "song.wav", np.exp(-200 * (time - 0.3) ** 2) * np.sin(2000 * time))


def test_pictures_become_frames(
    render: Render, song: Path, brightness: Callable[[Path], NDArray[np.float64]], tmp_path: Path
) -> None:
    """Each is shown at its time, with what the features said of it; nothing else is left."""
    path, stats = render(drawing(LEVELS), song)
    assert (stats.frames, stats.encoded_by) == (15, "libx264")
    shown = brightness(path)
    assert len(shown) == 15
    assert 8 <= int(shown.argmax()) <= 9
    assert shown.max() > 200 and shown.min() < 40
    assert sorted(one.name for one in tmp_path.iterdir()) == ["song.wav", "video.mp4"]


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("for n in reversed(range(count)): save(n, grey(10 * n))", {}),
        ("for n in range(count): save(n + 1, grey(10 * n), 'f%d.jpg')", {"pictures": "f%d.jpg", "first": 1}),
        ("for n in range(count): save(n, Image.new('RGBA', (width, height), (255, 255, 255, 10 * n)))", {}),
        ("for n in range(count): save(n, grey(10 * n).convert('L'))", {}),
        ("for n in range(count): save(n, grey(10 * n).quantize(4))", {}),
        ("for n in range(count): save(n, Image.new('I;16', (width, height), 10 * n * 257))", {}),
        ("for n in range(count): save(n, grey(10 * n).convert('CMYK'), '%06d.jpg')", {"pictures": "%06d.jpg"}),
        ("open(folder + '/log.txt', 'w')\nfor n in range(count): save(n, grey(10 * n))", {}),
    ],
    ids=["backwards", "jpeg from 1", "clear", "grey", "palette", "16 bits", "cmyk", "a file more"],
)
def test_kinds_of_pictures(
    code: str,
    options: dict[str, Any],
    render: Render,
    song: Path,
    brightness: Callable[[Path], NDArray[np.float64]],
) -> None:
    """In any order, in PNG and JPEG, over black where they are clear."""
    path, _ = render(drawing(code, **options), song)
    assert brightness(path) == pytest.approx([16 + 10 * n * 219 / 255 for n in range(15)], abs=3)


def test_pictures_are_read_while_the_program_runs(render: Render, song: Path) -> None:
    """A program that waits until each picture is gone comes to its end: so a long video takes little of the disk."""
    code = """
for n in range(count):
    save(n, grey(n))
    while os.path.exists(os.path.join(folder, "%06d.png" % n)): time.sleep(0.002)
"""
    _, stats = render(drawing(code), song)
    assert stats.frames == 15


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("for n in range(count - 1): save(n, grey(n))", "frames.too-few", "made 14 frames; 15 were ordered"),
        ("for n in range(count + 1): save(n, grey(n))", "frames.too-many", "more than the 15 frames"),
        ("save(0, grey(0).resize((8, 8)))", "command.wrong-output", "000000.png of 8x8; 64x36 were ordered"),
        ("open(folder + '/000000.png', 'wb').write(b'IEND')", "command.wrong-output", "which cannot be read"),
        (
            "os.mkfifo(folder + '/000000.png'); time.sleep(60)",
            "command.wrong-output",
            "made 000000.png, which is not a",
        ),
        ("os.mkdir(folder + '/000000.png')", "command.wrong-output", "made 000000.png, which is not a regular file"),
        ("os.symlink('/etc/passwd', folder + '/000000.png')", "command.wrong-output", "which is not a regular file"),
        ("os.symlink('nowhere', folder + '/000000.png')", "command.wrong-output", "which is not a regular file"),
        ("for n in range(count): save(n + 1, grey(n))", "command.no-output", "no picture 000000.png, but '000001.png'"),
        ("for n in range(count): save(n + (n > 4), grey(n))", "command.wrong-output", "000005.png, but '000006.png'"),
        ("save(0, grey(0)); sys.exit('out of ideas')", "command.failed", "status 1: out of ideas"),
        ("for n in range(count): save(n, grey(0))\nsys.exit('too late')", "command.failed", "status 1: too late"),
    ],
    ids=[
        *("too few", "too many", "size", "no picture", "pipe", "folder", "link", "lost link", "from 1", "a gap"),
        *("fails early", "fails late"),
    ],
)
def test_wrong_pictures(code: str, error: str, said: str, render: Render, song: Path, tmp_path: Path) -> None:
    """Each fails the render, with what came and what was ordered."""
    with pytest.raises(SceneError) as failed:
        render(drawing(code), song)
    assert said in str(failed.value)
    assert failed.value.code == error
    assert [one.name for one in tmp_path.iterdir()] == ["song.wav"]


def test_a_half_written_picture_is_waited_for(render: Render, song: Path) -> None:
    """A program need not rename its files."""
    code = """
import io
for n in range(count):
    whole = io.BytesIO(); grey(n).save(whole, "png")
    with open(os.path.join(folder, "%06d.png" % n), "wb", buffering=0) as file:
        file.write(whole.getvalue()[:30]); time.sleep(0.02); file.write(whole.getvalue()[30:])
"""
    _, stats = render(drawing(code), song)
    assert stats.frames == 15


def test_the_poster_is_the_loudest_moment(render: Render, write_wav: Callable[..., Path], tmp_path: Path) -> None:
    """The program runs once: the picture is kept when it comes by."""
    time = np.arange(66_150) / 44_100
    song = write_wav(tmp_path / "song.wav", np.exp(-10 * (time - 0.8) ** 2) * np.sin(2000 * time))
    code = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n{LEVELS}"
    path, _ = render(drawing(code), song, poster=ObjectUrls(key="poster", put=SignedPut(url="")))
    with Image.open(path.with_suffix(".jpg")) as poster:
        assert np.asarray(poster).mean() > 200
    assert (tmp_path / "runs").read_text() == "x"


def test_a_360_video_shows_them_on_a_screen(render: Render, song: Path, tmp_path: Path) -> None:
    """As other scenes; a program with the place for the projection draws all of the sphere."""
    code = f"open({str(tmp_path / 'size')!r}, 'w').write(f'{{width}}x{{height}}')\n{LEVELS}"
    sphere = Output(width=128, height=64, projection="360-mono")
    path, _ = render(drawing(code), song, output=sphere)
    assert b"equi" in path.read_bytes()
    screen = (tmp_path / "size").read_text()
    scene = drawing(code)
    whole = CommandRenderer([*scene.template.words, "{projection}"], makes="frames")
    render(whole, song, output=sphere)
    assert (screen, (tmp_path / "size").read_text()) == ("40x22", "128x64")


def test_a_preview_is_a_frame_of_the_video(song: Path) -> None:
    """The program draws up to it, and is ended there."""
    code = "for n in range(count): save(n, grey(10 * n))\ntime.sleep(60)"
    picture = preview(song, scene=drawing(code), at=0.4, output=Output(width=64, height=36))
    assert np.asarray(picture).mean() == pytest.approx(120, abs=2)


def test_a_program_that_begins_anywhere_draws_a_preview_alone(song: Path, tmp_path: Path) -> None:
    """It draws no frame before it."""
    scene = drawing(
        f"first = int(sys.argv[6]); open({str(tmp_path / 'first')!r}, 'w').write(str(first)); save(first, grey(9 * first))"
    )
    anywhere = CommandRenderer([*scene.template.words, "{first_frame}"], makes="frames")
    picture = preview(song, scene=anywhere, at=0.4, output=Output(width=64, height=36))
    assert np.asarray(picture).mean() == pytest.approx(108, abs=2)
    assert (tmp_path / "first").read_text() == "12"

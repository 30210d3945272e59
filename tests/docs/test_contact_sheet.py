"""Does the command that draws the gallery's pictures work?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from renderdispatch.render.music import compose
from tests.support.documents import ROOT


def test_the_sheet_shows_every_scene_over_every_song(tmp_path: Path) -> None:
    """Twelve pictures in each of three rows, none of them dark; the cover is seen in those of `radial`.

    Songs may have the same name.
    """
    songs = [tmp_path / str(number) / "song.wav" for number in range(3)]
    for seed, song in enumerate(songs):
        song.parent.mkdir()
        compose(song, seconds=0.6, seed=seed)
    cover = tmp_path / "cover.png"
    Image.new("RGB", (40, 40), (0, 255, 0)).save(cover)
    subprocess.run(
        [sys.executable, ROOT / "docs/contact_sheet.py", *songs, "-o", tmp_path, "--shape", "square", "--cover", cover],
        check=True,
        timeout=60,
    )
    [path] = tmp_path.glob("*.jpg")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows = np.array_split(pixels, 3)
    for row in rows:
        for picture in np.array_split(row, 12, axis=1):
            assert picture.max() > 120
    greenest = [(picture[..., 1] - picture[..., 0]).max() for picture in np.array_split(rows[2], 12, axis=1)]
    assert min(greenest[:4]) > 230
    assert max(greenest[4:]) < 230

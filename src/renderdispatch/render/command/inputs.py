"""Which files does a program get: the features of the song, its sound, its cover, and the parameters?"""

from __future__ import annotations

import json
import os
import wave
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from renderdispatch.messages import RenderOrder
from renderdispatch.render.covers import Cover
from renderdispatch.render.features import Features
from renderdispatch.render.mixing import Samples
from renderdispatch.render.params import SceneParams
from renderdispatch.render.song import open_song, read_song

_DIGITS: Final = 4
_MOST_WAV: Final = (1 << 32) - 1024
"""The bytes that the header of a WAV file can tell."""


def write_features(path: Path, features: Features) -> None:
    """Write the features of each frame as JSON, in bounded memory.

    The object has ``fps`` (text, such as ``"30"`` or ``"30000/1001"``), ``frames`` (their number), and three lists with
    an item for each frame: ``level`` and ``beat`` (numbers from 0 to 1), and ``bands`` (96 numbers from 0 to 1 each).
    See `renderdispatch.render.features.Frame` for what they mean.
    """

    def listed(items: Iterable[object]) -> Iterator[str]:
        yield "["
        for place, item in enumerate(items):
            yield f"{',' if place else ''}\n{json.dumps(item)}"
        yield "]"

    def rounded(values: np.ndarray) -> list[float]:
        return [round(float(value), _DIGITS) for value in values]

    with path.open("w") as file:
        file.write(f'{{"fps": "{features.fps}", "frames": {len(features)}')
        for name, items in (
            ("level", rounded(features.level)),
            ("beat", rounded(features.beat)),
            ("bands", (rounded(frame.bands) for frame in features)),
        ):
            file.write(f',\n"{name}": ')
            file.writelines(listed(items))
        file.write("}\n")


def write_sound(path: Path, audio: Path, order: RenderOrder) -> None:
    """Write the order's range of a song as WAV, 16 bits.

    Raises:
        AudioError: It cannot be read.
    """
    with open_song(audio, order) as sound, wave.open(str(path), "wb") as file:
        channels = 2 if sound.layout == "stereo" else 1
        file.setparams((channels, 2, sound.rate, 0, "NONE", "not compressed"))
        for block in read_song(sound, longest_s=order.max_duration):
            if file.tell() * 2 * channels > _MOST_WAV:
                raise OSError(None, "the sound is longer than a WAV file can be")
            file.writeframes(_pcm(block))


def _pcm(samples: Samples) -> bytes:
    return np.rint(np.clip(samples, -1, 1) * 32_767).astype("<i2").T.tobytes()


def values_of(
    uses: frozenset[str],
    order: RenderOrder,
    params: SceneParams,
    *,
    audio: Path,
    features: Features,
    folder: Path,
    target: Path,
    size: tuple[int, int],
    cover: Cover | None,
    first: int = 0,
) -> Mapping[str, str]:
    """Return the values of the placeholders, and write the files that they name.

    Args:
        uses: The placeholders that the command has; of the others, no file is written.
        order: The order.
        params: Its checked parameters.
        audio: The song.
        features: Of all frames.
        folder: Where files are written.
        target: Where the program writes.
        size: Width and height of the pictures.
        cover: The song's cover.
        first: The first frame to draw.
    """
    fps, folder, target = order.output.fps, folder.absolute(), target.absolute()
    paths = {name: folder / f"{name}{suffix}" for name, suffix in _SUFFIXES.items()}
    if "features" in uses:
        write_features(paths["features"], features)
    if "sound" in uses:
        write_sound(paths["sound"], audio, order)
    if "params" in uses:
        paths["params"].write_text(params.model_dump_json() + "\n")
    if "cover" in uses and cover is not None:
        paths["cover"].write_bytes(cover.to_jpeg())
    return {
        **{name: str(path) for name, path in paths.items()},
        "cover": "" if cover is None else str(paths["cover"]),
        "audio": str(audio.absolute()),
        "output": str(target),
        "frames": str(target),
        "projection": order.output.projection,
        "threads": str(_threads()),
        "width": str(size[0]),
        "height": str(size[1]),
        "fps": str(fps),
        "fps_num": str(fps.numerator),
        "fps_den": str(fps.denominator),
        "start": f"{order.start:.6f}",
        "duration": f"{float(len(features) / fps):.6f}",
        "frame_count": str(len(features)),
        "first_frame": str(first),
    }


_SUFFIXES: Final = {"features": ".json", "sound": ".wav", "params": ".json", "cover": ".jpg"}


def _threads() -> int:
    """Return how many threads run at once here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Is the video of each preset what the preset says?"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.messages import PRESETS, RenderStats
from renderdispatch.render import bars
from tests.support.needs import need_ffmpeg

WriteWav = Callable[..., Path]
Render = Callable[..., tuple[Path, RenderStats]]

_FRAME_S = 1 / 30
_SIZES = {
    "flat-720p-landscape": (1280, 720),
    "flat-1080p-landscape": (1920, 1080),
    "flat-1080p-portrait": (1080, 1920),
    "flat-1080p-square": (1080, 1080),
    "flat-4k-landscape": (3840, 2160),
    "flat-4k-portrait": (2160, 3840),
    "360-mono-4k": (4096, 2048),
    "360-mono-6k": (6144, 3072),
    "360-mono-8k": (8192, 4096),
    "360-stereo-8k": (8192, 8192),
}


def check(name: str, frames: int, song: Path, render: Render) -> None:
    """Render a preset; check what ffprobe says about the picture."""
    need_ffmpeg()
    video, stats = render(bars, song, output=PRESETS[name])
    command = ["ffprobe", "-v", "error", "-count_packets", "-select_streams", "v", "-show_streams", "-of", "json"]
    (found,) = json.loads(subprocess.run([*command, str(video)], check=True, capture_output=True).stdout)["streams"]
    assert (found["width"], found["height"]) == _SIZES[name] == (stats.width, stats.height)
    assert found.get("sample_aspect_ratio", "1:1") == "1:1"
    assert (found["r_frame_rate"], found["avg_frame_rate"]) == ("30/1", "30/1")
    assert int(found["nb_read_packets"]) == frames == stats.frames
    assert (found["codec_name"], found["pix_fmt"]) == ("h264", "yuv420p")
    tags = [found[tag] for tag in ("color_range", "color_space", "color_transfer", "color_primaries")]
    assert tags == ["tv", "bt709", "bt709", "bt709"]


def song(folder: Path, frames: int, write_wav: WriteWav) -> Path:
    """Return a file with a chord that swells."""
    at = np.arange(round(frames * _FRAME_S * 44_100)) / 44_100
    chord: Any = sum(np.sin(2 * np.pi * hertz * at) for hertz in (110, 277, 660, 1760))
    return write_wav(folder / "a.wav", 0.2 * chord * (0.6 - 0.4 * np.cos(8 * at)))


def test_all_presets_are_tested() -> None:
    """Each preset has its size here."""
    assert set(PRESETS) == set(_SIZES)


@pytest.mark.parametrize("name", [name for name in _SIZES if name.startswith(("flat-7", "flat-1"))])
def test_presets_are_what_they_say(name: str, tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Size, frame rate, pixel format and colours of the smaller presets, in a very short video."""
    check(name, 4, song(tmp_path, 4, write_wav), render)


@pytest.mark.long
@pytest.mark.parametrize("name", _SIZES)
def test_presets_are_what_they_say_for_longer(name: str, tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """The same of all presets, for two seconds, or for some frames where the picture is largest."""
    frames = 60 if max(_SIZES[name]) < 2000 else 8
    check(name, frames, song(tmp_path, frames, write_wav), render)

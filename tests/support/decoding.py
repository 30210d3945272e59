"""What is in a video, and how near it is to what was drawn."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tests.support.needs import need_ffmpeg


def time_of(item: Any) -> Fraction:
    """Return when a frame or a packet is shown or heard."""
    return Fraction(item.pts * item.time_base)


def shown(source: Path | bytes) -> list[tuple[Fraction, bytes]]:
    """Return the time and the luma of each frame."""
    file = source if isinstance(source, Path) else io.BytesIO(source)
    with av.open(file, "r") as container:
        return [(time_of(frame), bytes(frame.planes[0])) for frame in container.decode(video=0)]


def heard(video: Path) -> tuple[Fraction, NDArray[np.float32]]:
    """Return when the sound begins, and its samples."""
    with av.open(video, "r") as container:
        frames = list(container.decode(audio=0))
    first = frames[0]
    return time_of(first), np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def probed(video: Path) -> dict[str, Any]:
    """Return what ffprobe says of a file, which it reads without a warning."""
    need_ffmpeg()
    command = ["ffprobe", "-v", "warning", "-count_frames", "-show_streams", "-show_format", "-of", "json", str(video)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def ffmpeg_warnings(video: Path) -> str:
    """Return what ffmpeg says while it decodes all of a file."""
    need_ffmpeg()
    command = ["ffmpeg", "-v", "warning", "-xerror", "-i", str(video), "-f", "null", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def psnr(decoded: Iterable[bytes], drawn: Iterable[bytes]) -> float:
    """Return the distance of lumas, in dB."""
    pairs = zip(decoded, drawn, strict=True)
    differences = (np.subtract(*(np.frombuffer(luma, np.uint8).astype(float) for luma in pair)) for pair in pairs)
    return float(10 * np.log10(255**2 / np.mean([np.mean(difference**2) for difference in differences])))

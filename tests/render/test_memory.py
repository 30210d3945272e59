"""Does a long song need more memory than a short one, and how much does the largest picture need?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from renderdispatch.messages import PRESETS, Limits, RenderOrder

_RENDER = r"""
import re, resource, sys
from pathlib import Path
from renderdispatch.messages import RenderOrder
from renderdispatch.render import bars

bars.render(RenderOrder.model_validate_json(sys.stdin.read()), Path(sys.argv[1]), Path(sys.argv[2]), lambda *_: None)
if sys.platform == "linux":  # ru_maxrss would begin with what the process that started this one had
    print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_kib(song: Path, order: RenderOrder) -> int:
    """Return the peak of the memory of a process that renders the song."""
    command = [sys.executable, "-c", _RENDER, str(song), str(song.with_name("video.mp4"))]
    done = subprocess.run(command, input=order.model_dump_json().encode(), check=True, capture_output=True)
    return int(done.stdout)


@pytest.mark.long
def test_ten_minutes_need_little_more_than_half_a_minute(
    tmp_path: Path, write_wav: Callable[..., Path], order: Callable[..., RenderOrder]
) -> None:
    """The peak of a 10-minute song is at most 80 MiB above that of a 30-second one."""
    peaks_kib = []
    for seconds in (30, 600):
        sound = np.random.default_rng(3).normal(0, 0.1, (2, seconds * 44_100)).clip(-1, 1)
        song = write_wav(tmp_path / f"{seconds}.wav", sound)
        peaks_kib.append(peak_kib(song, order()))
    print(peaks_kib)
    assert peaks_kib[1] - peaks_kib[0] <= 80 * 1024


@pytest.mark.long
def test_the_largest_preset_needs_a_quarter_of_what_it_may(
    tmp_path: Path, write_wav: Callable[..., Path], order: Callable[..., RenderOrder]
) -> None:
    """8192x8192 takes 4 GiB, most of it for the pictures that the encoder looks ahead: by 24 frames it has them all."""
    sound = np.random.default_rng(3).normal(0, 0.1, 24 * 44_100 // 30).clip(-1, 1)
    peak = peak_kib(write_wav(tmp_path / "a.wav", sound), order(output=PRESETS["360-stereo-8k"]))
    print(peak)
    assert peak < Limits().memory_mib * 1024 * 0.3

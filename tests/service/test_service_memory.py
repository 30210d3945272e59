"""Does a long song take more memory than a short one?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_MIB = 1024


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peaks from /proc")
def test_a_long_song_needs_little_more_memory(tmp_path: Path) -> None:
    """Ten minutes peak at most 80 MiB above thirty seconds, in the service process and in the render each."""
    peaks = {}
    for seconds in (30, 600):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        command = [sys.executable, str(Path(__file__).with_name("memory_worker.py")), str(folder), str(seconds)]
        peaks[seconds] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    more = {name: (peaks[600][name] - peaks[30][name]) / _MIB for name in ("service", "runner")}
    print(f"30 s: {peaks[30]}; 600 s: {peaks[600]} KiB; more: {more} MiB")
    assert max(more.values()) <= 80, f"{more} MiB more: {peaks} KiB"

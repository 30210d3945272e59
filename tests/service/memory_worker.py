"""What the memory test measures: ``python memory_worker.py FOLDER SECONDS`` renders a song of that length.

Prints the peak resident set of the service process, and of the largest render process, as JSON, in KiB.
"""

from __future__ import annotations

import json
import os
import sys
import time
import wave
from pathlib import Path

import numpy as np

from renderdispatch import JobStatus, Output, local


def compose(path: Path, seconds: int) -> None:
    """Write CD-quality noise and tones, a second at a time."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        times = np.arange(44100)
        for second in range(seconds):
            tone = 12000 * np.sin(2 * np.pi * (110 + second % 50) * times / 44100)
            file.writeframes(np.repeat(tone.astype("<i2"), 2).tobytes())


def peak_kib(pid: int | str) -> int:
    """Return a process's peak resident set."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:
        pass
    return found


def main(folder: Path, seconds: int) -> None:
    """Render, and watch the peaks."""
    song = folder / "song.wav"
    compose(song, seconds)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of composing does not count
    largest = 0
    with local(folder / "home") as service:
        handle = service.submit(song, scene="bars", output=Output(width=320, height=180, fps=5))  # type: ignore[arg-type]
        while not (job := handle.job).ended:
            largest = max([largest, *map(peak_kib, descendants(os.getpid()))])
            time.sleep(0.01)
        assert job.status is JobStatus.COMPLETE, job.error
    print(json.dumps({"service": peak_kib("self"), "runner": largest}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

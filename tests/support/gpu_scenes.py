"""Scenes for simulated GPUs: one says that it draws on a GPU, one that it does not. Both say what they saw.

Each appends lines of JSON to ``seen.jsonl`` in the folder that ``RENDERDISPATCH_TEST_SEEN`` names: one when it begins,
with its process, its GPU and its open files, and one when it ends.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import Report
from renderdispatch.testing import FakeRenderer
from renderdispatch.testing.renderers import FakeSegmentsRenderer

SEEN = "RENDERDISPATCH_TEST_SEEN"


class OnCpu(FakeRenderer):
    """Draws until the file ``until`` exists, if the order names one; with ``deaf`` no SIGTERM ends it."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Render, and say when."""
        if order.params.get("deaf"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        gpu = os.environ.get("RENDERDISPATCH_GPU")
        say(event="begin", scene=order.scene, gpu=gpu, cuda=os.environ.get("CUDA_VISIBLE_DEVICES"), files=open_files())
        until = order.params.get("until")
        while until is not None and not Path(str(until)).exists():
            report(0, 0)
            time.sleep(0.01)
        stats = super().render(order, audio, output, report)
        say(event="end", scene=order.scene, gpu=gpu)
        return stats


class OnGpu(OnCpu):
    """The same, on a GPU."""

    def uses_gpu(self) -> bool:
        """It says so."""
        return True


class SegmentsOnGpu(FakeSegmentsRenderer):
    """A video in segments that are drawn on a GPU."""

    def uses_gpu(self) -> bool:
        """It says so."""
        return True


def say(**words: Any) -> None:
    """Append a line."""
    if folder := os.environ.get(SEEN):
        line = json.dumps({**words, "pid": os.getpid(), "at": time.monotonic()})
        with Path(folder, "seen.jsonl").open("a") as file:
            file.write(line + "\n")


def seen(folder: Path) -> list[dict[str, Any]]:
    """Return the lines so far."""
    file = folder / "seen.jsonl"
    return (
        [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if (file.exists())
        else []
    )


def open_files(pid: int | str = "self") -> list[str]:
    """Return what a process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:  # the one that lists them
            continue
    return found

"""Scenes that never end, or that take what they can get. Imported in render processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import Report
from renderdispatch.testing import FakeRenderer

GREEDY: Final = {"greedy": "tests.support.greedy_scenes:Greedy"}

_MIB: Final = 1 << 20
_PATIENCE_S: Final = 60.0


class Greedy:
    """Renders as `FakeRenderer` does, and then what its parameters say.

    - ``hang``: show one more frame, start a process in a session of its own, and never end.
    - ``eat_mib``: fill so much memory, before the first frame; with ``forks`` in so many processes that share it, each
      of which then writes ``own_mib`` of its own.
    - ``reserve_mib``: reserve so much address space, and write to none of it.
    """

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write a video of nothing."""
        params: dict[str, Any] = dict(order.params)
        reserved = mmap.mmap(-1, params.get("reserve_mib", 1) * _MIB, flags=mmap.MAP_PRIVATE)
        eaten = bytearray()
        for _ in range(params.get("eat_mib", 0) // 16):
            eaten += b"x" * (16 * _MIB)
        forks = [_fork(params.get("own_mib", 0)) for _ in range(params.get("forks", 0))]
        for read, _ in forks:
            os.read(read, 1)
        if forks:
            time.sleep(0.6)  # for a look or two at the memory
        for _, write in forks:
            os.close(write)
        stats = FakeRenderer().render(order, audio, output, report)
        if params.get("hang"):
            report(2, 3)
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
            time.sleep(_PATIENCE_S)
        reserved.close()
        return stats


def _fork(own_mib: int) -> tuple[int, int]:
    """Start a fork that writes its memory, says so, and ends when it is told to."""
    (ready, say_ready), (go, tell) = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(tell)
        own = bytearray(b"y" * (own_mib * _MIB))
        os.write(say_ready, b"!")
        os.read(go, 1)
        os._exit(len(own) * 0)
    os.close(go)
    return ready, tell

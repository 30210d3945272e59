"""A scene that goes wrong as its parameters say. Containers import it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from renderdispatch.errors import SceneError
from renderdispatch.messages import Helped, HelperOrder, RenderOrder, RenderStats, SegmentCounts
from renderdispatch.protocols import Report, Slots
from renderdispatch.testing.renderers import fake_digest, make_plan

TROUBLE: Final = "trouble"
"""The name that the scene is registered under."""

_SEGMENTS: Final = 3
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 120.0


@frozen
class Trouble:
    """Draws nothing. The order's parameters say what it does.

    - ``folder``: where it leaves marks. Each start adds a line to the file ``renders``; each end writes its time to the
      file ``ended``.
    - ``hold``: wait until the folder has a file ``go``.
    - ``mishap``: "raise", "memory" (allocate beyond a limit) or "killed" (by SIGKILL, as the kernel does when memory
      runs out). With ``times``, only the first starts do this.
    - ``child``: start a process in a session of its own, which goes on sleeping.
    - ``silent``: report no frame while it waits.
    - ``size``: the size of the video in bytes, which differ at each start.

    Where pieces are kept it keeps a plan, so that helpers are started. They draw nothing, add a line to the file
    ``helpers``, and go on until they are stopped.
    """

    def render_segments(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots
    ) -> RenderStats:
        """Keep a plan, and render."""
        with tempfile.TemporaryDirectory() as name:
            (plan := Path(name) / "plan").write_bytes(make_plan(fake_digest(_SEGMENTS)))
            planned = slots.put_plan(plan)
        slots.report(SegmentCounts(total=_SEGMENTS, standing=0, own=0), planned=planned)
        return self.render(order, audio, output, report)

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw nothing, until it is stopped."""
        del folder, slots
        with (Path(str(order.params["folder"])) / "helpers").open("a") as marks:
            marks.write(f"{os.getpid()}\n")
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            report(0, 1)
            time.sleep(_POLL_S)
        return Helped(reason="nobody stopped it")

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Report frames while it waits, then do what the parameters say."""
        params: dict[str, Any] = dict(order.params)
        folder = Path(params["folder"])
        with (folder / "renders").open("a") as marks:
            marks.write(f"{os.getpid()} {time.time()}\n")
        start = len((folder / "renders").read_text().splitlines())
        if params.get("child"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        frame = 0
        deadline = time.monotonic() + _PATIENCE_S
        while params.get("hold") and not (folder / "go").exists() and time.monotonic() < deadline:
            if not params.get("silent"):
                frame = min(frame + 1, 999)
                report(frame, 1000)
            time.sleep(_POLL_S)
        if start <= params.get("times", 1000):
            _get_into(params.get("mishap"))
        report(1000, 1000)
        output.write_bytes(os.urandom(params.get("size", 1000)))
        (folder / "ended").write_text(str(time.time()))
        return RenderStats(
            width=order.output.width,
            height=order.output.height,
            fps=order.output.fps,
            frames=1000,
            duration_s=1.0,
            rendered_by="trouble",
            encoded_by="none",
        )


def _get_into(mishap: str | None) -> None:
    match mishap:
        case "raise":
            raise SceneError("there is no such star", code="scene.star")
        case "memory":
            resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
            bytearray(1 << 30)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)

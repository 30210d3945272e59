"""The command line, as people run it: in a process of its own, in a home of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import wave
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from renderdispatch import local
from renderdispatch.cli.display import job_as_json
from renderdispatch.testing import eventually

COMMAND: Final = [sys.executable, "-m", "renderdispatch.cli"]
SMALL: Final = ("--size", "64x64", "--fps", "10")

PLUGIN: Final = '''
import os
import time


class Slow:
    """Takes as long as it is let."""

    def render(self, order, audio, output, report):
        output.write_bytes(b"half a file")
        for frame in range(1, 100_001):
            report(frame, 100_000)
            time.sleep(0.01)


class Lossy:
    """Warns twice, of the track that it was asked for."""

    def render(self, order, audio, output, report):
        from renderdispatch.messages import RenderStats

        output.write_bytes(b"a video")
        said = [{"code": "audio.damaged", "message": f"track {order.audio_track}:\\nsilent from {at} s"} for at in (3, 9)]
        picture = {name: getattr(order.output, name) for name in ("width", "height", "fps")}
        made = {"frames": 1, "duration_s": 1.0, "rendered_by": "lossy", "encoded_by": "none"}
        return RenderStats(**picture, **made, warnings=said)


class Broken:
    """Raises."""

    def render(self, order, audio, output, report):
        raise ZeroDivisionError("a scene's own mistake")


class Crashing:
    """Takes its process with it."""

    def render(self, order, audio, output, report):
        os._exit(3)
'''

SCENE_FILE: Final = '''
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

import neighbour
from renderdispatch.render.params import Colour, SceneParams
from renderdispatch.render.scene import NumpyRenderer, Scene

if TYPE_CHECKING:
    from fractions import Fraction

print("a word of the file")


class TrailParams(SceneParams):
    colour: Colour = Field(default=neighbour.COLOUR, description="of the picture")


class TrailState(NamedTuple):
    level: float


class Trail(Scene[TrailState]):
    """One colour."""

    def __init__(self, params: TrailParams, *, width: int, height: int, fps: Fraction) -> None:
        self.colour = [int(params.colour[i : i + 2], 16) for i in (1, 3, 5)]

    def start(self):
        return TrailState(0.0)

    def step(self, state, frame):
        return TrailState(max(frame.level, 0.9 * state.level))

    def paint(self, state, frame, canvas):
        canvas[:] = self.colour


class Plain(Scene):
    def __init__(self, params, *, width, height, fps):
        pass

    def paint(self, state, frame, canvas):
        canvas[:] = 0


trail = NumpyRenderer("trail:Trail", TrailParams)


class Slow:
    """Takes as long as it is let."""

    def render(self, order, audio, output, report):
        import time

        for frame in range(1, 100_001):
            report(frame, 100_000)
            time.sleep(0.01)
'''


@frozen
class CommandLine:
    """Runs ``renderdispatch`` as a user would."""

    folder: Path
    home: Path
    plugins: Path

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RENDERDISPATCH_")}
        ours = {"RENDERDISPATCH_HOME": str(self.home), "RENDERDISPATCH_LEASE_S": "2"}
        return {**clean, **ours, "PYTHONPATH": str(self.plugins), "COLUMNS": "120"}

    def __call__(self, *arguments: str | Path, timeout_s: float = 90, **options: Any) -> Ran:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            **options,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[Any]:
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            **{
                "text": True,
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "preexec_fn": _heed_ctrl_c,
                **options,
            },
        )

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs of the home as ``jobs list --json`` shows them, newest first, without starting a process."""
        with local(self.home, worker=False) as service:
            return [job_as_json(job) for job in service.jobs().items]

    def wait_for(self, **wanted: str | int) -> str:
        """Return the id of the newest job once it is as wanted."""

        def look() -> str:
            newest = self.jobs()[:1]
            return next((str(job["jobId"]) for job in newest if wanted.items() <= job.items()), "")

        return eventually(look)


@frozen
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    def said_one_error(self) -> str:
        """Return the error; there is one line, and no traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("renderdispatch: error: ")
        return lines[0]


def write_song(path: Path, *, seconds: float, loudness: int = 8000) -> Path:
    """Write a square wave: 16 bits, mono, 8 kHz."""
    samples = array("h", (loudness if n // 20 % 2 else -loudness for n in range(round(8000 * seconds))))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path


def read_terminal(descriptor: int) -> str:
    """Return what a command drew on a terminal, whose other side is this descriptor, until it ended; close it."""
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux says so when the other side is gone
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode()


def _heed_ctrl_c() -> None:
    """Have a process heed Ctrl-C, also where the tests run in the background of a shell, which has them ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def as_an_ordinary_user() -> Callable[[], None] | None:
    """Return what makes root's process obey permissions, for ``preexec_fn``; others need nothing."""
    if os.geteuid() != 0:
        return None
    prctl = ctypes.CDLL(None).prctl

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: the next exec does without

    return drop

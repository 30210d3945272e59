"""Which scene does the storm render? One that is quick, whose video says which sound it was made from.

Imported by render processes in containers: it needs nothing but the package.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final

from renderdispatch.errors import AudioError, SceneError
from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import Report

SCENE: Final = "storm"
SOUND: Final = b"RIFF of job "
"""How sound begins that can be decoded."""

BROKEN_SCENE: Final = "storm.broken-scene"
BROKEN_SOUND: Final = "storm.broken-sound"


def video_of(sound: bytes, size: int) -> bytes:
    """Return the video of a sound: ``size`` bytes that no other sound gives."""
    return hashlib.shake_256(sound).digest(size)


class StormRenderer:
    """Writes `video_of` the sound: ``params`` say how large, how slowly, and whether the scene is broken."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Report ten frames, and write the video."""
        sound = audio.read_bytes()
        if not sound.startswith(SOUND):
            raise AudioError("this is no sound", code=BROKEN_SOUND)
        size, seconds = order.params["size"], order.params["seconds"]
        assert isinstance(size, int)
        assert isinstance(seconds, float)
        for frame in range(10):
            time.sleep(seconds / 10)
            if frame == 5 and order.params["broken"]:
                raise SceneError("the scene is broken", code=BROKEN_SCENE)
            report(frame + 1, 10)
        output.write_bytes(video_of(sound, size))
        return RenderStats(
            width=order.output.width,
            height=order.output.height,
            fps=order.output.fps,
            frames=10,
            duration_s=float(10 / order.output.fps),
            rendered_by="storm",
            encoded_by="none",
        )

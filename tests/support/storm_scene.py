"""Which scene does the storm render? One that is quick, whose video says which sound it was made from.

Imported by render processes in containers: it needs nothing but the package.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from renderdispatch.errors import AudioError, SceneError
from renderdispatch.messages import Helped, HelperOrder, RenderOrder, RenderStats, SegmentCounts
from renderdispatch.plumbing.pieces import HEAD_BYTES, PlanHead
from renderdispatch.protocols import Commit, Report, Slots
from renderdispatch.testing.renderers import make_plan, make_segment

SCENE: Final = "storm"
SOUND: Final = b"RIFF of job "
"""How sound begins that can be decoded."""

SEGMENTS: Final = 6
_FRAMES: Final = 5

BROKEN_SCENE: Final = "storm.broken-scene"
BROKEN_SOUND: Final = "storm.broken-sound"


def video_of(sound: bytes, size: int) -> bytes:
    """Return the video of a sound: ``size`` bytes that no other sound gives."""
    return hashlib.shake_256(sound).digest(size)


class StormRenderer:
    """Writes `video_of` the sound: ``params`` say how large, how slowly, and whether the scene is broken.

    The video has `SEGMENTS` parts. Its plan holds the sound, so that helpers can draw some.
    """

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Report ten frames, and write the video."""
        sound = _read_sound(audio)
        wanted = _Wanted.of(order.params)
        for frame in range(10):
            time.sleep(wanted.seconds / 10)
            if frame == 5 and wanted.broken:
                raise SceneError("the scene is broken", code=BROKEN_SCENE)
            report(frame + 1, 10)
        output.write_bytes(video_of(sound, wanted.size))
        return _stats(order)

    def render_segments(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots
    ) -> RenderStats:
        """Draw what is not kept, and write the video."""
        sound = _read_sound(audio)
        digest, wanted = hashlib.sha256(sound).hexdigest(), _Wanted.of(order.params)
        parts, taken = list[bytes](), 0
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "plan").write_bytes(make_plan(digest, rest=sound))
            planned = slots.read_plan(0, HEAD_BYTES) is not None or slots.put_plan(folder / "plan")
            for index in range(SEGMENTS):
                is_kept = index < slots.count and slots.is_drawn(digest, index)
                if is_kept and slots.fetch(digest, index, folder / "kept"):
                    parts.append((folder / "kept").read_bytes()[HEAD_BYTES:])
                    taken += 1
                else:
                    parts.append(wanted.draw(sound, index, report))
                    _commit(slots, digest, index, parts[-1], folder)
                counts = SegmentCounts(total=SEGMENTS, standing=len(parts), own=len(parts) - taken)
                slots.report(counts, planned=planned)
        output.write_bytes(b"".join(parts))
        return _stats(order).model_copy(update={"segments": SEGMENTS, "segments_taken": taken})

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw the own share, then what is missing."""
        head = PlanHead.read(slots.read_plan(0, HEAD_BYTES) or b"")
        if head is None:
            return Helped(reason="no plan is kept")
        begin = HEAD_BYTES + head.index
        sound = slots.read_plan(begin, head.size - begin) or b""
        if hashlib.sha256(sound).hexdigest() != head.digest:
            return Helped(reason="the plan that is kept is damaged")
        wanted, committed = _Wanted.of(order.params), 0
        for index in sorted(range(SEGMENTS), key=lambda index: index % slots.parallel != slots.share):
            if index < slots.count and not slots.is_drawn(head.digest, index):
                part = wanted.draw(sound, index, report)
                committed += _commit(slots, head.digest, index, part, folder) == "committed"
        return Helped(segments=committed, reason="all segments are drawn")


@frozen
class _Wanted:
    """What the parameters say."""

    size: int
    seconds: float
    broken: bool

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> _Wanted:
        return cls(params["size"], params["seconds"], params["broken"])

    def draw(self, sound: bytes, index: int, report: Report) -> bytes:
        """Return a part of the video."""
        for frame in range(_FRAMES):
            time.sleep(self.seconds / SEGMENTS / _FRAMES)
            if index >= SEGMENTS // 2 and self.broken:
                raise SceneError("the scene is broken", code=BROKEN_SCENE)
            report(index * _FRAMES + frame + 1, SEGMENTS * _FRAMES)
        step = -(-self.size // SEGMENTS)
        return video_of(sound, self.size)[index * step : (index + 1) * step]


def _read_sound(audio: Path) -> bytes:
    sound = audio.read_bytes()
    if not sound.startswith(SOUND):
        raise AudioError("this is no sound", code=BROKEN_SOUND)
    return sound


def _commit(slots: Slots, digest: str, index: int, part: bytes, folder: Path) -> Commit:
    if index >= slots.count:
        return "kept"
    path = folder / f"{index}.drawn"
    path.write_bytes(make_segment(digest, index, part))
    return slots.commit(digest, index, path)


def _stats(order: RenderOrder) -> RenderStats:
    return RenderStats(
        width=order.output.width,
        height=order.output.height,
        fps=order.output.fps,
        frames=10,
        duration_s=float(10 / order.output.fps),
        rendered_by="storm",
        encoded_by="none",
    )

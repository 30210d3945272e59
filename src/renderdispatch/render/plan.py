"""What do all who draw one video have to know, before any of them draws a frame?

The plan: where the video is cut into segments, what the sound does at each frame, and the state of the scene before
each segment. From it, any segment can be drawn anywhere, without the song. `renderdispatch.render.planner` makes it.
"""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any, Final, Protocol, Self

from attrs import define, evolve, field, frozen

from renderdispatch.errors import SceneError
from renderdispatch.messages import MAX_SEGMENTS, HelperOrder, RenderOrder, RenderWarning
from renderdispatch.plumbing.files import read_chunks
from renderdispatch.render.covers import Cover
from renderdispatch.render.device import picture_version
from renderdispatch.render.features import Features
from renderdispatch.render.plan_file import KeptPlan, PlanError, Reading, read_index
from renderdispatch.render.snapshots import load_state

SHORTEST_S: Final = 4
SHORTEST_FRAMES: Final = 24
"""A shorter segment costs more than it helps, and players stumble over a short end."""

RUN_UPS: Final = 4
"""A segment has at least this many times the frames that are drawn before it and not shown."""


def cut(frames: int, fps: Fraction, *, run_up: int = 0) -> tuple[int, ...]:
    """Return where the segments of a video begin, and behind them the number of frames.

    All have the same length but the last one, which has the rest as well.

    Args:
        frames: Of the video, at least one.
        fps: Frames a second.
        run_up: How many frames are drawn before a segment and not shown.
    """
    length = max(ceil(SHORTEST_S * fps), SHORTEST_FRAMES, RUN_UPS * run_up, -(-frames // MAX_SEGMENTS))
    return (*(length * index for index in range(max(frames // length, 1))), frames)


def plan_digest(
    order: RenderOrder | HelperOrder,
    *,
    audio_sha256: str,
    scene: str,
    device: str,
    encoder: str,
    software: str | None = None,
) -> str:
    """Return the hash, in hex, of all that decides about the bytes of the segments. Lead and helpers get the same one.

    Args:
        order: As renderers see it: the files beside the audio are on this machine.
        audio_sha256: The hash of the audio file, in hex.
        scene: The scene and its version, as of `renderdispatch.render.versions.scene_version`.
        device: The class of what draws and encodes.
        encoder: The encoder's name.
        software: The version of what decides about the bytes; None is that of this process.
    """
    assets = {"cover": order.cover, "scene": order.scene_file}
    assets |= {f"image {number}": image for number, image in enumerate(order.images)}
    inputs = {
        "audio": audio_sha256,
        "range": [order.start, order.duration],
        "track": order.audio_track,
        "scene": scene,
        "params": order.params,
        "output": order.output.model_dump(mode="json"),
        "files": {name: hash_file(Path(asset.path)) for name, asset in assets.items() if asset and asset.path},
        "device": device,
        "encoder": encoder,
        "software": picture_version() if software is None else software,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


class Source(Protocol):
    """Where a plan's features and states are. Calls may be made from several threads."""

    @property
    def cover(self) -> Cover | None:
        """The song's cover, which scenes show."""

    def segment(self, index: int, drawn: range) -> tuple[Features, bytes, Path | None]:
        """Return the features of frames and the stored state of a segment, and a file to be removed after their use."""

    def brightest(self) -> int:
        """Return the index of the brightest frame."""


@frozen(eq=False)
class Part:
    """What is needed to draw one segment. Use it with ``with``, or close it.

    Step from ``state`` through all of ``features``; draw each of these frames, and show those from ``begin`` on.

    Args:
        index: Of the segment.
        first: The first frame to be drawn: the run-up is before the segment.
        begin: The first frame of the segment.
        end: The frame after the last one.
        state: The scene's state before the frame ``first``.
        features: Of the frames ``first`` to ``end - 1``.
    """

    index: int
    first: int
    begin: int
    end: int
    state: Any = field(repr=False)
    features: Features
    _temporary: Path | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the features, and remove what was fetched for them."""
        self.features.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


@define(eq=False, kw_only=True)
class Plan:
    """The plan of a video. It may be used in several threads.

    Args:
        digest: Of all that decides about the bytes of the segments; see `plan_digest`.
        audio_sha256: The hash of the audio file, in hex.
        frames: Of the video.
        fps: Frames a second.
        rate: Samples of the sound a second.
        layout: ``mono`` or ``stereo``.
        duration: Seconds of sound, exactly.
        run_up: How many frames are drawn before a segment and not shown.
        warnings: What is wrong with the sound.
        source: Where features and states are.
    """

    digest: str
    audio_sha256: str
    frames: int
    fps: Fraction
    rate: int
    layout: str
    duration: Fraction
    run_up: int = 0
    warnings: tuple[RenderWarning, ...] = ()
    source: Source = field(repr=False)
    bounds: tuple[int, ...] = field(init=False, repr=False)
    """Where the segments begin, and behind them the number of frames."""

    def __attrs_post_init__(self) -> None:
        self.bounds = cut(self.frames, self.fps, run_up=self.run_up)

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.bounds) - 1

    @property
    def cover(self) -> Cover | None:
        """The song's cover, which scenes show."""
        return self.source.cover

    @property
    def brightest(self) -> int:
        """The index of the brightest frame. While the plan is still being made, wait for it.

        Raises:
            SceneError: The scene failed at a frame.
        """
        return self.source.brightest()

    def frames_of(self, index: int) -> range:
        """Return the frames of a segment."""
        return range(self.bounds[index], self.bounds[index + 1])

    def drawn_for(self, index: int) -> range:
        """Return the frames that are drawn for a segment: those of its run-up, and its own."""
        frames = self.frames_of(index)
        return range(max(frames.start - self.run_up, 0), frames.stop)

    def segment_with(self, frame: int) -> int:
        """Return the index of the segment that holds a frame."""
        return min(frame // self.bounds[1], len(self) - 1)

    def part(self, index: int, like: Any) -> Part:
        """Return what is needed to draw a segment. While the plan is still being made, wait for it.

        Args:
            index: Of the segment.
            like: A state of the scene, such as that of ``start()``.

        Raises:
            SceneError: The scene failed at a frame before this segment.
            PlanError: A part of the plan that is kept is missing or damaged.
        """
        frames, drawn = self.frames_of(index), self.drawn_for(index)
        features, stored, temporary = self.source.segment(index, drawn)
        part = Part(index, drawn.start, frames.start, frames.stop, None, features, temporary)
        try:
            state = load_state(stored, like)
        except SceneError as error:
            part.close()
            raise PlanError(f"segment {index} of the plan: {error}") from error
        return evolve(part, state=state)

    @classmethod
    def read(cls, read: Reading, folder: Path) -> Plan | None:
        """Return the plan that is kept; None: there is none, or its index is not good.

        Args:
            read: Reads a part of it; see `renderdispatch.protocols.Slots.read_plan`.
            folder: For temporary files; it exists as long as the plan is used.

        Raises:
            PlanError: What all segments share is missing or damaged.
        """
        found = read_index(read)
        if found is None:
            return None
        head, index = found
        if len(index.segments) != len(cut(index.frames, index.fps, run_up=index.run_up)) - 1:
            return None
        return cls(
            digest=head.digest,
            audio_sha256=index.audio_sha256,
            frames=index.frames,
            fps=index.fps,
            rate=index.rate,
            layout=index.layout,
            duration=index.duration,
            run_up=index.run_up,
            warnings=index.warnings,
            source=KeptPlan(index, read, folder),
        )

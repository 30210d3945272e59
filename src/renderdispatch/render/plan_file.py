"""How is the plan of a video laid out in its file, and how is a part of it read?

A plan is one file, written once, when it is complete::

    head      1024 bytes, see `renderdispatch.plumbing.pieces.PlanHead`
    index     JSON; it holds the hashes of all that follows
    records   from `DATA_AT` on: the features of each frame, see `renderdispatch.render.features`
    common    the levels of all frames, their beats, and the cover
    states    one a segment, see `renderdispatch.render.snapshots`

So one range is enough to know the plan, another one for what all segments share, and two for each segment. Nothing of
it is used before its hash was compared.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isfinite
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from renderdispatch.errors import RenderError
from renderdispatch.messages import RenderWarning
from renderdispatch.plumbing.pieces import HEAD_BYTES, PlanHead
from renderdispatch.render.covers import SIDE, Cover
from renderdispatch.render.features import BANDS, RECORD_BYTES, Features
from renderdispatch.render.snapshots import MAX_STATE_BYTES

Reading = Callable[[int, int], bytes | None]
"""Reads a part of a plan that is kept; see `renderdispatch.protocols.Slots.read_plan`."""

DATA_AT: Final = 1 << 16
"""Where the records begin. The index of as many segments as there may be takes less than half of the room before."""

_COMMON_A_FRAME: Final = 8
"""Bytes of the level and the beat of a frame."""

_MOST_FRAMES: Final = 1 << 28
_MOST_STATE_BYTES: Final = 2 * MAX_STATE_BYTES
_MOST_COVER_BYTES: Final = 4 * SIDE * SIDE

_FRACTION: Final = re.compile(r"[0-9]{1,18}(/[0-9]{1,18})?")
_WARNINGS: Final = TypeAdapter(tuple[RenderWarning, ...])


class PlanError(RenderError):
    """A plan that is kept cannot be used: a part of it is missing or damaged."""

    code = "plan.damaged"


@frozen(kw_only=True)
class Index:
    """What the index of a plan says.

    Args:
        audio_sha256: The hash of the audio file, in hex.
        frames: Of the video.
        fps: Frames a second.
        rate: Samples of the sound a second.
        layout: ``mono`` or ``stereo``.
        duration: Seconds of sound, exactly.
        run_up: How many frames are drawn before a segment and not shown.
        warnings: What is wrong with the sound.
        tops_db: (96,) float32, as of `Features`.
        brightest: The index of the brightest frame.
        common: The hash of what all segments share.
        cover_bytes: How much of it is the cover, at its end; 0: there is none.
        segments: For each, the hash of its records, those of its run-up with them, and of its state; and how many bytes
            the state has.
    """

    audio_sha256: str
    frames: int
    fps: Fraction
    rate: int
    layout: str
    duration: Fraction
    run_up: int
    warnings: tuple[RenderWarning, ...]
    tops_db: NDArray[np.float32] = field(eq=False, repr=False)
    brightest: int
    common: str
    cover_bytes: int
    segments: Sequence[tuple[str, int]] = field(repr=False)

    @property
    def common_at(self) -> int:
        """Where the part begins that all segments share."""
        return DATA_AT + self.frames * RECORD_BYTES

    @property
    def common_bytes(self) -> int:
        """Bytes of this part."""
        return self.frames * _COMMON_A_FRAME + self.cover_bytes

    def state_at(self, index: int) -> int:
        """Return where the state of a segment begins."""
        return self.common_at + self.common_bytes + sum(size for _, size in self.segments[:index])

    @property
    def size(self) -> int:
        """Bytes of the whole plan."""
        return self.state_at(len(self.segments))

    def pack(self, digest: str) -> bytes:
        """Return head and index, as long as `DATA_AT`.

        Args:
            digest: Of all that decides about the bytes of the segments.
        """
        index = json.dumps(
            {
                "audio": self.audio_sha256,
                "frames": self.frames,
                "fps": str(self.fps),
                "rate": self.rate,
                "layout": self.layout,
                "duration": str(self.duration),
                "run_up": self.run_up,
                "warnings": _WARNINGS.dump_python(self.warnings, mode="json"),
                "tops": base64.b64encode(self.tops_db.astype("<f4").tobytes()).decode(),
                "brightest": self.brightest,
                "common": self.common,
                "cover": self.cover_bytes,
                "segments": self.segments,
            },
            separators=(",", ":"),
            ensure_ascii=False,
        ).encode()
        head = PlanHead(digest=digest, index=len(index), sha256=hashed(index), size=self.size)
        packed = (head.pack() + index).ljust(DATA_AT, b" ")
        assert len(packed) == DATA_AT
        return packed

    @classmethod
    def read(cls, packed: bytes) -> Index:
        """Return the index from its bytes, whose hash was compared.

        Raises:
            ValueError: They hold none.
        """
        try:
            said = json.loads(packed)
            index = cls(
                audio_sha256=str(said["audio"]),
                frames=int(said["frames"]),
                fps=_fraction(said["fps"]),
                rate=int(said["rate"]),
                layout=str(said["layout"]),
                duration=_fraction(said["duration"]),
                run_up=int(said["run_up"]),
                warnings=_WARNINGS.validate_python(said["warnings"]),
                tops_db=np.frombuffer(base64.b64decode(said["tops"], validate=True), "<f4").astype(np.float32),
                brightest=int(said["brightest"]),
                common=str(said["common"]),
                cover_bytes=int(said["cover"]),
                segments=[(str(sha256), int(size)) for sha256, size in said["segments"]],
            )
        except (KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
            raise ValueError("the index of the plan holds something else") from error
        index._check()
        return index

    def _check(self) -> None:
        """Raise ValueError if the numbers are not in a range that can be worked with."""
        good = (
            0 < self.frames <= _MOST_FRAMES
            and 0 < self.fps <= _MOST_FRAMES
            and 0 < self.rate <= _MOST_FRAMES
            and self.layout in {"mono", "stereo"}
            and self.duration > 0
            and 0 <= self.run_up <= _MOST_FRAMES
            and self.tops_db.shape == (BANDS,)
            and all(map(isfinite, self.tops_db))
            and 0 <= self.brightest < self.frames
            and 0 <= self.cover_bytes <= _MOST_COVER_BYTES
            and all(0 < size <= _MOST_STATE_BYTES for _, size in self.segments)
        )
        if not good:
            raise ValueError("the index of the plan is not one of a video")


def _fraction(text: str) -> Fraction:
    """Return a fraction of integers; others, such as ``1e1000000``, may take minutes to read."""
    if _FRACTION.fullmatch(text) is None:
        raise ValueError("the plan holds no fraction")
    return Fraction(text)


def read_index(read: Reading) -> tuple[PlanHead, Index] | None:
    """Return the head and the index of the plan that is kept; None: there is none, or they are not good."""
    begin = _read_all(read, 0, DATA_AT)
    head = None if begin is None else PlanHead.read(begin)
    if begin is None or head is None or head.index > DATA_AT - HEAD_BYTES:
        return None
    packed = begin[HEAD_BYTES : HEAD_BYTES + head.index]
    if hashed(packed) != head.sha256:
        return None
    try:
        index = Index.read(packed)
    except ValueError:
        return None
    return None if index.size != head.size else (head, index)


class KeptPlan:
    """The features and states of a plan that is kept elsewhere.

    Args:
        index: Of the plan.
        read: Reads a part of it.
        folder: For temporary files; it exists as long as the plan is used.

    Raises:
        PlanError: What all segments share is missing or damaged.
    """

    def __init__(self, index: Index, read: Reading, folder: Path) -> None:
        self._index = index
        self._read = read
        self._folder = folder
        common = _read_all(read, index.common_at, index.common_bytes)
        if common is None or hashed(common) != index.common:
            raise PlanError("what all segments share is missing in the plan, or damaged")
        self._level, self._beat = np.frombuffer(common, "<f4", 2 * index.frames).reshape(2, -1).astype(np.float32)
        self.cover = cover_of(common[index.frames * _COMMON_A_FRAME :])

    def brightest(self) -> int:
        """Return the index of the brightest frame."""
        return self._index.brightest

    def segment(self, index: int, drawn: range) -> tuple[Features, bytes, Path | None]:
        """Return the features of frames and the state of a segment, and a file to be removed after their use.

        Raises:
            PlanError: They are missing or damaged.
        """
        sha256, size = self._index.segments[index]
        records = _read_all(self._read, DATA_AT + drawn.start * RECORD_BYTES, len(drawn) * RECORD_BYTES)
        state = _read_all(self._read, self._index.state_at(index), size)
        if records is None or state is None or hashed(records, state) != sha256:
            raise PlanError(f"segment {index} is missing in the plan, or damaged")
        with NamedTemporaryFile(dir=self._folder, prefix="part-", delete=False) as file:
            file.write(records)
        features = Features(
            path=Path(file.name),
            fps=self._index.fps,
            level=self._level[drawn.start : drawn.stop],
            beat=self._beat[drawn.start : drawn.stop],
            tops_db=self._index.tops_db,
            first=drawn.start,
            rate=self._index.rate,
        )
        return features, state, Path(file.name)


def common_of(features: Features, cover: bytes) -> bytes:
    """Return what all segments share.

    Args:
        features: Of all frames.
        cover: As of `packed_cover`.
    """
    return features.level.astype("<f4").tobytes() + features.beat.astype("<f4").tobytes() + cover


def packed_cover(cover: Cover | None) -> bytes:
    """Return a cover as bytes, without loss."""
    if cover is None:
        return b""
    file = io.BytesIO()
    Image.fromarray(cover.pixels).save(file, "PNG", compress_level=1)
    packed = file.getvalue()
    return packed if len(packed) <= _MOST_COVER_BYTES else b""


def cover_of(packed: bytes) -> Cover | None:
    """Return the cover from what `packed_cover` returned.

    Raises:
        PlanError: It is not a cover.
    """
    if not packed:
        return None
    try:
        with Image.open(io.BytesIO(packed), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.width != image.height or image.width > SIDE:
                raise PlanError("the plan holds a cover of another kind")
            return Cover(np.asarray(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PlanError(f"the cover in the plan is damaged: {error}") from error


def _read_all(read: Reading, begin: int, size: int) -> bytes | None:
    """Return ``size`` bytes, in as many calls as it takes; None: they are not there."""
    parts: list[bytes] = []
    while size:
        part = read(begin, size)
        if not part or len(part) > size:
            return None
        parts.append(part)
        begin, size = begin + len(part), size - len(part)
    return b"".join(parts)


def hashed(*parts: bytes) -> str:
    """Return the SHA-256, in hex, of bytes one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

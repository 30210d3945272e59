"""What are the pieces of a video called, and how does one tell that a piece is good?

While a video is drawn, its plan and its segments are kept under names that are written once. A name has generations: a
piece that is bad, such as one that a broken machine wrote, is passed over, and the next generation is written. The
lowest good one counts. Helpers write the first `GENERATIONS_OF_HELPERS` generations alone, so that they cannot use up
all of them.

A segment begins with a box of `HEAD_BYTES` that says what it is (`SegmentHead`). Players skip it: behind it comes
fragmented MP4. A plan begins with a head of the same size (`PlanHead`), and then its index. So a range of `HEAD_BYTES`
is enough to know a piece.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from attrs import asdict, frozen

GENERATIONS: Final = 4
GENERATIONS_OF_HELPERS: Final = 2

HEAD_BYTES: Final = 1024
"""The size of a head; each is padded to it."""

_GENERATIONS: Final = frozenset(map(str, range(GENERATIONS)))
_UUID: Final = bytes.fromhex("9a3f5e0c6d1b4c7f8e52b7a1d4c06e31")
_BOX: Final = struct.pack(">I4s", HEAD_BYTES, b"uuid") + _UUID
_PLAN: Final = b"renderdispatch plan 1\n"


def plan_name(generation: int) -> str:
    """Return the name of a plan."""
    return f"plan.{generation}"


def segment_name(index: int, generation: int) -> str:
    """Return the name of a segment."""
    return f"{index:03d}.{generation}"


def index_of(name: str) -> int | None:
    """Return the index of the segment with this name; None for the name of something else."""
    index, _, generation = name.partition(".")
    is_name = index.isascii() and index.isdigit() and generation in _GENERATIONS
    return int(index) if is_name and len(index) == 3 else None


def names(slots: int, generations: int = GENERATIONS) -> list[str]:
    """Return the names of all pieces of a video with so many slots, plans first."""
    plans = [plan_name(generation) for generation in range(generations)]
    return plans + [segment_name(index, generation) for index in range(slots) for generation in range(generations)]


@frozen(kw_only=True)
class SegmentHead:
    """What a segment says of itself.

    Args:
        digest: Of its plan: of all that decides about its bytes.
        index: From 0.
        frames: How many it holds.
        size: Bytes behind the head.
        sha256: Of these bytes, in hex.
        config: The decoder's configuration (``avcC`` of ISO/IEC 14496-15), in hex.
        twice: How many segments its worker has drawn in vain since the one that it completed before.
    """

    digest: str
    index: int
    frames: int
    size: int
    sha256: str
    config: str
    twice: int = 0

    def pack(self) -> bytes:
        """Return the head, of `HEAD_BYTES`.

        Raises:
            ValueError: It is too long.
        """
        return _padded(_BOX, asdict(self))

    @classmethod
    def read(cls, begin: bytes) -> SegmentHead | None:
        """Return the head of a segment that begins with these bytes; None: it has no good one."""
        fields = _fields(_BOX, begin)
        kinds = {"digest": str, "index": int, "frames": int, "size": int, "sha256": str, "config": str, "twice": int}
        return None if fields is None or not _fit(fields, kinds) else cls(**{name: fields[name] for name in kinds})


@frozen(kw_only=True)
class PlanHead:
    """What a plan says of itself.

    Args:
        digest: Of all that decides about the bytes of the segments.
        index: Bytes of the index, which follows the head.
        sha256: Of the index, in hex. It holds the hashes of the rest.
        size: Bytes of all of the plan.
    """

    digest: str
    index: int
    sha256: str
    size: int

    def pack(self) -> bytes:
        """Return the head, of `HEAD_BYTES`."""
        return _padded(_PLAN, asdict(self))

    @classmethod
    def read(cls, begin: bytes) -> PlanHead | None:
        """Return the head of a plan that begins with these bytes; None: it has no good one."""
        fields = _fields(_PLAN, begin)
        kinds = {"digest": str, "index": int, "sha256": str, "size": int}
        return None if fields is None or not _fit(fields, kinds) else cls(**{name: fields[name] for name in kinds})


def _padded(begin: bytes, fields: dict[str, object]) -> bytes:
    head = begin + json.dumps(fields, separators=(",", ":")).encode()
    if len(head) > HEAD_BYTES:
        raise ValueError(f"a head has {len(head)} bytes, and may have {HEAD_BYTES}")
    return head.ljust(HEAD_BYTES, b" ")


def _fields(begin: bytes, head: bytes) -> dict[str, Any] | None:
    if len(head) < HEAD_BYTES or not head.startswith(begin):
        return None
    try:
        fields = json.loads(head[len(begin) : HEAD_BYTES])
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _fit(fields: dict[str, Any], kinds: dict[str, type]) -> bool:
    """Return whether all fields are there, of these types, and numbers are not negative."""
    return all(
        type(value := fields.get(name)) is kind and (not isinstance(value, int) or 0 <= value < 1 << 53)
        for name, kind in kinds.items()
    )

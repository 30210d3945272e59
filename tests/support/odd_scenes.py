"""Scenes that count in odd ways, imported in render processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import numpy as np

from renderdispatch.messages import RenderOrder, RenderStats
from renderdispatch.protocols import Report
from renderdispatch.testing import FakeRenderer

COUNTS: Final[dict[str, tuple[Any, Any]]] = {
    "an unknown total": (5, -1),
    "no total": (5, None),
    "before the first frame": (-1, 10),
    "more than all": (11, 10),
    "NumPy's integers": (np.int64(5), np.int32(10)),
    "NumPy's floats": (np.float32(2.5), np.float64(10)),
    "floats": (2.5, 10.0),
    "no number": (float("nan"), 10),
    "no total number": (5, float("nan")),
    "infinite": (float("inf"), float("inf")),
    "huge": (10**400, 1),
    "words": ("five", "ten"),
}
"""What renderers may say: frames done, and frames in all."""


class Cancelling:
    """Raises what is not an `Exception`."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Raise it."""
        raise asyncio.CancelledError


class Odd:
    """Says what the order's parameter names, then renders as `FakeRenderer` does."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Report one odd count first."""
        report(*COUNTS[str(order.params["count"])])
        return FakeRenderer().render(order, audio, output, report)

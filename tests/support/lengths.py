"""How often is a test of chance repeated?

Each run of the tests takes a few rounds, CI about a tenth of all (``-m long``), and ``make test-soak`` all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings


def lengths(*quick: int, long: int | None = None, soak: int, timeout_s: float) -> Sequence[Any]:
    """Return the values of a parameter that says how often.

    Args:
        quick: In each run. These have the usual time limit.
        long: In CI.
        soak: In a soak.
        timeout_s: The time limit of a soak.
    """
    tenth = [] if long is None else [pytest.param(long, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
    return [*quick, *tenth, pytest.param(soak, marks=[pytest.mark.soak, pytest.mark.timeout(timeout_s)])]


def examples(number: int) -> settings:
    """Return Hypothesis settings for this many examples in CI, and for as many fewer elsewhere as the profile has."""
    return settings(max_examples=number * settings().max_examples // 100)

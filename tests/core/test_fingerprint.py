"""What makes two requests the same?"""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest

from renderdispatch.engine.intake import fingerprint
from renderdispatch.messages import Limits, Output
from renderdispatch.testing import make_request


def test_an_older_version_s_fingerprints_are_found_again() -> None:
    """Idempotency keys outlive an upgrade: a request without the new options has the fingerprint that it always had."""
    assert fingerprint(make_request()).startswith("2:")
    known = "c1aa04bb3bc89bf0b7e5799fdeb085b960265198c677a1d59c640c218faaf898"
    assert fingerprint(make_request(), version=1) == known
    assert fingerprint(make_request()) == "2:dfbc61eaa9dc8148145e3d1b3e7fa873a75ff676d512039112c43da5d4a9d752"


@pytest.mark.parametrize(
    "changes",
    [
        {"audio_track": 0},
        {"limits": Limits(max_duration=timedelta(days=1))},
        {"output": Output(width=64, height=64, fps=Fraction(10), encoder="h264_nvenc")},
    ],
    ids=str,
)
def test_new_options_count_where_they_are_used(changes: dict[str, Any]) -> None:
    """A request that uses a new option is another request, by every rule."""
    for version in (1, 2):
        assert fingerprint(make_request(**changes), version=version) != fingerprint(make_request(), version=version)

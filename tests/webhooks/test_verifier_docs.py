"""What the page about the verifier shows, runs; what it lists, is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from renderdispatch.errors import WebhookRefusal

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks-verify.md").read_text()
FENCES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", FENCES)
def test_example_runs_as_it_stands(code: str) -> None:
    """Each on its own, copied and pasted."""
    exec(compile(code, "webhooks-verify.md", "exec"), {"__name__": "__main__"})


def test_every_reason_is_explained() -> None:
    """The table lists all reasons, and no other."""
    assert set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) == set(WebhookRefusal)

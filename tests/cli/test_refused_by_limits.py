"""A command that a limit refuses says when to try again."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from renderdispatch.cli.failures import tell
from renderdispatch.errors import QueueLimitError
from renderdispatch.stores.turns import queue_full, too_many_submits


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(queue_full(10), 30), (too_many_submits(5, timedelta(seconds=11.2)), 12)],
    ids=lambda value: getattr(value, "code", str(value)),
)
def test_people_and_scripts_learn_when(
    error: QueueLimitError, seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words on stderr, and as ``retryAfterS`` for scripts; nothing was done, so the status is 2."""
    assert tell(error, as_json=True) == 2
    printed = capsys.readouterr()
    assert f"try again in {seconds} s [{error.code}]" in printed.err
    told = json.loads(printed.out)["error"]
    assert (told["code"], told["retryAfterS"]) == (error.code, seconds)

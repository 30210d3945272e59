"""What does a test need that pip does not bring? Without it a user's test is skipped, with the reason; CI fails."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from typing import Final, NoReturn

import pytest

names_near_commands: Final = pytest.mark.skipif(
    tuple(map(int, version("click").split(".")[:2])) < (8, 4), reason="click names near commands since version 8.4"
)


def lacking(what: str) -> NoReturn:
    """Skip, saying what is lacking; fail in CI, where nothing may be."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def need_ffmpeg() -> None:
    """Skip where the programs of ffmpeg are not installed."""
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        lacking("ffmpeg and ffprobe are not installed")

"""What does a test need that pip does not bring? Without it a user's test is skipped, with the reason; CI fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from typing import Final, NoReturn

import pytest

from renderdispatch.errors import RenderDispatchError

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


def need_uwsgi() -> None:
    """Skip where uWSGI is not installed, or runs another version of Python than the tests."""
    if shutil.which("uwsgi") is None:
        lacking("uwsgi with its plugin for Python is not installed")
    asked = subprocess.run(
        ["uwsgi", "--plugin", "python3", "--python-version"], capture_output=True, text=True, check=False
    )
    if asked.stdout.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"uwsgi runs Python {asked.stdout.strip() or 'not at all'}, the tests {sys.version.split()[0]}")


def need_opengl() -> None:
    """Skip where OpenGL cannot draw, not even on the CPU."""
    if reason := _why_no_opengl():
        lacking(reason)


@cache
def _why_no_opengl() -> str | None:
    try:
        from renderdispatch.render.gl.context import open_device
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed: pip install 'renderdispatch[gl]'"
    try:
        with open_device():
            return None
    except RenderDispatchError as error:
        return str(error)


def need_blender() -> None:
    """Skip where Blender is not installed."""
    if shutil.which("blender") is None:
        lacking("blender is not installed")

"""What the tests of the command line share."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from tests.support.command_line import PLUGIN, SMALL, CommandLine, write_song


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """The command line in an empty folder, with more scenes: ``slow``, ``broken``, ``lossy`` and ``crashing``."""
    folder, plugins = tmp_path / "folder", tmp_path / "plugins"
    metadata = plugins / "test_scenes-1.0.dist-info"
    folder.mkdir()
    metadata.mkdir(parents=True)
    (plugins / "test_scenes.py").write_text(PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: test-scenes\nVersion: 1.0\n")
    points = """
        [renderdispatch.renderers]
        slow = test_scenes:Slow
        broken = test_scenes:Broken
        lossy = test_scenes:Lossy
        crashing = test_scenes:Crashing
    """
    (metadata / "entry_points.txt").write_text(textwrap.dedent(points).lstrip())
    return CommandLine(folder, tmp_path / "home", plugins)


@pytest.fixture
def song(cli: CommandLine) -> Path:
    """Two seconds of a square wave."""
    return write_song(cli.folder / "song.wav", seconds=2)


@pytest.fixture
def made(cli: CommandLine, song: Path) -> str:
    """The id of a complete job."""
    answer = json.loads(cli("render", song, *SMALL, "--json").out)
    return str(answer["jobId"])

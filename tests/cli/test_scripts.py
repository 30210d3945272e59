"""What scripts hear from ``--json`` when a command fails: one line on stdout, beside the one for people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from renderdispatch.cli import app
from tests.support.command_line import SMALL, CommandLine
from tests.support.needs import names_near_commands

ERRORS = {
    "no such job to show": (["jobs", "show", "zzz"], 2, "job.not-found"),
    "no such job to cancel": (["jobs", "cancel", "zzz"], 2, "job.not-found"),
    "no such job to remove": (["jobs", "rm", "zzz"], 2, "job.not-found"),
    "no such scene": (["scenes", "nope"], 2, "scene.unknown"),
    "an unknown option": (["jobs", "show", "zzz", "--colour"], 2, "command.usage"),
    "an unknown command": (["rendr"], 2, "command.usage"),
    "a render that is refused": (["render", "missing.wav"], 2, "audio.missing"),
    "a render that fails": (["render", "song.wav", *SMALL, "--scene", "broken"], 1, "scene.failed"),
}


@pytest.mark.parametrize(("arguments", "status", "code"), ERRORS.values(), ids=list(ERRORS))
def test_an_error_is_told_once(cli: CommandLine, song: Path, arguments: list[str], status: int, code: str) -> None:
    """One line of JSON has the code and the message; people get their line on stderr."""
    ran = cli(*arguments, "--json")
    assert (ran.status, ran.out.count("\n")) == (status, 1)
    error = json.loads(ran.out)["error"]
    assert error["code"] == code
    assert error["message"] in " ".join(ran.said_one_error().split())


def test_without_json_errors_are_for_people(cli: CommandLine) -> None:
    """Nothing is on stdout."""
    assert cli("jobs", "show", "zzz").out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render"], "Name a SONG, or use --batch. See 'renderdispatch render --help'."),
        (
            ["render", "song.wav", "--size", "big"],
            "write WIDTHxHEIGHT, such as 1280x720. See 'renderdispatch render --help'.",
        ),
        pytest.param(["jbos"], "Did you mean 'jobs'? See 'renderdispatch --help'.", marks=names_near_commands),
    ],
)
def test_bad_usage_names_the_help(cli: CommandLine, arguments: list[str], said: str) -> None:
    """Whoever mistypes a command is told where the right one stands."""
    assert said in " ".join(cli(*arguments).said_one_error().split())


def test_a_name_that_is_no_text_is_escaped(cli: CommandLine) -> None:
    """What no UTF-8 holds is written as JSON escapes it, and read again as Python names the file."""
    name = os.fsdecode(b"\xff.wav")
    ran = cli("render", name, "--json")
    assert ran.status == 2
    assert ran.out.isascii()
    assert json.loads(ran.out)["error"]["message"] == f"{cli.folder / name} does not exist"


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes no file name that is not UTF-8")
def test_a_video_whose_name_is_no_text(cli: CommandLine, song: Path, made: str) -> None:
    """Commands that write such a file succeed; where the name alone is printed, it is the file's own bytes."""
    rendered, saved = os.fsdecode(b"\xff.mp4"), os.fsdecode(b"\xfe.mp4")
    ran = cli("render", song, *SMALL, "-o", rendered)
    assert (ran.status, ran.err) == (0, "")
    with cli.start("jobs", "save", made, "-o", saved, text=False) as process:
        assert process.communicate(timeout=30) == (b"\xfe.mp4\n", b"")
    assert process.returncode == 0
    assert (cli.folder / rendered).is_file() and (cli.folder / saved).is_file()


def test_a_script_that_had_enough_is_no_error(cli: CommandLine) -> None:
    """Where nobody reads stdout, an error ends in silence too."""
    read, write = os.pipe()
    os.close(read)
    process = cli.start("jobs", "show", "zzz", "--json", stdout=write)
    os.close(write)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 1


def test_a_module_that_a_plugin_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An import that fails in a running command is its own error, and does not blame this installation."""

    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'their_driver'", name="their_driver")

    monkeypatch.setattr(app.cli, "main", fail)
    assert app.run(["jobs", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "internal"

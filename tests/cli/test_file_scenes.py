"""``--scene file.py:name``: a scene that no package registers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_line import SCENE_FILE, SMALL, CommandLine


@pytest.fixture
def trail(cli: CommandLine) -> str:
    """A file with scenes, and its neighbour, in a folder."""
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine" / "trail.py").write_text(SCENE_FILE)
    (cli.folder / "mine" / "neighbour.py").write_text("COLOUR = '#00ff00'\n")
    return "mine/trail.py"


def test_a_scene_in_a_file_is_previewed_and_rendered(cli: CommandLine, song: Path, trail: str) -> None:
    """With its parameters; the job records the file's name, and what the file prints spoils no stdout."""
    ran = cli("preview", song, *SMALL, "--scene", f"{trail}:Trail", "--set", "colour=#ff0000", "-o", "a.png", "--json")
    assert (ran.status, ran.out.count("\n")) == (0, 1)
    with Image.open(cli.folder / "a.png") as picture:
        assert picture.getpixel((32, 32)) == pytest.approx((255, 0, 0), abs=3)
    ran = cli("render", song, *SMALL, "--scene", f"{trail}:trail", "--json")
    assert (ran.status, ran.err) == (0, "a word of the file\n")
    assert json.loads(ran.out)["artifact"]["frames"] == 20
    assert cli.jobs()[0]["scene"] == "trail.py:trail"


def test_its_parameters_are_shown(cli: CommandLine, trail: str) -> None:
    """As those of a registered scene."""
    ran = cli("scenes", f"{trail}:Trail")
    assert ran.status == 0
    assert ran.out.startswith(f"{trail}:Trail: One colour.\n")
    assert "colour     #rrggbb  #00ff00  of the picture" in ran.out


def test_its_job_is_not_retried(cli: CommandLine, song: Path, trail: str) -> None:
    """The job has no copy of the file; it is tried once."""
    file = cli.folder / trail
    file.write_text(file.read_text().replace("canvas[:] = 0", "1 / 0"))
    ran = cli("render", song, *SMALL, "--scene", f"{trail}:Plain", "--json")
    failed = json.loads(ran.out)
    assert (ran.status, failed["error"]["code"], cli.jobs()[0]["attempt"]) == (1, "scene.failed", 1)
    refused = cli("jobs", "retry", failed["jobId"])
    assert refused.status == 2
    assert refused.said_one_error().endswith("render it again with --scene [scene.file]")


@pytest.mark.long  # a lease has to lapse
def test_a_worker_of_the_home_does_not_take_it(cli: CommandLine, song: Path, trail: str) -> None:
    """It has not the file: the job is for the command that has it, and ends with it."""
    command = cli.start("render", "song.wav", *SMALL, "--scene", f"{trail}:Slow")
    try:
        cli.wait_for(stage="rendering")
    finally:
        command.kill()
        command.communicate()
    worker = cli.start("worker", "-q")
    try:
        cli.wait_for(status="failed", attempt=1)
    finally:
        worker.terminate()
        worker.communicate()
    assert cli.jobs()[0]["error"]["code"] == "worker.lost"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scene", "none.py:x"], "there is no file"),
        (["--scene", "mine/trail.py:nope"], "trail.py has no 'nope'; it defines Trail, Plain, trail"),
        (["--scene", "mine/trail.py:trail", "--backend", "modal"], "leave --backend out"),
    ],
)
def test_what_cannot_be_used_is_refused(
    cli: CommandLine, song: Path, trail: str, arguments: list[str], said: str
) -> None:
    """One line, status 2, no job."""
    ran = cli("render", song, *SMALL, *arguments)
    assert ran.status == 2
    error = ran.err.replace("a word of the file\n", "")
    assert said in error and error.count("\n") == 1 and error.endswith("[scene.file]\n")
    assert not cli.home.exists() or cli.jobs() == []

"""``preview`` and ``scenes --preview``: seeing before rendering."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from renderdispatch.cli.display import clock, length
from renderdispatch.cli.options import read_time
from renderdispatch.messages import SCENE_OF_FILES
from renderdispatch.runner.renderers import SHIPPED
from tests.support.command_line import SMALL, CommandLine


def test_a_frame_is_a_picture(cli: CommandLine, song: Path) -> None:
    """One line says which frame it is; no job is recorded."""
    ran = cli("preview", song, *SMALL, "--at", "0:01.5", "-o", "frame.png", "--set", "bars=9")
    assert (ran.status, ran.out, ran.err) == (0, "frame.png: 64x64, frame 15, at 0:01.5\n", "")
    with Image.open(cli.folder / "frame.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert not cli.home.exists()


def test_a_preview_for_scripts(cli: CommandLine, song: Path) -> None:
    """JSON names the frame; a name that ends with .jpg is a JPEG, and without a moment it is the brightest one."""
    ran = cli("preview", "song.wav", *SMALL, "-o", "frame.jpg", "--start", "0:01", "--json")
    assert (ran.status, ran.err) == (0, "")
    shown = json.loads(ran.out)
    assert (shown["output"], shown["width"], shown["height"]) == (str(cli.folder / "frame.jpg"), 64, 64)
    assert shown["at"] == 1 + shown["frame"] / 10
    with Image.open(cli.folder / "frame.jpg") as picture:
        assert picture.format == "JPEG"


def test_a_preview_goes_through_pipes(cli: CommandLine, song: Path) -> None:
    """``-`` is stdin, and stdout."""
    process = cli.start("preview", "-", *SMALL, "-o", "-", "--at", "1", stdin=subprocess.PIPE, text=False)
    out, error = process.communicate(song.read_bytes(), timeout=60)
    assert (process.returncode, error) == (0, b"stdout: 64x64, frame 10, at 0:01\n")
    with Image.open(io.BytesIO(out)) as picture:
        assert picture.format == "PNG"
    assert cli("preview", "-", "-o", "frame.png").said_one_error().endswith(": the audio is empty [audio.empty]")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing.wav"], "audio.missing"),
        (["song.wav", "-o", "frame.gif"], "output.kind"),
        (["song.wav", "-o", "there.png"], "output.exists"),
        (["song.wav", "-o", "there.png/frame.png"], "output.denied"),
        (["song.wav", "--scene", "slow"], "preview.unsupported"),
        (["song.wav", "--scene", "bats"], "scene.unknown"),
        (["song.wav", "--set", "barz=3"], "param.unknown"),
        (["song.wav", "--at", "nan"], "preview.range"),
        (["song.wav", "--duration", "-1"], "request.invalid"),
        (["song.wav", "--cover", "missing.jpg"], "cover.missing"),
        (["song.wav", "--at", "1:90"], "command.usage"),
    ],
)
def test_what_has_no_preview_is_refused(cli: CommandLine, song: Path, arguments: list[str], code: str) -> None:
    """One line, status 2, and no file."""
    (cli.folder / "there.png").write_bytes(b"mine")
    ran = cli("preview", *arguments, "--json")
    assert (ran.status, json.loads(ran.out)["error"]["code"]) == (2, code)
    ran.said_one_error()
    assert sorted(path.name for path in cli.folder.iterdir()) == ["song.wav", "there.png"]
    assert (cli.folder / "there.png").read_bytes() == b"mine"


def test_a_moment_that_the_video_has_not(cli: CommandLine, song: Path) -> None:
    """The song has to be read to know its end."""
    ran = cli("preview", song, *SMALL, "--at", "1:00")
    assert ran.status == 1
    assert "from 0 s to 2 s; 60 s is outside of it [preview.range]" in ran.said_one_error()


def test_ctrl_c_ends_a_preview(cli: CommandLine, song: Path) -> None:
    """Nothing is left, neither a file nor a process."""
    (cli.folder / "endless.py").write_text(
        "from pathlib import Path\n\n\n"
        "class Endless:\n"
        "    def render(self, order, audio, output, report): ...\n\n"
        "    def preview(self, order, audio, picture, report, *, at):\n"
        "        Path(audio).with_name('drawing').touch()\n"
        "        while True:\n"
        "            pass\n"
    )
    process = cli.start("preview", "song.wav", "--scene", "endless.py:Endless", "-o", "frame.png")
    while not (cli.folder / "drawing").exists():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130
    assert not (cli.folder / "frame.png").exists()


def test_names_that_are_no_text(cli: CommandLine, song: Path) -> None:
    """Song and cover may have names that are not UTF-8, as for a render."""
    odd = song.rename(cli.folder / os.fsdecode(b"\xff.wav"))
    cover = cli.folder / os.fsdecode(b"\xff.png")
    Image.new("RGB", (8, 8)).save(cover)
    ran = cli("preview", odd, *SMALL, "--at", "1", "--cover", cover, "-o", "frame.png")
    assert (ran.status, ran.err) == (0, "")


def test_a_cover_is_never_replaced(cli: CommandLine, song: Path) -> None:
    """Not by a picture that would be named like the song, as the cover is; ``--force`` is for other files."""
    cover = cli.folder / "song.png"
    Image.new("RGB", (8, 8)).save(cover)
    before = cover.read_bytes()
    ran = cli("preview", song, *SMALL, "--cover", cover, "-f")
    assert ran.said_one_error().endswith("song.png is the cover itself; name another file with -o [output.exists]")
    cover = cover.rename(cli.folder / "song.jpg")
    ran = cli("render", song, *SMALL, "--cover", cover, "--poster", "-f")
    assert ran.said_one_error().endswith("song.jpg is the cover itself; name another file with -o [output.exists]")
    assert cover.read_bytes() == before


@pytest.mark.parametrize("command", ["preview", "render"])
def test_ctrl_c_ends_the_import_of_a_scene_file(cli: CommandLine, song: Path, command: str) -> None:
    """The first one does, and nothing is left."""
    (cli.folder / "endless.py").write_text(
        "from pathlib import Path\n\nPath('importing').touch()\nwhile True:\n    pass\n"
    )
    process = cli.start(command, "song.wav", "--scene", "endless.py:x")
    while not (cli.folder / "importing").exists():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == ""
    assert process.returncode == 130
    assert not (cli.folder / "song.png").exists() and not (cli.folder / "song.mp4").exists()


def test_a_preview_that_crashes_is_said(cli: CommandLine, song: Path) -> None:
    """It takes nothing with it: it is drawn in a process of its own."""
    (cli.folder / "crash.py").write_text(
        "import os\n\n\n"
        "class Crash:\n"
        "    def render(self, order, audio, output, report): ...\n\n"
        "    def preview(self, order, audio, picture, report, *, at):\n"
        "        os._exit(3)\n"
    )
    ran = cli("preview", song, "--scene", "crash.py:Crash")
    assert ran.status == 1
    assert ran.said_one_error().endswith("the render process exited with status 3 [renderer.died]")


def test_a_scene_is_shown(cli: CommandLine) -> None:
    """The one that is named, to a folder that need not exist."""
    ran = cli("scenes", "bars", "--preview", "new/pictures", "--json")
    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["output"] == str(cli.folder / "new" / "pictures" / "bars.png")
    assert cli("scenes", "slow", "--preview", "new").said_one_error().endswith("[preview.unsupported]")


@pytest.mark.long  # draws all scenes
def test_each_scene_is_shown(cli: CommandLine) -> None:
    """A folder gets a picture of each scene that can be drawn by the frame; the others are named."""
    ran = cli("scenes", "--preview", "pictures")
    assert ran.status == 0
    drawn = sorted(f"{name}.png" for name in SHIPPED if name != SCENE_OF_FILES)
    assert sorted(path.name for path in (cli.folder / "pictures").iterdir()) == drawn
    assert ran.out.count("\n") == len(drawn)
    assert "scene 'slow' has no preview" in ran.err
    assert cli("scenes", "bars", "--preview", "pictures").said_one_error().endswith("[output.exists]")


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90.25", 90.25),
        ("1:30", 90),
        ("1:30.5", 90.5),
        ("0:01:30", 90),
        ("1:02:03.25", 3723.25),
        ("90:00", 5400),
        (" 0:07 ", 7),
        ("1e-9", 1e-9),
    ],
)
def test_times_are_read(text: str, seconds: float) -> None:
    """Seconds, m:ss and h:mm:ss, with decimals."""
    assert read_time(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1:60", "1:90:00", "1:2:3:4", ":30", "1:", "-1:30", "1:30,5", "1:٣", ""])
def test_what_is_no_time(cli: CommandLine, text: str) -> None:
    """The error shows how to write one."""
    import click

    with pytest.raises(click.BadParameter, match=r"write seconds, m:ss or h:mm:ss: 90, 1:30 or 0:01:30\.5"):
        read_time(text)


@pytest.mark.parametrize(
    ("seconds", "position", "lasting"),
    [
        (0, "0:00", "0.0 s"),
        (9.5, "0:09.5", "9.5 s"),
        (59.96, "1:00", "60.0 s"),
        (65, "1:05", "1:05"),
        (3723.4, "1:02:03.4", "1:02:03"),
    ],
)
def test_times_are_shown(seconds: float, position: str, lasting: str) -> None:
    """As players show them."""
    assert (clock(seconds), length(seconds)) == (position, lasting)

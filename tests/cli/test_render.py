"""``render`` and ``demo``: from a song to a file, for people and for scripts."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from renderdispatch.cli import app
from tests.support.command_line import COMMAND, SMALL, CommandLine, read_terminal, write_song
from tests.support.needs import need_ffmpeg


def test_a_song_becomes_a_video_of_its_name(cli: CommandLine, song: Path) -> None:
    """Without ``-o``, the video stands in the current folder; the one line on stdout names it."""
    ran = cli("render", song, *SMALL)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("song.mp4: 64x64, 10 fps, 20 frames, 2.0 s of music in ")
    need_ffmpeg()
    probe = ["ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", "song.mp4"]
    shown = subprocess.run(probe, check=True, cwd=cli.folder, capture_output=True, text=True).stdout
    assert shown.split() == ["h264", "aac"]


def test_json_is_one_line_for_scripts(cli: CommandLine, song: Path) -> None:
    """Nothing else is on stdout, and nothing on stderr."""
    ran = cli("render", song, *SMALL, "-o", "out.mp4", "--json")
    assert (ran.status, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert ran.out.count("\n") == 1
    assert answer["status"] == "complete"
    assert answer["output"] == str(cli.folder / "out.mp4")
    assert answer["seconds"] > 0
    assert answer["artifact"]["frames"] == 20
    assert answer["artifact"]["bytes"] == (cli.folder / "out.mp4").stat().st_size
    assert answer["jobId"] == cli.jobs()[0]["jobId"]


def test_quiet_says_nothing(cli: CommandLine, song: Path) -> None:
    """With ``-q`` the exit status is the answer."""
    ran = cli("render", song, *SMALL, "-q")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_force_replaces_the_output(cli: CommandLine, song: Path) -> None:
    """What stood there is replaced, once the video is whole."""
    (cli.folder / "song.mp4").write_bytes(b"old")
    assert cli("render", song, *SMALL, "--force").status == 0
    assert (cli.folder / "song.mp4").stat().st_size > 3


def test_options_reach_the_job(cli: CommandLine, song: Path) -> None:
    """Scene, picture, range and parameters are those of the command line."""
    options = ["--scene", "wave", "--preset", "flat-1080p-square", "--size", "96x64", "--fps", "24000/1001"]
    ran = cli("render", song, *options, "--start", "0.5", "--duration", "1", "--set", "gain=2", "--json")
    made = json.loads(ran.out)["artifact"]
    assert (made["width"], made["height"], made["fps"], made["frames"]) == (96, 64, "24000/1001", 24)
    shown = cli("jobs", "show", cli.jobs()[0]["jobId"]).out
    assert "wave" in shown
    assert "gain=2" in shown


def test_what_is_the_songs_is_in_the_file(cli: CommandLine, song: Path) -> None:
    """Title, artist and cover are tags of the video, and the poster lies beside it; the job is saved under its title."""
    Image.new("RGB", (32, 32), (200, 20, 20)).save(cli.folder / "cover.png")
    said = ["--title", "Night Drive", "--artist", "Ada", "--cover", "cover.png", "--poster", "--quality", "fast"]
    ran = cli("render", song, *SMALL, *said)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.endswith("\nsong.jpg: the poster\n")
    with Image.open(cli.folder / "song.jpg") as poster:
        assert (poster.format, poster.size) == ("JPEG", (64, 64))
    with av.open(str(cli.folder / "song.mp4")) as video:
        assert (video.metadata["title"], video.metadata["artist"]) == ("Night Drive", "Ada")
    (job,) = cli.jobs()
    assert job["output"]["quality"] == "fast"
    assert cli("jobs", "save", job["jobId"], "--poster").out == "Ada - Night Drive.mp4\nAda - Night Drive.jpg\n"
    ran = cli("render", song, *SMALL, "-o", "other.mp4", "--poster", "-f", "--cover", "song.wav")
    assert ran.said_one_error().endswith("[cover.invalid]")


def test_a_scene_that_makes_no_poster(cli: CommandLine, song: Path) -> None:
    """The video is written all the same, with a warning; a poster that is asked for later is refused."""
    ran = cli("render", song, *SMALL, "--scene", "lossy", "--poster", "-o", "film.mp4")
    assert (ran.status, ran.out.count("\n"), (cli.folder / "film.mp4").read_bytes()) == (0, 1, b"a video")
    assert "scene 'lossy' made no poster [poster.missing]" in ran.err
    assert not (cli.folder / "film.jpg").exists()
    refused = cli("jobs", "save", cli.jobs()[0]["jobId"], "--poster", "-o", "again.mp4")
    assert refused.said_one_error().endswith("has no poster [poster.missing]")
    assert not (cli.folder / "again.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["-o", "there.mp4", "--poster"], "output.exists"), (["-o", "-", "--poster"], "output.kind")],
)
def test_a_poster_that_has_no_place_is_refused(cli: CommandLine, song: Path, arguments: list[str], code: str) -> None:
    """Before anything is rendered."""
    (cli.folder / "there.jpg").write_bytes(b"mine")
    with (cli.folder / "out").open("wb") as out:
        process = cli.start("render", "song.wav", *SMALL, *arguments, stdout=out)
        error = process.communicate(timeout=60)[1]
    assert (process.returncode, error.endswith(f"[{code}]\n")) == (2, True)
    assert (cli.folder / "there.jpg").read_bytes() == b"mine"


def test_what_a_video_lacks_is_said(cli: CommandLine, song: Path) -> None:
    """One line on stderr for each warning, in plain words; ``jobs show`` repeats them, and scripts get a list."""
    ran = cli("render", song, *SMALL, "--scene", "lossy", "--audio-track", "2")
    assert (ran.status, ran.out.count("\n")) == (0, 1)
    assert ran.err.splitlines() == [
        f"renderdispatch: warning: track 2: silent from {at} s [audio.damaged]" for at in (3, 9)
    ]
    job_id = cli.jobs()[0]["jobId"]
    assert "silent from 9 s [audio.damaged]" in cli("jobs", "show", job_id).out
    answer = json.loads(cli("jobs", "show", job_id, "--json").out)
    assert [(warning["code"], warning["message"][-3:]) for warning in answer["warnings"]] == [
        ("audio.damaged", "3 s"),
        ("audio.damaged", "9 s"),
    ]


def test_a_song_that_is_too_long_is_not_rendered(cli: CommandLine, song: Path) -> None:
    """The error names the option that allows it."""
    ran = cli("render", song, *SMALL, "--max-duration", "0.5")
    assert ran.status == 1
    assert "longer than 0.5 s" in ran.err
    assert "--max-duration" in ran.err
    assert ran.err.endswith("[audio.too-long]\n")
    assert cli("render", song, *SMALL, "--max-duration", "nan").status == 2


def test_verbose_logs_to_stderr(cli: CommandLine, song: Path) -> None:
    """``-vv`` shows what the library does; stdout stays the answer."""
    ran = cli("render", song, *SMALL, "--scene", "broken", "-vv")
    assert "ZeroDivisionError" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(("scene", "kept"), [("bars", ["result.json", "video.mp4"]), ("broken", [])])
def test_the_copy_of_the_song_does_not_stay(cli: CommandLine, song: Path, scene: str, kept: list[str]) -> None:
    """The home keeps the record, and the video where there is one."""
    cli("render", song, *SMALL, "--scene", scene)
    objects = cli.home / "objects" / "jobs" / cli.jobs()[0]["jobId"]
    assert sorted(path.name for path in objects.rglob("*") if path.is_file()) == kept


def test_a_render_goes_before_what_was_left_in_the_queue(cli: CommandLine, song: Path) -> None:
    """Somebody waits for it; what a killed process left is rendered by a worker."""
    left = cli.start("render", song, "--scene", "slow", "-o", "left.mp4")
    cli.wait_for(stage="rendering")
    left.kill()
    left.communicate()
    ran = cli("render", song, *SMALL, "-o", "now.mp4")
    assert ran.status == 0
    assert [(job["scene"], job["status"]) for job in cli.jobs()] == [("bars", "complete"), ("slow", "processing")]


def test_demo_composes_and_renders(cli: CommandLine) -> None:
    """Nothing is needed, not even a song."""
    ran = cli("demo", "--seconds", "1", "--size", "64x64")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("demo.mp4: 64x64, 30 fps, 30 frames, 1.0 s of music in ")


def test_a_terminal_sees_a_progress_bar(cli: CommandLine, song: Path) -> None:
    """Stage, percent, frames a second and time left are drawn while it renders, and the bar is gone at the end."""
    ours, theirs = pty.openpty()
    environment = {**cli.environment, "TERM": "xterm", "COLUMNS": "140"}
    command = [*COMMAND, "render", str(write_song(cli.folder / "long.wav", seconds=60)), "--size", "640x360"]
    process = subprocess.Popen(command, cwd=cli.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = read_terminal(ours)
    assert process.wait(60) == 0
    assert "rendering" in drawn
    assert " %" in drawn
    assert "frames, " in drawn
    assert "/s, " in drawn
    assert " left" in drawn
    assert drawn.endswith(" s\r\n")


def test_no_control_characters_where_there_is_no_terminal(cli: CommandLine, song: Path) -> None:
    """A log file gets plain lines."""
    ran = cli("render", song, *SMALL)
    assert "\x1b" not in ran.out + ran.err
    assert "\r" not in ran.out + ran.err


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["render", "--help"], ["jobs", "--help"], []])
def test_help_is_on_stdout(cli: CommandLine, arguments: list[str]) -> None:
    """Help and version end with status 0."""
    ran = cli(*arguments)
    assert (ran.status, ran.err) == (0, "")
    assert "renderdispatch" in ran.out


def test_the_console_script_is_the_same(cli: CommandLine) -> None:
    """``renderdispatch`` and ``python -m renderdispatch.cli`` are one."""
    script = Path(sys.executable).with_name("renderdispatch")
    said = subprocess.run([script, "--version"], check=True, capture_output=True, text=True, env=cli.environment)
    assert said.stdout == cli("--version").out


def test_a_reader_that_had_enough_is_no_error(cli: CommandLine) -> None:
    """``renderdispatch scenes | head -0`` ends in silence."""
    read, write = os.pipe()
    os.close(read)
    process = cli.start("scenes", stdout=write)
    os.close(write)
    assert process.communicate(timeout=30)[1] == ""


def test_help_imports_no_command(cli: CommandLine) -> None:
    """The help of the whole command line comes from a table; it costs little more than click."""
    code = "import sys; from renderdispatch.cli.app import run; run(['--help']); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {*ran.stdout.splitlines()[-1].split()}
    others = {"pydantic", "rich", "attr", "importlib.metadata", "logging", "renderdispatch.wiring"}
    assert not loaded & others
    assert {name for name in loaded if name.startswith("renderdispatch.cli.")} == {
        "renderdispatch.cli.app",
        "renderdispatch.cli.interrupts",
        "renderdispatch.cli.streams",
    }


def test_the_table_of_commands_is_true() -> None:
    """Each name is that of a command, and each line is the first one of its help."""
    context = app.cli.make_context("renderdispatch", [], resilient_parsing=True)
    for name, (_, summary) in app.COMMANDS.items():
        _, command, _ = app.cli.resolve_command(context, [name])
        assert command is not None
        assert (command.name, command.get_short_help_str(limit=200)) == (name, summary)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("renderdispatch jo", "jobs"),
        ("renderdispatch jobs wa", "watch"),
        ("renderdispatch preview --scene rad", "radial"),
        ("renderdispatch render --preset flat-7", "flat-720p-landscape"),
    ],
)
def test_shells_complete_commands(cli: CommandLine, words: str, found: str) -> None:
    """The names of commands and of commands of commands, of scenes, which may be files too, and of presets."""
    position = str(len(words.split()) - 1)
    asked = {"_RENDERDISPATCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
    script = Path(sys.executable).with_name("renderdispatch")
    ran = subprocess.run([script], check=True, capture_output=True, text=True, env={**cli.environment, **asked})
    own = f"file,{words.rsplit(maxsplit=1)[-1]}\n" if "--scene" in words else ""  # bash lists files by itself
    assert ran.stdout == f"{own}plain,{found}\n"


@pytest.mark.parametrize(("missing", "arguments"), [("click", ["--version"]), ("rich", ["scenes"])])
def test_a_missing_extra_is_named(cli: CommandLine, missing: str, arguments: list[str]) -> None:
    """Where click or rich are not installed, one line says what to install."""
    (cli.plugins / "sitecustomize.py").write_text(f"import sys\nsys.modules[{missing!r}] = None\n")
    ran = cli(*arguments)
    assert ran.status == 2
    assert "pip install 'renderdispatch[cli]'" in ran.said_one_error()


def test_a_broken_installation_is_said_in_one_line(cli: CommandLine) -> None:
    """Whatever a library raises while it loads."""
    (cli.plugins / "sqlalchemy.py").write_text("raise RuntimeError('half of it is missing')\n")
    ran = cli("jobs", "list")
    assert ran.status == 1
    assert "half of it is missing" in ran.said_one_error()

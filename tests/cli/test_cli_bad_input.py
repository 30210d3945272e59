"""What cannot be rendered is said in one line, with an exit status, and recorded with a stable code."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import SMALL, CommandLine, as_an_ordinary_user, write_song
from tests.support.needs import names_near_commands, need_ffmpeg

REFUSED = {
    "an empty file": (["empty.wav"], "audio.empty"),
    "a directory": (["a-folder"], "audio.directory"),
    "no permission": (["locked.wav"], "audio.denied"),
    "a missing file": (["missing.wav"], "audio.missing"),
    "no seconds": (["song.wav", "--duration", "0"], "request.invalid"),
    "nan seconds": (["song.wav", "--duration", "nan"], "request.invalid"),
    "a negative start": (["song.wav", "--start", "-1"], "request.invalid"),
    "an odd width": (["song.wav", "--size", "65x64"], "request.invalid"),
    "an odd height": (["song.wav", "--size", "64x65"], "request.invalid"),
    "no frames a second": (["song.wav", "--fps", "0"], "request.invalid"),
    "nan frames a second": (["song.wav", "--fps", "nan"], "request.invalid"),
    "more frames a second than can be written out": (["song.wav", "--fps", "1e99999999"], "request.invalid"),
    "an unknown scene": (["song.wav", "--scene", "bats"], "scene.unknown"),
    "an unknown preset": (["song.wav", "--preset", "flat-1080p-landscap"], "preset.unknown"),
    "an unknown backend": (["song.wav", "--backend", "locale"], "backend.unknown"),
    "an unknown parameter": (["song.wav", "--set", "barz=3"], "param.unknown"),
    "a bad parameter": (["song.wav", "--set", "bars=lots"], "param.invalid"),
    "no GPU": (["song.wav", "--require-gpu"], "gpu.unavailable"),
    "an output that exists": (["song.wav", "-o", "there.mp4"], "output.exists"),
    "an output that is a directory": (["song.wav", "-o", "a-folder"], "output.directory"),
    "an output that is the song": (["song.wav", "-o", "song.wav", "--force"], "output.exists"),
    "an output in a locked folder": (["song.wav", "-o", "locked/out.mp4"], "output.denied"),
    "an output in a folder that nobody may enter": (["song.wav", "-o", "closed/out.mp4"], "output.denied"),
    "an output that would hold something else": (["song.wav", "-o", "out.WebM"], "output.kind"),
    "an output in a file": (["song.wav", "-o", "there.mp4/out.mp4"], "output.denied"),
    "a song that is a named pipe": (["pipe", "-o", "out.mp4"], "audio.invalid"),
    "an output whose name is too long": (["song.wav", "-o", f"{'a' * 300}.mp4"], "output.denied"),
}

FAILED = {
    "not audio": (["text.wav"], "audio.undecodable"),
    "a truncated header": (["header.wav"], "audio.undecodable"),
    "a truncated m4a": (["cut.m4a"], "audio.undecodable"),
    "no samples": (["no-samples.wav"], "audio.empty"),
    "a start past the end": (["song.wav", "--start", "99"], "audio.range"),
    "less than a sample": (["song.wav", "--duration", "1e-9"], "audio.too-short"),
    "a broken scene": (["song.wav", "--scene", "broken"], "scene.failed"),
}

NEAR = {
    "scene": (["--scene", "bats"], "did you mean 'bars'"),
    "preset": (["--preset", "flat-1080p-landscap"], "did you mean 'flat-1080p-landscape'"),
    "backend": (["--backend", "locale"], "did you mean 'local'"),
    "parameter": (["--set", "barz=3"], "did you mean 'bars'"),
}

MISUSED = {
    "no song": ["render"],
    "an unknown command": ["rendr", "song.wav"],
    "an unknown option": ["render", "song.wav", "--colour", "red"],
    "a size without a height": ["render", "song.wav", "--size", "640"],
    "an unknown encoder": ["render", "song.wav", "--encoder", "hevc"],
    "a parameter without a value": ["render", "song.wav", "--set", "bars"],
    "a start that is no number": ["render", "song.wav", "--start", "soon"],
    "nothing to remove": ["jobs", "rm"],
    "jobs and an age": ["jobs", "rm", "abc", "--older-than", "7d"],
    "an age that is none": ["jobs", "rm", "--older-than", "long"],
    "an unknown job": ["jobs", "show", "abc"],
    "an unknown status": ["jobs", "list", "--status", "done"],
    "an id that is no text": ["jobs", "show", os.fsdecode(b"\xff")],
    "a length that is no number": ["demo", "--seconds", "nan"],
    "a seed below zero": ["demo", "--seed", "-1"],
    "an age before all dates": ["jobs", "rm", "--older-than", "999999w"],
    "a size of endless digits": ["render", "song.wav", "--size", f"{'9' * 5000}x64"],
    "a parameter of endless depth": ["render", "song.wav", "--set", f"bars={'[' * 5000}{']' * 5000}"],
}


@pytest.fixture
def files(cli: CommandLine) -> Path:
    """A folder with everything that the tables name."""
    folder = cli.folder
    whole = write_song(folder / "song.wav", seconds=2).read_bytes()
    (folder / "text.wav").write_text("this is no sound\n" * 100)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "header.wav").write_bytes(whole[:30])
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    write_song(folder / "silent.wav", seconds=2, loudness=0)
    write_song(folder / "no-samples.wav", seconds=0)
    (folder / "a-folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "there.mp4").write_bytes(b"mine")
    (folder / "locked.wav").write_bytes(whole)
    (folder / "locked.wav").chmod(0)
    (folder / "locked").mkdir(mode=0o500)
    (folder / "closed").mkdir(mode=0)
    return folder


def _make_device(path: Path) -> None:
    """Make another ``/dev/null``; only root can."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device can be made: needs root")


def _cut_m4a(folder: Path) -> None:
    need_ffmpeg()
    whole = folder / "whole.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(folder / "song.wav"), str(whole)], check=True)
    (folder / "cut.m4a").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


@pytest.mark.parametrize(("arguments", "code"), REFUSED.values(), ids=list(REFUSED))
def test_what_can_never_be_rendered_is_refused(cli: CommandLine, files: Path, arguments: list[str], code: str) -> None:
    """One line, status 2, and neither a job nor a file."""
    before = {path.name for path in files.iterdir()}
    picture = [] if "--size" in arguments or "--fps" in arguments else SMALL
    ran = cli("render", *arguments, *picture, "--json", preexec_fn=as_an_ordinary_user())
    assert ran.status == 2
    assert ran.said_one_error().endswith(f" [{code}]")
    assert json.loads(ran.out)["error"]["code"] == code
    assert {path.name for path in files.iterdir()} == before
    assert (files / "there.mp4").read_bytes() == b"mine"
    assert not cli.home.exists() or cli.jobs() == []


@pytest.mark.parametrize(("arguments", "code"), FAILED.values(), ids=list(FAILED))
def test_what_turns_out_to_be_unusable_fails_the_job(
    cli: CommandLine, files: Path, arguments: list[str], code: str
) -> None:
    """One line, status 1, no file, and a job that says the same."""
    if "cut.m4a" in arguments:
        _cut_m4a(files)
    ran = cli("render", *arguments, *SMALL, "-o", "out.mp4", "--json")
    assert ran.status == 1
    assert ran.said_one_error().endswith(f" [{code}]")
    answer = json.loads(ran.out)
    assert (answer["status"], answer["error"]["code"]) == ("failed", code)
    assert not (files / "out.mp4").exists()
    (job,) = cli.jobs()
    assert (job["jobId"], job["status"], job["error"]["code"]) == (answer["jobId"], "failed", code)


@pytest.mark.parametrize("song", ["cut.wav", "silent.wav"])
def test_what_can_be_heard_is_rendered(cli: CommandLine, files: Path, song: str) -> None:
    """A truncated song is rendered as far as it goes, with a warning, and silence is a song."""
    ran = cli("render", song, *SMALL, "-o", "out.mp4")
    assert ran.status == 0
    assert ran.err.endswith(" [audio.truncated]\n") if song == "cut.wav" else ran.err == ""
    assert (files / "out.mp4").stat().st_size > 0


@pytest.mark.parametrize(("arguments", "hint"), NEAR.values(), ids=list(NEAR))
def test_near_matches_are_named(cli: CommandLine, song: Path, arguments: list[str], hint: str) -> None:
    """Whoever mistypes a name is told the one that was meant."""
    assert hint in cli("render", song, *arguments).said_one_error()


@names_near_commands
def test_the_near_command_is_named(cli: CommandLine) -> None:
    """Whoever mistypes a command is told the one that was meant."""
    assert "Did you mean 'render'" in cli("rendr").said_one_error()


@pytest.mark.parametrize("arguments", MISUSED.values(), ids=list(MISUSED))
def test_misuse_is_said_in_one_line(cli: CommandLine, song: Path, arguments: list[str]) -> None:
    """Status 2, and one line that says what was wrong."""
    ran = cli(*arguments)
    assert ran.status == 2
    assert "this is a bug" not in ran.said_one_error()
    assert ran.out == ""


@pytest.mark.parametrize("make", [os.mkfifo, _make_device], ids=["pipe", "device"])
def test_force_takes_the_place_of_files_alone(cli: CommandLine, made: str, make: Callable[[Path], None]) -> None:
    """A pipe or a device is refused with ``--force`` too, by every command, and still stands afterwards."""
    there = cli.folder / "there"
    make(there)
    before = there.lstat()
    for command in (["render", "song.wav", *SMALL], ["demo", "--seconds", "1", *SMALL], ["jobs", "save", made]):
        ran = cli(*command, "-o", "there", "--force")
        assert ran.status == 2
        assert ran.said_one_error().endswith(" [output.denied]")
        assert there.lstat() == before


def test_a_renderer_that_dies_is_tried_again_and_then_fails(cli: CommandLine, song: Path) -> None:
    """A crash may be the machine's fault: the job has three attempts, and then says how the process ended."""
    ran = cli("render", song, "--scene", "crashing", *SMALL)
    assert ran.status == 1
    assert ran.said_one_error().endswith("the render process exited with status 3 [renderer.died]")
    assert cli.jobs()[0]["attempt"] == 3


def test_a_full_disk_under_the_home_fails_the_job(cli: CommandLine, small_disk: Path) -> None:
    """The job fails as ``disk.full``, and nothing is written to the output."""
    song = write_song(cli.folder / "big.wav", seconds=160)
    ran = CommandLine(cli.folder, small_disk / "home", cli.plugins)("render", song, *SMALL)
    assert ran.status == 1
    assert ran.said_one_error().endswith(" [disk.full]")
    assert not (cli.folder / "big.mp4").exists()


def test_a_full_disk_under_the_output_is_met_at_once(cli: CommandLine, song: Path, small_disk: Path) -> None:
    """Where not even one byte can be written, nothing is rendered."""
    (small_disk / "filler").write_bytes(b"x" * (2 << 20))
    ran = cli("render", song, *SMALL, "-o", small_disk / "out.mp4")
    assert ran.status == 2
    assert ran.said_one_error().endswith(" [output.full]")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_full_disk_under_the_output_keeps_the_video(cli: CommandLine, song: Path, small_disk: Path) -> None:
    """No half file is left, and the finished video can be saved elsewhere."""
    free = small_disk / "filler"
    free.write_bytes(b"x" * ((2 << 20) - 8192))  # a few bytes can be written, and so the render begins
    ran = cli("render", song, *SMALL, "-o", small_disk / "out.mp4")
    assert ran.status == 1
    error = ran.said_one_error()
    assert error.endswith(" [storage.full]")
    assert "jobs save" in error
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    (job,) = cli.jobs()
    assert cli("jobs", "save", job["jobId"], "-o", "elsewhere.mp4").status == 0
    assert (cli.folder / "elsewhere.mp4").stat().st_size > 0


def test_settings_that_make_no_sense_are_named(cli: CommandLine, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which variable is wrong."""
    monkeypatch.setattr(CommandLine, "environment", {**cli.environment, "RENDERDISPATCH_LEASE_S": "soon"})
    for command in (["render", song], ["jobs"], ["worker"]):
        ran = cli(*command)
        assert ran.status == 2
        assert "lease_s" in ran.said_one_error()


def test_a_home_that_cannot_be_made_is_said(cli: CommandLine, song: Path) -> None:
    """A file where the home should be is an error of one line."""
    cli.home.write_text("a file")
    ran = cli("render", song)
    assert ran.status == 2
    assert "set RENDERDISPATCH_HOME" in ran.said_one_error()


@pytest.mark.parametrize("command", [["render", "song.wav"], ["jobs"], ["worker", "-q"]])
def test_a_store_that_cannot_be_used_ends_the_command(cli: CommandLine, song: Path, command: list[str]) -> None:
    """Nobody waits for a job store that stays as it is."""
    (cli.home / "jobs.db").mkdir(parents=True)
    ran = cli(*command)
    assert ran.status == 2
    assert ran.said_one_error().endswith(" [store.unusable]")


def test_a_misspelt_setting_is_named(cli: CommandLine, song: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rendered elsewhere than was meant."""
    monkeypatch.setattr(CommandLine, "environment", {**cli.environment, "RENDERDISPATCH_BAKENDS": "modal"})
    ran = cli("render", song)
    assert ran.status == 2
    assert "did you mean RENDERDISPATCH_BACKENDS?" in ran.said_one_error()


def test_rendering_without_its_extra_is_refused_at_once(cli: CommandLine, song: Path) -> None:
    """One line says what to install, and no job is recorded; jobs can be listed all the same."""
    (cli.plugins / "sitecustomize.py").write_text("import sys\nsys.modules['av'] = None\n")
    ran = cli("render", song)
    assert ran.status == 2
    assert "pip install 'renderdispatch[render]'" in ran.said_one_error()
    assert cli("jobs").err == "no jobs\n"

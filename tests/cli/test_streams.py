"""Pipes, closed streams and full disks: what goes in and out of a command, and what cannot."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from renderdispatch.engine.views import check_video_name
from renderdispatch.errors import InvalidRequestError
from renderdispatch.testing import eventually
from tests.support.command_line import COMMAND, SMALL, CommandLine, Ran

RENDER = f"render {' '.join(SMALL)}"


def shell(cli: CommandLine, script: str, **environment: str) -> Ran:
    """Run a shell script in which ``$RD`` is the command line."""
    variables = {**cli.environment, "RD": shlex.join(COMMAND), **environment}
    ran = subprocess.run(["bash", "-c", script], check=False, cwd=cli.folder, env=variables, capture_output=True)
    return Ran(ran.returncode, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace"))


def is_video(path: Path) -> bool:
    return path.read_bytes()[4:8] == b"ftyp"


# --- pipes ----------------------------------------------------------------------------------------


def test_from_stdin_to_stdout(cli: CommandLine, song: Path) -> None:
    """The video alone is on stdout; a script reads the result on stderr."""
    ran = shell(cli, f"cat song.wav | $RD {RENDER} - -o - --json > out.mp4")
    assert ran.status == 0, ran.err
    answer = json.loads(ran.err)
    assert (answer["status"], answer["output"]) == ("complete", "-")
    assert (cli.folder / "out.mp4").stat().st_size == answer["artifact"]["bytes"]
    assert is_video(cli.folder / "out.mp4")
    assert not (cli.folder / "-").exists()


def test_a_redirection_is_read_by_the_one_who_has_it(cli: CommandLine, song: Path) -> None:
    """Another process of this home would read its own stdin, so the song is stored at submit."""
    ran = shell(cli, f"$RD {RENDER} /dev/stdin -o out.mp4 < song.wav")
    assert ran.status == 0, ran.err
    assert cli.jobs()[0]["audio"].startswith("jobs/")
    assert is_video(cli.folder / "out.mp4")


def test_a_saved_video_on_stdout(cli: CommandLine, made: str) -> None:
    """``jobs save`` writes to stdout too, and prints nothing else there."""
    ran = shell(cli, f"$RD jobs save {made} -o - > saved.mp4 && $RD jobs save {made} -o - | head -c 4 | wc -c")
    assert is_video(cli.folder / "saved.mp4")
    assert ran.out.strip() == "4"
    assert (cli.folder / "saved.mp4").stat().st_size == cli.jobs()[0]["artifact"]["bytes"]


def test_a_file_named_dash_can_be_named(cli: CommandLine, song: Path) -> None:
    """``./-`` is a file."""
    song.rename(cli.folder / "-")
    ran = shell(cli, f"$RD {RENDER} ./- -o ./-.mp4 < /dev/null")
    assert ran.status == 0, ran.err
    assert is_video(cli.folder / "-.mp4")


# root without its privileges
UNREADABLE = (
    """: > ../o.mp4; chmod 0 ../o.mp4; [ $(id -u) = 0 ] && less="setpriv --bounding-set -all --inh-caps -all" """
)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("$RD render - < song.wav", "name the output with -o"),
        ("$RD render - -o out.mp4 < /dev/null", "the audio is empty [audio.empty]"),
        ("$RD render - -o out.mp4 <&-", "the audio is empty [audio.empty]"),
        ("$RD render song.wav -o - >&-", "stdout is closed; name a file with -o [output.denied]"),
        ("$RD render song.wav -o - 1< song.wav", "stdout is open for reading alone; name a file with -o"),
        ("$RD render - -o song.wav -f < song.wav", "is the song itself"),
        ("$RD render song.wav -o - >> song.wav", "stdout is the song itself; name another file with -o"),
        ("$RD render song.wav -o videos/", "videos/ is a directory; name a file [output.directory]"),
        ("ln -s no/folder ../link.mp4; $RD render song.wav -o ../link.mp4", "to nothing; --force replaces it"),
        (
            f"{UNREADABLE}; $less $RD render song.wav -o ../o.mp4",
            "../o.mp4 exists; --force replaces it [output.exists]",
        ),
        ("mkdir gone; cd gone; rmdir ../gone; $RD render ../folder/song.wav", "working directory is gone"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused(cli: CommandLine, song: Path, script: str, said: str) -> None:
    """One line says what to do, and nothing is recorded."""
    ran = shell(cli, script)
    assert ran.status == 2
    assert said in ran.said_one_error()
    assert [path.name for path in cli.folder.iterdir()] == ["song.wav"]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["-", "-o", "o.mp4"], "- is a"), (["song.wav", "-o", "-"], "stdout is a")]
)
def test_a_terminal_is_neither_song_nor_video(cli: CommandLine, song: Path, arguments: list[str], said: str) -> None:
    """People who forgot a redirection are told, rather than waited for."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "render", *arguments]
    with subprocess.Popen(
        command, cwd=cli.folder, env=cli.environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True
    ) as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"{said} terminal; name a file" in error
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_without_columns(cli: CommandLine, columns: str) -> None:
    """Tables are printed however narrow a terminal says that it is."""
    ours, theirs = pty.openpty()
    environment = {**cli.environment, "TERM": "xterm", "COLUMNS": columns}
    subprocess.run([*COMMAND, "scenes"], env=environment, stdout=theirs, check=True, timeout=30)
    os.close(theirs)
    assert b"A spectrum of glowing" in os.read(ours, 4096)
    os.close(ours)


def test_ctrl_c_ends_the_reading_of_a_pipe(cli: CommandLine) -> None:
    """A writer that sends nothing holds nobody, and nothing is recorded."""
    read, write = os.pipe()
    process = cli.start("render", "-", "-o", "out.mp4", *SMALL, stdin=read)
    os.write(write, b"RIFF")
    try:
        eventually(lambda: list(cli.home.rglob(".renderdispatch-tmp-*")))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        os.close(read)
        os.close(write)
    assert process.returncode == 130
    assert cli.jobs() == []
    assert list(cli.home.rglob(".renderdispatch-tmp-*")) == []


def test_a_reader_that_leaves_gets_a_word_on_where_the_video_is(cli: CommandLine, made: str) -> None:
    """The video was not written, so this is no success; nothing is lost."""
    read, write = os.pipe()
    os.close(read)
    process = cli.start("render", "song.wav", *SMALL, "-o", "-", stdout=write)
    os.close(write)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "the video is kept: renderdispatch jobs save " in error


@pytest.mark.parametrize("name", ["o.webm", "o.MKV", "o.gif", "o.mp3", "o.avi", "o.mov", "o.wav", "o.png", "o.ogg"])
def test_names_of_other_kinds(name: str) -> None:
    """A name that says something else than what the file would hold is refused, with one that can be had."""
    with pytest.raises(InvalidRequestError, match=r"name it o\.mp4$") as refused:
        check_video_name(Path("some") / name)
    assert refused.value.code == "output.kind"


@pytest.mark.parametrize("name", ["o.mp4", "o.MP4", "o.m4v", "o", "o.part", "song.v2", "2024.11.28", ".mp4", "webm"])
def test_names_that_say_nothing_else(name: str) -> None:
    """MP4 by its name, or by no name."""
    check_video_name(Path(name))


# --- streams that are closed or full --------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "> /dev/full 2> /dev/full", "--json > /dev/full"])
def test_a_render_succeeds_whatever_can_be_printed(cli: CommandLine, song: Path, redirection: str) -> None:
    """Daemons close streams, and disks under logs are full: the video is what counts."""
    ran = shell(cli, f"$RD {RENDER} song.wav {redirection}")
    assert ran.status == 0
    assert is_video(cli.folder / "song.mp4")
    warning = "renderdispatch: warning: stdout cannot be written: No space left on device\n"
    assert ran.err == ("" if "2>" in redirection else warning)


def test_a_terminal_that_is_gone_ends_nothing(cli: CommandLine, song: Path) -> None:
    """After ``nohup`` or ``disown`` a render goes on, also where its progress bar was drawn."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, *shlex.split(RENDER), "song.wav"]
    with subprocess.Popen(
        ["bash", "-c", f"trap '' HUP; exec {shlex.join(command)}"],
        cwd=cli.folder,
        env={**cli.environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        os.read(ours, 10)
        os.close(ours)
        assert process.wait(60) == 0
    assert is_video(cli.folder / "song.mp4")


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("$RD scenes > /dev/full", 1),
        ("$RD scenes --json > /dev/full", 1),
        ("$RD --help > /dev/full", 1),
        ("$RD jobs show nothing --json > /dev/full", 2),
        ("$RD jobs show nothing 2> /dev/full", 2),
        ("$RD jobs list 2>&-", 0),
        ("$RD render missing.wav <&- >&- 2>&-", 2),
    ],
)
def test_a_status_is_that_of_the_work(cli: CommandLine, script: str, status: int) -> None:
    """Commands whose work is to print fail if they cannot; the status of others is their own. Nobody sees a traceback."""
    ran = shell(cli, script)
    assert ran.status == status
    assert "Traceback" not in ran.err
    assert "bug" not in ran.err
    assert "Exception" not in ran.err


def test_removing_jobs_succeeds_without_a_word(cli: CommandLine, made: str) -> None:
    """What was done is done, also where nobody reads of it."""
    assert shell(cli, f"$RD jobs rm {made} > /dev/full").status == 0
    assert cli.jobs() == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_stdout_cannot_show(cli: CommandLine, song: Path, encoding: str) -> None:
    """They are escaped, for people and for scripts."""
    song.rename(cli.folder / "☃🎵.wav")
    ran = shell(cli, "$RD render ☃🎵.wav --size 65x64; $RD jobs show ☃ --json", PYTHONIOENCODING=encoding)
    assert ran.status == 2
    assert "Traceback" not in ran.err
    assert "☃" in json.loads(ran.out)["error"]["message"]

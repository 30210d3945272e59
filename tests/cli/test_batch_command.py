"""``render --batch``: many songs in one command, which goes on where an earlier run stopped."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import JobStatus, Limits, Output, Submission, local
from renderdispatch.cli.batch_rows import read_rows
from renderdispatch.cli.manifest import NAME
from renderdispatch.testing import eventually
from tests.support.command_line import COMMAND, SCENE_FILE, SMALL, CommandLine, Ran, read_terminal, write_song


@pytest.fixture
def songs(cli: CommandLine) -> Path:
    """A folder with two songs, and a file that is none."""
    folder = cli.folder / "songs"
    folder.mkdir()
    for name in ("one", "two"):
        write_song(folder / f"{name}.wav", seconds=0.5)
    (folder / "notes.txt").write_text("not a song")
    return folder


def _rows(cli: CommandLine, *rows: dict[str, Any] | str) -> Path:
    path = cli.folder / "songs" / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def _manifest(cli: CommandLine) -> dict[str, dict[str, Any]]:
    head, *lines = map(json.loads, (cli.folder / "videos" / NAME).read_text().splitlines())
    assert head["version"] == 1
    return {line["file"]: line for line in lines}


def _render(cli: CommandLine, source: Path, *options: str) -> Ran:
    return cli("render", "--batch", source, "-o", "videos", *SMALL, *options)


def _videos(cli: CommandLine) -> list[str]:
    return sorted(path.name for path in (cli.folder / "videos").iterdir() if path.name != NAME)


def test_a_folder_of_songs_becomes_a_folder_of_videos(cli: CommandLine, songs: Path) -> None:
    """Each song has a video of its name; the manifest says which job made it, and of what."""
    ran = _render(cli, songs)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("videos: 2 of 2 videos (2 rendered) in ")
    assert _videos(cli) == ["one.mp4", "two.mp4"]
    jobs = {job["jobId"]: job for job in cli.jobs()}
    for name, line in _manifest(cli).items():
        assert line["status"] == "complete"
        assert Path(jobs[line["jobId"]]["audio"]).stem == Path(name).stem
        assert len(line["digest"]) == 64


def test_a_second_run_does_what_is_missing_alone(cli: CommandLine, songs: Path) -> None:
    """What is there is left out; a song that changed or is new is rendered; a video that was removed is written again."""
    assert _render(cli, songs).status == 0
    before = _manifest(cli)
    ran = _render(cli, songs)
    assert ran.out.startswith("videos: 2 of 2 videos (2 there already)")
    write_song(songs / "one.wav", seconds=1)
    write_song(songs / "three.wav", seconds=0.5)
    (cli.folder / "videos" / "two.mp4").unlink()
    ran = _render(cli, songs)
    assert ran.out.startswith("videos: 3 of 3 videos (3 rendered)")
    after = _manifest(cli)
    assert after["one.mp4"]["jobId"] != before["one.mp4"]["jobId"]
    assert after["two.mp4"]["jobId"] == before["two.mp4"]["jobId"]  # its video was still stored
    assert len(cli.jobs()) == 4
    assert _videos(cli) == ["one.mp4", "three.mp4", "two.mp4"]


def test_rows_say_what_the_options_do_not(cli: CommandLine, songs: Path) -> None:
    """A line has the names of `submit`; paths are relative to the file; what it leaves out is as the options say."""
    rows = _rows(
        cli,
        {"audio": "one.wav", "scene": "wave", "params": {"gain": 2}, "title": "One", "file": "first"},
        "",
        {"audio": "one.wav", "output": {"width": 96, "height": 64, "fps": 5}, "duration": "0:00.2"},
    )
    ran = _render(cli, rows, "--title", "Untitled", "--json")
    assert ran.status == 0
    *lines, total = map(json.loads, ran.out.splitlines())
    assert {line["file"]: line["row"] for line in lines} == {"first.mp4": "line 1", "one.mp4": "line 3"}
    assert total == {**total, "rows": 2, "complete": 2, "rendered": 2, "failed": 0}
    with local(cli.home, worker=False) as service:
        made = {line["file"]: service.get(line["jobId"]) for line in lines}
        batch = service.batch(total["batch"])
        assert batch.counts()[JobStatus.COMPLETE] == 2
    first, second = made["first.mp4"].request, made["one.mp4"].request
    assert (first.scene, first.params["gain"], first.title, first.output.width) == ("wave", 2, "One", 64)
    assert (second.scene, second.title, second.output.width, second.duration) == ("bars", "Untitled", 96, 0.2)


def test_all_wrong_rows_are_named_before_anything_is_rendered(cli: CommandLine, songs: Path) -> None:
    """Each wrong line has its own message, with its number; nothing is recorded or written."""
    rows = _rows(
        cli,
        {"audio": "one.wav"},
        {"audio": "missing.wav"},
        "{not json",
        {"audio": "two.wav", "scena": "bars"},
        {"audio": "two.wav", "scene": "no-such-scene"},
        {"scene": "bars"},
        ["one.wav"],  # type: ignore[arg-type]  # not an object
        {"audio": "two.wav", "file": "../two"},
        {"audio": "two.wav", "file": "ONE.mp4"},
        {"audio": "two.wav", "start": "soon"},
        {"audio": "two.wav", "scene": "mine.py:Scene"},
        {"audio": "two.wav", "file": "a", "output": {"widht": 64}},
        {"audio": "two.wav", "file": "b", "limits": {"max_atempts": 1}},
        {"audio": "two.wav", "file": "c", "output": {"self": 1}},
        {"audio": "two.wav", "file": "\ud800"},
        {"audio": "two.wav", "file": NAME.upper()},
        {"audio": "https://example.com/song.mp3"},
    )
    ran = _render(cli, rows)
    assert ran.status == 2
    *lines, last = ran.err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [f"line {n}" for n in range(2, 18)]
    said = dict(enumerate(lines, 2))
    assert "did you mean 'scene'" in said[4]
    assert "file: the name of the video" in said[8]
    assert said[9].endswith("its video would be ONE.mp4, as that of line 1; give it a name of its own in 'file'")
    assert "did you mean 'width'" in said[12]
    assert "did you mean 'max_attempts'" in said[13]
    assert "file: the name of the video" in said[15]
    assert "is the manifest of the folder" in said[16]
    assert "not by a URL; download it first" in said[17]
    assert "16 of 17 rows are wrong, so nothing was rendered" in last
    assert cli.jobs() == []
    assert _videos(cli) == []


def test_what_an_output_leaves_out_is_as_the_options_say(cli: CommandLine, songs: Path) -> None:
    """So do limits; a preset in the row stands for all of the picture."""
    defaults = Submission(
        Path(), output=Output(width=64, height=48, fps=Fraction(5)), limits=Limits(max_duration=timedelta(minutes=1))
    )
    rows = _rows(
        cli,
        {"audio": "one.wav", "output": {"fps": 10}, "limits": {"max_attempts": 2}},
        {"audio": "two.wav", "output": {"preset": "flat-720p-landscape", "fps": 10}},
    )
    first, second = (row.submission for row in read_rows(rows, defaults, check=lambda _: None))
    assert first.output == Output(width=64, height=48, fps=Fraction(10))
    assert first.limits == Limits(max_duration=timedelta(minutes=1), max_attempts=2)
    assert second.output == Output(width=1280, height=720, fps=Fraction(10))


def test_a_file_of_another_kind_is_told_in_few_lines(cli: CommandLine, songs: Path) -> None:
    """After the first wrong rows comes only how many more there are."""
    ran = _render(cli, _rows(cli, *["nonsense"] * 25))
    assert ran.status == 2
    assert len(ran.err.splitlines()) == 22
    assert "and 5 more" in ran.err
    assert "25 of 25 rows are wrong" in ran.err


def test_posters_of_one_name_are_refused(cli: CommandLine, songs: Path) -> None:
    """Two videos that differ only in their suffix would have one poster."""
    both = [{"audio": "one.wav", "file": f"one.{suffix}", "poster": True} for suffix in ("mp4", "m4v")]
    ran = _render(cli, _rows(cli, *both))
    assert ran.status == 2
    assert "line 2: its poster would be one.jpg, as that of line 1" in ran.err


def test_songs_of_one_name_are_told_what_to_do(cli: CommandLine, songs: Path) -> None:
    """A folder has no rows in which a video could get another name."""
    write_song(songs / "one.flac", seconds=0.1)
    ran = _render(cli, songs)
    assert ran.status == 2
    assert "one.wav: its video would be one.mp4, as that of one.flac; list the songs in a file" in ran.err


def test_nothing_to_do_writes_nothing(cli: CommandLine, songs: Path) -> None:
    """So the folder of the videos may be read-only."""
    assert _render(cli, songs).status == 0
    manifest = cli.folder / "videos" / NAME
    before = manifest.stat().st_ino
    assert _render(cli, songs).out.count("2 there already") == 1
    assert manifest.stat().st_ino == before


def test_what_failed_is_said_and_tried_again_by_the_next_run(cli: CommandLine, songs: Path) -> None:
    """A failed row stops no other; the exit status is 1, and the next run renders that row alone."""
    rows = _rows(cli, {"audio": "one.wav", "scene": "broken"}, {"audio": "two.wav"})
    ran = _render(cli, rows)
    assert ran.status == 1
    assert ran.err.startswith("renderdispatch: line 1 (one.wav): ")
    assert "a scene's own mistake" in ran.err
    assert ran.out.startswith("videos: 1 of 2 videos (1 rendered, 1 failed)")
    assert _manifest(cli)["one.mp4"]["error"]["code"] == "scene.failed"
    ran = _render(cli, _rows(cli, {"audio": "one.wav"}, {"audio": "two.wav"}))
    assert ran.status == 0
    assert ran.out.startswith("videos: 2 of 2 videos (1 rendered, 1 there already)")
    assert "error" not in _manifest(cli)["one.mp4"]


def test_ctrl_c_cancels_what_runs_and_the_next_run_goes_on(cli: CommandLine, songs: Path) -> None:
    """The videos that are ready stay, the manifest knows them, and the message says how to go on."""
    slow = {"audio": "two.wav", "scene": "slow"}
    process = cli.start("render", "--batch", _rows(cli, {"audio": "one.wav"}, slow), "-o", "videos", *SMALL)
    assert eventually(lambda: _videos_or_none(cli) == ["one.mp4"])
    cli.wait_for(stage="rendering")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "renderdispatch: interrupted; the same command goes on with what is left\n"
    assert out.startswith("videos: 1 of 2 videos (1 rendered, 1 left) in ")
    assert {name: line["status"] for name, line in _manifest(cli).items()} == {
        "one.mp4": "complete",
        "two.mp4": "cancelled",
    }
    assert {job["status"] for job in cli.jobs()} == {"complete", "cancelled"}
    ran = _render(cli, _rows(cli, {"audio": "one.wav"}, {"audio": "two.wav"}))
    assert ran.out.startswith("videos: 2 of 2 videos (1 rendered, 1 there already)")


def _videos_or_none(cli: CommandLine) -> list[str] | None:
    return _videos(cli) if (cli.folder / "videos").is_dir() else None


def test_a_run_that_was_killed_is_taken_over(cli: CommandLine, songs: Path) -> None:
    """After SIGKILL, the next run follows the jobs that are recorded: none is submitted twice."""
    source: list[str | Path] = ["render", "--batch", songs, "-o", "videos", "--size", "64x64", "--fps", "200"]
    process = cli.start(*source)
    cli.wait_for(stage="queued")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    ran = cli(*source)
    assert (ran.status, _videos(cli)) == (0, ["one.mp4", "two.mp4"])
    assert len(cli.jobs()) == 2


def test_a_file_that_the_manifest_does_not_know_is_kept(cli: CommandLine, songs: Path) -> None:
    """Only --force replaces it."""
    (cli.folder / "videos").mkdir()
    (cli.folder / "videos" / "one.mp4").write_bytes(b"mine")
    ran = _render(cli, songs)
    first, last = ran.err.splitlines()
    assert ran.status == 2
    assert first == "renderdispatch: one.wav: videos/one.mp4 exists; --force replaces it [output.exists]"
    assert "1 of 2 rows is wrong, so nothing was rendered" in last
    assert cli.jobs() == []
    assert _render(cli, songs, "--force").status == 0


def test_so_many_render_at_once_as_jobs_says(cli: CommandLine, songs: Path) -> None:
    """With --jobs 2, two songs render at once on this machine; a second command for the same folder is refused."""
    source: list[str | Path] = ["render", "--batch", songs, "-o", "videos", "--scene", "slow", "--jobs", "2"]
    process = cli.start(*source)
    assert eventually(lambda: [job["stage"] for job in cli.jobs()] == ["rendering"] * 2)
    other = cli(*source)
    assert other.status == 2
    assert "another command renders a batch to videos" in other.err
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert [job["status"] for job in cli.jobs()] == ["cancelled"] * 2


def test_a_terminal_sees_how_far_the_batch_is(cli: CommandLine, songs: Path) -> None:
    """How many are done, the time left, and what renders now are drawn, and are gone at the end."""
    ours, theirs = pty.openpty()
    environment = {**cli.environment, "TERM": "xterm", "COLUMNS": "140"}
    command = [*COMMAND, "render", "--batch", str(songs), "-o", "videos", "--size", "64x64", "--fps", "200"]
    process = subprocess.Popen(command, cwd=cli.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = read_terminal(ours)
    assert process.wait(60) == 0
    assert "0 of 2" in drawn
    assert "one.mp4: " in drawn
    assert "left" in drawn
    assert drawn.endswith(" s\r\n")


def test_a_scene_in_a_python_file_draws_all_rows(cli: CommandLine, songs: Path) -> None:
    """--scene file.py:NAME is rendered here; when the file changes, its videos are rendered again."""
    (cli.folder / "neighbour.py").write_text('COLOUR = "#ff8000"\n')
    (cli.folder / "trail.py").write_text(SCENE_FILE)
    scene = ["--scene", "trail.py:Trail"]
    assert _render(cli, songs, *scene).status == 0
    assert _render(cli, songs, *scene).out.count("2 there already") == 1
    (cli.folder / "trail.py").write_text(f"{SCENE_FILE}\n# changed\n")
    assert _render(cli, songs, *scene).out.count("2 rendered") == 1


def test_the_jobs_of_a_batch_are_listed_and_cancelled(cli: CommandLine, song: Path) -> None:
    """``jobs list --batch`` shows them alone; ``jobs cancel --batch`` cancels those that have not ended."""
    with local(cli.home, worker=False) as service:
        service.submit(song)
        for _ in range(2):
            service.submit(song, batch="album")
    listed = cli("jobs", "list", "--batch", "album", "--json").out.splitlines()
    assert len(listed) == 2
    ran = cli("jobs", "cancel", "--batch", "album")
    assert (ran.status, ran.out) == (0, "batch album: cancelled 2 jobs\n")
    assert sorted(job["status"] for job in cli.jobs()) == ["cancelled", "cancelled", "pending"]
    ran = cli("jobs", "cancel", "--batch", "album", "--json")
    assert json.loads(ran.out) == {
        "batch": "album",
        "asked": 0,
        "counts": {"pending": 0, "processing": 0, "complete": 0, "failed": 0, "cancelled": 2},
    }
    job = json.loads(listed[0])
    assert job["batch"] == "album"
    assert "album" in cli("jobs", "show", job["jobId"]).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render"], "Name a SONG, or use --batch."),
        (["render", "song.wav", "--batch", "songs", "-o", "videos"], "--batch takes no SONG"),
        (["render", "--batch", "songs"], "-o FOLDER"),
        (["render", "song.wav", "--jobs", "2"], "--jobs is for --batch"),
        (["render", "--batch", "nothing", "-o", "videos"], "--batch takes a file of JSON lines, or a folder of songs"),
        (["render", "--batch", ".", "-o", "videos"], "has no songs"),
        (["render", "--batch", "songs", "-o", "song.wav"], "cannot be the folder of the videos: it is not a folder"),
        (["render", "--batch", "song.wav", "-o", "videos"], "is one song; --batch takes a file of JSON lines"),
        (["jobs", "cancel", "--batch", "abc"], "batch abc has no jobs"),
        (["jobs", "cancel"], "Name a job, or a batch"),
        (["jobs", "list", "--batch", "a/b"], "batch: an id of 1 to 64"),
    ],
)
def test_command_lines_that_make_no_sense(cli: CommandLine, songs: Path, arguments: list[str], said: str) -> None:
    """Each is refused in one line that says what to write."""
    write_song(cli.folder / "song.wav", seconds=0.1)
    if "." in arguments:
        (cli.folder / "song.wav").unlink()
    ran = cli(*arguments)
    assert ran.status == 2
    assert said in ran.said_one_error()

"""Is each way in which a program can fail a clear failure, and is nothing left of it?"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.errors import RenderError, RenderStopped, SceneError
from renderdispatch.messages import FaultDomain, RenderOrder, RenderStats
from renderdispatch.plumbing.failures import job_error
from renderdispatch.render.command import CommandRenderer
from renderdispatch.render.command.program import Printed
from renderdispatch.render.params import SceneParams
from tests.support.containers import marked

Render = Callable[..., tuple[Path, RenderStats]]
Order = Callable[..., RenderOrder]

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

HEAD = "import os, signal, subprocess, sys, time; target = sys.argv[1]\n"
WRITES = (
    HEAD
    + "with open(os.path.join(os.path.dirname(target), 'more'), 'wb') as f:\n    while True: f.write(bytes(65536)); f.flush()"
)


@pytest.fixture
def song(write_wav: Callable[..., Path], tmp_path: Path) -> Path:
    return write_wav(tmp_path / "song.wav", np.sin(np.arange(22_050) / 20))


@pytest.fixture(params=["video", "frames"])
def program(request: pytest.FixtureRequest) -> Callable[..., CommandRenderer]:
    """Return what makes a renderer of a program in Python, whose argument is where it writes."""
    place = {"video": "{output}", "frames": "{frames}"}[request.param]

    def made(code: str, **options: Any) -> CommandRenderer:
        command = [sys.executable, "-I", "-S", "-c", (HEAD + code).replace("{", "{{").replace("}", "}}"), place]
        return CommandRenderer(command, makes=request.param, **options)

    return made


Program = Callable[..., CommandRenderer]


def failure(render: Render, scene: CommandRenderer, song: Path, **order: Any) -> RenderError:
    with pytest.raises(RenderError) as failed:
        render(scene, song, **order)
    left = [path.name for path in song.parent.iterdir() if path.name.startswith(".rendering")]
    assert left == []
    return failed.value


@pytest.mark.parametrize(("status", "fault"), [(1, "scene"), (3, "audio"), (75, "infrastructure"), (255, "scene")])
def test_an_exit_status_has_a_fault(status: int, fault: str, program: Program, render: Render, song: Path) -> None:
    """The template's author says whose; the message has the last lines."""
    scene = program(
        f"print('drawing'); sys.stderr.write('no such font\\n'); sys.stderr.flush(); os._exit({status})",
        faults={3: FaultDomain.AUDIO, 75: FaultDomain.INFRASTRUCTURE},
    )
    error = failure(render, scene, song)
    assert "no such font" in str(error) and f"exited with status {status}" in str(error)
    assert (error.code, job_error(error, otherwise=FaultDomain.SCENE).fault) == ("command.failed", fault)


def test_a_killed_program_is_tried_again(program: Program, render: Render, song: Path) -> None:
    """By whom is not known: the kernel short of memory, or somebody."""
    error = failure(render, program("os.kill(os.getpid(), signal.SIGKILL)"), song)
    assert "was killed by SIGKILL" in str(error)
    assert (error.code, error.fault) == ("command.killed", "infrastructure")


def test_a_signal_may_be_the_scenes_fault(program: Program, render: Render, song: Path) -> None:
    """``128 + n`` names signal n, as shells do."""
    scene = program("os.kill(os.getpid(), signal.SIGSEGV)", faults={139: FaultDomain.SCENE})
    error = failure(render, scene, song)
    assert isinstance(error, SceneError) and "exited with status 139" in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [("\x7fELF and no more", "Exec format error"), ("#!/no/such/shell\n", "No such file or directory")],
)
def test_a_program_that_cannot_be_run(text: str, said: str, render: Render, song: Path, tmp_path: Path) -> None:
    """The message has the system's reason, and no trace of ours."""
    (tmp_path / "tool").write_text(text)
    (tmp_path / "tool").chmod(0o755)
    error = failure(render, CommandRenderer([str(tmp_path / "tool"), "{output}"], makes="video"), song)
    assert (error.code, str(error)) == (
        "command.failed",
        f"tool exited with status 126: {tmp_path}/tool cannot be run: {said}",
    )


class Text(SceneParams):
    """One text."""

    text: str = ""


def test_arguments_that_are_too_long(render: Render, song: Path) -> None:
    """They will be at each attempt."""
    scene = CommandRenderer([sys.executable, "-c", "", "{param.text}", "{output}"], makes="video", params=Text)
    error = failure(render, scene, song, params={"text": "x" * 200_000})
    assert isinstance(error, SceneError) and "cannot be started: Argument list too long" in str(error)


def test_a_program_removes_its_folder(program: Program, render: Render, song: Path) -> None:
    """It is its fault, and no reason to try again."""
    code = "import shutil; shutil.rmtree(os.getcwd()); time.sleep(0.5)"
    error = failure(render, program(code), song)
    assert isinstance(error, SceneError) and error.code == "command.no-output"


def test_paths_may_be_relative(
    program: Program, order: Order, song: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program works in another folder, and is told whole paths."""
    monkeypatch.chdir(tmp_path)
    code = "print(os.path.isabs(target), os.path.isabs(os.environ['TMPDIR'])); sys.exit(1)"
    with pytest.raises(SceneError, match="status 1: True True"):
        program(code).render(order(), Path(song.name), Path("video.mp4"), lambda done, total: None)


def test_success_without_output_is_none(program: Program, render: Render, song: Path) -> None:
    """Exit status 0 alone makes no video."""
    error = failure(render, program("print('all is well')"), song)
    assert "exited with status 0 and wrote no" in str(error) and "all is well" in str(error)
    assert (error.code, error.fault) == ("command.no-output", "scene")


def test_a_gigabyte_of_prints(program: Program, render: Render, song: Path) -> None:
    """It is not kept, and ends at a quarter of it."""
    started = time.monotonic()
    error = failure(
        render, program("line = b'x' * 999 + b'\\n'\nfor n in range(1 << 20): os.write(1, line * 64)"), song
    )
    assert "printed more than 256 MiB" in str(error)
    assert len(str(error)) < 800
    assert (error.code, error.fault) == ("command.printed-too-much", "scene")
    assert time.monotonic() - started < 60


def test_a_program_that_writes_without_end(program: Program, render: Render, song: Path) -> None:
    """It is ended at the limit of its template."""
    error = failure(render, program(WRITES.removeprefix(HEAD), max_written=4 << 20), song)
    assert "took more than 4 MiB" in str(error)
    assert (error.code, error.fault) == ("command.wrote-too-much", "scene")


def test_a_disk_that_is_nearly_full(program: Program, render: Render, song: Path) -> None:
    """What others need is left free: the program is ended before it fills the disk."""
    error = failure(render, program(WRITES.removeprefix(HEAD), keep_free=1 << 60), song)
    assert "are kept free" in str(error)
    assert (error.code, error.fault) == ("disk.full", "infrastructure")


def test_a_full_disk(program: Program, order: Order, song: Path, small_disk: Path) -> None:
    """A program that fills the disk before it is noticed, and fails of it, is not the scene's fault."""
    scene = program(WRITES.removeprefix(HEAD))
    with pytest.raises(RenderError) as failed:
        scene.render(order(), song, small_disk / "video.mp4", lambda done, total: None)
    assert (failed.value.code, failed.value.fault) == ("disk.full", "infrastructure")
    assert [path.name for path in small_disk.iterdir()] == []


@linux
@pytest.mark.parametrize(
    "trick",
    [
        "pass",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)",
        "os.fork() or (os.setsid(), os.fork() and os._exit(0), signal.signal(signal.SIGTERM, signal.SIG_IGN))",
        "os.close(1); os.close(2)",
    ],
    ids=["plain", "deaf", "session", "daemon", "mute"],
)
def test_a_stopped_program_leaves_no_process(
    trick: str, program: Program, order: Order, song: Path, scratch: Path
) -> None:
    """Whatever it does to escape, when ``report`` raises all that it started is gone."""
    ready = song.parent / "ready"
    scene = program(f"{trick}\nopen({str(ready)!r}, 'w').close()\ntime.sleep(60)")

    def report(done: int, total: int) -> None:
        if ready.exists():
            assert marked(str(scratch)) != []
            raise RenderStopped("cancelled")

    with pytest.raises(RenderStopped):
        scene.render(order(), song, scratch / "video.mp4", report)
    assert marked(str(scratch)) == []
    assert list(scratch.iterdir()) == []


def reported(code: str, order: RenderOrder, song: Path, **options: Any) -> list[tuple[int, int]]:
    """Return what a program in Python that fails led to be reported."""
    seen: list[tuple[int, int]] = []
    scene = CommandRenderer([sys.executable, "-I", "-S", "-c", code, "{output}"], makes="video", **options)
    with pytest.raises(SceneError):
        scene.render(order, song, song.with_suffix(".mp4"), lambda done, total: seen.append((done, total)))
    return seen


def test_progress_is_reported(order: Order, song: Path) -> None:
    """Frames, seconds or per cent, in lines that end as those of a terminal do; a program that says nothing has none,
    and stalls only by ``Limits(stall_timeout=...)``.
    """
    for pattern, line in (
        (r"frame=(?P<frame>\d+)", "frame=6\\r"),
        (r"at (?P<seconds>[\d.]+)", "at 0.2 s\\n"),
        (r"(?P<percent>\d+) ?%", "40 %\\r"),
    ):
        code = f"import sys, time; sys.stdout.write('begin\\n{line}' + 'x' * 9); sys.stdout.flush(); time.sleep(0.3); sys.exit(1)"
        seen = reported(code, order(), song, progress=pattern)
        assert seen[-1] == (6, 15)
    assert {*reported("import time; time.sleep(0.3); 1/0", order(), song)} == {(0, 0)}


def test_progress_that_is_no_number_is_ignored() -> None:
    """Programs divide by zero as well."""
    printed = Printed(re.compile(r"at (?P<seconds>\S+)"))
    printed.take(b"at 0.2\nat nan\nat inf\nat N/A\n")
    assert printed.frames(fps=30.0, total=15) == 6


@pytest.mark.parametrize("made", ["os.mkfifo(target)", "os.mkdir(target)", "os.symlink('/etc/passwd', target)"])
def test_an_output_that_is_no_file(made: str, render: Render, song: Path) -> None:
    """It is not read: a pipe would be waited for, and a link may lead anywhere."""
    command = [sys.executable, "-I", "-S", "-c", HEAD + made, "{output}"]
    error = failure(render, CommandRenderer(command, makes="video"), song)
    assert (error.code, "not a regular file" in str(error)) == ("command.wrong-output", True)


@pytest.mark.parametrize("closed", ["0", "1", "0 1 2"])
def test_a_parent_that_closed_its_streams(closed: str, tmp_path: Path) -> None:
    """As daemons do: the program runs to its end, and no descriptor is left."""
    code = """
import os, sys
from pathlib import Path
from renderdispatch.render.command.program import Bounds, Program
result = Path(sys.argv[1])
for number in sys.argv[2].split(): os.close(int(number))
before = os.listdir("/dev/fd")
with Program(["/bin/sh", "-c", "exit 3"], folder=result.parent, environment={}, bounds=Bounds(printed=9, written=1 << 30)) as program:
    while (status := program.wait(1)) is None: pass
result.write_text(f"{status} {len(before) == len(os.listdir('/dev/fd'))}")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "result"), closed], check=True, timeout=60)
    assert (tmp_path / "result").read_text() == "3 True"


def test_what_is_printed_takes_bounded_memory() -> None:
    """A line without an end is cut; the lines at the end are kept."""
    printed = Printed()
    for _ in range(1000):
        printed.take(b"x" * 100_000)
    assert printed.size == 100_000_000
    assert len(printed._open) <= 4096
    printed.take(b"\nlast\r\n\n")
    printed.end()
    assert printed.tail.endswith("last")
    assert len(printed.lines) <= 20

"""Ctrl-C and SIGTERM, at any moment: no process and no half file stays, and the job is cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from renderdispatch.testing import eventually
from tests.support.command_line import SMALL, CommandLine

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def _processes_of(cli: CommandLine) -> list[str]:
    """Return the command lines of every process that works for this home."""
    marker = f"RENDERDISPATCH_HOME={cli.home}".encode()
    found = []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().decode())
            except OSError:
                continue  # it ended meanwhile
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_render_cancels_the_job(cli: CommandLine, song: Path, number: signal.Signals) -> None:
    """The process ends with 128 + n within seconds; nothing runs on, and nothing was written."""
    process = cli.start("render", song, "--scene", "slow", "-o", "out.mp4")
    cli.wait_for(stage="rendering")
    process.send_signal(number)
    out, err = process.communicate(timeout=8)
    assert process.returncode == STATUS[number]
    assert out == ""
    assert err.startswith("renderdispatch: cancelled (job ")
    assert err.count("\n") == 1
    assert _processes_of(cli) == []
    assert sorted(path.name for path in cli.folder.iterdir()) == ["song.wav"]
    assert cli.jobs()[0]["status"] == "cancelled"


def test_a_second_signal_ends_the_process_at_once(cli: CommandLine, song: Path) -> None:
    """Its render process ends with it: the supervisor sees to that."""
    process = cli.start("render", song, "--scene", "slow", "-o", "out.mp4")
    cli.wait_for(stage="rendering")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=8)
    assert process.returncode == 130
    assert "Traceback" not in err
    eventually(lambda: not _processes_of(cli))
    assert sorted(path.name for path in cli.folder.iterdir()) == ["song.wav"]


def _heeds_signals(process: subprocess.Popen[str]) -> bool:
    """Return whether the command line's own code runs: it catches SIGTERM, which a bare interpreter does not."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("after_s", [0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.1, 1.3])
def test_ctrl_c_at_any_moment(cli: CommandLine, song: Path, after_s: float) -> None:
    """While modules load, while the job is recorded, dispatched, rendered or saved: never a traceback or an orphan."""
    process = cli.start("render", song, *SMALL, "-o", "out.mp4")
    eventually(lambda: _heeds_signals(process))
    time.sleep(after_s)  # the moment itself is what is tested
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=12)
    assert "Traceback" not in err
    whole = out.startswith("out.mp4: ")
    assert process.returncode == (0 if whole else 130)
    eventually(lambda: not _processes_of(cli))
    assert {path.name for path in cli.folder.iterdir()} <= {"song.wav", "out.mp4"}
    assert all(job["status"] in {"cancelled", "complete"} for job in cli.jobs())


def test_an_interrupted_script_is_told_so_in_json(cli: CommandLine, song: Path) -> None:
    """The line says which job was cancelled."""
    process = cli.start("render", song, "--scene", "slow", "--json")
    cli.wait_for(stage="rendering")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=8)
    assert err == ""
    assert json.loads(out) == {"jobId": cli.jobs()[0]["jobId"], "status": "cancelled"}


def test_a_signal_that_is_ignored_stays_ignored(cli: CommandLine, song: Path) -> None:
    """A shell starts jobs in the background so; Ctrl-C is not for them."""
    process = cli.start("render", song, *SMALL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    eventually(lambda: cli.jobs() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_terminal_that_closes_cancels_too(cli: CommandLine, song: Path) -> None:
    """Nobody is left to see the result."""
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by the command too
    try:
        process = cli.start("render", song, "--scene", "slow")
    finally:
        signal.signal(signal.SIGHUP, ours)
    cli.wait_for(stage="rendering")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 129
    assert cli.jobs()[0]["status"] == "cancelled"


def test_a_worker_that_is_told_to_end_hands_its_jobs_back(cli: CommandLine, song: Path) -> None:
    """It ends with status 0, and the job waits for another worker without having lost an attempt."""
    render = cli.start("render", song, "--scene", "slow")
    cli.wait_for(stage="rendering")
    render.kill()
    render.communicate()
    worker = cli.start("worker")
    cli.wait_for(stage="rendering", attempt=2)
    worker.send_signal(signal.SIGTERM)
    _, err = worker.communicate(timeout=15)
    assert worker.returncode == 0
    assert "Traceback" not in err
    assert cli.jobs()[0]["stage"] == "retry-wait"
    assert _processes_of(cli) == []


def test_watching_ends_without_the_job(cli: CommandLine, song: Path) -> None:
    """Ctrl-C at ``jobs watch`` leaves the job alone."""
    render = cli.start("render", song, "--scene", "slow")
    job = cli.wait_for(stage="rendering")
    watch: subprocess.Popen[str] = cli.start("jobs", "watch", job[:6])
    time.sleep(1.5)  # whatever it does then, it leaves the job alone
    watch.send_signal(signal.SIGINT)
    watch.communicate(timeout=5)
    assert watch.returncode == 130
    assert cli.jobs()[0]["status"] == "processing"
    cancelled = cli("jobs", "cancel", job)
    assert (cancelled.status, cancelled.out) == (0, f"job {job[:8]}: cancelled\n")
    _, err = render.communicate(timeout=10)
    assert render.returncode == 1
    assert "was cancelled" in err


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["new", "replaced"])
def test_ctrl_c_while_a_video_is_saved(cli: CommandLine, made: str, force: list[str]) -> None:
    """No half file stays, and what stood there stands."""
    (stored,) = (cli.home / "objects").rglob("video.mp4")
    os.truncate(stored, 64 << 30)  # holes: it takes no space, and long to copy
    target = "song.mp4" if force else "again.mp4"
    before = {path.name: path.lstat() for path in cli.folder.iterdir()}
    process = cli.start("jobs", "save", made, "-o", target, *force)
    eventually(lambda: len(list(cli.folder.iterdir())) > len(before))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=8)
    assert (process.returncode, out, err) == (130, "", "")
    assert {path.name: path.lstat() for path in cli.folder.iterdir()} == before

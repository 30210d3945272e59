"""Does nothing of a render outlive the process that started it, however that one, or any between, dies?"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from renderdispatch.messages import RENDER_EVENT, CheckedIn, Completed, Failed
from renderdispatch.plumbing.interpreter import interpreter
from renderdispatch.runner.process import SupervisedProcess
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import eventually, make_order, registered_scenes

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")

_GONE_S = 2.0

_MODULES = {
    "plain": "",
    "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "setsid": "subprocess.Popen([sys.executable, '-c', SLEEP], start_new_session=True)",
    "daemon": "os.fork() or (os.setsid(), os.fork() and os._exit(0), signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(60))",
}
"""What the module under the supervisor does before it says that it is ready, and sleeps."""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mark in the environment of every process that descends from this test; modules on ``sys.path``."""
    for name, trick in _MODULES.items():
        source = f"""
            import os, signal, subprocess, sys, time
            SLEEP = "import time; time.sleep(60)"
            from renderdispatch.runner.process import events_pipe
            events = events_pipe()
            {trick}
            open(os.path.join(os.environ["TMPDIR"], "scratch"), "w").close()
            events.write(b"ready\\n")
            print("stray words")
            time.sleep(60)
        """
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv("RENDERDISPATCH_TEST_MARK", mark)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    return mark


def marked(mark: str) -> list[int]:
    """Return the living processes, zombies left out, whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark.encode() in environment and state != "Z":
                found.append(int(entry.name))
    return found


def gone(mark: str) -> None:
    """Wait until no marked process is left; fail after two seconds."""
    deadline = time.monotonic() + _GONE_S
    while left := marked(mark):
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{len(left)} processes are left after {_GONE_S:g} s")
        time.sleep(0.02)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


@pytest.fixture(params=_MODULES)
def process(request: pytest.FixtureRequest, modules: str) -> Iterator[SupervisedProcess]:
    process = SupervisedProcess(request.param)
    assert process.read_line(20) == b"ready"
    yield process
    process.end()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many open files as fit below 1024, so that the next ones are above."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"this user may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1024:
        opened.append(os.open(os.devnull, os.O_RDONLY))
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_service_with_many_open_files_renders(many_descriptors: None, modules: str) -> None:
    """A lifeline above descriptor 1023 serves like any other."""
    process = SupervisedProcess("plain")
    assert process.read_line(20) == b"ready"
    process.end()
    gone(modules)


def test_a_process_that_nobody_could_follow(refuse_thread: Callable[[str], None], modules: str) -> None:
    """Where no thread can be started, neither can a process: none is left, and no descriptor."""
    before = descriptors()
    refuse_thread("renderdispatch-log")
    with pytest.raises(OSError, match="thread"):
        SupervisedProcess("plain")
    assert descriptors() == before
    gone(modules)


def test_end_kills_everything(process: SupervisedProcess, modules: str, tmp_path: Path) -> None:
    """`end` leaves no process, no zombie and no temporary file, whatever the module did to escape."""
    process.end()
    gone(modules)
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(process._process.pid, os.WNOHANG)


def test_kill_kills_everything(process: SupervisedProcess, modules: str) -> None:
    """`kill` ends the module and its descendants, and the reader sees the end."""
    process.kill()
    process.kill()
    assert process.read_line(10) == b""
    gone(modules)


def test_the_supervisor_is_killed(process: SupervisedProcess, modules: str, tmp_path: Path) -> None:
    """Where the supervisor itself is killed, the reader sees an end, and `end` clears the session."""
    os.kill(process._process.pid, signal.SIGKILL)
    assert process.read_line(10) == b""
    assert process.end() == 128 + signal.SIGKILL
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_module_is_killed(process: SupervisedProcess, modules: str) -> None:
    """Where the module is killed, what it started goes with it."""
    module = min(children_of(process._process.pid))
    os.kill(module, signal.SIGKILL)
    assert process.read_line(10) == b""
    assert process.end(wait_s=5) == 128 + signal.SIGKILL
    gone(modules)


@pytest.mark.parametrize("module", _MODULES)
def test_the_parent_is_killed(modules: str, module: str, tmp_path: Path) -> None:
    """A parent that is killed by SIGKILL leaves no descendant after two seconds, and no temporary file."""
    script = f"""
        import sys, time
        sys.path.insert(0, {str(tmp_path)!r})
        from renderdispatch.runner.process import SupervisedProcess
        process = SupervisedProcess({module!r})
        print(process.read_line(20).decode(), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        assert len(marked(modules)) >= 3
        parent.kill()
    gone(modules)
    eventually(lambda: list((tmp_path / "tmp").iterdir()) == [])


def test_the_parent_forked_a_sibling(modules: str, tmp_path: Path) -> None:
    """A sibling that was forked without exec holds the lifeline open; the render ends with its parent all the same."""
    script = f"""
        import os, sys, time
        sys.path.insert(0, {str(tmp_path)!r})
        from renderdispatch.runner.process import SupervisedProcess
        process = SupervisedProcess("plain")
        process.read_line(20)
        if os.fork() == 0:
            time.sleep(60)
        print("ready", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        sibling, supervisor = sorted(children_of(parent.pid))[::-1]
        parent.kill()
        parent.stdout.close()
    deadline = time.monotonic() + _GONE_S
    while set(marked(modules)) - {sibling}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(sibling, signal.SIGKILL)
    assert supervisor not in marked(modules)


def test_a_normal_exit_leaves_nothing(modules: str, tmp_path: Path) -> None:
    """A module that ends by itself is not followed by strays, and its exit status is passed on."""
    (tmp_path / "brief.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print('last words', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    process = SupervisedProcess("brief")
    assert process.read_line(10) == b""
    assert process.end(wait_s=5) == 7
    assert process.log == ["last words"]
    gone(modules)


def test_a_process_that_reads_nothing_is_ended(modules: str, tmp_path: Path) -> None:
    """A line that waits for room in the pipe keeps nobody from ending the process, which ends the wait."""
    (tmp_path / "deaf.py").write_text("import time\ntime.sleep(120)\n")
    process = SupervisedProcess("deaf")
    begun = threading.Event()

    def write() -> None:
        begun.set()
        for _ in range(100):
            process.write_line("x" * 65536)

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    assert begun.wait(30)
    eventually(process._writing.locked)
    ending = threading.Thread(target=process.end, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()
    writing.join(60)
    assert not writing.is_alive()
    gone(modules)


def test_nothing_leaks(modules: str, tmp_path: Path) -> None:
    """Fifty runs leave as many descriptors, threads and children as there were."""
    (tmp_path / "nothing.py").write_text("")

    def one() -> None:
        process = SupervisedProcess("nothing")
        process.write_line("words")
        process.end(wait_s=5)

    one()
    before, threads = (descriptors(), children_of(os.getpid())), set(threading.enumerate())
    for _ in range(50):
        one()
    assert (descriptors(), children_of(os.getpid())) == before
    assert set(threading.enumerate()) <= threads  # others may end meanwhile


def test_a_program_that_cannot_be_started(modules: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the interpreter is gone, it is an `OSError`, and nothing is left open or lying about."""
    before, program = descriptors(), tmp_path / "python"
    program.symlink_to(sys.executable)
    monkeypatch.setenv("RENDERDISPATCH_PYTHON", str(program))
    assert interpreter() == str(program)
    program.unlink()
    with pytest.raises(OSError):
        SupervisedProcess("plain")
    assert descriptors() == before
    assert list((tmp_path / "tmp").iterdir()) == []


# --- python -m renderdispatch.runner


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[None]:
    with registered_scenes(tmp_path / "scenes"):
        yield


def command_line(order: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the runner as from a shell, its order on stdin."""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "scenes")}
    command = [sys.executable, "-m", "renderdispatch.runner"]
    return subprocess.run(
        command, input=order, capture_output=True, text=True, env=environment, timeout=60, check=False
    )


@pytest.mark.usefixtures("scenes")
def test_the_runner_from_a_shell(tmp_path: Path) -> None:
    """With an order on stdin and no parent, events are printed to stdout, and the exit status says how it went."""
    order = make_order(FsspecStorage(tmp_path / "objects"))
    done = command_line(order.model_dump_json() + "\n", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    events = [RENDER_EVENT.validate_json(line) for line in done.stdout.splitlines()]
    assert isinstance(events[0], CheckedIn)
    assert isinstance(events[-1], Completed)
    failed = command_line(order.model_copy(update={"scene": "none"}).model_dump_json(), tmp_path)
    assert failed.returncode == 0  # the result object stands: an earlier run delivered
    fresh = make_order(FsspecStorage(tmp_path / "objects"), params={"fail": "no"})
    failed = command_line(fresh.model_dump_json(), tmp_path)
    assert failed.returncode == 1
    assert isinstance(RENDER_EVENT.validate_json(failed.stdout.splitlines()[-1]), Failed)


@pytest.mark.parametrize("nonsense", ["", "\n", "nonsense", "{}", "[]", '{"token": "secret"}', "\ufffd\x00"])
def test_nonsense_for_an_order(nonsense: str, tmp_path: Path) -> None:
    """What is no order ends with status 2 and one line that quotes nothing."""
    done = command_line(nonsense, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_stray_prints_spoil_nothing(tmp_path: Path) -> None:
    """Whatever a scene prints, by Python or by the descriptor, the events arrive whole, and the log has the words."""
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "noisy.py").write_text(
        textwrap.dedent("""
            import os, subprocess, sys
            from renderdispatch.testing import FakeRenderer

            class Noisy(FakeRenderer):
                def render(self, order, audio, output, report):
                    print('{"type": "made"}', flush=True)
                    sys.stderr.write("x" * 100_000)
                    os.write(1, b"\\xff\\n" * 1000)
                    os.write(2, b"raw\\n")
                    subprocess.run(["echo", "from a program"])
                    return super().render(order, audio, output, report)
        """)
    )
    with registered_scenes(tmp_path / "scenes", {"fake": "noisy:Noisy"}):
        process = SupervisedProcess("renderdispatch.runner")
        process.write_line(make_order(FsspecStorage(tmp_path / "objects")).model_dump_json())
        events = []
        while line := process.read_line(20):
            events.append(RENDER_EVENT.validate_json(line))
            process.write_line(json.dumps({"action": "continue"}))
        assert process.end(wait_s=5) == 0
    assert isinstance(events[-1], Completed)


def test_the_render_gets_no_secret_of_its_order(modules: str, tmp_path: Path) -> None:
    """The render process is forked before the order is read, and told no more than scenes may know."""
    with registered_scenes(tmp_path / "scenes"):
        process = SupervisedProcess("renderdispatch.runner")
        order = make_order(FsspecStorage(tmp_path / "objects"), params={"frames": 1000, "frame_s": 0.05})
        process.write_line(order.model_dump_json())
        seen = b""
        while b'"rendering"' not in seen:
            line = process.read_line(20)
            assert line
            seen += line
            process.write_line("{}")
        secret, found = order.video.put.url.encode(), []
        processes = [pid for pid in marked(modules) if pid != process._process.pid]
        for pid in processes:
            with contextlib.suppress(OSError):
                found += [pid] if holds(pid, secret) else []
        process.end()
    assert len(processes) == 3
    assert len(found) == 1  # the runner alone


def holds(pid: int, secret: bytes) -> bool:
    """Return whether a process has these bytes in its memory."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            bounds, access, _, _, inode, *_ = line.split()
            if access.startswith("rw") and inode == "0":
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False


def test_a_fork_is_as_good_as_a_module(modules: str, tmp_path: Path) -> None:
    """A function in a fork has its own pipes and folder; it and what it started end as a module does."""
    script = """
        import os, subprocess, sys, tempfile, time
        from renderdispatch.runner.process import SupervisedProcess, events_pipe
        opened = os.open(os.devnull, os.O_RDONLY)
        def run():
            with events_pipe() as events:
                try:
                    os.fstat(opened)
                except OSError:
                    events.write(b"closed\\n")
                events.write(sys.stdin.readline().encode())
                print("stray words")
                events.write(tempfile.mkdtemp().encode() + b"\\n")
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
                {ending}
        process = SupervisedProcess(run)
        process.write_line("to the fork")
        lines = [process.read_line(20) for _ in range(3)]
        assert lines[:2] == [b"closed", b"to the fork"], lines
        assert os.path.exists(lines[2])
        {after}
        assert process.log[:1] == ["stray words"], process.log
        assert not os.path.exists(lines[2])
        os.fstat(opened)
    """
    for ending, after in (
        ("sys.exit(7)", "assert process.read_line(20) == b'' and process.end(wait_s=5) == 7"),
        ("raise KeyError('odd')", "assert process.read_line(20) == b'' and process.end(wait_s=5) == 1"),
        ("os.kill(os.getpid(), 9)", "assert process.read_line(20) == b'' and process.end(wait_s=5) == 137"),
        ("time.sleep(60)", "assert process.end() == 137"),
        ("time.sleep(60)", "process.kill(); assert process.read_line(20) == b'' and process.end() == 137"),
    ):
        code = textwrap.dedent(script).replace("{ending}", ending).replace("{after}", after)
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        gone(modules)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_runner_stops_when_its_parent_hangs_up(tmp_path: Path) -> None:
    """A runner whose stdin ends has nobody to render for: it stops."""
    with registered_scenes(tmp_path / "scenes"):
        process = SupervisedProcess("renderdispatch.runner")
        long = make_order(FsspecStorage(tmp_path / "objects"), params={"frames": 1000, "frame_s": 0.05})
        process.write_line(long.model_dump_json())
        assert process.read_line(20)
        process._stdin.close()
        while process.read_line(20):
            pass
        assert process.end(wait_s=5) == 1

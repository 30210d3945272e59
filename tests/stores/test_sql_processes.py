"""Do processes, forks and threads share one `SqlJobStore`, on SQLite and on PostgreSQL?"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from renderdispatch.protocols import JobQuery
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import in_threads, make_job


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, file: Path) -> str:
    return f"sqlite:///{file}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[SqlJobStore]:
    store = SqlJobStore(url)
    yield store
    store.close()


# --- several processes ----------------------------------------------------------------------------


def _start(work: str, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("workers.py")), work, url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run_in_processes(number: int, work: str, url: str) -> list[list[str]]:
    """Let ``number`` processes do ``work`` at once; return what each printed."""
    processes = [_start(work, url) for _ in range(number)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * number
    return outputs


def test_processes_claim_each_job_once(url: str, store: SqlJobStore) -> None:
    """Four processes that claim at once get two hundred jobs, each exactly once."""
    created = {store.create(make_job()).id for _ in range(200)}
    claimed = [job_id for mine in _run_in_processes(4, "claim_all", url) for job_id in mine]
    assert len(claimed) == 200
    assert set(claimed) == created


def test_processes_lose_no_update(url: str, store: SqlJobStore) -> None:
    """Four processes that each add fifty by compare-and-swap add two hundred in all."""
    store.create(make_job(id="counter", priority=0))
    _run_in_processes(4, "count_up", url)
    assert store.get("counter").priority == 200
    assert store.get("counter").revision == 201


def test_processes_share_the_first_use(url: str, store: SqlJobStore) -> None:
    """Four processes may be the first to use a database at once."""
    _run_in_processes(4, "create_one", url)
    assert len(store.query(JobQuery()).items) == 4


def test_threads_share_the_first_use(url: str) -> None:
    """Eight threads, each with a store of its own, may be the first to use a database at once."""
    stores = [SqlJobStore(url) for _ in range(8)]
    in_threads(8, lambda number: stores[number].create(make_job()))
    assert len(stores[0].query(JobQuery()).items) == 8
    for store in stores:
        store.close()


def test_a_killed_writer_leaves_a_readable_database(file: Path, url: str, store: SqlJobStore) -> None:
    """Whatever a writer had been told was stored outlives its SIGKILL, and others go on at once."""
    process = _start("create_for_ever", url)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0].splitlines()
    told = [line.strip() for line in lines[1:]] + [line for line in rest if len(line) == 32]
    assert [store.get(job_id).id for job_id in told] == told
    store.create(make_job())
    store.close()
    if file.exists():
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# --- forks ----------------------------------------------------------------------------------------


# Python 3.12 and later warn of forks beside threads, which is what these tests are about
_forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _in_a_fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked child and return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must not return
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@_forks
def test_parent_and_child_both_go_on_after_a_fork(store: SqlJobStore) -> None:
    """A store that was in use before a fork works on both sides of it."""
    before = store.create(make_job())

    def child() -> None:
        assert store.get(before.id) == before
        store.create(make_job(id="from-the-child"))

    assert _in_a_fork(child) == 0
    store.create(make_job(id="from-the-parent"))
    assert {job.id for job in store.query(JobQuery()).items} == {before.id, "from-the-child", "from-the-parent"}


@_forks
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_fork_carries_no_connection_over(file: Path, store: SqlJobStore) -> None:
    """The child inherits no open database file: SQLite's locks would not be its own."""
    store.create(make_job())

    def child() -> None:
        opened = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # the one that lists them
                opened.append(str(descriptor.readlink()))
        assert opened
        assert not [path for path in opened if path.startswith(str(file))]

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    assert _in_a_fork(child) == 0


@_forks
def test_the_child_keeps_what_it_wrote_when_the_parent_leaves(url: str, store: SqlJobStore) -> None:
    """The last parent connection to close takes no log away under a child that writes."""
    store.create(make_job())
    read, write = os.pipe()

    def child() -> None:
        os.close(write)  # the parent's end alone: if the parent fails, the read below ends
        store.create(make_job(id="first"))
        os.read(read, 1)  # until the parent closed
        store.create(make_job(id="second"))

    pid = os.fork()
    if pid == 0:
        try:
            child()
        except BaseException:  # noqa: BLE001 - the child must not return
            os._exit(1)
        os._exit(0)
    store.query(JobQuery())
    store.close()
    os.write(write, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(read)
    os.close(write)
    assert {store.get("first").id, store.get("second").id} == {"first", "second"}


def test_forks_and_operations_keep_apart(url: str, store: SqlJobStore) -> None:
    """Threads go on writing while others fork, and every child can use the store.

    In a process of its own: other tests leave objects of FFmpeg to the main thread, and a child that is forked from
    another thread hangs when Python frees them there.
    """
    store.create(make_job(id="standing"))
    assert _run_in_processes(1, "fork_while_writing", url) == [["0"] * 10]
    assert len(store.query(JobQuery(limit=1000)).items) == 101

"""What the tests of several parts share."""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgres import PostgresServer, postgres_server

# Hypothesis: few examples while developing (dev), all of them in CI (ci), where each run draws the same ones and a
# failure prints how to replay it. HYPOTHESIS_PROFILE chooses one. How long an example takes is the machine's affair.
_ANY_TIME = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors]
settings.register_profile(
    "dev", max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=_ANY_TIME
)
settings.register_profile(
    "ci", settings.get_profile("dev"), max_examples=100, derandomize=True, print_blob=True, database=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What a test of chance draws from: the same in each run, another one in each soak. A variable replays a failure."""
    name, soaks = "RENDERDISPATCH_TEST_SEED", request.node.get_closest_marker("soak") is not None
    chosen = int(os.environ.get(name) or (secrets.randbelow(1 << 32) if soaks else 1))
    print(f"{name}={chosen} replays this")
    return chosen


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; every process that starts from here can be told by it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB that can be filled; only root can mount it."""
    disk = tmp_path / "small-disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        if os.environ.get("CI"):
            pytest.fail("a full disk has to be tested here, and no small one can be mounted: run as root")
        pytest.skip("no small file system can be mounted: needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def refuse_thread(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``refuse_thread(name)``: the next thread whose name begins so cannot be started, as where there are too many."""
    start = threading.Thread.start
    refused: list[str] = []

    def limited(thread: threading.Thread) -> None:
        for name in refused:
            if thread.name.startswith(name):
                refused.remove(name)
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return refused.append


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that the tests of this process share: no test stops it."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with postgres.database() as url:
        yield url

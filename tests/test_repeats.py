"""Does CI say which tests passed only at their second try?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

SCRIPT = ROOT / ".ci" / "repeat.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="source distributions leave CI out")


@pytest.fixture
def second_tries(tmp_path: Path) -> Path:
    """Where the names of tests are collected."""
    return tmp_path / "second-tries"


def repeat(tests: str, second_tries: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run these tests by the script, in an empty project."""
    folder = second_tries.parent
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -m 'not long'\nmarkers = long\n")
    (folder / "test_it.py").write_text(f"import pathlib, pytest\n\n\n{tests}")
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "SECOND_TRIES": str(second_tries), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


ONCE = """
@pytest.mark.long
@pytest.mark.parametrize("odd", ["a [b] - c"])
def test_once(odd):
    assert pathlib.Path("been-here").exists() or pathlib.Path("been-here").touch()
"""


@pytest.mark.parametrize("workers", [[], ["-p", "xdist", "--numprocesses", "2"]], ids=["in one process", "in two"])
def test_one_that_passes_at_the_second_try_is_named(second_tries: Path, workers: list[str]) -> None:
    """The run passes, and shows both results."""
    ran = repeat(ONCE, second_tries, "-m", "long", *workers)
    assert ran.returncode == 0, ran.stdout
    said = ran.stdout.partition("=== passed at the second try ===")[2]
    assert "test_it.py::test_once[a [b] - c]" in said
    assert "AssertionError" in said.partition("first try:")[2]
    assert "1 passed" in said.partition("second try:")[2]
    assert "test_once" in second_tries.read_text()


def test_one_that_fails_twice_fails_the_run(second_tries: Path) -> None:
    """A test that passes at its second try does not hide another one."""
    always = "def test_always():\n    raise RuntimeError\n"
    ran = repeat(ONCE + "\n\n" + always, second_tries, "-m", "")
    assert ran.returncode == 1
    assert "test_once" in second_tries.read_text()
    assert "test_always" not in second_tries.read_text()


def test_many_failures_are_no_accident(second_tries: Path) -> None:
    """They are not repeated."""
    ran = repeat("@pytest.mark.parametrize('n', range(11))\ndef test_many(n):\n    assert n < 0\n", second_tries)
    assert ran.returncode == 1
    assert "11 tests failed" in ran.stdout
    assert "second try, alone" not in ran.stdout


def test_what_is_no_failure_of_a_test_is_not_repeated(second_tries: Path) -> None:
    """A module that cannot be imported, or an option that does not exist, fails the run at once."""
    assert repeat("raise ImportError\n", second_tries).returncode == 2
    assert repeat(ONCE, second_tries, "--no-such-option").returncode == 4
    assert not second_tries.exists()


def test_all_is_well(second_tries: Path) -> None:
    """A run without failures says nothing of second tries."""
    ran = repeat("def test_it():\n    pass\n", second_tries)
    assert (ran.returncode, "second" in ran.stdout, second_tries.exists()) == (0, False, False)

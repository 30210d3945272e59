"""Is the program of this Python found, also where Python is embedded in another one?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import ConfigurationError
from renderdispatch.plumbing import interpreter as module
from renderdispatch.plumbing.interpreter import interpreter


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    module._find.cache_clear()
    yield
    module._find.cache_clear()


def program(path: Path, script: str) -> str:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_python_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a program that is Python, it is that one, and no process is started to know it."""
    monkeypatch.setattr(subprocess, "run", None)
    assert interpreter() == sys.executable


@pytest.mark.parametrize("executable", ["/usr/bin/uwsgi", "/usr/sbin/apache2", "", None, "/no/such/python3"])
def test_an_embedded_python(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``sys.executable`` is another program, or nothing, the program of the installation is found."""
    monkeypatch.setattr(sys, "executable", executable)
    found = interpreter()
    assert found != executable
    said = subprocess.run([found, "-c", "import sys; print(sys.version)"], capture_output=True, check=True, text=True)
    assert said.stdout.strip() == sys.version


def test_another_python_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that is called python, and is another version, is not taken."""
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python3", "echo cpython-39 9223372036854775807"))
    assert interpreter() != sys.executable


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No program of this Python is where an installation has it."""
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix", "_base_executable"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: None)
    monkeypatch.setattr("sysconfig.get_config_var", lambda _name: None)
    monkeypatch.setattr(sys, "executable", program(tmp_path / "serve", "exit 3"))


@pytest.mark.usefixtures("nowhere")
def test_no_python_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backend that could never start a render refuses to be made, and says what to set; that is then taken."""
    with pytest.raises(ConfigurationError, match="RENDERDISPATCH_PYTHON") as refused:
        LocalGpuBackend()
    assert str(tmp_path / "serve") in str(refused.value)
    monkeypatch.undo()
    monkeypatch.setenv("RENDERDISPATCH_PYTHON", sys.executable)
    LocalGpuBackend().close()


@pytest.mark.parametrize("named", ["/no/such/python", "/bin/true", "/", "python\0"])
def test_a_setting_that_is_wrong(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``RENDERDISPATCH_PYTHON`` names must be this Python."""
    monkeypatch.setattr("os.environ", {"RENDERDISPATCH_PYTHON": named})
    with pytest.raises(ConfigurationError, match="RENDERDISPATCH_PYTHON"):
        interpreter()

"""Which program is this Python?

``sys.executable``, in a program that is Python. In one that Python is embedded in (uWSGI, mod_wsgi, an application with
scripts) it is that program, or nothing: started with ``-c``, it would serve, or fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from renderdispatch.errors import ConfigurationError

PYTHON: Final = "RENDERDISPATCH_PYTHON"
"""The variable that names the program."""

_TRY_S: Final = 20.0
_SAME: Final = "import sys; print(sys.implementation.cache_tag, sys.maxsize)"


def interpreter() -> str:
    """Return the path of this Python's program.

    Raises:
        ConfigurationError: There is none, or the one that ``RENDERDISPATCH_PYTHON`` names is another Python.
    """
    return _find(os.environ.get(PYTHON, "").strip(), sys.executable or "")


@cache
def _find(named: str, own: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if named:
        if not _is_this_python(named):
            raise ConfigurationError(f"{PYTHON}={named!r} is not a program of Python {version}, which runs here")
        return named
    if _is_called_python(own) and (_is_running(own) or _is_this_python(own)):
        return own
    for path in _candidates(version):
        if _is_called_python(path) and _is_this_python(path):
            return path
    raise ConfigurationError(
        f"renders need a program of Python {version} to start their processes with, and none was found: Python is "
        f"embedded in {own or 'this program'!r}. Set {PYTHON} to the path of such a program"
    )


def _candidates(version: str) -> Iterator[str]:
    """Iterate over the places where an installation has its program; a virtual environment's goes first."""
    bases = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    folders = [*(str(Path(base, "bin")) for base in bases), sysconfig.get_path("scripts")]
    folders.append(sysconfig.get_config_var("BINDIR"))
    for folder in dict.fromkeys(filter(None, folders)):
        yield from (str(Path(folder, name)) for name in (f"python{version}", "python3", "python"))
    yield getattr(sys, "_base_executable", None) or ""


def _is_called_python(path: str) -> bool:
    """Return whether a program may be tried: one of another name may do anything."""
    return Path(path).name.lower().startswith(("python", "pypy"))


def _is_running(path: str) -> bool:
    """Return whether this process runs that program, as far as the system tells."""
    try:
        return Path("/proc/self/exe").samefile(path)
    except OSError:
        return not Path("/proc/self/exe").exists() and not getattr(sys, "frozen", False)


def _is_this_python(path: str) -> bool:
    """Run a program once; return whether it is Python of this version and word size."""
    command = [path, "-I", "-S", "-c", _SAME]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_TRY_S)
    except (OSError, ValueError, subprocess.SubprocessError):
        return False
    return done.stdout.split() == f"{sys.implementation.cache_tag} {sys.maxsize}".encode().split()

"""Does a render process start, whatever its parent has closed or lost?"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_PARENT = """
    import os, sys
    from pathlib import Path

    result, closed, gone = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    if gone:
        os.chdir(gone)
        os.rmdir(gone)
        sys.path.insert(0, "")  # as `python -c` and notebooks have it
    from renderdispatch.runner.process import SupervisedProcess

    for number in closed.split():
        os.close(int(number))
    process = SupervisedProcess("echoes")
    process.write_line("hello")
    result.write_text(f"{process.read_line(10)} {process.end(wait_s=5)}")
"""

_ECHOES = """
    import sys
    from renderdispatch.runner.process import events_pipe

    with events_pipe() as events:
        events.write(sys.stdin.readline().encode())
"""


@pytest.mark.parametrize(
    ("closed", "gone"), [("0", False), ("1", False), ("2", False), ("0 1 2", False), ("", True), ("0 1 2", True)]
)
def test_closed_streams_and_a_lost_folder(tmp_path: Path, closed: str, gone: bool) -> None:
    """Daemons close their standard streams, and pipes get the free numbers; deploys remove working directories."""
    (tmp_path / "echoes.py").write_text(textwrap.dedent(_ECHOES))
    (tmp_path / "gone").mkdir()
    arguments = [str(tmp_path / "result"), closed, str(tmp_path / "gone") if gone else ""]
    command = [sys.executable, "-c", textwrap.dedent(_PARENT), *arguments]
    subprocess.run(command, check=True, timeout=60, env={"PYTHONPATH": str(tmp_path)})
    assert (tmp_path / "result").read_text() == "b'hello' 0"

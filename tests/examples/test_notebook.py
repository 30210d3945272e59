"""The notebook runs from its first cell to its last, in a real kernel, without an account."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import av
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_shows_the_video(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell runs beside the kernel's event loop; the job is shown while it renders, and then with its video."""
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    client = NotebookClient(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    shown = [
        output.data["text/html"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 1  # updated in place
    video = re.search(r'<video controls [^>]*src="data:video/mp4;base64,([^"]+)"', shown[0])
    assert video is not None, shown[0][:500]
    embedded = base64.b64decode(video[1])
    assert embedded == (tmp_path / "video.mp4").read_bytes()
    with av.open(io.BytesIO(embedded)) as opened:
        assert (opened.streams.video[0].width, opened.streams.video[0].frames) == (1080, 60)


def test_the_notebook_is_kept_without_outputs(notebook: Any) -> None:
    """What one run gave is nobody else's."""
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert (cell.outputs, cell.execution_count, cell.metadata) == ([], None, {})

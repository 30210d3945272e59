"""Every example in the documents runs, in the order in which a reader meets it.

``python`` blocks share one namespace for each document, unless their first line is a comment with a file's name: such
a block is that file, and so is every ``glsl`` block. The lines of ``console`` blocks that begin with ``$`` are typed into a shell. ``sh``, ``toml`` and
``ini`` blocks are for other machines than this one. The pages about webhooks and Modal have tests of their own, for they
need servers; the commands of the page about performance measure for minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from renderdispatch.render.music import compose
from tests.support.documents import BLOCK, ROOT, script_of
from tests.support.needs import need_ffmpeg

ELSEWHERE = {"modal.md", "webhooks.md", "webhooks-verify.md", "performance.md"}
WITH_FFMPEG = {"any-program.md"}
WITH_POSTGRESQL = {"postgresql.md"}
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r'code(?:: str)? ?= ?"([a-z-]+\.[a-z.-]+)"|_infrastructure\("([a-z.-]+)"')
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def _run(arguments: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    here = str(Path(sys.executable).parent)
    home = {"RENDERDISPATCH_HOME": str(folder / "home"), "PATH": here + os.pathsep + os.environ["PATH"]}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=False,
        cwd=folder,
        env={**os.environ, **home, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a song in it, as every document assumes."""
    compose(tmp_path / "song.mp3", seconds=1.5)
    return tmp_path


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if BLOCK.search(path.read_text()) and path.name not in ELSEWHERE],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_the_examples_run(
    document: Path, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None fails."""
    if document.name in WITH_FFMPEG:
        need_ffmpeg()
    if document.name in WITH_POSTGRESQL:
        monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("postgres_url"))
    script = folder / "the_examples.py"
    script.write_text(script_of(document))
    ran = _run([script], folder)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file that is there."""
    broken = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]
    assert broken == []


def test_every_error_code_is_documented() -> None:
    """Programs switch on codes, so each that is in the source stands in a document."""
    source = ROOT / "src" / "renderdispatch"
    modules = [path for path in source.rglob("*.py") if "testing" not in path.relative_to(source).parts]
    codes = {first or second for path in modules for first, second in CODE.findall(path.read_text())}
    written = "".join(path.read_text() for path in DOCUMENTS)
    assert {code for code in codes if f"`{code}`" not in written} == set()


@pytest.mark.parametrize("example", ["ten_lines.py", "own_scene.py"])
def test_the_example_programs_run(example: str, folder: Path) -> None:
    """Each makes a video of the song."""
    ran = _run([ROOT / "examples" / example, "song.mp3", "video.mp4"], folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "video.mp4"
    assert (folder / "video.mp4").stat().st_size > 0

"""Does the manifest of a batch say what was rendered, whatever happened to it?"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from renderdispatch.cli.manifest import NAME, Entry, Manifest
from renderdispatch.errors import InvalidRequestError

_LINE = '{"file": "a.mp4", "row": "line 1", "digest": "d", "key": "k", "audio": "a.mp3"'


def _entry(name: str, **known: str) -> Entry:
    return Entry(file=f"{name}.mp4", row="line 1", digest="d" * 64, audio=f"{name}.mp3", **known)  # type: ignore[arg-type]  # texts alone


def test_what_was_set_is_read_again(tmp_path: Path) -> None:
    """Entries keep every field; the batch keeps its id."""
    with Manifest.opened(tmp_path / "videos") as manifest:
        batch = manifest.batch
        manifest.set(_entry("one", status="complete", job_id="j1"))
        manifest.set(_entry("two"))
        entries = dict(manifest.entries)
    with Manifest.opened(tmp_path / "videos") as manifest:
        assert manifest.batch == batch
        assert manifest.entries == entries
    lines = (tmp_path / "videos" / NAME).read_text().splitlines()
    assert json.loads(lines[1])["jobId"] == "j1"
    assert "jobId" not in json.loads(lines[2])


def test_a_run_without_rows_leaves_no_manifest(tmp_path: Path) -> None:
    """An empty manifest is not written."""
    with Manifest.opened(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_command_at_a_time_has_it(tmp_path: Path) -> None:
    """A second one is refused while the first has it, and not afterwards."""
    with (
        Manifest.opened(tmp_path),
        pytest.raises(InvalidRequestError, match="another command renders a batch") as refusal,
        Manifest.opened(tmp_path),
    ):
        pass
    assert refusal.value.code == "batch.busy"
    with Manifest.opened(tmp_path):
        pass


def _line(**changes: object) -> str:
    entry = {"file": "a.mp4", "row": "line 1", "digest": "d", "key": "k", "audio": "a.mp3", **changes}
    return f'{{"version": 1, "batch": "b"}}\n{json.dumps(entry)}'


def test_a_pipe_is_not_a_manifest(tmp_path: Path) -> None:
    """It is refused before it is opened: to read it would wait for ever."""
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(InvalidRequestError, match="is not the manifest of a batch"), Manifest.opened(tmp_path):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "not JSON",
        "[" * 100_000,
        "[]",
        '{"version": 1}',
        '{"version": 1, "batch": 5}',
        '{"version": 1, "batch": "a/b"}',
        '{"version": 1, "batch": "b"}\n{"file": "a.mp4"}',
        _line(file=5),
        _line(jobId=5),
        _line(status="soon"),
        _line(error="broken"),
        _line(error={"code": "x"}),
        "\udcff",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """It is left as it is, and the message says what to do."""
    (tmp_path / NAME).write_bytes(text.encode(errors="surrogateescape"))
    with (
        pytest.raises(InvalidRequestError, match="is not the manifest of a batch; move it away"),
        Manifest.opened(tmp_path),
    ):
        pass
    assert (tmp_path / NAME).read_bytes() == text.encode(errors="surrogateescape")


def test_the_manifest_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """Its lines may mean something else."""
    (tmp_path / NAME).write_text('{"version": 2, "batch": "b"}\n')
    with pytest.raises(InvalidRequestError, match="another version"), Manifest.opened(tmp_path):
        pass

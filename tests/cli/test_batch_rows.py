"""What may the rows of a batch say, if a stranger wrote the file?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.batches import Submission
from renderdispatch.cli.batch_rows import BatchRow, WrongRowsError, read_rows
from renderdispatch.errors import InvalidRequestError


def _read(source: Path) -> list[BatchRow]:
    return read_rows(source, Submission(Path()), check=lambda _: None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"audio": "a.mp3", "audio": "b.mp3"}', "'audio' is named twice"),
        ('{"audio": "a.mp3", "limits": {"max_durasion": 5}}', "unknown field of Limits 'max_durasion'"),
        ('{"audio": "a.mp3", "output": {"widht": 64}}', "unknown field of Output 'widht'"),
        ('{"audio": "a.mp3", "file": "a\\u001b[31m"}', "without control characters"),
        ('{"audio": "a.mp3", "file": "\\ud800"}', "without control characters"),
        ('{"audio": "\\ud800.mp3"}', "a file is named by its path"),
        ('{"audio": "a.mp3", "scene": "\\ud800.frag"}', "a file is named by its path"),
        ('{"audio": "a.mp3", "cover": "a\\u001b.png"}', "a file is named by its path"),
    ],
)
def test_a_row_that_makes_no_sense(tmp_path: Path, row: str, said: str) -> None:
    """What is misspelt is not ignored, and a name that is no file's, or would move the cursor, is refused."""
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(WrongRowsError) as refusal:
        _read(tmp_path / "rows.jsonl")
    told = refusal.value.rows["line 1"]
    assert said in told
    assert "not JSON" not in told


def test_a_line_without_an_end_is_not_read_to_its_end() -> None:
    """A device, or a file that holds no rows, does not fill the memory."""
    with pytest.raises(InvalidRequestError, match="line 1 of /dev/zero has more than") as refusal:
        _read(Path("/dev/zero"))
    assert refusal.value.code == "batch.unreadable"


@pytest.mark.parametrize("output", ["flat-1080p-square", {"preset": "flat-1080p-square", "fps": 25}])
def test_an_output_is_a_preset_or_its_changes(tmp_path: Path, output: Any) -> None:
    """Both are understood; the names are those of `Output`."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": "a.mp3", "output": output}))
    (row,) = _read(tmp_path / "rows.jsonl")
    assert (row.submission.output.width, row.submission.output.height) == (1080, 1080)  # type: ignore[union-attr]  # it was read
    assert row.audio == tmp_path / "a.mp3"

"""Which renders does a batch name: the lines of a file, or the songs of a folder?

A line is one JSON object with the names of `Submission`; paths in it are relative to the file. What a line leaves out
is as the options of the command say. Everything is checked before anything is rendered, and each error names its line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from attrs import evolve, fields, frozen
from pydantic import BaseModel

from renderdispatch import errors
from renderdispatch.batches import Submission
from renderdispatch.cli.manifest import NAME
from renderdispatch.cli.options import read_time
from renderdispatch.engine.intake import is_path, is_shader_name
from renderdispatch.messages import Limits, Output, read_output
from renderdispatch.plumbing.json_objects import named_once
from renderdispatch.runner.renderers import scene_names
from renderdispatch.runner.scene_files import read_scene_file

_SONGS: Final = re.compile(
    r"\.(?:aac|ac3|aifc?|aiff|alac|ape|caf|dsf|flac|m4[ab]|mka|mp[23]|og[ag]|opus|wav|wma|wv)", re.IGNORECASE
)
_FIELDS: Final = frozenset(field.name for field in fields(Submission)) - {"idempotency_key"}
_MAX_LINE: Final = 64 << 10
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@frozen
class BatchRow:
    """One render of a batch.

    Args:
        where: What messages call it: ``line 3``, or the song's name.
        submission: What is submitted.
        file: The name of the video, in the folder of the videos.
    """

    where: str
    submission: Submission
    file: str

    @property
    def audio(self) -> Path:
        """The song."""
        assert isinstance(self.submission.audio, Path)
        return self.submission.audio

    @property
    def files(self) -> list[Path]:
        """The files that it reads."""
        given = self.submission
        return [path for path in (given.audio, given.scene, given.cover, *given.images) if isinstance(path, Path)]

    def digest(self, hash_file: Callable[[Path], str], *, program: Path | None) -> str:
        """Return what identifies the render: everything that decides about the video, and the files' contents.

        Args:
            hash_file: Returns the hash of a file's content.
            program: The Python file that draws it.
        """

        def plain(value: object) -> object:
            match value:
                case Path():
                    return {"sha256": hash_file(value)}
                case BaseModel():
                    return value.model_dump(mode="json")
                case tuple() | list():
                    return [plain(each) for each in value]
            return value

        names = [field.name for field in fields(Submission) if field.name != "parallel"]  # the video is the same
        asked = {name: plain(getattr(self.submission, name)) for name in names}
        asked["program"] = plain(program)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Hashes:
    """The hashes of files, each of which is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def __call__(self, path: Path) -> str:
        """Return the SHA-256 of a file's content, in hex."""
        if path not in self._known:
            with path.open("rb") as file:
                self._known[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[path]


class WrongRowsError(errors.InvalidRequestError):
    """Rows that can never be rendered; ``rows`` says what is wrong with each."""

    code = "batch.wrong-rows"

    def __init__(self, rows: Mapping[str, str], total: int) -> None:
        rows_are = f"{total} row{'' if total == 1 else 's'} {'is' if len(rows) == 1 else 'are'}"
        super().__init__(f"{len(rows)} of {rows_are} wrong, so nothing was rendered; correct what is said above")
        self.rows = rows


def read_rows(source: Path, defaults: Submission, *, check: Callable[[Submission], None]) -> list[BatchRow]:
    """Return the rows of a file or a folder, each of which can be rendered, as far as can be known now.

    Args:
        source: The file, or the folder of the songs.
        defaults: What rows leave out; its audio means nothing.
        check: Refuses what can never be served.

    Raises:
        InvalidRequestError: The source cannot be read, or has no rows.
        WrongRowsError: Some rows are wrong.
    """
    in_folder = source.is_dir()
    named = _of_folder(source, defaults) if in_folder else _of_file(source, defaults)
    rows: list[BatchRow] = []
    wrong: dict[str, str] = {}
    order: dict[str, int] = {}
    for where, read in named:
        order[where] = len(order)
        try:
            row = read()
            check(row.submission)
            rows.append(row)
        except errors.InvalidRequestError as error:
            wrong[where] = f"{error} [{error.code}]"
        except click.ClickException as error:
            wrong[where] = error.message
    if not order:
        raise errors.InvalidRequestError(f"{source} has no songs", code="batch.empty")
    own_name = "list the songs in a file, with names in 'file'" if in_folder else "give it a name of its own in 'file'"
    wrong |= _namesakes(rows, own_name)
    if wrong:
        raise WrongRowsError({where: wrong[where] for where in sorted(wrong, key=order.__getitem__)}, len(order))
    return rows


def _namesakes(rows: Iterable[BatchRow], own_name: str) -> dict[str, str]:
    """Return what is wrong with rows whose videos or posters would have the same name, whatever its case.

    Args:
        own_name: How to give a row another name.
    """
    by_name, found = dict[str, BatchRow](), dict[str, str]()
    for row in rows:
        named = {"video": row.file} | (
            {"poster": str(Path(row.file).with_suffix(".jpg"))} if row.submission.poster else {}
        )
        for what, name in named.items():
            first = by_name.setdefault(name.casefold(), row)
            if first is not row:
                found.setdefault(row.where, f"its {what} would be {name}, as that of {first.where}; {own_name}")
    return found


# --- a folder -------------------------------------------------------------------------------------


def _of_folder(folder: Path, defaults: Submission) -> Iterator[tuple[str, Callable[[], BatchRow]]]:
    for song in sorted(folder.iterdir()):
        if _SONGS.fullmatch(song.suffix) and song.is_file() and not song.name.startswith("."):
            row = BatchRow(song.name, evolve(defaults, audio=song), f"{song.stem}.mp4")
            yield song.name, partial(_unchanged, row)


def _unchanged(row: BatchRow) -> BatchRow:
    return row


# --- a file ---------------------------------------------------------------------------------------


def _of_file(path: Path, defaults: Submission) -> Iterator[tuple[str, Callable[[], BatchRow]]]:
    if _SONGS.fullmatch(path.suffix):
        message = f"{path} is one song; --batch takes a file of JSON lines, or a folder of songs"
        raise errors.InvalidRequestError(message, code="batch.unreadable")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, _MAX_LINE + 1), b""), 1):
                if len(line) > _MAX_LINE:
                    message = f"line {number} of {path} has more than {_MAX_LINE} bytes; a row is one JSON object"
                    raise errors.InvalidRequestError(message, code="batch.unreadable")
                if line.strip():
                    where = f"line {number}"
                    yield where, partial(_read_line, where, line, path.parent, defaults)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; --batch takes a file of JSON lines, or a folder of songs"
        raise errors.InvalidRequestError(message, code="batch.unreadable") from None


def _read_line(where: str, line: bytes, folder: Path, defaults: Submission) -> BatchRow:
    given = _object(line)
    for name in given:
        if name not in _FIELDS | {"file"}:
            raise errors.UnknownNameError.of("name", name, _FIELDS | {"file"}, code="batch.unknown-name")
    if "audio" not in given:
        raise _wrong('a row names its song: {"audio": "song.mp3"}')
    values: dict[str, Any] = {
        name: _VALUES.get(name, _as_it_is)(value, folder, defaults) for name, value in given.items() if name != "file"
    }
    submission = evolve(defaults, **values)
    stem = submission.audio.stem if isinstance(submission.audio, Path) else ""
    return BatchRow(where, submission, _file_name(given.get("file", f"{stem}.mp4")))


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line, object_pairs_hook=named_once(_named_twice))
    except errors.InvalidRequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise _wrong(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _wrong(f'a row is a JSON object, such as {{"audio": "song.mp3"}}, not {type(found).__name__}')
    return found


def _named_twice(name: str) -> errors.InvalidRequestError:
    return _wrong(f"{name!r} is named twice")


def _file_name(name: object) -> str:
    if not isinstance(name, str) or name in {"", ".", ".."} or os.sep in name or not _is_file_name(name):
        raise _wrong("file: the name of the video, without a folder and without control characters")
    if name.casefold() == NAME:
        raise _wrong(f"file: {NAME} is the manifest of the folder; give the video another name")
    return name if Path(name).suffix else f"{name}.mp4"


def _is_file_name(text: str) -> bool:
    """Return whether a text can name a file, and can be shown in a terminal."""
    return is_path(text) and _CONTROL.search(text) is None


def _path(value: object, folder: Path, _defaults: Submission) -> Path:
    if not isinstance(value, str) or not value or not _is_file_name(value):
        raise _wrong("a file is named by its path, as text")
    if re.match("[a-z0-9]+://", value, re.IGNORECASE):
        raise _wrong("a file is named by its path on this machine, not by a URL; download it first")
    return folder / value


def _scene(value: object, folder: Path, _defaults: Submission) -> str | Path:
    if not isinstance(value, str):
        raise _wrong("scene: a name, or the path of a Shadertoy file, as text")
    if value in scene_names():
        return value
    if read_scene_file(value) is not None:
        raise _wrong(f"scene {value[:80]} is Python, which only --scene takes, for all rows", code="scene.file")
    return _path(value, folder, _defaults) if is_shader_name(value) or os.sep in value else value


def _images(value: object, folder: Path, defaults: Submission) -> list[Path]:
    if not isinstance(value, list):
        raise _wrong("images: a list of paths")
    return [_path(each, folder, defaults) for each in value]


def _output(value: object, _folder: Path, defaults: Submission) -> Output:
    if isinstance(value, str):
        return read_output(value)
    if not isinstance(value, dict):
        raise _wrong('output: the name of a preset, or an object such as {"width": 1280, "height": 720}')
    preset = value.pop("preset", defaults.output)
    if not isinstance(preset, str | Output):
        raise _wrong("output: preset: the name of a preset, as text")
    return Output(**{**dict(read_output(preset)), **value})


def _limits(value: object, _folder: Path, defaults: Submission) -> Limits:
    if not isinstance(value, dict):
        raise _wrong('limits: an object, such as {"max_duration": 600}')
    return Limits(**{**dict(defaults.limits or Limits()), **value})


def _time(value: object, _folder: Path, _defaults: Submission) -> object:
    return read_time(value) if isinstance(value, str) else value


def _as_it_is(value: object, _folder: Path, _defaults: Submission) -> object:
    return value  # the request says whether it makes sense


_VALUES: Final[Mapping[str, Callable[[Any, Path, Submission], Any]]] = {
    "audio": _path,
    "scene": _scene,
    "cover": _path,
    "images": _images,
    "output": _output,
    "limits": _limits,
    "start": _time,
    "duration": _time,
}


def _wrong(message: str, *, code: str = "batch.wrong-row") -> errors.InvalidRequestError:
    return errors.InvalidRequestError(message, code=code)

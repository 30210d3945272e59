"""What has a batch rendered already?

The folder of the videos has a manifest, a file of JSON lines: the id of the batch, then one line for each video. It is
written anew, whole or not at all, before jobs are submitted, while they render, and at the end. So a second run knows
what is done, which jobs still run, and what is to be rendered again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import asdict, field, fields, frozen

from renderdispatch.engine.intake import check_batch
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.plumbing.files import write_file

NAME: Final = "renderdispatch-batch.jsonl"

_VERSION: Final = 1
_ON_THE_WIRE: Final = {"job_id": "jobId"}
_MAX_BYTES: Final = 256 << 20
_EVERY_S: Final = 1.0
"""How often the manifest is written while jobs render."""


@frozen(kw_only=True)
class Entry:
    """What is known of one video.

    Args:
        file: The video's name.
        row: Which row asked for it.
        digest: What identifies the render: the row, and its files.
        key: The idempotency key of its job.
        audio: The song's name.
        job_id: The id of the job; None: it is not known whether there is one.
        status: That of the job; ``complete`` once the video is in the folder.
        error: Why there is no video: code and message.
    """

    file: str
    row: str
    digest: str
    key: str = field(factory=lambda: uuid.uuid4().hex)
    audio: str
    job_id: str | None = None
    status: str = str(JobStatus.PENDING)
    error: dict[str, str] | None = None

    @property
    def complete(self) -> bool:
        """Whether the video was written."""
        return self.status == JobStatus.COMPLETE

    @property
    def ended(self) -> bool:
        """Whether its job has ended, or was refused."""
        return JobStatus(self.status).terminal

    def as_json(self) -> dict[str, Any]:
        """Return the entry for the manifest and for scripts, without what is not known."""
        return {_ON_THE_WIRE.get(name, name): value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """Return the entry that `as_json` wrote. Raises `TypeError` or `ValueError` for any other line."""
        names = {each.name: _ON_THE_WIRE.get(each.name, each.name) for each in fields(cls)}
        found = {name: line[key] for name, key in names.items() if key in line}
        for name, value in found.items():
            if not isinstance(value, dict if name == "error" else str):
                raise TypeError(name)
        entry = cls(**found)
        JobStatus(entry.status)
        if entry.error is not None and not {"code", "message"} <= entry.error.keys():
            raise ValueError("error")
        return entry


class Manifest:
    """The manifest of a folder, and a lock, so that one command at a time works on it."""

    def __init__(self, path: Path, batch: str, entries: dict[str, Entry]) -> None:
        self.path = path
        self.batch = batch
        self.entries = entries
        self._written_s = 0.0
        self._changed = False

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Manifest]:
        """Read the manifest of a folder, which is made if there is none; write it at the end.

        Raises:
            InvalidRequestError: The folder cannot be made, another command works on it, or its manifest is not one.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            why = "it is not a folder" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
            message = f"{folder} cannot be the folder of the videos: {why}; name another one with -o"
            raise InvalidRequestError(message, code="output.denied") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                message = f"another command renders a batch to {folder}; wait for it, or name another folder"
                raise InvalidRequestError(message, code="batch.busy") from None
            manifest = cls._read(folder / NAME)
            try:
                yield manifest
            finally:
                if manifest._changed:  # noqa: SLF001 - its own
                    manifest.write()
        finally:
            os.close(descriptor)

    @classmethod
    def _read(cls, path: Path) -> Manifest:
        if not os.path.lexists(path):
            return cls(path, uuid.uuid4().hex, {})
        try:
            head, *lines = map(json.loads, _text_of(path).splitlines())
            if head["version"] != _VERSION:
                message = f"{path} was written by another version; finish with that one, or name another folder"
                raise InvalidRequestError(message, code="batch.manifest")
            entries = [Entry.from_json(line) for line in lines]
            return cls(path, check_batch(head["batch"]), {entry.file: entry for entry in entries})
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, InvalidRequestError) and error.code == "batch.manifest":
                raise
            message = f"{path} is not the manifest of a batch; move it away, and all rows are rendered anew"
            raise InvalidRequestError(message, code="batch.manifest") from error

    def set(self, entry: Entry) -> None:
        """Note what became of a video; it is written within a second of the next notes, or at the end."""
        self.entries[entry.file], self._changed = entry, True
        if time.monotonic() - self._written_s >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        lines = [{"version": _VERSION, "batch": self.batch}, *(entry.as_json() for entry in self.entries.values())]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_file(self.path, [text.encode()], key=str(self.path), only_if_absent=False)
        self._written_s, self._changed = time.monotonic(), False


def _text_of(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:  # to open a pipe could wait for ever
        raise ValueError("not a manifest")
    return path.read_text()


def error_of(job: Job) -> dict[str, str] | None:
    """Return why a job has no video, as an entry has it."""
    return None if job.error is None else {"code": job.error.code, "message": job.error.message}

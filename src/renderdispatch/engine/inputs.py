"""Which files does a request come with, and where are they stored at submit?

The files of a plain submit are stored below the job's own prefix, and go when the job is deleted. Files that are stored
before it is certain that their job will exist, or for several jobs, are stored as uploads of clients are: below the day
(`layout.upload_key`). `UploadSweep` deletes those by their age alone, after every job that names them has ended. So a
transaction that was rolled back, and a process that died before it committed, leave nothing that anybody has to find.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

from attrs import define, field, frozen

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.attachments import AttachmentSource, File, TextCheck, examine_attachments
from renderdispatch.engine.audio import AudioSource, Incoming, examine
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.rows import Submission
from renderdispatch.messages import Audio, RenderRequest, StorageKey, StoredAudio
from renderdispatch.protocols import StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.submission")

_AnyFile = TypeVar("_AnyFile", bound=Audio)

Place = Callable[[], str]
"""Returns the prefix below which a file is stored."""


@frozen
class Files:
    """Where the files of a request are, as its record has them."""

    audio: Audio
    attached: Mapping[str, File]

    def of(self, request: RenderRequest) -> RenderRequest:
        """Return the request with these files."""
        if self.attached:
            request = request.attaching(self.attached)
        return request.model_copy(update={"audio": self.audio})


@frozen
class Inputs:
    """The files of a request: its audio, and others by their places."""

    audio: Incoming[Audio]
    attached: Mapping[str, Incoming[File]]

    @classmethod
    def examine(
        cls,
        audio: AudioSource,
        attached: Mapping[str, AttachmentSource],
        parts: Parts,
        tenant: str | None,
        *,
        keyed: bool,
        check_text: TextCheck,
    ) -> Inputs:
        """Check the files of a row, and refuse what can never be used.

        Raises:
            InvalidRequestError: One of them cannot be used.
        """
        return cls(
            examine(audio, parts, tenant, keyed=keyed),
            examine_attachments(attached, parts, tenant, keyed=keyed, check_text=check_text),
        )

    def describe(self) -> Files:
        """Return what identifies them."""
        attached = {place: incoming.describe() for place, incoming in self.attached.items()}
        return Files(self.audio.describe(), attached)

    def store(self, below: Place) -> Files:
        """See that a worker can read all; return where they are. If one fails, nothing stays stored."""
        try:
            attached = {place: incoming.store(below()) for place, incoming in self.attached.items()}
            return Files(self.audio.store(below()), attached)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what `store` stored, if anything, as far as the storage answers."""
        for incoming in (self.audio, *self.attached.values()):
            try:
                incoming.discard()
            except errors.StorageError as error:
                _log.warning("what a submit stored could not be removed: %s", error)


# --- files of many requests -----------------------------------------------------------------------


@define
class StoredOnce:
    """What the rows of one call stored: a file that several rows name is read and stored once.

    A file is known by its path, an object by its key, bytes by their content. A stream is its row's own.
    """

    storage: StorageAdapter
    _described: dict[object, Audio] = field(factory=dict)
    _stored: dict[object, Audio] = field(factory=dict)
    _keys: list[str] = field(factory=list)

    def share(self, inputs: Inputs, row: Submission) -> Inputs:
        """Return the inputs of a row, which take what other rows stored already."""
        sources = row.files() if inputs.attached else {}
        attached = {
            place: self._shared(incoming, (place, _identity(sources[place])))
            for place, incoming in inputs.attached.items()
        }
        return Inputs(self._shared(inputs.audio, ("audio", _identity(row.audio))), attached)

    def _shared(self, incoming: Incoming[_AnyFile], identity: tuple[str, object]) -> _Shared[_AnyFile]:
        return _Shared(incoming, identity if identity[1] is not None else object(), self)

    def discard(self, needed: Collection[str] = ()) -> None:
        """Remove what was stored, but for the keys that a record names. What stays is swept later."""
        for key in self._keys:
            if key not in needed:
                try:
                    self.storage.delete(key)
                except errors.StorageError as error:
                    _log.warning("what a submit stored is left to the sweep of uploads: %s", error)
                    return


def _identity(source: AudioSource | AttachmentSource) -> object:
    match source:
        case Path():
            return source.absolute()
        case StorageKey():
            return source.key
        case bytes():
            return hashlib.sha256(source).digest()
    return None


@frozen
class _Shared(Incoming[_AnyFile], Generic[_AnyFile]):
    """A file that other rows may have brought already."""

    own: Incoming[_AnyFile]
    identity: object
    once: StoredOnce

    def describe(self) -> _AnyFile:
        """Return what identifies the file."""
        return self._from(self.once._described, self.own.describe)  # noqa: SLF001 - a part of it

    def store(self, prefix: str) -> _AnyFile:
        """Store the file, unless another row did."""

        def stored() -> _AnyFile:
            try:
                found = self.own.store(prefix)
            except BaseException:
                self.own.discard()
                raise
            if isinstance(found, StoredAudio) and found.key.startswith(prefix):
                self.once._keys.append(found.key)  # noqa: SLF001 - a part of it
            return found

        return self._from(self.once._stored, stored)  # noqa: SLF001 - a part of it

    def _from(self, known: dict[object, Audio], find: Callable[[], _AnyFile]) -> _AnyFile:
        if self.identity not in known:
            known[self.identity] = find()
        # What the identity says of the source says what kind of file it is.
        return known[self.identity]  # type: ignore[return-value]

    def discard(self) -> None:
        """Leave the file: other rows may need it."""


def upload_place(tenant: str | None, parts: Parts) -> Place:
    """Return the place of files that are stored as uploads are, each in a folder of its own."""
    folder = layout.upload_folder(tenant, parts.store.now())
    return lambda: f"{folder}{secrets.token_hex(16)}/"

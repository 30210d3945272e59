"""How does a cover get into storage?

As audio does: `examine_cover` refuses at submit what can never be used, and stores a file that no worker of this
machine reads later; `bring_cover` stores any other file when the job is dispatched. Covers are small, so each is read
at once. Its key names its content, so a second attempt that stores it writes the same object. It is kept until the job
is deleted.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from attrs import define

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.audio import Incoming, InPlace, Kept, changed, examine_file, is_left, is_read_in_place
from renderdispatch.engine.parts import Parts
from renderdispatch.messages import MAX_COVER_BYTES, LocalAudio, StorageKey, StoredAudio
from renderdispatch.protocols import RenderBackend, StorageAdapter

CoverSource = Path | StorageKey

_HEAD_BYTES: Final = 12
_HEADS: Final = {
    "jpg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM",
}
"""How pictures begin, by the extension of their files."""


# --- at submit ------------------------------------------------------------------------------------


def examine_cover(
    cover: CoverSource | None, parts: Parts, tenant: str | None, *, keyed: bool
) -> Incoming[StoredAudio | LocalAudio] | None:
    """Check what an application handed in as cover, as `audio.examine` checks audio.

    Raises:
        InvalidRequestError: It is not a picture, does not exist, is empty or too large, or belongs to another tenant.
    """
    match cover:
        case None:
            return None
        case Path():
            found = examine_file(cover, parts.machine, "cover")
            _kind_of(_read(cover, _HEAD_BYTES), found.size)
            left = is_left(found, parts)
            return InPlace(found, hashed=keyed, part="cover") if left else _Picture(parts.storage, cover)
        case StorageKey():
            if not layout.may_read(tenant, cover.key):
                raise errors.InvalidRequestError("this storage key is not yours", code="cover.denied")
            return _KeptPicture(parts, cover.key, "cover")
    message = f"a {type(cover).__name__} is not a cover: pass a pathlib.Path or a StorageKey"
    raise errors.InvalidRequestError(message, code="cover.invalid")


class _KeptPicture(Kept):
    """A picture that is an object of this storage already."""

    def store(self, prefix: str) -> StoredAudio:
        """Return the object as it is in storage; refuse one that is not a picture."""
        stored = super().store(prefix)
        with self.parts.storage.open(self.key) as file:
            _kind_of(file.read(_HEAD_BYTES), stored.size)
        return stored


@define
class _Picture(Incoming[StoredAudio]):
    """A file that is stored at submit."""

    storage: StorageAdapter
    path: Path
    _key: str | None = None

    def describe(self) -> StoredAudio:
        """Read the file for its size and hash."""
        return _described("", _read(self.path))

    def store(self, prefix: str) -> StoredAudio:
        """Store the picture under the prefix of the job's objects."""
        stored = store_picture(self.storage, prefix, _read(self.path))
        self._key = stored.key
        return stored

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""
        if self._key is not None:
            self.storage.delete(self._key)


def store_picture(storage: StorageAdapter, prefix: str, data: bytes) -> StoredAudio:
    """Store a picture under the prefix of a job's objects."""
    kind, sha256 = _kind_of(data[:_HEAD_BYTES], len(data)), hashlib.sha256(data).hexdigest()
    stored = _described(layout.cover_key(prefix, sha256, kind), data)
    storage.put(stored.key, data, content_type=f"image/{'jpeg' if kind == 'jpg' else kind}")
    return stored


def copy_cover(cover: StoredAudio, storage: StorageAdapter, prefix: str) -> StoredAudio:
    """Copy a job's stored cover to the prefix of another job, which outlives the first one.

    Raises:
        InvalidRequestError: ``cover.missing``.
    """
    try:
        with storage.open(cover.key) as file:
            return store_picture(storage, prefix, file.read(MAX_COVER_BYTES + 1))
    except errors.ObjectNotFoundError:
        raise _gone() from None


def _described(key: str, data: bytes) -> StoredAudio:
    return StoredAudio(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _kind_of(head: bytes, size: int) -> str:
    """Return the extension of a picture that begins so.

    Raises:
        InvalidRequestError: It is not a picture, or too large.
    """
    if size == 0:
        raise errors.InvalidRequestError("the cover is empty", code="cover.empty")
    if size > MAX_COVER_BYTES:
        message = f"the cover has {size} bytes, and {MAX_COVER_BYTES} are the limit"
        raise errors.InvalidRequestError(message, code="cover.too-large")
    kind = next((kind for kind, begin in _HEADS.items() if re.match(begin, head, re.DOTALL)), None)
    if kind is None:
        raise errors.InvalidRequestError("the cover is not a JPEG, PNG, WebP, GIF or BMP", code="cover.invalid")
    return kind


def _read(path: Path, most: int = MAX_COVER_BYTES + 1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        message = f"{path.name} cannot be read: {error.strerror}"
        raise errors.InvalidRequestError(message, code="cover.invalid") from error


# --- at dispatch ----------------------------------------------------------------------------------


def check_cover(source: StoredAudio | LocalAudio, storage: StorageAdapter) -> None:
    """Check that a job's cover is still what was submitted, as far as that can be known before it is read.

    Raises:
        InvalidRequestError: ``cover.missing`` or ``cover.changed``.
    """
    if isinstance(source, LocalAudio):
        if (problem := changed(source)) is not None:
            raise errors.InvalidRequestError(problem, code="cover.changed")
        return
    try:
        size = storage.stat(source.key).size
    except errors.ObjectNotFoundError:
        raise _gone() from None
    if size != source.size:
        raise errors.InvalidRequestError("the cover in storage has changed since submit", code="cover.changed")


def bring_cover(
    source: StoredAudio | LocalAudio, parts: Parts, backend: RenderBackend, prefix: str
) -> StoredAudio | LocalAudio:
    """See that the backend can read a job's cover, and return where: in place where audio is, else in storage.

    Args:
        source: What the record holds, as `check_cover` found it.
        parts: The service's parts.
        backend: Where the job is rendered.
        prefix: Of the job's objects.

    Raises:
        InvalidRequestError: The file changed, vanished or may not be read.
    """
    if isinstance(source, StoredAudio) or is_read_in_place(source, parts, backend):
        return source
    data = _read(Path(source.path))
    check_cover(source, parts.storage)
    if source.sha256 not in {None, hashlib.sha256(data).hexdigest()}:
        message = f"{Path(source.path).name} changed since submit; submit it again"
        raise errors.InvalidRequestError(message, code="cover.changed")
    return store_picture(parts.storage, prefix, data)


def _gone() -> errors.InvalidRequestError:
    return errors.InvalidRequestError("the cover is not in storage any more", code="cover.missing")

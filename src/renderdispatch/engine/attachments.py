"""How do the files of a request beside its audio get into storage: cover, scene file and images?

As audio does: `examine_attachments` refuses at submit what can never be used, and stores a file that no worker of this
machine reads later; `bring_attachment` stores any other file when the job is dispatched. They are small, so each is
read at once. A key names the content, so a second attempt that stores it writes the same object. It is kept until the
job is deleted. Places in a request are named as `RenderRequest.attached` names them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from attrs import define, frozen

from renderdispatch import errors
from renderdispatch.engine import layout, names
from renderdispatch.engine.audio import Incoming, InPlace, Kept, Part, changed, examine_file, is_left, is_read_in_place
from renderdispatch.engine.parts import Parts
from renderdispatch.messages import MAX_COVER_BYTES, MAX_SHADER_BYTES, LocalAudio, StorageKey, StoredAudio, is_image
from renderdispatch.plumbing.bundles import pack
from renderdispatch.protocols import RenderBackend, StorageAdapter

AttachmentSource = Path | StorageKey

File = StoredAudio | LocalAudio

TextCheck = Callable[[str, str], None]
"""``check(text, name)`` raises `InvalidRequestError` for a scene file that can never be drawn."""

_HEADS: Final = {
    "jpg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "gif": rb"GIF8[79]a",
    "bmp": rb"BM",
}
"""How pictures begin, by the extension of their files."""


# --- what they are --------------------------------------------------------------------------------


def _picture_suffix(head: bytes) -> str | None:
    return next((kind for kind, begin in _HEADS.items() if re.match(begin, head, re.DOTALL)), None)


def _text_suffix(data: bytes) -> str | None:
    return None if read_text(data) is None else "glsl"


def read_text(data: bytes) -> str | None:
    """Return the text of a scene file, without a byte order mark; None if it is not text in UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


@frozen
class _Kind:
    """What files in a place may be.

    Args:
        part: In the codes of errors.
        wanted: What a file must be.
        most: Bytes.
        deciding: How many bytes of its beginning say what it is.
        suffix: Returns the extension for a file that begins so; None if it is not what is wanted.
    """

    part: Part
    wanted: str
    most: int
    deciding: int
    suffix: Callable[[bytes], str | None]

    def check(self, place: str, beginning: bytes, size: int) -> str:
        """Return the extension of a file that begins so.

        Raises:
            InvalidRequestError: It is not what is wanted, empty or too large.
        """
        if size == 0:
            raise self.refused(f"{_called(place)} is empty", "empty")
        if size > self.most:
            raise self.refused(f"{_called(place)} has {size} bytes, and {self.most} are the limit", "too-large")
        suffix = self.suffix(beginning[: self.deciding])
        if suffix is None:
            raise self.refused(f"{_called(place)} is not {self.wanted}", "invalid")
        return suffix

    def refused(self, message: str, code: str) -> errors.InvalidRequestError:
        """Return the error of a file in such a place."""
        return errors.InvalidRequestError(message, code=f"{self.part}.{code}")


_PICTURE: Final = "a JPEG, PNG, WebP, GIF or BMP"
_COVER: Final = _Kind("cover", _PICTURE, MAX_COVER_BYTES, 12, _picture_suffix)
_IMAGE: Final = _Kind("image", _PICTURE, MAX_COVER_BYTES, 12, _picture_suffix)
_SCENE_FILE: Final = _Kind("scene-file", "text in UTF-8", MAX_SHADER_BYTES, MAX_SHADER_BYTES + 1, _text_suffix)
_CONTENT_TYPES: Final = {"jpg": "image/jpeg", "glsl": "text/plain; charset=utf-8"}


def _kind_of(place: str) -> _Kind:
    return _IMAGE if is_image(place) else _SCENE_FILE if place == "scene_file" else _COVER


def _called(place: str) -> str:
    name = place.replace("_", " ")
    return name if is_image(place) else f"the {name}"


def read_scene_file(path: Path) -> str:
    """Return the text of a scene file.

    Raises:
        InvalidRequestError: It cannot be read, is empty or too large, or is not text in UTF-8.
    """
    found = examine_file(path, "", _SCENE_FILE.part)
    data = b"" if found.size > _SCENE_FILE.most else _read("scene_file", path)
    _SCENE_FILE.check("scene_file", data, found.size)
    return read_text(data) or ""


# --- at submit ------------------------------------------------------------------------------------


def examine_attachments(
    sources: Mapping[str, AttachmentSource], parts: Parts, tenant: str | None, *, keyed: bool, check_text: TextCheck
) -> dict[str, Incoming[File]]:
    """Check what an application handed in beside the audio, as `audio.examine` checks audio.

    Args:
        sources: What was handed in, by place.
        parts: The service's parts.
        tenant: Whose stored objects may be named.
        keyed: Whether the job has an idempotency key.
        check_text: Checks what the scene file says.

    Raises:
        InvalidRequestError: A file is not what its place wants, does not exist, is empty or too large, or belongs to
            another tenant.
    """
    return {
        place: _examine(place, source, parts, tenant, keyed=keyed, check_text=check_text)
        for place, source in sources.items()
    }


def _examine(
    place: str, source: AttachmentSource, parts: Parts, tenant: str | None, *, keyed: bool, check_text: TextCheck
) -> Incoming[File]:
    kind = _kind_of(place)
    match source:
        case Path():
            found = examine_file(source, parts.machine, kind.part)
            if found.size > kind.most:
                kind.check(place, b"", found.size)
            beginning = _read(place, source, kind.deciding)
            kind.check(place, beginning, found.size)
            if kind is _SCENE_FILE:
                check_text(read_text(beginning) or "", names.safe_name(source.name))
            left = is_left(found, parts)
            return InPlace(found, hashed=keyed, part=kind.part) if left else _Stored(parts.storage, place, source)
        case StorageKey():
            if not layout.may_read(tenant, source.key):
                raise kind.refused("this storage key is not yours", "denied")
            return _KeptPicture(parts, source.key, kind.part, place)
    what = "an image" if kind is _IMAGE else f"a {place}"
    raise kind.refused(f"a {type(source).__name__} is not {what}: pass a pathlib.Path or a StorageKey", "invalid")


@frozen
class _KeptPicture(Kept):
    """A picture that is an object of this storage already."""

    place: str = "cover"

    def store(self, prefix: str) -> StoredAudio:
        """Return the object as it is in storage; refuse one that is not a picture."""
        stored, kind = super().store(prefix), _kind_of(self.place)
        with self.parts.storage.open(self.key) as file:
            kind.check(self.place, file.read(kind.deciding), stored.size)
        return stored


@define
class _Stored(Incoming[StoredAudio]):
    """A file that is stored at submit."""

    storage: StorageAdapter
    place: str
    path: Path
    _key: str | None = None

    def describe(self) -> StoredAudio:
        """Read the file for its size and hash."""
        return _described("", _read(self.place, self.path), self.path.name)

    def store(self, prefix: str) -> StoredAudio:
        """Store the file under the prefix of the job's objects."""
        data = _read(self.place, self.path)
        stored = _to_store(prefix, self.place, data, self.path.name)
        self._key = stored.key  # first, because an interrupt may come when the object is there already
        _put(self.storage, stored, data)
        return stored

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""
        if self._key is not None:
            self.storage.delete(self._key)


def store_attachment(storage: StorageAdapter, prefix: str, place: str, data: bytes, *, name: str | None) -> StoredAudio:
    """Store a file under the prefix of a job's objects.

    Args:
        storage: Where.
        prefix: The job's, from `layout.job_prefix`.
        place: Of the file in the request.
        data: What it holds.
        name: The file's own.
    """
    stored = _to_store(prefix, place, data, name)
    _put(storage, stored, data)
    return stored


def _to_store(prefix: str, place: str, data: bytes, name: str | None) -> StoredAudio:
    """Return what a file will be in storage; refuse one that is not what its place wants."""
    kind = _kind_of(place)
    suffix, sha256 = kind.check(place, data, len(data)), hashlib.sha256(data).hexdigest()
    return _described(layout.attachment_key(prefix, kind.part, sha256, suffix), data, name)


def _put(storage: StorageAdapter, stored: StoredAudio, data: bytes) -> None:
    suffix = stored.key.rpartition(".")[2]
    storage.put(stored.key, data, content_type=_CONTENT_TYPES.get(suffix, f"image/{suffix}"))


def copy_attachment(place: str, file: StoredAudio, storage: StorageAdapter, prefix: str) -> StoredAudio:
    """Copy a job's stored file to the prefix of another job, which outlives the first one.

    Raises:
        InvalidRequestError: ``cover.missing``, or the like for another part.
    """
    try:
        with storage.open(file.key) as source:
            data = source.read(_kind_of(place).most + 1)
    except errors.ObjectNotFoundError:
        raise _gone(place) from None
    return store_attachment(storage, prefix, place, data, name=file.name)


def _described(key: str, data: bytes, name: str | None) -> StoredAudio:
    kept = None if name is None else names.safe_name(name)
    return StoredAudio(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest(), name=kept)


def _read(place: str, path: Path, most: int | None = None) -> bytes:
    kind = _kind_of(place)
    try:
        with path.open("rb") as file:
            return file.read(kind.most + 1 if most is None else most)
    except OSError as error:
        raise kind.refused(f"{path.name} cannot be read: {error.strerror}", "invalid") from error


# --- at dispatch ----------------------------------------------------------------------------------


def check_attachment(place: str, source: File, storage: StorageAdapter) -> None:
    """Check that a job's file is still what was submitted, as far as that can be known before it is read.

    Raises:
        InvalidRequestError: ``cover.missing`` or ``cover.changed``, or the like for another part.
    """
    kind = _kind_of(place)
    if isinstance(source, LocalAudio):
        if (problem := changed(source)) is not None:
            raise kind.refused(problem, "changed")
        return
    try:
        size = storage.stat(source.key).size
    except errors.ObjectNotFoundError:
        raise _gone(place) from None
    if size != source.size:
        raise kind.refused(f"{_called(place)} in storage has changed since submit", "changed")


def bring_attachment(place: str, source: File, parts: Parts, backend: RenderBackend, prefix: str) -> File:
    """See that the backend can read a job's file, and return where: in place where audio is, else in storage.

    Args:
        place: Of the file in the request.
        source: What the record holds, as `check_attachment` found it.
        parts: The service's parts.
        backend: Where the job is rendered.
        prefix: Of the job's objects.

    Raises:
        InvalidRequestError: The file changed, vanished or may not be read.
    """
    if isinstance(source, StoredAudio) or is_read_in_place(source, parts, backend):
        return source
    path = Path(source.path)
    data = _read(place, path)
    check_attachment(place, source, parts.storage)
    if source.sha256 not in {None, hashlib.sha256(data).hexdigest()}:
        raise _kind_of(place).refused(f"{path.name} changed since submit; submit it again", "changed")
    return store_attachment(parts.storage, prefix, place, data, name=path.name)


def bundle_attachments(attached: Mapping[str, File], storage: StorageAdapter, prefix: str) -> StoredAudio:
    """Store an archive of a job's files, for an order that cannot hold a URL for each.

    Raises:
        InvalidRequestError: One of them changed or vanished.
    """

    def opener(file: File) -> Callable[[], AbstractContextManager[IO[bytes]]]:
        if isinstance(file, StoredAudio):
            return partial(storage.open, file.key)
        return lambda: Path(file.path).open("rb")

    with TemporaryDirectory(prefix="renderdispatch-bundle-") as folder:
        archive = Path(folder, "bundle.zip")
        try:
            pack({place: opener(file) for place, file in attached.items()}, archive)
        except (errors.ObjectNotFoundError, FileNotFoundError):
            for place, file in attached.items():
                check_attachment(place, file, storage)  # says which one is gone
            raise
        for place, file in attached.items():
            check_attachment(place, file, storage)
        with archive.open("rb") as packed:
            sha256 = hashlib.file_digest(packed, "sha256").hexdigest()
        key = layout.attachment_key(prefix, "bundle", sha256, "zip")
        return StoredAudio(key=key, size=storage.put(key, archive, content_type="application/zip").size, sha256=sha256)


def _gone(place: str) -> errors.InvalidRequestError:
    return _kind_of(place).refused(f"{_called(place)} is not in storage any more", "missing")

"""How does a song get into storage?

At submit, `examine` checks what an application hands in, and refuses what can never be used. Bytes and streams are
stored then. Files that a worker of this machine can read, and URLs, are left to a dispatcher: `check_source` finds out
whether they are still what was submitted, and `bring` stores them.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Final, Literal, Protocol, TypeVar, assert_never

from attrs import define, frozen
from pydantic import SecretStr

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.intake import is_text
from renderdispatch.engine.names import kept_name
from renderdispatch.engine.orders import file_url
from renderdispatch.engine.parts import Parts
from renderdispatch.messages import Audio, AudioUrl, LocalAudio, RemoteAudio, StorageKey, StoredAudio
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import AudioFetcher, Locality, RenderBackend, StorageAdapter, SupportsUrlCheck

AudioSource = Path | bytes | IO[bytes] | AudioUrl | StorageKey

_CHUNK_BYTES: Final = 1 << 20
_MAX_FILE_URL: Final = 2048
"""An order has little room; a file with a longer path is copied."""
_WANTED: Final = "pass a pathlib.Path, bytes, an open binary file, an AudioUrl or a StorageKey"
_AS_TEXT: Final = "the audio is open as text; open it with 'rb'"
_KINDS: Final = {
    "audio": "an audio file",
    "cover": "a picture",
    "image": "a picture",
    "scene-file": "a Shadertoy file",
}
_NO_FETCHER: Final = "audio by URL needs a fetcher, and this worker has none"


# --- at submit ------------------------------------------------------------------------------------


Part = Literal["audio", "cover", "scene-file", "image"]
"""Of a request, in the codes of errors."""

_Found_co = TypeVar("_Found_co", bound=Audio, covariant=True)


class Incoming(Protocol[_Found_co]):
    """Audio, or another file of a request, that an application hands in."""

    def describe(self) -> _Found_co:
        """Return what identifies it, without storing anything: rule J9 compares it with a record."""

    def store(self, prefix: str) -> _Found_co:
        """See that a worker can read it, below the prefix of the job's objects; return what the record holds."""

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""


@define
class InPlace(Incoming[LocalAudio]):
    """A file for a worker of this machine: nothing needs to be moved now.

    Args:
        hashed: Whether the file is identified by its content, for which it is read.
    """

    file: LocalAudio
    hashed: bool
    part: Part = "audio"

    def describe(self) -> LocalAudio:
        """Return the file, with its hash if that identifies it."""
        if self.hashed and self.file.sha256 is None:
            found = _Counted(Path(self.file.path)).drained("")
            if found.size != self.file.size:
                message = f"{Path(self.file.path).name} changed while it was read; submit it again"
                raise errors.InvalidRequestError(message, code=f"{self.part}.changed")
            self.file = self.file.model_copy(update={"sha256": found.sha256})
        return self.file

    def store(self, prefix: str) -> LocalAudio:  # noqa: ARG002 - the protocol's
        """Return what `describe` returns."""
        return self.describe()

    def discard(self) -> None:
        """Remove nothing."""


@frozen
class Elsewhere(Incoming[RemoteAudio]):
    """Audio behind a URL: it is fetched later."""

    audio: RemoteAudio

    def describe(self) -> RemoteAudio:
        """Return the URL."""
        return self.audio

    def store(self, prefix: str) -> RemoteAudio:  # noqa: ARG002 - the protocol's
        """Return the URL."""
        return self.audio

    def discard(self) -> None:
        """Remove nothing."""


@frozen
class Kept(Incoming[StoredAudio]):
    """An object of this storage, used where it is."""

    parts: Parts
    key: str
    part: Part = "audio"

    def describe(self) -> StoredAudio:
        """Return the object with its hash, if the record of the job to which it belongs has one."""
        owner = None
        with suppress(errors.JobNotFoundError, errors.JobUnreadableError):
            owner = (job_id := layout.job_of(self.key)) and self.parts.store.get(job_id)
        attached = (*owner.attached().values(), *owner.request.attached().values()) if owner else ()
        for known in (owner.audio, owner.request.audio, *attached) if owner else ():
            if isinstance(known, StoredAudio) and known.key == self.key:
                return known
        return StoredAudio(key=self.key, size=0)

    def store(self, prefix: str) -> StoredAudio:  # noqa: ARG002 - the protocol's
        """Return the object as it is in storage."""
        return self.describe().model_copy(update={"size": _examine_object(self.key, self.parts, self.part)})

    def discard(self) -> None:
        """Remove nothing."""


@define
class Streamed(Incoming[StoredAudio]):
    """Audio that is streamed into storage, and hashed on the way. The source is read once.

    Args:
        name: The file's name.
    """

    storage: StorageAdapter
    source: Path | IO[bytes]
    name: str
    _key: str | None = None

    def describe(self) -> StoredAudio:
        """Read the source for its size and hash."""
        return _Counted(self.source).drained("")

    def store(self, prefix: str) -> StoredAudio:
        """Store the source under the prefix of the job's objects; return what the record holds."""
        key = layout.audio_key(prefix, "audio", self.name)
        counted = _Counted(self.source)
        self._key = key  # first, because an interrupt may come when the object is there already
        self.storage.put(key, counted)
        if counted.size == 0:
            self.discard()
            raise errors.InvalidRequestError("the audio is empty", code="audio.empty")
        return counted.stored(key).model_copy(update={"name": kept_name(self.name)})

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""
        if self._key is not None:
            self.storage.delete(self._key)


class _Counted:
    """The chunks of a source, counted and hashed as they pass."""

    def __init__(self, source: Path | IO[bytes]) -> None:
        self._source = source
        self.size = 0
        self._sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        source = self._source
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            while chunk := _read(file):
                self._sha256.update(chunk)
                self.size += len(chunk)
                yield chunk

    def drained(self, key: str) -> StoredAudio:
        for _ in self:
            pass
        return self.stored(key)

    def stored(self, key: str) -> StoredAudio:
        return StoredAudio(key=key, size=self.size, sha256=self._sha256.hexdigest())


def _read(file: IO[bytes]) -> bytes:
    """Return the next bytes of what an application handed in, whatever its ``read`` does."""
    try:
        chunk: object = file.read(_CHUNK_BYTES)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # closed, write-only, or not a file at all
        raise errors.InvalidRequestError(f"the audio cannot be read: {error}", code="audio.invalid") from error
    if isinstance(chunk, bytes | bytearray):
        return bytes(chunk)
    if inspect.iscoroutine(chunk):
        chunk.close()
    what = _AS_TEXT if isinstance(chunk, str) else f"the audio's read() returned a {type(chunk).__name__}: {_WANTED}"
    raise errors.InvalidRequestError(what, code="audio.invalid")


def examine(audio: AudioSource, parts: Parts, tenant: str | None, *, keyed: bool) -> Incoming[Audio]:
    """Check what an application handed in as audio, and refuse what can never be used.

    Args:
        audio: What was handed in. With a worker in this process, files are left for it to read.
        parts: The service's parts.
        tenant: Whose stored objects may be named.
        keyed: Whether the job has an idempotency key, so that the audio is compared by its content (rule J9).

    Raises:
        InvalidRequestError: It is not audio, does not exist, is empty, or belongs to another tenant.
    """
    match audio:
        case Path():
            found = examine_file(audio, parts.machine, "audio")
            left = is_left(found, parts)
            return InPlace(found, hashed=keyed) if left else Streamed(parts.storage, audio, audio.name)
        case bytes():
            if not audio:
                raise errors.InvalidRequestError("the audio is empty", code="audio.empty")
            return Streamed(parts.storage, io.BytesIO(audio), "")
        case StorageKey():
            if not layout.may_read(tenant, audio.key):
                raise errors.InvalidRequestError("this storage key is not yours", code="audio.denied")
            return Kept(parts, audio.key)
        case AudioUrl():
            return Elsewhere(_examine_url(audio.url, parts.fetcher))
        case io.TextIOBase():
            raise errors.InvalidRequestError(_AS_TEXT, code="audio.invalid")
        case _ if hasattr(audio, "read"):
            name = getattr(audio, "name", "")
            return Streamed(parts.storage, audio, name if isinstance(name, str) else "")
    raise errors.InvalidRequestError(f"a {type(audio).__name__} is not audio: {_WANTED}", code="audio.invalid")


def is_left(file: LocalAudio, parts: Parts) -> bool:
    """Return whether a file is left for a worker of this machine to read.

    A record is UTF-8, and a file's name may not be: then the file is read now, as where no worker runs. So is one whose
    name means another file in another process, such as /dev/stdin.
    """
    return parts.worker and is_text(file.path) and not file.path.startswith(("/dev/", "/proc/"))


def _examine_object(key: str, parts: Parts, part: Part) -> int:
    age = layout.upload_age(key, parts.store.now()) if key.startswith(layout.UPLOADS) else None
    if age is not None and age >= timedelta(days=layout.UPLOAD_DAYS):
        raise errors.InvalidRequestError("this upload is too old to be used: upload it again", code=f"{part}.expired")
    try:
        return parts.storage.stat(key).size
    except errors.ObjectNotFoundError:
        raise errors.InvalidRequestError(f"nothing is stored under {key[:200]!r}", code=f"{part}.missing") from None
    except errors.StorageDeniedError as error:
        raise errors.InvalidRequestError(f"the storage refuses this key: {error}", code=f"{part}.denied") from error


def _examine_url(url: object, fetcher: AudioFetcher | None) -> RemoteAudio:
    if fetcher is None:
        message = "audio by URL needs RenderService(fetcher=GuardedFetcher()); or download it and submit the file"
        raise errors.InvalidRequestError(message, code="audio.url-unsupported")
    if not isinstance(url, str) or not url.startswith(("https://", "http://")) or not url.isprintable():
        raise errors.InvalidRequestError("an AudioUrl holds an https URL", code="audio.url-refused")
    if isinstance(fetcher, SupportsUrlCheck):
        fetcher.check(url)
    return RemoteAudio(url=SecretStr(url))


def examine_file(path: Path, machine: str, part: Part) -> LocalAudio:
    """Return a file as a record holds it.

    Raises:
        InvalidRequestError: It is not a file that can be read, or is empty.
    """

    def refused(why: str, code: str) -> errors.InvalidRequestError:
        return errors.InvalidRequestError(f"{path} {why}", code=f"{part}.{code}")

    try:
        path = path.absolute()
        found = path.stat()
        if stat.S_ISREG(found.st_mode):  # to open a pipe could wait for ever
            path.open("rb").close()
    except FileNotFoundError:
        raise refused("does not exist", "missing") from None
    except PermissionError:
        raise refused("may not be read by this user", "denied") from None
    except (OSError, ValueError) as error:
        message = f"{str(path)[:200]!r} cannot be read: {error}"
        raise errors.InvalidRequestError(message, code=f"{part}.invalid") from None
    if stat.S_ISDIR(found.st_mode):
        raise refused(f"is a directory, not {_KINDS[part]}", "directory")
    if not stat.S_ISREG(found.st_mode):
        raise refused("is not a regular file", "invalid")
    if found.st_size == 0:
        raise refused("is empty", "empty")
    return LocalAudio(path=str(path), machine=machine, size=found.st_size, mtime_ns=found.st_mtime_ns)


# --- at dispatch ----------------------------------------------------------------------------------


def check_source(source: Audio, parts: Parts) -> None:
    """Check that a job's audio is still what was submitted, as far as that can be known before it is read.

    Raises:
        AudioError: ``audio.missing`` or ``audio.changed``.
        InvalidRequestError: It is a URL, and there is no fetcher.
    """
    match source:
        case StoredAudio():
            try:
                found = parts.storage.stat(source.key)
            except errors.ObjectNotFoundError:
                raise errors.AudioError("the audio is not in storage any more", code="audio.missing") from None
            if found.size != source.size:
                raise errors.AudioError("the audio in storage has changed since submit", code="audio.changed")
        case LocalAudio():
            if (problem := changed(source)) is not None:
                raise errors.AudioError(problem, code="audio.changed")
        case RemoteAudio():
            if parts.fetcher is None:
                raise errors.InvalidRequestError(_NO_FETCHER, code="audio.no-fetcher")
        case _:
            assert_never(source)


def bring(
    source: Audio, parts: Parts, backend: RenderBackend, *, key: Callable[[str], str], stop: Stop
) -> StoredAudio | LocalAudio:
    """See that the backend can read a job's audio, and return where.

    Where storage and backend are on this machine, a local file is read in place; any other audio is in storage then.

    Args:
        source: What the record holds, as `check_source` found it.
        parts: The service's parts.
        backend: Where the job is rendered.
        key: Returns the key of the stored copy, from the file's name.
        stop: Ends the copying once the audio is needed no longer; what its `check` raises passes.

    Raises:
        AudioError: A file changed, vanished or may not be read.
        InvalidRequestError: A URL is not allowed.
    """
    match source:
        case StoredAudio():
            return source
        case LocalAudio():
            path = Path(source.path)
            try:
                file = path.open("rb")
            except FileNotFoundError:
                raise errors.AudioError(f"{path.name} vanished since submit", code="audio.changed") from None
            except PermissionError:
                raise errors.AudioError(f"{path.name} may not be read", code="audio.denied") from None
            with file:
                if is_read_in_place(source, parts, backend):
                    return source
                stored = _put(parts.storage, key(path.name), _chunks(file), stop.check)
            check_source(source, parts)
            return stored.model_copy(update={"sha256": source.sha256})
        case RemoteAudio():
            assert parts.fetcher is not None
            try:
                with parts.fetcher.fetch(source.url.get_secret_value(), stop=stop) as fetched:
                    stored = _put(parts.storage, key(fetched.filename or ""), fetched.chunks, stop.check)
                    return stored.model_copy(update={"name": kept_name(fetched.filename)})
            except errors.StorageUnavailableError:
                stop.check()  # a fetch that was cut off
                raise
        case _:
            assert_never(source)


def is_read_in_place(source: LocalAudio, parts: Parts, backend: RenderBackend) -> bool:
    """Return whether the backend reads a file of this machine where it is."""
    here = parts.storage.locality is Locality.MACHINE and backend.locality < Locality.WORLD
    return here and len(file_url(source)) <= _MAX_FILE_URL


def _put(storage: StorageAdapter, key: str, chunks: Iterator[bytes], check: Callable[[], None]) -> StoredAudio:
    def checked() -> Iterator[bytes]:
        for chunk in chunks:
            check()
            yield chunk

    return StoredAudio(key=key, size=storage.put(key, checked()).size)


def changed(file: LocalAudio) -> str | None:
    """Return how a file is not the submitted one any more; None if it is."""
    path = Path(file.path)
    try:
        found = path.stat()
    except OSError:
        return f"{path.name} vanished since submit"
    if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
        return f"{path.name} changed since submit; submit it again"
    return None


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk

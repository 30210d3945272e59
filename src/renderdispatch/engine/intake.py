"""How does what an application hands in become a request and stored audio?

Everything is looked at before anything is written: what can never be served is refused here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final, Protocol

from attrs import define, frozen
from pydantic import SecretStr, ValidationError

from renderdispatch.engine import layout
from renderdispatch.errors import InvalidRequestError, ObjectNotFoundError
from renderdispatch.messages import (
    FOR_THE_RECORD,
    Audio,
    AudioUrl,
    LocalAudio,
    RemoteAudio,
    RenderRequest,
    StorageKey,
    StoredAudio,
)
from renderdispatch.protocols import AudioFetcher, StorageAdapter, SupportsUrlCheck

AudioSource = Path | bytes | IO[bytes] | AudioUrl | StorageKey

_CHUNK_BYTES: Final = 1 << 20
_MAX_PRIORITY: Final = 1_000_000
_MAX_UPLOAD_BYTES: Final = 5 << 30
_UPLOADED: Final = re.compile(r"(?:audio|video)/[\w!#$&^.+-]{1,100}(?:; ?[\w-]{1,50}=[\w.+-]{1,50}){0,4}", re.ASCII)
_WANTED: Final = "pass a pathlib.Path, bytes, an open binary file, an AudioUrl or a StorageKey"


def scene_name(scene: str | Path) -> str:
    """Return the name of a registered scene.

    Raises:
        InvalidRequestError: It is a scene file.
    """
    if isinstance(scene, Path):
        message = f"{scene.name} is a scene file, and no renderer here takes scene files; name a registered scene"
        raise InvalidRequestError(message, code="scene.file-unsupported")
    return scene


def check_priority(priority: object) -> int:
    """Return the priority.

    Raises:
        InvalidRequestError: It is no integer from -1,000,000 to 1,000,000.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _MAX_PRIORITY:
        message = f"priority: an integer from {-_MAX_PRIORITY:,} to {_MAX_PRIORITY:,}"
        raise InvalidRequestError(message)
    return priority


def read_request(fields: Mapping[str, Any]) -> RenderRequest:
    """Return the request that the fields make.

    Raises:
        InvalidRequestError: They make none; the message names each field that is wrong.
    """
    try:
        return RenderRequest.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequestError(describe_validation(error)) from None


def describe_validation(error: ValidationError) -> str:
    """Say in one line what is wrong with each field; the values are not quoted."""
    said = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        said.append(f"{where}: {what}" if where else what)
    return "; ".join(said)


def check_upload(size: object, content_type: object) -> tuple[int, str]:
    """Return the size in bytes and the type of an upload that a client announces.

    Raises:
        InvalidRequestError: The size is not 1 byte to 5 GiB, or the type is neither audio nor video nor
            ``application/octet-stream``.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _MAX_UPLOAD_BYTES:
        message = f"size: an upload has 1 to {_MAX_UPLOAD_BYTES} bytes"
        raise InvalidRequestError(message, code="upload.size")
    octets = "application/octet-stream"
    if not isinstance(content_type, str) or (content_type != octets and not _UPLOADED.fullmatch(content_type)):
        message = f"content_type: an upload is audio/..., video/... or {octets}"
        raise InvalidRequestError(message, code="upload.type")
    return size, content_type


def fingerprint(request: RenderRequest) -> str:
    """Hash what was asked for. Stored audio counts by its content where that is known, else by its key."""
    fields = request.model_dump(mode="json", exclude={"protocol"}, context=FOR_THE_RECORD)
    if isinstance(request.audio, StoredAudio) and request.audio.sha256 is not None:
        fields["audio"].pop("key")
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def keyed_id(tenant: str | None, key: str) -> str:
    """Derive a job's id from its idempotency key: length-prefixed, so that no two pairs run together (rule J9)."""
    if not 1 <= len(key.encode(errors="replace")) <= 1024 or not _is_text(key):
        raise InvalidRequestError("an idempotency key is 1 to 1024 bytes", code="idempotency-key.invalid")
    parts = [b"" if tenant is None else b"t" + tenant.encode(), key.encode()]
    return hashlib.sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).hexdigest()[:32]


def _is_text(text: str) -> bool:
    """Return whether UTF-8 can hold it: names of files, and JSON, may bring half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def machine_id() -> str:
    """Return an id of this machine, the same for every process and every start of it."""
    seed = platform.node()  # containers share their image's id, and may share an address with those of other hosts
    for source in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            seed += Path(source).read_text("ascii")
            break
    else:
        address = uuid.getnode()
        if not address >> 40 & 1:  # else it is random, another one in each process (RFC 9562)
            seed = f"{address:x}" if sys.platform == "darwin" else f"{seed}{address:x}"  # macOS: names follow networks
    return hashlib.sha256(b"renderdispatch" + seed.encode()).hexdigest()[:16]


# --- audio on its way in --------------------------------------------------------------------------


class Incoming(Protocol):
    """Audio that was looked at, and is acceptable so far."""

    def describe(self) -> Audio:
        """Return what the record would hold, without storing anything."""

    def store(self, prefix: str) -> Audio:
        """Put the audio where a worker can read it; return what the record holds.

        Args:
            prefix: Of the job's objects.
        """

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""


@frozen
class _InPlace:
    """A file for a worker of this machine, a stored object or a URL: nothing needs to be moved now."""

    audio: Audio

    def describe(self) -> Audio:
        return self.audio

    def store(self, prefix: str) -> Audio:  # noqa: ARG002 - the protocol's
        return self.audio

    def discard(self) -> None:
        pass


@define
class Streamed:
    """Audio that is streamed into storage, and hashed on the way. The source is read once.

    Args:
        name: The file's name, for its extension.
    """

    storage: StorageAdapter
    source: Path | bytes | IO[bytes]
    name: str
    _key: str | None = None

    def describe(self) -> StoredAudio:
        counted = _Counted(self.source)
        for _ in counted:
            pass
        return StoredAudio(key="", size=counted.size, sha256=counted.sha256.hexdigest())

    def store(self, prefix: str) -> StoredAudio:
        key = layout.audio_key(prefix, "audio", self.name)
        counted = _Counted(self.source)
        self.storage.put(key, counted)
        self._key = key
        if counted.size == 0:
            self.discard()
            raise InvalidRequestError("the audio is empty", code="audio.empty")
        return StoredAudio(key=key, size=counted.size, sha256=counted.sha256.hexdigest())

    def discard(self) -> None:
        if self._key is not None:
            self.storage.delete(self._key)


class _Counted:
    """The chunks of a source, counted and hashed as they pass."""

    def __init__(self, source: Path | bytes | IO[bytes]) -> None:
        self._source = source
        self.size = 0
        self.sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        with contextlib.ExitStack() as stack:
            match self._source:
                case bytes():
                    file: IO[bytes] = io.BytesIO(self._source)
                case Path():
                    file = stack.enter_context(self._source.open("rb"))
                case _:
                    file = self._source
            while chunk := file.read(_CHUNK_BYTES):
                if not isinstance(chunk, bytes):
                    raise InvalidRequestError("the audio is open as text; open it with 'rb'", code="audio.invalid")
                self.sha256.update(chunk)
                self.size += len(chunk)
                yield chunk


def look_at(
    audio: AudioSource,
    *,
    storage: StorageAdapter,
    tenant: str | None,
    machine: str,
    leave_files: bool,
    now: Callable[[], datetime],
    fetcher: AudioFetcher | None,
) -> Incoming:
    """Look at what an application handed in as audio, and refuse what can never be used.

    Args:
        leave_files: Whether a worker of this machine reads files later.
        now: Returns the store's time.
        fetcher: What a worker reads URLs with; None where it cannot.

    Raises:
        InvalidRequestError: It is no audio, does not exist, is empty, or is not this tenant's.
    """
    match audio:
        case Path():
            found = _look_at_file(audio, machine)
            # a record is UTF-8, and a file's name may be no text: then the file is read now, as where no worker runs
            in_place = leave_files and _is_text(found.path)
            return _InPlace(found) if in_place else Streamed(storage, audio, audio.name)
        case bytes():
            if not audio:
                raise InvalidRequestError("the audio is empty", code="audio.empty")
            return Streamed(storage, audio, "")
        case StorageKey():
            if not layout.may_read(tenant, audio.key):
                raise InvalidRequestError("this storage key is not yours", code="audio.denied")
            age = layout.upload_age(audio.key, now()) if audio.key.startswith(layout.UPLOADS) else None
            if age is not None and age >= timedelta(days=layout.UPLOAD_DAYS):
                raise InvalidRequestError("this upload is too old to be used: upload it again", code="audio.expired")
            try:
                info = storage.stat(audio.key)
            except ObjectNotFoundError:
                message = f"nothing is stored under {audio.key[:200]!r}"
                raise InvalidRequestError(message, code="audio.missing") from None
            return _InPlace(StoredAudio(key=audio.key, size=info.size))
        case AudioUrl():
            return _InPlace(_look_at_url(audio.url, fetcher))
        case str():
            raise InvalidRequestError(f"a bare string is no audio: {_WANTED}", code="audio.invalid")
        case io.TextIOBase():
            raise InvalidRequestError("the audio is open as text; open it with 'rb'", code="audio.invalid")
        case _ if hasattr(audio, "read"):
            name = getattr(audio, "name", "")
            return Streamed(storage, audio, name if isinstance(name, str) else "")
    raise InvalidRequestError(f"a {type(audio).__name__} is no audio: {_WANTED}", code="audio.invalid")


def _look_at_url(url: object, fetcher: AudioFetcher | None) -> RemoteAudio:
    if fetcher is None:
        message = "audio by URL needs RenderService(fetcher=GuardedFetcher()); or download it and submit the file"
        raise InvalidRequestError(message, code="audio.url-unsupported")
    if not isinstance(url, str) or not url.startswith(("https://", "http://")) or not url.isprintable():
        raise InvalidRequestError("an AudioUrl holds an https URL", code="audio.url-refused")
    if isinstance(fetcher, SupportsUrlCheck):
        fetcher.check(url)
    return RemoteAudio(url=SecretStr(url))


def _look_at_file(path: Path, machine: str) -> LocalAudio:
    try:
        path = path.absolute()
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise InvalidRequestError(f"{path} is a directory, not an audio file", code="audio.directory")
        if not stat.S_ISREG(found.st_mode):
            raise InvalidRequestError(f"{path} is no regular file", code="audio.invalid")
        if found.st_size == 0:
            raise InvalidRequestError(f"{path} is empty", code="audio.empty")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise InvalidRequestError(f"{path} does not exist", code="audio.missing") from None
    except PermissionError:
        raise InvalidRequestError(f"{path} may not be read by this user", code="audio.denied") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        raise InvalidRequestError(f"{str(path)[:200]!r} cannot be read: {error}", code="audio.invalid") from None
    return LocalAudio(path=str(path), machine=machine, size=found.st_size, mtime_ns=found.st_mtime_ns)

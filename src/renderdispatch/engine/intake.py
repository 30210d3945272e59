"""How does what an application hands in become a request?

Everything is checked before anything is written: what can never be served is refused here. The audio has a module of
its own, `renderdispatch.engine.audio`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import FOR_THE_RECORD, Limits, RenderRequest, StoredAudio

_MAX_PRIORITY: Final = 1_000_000
_MAX_UPLOAD_BYTES: Final = 5 << 30
_FIRST_LIMITS: Final = frozenset({"startTimeout", "totalTimeout", "maxAttempts", "gpu"})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UPLOADED: Final = re.compile(r"(?:audio|video)/[\w!#$&^.+-]{1,100}(?:; ?[\w-]{1,50}=[\w.+-]{1,50}){0,4}", re.ASCII)


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
        InvalidRequestError: It is not an integer from -1,000,000 to 1,000,000.
    """
    if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > _MAX_PRIORITY:
        message = f"priority: an integer from {-_MAX_PRIORITY:,} to {_MAX_PRIORITY:,}"
        raise InvalidRequestError(message)
    return priority


def read_request(fields: Mapping[str, Any]) -> RenderRequest:
    """Return the request that the fields describe.

    Raises:
        InvalidRequestError: Some field is wrong; the message names each.
    """
    try:
        request = RenderRequest.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequestError(describe_validation(error)) from None
    longest = request.limits.max_duration.total_seconds()
    if request.duration is not None and request.duration > longest:
        raise InvalidRequestError(f"duration: at most {longest:g} s; a longer video needs Limits(max_duration=...)")
    return request


def describe_validation(error: ValidationError) -> str:
    """Return one line that says what is wrong with each field; the values are not quoted."""
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {what}" if where else what)
    return "; ".join(problems)


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
    """Hash what was asked for. Stored audio counts by its content if its hash is known, else by its key.

    Fields that are younger than the first fingerprints count only if they are used: so the idempotency keys of jobs
    that an older version recorded still work.
    """
    fields = request.model_dump(mode="json", exclude={"protocol"}, context=FOR_THE_RECORD)
    if request.audio_track is None:
        del fields["audioTrack"]
    for name, value in Limits().model_dump(mode="json").items():
        if name not in _FIRST_LIMITS and fields["limits"][name] == value:
            del fields["limits"][name]
    if isinstance(request.audio, StoredAudio) and request.audio.sha256 is not None:
        fields["audio"].pop("key")
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def keyed_id(tenant: str | None, key: str) -> str:
    """Derive a job's id from its idempotency key: length-prefixed, so that no two pairs run together (rule J9)."""
    if not 1 <= len(key.encode(errors="replace")) <= 1024 or not is_text(key):
        raise InvalidRequestError("an idempotency key is 1 to 1024 bytes", code="idempotency-key.invalid")
    parts = [b"" if tenant is None else b"t" + tenant.encode(), key.encode()]
    return hashlib.sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).hexdigest()[:32]


def is_text(text: str) -> bool:
    """Return whether UTF-8 can hold it: names of files, and JSON, may bring half a surrogate pair."""
    return _SURROGATE.search(text) is None

"""How does what an application hands in become a request?

Everything is checked before anything is written: what can never be served is refused here. The audio has a module of
its own, `renderdispatch.engine.audio`.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from renderdispatch.engine.records import unreadable
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    FOR_THE_RECORD,
    MAX_IMAGES,
    MAX_PARALLEL,
    SCENE_OF_FILES,
    Argument,
    RenderRequest,
    StorageKey,
    StoredAudio,
    check_image_count,
    describe_validation,
)

_MAX_PRIORITY: Final = 1_000_000
_MAX_UPLOAD_BYTES: Final = 5 << 30
_FINGERPRINT: Final = 2
_FIRST_FIELDS: Final = (
    "audio", "scene", "params", "output", "start", "duration", "backend", "requireGpu", "limits", "metadata",
)  # fmt: skip
_FIRST_PARTS: Final = {
    "output": ("width", "height", "fps", "projection"),
    "limits": ("startTimeout", "totalTimeout", "maxAttempts", "gpu"),
}
_FIRST_AUDIO: Final = {
    "stored": ("kind", "key", "size", "sha256"),
    "local": ("kind", "path", "machine", "size", "mtimeNs"),
    "remote": ("kind", "url"),
}
_PYTHON_FILE: Final = re.compile(r"\.pyw?(?::|$)", re.IGNORECASE)
_SHADER_SUFFIXES: Final = (".glsl", ".frag", ".fs", ".fsh", ".shader")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BATCH: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SIMPLE: Final = frozenset({str, int, float, bool})
_UPLOADED: Final = re.compile(
    r"(?:audio|video)/[\w!#$&^.+-]{1,100}(?:; ?[\w-]{1,50}=[\w.+-]{1,50}){0,4}|image/(?:jpeg|png|webp|gif|bmp)",
    re.ASCII,
)


def read_scene(scene: str | Path) -> tuple[str, Path | None]:
    """Return the name of a registered scene, and the Shadertoy file that it draws, if there is one.

    Raises:
        InvalidRequestError: ``scene.file``: it is a Python file, or a file whose path came as a string, or the scene
            that draws files came without one.
    """
    if isinstance(scene, Path):
        if _PYTHON_FILE.search(scene.name):
            message = (
                f"{scene.name} is Python, which runs where it is rendered, so that only a command takes it: "
                "renderdispatch render --scene file.py:NAME; here, register the scene and pass its name"
            )
            raise InvalidRequestError(message, code="scene.file")
        return SCENE_OF_FILES, scene
    if not isinstance(scene, str):
        return scene, None  # it is refused with the other fields
    text = scene[:200]
    if scene == SCENE_OF_FILES:
        message = f"scene {text!r} draws a Shadertoy file: pass its path as the scene, Path('my.glsl')"
        raise InvalidRequestError(message, code="scene.file")
    if is_shader_name(text):
        message = f"scene {text!r} is a string, and strings name registered scenes; pass a path, scene=Path({text!r})"
        raise InvalidRequestError(message, code="scene.file")
    return scene, None


def is_shader_name(text: str) -> bool:
    """Return whether a text ends as the names of files with GLSL do."""
    return text.lower().endswith(_SHADER_SUFFIXES)


def read_images(images: object) -> dict[str, Any]:
    """Return the images of a scene, by the names of their places.

    Raises:
        InvalidRequestError: ``image.invalid`` or ``image.too-many``.
    """
    if isinstance(images, str | bytes | Path | StorageKey) or not isinstance(images, Iterable):
        message = f"images: a list of paths or StorageKeys, not {type(images).__name__}"
        raise InvalidRequestError(message, code="image.invalid")
    found = list(islice(images, MAX_IMAGES + 1))
    check_image_count(len(found))
    return {f"image_{number}": image for number, image in enumerate(found, start=1)}


def check_priority(priority: object) -> int:
    """Return the priority.

    Raises:
        InvalidRequestError: It is not an integer from -1,000,000 to 1,000,000.
    """
    number = whole(priority)
    if number is None or abs(number) > _MAX_PRIORITY:
        message = f"priority: an integer from {-_MAX_PRIORITY:,} to {_MAX_PRIORITY:,}"
        raise InvalidRequestError(message)
    return number


def check_parallel(parallel: object) -> int:
    """Return how many draw one video.

    Raises:
        InvalidRequestError: It is not an integer from 1 to 64.
    """
    number = whole(parallel)
    if number is None or not 1 <= number <= MAX_PARALLEL:
        raise InvalidRequestError(f"parallel: an integer from 1 to {MAX_PARALLEL}")
    return number


def check_batch(batch: object) -> str:
    """Return the id of a batch.

    Raises:
        InvalidRequestError: ``batch.invalid``: it is not 1 to 64 letters, digits, dashes and underscores.
    """
    if not isinstance(batch, str) or not _BATCH.fullmatch(batch):
        message = "batch: an id of 1 to 64 letters, digits, dashes and underscores (A-Z, a-z, 0-9)"
        raise InvalidRequestError(message, code="batch.invalid")
    return batch


def whole(value: object) -> int | None:
    """Return the value as an `int` if it is an integer of any type, such as NumPy's; None for anything else."""
    try:
        # A value that is not a number raises TypeError.
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def read_request(fields: Mapping[str, Any]) -> RenderRequest:
    """Return the request that the fields describe.

    Raises:
        InvalidRequestError: Some field is wrong; the message names each.
    """
    # values that were made without validation (`model_copy`, `model_construct`) are validated here
    try:
        request = RenderRequest.model_validate({name: _plain(value) for name, value in fields.items()})
    except ValidationError as error:
        raise InvalidRequestError(describe_validation(error)) from None
    longest = request.limits.max_duration.total_seconds()
    if request.duration is not None and request.duration > longest:
        raise InvalidRequestError(f"duration: at most {longest:g} s; a longer video needs Limits(max_duration=...)")
    return request


def _plain(value: object) -> object:
    if value is None or type(value) in _SIMPLE:
        return value
    if isinstance(value, Argument):
        return vars(value)  # `dict` would ask the model for an attribute `keys` first, which takes long
    return dict(value) if isinstance(value, Mapping) else value


def check_upload(size: object, content_type: object) -> tuple[int, str]:
    """Return the size in bytes and the type of an upload that a client announces.

    Raises:
        InvalidRequestError: The size is not 1 byte to 5 GiB, or the type is none of audio, video, a picture that
            may be a cover, and ``application/octet-stream``.
    """
    number = whole(size)
    if number is None or not 0 < number <= _MAX_UPLOAD_BYTES:
        message = f"size: an upload has 1 to {_MAX_UPLOAD_BYTES} bytes"
        raise InvalidRequestError(message, code="upload.size")
    octets = "application/octet-stream"
    if not isinstance(content_type, str) or (content_type != octets and not _UPLOADED.fullmatch(content_type)):
        message = f"content_type: an upload is audio/..., video/..., image/jpeg, png, webp, gif or bmp, or {octets}"
        raise InvalidRequestError(message, code="upload.type")
    return number, content_type


def fingerprint(request: RenderRequest, *, version: int = _FINGERPRINT) -> str:
    """Hash what was asked for. A fingerprint begins with the version of its rule, except for those of the first.

    1: all fields of the first requests, and younger ones that are used. Audio that `submit` stored counts by its hash,
       other audio by where it is.
    2: all fields that are used. Files count by their hash if it is known, else by their key or URL.
    """
    fields = request.model_dump(mode="json", exclude={"protocol"}, context=FOR_THE_RECORD)
    return _hashed(_by_first_rule(fields)) if version == 1 else f"{version}:{_hashed(_by_second_rule(fields))}"


def _hashed(counted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(counted, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Fingerprints:
    """The fingerprints of many requests: those that differ in their audio alone are described once."""

    def __init__(self) -> None:
        self._asked: RenderRequest | None = None
        self._counted: Mapping[str, Any] = {}

    def of(self, request: RenderRequest, asked: RenderRequest) -> str:
        """Return the fingerprint of a request.

        Args:
            request: The request.
            asked: The same with another audio.
        """
        if request.attached():
            return fingerprint(request)
        if asked is not self._asked:
            self._asked = asked
            self._counted = _by_second_rule(asked.model_dump(mode="json", exclude={"protocol"}, context=FOR_THE_RECORD))
        audio = request.audio.model_dump(mode="json", context=FOR_THE_RECORD)
        return f"{_FINGERPRINT}:{_hashed({**self._counted, 'audio': _identity(audio)})}"


def same_request(job: Job, request: RenderRequest) -> bool:
    """Return whether a job's request is this one, by the rule that the job's record was written with.

    Raises:
        JobUnreadableError: The rule is one of a newer version.
    """
    version, colon, _ = job.fingerprint.partition(":")
    rule = int(version) if colon else 1
    if rule > _FINGERPRINT:
        raise unreadable(job.id)
    return job.fingerprint == fingerprint(request, version=rule)


def _by_first_rule(fields: Mapping[str, Any]) -> dict[str, Any]:
    used, audio = _used(fields, _defaults()), fields["audio"]
    counted = _kept(fields, _FIRST_FIELDS, used)
    for part, names in _FIRST_PARTS.items():
        counted[part] = _kept(fields[part], names, used.get(part, {}))
    known = _FIRST_AUDIO[audio["kind"]]
    counted["audio"] = {name: audio[name] for name in known if name != "key" or audio["sha256"] is None}
    return counted


def _kept(fields: Mapping[str, Any], names: Collection[str], used: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name in names or name in used}


def _by_second_rule(fields: Mapping[str, Any]) -> dict[str, Any]:
    files = {name: _identity(fields[name]) for name in ("audio", "cover", "sceneFile") if fields[name] is not None}
    images = {"images": [_identity(image) for image in fields["images"]]} if fields["images"] else {}
    return {**_used(fields, _defaults()), **files, **images}


def _identity(file: Mapping[str, Any]) -> dict[str, Any]:
    names = ["sha256"] if file.get("sha256") else ["key"] if file["kind"] == "stored" else list(file)
    return {name: file[name] for name in names}


def _used(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields, and those of their parts, that are not as they are by default."""
    given = {name: value for name, value in fields.items() if value != defaults.get(name)}
    return {name: _used(value, defaults[name]) if name in _FIRST_PARTS else value for name, value in given.items()}


@cache
def _defaults() -> Mapping[str, Any]:
    nothing = RenderRequest.model_construct(audio=StoredAudio(key="", size=0), scene="", backend="")
    return nothing.model_dump(mode="json")


def keyed_id(tenant: str | None, key: object) -> str:
    """Derive a job's id from its idempotency key: length-prefixed, so that no two pairs run together (rule J9)."""
    if not isinstance(key, str) or not 1 <= len(key.encode(errors="replace")) <= 1024 or not is_text(key):
        raise InvalidRequestError("idempotency_key: text of 1 to 1024 bytes", code="idempotency-key.invalid")
    parts = [b"" if tenant is None else b"t" + tenant.encode(), key.encode()]
    return hashlib.sha256(b"".join(len(p).to_bytes(4, "big") + p for p in parts)).hexdigest()[:32]


def is_text(text: str) -> bool:
    """Return whether UTF-8 can hold it: names of files, and JSON, may bring half a surrogate pair."""
    return _SURROGATE.search(text) is None


def is_path(text: str) -> bool:
    """Return whether the system can have a file of this name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False

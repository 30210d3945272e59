"""What crosses a process boundary, and in which shape?

Requests, orders, events and replies, as frozen pydantic models. On the wire, names are camelCase. Unknown fields are
ignored, so that a newer peer can send messages to an older one; ``protocol`` is the version that wrote a message.
Secrets (tokens, keys, signed URLs) are kept out of every ``repr``, and validation errors never quote the input.
"""

import json
import math
import os
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from numbers import Rational, Real
from threading import RLock
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import pydantic
from attrs import field, frozen
from pydantic import Field
from pydantic.alias_generators import to_camel

from renderdispatch.errors import InvalidRequestError, UnknownNameError

PROTOCOL: Final = 1
"""The version of every message written here; the previous version is still understood."""

CLOCK_SLACK: Final = timedelta(seconds=60)
"""Added to deadlines by both sides, because the clocks of two machines differ (rule J13)."""

MAX_PARAMS_BYTES: Final = 2048
MAX_METADATA_BYTES: Final = 4096
MAX_JSON_DEPTH: Final = 64
"""Far below what JSON parsers accept (pydantic: 200), so that every record that is written can be read."""

MAX_AUDIO_TRACK: Final = 999
MAX_COVER_BYTES: Final = 16 << 20
MAX_SHADER_BYTES: Final = 1 << 20
MAX_IMAGES: Final = 3
SCENE_OF_FILES: Final = "glsl"
"""The registered scene that draws a request's ``scene_file``."""

MAX_TAG: Final = 200
"""The most characters of a title or an artist."""

MAX_WARNINGS: Final = 20
PARALLEL_IGNORED: Final = "parallel.ignored"
"""The code of the warning that helpers were asked for in vain."""

MAX_SEGMENTS: Final = 256
"""How many segments a video has at most."""

MAX_PARALLEL: Final = 64
"""How many draw one video at most, with the lead."""


DEFAULT_MEMORY_MIB: Final = 16_384
"""The largest preset takes less than half of it."""

MAX_ORDER_BYTES: Final = 8192
"""Modal sends larger arguments of a call through blob storage."""


class JobStatus(StrEnum):
    """What applications switch on."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset({JobStatus.COMPLETE, JobStatus.FAILED, JobStatus.CANCELLED})


class Stage(StrEnum):
    """How far a job has come."""

    QUEUED = "queued"
    RETRY_WAIT = "retry-wait"
    RESOLVING_AUDIO = "resolving-audio"
    UPLOADING_AUDIO = "uploading-audio"
    GENERATING_URL = "generating-url"
    DISPATCHING = "dispatching"
    DISPATCHED = "dispatched"
    DOWNLOADING_AUDIO = "downloading-audio"
    RENDERING = "rendering"
    UPLOADING_VIDEO = "uploading-video"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"


class FaultDomain(StrEnum):
    """What caused a failure. This alone decides whether another attempt makes sense (rule J11)."""

    REQUEST = "request"
    AUDIO = "audio"
    SCENE = "scene"
    INFRASTRUCTURE = "infrastructure"
    PREEMPTION = "preemption"
    START_TIMEOUT = "start-timeout"
    DEADLINE = "deadline"

    @property
    def retryable(self) -> bool:
        """Whether another attempt can succeed."""
        return self in {FaultDomain.INFRASTRUCTURE, FaultDomain.PREEMPTION, FaultDomain.START_TIMEOUT}


BUILDING: Final = RLock()
"""Held while a schema is built, and while the process forks: a child must not wait for a thread that is gone."""
os.register_at_fork(before=BUILDING.acquire, after_in_parent=BUILDING.release, after_in_child=BUILDING.release)


class Model(pydantic.BaseModel):
    """The base of everything that is read and written as JSON. It is built at its first use, to keep imports quick."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, defer_build=True)

    @classmethod
    def model_rebuild(cls, **options: Any) -> bool | None:
        """Build the model, in one thread at a time. Older pydantic versions have no lock; none survives a fork."""
        with BUILDING:
            return super().model_rebuild(**options)


class Message(Model):
    """The base of everything on the wire."""

    model_config = pydantic.ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


def describe_validation(error: pydantic.ValidationError) -> str:
    """Return one line that says what is wrong with each field; the values are not quoted."""
    problems = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {what}" if where else what)
    return "; ".join(problems)


class Argument(Message):
    """The base of what applications make themselves, to hand it in.

    Raises:
        InvalidRequestError: A value is wrong.
        UnknownNameError: ``request.unknown-name``: there is no such field, which a message of a newer peer may have.
    """

    if not TYPE_CHECKING:  # it would hide the names of the fields

        def __init__(self, /, **fields: Any) -> None:
            kind, known = type(self).__name__, type(self).model_fields
            for name in fields:
                if name not in known and name not in map(to_camel, known):
                    raise UnknownNameError.of(f"field of {kind}", name, known, code="request.unknown-name")
            try:
                super().__init__(**fields)
            except pydantic.ValidationError as error:
                raise InvalidRequestError(f"{kind}: {describe_validation(error)}") from None

        __init__.__pydantic_base_init__ = True  # it is for callers: what is read as JSON takes pydantic's own way


# --- what to render -------------------------------------------------------------------------------


def parse_rate(value: object) -> Fraction:
    """Read a frame rate: an integer or another fraction, ``"30000/1001"``, or a decimal such as 29.97.

    Raises:
        ValueError: The value is not a number, not finite, below 1/10, or above 240.
    """
    return _parse_text(value) if isinstance(value, str) else _parse_rate(value)


def _parse_rate(value: object) -> Fraction:
    rate: Fraction | None = None
    with suppress(ValueError, ZeroDivisionError, OverflowError):
        match value:
            case bool():
                pass
            case int() | Fraction():
                rate = Fraction(value)
            case Rational():
                rate = Fraction(int(value.numerator), int(value.denominator))
            case Real() | Decimal() if math.isfinite(value):
                rate = Fraction(float(value)).limit_denominator(1001)
            case str() if len(value) <= 32 and "e" not in value.lower():  # 1e99999999 takes minutes to write out
                rate = Fraction(value.strip())
    if rate is None:
        raise ValueError("a frame rate must be a number, such as 30, 29.97 or 30000/1001")
    above, below = rate.as_integer_ratio()  # to compare fractions takes long
    if not 0 < above <= 240 * below:
        raise ValueError("a frame rate must be above 0 and at most 240 frames a second")
    if 10 * above < below or below > 1_000_000:
        raise ValueError("a frame rate must be at least 1/10, with a denominator of at most 1,000,000")
    return rate


@lru_cache(maxsize=256)
def _parse_text(value: str) -> Fraction:
    """Read a text; each record has one, and most have the same."""
    return _parse_rate(value)


def format_rate(rate: Fraction) -> str:
    """Return the text that `parse_rate` reads back: ``"30"`` or ``"30000/1001"``."""
    return str(rate)


FrameRate = Annotated[
    Fraction,
    pydantic.BeforeValidator(parse_rate),
    pydantic.PlainSerializer(format_rate, return_type=str),
    pydantic.WithJsonSchema({"type": "string", "examples": ["30", "30000/1001"]}),
]

Projection = Literal["flat", "360-mono", "360-stereo"]
Quality = Literal["fast", "balanced", "quality"]
VideoEncoder = Literal["auto", "libx264", "h264_nvenc"]


class Output(Argument):
    """The picture of a video.

    Args:
        width: Pixels, even (4:2:0 chroma requires it), 16 to 16384.
        height: Pixels, even, 16 to 16384.
        fps: Frames a second, any rational number.
        projection: ``flat``, or equirectangular ``360-mono`` and ``360-stereo`` (top/bottom).
        quality: How much time the encoder takes: ``fast``, ``balanced``, or ``quality`` for the best picture.
        encoder: ``libx264`` on the CPU; ``h264_nvenc`` on a GPU of NVIDIA's, which fails where there is none that
            encodes; or ``auto``: ``h264_nvenc`` where a GPU draws and is found to encode, else ``libx264``.
    """

    width: int = Field(default=1920, ge=16, le=16384, multiple_of=2)
    height: int = Field(default=1080, ge=16, le=16384, multiple_of=2)
    fps: FrameRate = Fraction(30)
    projection: Projection = "flat"
    quality: Quality = "balanced"
    encoder: VideoEncoder = "auto"


# built without validation, because this would build the model; the tests validate every preset
PRESETS: Final[Mapping[str, Output]] = {
    "flat-720p-landscape": Output.model_construct(width=1280, height=720),
    "flat-1080p-landscape": Output.model_construct(width=1920, height=1080),
    "flat-1080p-portrait": Output.model_construct(width=1080, height=1920),
    "flat-1080p-square": Output.model_construct(width=1080, height=1080),
    "flat-4k-landscape": Output.model_construct(width=3840, height=2160),
    "flat-4k-portrait": Output.model_construct(width=2160, height=3840),
    "360-mono-4k": Output.model_construct(width=4096, height=2048, projection="360-mono"),
    "360-mono-6k": Output.model_construct(width=6144, height=3072, projection="360-mono"),
    "360-mono-8k": Output.model_construct(width=8192, height=4096, projection="360-mono"),
    "360-stereo-8k": Output.model_construct(width=8192, height=8192, projection="360-stereo"),
}


class Limits(Argument):
    """The limits of a job: times, attempts, audio, memory, and the kind of GPU. Times are always finite.

    Args:
        start_timeout: From an attempt's dispatch intent to the first event of its GPU side.
        total_timeout: From submit to the end, for all attempts together.
        max_attempts: Number of attempts, with the first one.
        stall_timeout: How long a render may show no new frame; None: five minutes, or 20 times the longest gap between
            two frames so far if that is longer, and 30 minutes for the first frame. A renderer that reports no frames
            is only ended where this is set.
        memory_mib: MiB of memory that the process of a render may use, and at most nine tenths of what its machine or
            container has.
        gpu: The kind of GPU, as the backend names it (``"L4"`` on Modal); None: the backend chooses. A backend that has
            only one kind ignores it.
        max_duration: The longest range of audio that is rendered. Small files can hold days of sound.
    """

    start_timeout: timedelta = Field(default=timedelta(hours=1), gt=timedelta(0), le=timedelta(days=6))
    total_timeout: timedelta = Field(default=timedelta(hours=6), gt=timedelta(0), le=timedelta(days=6))
    max_attempts: int = Field(default=3, ge=1, le=20)
    stall_timeout: timedelta | None = Field(default=None, gt=timedelta(0), le=timedelta(days=6))
    memory_mib: int = Field(default=DEFAULT_MEMORY_MIB, ge=64, le=1 << 24)
    gpu: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]{0,39}$")
    max_duration: timedelta = Field(default=timedelta(hours=4), gt=timedelta(0), le=timedelta(days=6))


class StoredAudio(Message):
    """Audio in object storage; ``name`` is that of the file which it came from, where the key does not say it."""

    kind: Literal["stored"] = "stored"
    key: str
    size: int = Field(ge=0)
    sha256: str | None = None
    name: str | None = None


class LocalAudio(Message):
    """A file that a worker on the same machine reads later.

    ``size`` (bytes) and ``mtime_ns`` identify the state of the file that was submitted, ``sha256`` its content: it is
    known if the job has an idempotency key.
    """

    kind: Literal["local"] = "local"
    path: str
    machine: str
    size: int = Field(ge=0)
    mtime_ns: int
    sha256: str | None = None


FOR_THE_RECORD: Final = {"for": "the record"}
"""The serialization context in which a `RemoteAudio` reveals its URL: only for the job's record and its fingerprint."""


class RemoteAudio(Message):
    """Audio behind a URL, until it is stored. The URL is a secret (rule J10)."""

    kind: Literal["remote"] = "remote"
    url: pydantic.SecretStr

    @pydantic.field_serializer("url", when_used="json")
    def _reveal_in_the_record(self, url: pydantic.SecretStr, info: pydantic.SerializationInfo) -> str:
        return url.get_secret_value() if info.context == FOR_THE_RECORD else str(url)


Audio = Annotated[StoredAudio | LocalAudio | RemoteAudio, Field(discriminator="kind")]


def _text(owner: object, _: Any, value: Any) -> None:
    if not isinstance(value, str):
        message = f"{type(owner).__name__} takes a str, not {type(value).__name__}"
        raise InvalidRequestError(message, code="audio.invalid")


@frozen
class AudioUrl:
    """Names audio by its URL, for `submit`, which refuses a bare string on purpose."""

    url: str = field(repr=False, validator=_text)


@frozen
class StorageKey:
    """Names audio, a cover or an image in the service's own storage, for `submit`."""

    key: str = field(validator=_text)


def shorten(value: object, length: int) -> object:
    """Return a text cut to ``length``; anything else as it is."""
    return value[: length - 3] + "..." if isinstance(value, str) and len(value) > length else value


def _cut_to(length: int) -> pydantic.BeforeValidator:
    """Return what cuts a text of a message to ``length``."""
    return pydantic.BeforeValidator(lambda value: shorten(value, length))


def _clean_tag(value: object) -> object:
    """Return a title or an artist on one line, without control characters; None for a blank one.

    Raises:
        ValueError: It is not text.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - pydantic's validators raise this one
    return " ".join("".join(" " if unicodedata.category(c) in _NOT_IN_TAGS else c for c in value).split()) or None


_NOT_IN_TAGS: Final = frozenset({"Cc", "Zl", "Zp"})


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return levels < 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _small_json(value: object, limit: int, what: str) -> object:
    if value == {}:
        return value
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        if "\\ud" in text:  # half a surrogate pair is not text, and a record cannot hold it
            json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{what} must be plain, finite JSON values") from None
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise ValueError(f"{what} must be nested at most {MAX_JSON_DEPTH} deep")
    if len(text) > limit:
        raise ValueError(f"{what} must be at most {limit} bytes of JSON, not {len(text)}")
    return value


JsonObject = Annotated[
    Mapping[str, pydantic.JsonValue],
    pydantic.GetPydanticSchema(lambda _, handler: handler(dict[str, pydantic.JsonValue])),
]
"""JSON by names. As a plain dict it is read and written without a call of Python."""


def is_image(place: str) -> bool:
    """Return whether a place of `RenderRequest.attached` is one of the images."""
    return place.startswith("image_")


def check_image_count(count: int) -> None:
    """Raise `InvalidRequestError`, ``image.too-many``, for more images than a scene takes."""
    if count > MAX_IMAGES:
        raise InvalidRequestError(f"a scene takes at most {MAX_IMAGES} images", code="image.too-many")


class RenderRequest(Message):
    """The request of a job, exactly as it was made; the job's fingerprint covers all of it.

    Args:
        start: Seconds into the audio at which the video begins.
        duration: Seconds of video; None: to the end of the audio.
        audio_track: Which of the file's audio streams is heard, from 0; None: the one that players choose.
        params: The scene's parameters, at most 2 KiB of JSON.
        title: Of the song, for the video's tags and the file's name; None: as the song's own tags say. Control
            characters become spaces.
        artist: As ``title``.
        cover: The song's cover, a picture; None: the one in the song's tags, if there is one.
        scene_file: What the scene `SCENE_OF_FILES` draws: a Shadertoy file.
        images: Pictures for the scene, which Shadertoy calls ``iChannel1`` to ``iChannel3``.
        poster: Whether a JPEG is delivered beside the video.
        metadata: For the application, never read here; at most 4 KiB of JSON.
    """

    protocol: int = PROTOCOL
    audio: Audio
    scene: str = Field(min_length=1, max_length=200)
    params: JsonObject = Field(default_factory=dict)
    output: Output = Output.model_construct()
    start: float = Field(default=0.0, ge=0)
    duration: float | None = Field(default=None, gt=0)
    audio_track: int | None = Field(default=None, ge=0, le=MAX_AUDIO_TRACK)
    title: str | None = Field(default=None, max_length=MAX_TAG)
    artist: str | None = Field(default=None, max_length=MAX_TAG)
    cover: Annotated[StoredAudio | LocalAudio, Field(discriminator="kind")] | None = None
    scene_file: Annotated[StoredAudio | LocalAudio, Field(discriminator="kind")] | None = None
    images: tuple[Annotated[StoredAudio | LocalAudio, Field(discriminator="kind")], ...] = Field(
        default=(), max_length=MAX_IMAGES
    )
    poster: bool = False
    backend: str
    require_gpu: bool = False
    limits: Limits = Limits.model_construct()
    metadata: JsonObject = Field(default_factory=dict)

    def attached(self) -> dict[str, StoredAudio | LocalAudio]:
        """Return the files beside the audio, by the names of their places: ``cover``, ``scene_file``, ``image_1``."""
        places = {}
        if self.cover is not None:
            places["cover"] = self.cover
        if self.scene_file is not None:
            places["scene_file"] = self.scene_file
        for number, image in enumerate(self.images, start=1):
            places[f"image_{number}"] = image
        return places

    def attaching(self, files: Mapping[str, StoredAudio | LocalAudio]) -> Self:
        """Return the request with other files at these places; the rest stays."""
        now = {**self.attached(), **files}
        images = tuple(now[place] for place in now if is_image(place))
        return self.model_copy(
            update={"cover": now.get("cover"), "scene_file": now.get("scene_file"), "images": images}
        )

    @pydantic.field_validator("title", "artist", mode="before")
    @classmethod
    def _clean_tags(cls, value: object) -> object:
        return _clean_tag(value)

    @pydantic.field_validator("params", "metadata", mode="before")
    @classmethod
    def _check_json(cls, value: object, info: pydantic.ValidationInfo) -> object:
        limit = MAX_PARAMS_BYTES if info.field_name == "params" else MAX_METADATA_BYTES
        return _small_json(value, limit, str(info.field_name))


# --- what the GPU side gets -----------------------------------------------------------------------


class SignedPut(Message):
    """A write-once upload: one PUT to ``url`` with exactly these headers."""

    url: str = Field(repr=False)
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)


class ObjectUrls(Message):
    """URLs for one of the objects that the GPU side writes; ``get`` is blank for one that no run reads, the poster."""

    key: str
    put: SignedPut
    get: str = Field(default="", repr=False)


class Asset(Message):
    """A file that a scene needs beside the audio, such as the cover.

    Args:
        url: Where the runner gets it; blank if it is in the order's bundle, and in the order that renderers see.
        size: Bytes.
        mtime_ns: Of the submitted file itself, where ``url`` names it; it may change until it is read.
        path: Where the runner put it; None before that.
        name: The file's own, for messages.
    """

    url: str = Field(repr=False)
    size: int = Field(ge=0)
    name: str | None = Field(default=None, max_length=200)
    mtime_ns: int | None = None
    path: str | None = None


class Callback(Message):
    """Where the GPU side reports, and the key of this one attempt. An application's URL may hold a secret."""

    url: str = Field(repr=False)
    key: str = Field(repr=False)


class Pieces(Message):
    """Where the plan and the segments of a video are kept while it is drawn; see `renderdispatch.plumbing.pieces`.

    Args:
        slots: For how many segments there is a place.
        grants: The URL of the grants object; blank if there is a ``folder``.
        folder: The folder of this machine in which the pieces are files, for orders that never leave it.
        lent: Likewise, of the jobs that this one repeats: their pieces are read, never written.
    """

    slots: int = Field(ge=1, le=MAX_SEGMENTS)
    grants: str = Field(default="", repr=False)
    folder: str | None = None
    lent: tuple[str, ...] = ()


class Grants(Message):
    """The object, gzipped JSON, that holds the URLs of pieces: too many for an order. It is as secret as they are.

    Args:
        get: By the names of `renderdispatch.plumbing.pieces`: reads a piece of this job.
        put: Likewise: writes it, once.
        headers: What every upload sends.
        lent: Likewise: reads a piece of the job that this one repeats.
    """

    get: Mapping[str, str] = Field(repr=False)
    put: Mapping[str, str] = Field(repr=False)
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False)
    lent: Mapping[str, str] = Field(default_factory=dict, repr=False)


class RenderOrder(Message):
    """Everything that the GPU side gets.

    ``local`` means that the order never left the machine, so that ``file:`` and ``memory:`` URLs may be used. ``token``
    fences the attempt; it does not authenticate. ``max_duration`` is in seconds of audio; None is no limit.
    ``audio_mtime_ns`` is set where ``audio_url`` names the submitted file itself, which may change while it is read.
    Where there is a ``poster``, the renderer writes a JPEG beside its output, with the suffix ``.jpg``.
    ``bundle`` is an archive of those assets whose URL is blank, by the names of `RenderRequest.attached`: many URLs
    would not fit. ``device_class`` is what the backend declares to draw with, such as ``cpu-x86-64``: other devices
    refuse the order, because their frames would differ. None declares nothing. ``pieces`` is where segments are kept
    that were drawn; None: nowhere. ``parallel`` is how many draw, with this run.
    """

    protocol: int = PROTOCOL
    job_id: str
    attempt: int = Field(ge=1)
    token: str = Field(repr=False)
    audio_url: str = Field(repr=False)
    audio_size: int = Field(ge=0)
    audio_mtime_ns: int | None = None
    video: ObjectUrls
    result: ObjectUrls
    scene: str
    params: JsonObject = Field(default_factory=dict)
    output: Output
    start: float = 0.0
    duration: float | None = None
    audio_track: int | None = None
    title: str | None = None
    artist: str | None = None
    cover: Asset | None = None
    scene_file: Asset | None = None
    images: tuple[Asset, ...] = ()
    bundle: Asset | None = None
    poster: ObjectUrls | None = None
    max_duration: float | None = None
    device_class: str | None = None
    require_gpu: bool = False
    gpu: str | None = None
    stall_timeout: timedelta | None = None
    memory_mib: int = DEFAULT_MEMORY_MIB
    start_by: pydantic.AwareDatetime
    finish_by: pydantic.AwareDatetime
    callback: Callback | None = None
    local: bool = False
    pieces: Pieces | None = None
    parallel: int = Field(default=1, ge=1, le=MAX_PARALLEL)

    def without_secrets(self) -> Self:
        """Return the order as renderers see it, without token, URLs and keys, which hold the token too."""
        blank = ObjectUrls(key="", put=SignedPut(url=""))
        hidden: dict[str, object] = {"token": "", "audio_url": "", "video": blank, "result": blank, "callback": None}
        hidden["bundle"] = hidden["pieces"] = None
        for name in ("cover", "scene_file"):
            if (asset := getattr(self, name)) is not None:
                hidden[name] = asset.model_copy(update={"url": ""})
        hidden["images"] = tuple(image.model_copy(update={"url": ""}) for image in self.images)
        if self.poster is not None:
            hidden["poster"] = blank
        return self.model_copy(update=hidden)


class HelperOrder(Message):
    """Everything that a helper gets: it draws segments of a video beside the lead, which is the run of a `RenderOrder`.

    Nothing depends on it: it reports nothing, and it ends when the video is complete, at its deadline, or when the
    object at ``stop`` exists. Fields with the same names mean what those of the lead's order mean.

    Args:
        attempt: The number of the attempt that it helps.
        token: Its own, unlike the attempt's: it keys its start, and finds its call.
        share: Which segments it draws first: those whose index is this, modulo ``parallel``. The lead's share is 0.
        stop: Reads the object that tells helpers to stop; there is none before.
        result: Reads the attempt's result object; once it exists, nothing is to be drawn.
    """

    kind: Literal["helper"] = "helper"
    protocol: int = PROTOCOL
    job_id: str
    attempt: int = Field(ge=1)
    token: str = Field(repr=False)
    share: int = Field(ge=1)
    parallel: int = Field(ge=2, le=MAX_PARALLEL)
    pieces: Pieces
    stop: str = Field(repr=False)
    result: str = Field(repr=False)
    scene: str
    params: JsonObject = Field(default_factory=dict)
    output: Output
    start: float = 0.0
    duration: float | None = None
    audio_track: int | None = None
    cover: Asset | None = None
    scene_file: Asset | None = None
    images: tuple[Asset, ...] = ()
    bundle: Asset | None = None
    device_class: str | None = None
    require_gpu: bool = False
    gpu: str | None = None
    stall_timeout: timedelta | None = None
    memory_mib: int = DEFAULT_MEMORY_MIB
    start_by: pydantic.AwareDatetime
    finish_by: pydantic.AwareDatetime
    local: bool = False

    def without_secrets(self) -> Self:
        """Return the order as renderers see it; see `RenderOrder.without_secrets`."""
        nowhere = Pieces.model_construct(slots=self.pieces.slots)
        hidden: dict[str, object] = {"token": "", "stop": "", "result": "", "bundle": None, "pieces": nowhere}
        for name in ("cover", "scene_file"):
            if (asset := getattr(self, name)) is not None:
                hidden[name] = asset.model_copy(update={"url": ""})
        hidden["images"] = tuple(image.model_copy(update={"url": ""}) for image in self.images)
        return self.model_copy(update=hidden)


class _Kind(Message):
    """What tells a helper's order from a lead's, which has no kind."""

    kind: str | None = None


def read_order(body: bytes | str) -> RenderOrder | HelperOrder:
    """Parse what a backend got to carry out.

    Raises:
        pydantic.ValidationError: The body is not an order of this protocol.
    """
    if _Kind.model_validate_json(body).kind == "helper":
        return HelperOrder.model_validate_json(body)
    return RenderOrder.model_validate_json(body)


# --- what the GPU side reports --------------------------------------------------------------------


class VideoFacts(Message):
    """The facts about a video that renderers report and applications see.

    Args:
        width: Pixels.
        height: Pixels.
        fps: Frames a second.
        frames: Frames in the video.
        duration_s: Seconds of audio that the video covers.
        rendered_by: What drew the frames, such as ``numpy`` or a ``GL_RENDERER`` string.
        encoded_by: The video encoder, such as ``libx264``.
    """

    width: int
    height: int
    fps: FrameRate
    frames: int = Field(ge=0)
    duration_s: float = Field(ge=0)
    rendered_by: str
    encoded_by: str


class RenderWarning(Message):
    """What a finished video lacks, such as damaged sound. ``code`` is stable; ``message`` is for people."""

    code: str = Field(max_length=100)
    message: Annotated[str, _cut_to(400)]


class RenderStats(VideoFacts):
    """The video that a renderer made.

    Args:
        content_type: The media type of the file.
        device_class: What drew the frames, such as ``cpu-x86-64``: devices of one class draw the same bytes.
        picture_version: The version of whatever decides about the bytes: renderer, scenes and libraries.
        segments: Of how many the video was made; None: it was drawn in one piece.
        segments_taken: How many of them others had drawn: helpers, or earlier runs.
        segments_twice: How many were drawn in vain, because another one was faster, as far as the lead knows.
        warnings: What the video lacks; the first `MAX_WARNINGS` are kept.
    """

    content_type: str = "video/mp4"
    device_class: str | None = Field(default=None, max_length=100)
    picture_version: str | None = Field(default=None, max_length=200)
    segments: int | None = Field(default=None, ge=0)
    segments_taken: int = Field(default=0, ge=0)
    segments_twice: int = Field(default=0, ge=0)
    warnings: tuple[RenderWarning, ...] = ()

    def drawn_alone(self, why: str) -> Self:
        """Return the facts with the warning `PARALLEL_IGNORED`, if they lack it; of too many others one gives way."""
        if any(warning.code == PARALLEL_IGNORED for warning in self.warnings):
            return self
        warning = RenderWarning(code=PARALLEL_IGNORED, message=why)
        return self.model_copy(update={"warnings": (*self.warnings[: MAX_WARNINGS - 1], warning)})

    @pydantic.field_validator("warnings")
    @classmethod
    def _keep_the_first(cls, value: tuple[RenderWarning, ...]) -> tuple[RenderWarning, ...]:
        return value[:MAX_WARNINGS]


class Artifact(RenderStats):
    """The finished video in storage."""

    key: str
    bytes: int = Field(ge=0)
    etag: str | None = None
    sha256: str | None = None
    poster_key: str | None = None


class JobError(Message):
    """Why an attempt or a job failed. ``code`` is stable; ``message`` is for people."""

    code: Annotated[str, _cut_to(200)] = Field(max_length=200)
    message: Annotated[str, _cut_to(2000)] = Field(max_length=2000)
    fault: FaultDomain


class _FromRun(Message):
    """The fields of every event of the GPU side.

    ``event_id`` is the same in every delivery of the event. ``run_id`` names one start of the attempt's code: a
    preempted container starts the same attempt again.
    """

    protocol: int = PROTOCOL
    event_id: str
    job_id: str
    token: str = Field(repr=False)
    run_id: str = Field(max_length=200)


class CheckedIn(_FromRun):
    """A run begins. It reports the backend's call id if it knows it."""

    type: Literal["checked-in"] = "checked-in"
    call_id: str | None = Field(default=None, max_length=1000)


RunStage = Literal[Stage.DOWNLOADING_AUDIO, Stage.RENDERING, Stage.UPLOADING_VIDEO]


class SegmentCounts(Message):
    """How far the segments of a video are, as the lead knows.

    Args:
        total: Segments of the video.
        standing: Those that are drawn, whoever drew them.
        own: Those of them that this run drew.
    """

    total: int = Field(ge=1, le=MAX_SEGMENTS)
    standing: int = Field(ge=0, le=MAX_SEGMENTS)
    own: int = Field(ge=0, le=MAX_SEGMENTS)


class Progressed(_FromRun):
    """A run has done a ``fraction`` (0 to 1) of ``stage``. This is also the heartbeat.

    ``planned``: the plan can be read, so that helpers can begin. ``segments`` is set once the run knows how many there
    are, if they are kept.
    """

    type: Literal["progressed"] = "progressed"
    stage: RunStage
    fraction: float = Field(default=0.0, ge=0, le=1)
    frames: int | None = Field(default=None, ge=0)
    frames_total: int | None = Field(default=None, ge=0)
    planned: bool = False
    segments: SegmentCounts | None = None


class Completed(_FromRun):
    """The video and the result object are in storage. The result object holds this message."""

    type: Literal["completed"] = "completed"
    artifact: Artifact


class Failed(_FromRun):
    """A run gave up, or was stopped (``error.code`` is then ``render.stopped``)."""

    type: Literal["failed"] = "failed"
    error: JobError


RenderEvent = Annotated[CheckedIn | Progressed | Completed | Failed, Field(discriminator="type")]
RENDER_EVENT: Final[pydantic.TypeAdapter[CheckedIn | Progressed | Completed | Failed]] = pydantic.TypeAdapter(
    RenderEvent, config=pydantic.ConfigDict(hide_input_in_errors=True, defer_build=True)
)
"""The schema of an event; `read_event` reads one."""


def read_event(body: bytes | str) -> CheckedIn | Progressed | Completed | Failed:
    """Return the event of a JSON text.

    Raises:
        pydantic.ValidationError: It is not one. The error does not quote it.
    """
    if not RENDER_EVENT.pydantic_complete:
        with BUILDING:
            RENDER_EVENT.rebuild()
    return RENDER_EVENT.validate_json(body)


class Helped(Message):
    """How a helper ended.

    Args:
        segments: How many it committed.
        twice: How many it drew in vain.
        reason: Why it ended, for people.
    """

    segments: int = Field(default=0, ge=0)
    twice: int = Field(default=0, ge=0)
    reason: Annotated[str, _cut_to(400)] = ""


class CallResult(Message):
    """What a remote call returns in every case. It never raises, so that no failure looks like "still running".

    Args:
        outcome: How the run ended.
        error: Why there is no outcome: the order could not be read.
        helped: How a helper ended; it has no outcome.
    """

    protocol: int = PROTOCOL
    outcome: Annotated[Completed | Failed, Field(discriminator="type")] | None = None
    error: JobError | None = None
    helped: Helped | None = None


class Action(StrEnum):
    """What a run must do next."""

    CONTINUE = "continue"
    STOP = "stop"


class EventReply(Message):
    """The reply to an event: the only channel back to a run."""

    protocol: int = PROTOCOL
    action: Action = Action.CONTINUE
    reason: str | None = None

    @property
    def stop(self) -> bool:
        """Whether the run must stop."""
        return self.action is Action.STOP


# --- what applications see ------------------------------------------------------------------------


class PollResult(VideoFacts):
    """The finished video, for applications.

    Args:
        segments: Of how many the video was made; None: it was drawn in one piece, and the next two are None too.
        segments_taken: How many of them others had drawn: helpers, or earlier runs.
        segments_twice: How many were drawn in vain, because another one was faster, as far as is known.
    """

    video_key: str
    bytes: int
    sha256: str | None
    poster_key: str | None = None
    segments: int | None = None
    segments_taken: int | None = None
    segments_twice: int | None = None


class PollSegments(Message):
    """How far the segments of a video are while it is drawn, for applications.

    Args:
        total: Segments of the video.
        standing: Those that are drawn, whoever drew them.
        own: Those of them that the run which delivers the video drew.
        taken_over: The others of them: helpers or earlier runs drew those.
        missing: Those that are not drawn yet.
        drawing: How many draw now: that run, and the helpers that were started and have not ended.
    """

    total: int
    standing: int
    own: int
    taken_over: int
    missing: int
    drawing: int


class PollError(Message):
    """Why the job failed."""

    code: str
    message: str


class PollResponse(Message):
    """The body of a poll endpoint's response; ``model_dump_json()`` writes the names of the wire.

    Args:
        queue_position: 1 for the job that is next. 1001 means: more than 1,000 jobs are before it.
        segments: How far its segments are, while it is processed and they are known.
        warnings: What the finished video lacks.
        download_url: Of the finished video; None once the job has expired.
        expires_at: When the job expires, or when it did. None: it has not ended, or is kept until it is deleted.
    """

    job_id: str
    status: JobStatus
    stage: Stage
    progress: float
    attempt: int
    queue_position: int | None = None
    segments: PollSegments | None = None
    result: PollResult | None = None
    error: PollError | None = None
    warnings: tuple[RenderWarning, ...] = ()
    download_url: str | None = Field(default=None, repr=False)
    poster_url: str | None = Field(default=None, repr=False)
    expires_at: datetime | None = None
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> str:
        """Return the response's body, without fields that hold nothing."""
        return self.model_dump_json(exclude_none=True)

    @pydantic.model_serializer(mode="wrap")
    def _leave_out_no_warnings(self, write: pydantic.SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a return type would replace the fields in the JSON schema
        """Write ``warnings`` only where there are some."""
        written = write(self)
        if not self.warnings:
            written.pop("warnings", None)
        return written


class UploadGrant(Message):
    """Lets a client upload audio itself: one PUT as in ``put``, until ``expires_at``. Then submit the key."""

    key: str
    put: SignedPut
    expires_at: pydantic.AwareDatetime

    def to_json(self) -> str:
        """Return the JSON for the client."""
        return self.model_dump_json()


def read_output(output: Output | str, known: Mapping[str, Output] = PRESETS) -> Output:
    """Return an output, or the preset of that name.

    Raises:
        UnknownNameError: No preset has this name.
        InvalidRequestError: It is neither.
    """
    if isinstance(output, Output):
        return output
    if not isinstance(output, str):
        raise InvalidRequestError(f"output: an Output or a preset's name, not {type(output).__name__}")
    if output not in known:
        raise UnknownNameError.of("preset", output, known, code="preset.unknown")
    return known[output]

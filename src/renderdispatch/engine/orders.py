"""What does the GPU side get to know of a job?

The order: `make_order` makes it from the job's record, and `make_helper_order` that of a helper. The URLs of a video's
pieces are too many for it: they are in an object of their own, which `make_grants` makes. All of them are pure; signing
is handed in.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field

from renderdispatch.engine import layout, names
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Helper, Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    MAX_SEGMENTS,
    Asset,
    Audio,
    Callback,
    Grants,
    HelperOrder,
    LocalAudio,
    ObjectUrls,
    Pieces,
    RemoteAudio,
    RenderOrder,
    RenderRequest,
    SignedPut,
    StoredAudio,
    is_image,
)
from renderdispatch.plumbing import pieces
from renderdispatch.plumbing.local_urls import local_path
from renderdispatch.protocols import SupportsFileNames

_URL_SLACK: Final = timedelta(minutes=10)
"""How long an order's URLs outlive the job's deadline (rule J10)."""

_MAX_URL: Final = timedelta(days=7)


_SHORT_S: Final = 60.0
_SEGMENT_S: Final = 4.0
"""No segment but an only one is shorter."""

_BYTES_PER_S: Final = 250.0
"""A second of music takes more in every format: speech at 6 kbit/s takes three times as much."""

_PIECE: Final = "application/octet-stream"
_PLANS: Final = frozenset(pieces.names(0))
_NOTHING: Final[Mapping[str, str]] = {}

TOO_LARGE: Final = "order.too-large"

File = StoredAudio | LocalAudio

_Order = TypeVar("_Order", RenderOrder, HelperOrder)


class Signer(Protocol):
    """Signs URLs, as every `StorageAdapter` does."""

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        """Return a URL that reads the object."""

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str) -> SignedPut:
        """Return a write-once upload."""


def make_order(
    job: Job,
    audio: File,
    attached: Mapping[str, File] | None = None,
    *,
    bundle: StoredAudio | None = None,
    signer: Signer,
    now: datetime,
    callback: Callback | None,
    local: bool,
    device_class: str | None = None,
    parallel: int = 1,
    borrowed: Sequence[str] = (),
) -> RenderOrder:
    """Return the order of a job's current attempt.

    It says where the pieces of the video are kept, unless it is so short that this is not worth it. If they are no
    files, its grants object is to be stored before the run begins; see `make_grants`.

    Args:
        job: The job.
        audio: The audio in storage, or the submitted file for a renderer that reads it in place.
        attached: The files beside the audio, in storage or in place, by the names of `RenderRequest.attached`.
        bundle: The archive of all of them, where their own URLs would not fit.
        signer: Signs the order's URLs.
        now: The store's time.
        callback: Where the run reports by webhook; None where it does not.
        local: Whether it is rendered on this machine.
        device_class: What the backend declares to draw with.
        parallel: How many of the backend's calls are to draw it, with this one.
        borrowed: The prefixes of the pieces that the job borrows.

    Raises:
        InvalidRequestError: It is larger than any backend has to take.
    """
    urls = _Urls(signer, job, now)
    prefix = layout.prefix_of(job)
    attempt = job.attempts[-1]
    request = job.request

    def pictures(*, named: bool) -> dict[str, ObjectUrls]:
        def name(suffix: str) -> str | None:
            return names.file_name(request, audio, suffix=suffix) if named and urls.names_files else None

        found = {"video": urls.of(layout.video_key(prefix, attempt.token), "video/mp4", name(".mp4"))}
        if request.poster:
            key = layout.poster_key(prefix, attempt.token)
            found["poster"] = ObjectUrls(key=key, put=urls.put(key, "image/jpeg", name(".jpg")))
        return found

    files = attached or {}
    song, uploads = urls.asset(audio), pictures(named=True)
    order = RenderOrder(
        job_id=job.id,
        attempt=attempt.number,
        token=attempt.token,
        audio_url=song.url,
        audio_size=song.size,
        audio_mtime_ns=song.mtime_ns,
        video=uploads["video"],
        poster=uploads.get("poster"),
        result=urls.of(layout.result_key(prefix, attempt.token), "application/json"),
        scene=request.scene,
        params=request.params,
        output=request.output,
        start=request.start,
        duration=request.duration,
        audio_track=request.audio_track,
        title=request.title,
        artist=request.artist,
        **urls.assets(files, bundle, named=True),
        bundle=None if bundle is None else urls.asset(bundle),
        # an older version may have taken a longer duration
        max_duration=max(request.limits.max_duration.total_seconds(), request.duration or 0),
        device_class=device_class,
        require_gpu=request.require_gpu,
        gpu=request.limits.gpu,
        stall_timeout=request.limits.stall_timeout,
        memory_mib=request.limits.memory_mib,
        start_by=min(now + request.limits.start_timeout, job.finish_by),
        finish_by=job.finish_by,
        callback=callback,
        local=local,
        pieces=urls.pieces(pieces_of(job, device_class), audio, borrowed, helpers=False)
        if keeps_pieces(request, audio, parallel)
        else None,
        parallel=parallel,
    )
    if _size(order) > MAX_ORDER_BYTES:  # long names are the least that is needed
        order = order.model_copy(update=pictures(named=False))
    alone = bundle is not None or len(files) < 2  # else the files can travel as one
    if _size(order) > MAX_ORDER_BYTES and alone:
        order = order.model_copy(update=urls.assets(files, bundle, named=False))
    if _size(order) > MAX_ORDER_BYTES and alone and parallel == 1:
        order = order.model_copy(update={"pieces": None})
        named = order.model_copy(update=urls.assets(files, bundle, named=True))
        order = named if _size(named) <= MAX_ORDER_BYTES else order
    return _checked(order)


def make_helper_order(
    job: Job,
    helper: Helper,
    attached: Mapping[str, File] | None = None,
    *,
    bundle: StoredAudio | None = None,
    signer: Signer,
    now: datetime,
    local: bool,
    device_class: str | None = None,
    borrowed: Sequence[str] = (),
) -> HelperOrder:
    """Return the order of a helper of a job's current attempt, whose plan is kept.

    If the pieces are no files, the grants object of the helpers is to be stored before; see `make_grants`.

    Args:
        job: The job.
        helper: One of its attempt's.
        attached: As of `make_order`, and so are all that follow.
        bundle: Likewise.
        signer: Likewise.
        now: Likewise.
        local: Likewise.
        device_class: Likewise.
        borrowed: Likewise.

    Raises:
        InvalidRequestError: It is larger than any backend has to take.
    """
    urls = _Urls(signer, job, now)
    prefix, attempt, request = layout.prefix_of(job), job.attempts[-1], job.request
    files = attached or {}
    order = HelperOrder(
        job_id=job.id,
        attempt=attempt.number,
        token=helper.token,
        share=helper.share,
        parallel=max(job.parallel, helper.share + 1),
        pieces=urls.pieces(attempt.pieces or pieces_of(job, device_class), _audio_of(job), borrowed, helpers=True),
        stop=urls.get(layout.stop_key(prefix, attempt.token)),
        result=urls.get(layout.result_key(prefix, attempt.token)),
        scene=request.scene,
        params=request.params,
        output=request.output,
        start=request.start,
        duration=request.duration,
        audio_track=request.audio_track,
        **urls.assets(files, bundle, named=True),
        bundle=None if bundle is None else urls.asset(bundle),
        device_class=device_class,
        require_gpu=request.require_gpu,
        gpu=request.limits.gpu,
        stall_timeout=request.limits.stall_timeout,
        memory_mib=request.limits.memory_mib,
        start_by=min(now + request.limits.start_timeout, job.finish_by),
        finish_by=job.finish_by,
        local=local,
    )
    if _size(order) > MAX_ORDER_BYTES and (bundle is not None or len(files) < 2):
        order = order.model_copy(update=urls.assets(files, bundle, named=False))
    return _checked(order)


def make_grants(
    job: Job,
    prefix: str,
    *,
    signer: Signer,
    now: datetime,
    helpers: bool = False,
    lent: Mapping[str, str] = _NOTHING,
) -> Grants:
    """Return the URLs of the pieces of a job's video, for its current attempt.

    Helpers write no plan, and the first generations of segments alone; see `renderdispatch.plumbing.pieces`.

    Args:
        job: The job.
        prefix: Of the pieces, as `pieces_of` says.
        signer: Signs the URLs.
        now: The store's time.
        helpers: Whether they are those of the helpers.
        lent: The keys of the pieces that the job borrows, as `loans.borrowed_keys` found them.
    """
    urls, slots = _Urls(signer, job, now), slots_of(job.request, _audio_of(job))
    every = pieces.names(slots)
    written = pieces.names(slots, pieces.GENERATIONS_OF_HELPERS) if helpers else every
    called = "segment.mp4" if urls.names_files else None  # without a name, storage binds that of each key
    puts = {name: urls.put(prefix + name, _PIECE, called) for name in written if not (helpers and name in _PLANS)}
    headers = next(iter(puts.values())).headers
    return Grants(
        get={name: urls.get(prefix + name) for name in every},
        put={name: put.url for name, put in puts.items() if put.headers == headers},
        headers=headers,
        lent={name: urls.get(key) for name, key in lent.items()},
    )


def pieces_of(job: Job, device_class: str | None) -> str:
    """Return the prefix of the pieces that a job's current attempt keeps, on a backend of this class."""
    picture = layout.picture_of(device_class, job.attempts[-1].token)
    return layout.pieces_prefix(layout.prefix_of(job), picture)


def pack_grants(grants: Grants) -> bytes:
    """Return the object that holds grants."""
    return gzip.compress(grants.model_dump_json().encode(), compresslevel=6, mtime=0)


def keeps_pieces(request: RenderRequest, audio: Audio, parallel: int) -> bool:
    """Return whether the segments of a video are kept: a short one that one run draws is drawn again as soon."""
    return parallel > 1 or _longest_s(request, audio) > _SHORT_S


def slots_of(request: RenderRequest, audio: Audio) -> int:
    """Return for how many segments a video may need a place. Each costs the time to sign its URLs.

    A song that takes fewer bytes than any music may need more: the segments beyond are drawn as well, and not kept.
    """
    return min(int(_longest_s(request, audio) // _SEGMENT_S) + 1, MAX_SEGMENTS)


def _longest_s(request: RenderRequest, audio: Audio) -> float:
    """Return how long a video may be at most, in seconds."""
    longest_s = request.limits.max_duration.total_seconds() if request.duration is None else request.duration
    return longest_s if isinstance(audio, RemoteAudio) else min(longest_s, audio.size / _BYTES_PER_S)


def _audio_of(job: Job) -> Audio:
    return job.audio or job.request.audio


@define
class _Urls:
    """Signs the URLs of one order."""

    signer: Signer
    job: Job
    now: datetime

    expires_in: timedelta = field(init=False)
    _named: SupportsFileNames | None = field(init=False)
    """The signer, if its uploads can say what a file is called."""

    def __attrs_post_init__(self) -> None:
        self.expires_in = min(self.job.finish_by - self.now + _URL_SLACK, _MAX_URL)
        self._named = None
        if isinstance(self.signer, SupportsFileNames) and self.signer.names_files:
            self._named = self.signer

    @property
    def names_files(self) -> bool:
        """Whether uploads can say what a file is called."""
        return self._named is not None

    def get(self, key: str) -> str:
        return self.signer.sign_get(key, expires_in=self.expires_in)

    def put(self, key: str, content_type: str, name: str | None = None) -> SignedPut:
        if name is None or self._named is None:
            return self.signer.sign_put(key, expires_in=self.expires_in, content_type=content_type)
        return self._named.sign_put(key, expires_in=self.expires_in, content_type=content_type, file_name=name)

    def of(self, key: str, content_type: str, name: str | None = None) -> ObjectUrls:
        return ObjectUrls(key=key, put=self.put(key, content_type, name), get=self.get(key))

    def asset(self, file: File, name: str | None = None) -> Asset:
        if isinstance(file, LocalAudio):
            return Asset(url=file_url(file), size=file.size, mtime_ns=file.mtime_ns, name=name)
        return Asset(url=self.get(file.key), size=file.size, name=name)

    def assets(self, files: Mapping[str, File], bundle: StoredAudio | None, *, named: bool) -> dict[str, Any]:
        """Return the fields of the files beside the audio."""

        def beside(place: str) -> Asset:
            file = files[place]
            name = names.attached_name(file) if named and place != "cover" else None
            return self.asset(file, name) if bundle is None else Asset(url="", size=file.size, name=name)

        return {
            "cover": beside("cover") if "cover" in files else None,
            "scene_file": beside("scene_file") if "scene_file" in files else None,
            "images": tuple(beside(place) for place in files if is_image(place)),
        }

    def pieces(self, prefix: str, audio: Audio, borrowed: Sequence[str], *, helpers: bool) -> Pieces:
        """Return where pieces are: in a folder where storage has files, else behind the URLs of grants."""
        slots = slots_of(self.job.request, audio)
        if (folder := self._folder(prefix)) is not None:
            picture = layout.picture_in(prefix)
            lent = (self._folder(f"{each}{picture}/") for each in borrowed)
            return Pieces(slots=slots, folder=folder, lent=tuple(each for each in lent if each is not None))
        key = layout.grants_key(layout.prefix_of(self.job), self.job.attempts[-1].token, helpers=helpers)
        return Pieces(slots=slots, grants=self.get(key))

    def _folder(self, prefix: str) -> str | None:
        path = local_path(self.get(prefix + pieces.plan_name(0)))
        return None if path is None else str(path.parent)


def _checked(order: _Order) -> _Order:
    if (size := _size(order)) > MAX_ORDER_BYTES:
        message = (
            f"the order has {size} bytes, and {MAX_ORDER_BYTES} are the limit: shorten the storage keys of audio, "
            "cover and images, the storage's prefix, the webhook's URL, the title or the parameters"
        )
        raise InvalidRequestError(message, code=TOO_LARGE)
    return order


def _size(order: RenderOrder | HelperOrder) -> int:
    return len(order.model_dump_json().encode())


def file_url(file: LocalAudio) -> str:
    """Return the URL under which a local renderer reads the submitted file itself."""
    return Path(file.path).as_uri()

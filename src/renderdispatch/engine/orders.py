"""What does the GPU side get to know of a job?

The order: `make_order` makes it from the job's record. It is pure; signing is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from renderdispatch.engine import layout, names
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    Asset,
    Callback,
    LocalAudio,
    ObjectUrls,
    RenderOrder,
    SignedPut,
    StoredAudio,
    is_image,
)
from renderdispatch.protocols import SupportsFileNames

_URL_SLACK: Final = timedelta(minutes=10)
"""How long an order's URLs outlive the job's deadline (rule J10)."""

_MAX_URL: Final = timedelta(days=7)


TOO_LARGE: Final = "order.too-large"


class Signer(Protocol):
    """Signs URLs, as every `StorageAdapter` does."""

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        """Return a URL that reads the object."""

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str) -> SignedPut:
        """Return a write-once upload."""


def make_order(
    job: Job,
    audio: StoredAudio | LocalAudio,
    attached: Mapping[str, StoredAudio | LocalAudio] | None = None,
    *,
    bundle: StoredAudio | None = None,
    signer: Signer,
    now: datetime,
    callback: Callback | None,
    local: bool,
    device_class: str | None = None,
) -> RenderOrder:
    """Return the order of a job's current attempt.

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

    Raises:
        InvalidRequestError: It is larger than any backend has to take.
    """
    expires_in = min(job.finish_by - now + _URL_SLACK, _MAX_URL)
    prefix = layout.prefix_of(job)
    attempt = job.attempts[-1]
    request = job.request

    def put(key: str, content_type: str, suffix: str | None) -> SignedPut:
        if suffix is None or not (isinstance(signer, SupportsFileNames) and signer.names_files):
            return signer.sign_put(key, expires_in=expires_in, content_type=content_type)
        name = names.file_name(request, audio, suffix=suffix)
        return signer.sign_put(key, expires_in=expires_in, content_type=content_type, file_name=name)

    def urls(key: str, content_type: str, suffix: str | None = None) -> ObjectUrls:
        get = signer.sign_get(key, expires_in=expires_in)
        return ObjectUrls(key=key, put=put(key, content_type, suffix), get=get)

    def pictures(*, named: bool) -> dict[str, ObjectUrls]:
        found = {"video": urls(layout.video_key(prefix, attempt.token), "video/mp4", ".mp4" if named else None)}
        if request.poster:
            key = layout.poster_key(prefix, attempt.token)
            found["poster"] = ObjectUrls(key=key, put=put(key, "image/jpeg", ".jpg" if named else None))
        return found

    def assets(*, named: bool) -> dict[str, Any]:
        def beside(place: str) -> Asset:
            file = files[place]
            name = names.attached_name(file) if named and place != "cover" else None
            return asset(file, name) if bundle is None else Asset(url="", size=file.size, name=name)

        return {
            "cover": beside("cover") if "cover" in files else None,
            "scene_file": beside("scene_file") if "scene_file" in files else None,
            "images": tuple(beside(place) for place in files if is_image(place)),
        }

    def asset(file: StoredAudio | LocalAudio, name: str | None = None) -> Asset:
        if isinstance(file, LocalAudio):
            return Asset(url=file_url(file), size=file.size, mtime_ns=file.mtime_ns, name=name)
        return Asset(url=signer.sign_get(file.key, expires_in=expires_in), size=file.size, name=name)

    files = attached or {}
    song, uploads = asset(audio), pictures(named=True)
    order = RenderOrder(
        job_id=job.id,
        attempt=attempt.number,
        token=attempt.token,
        audio_url=song.url,
        audio_size=song.size,
        audio_mtime_ns=song.mtime_ns,
        video=uploads["video"],
        poster=uploads.get("poster"),
        result=urls(layout.result_key(prefix, attempt.token), "application/json"),
        scene=request.scene,
        params=request.params,
        output=request.output,
        start=request.start,
        duration=request.duration,
        audio_track=request.audio_track,
        title=request.title,
        artist=request.artist,
        **assets(named=True),
        bundle=None if bundle is None else asset(bundle),
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
    )
    if _size(order) > MAX_ORDER_BYTES:  # long names are the least that is needed
        order = order.model_copy(update=pictures(named=False))
    if _size(order) > MAX_ORDER_BYTES and (bundle is not None or len(files) < 2):  # else they can travel as one
        order = order.model_copy(update=assets(named=False))
    return _checked(order)


def _checked(order: RenderOrder) -> RenderOrder:
    if (size := _size(order)) > MAX_ORDER_BYTES:
        message = (
            f"the order has {size} bytes, and {MAX_ORDER_BYTES} are the limit: shorten the storage keys of audio, "
            "cover and images, the storage's prefix, the webhook's URL, the title or the parameters"
        )
        raise InvalidRequestError(message, code=TOO_LARGE)
    return order


def _size(order: RenderOrder) -> int:
    return len(order.model_dump_json().encode())


def file_url(file: LocalAudio) -> str:
    """Return the URL under which a local renderer reads the submitted file itself."""
    return Path(file.path).as_uri()

"""What does the GPU side get to know of a job?

The order: `make_order` makes it from the job's record. It is pure; signing is handed in.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from renderdispatch.engine import layout
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    Callback,
    LocalAudio,
    ObjectUrls,
    RenderOrder,
    SignedPut,
    StoredAudio,
)

_URL_SLACK: Final = timedelta(minutes=10)
"""How long an order's URLs outlive the job's deadline (rule J10)."""

_MAX_URL: Final = timedelta(days=7)


class Signer(Protocol):
    """Signs URLs, as every `StorageAdapter` does."""

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        """Return a URL that reads the object."""

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str) -> SignedPut:
        """Return a write-once upload."""


def make_order(
    job: Job,
    audio: StoredAudio | LocalAudio,
    *,
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

    def urls(key: str, content_type: str) -> ObjectUrls:
        put = signer.sign_put(key, expires_in=expires_in, content_type=content_type)
        return ObjectUrls(key=key, put=put, get=signer.sign_get(key, expires_in=expires_in))

    if isinstance(audio, LocalAudio):
        url, mtime_ns = file_url(audio), audio.mtime_ns
    else:
        url, mtime_ns = signer.sign_get(audio.key, expires_in=expires_in), None
    order = RenderOrder(
        job_id=job.id,
        attempt=attempt.number,
        token=attempt.token,
        audio_url=url,
        audio_size=audio.size,
        audio_mtime_ns=mtime_ns,
        video=urls(layout.video_key(prefix, attempt.token), "video/mp4"),
        result=urls(layout.result_key(prefix, attempt.token), "application/json"),
        scene=request.scene,
        params=request.params,
        output=request.output,
        start=request.start,
        duration=request.duration,
        audio_track=request.audio_track,
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
    size = len(order.model_dump_json())
    if size > MAX_ORDER_BYTES:
        message = (
            f"the order has {size} bytes, and {MAX_ORDER_BYTES} are the limit: "
            "shorten the storage key of the audio, the storage's prefix, the webhook's URL or the parameters"
        )
        raise InvalidRequestError(message, code="order.too-large")
    return order


def file_url(audio: LocalAudio) -> str:
    """Return the URL under which a local renderer reads the submitted file itself."""
    return Path(audio.path).as_uri()

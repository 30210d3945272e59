"""What is the order of a render that no job asked for?

A preview is drawn by the order that a job with the same request would get, without what delivers a video.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from renderdispatch.engine.names import safe_name
from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import (
    Asset,
    ObjectUrls,
    RenderOrder,
    RenderRequest,
    SignedPut,
    StoredAudio,
    check_image_count,
    describe_validation,
)

_FILES: Final = {"cover", "scene_file", "images", "poster"}
_LIFE: Final = timedelta(days=1)


def order_alone(
    song: Path,
    *,
    cover: Path | None = None,
    scene_file: Path | None = None,
    images: Iterable[Path] = (),
    **fields: Any,
) -> RenderOrder:
    """Return the order.

    Args:
        song: The file; it exists.
        cover: A picture; it exists too.
        scene_file: What the scene draws; it exists too.
        images: Pictures for the scene; they exist too.
        fields: Further ones of `RenderRequest`.

    Raises:
        InvalidRequestError: A field is wrong.
    """
    nothing, pictures = StoredAudio(key="", size=0), tuple(images)
    check_image_count(len(pictures))
    try:
        request = RenderRequest(audio=nothing, backend="", images=(nothing,) * len(pictures), **fields)
    except ValidationError as error:
        raise InvalidRequestError(describe_validation(error)) from None
    blank = ObjectUrls(key="", put=SignedPut(url=""), get="")
    latest = datetime.now(UTC) + _LIFE
    shared = RenderRequest.model_fields.keys() & RenderOrder.model_fields.keys() - _FILES
    return RenderOrder(
        **{name: getattr(request, name) for name in shared},
        job_id="alone",
        attempt=1,
        token="",
        audio_url="",
        audio_size=song.stat().st_size,
        video=blank,
        result=blank,
        cover=None if cover is None else _asset(cover, "cover"),
        scene_file=None if scene_file is None else _asset(scene_file, "scene-file"),
        images=tuple(_asset(picture, "image") for picture in pictures),
        max_duration=request.limits.max_duration.total_seconds(),
        memory_mib=request.limits.memory_mib,
        start_by=latest,
        finish_by=latest,
        local=True,
    )


def _asset(file: Path, part: str) -> Asset:
    try:
        return Asset(url="", size=file.stat().st_size, path=str(file), name=safe_name(file.name))
    except ValidationError:  # JSON has no such text
        message = f"the name of {str(file)[:200]!r} is not UTF-8: rename the file, or make a link to it"
        raise InvalidRequestError(message, code=f"{part}.invalid") from None


def check_moment(at: float | None) -> float | None:
    """Return a moment of the song in seconds; None is the brightest one.

    Raises:
        InvalidRequestError: ``preview.range``: no song has it.
    """
    if at is not None and not (math.isfinite(at) and at >= 0):
        raise InvalidRequestError(f"at: seconds into the song, 0 or more, not {at:g}", code="preview.range")
    return at

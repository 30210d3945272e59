"""Does a job go its whole way through R2?"""

from __future__ import annotations

import io
import math
import struct
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import av
import httpx
from PIL import Image

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import JobStatus, Output
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.memory import MemoryJobStore

_RATE = 8000
_SECONDS = 1


def _song() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as song:
        song.setnchannels(1)
        song.setsampwidth(2)
        song.setframerate(_RATE)
        tone = (int(20_000 * math.sin(math.tau * 440 * n / _RATE)) for n in range(_RATE * _SECONDS))
        song.writeframes(b"".join(struct.pack("<h", sample) for sample in tone))
    return file.getvalue()


def test_a_render_goes_through_r2(storage: R2Storage, tmp_path: Path) -> None:
    """Submitted, rendered and uploaded by signed URLs; video and poster come by URLs that are signed for seven days."""
    backend = LocalGpuBackend(slots=1)
    cover = tmp_path / "cover.jpg"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(cover)
    with RenderService(MemoryJobStore(), storage, backend, owned=(backend,)) as service:
        song: dict[str, Any] = {"title": "Ein Lied", "artist": "Élan", "cover": cover, "poster": True, "duration": 1}
        handle = service.submit(_song(), scene="bars", output=Output(width=128, height=72, fps=Fraction(30)), **song)
        job = handle.wait(90)
        assert job.status is JobStatus.COMPLETE, job.error
        url, poster_url = handle.download_url(), handle.poll().poster_url
        answer = httpx.get(url)
        assert poster_url is not None
        poster = httpx.get(poster_url)
        service.delete(job.id)
        assert list(storage.list("")) == []
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["604800"]
    for saved, kind, suffix in ((answer, "video/mp4", "mp4"), (poster, "image/jpeg", "jpg")):
        assert saved.headers["content-type"] == kind
        named = f"inline; filename=\"_lan - Ein Lied.{suffix}\"; filename*=UTF-8''%C3%89lan%20-%20Ein%20Lied.{suffix}"
        assert saved.headers["content-disposition"] == named
    assert poster.content.startswith(b"\xff\xd8\xff")
    video = tmp_path / "video.mp4"
    video.write_bytes(answer.content)
    assert job.artifact is not None
    assert job.artifact.bytes == len(answer.content)
    with av.open(video) as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (30 * _SECONDS, 128, 72)

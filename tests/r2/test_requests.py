"""How many requests to R2 does a render take, by the classes of R2's price list?"""

from __future__ import annotations

import io
import math
import struct
import wave
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from attrs import define, field

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.jobs import URLS_EXPIRED, CleanUp, Job
from renderdispatch.messages import JobStatus, Output
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.local_r2 import LocalR2

_CLASSES = {
    "A": {"PutObject", "ListObjects", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"},
    "B": {"GetObject", "HeadObject"},
    "free": {"DeleteObject", "DeleteObjects", "AbortMultipartUpload"},
}
_SEGMENT_S = 4
_SMALL = Output(width=64, height=36, fps=Fraction(6))


def song(seconds: int) -> bytes:
    """Return a tone."""
    file, rate = io.BytesIO(), 8000
    with wave.open(file, "wb") as tone:
        tone.setnchannels(1)
        tone.setsampwidth(2)
        tone.setframerate(rate)
        samples = (int(20_000 * math.sin(math.tau * 440 * n / rate)) for n in range(rate * seconds))
        tone.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


@define
class Counted:
    """A service of this machine over R2, whose requests are counted. Its clock can be put forward."""

    r2: LocalR2
    storage: R2Storage
    ahead: timedelta = timedelta(0)
    store: MemoryJobStore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryJobStore(clock=lambda: datetime.now(UTC) + self.ahead)

    def render(self, seconds: int, *, slots: int = 1, parallel: int = 1, duration: float | None = None) -> Job:
        """Render a song until nothing of it is left to be deleted, but its video and result."""
        backend = LocalGpuBackend(slots=slots)
        with RenderService(self.store, self.storage, backend, owned=[backend]) as service:
            eventually(lambda: self.operations().get("ListObjects", 0) >= 2)  # uploads and tombstones of other jobs
            self.r2.forget()
            handle = service.submit(song(seconds), output=_SMALL, parallel=parallel, duration=duration)
            job = handle.wait(90)
            assert job.status is JobStatus.COMPLETE, job.error
            eventually(lambda: not (handle.job.owes_pieces and handle.job.pieces_swept_at is None))
        self.ahead = job.finish_by + URLS_EXPIRED - datetime.now(UTC)
        with RenderService(self.store, self.storage, LocalGpuBackend(slots=1), worker=False) as later:
            worker = later._engine.worker()
            worker.reconciler.reconcile(later.get(job.id))
            job = later.get(job.id)
        assert not job.owes_pieces
        return job

    def operations(self) -> dict[str, int]:
        return self.r2.operations()

    def of_class(self, name: str) -> int:
        """Return how many requests there were of a class."""
        return sum(count for operation, count in self.operations().items() if operation in _CLASSES[name])


@pytest.fixture
def counted(r2: LocalR2, storage: R2Storage) -> Counted:
    return Counted(r2, storage)


def test_a_short_render_takes_three_writes(counted: Counted) -> None:
    """Audio, video and result; nothing is kept of a video that was asked to be short."""
    job = counted.render(2, duration=2)
    assert job.pieces_clean_up is CleanUp.NONE
    assert counted.of_class("A") == 3
    assert counted.of_class("B") <= 5


def test_a_long_render_takes_a_write_for_each_segment(counted: Counted) -> None:
    """And four more: plan and grants, and two lists that find what is to be deleted. It looks for each segment once.

    The last segment may be joined before it is stored; then it need not be.
    """
    job = counted.render(5 * _SEGMENT_S)
    assert job.artifact is not None
    segments = job.artifact.segments
    assert segments == 5
    assert counted.operations()["ListObjects"] == 2
    assert 3 + 4 + segments - 1 <= counted.of_class("A") <= 3 + 4 + segments
    assert counted.of_class("B") <= 5 + 4 + segments


@pytest.mark.long
def test_helpers_take_a_few_reads_for_each_segment(counted: Counted) -> None:
    """They write nothing but their segments; grants of their own and the word to stop are written once an attempt."""
    job = counted.render(8 * _SEGMENT_S, slots=2, parallel=2)
    assert job.artifact is not None
    segments, twice = job.artifact.segments, job.artifact.segments_twice
    assert segments == 8
    assert counted.operations()["ListObjects"] == 2
    assert 3 + 4 + segments <= counted.of_class("A") <= 3 + 4 + 2 + segments + twice
    assert counted.of_class("B") <= 5 + 4 + 6 * segments

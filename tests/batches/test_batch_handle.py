"""Can a batch be counted, watched, waited for and cancelled?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from renderdispatch import AsyncRenderService, BatchHandle, JobStatus, RenderService, Submission, WaitTimeoutError
from renderdispatch.aio import AsyncBatchHandle, AsyncJobHandle
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import InvalidRequestError
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer, eventually


def _rows(count: int, **params: Any) -> list[Submission]:
    return [Submission(b"RIFF", scene="fake", params=params or None) for _ in range(count)]


def test_counts_are_of_the_batch_alone(service: RenderService) -> None:
    """Counts have every status, and leave out the jobs of other batches and of none."""
    service.submit(b"RIFF", scene="fake")
    service.submit_many(_rows(3), batch="other")
    batch = service.submit_many(_rows(2)).batch
    assert batch.counts() == {status: 2 if status is JobStatus.PENDING else 0 for status in JobStatus}
    assert service.batch(batch.id).counts() == batch.counts()
    assert sum(service.batch("nothing").counts().values()) == 0


def test_jobs_are_listed_in_pages_and_by_status(service: RenderService) -> None:
    """Pages visit each job of the batch once; a status leaves out the others."""
    made = service.submit_many(_rows(5))
    made.handles[0].cancel()
    found, cursor = [], None
    for _ in range(3):
        page = made.batch.jobs(limit=2, cursor=cursor)
        found += [job.id for job in page.items]
        cursor = page.cursor
    assert cursor is None
    assert found == [handle.id for handle in reversed(made.handles)]
    assert [job.id for job in made.batch.jobs(status=JobStatus.CANCELLED).items] == [made.handles[0].id]
    with pytest.raises(InvalidRequestError, match="status"):
        made.batch.jobs(status="gone")  # type: ignore[arg-type]  # there is no such status


def test_watching_shows_each_change_until_all_have_ended(rendering: RenderService) -> None:
    """The watch begins at once, yields changed counts alone, estimates the time left, and ends with the last job."""
    batch = rendering.submit_many(_rows(4, frames=5, frame_s=0.01)).batch
    seen = list(batch.watch(timeout=20))
    assert [progress.total for progress in seen] == [4] * len(seen)
    assert all(a.counts != b.counts for a, b in pairwise(seen))
    ended = [progress.ended for progress in seen]
    assert ended == sorted(ended)
    assert seen[-1].left == 0
    assert seen[-1].counts[JobStatus.COMPLETE] == 4
    assert all(p.seconds_left is None or p.seconds_left >= 0 for p in seen)


def test_waiting_may_time_out(service: RenderService) -> None:
    """A wait that runs out says how many jobs are left; they go on."""
    batch = service.submit_many(_rows(3)).batch
    with pytest.raises(WaitTimeoutError, match="3 of 3 jobs have not ended"):
        batch.wait(timeout=timedelta(seconds=0.05))
    assert batch.counts()[JobStatus.PENDING] == 3


def test_cancelling_a_batch_ends_all_that_have_not_ended(rendering: RenderService) -> None:
    """Queued and running jobs are cancelled; a job that had ended stays as it is; other jobs go on."""
    first = rendering.submit(b"RIFF", scene="fake", batch="album")
    assert first.wait(timeout=20).status is JobStatus.COMPLETE
    made = rendering.submit_many(_rows(6, frames=3000, frame_s=0.01), batch="album")
    other = rendering.submit(b"RIFF", scene="fake", params={"frames": 3000, "frame_s": 0.01})
    assert eventually(lambda: made.batch.counts()[JobStatus.PROCESSING] or None)
    assert made.batch.cancel() == 6
    progress = made.batch.wait(timeout=20)
    assert progress.counts[JobStatus.COMPLETE] == 1
    assert progress.counts[JobStatus.CANCELLED] == 6
    assert made.batch.cancel() == 0
    assert not other.job.ended
    other.cancel()


def test_a_batch_of_more_than_one_page_is_cancelled(service: RenderService) -> None:
    """Cancelling goes on over the pages of the listing."""
    batch = service.submit_many(_rows(1003)).batch
    assert batch.cancel() == 1003
    assert batch.counts()[JobStatus.CANCELLED] == 1003


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def async_service() -> AsyncIterator[AsyncRenderService]:
    backend = InlineBackend({"fake": FakeRenderer()})
    async with AsyncRenderService(
        RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend])
    ) as service:
        yield service


@pytest.mark.anyio
async def test_async_code_has_the_same_batches(async_service: AsyncRenderService) -> None:
    """Handles and batches of `submit_many` are async; awaiting the batch waits for all."""
    made = await async_service.submit_many([*_rows(2), Submission(b"")], batch="album")
    assert all(isinstance(handle, AsyncJobHandle) for handle in made.handles)
    assert list(made.errors) == [2]
    assert (await made.batch).counts[JobStatus.COMPLETE] == 2
    batch = async_service.batch("album")
    assert len((await batch.jobs()).items) == 2
    assert [progress.left async for progress in batch.watch(timeout=5)] == [0]
    assert await batch.cancel() == 0


def test_both_handles_have_the_same_methods() -> None:
    """Every public method of the blocking handle has an async twin of the same name."""
    ours, theirs = ({name for name in vars(cls) if not name.startswith("_")} for cls in (BatchHandle, AsyncBatchHandle))
    assert ours == theirs

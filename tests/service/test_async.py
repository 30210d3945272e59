"""Does async code get the same service?"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from renderdispatch import AsyncJobHandle, AsyncRenderService, JobHandle, JobStatus, RenderService, WaitTimeoutError
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.runner import Pace
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer

LONG = {"frames": 3000, "frame_s": 0.01}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def service() -> AsyncIterator[AsyncRenderService]:
    backend = InlineBackend({"fake": FakeRenderer()}, pace=Pace(progress_s=0.02))
    async with AsyncRenderService(
        RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend])
    ) as service:
        yield service


async def test_awaiting_a_handle(service: AsyncRenderService, tmp_path: Path) -> None:
    """`await handle` waits for the job; the rest of the facade is awaited alike."""
    handle = await service.submit(b"RIFF", scene="fake")
    job = await handle
    assert job.status is JobStatus.COMPLETE
    assert (await handle.poll()).result is not None
    assert (await handle.save(tmp_path / "out.mp4")).read_bytes() == b"a video of nothing"
    assert await service.download_url(handle.id)
    assert (await service.counts())[JobStatus.COMPLETE] == 1
    assert [j.id for j in (await service.jobs()).items] == [handle.id]
    await service.delete(handle.id)


async def test_watching_leaves_the_loop_free(service: AsyncRenderService) -> None:
    """Many watchers and waiters share one event loop, which goes on all the while."""
    handle = await service.submit(b"RIFF", scene="fake", params={"frames": 60, "frame_s": 0.01})
    seen: list[list[float]] = [[] for _ in range(60)]  # more than there are worker threads
    longest = 0.0

    async def watch(into: list[float]) -> None:
        async for job in handle.watch(timeout=20):
            into.append(job.progress)  # noqa: PERF401 - as it comes

    async def beat() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await anyio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    async with anyio.create_task_group() as everything:
        everything.start_soon(beat)
        async with anyio.create_task_group() as watchers:
            for into in seen:
                watchers.start_soon(watch, into)
        everything.cancel_scope.cancel()
    assert all(progress == sorted(progress) and progress[-1] == 100 for progress in seen)
    assert longest < 5  # the waits are of up to 20 s


async def test_cancelling_the_task_leaves_the_job(service: AsyncRenderService) -> None:
    """A cancelled waiter ends at once; the job goes on, until it is cancelled itself."""
    handle = await service.submit(b"RIFF", scene="fake", params=LONG)
    with anyio.move_on_after(0.1) as scope:
        await handle
    assert scope.cancelled_caught
    assert not (await handle.job()).ended
    await handle.cancel()
    assert (await handle.wait(timeout=10)).status is JobStatus.CANCELLED
    again = await handle.retry()
    with pytest.raises(WaitTimeoutError):
        await again.wait(timeout=0.05)
    await again.cancel()


async def test_tenants(service: AsyncRenderService) -> None:
    """A tenant's view is async too."""
    handle = await service.for_tenant("acme").submit(b"RIFF", scene="fake")
    assert (await handle).tenant == "acme"


@pytest.mark.parametrize(("blocking", "twin"), [(RenderService, AsyncRenderService), (JobHandle, AsyncJobHandle)])
def test_signatures_are_the_same(blocking: type, twin: type) -> None:
    """Every public method has the same name and takes the same things in both facades."""
    own = {"open_object", "open_video"}  # hand out open files: no twins

    def public(cls: type) -> dict[str, list[tuple[object, ...]]]:
        found: dict[str, list[tuple[object, ...]]] = {}
        for name, member in vars(cls).items():
            if not name.startswith("_") and callable(member) and name not in own:
                parameters = inspect.signature(member).parameters.values()
                found[name] = [(p.name, p.kind, p.default) for p in parameters]
        return found

    theirs, ours = public(blocking), public(twin)
    ours.pop("job", None)
    assert ours == theirs


async def test_an_overridden_method_is_used() -> None:
    """A subclass of the blocking service keeps its methods behind the async facade."""

    class Counted(RenderService):
        def counts(self) -> dict[JobStatus, int]:
            return dict.fromkeys(JobStatus, 7)

    service = Counted(MemoryJobStore(), MemoryStorage(), InlineBackend(), worker=False)
    assert await AsyncRenderService(service).counts() == dict.fromkeys(JobStatus, 7)

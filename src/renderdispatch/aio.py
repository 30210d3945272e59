"""How does async code use the service?

`AsyncRenderService` has the names of `RenderService`, awaited: one line a method over a worker thread. Waiting and
watching sleep on the event loop, not in a thread. A test compares the signatures with those of the blocking facade.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
from anyio import to_thread

from renderdispatch.batches import BatchHandle, BatchProgress, BatchWatch, SubmittedBatch
from renderdispatch.engine.watching import Pause, what_shows
from renderdispatch.errors import RenderDispatchError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.service import JobHandle, RenderService

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaited(method: Callable[Concatenate[Any, _P], _T]) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, _T]]:
    """Return a method's async twin: with its signature and docstring, run in a worker thread."""

    @wraps(method)
    async def awaited(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await to_thread.run_sync(partial(getattr(self._twin, method.__name__), *args, **kwargs))

    return awaited


def _handled(
    method: Callable[Concatenate[Any, _P], JobHandle],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, AsyncJobHandle]]:
    """Return a method's async twin, as `_awaited` does, whose handle is async too."""

    @wraps(method)
    async def handled(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncJobHandle:
        return AsyncJobHandle(await _awaited(method)(self, *args, **kwargs))

    return handled


def _batched(
    method: Callable[Concatenate[Any, _P], SubmittedBatch[JobHandle, BatchHandle]],
) -> Callable[Concatenate[Any, _P], Coroutine[Any, Any, SubmittedBatch[AsyncJobHandle, AsyncBatchHandle]]]:
    """Return a method's async twin, as `_awaited` does, whose handles are async too."""

    @wraps(method)
    async def batched(
        self: Any, /, *args: _P.args, **kwargs: _P.kwargs
    ) -> SubmittedBatch[AsyncJobHandle, AsyncBatchHandle]:
        made = await _awaited(method)(self, *args, **kwargs)
        rows = (row if isinstance(row, RenderDispatchError) else AsyncJobHandle(row) for row in made.rows)
        return SubmittedBatch(AsyncBatchHandle(made.batch), tuple(rows))

    return batched


class AsyncRenderService:
    """`RenderService` for async code.

    Args:
        service: The blocking service that does the work. It is closed with this one.
    """

    def __init__(self, service: RenderService) -> None:
        self._twin = service

    def __repr__(self) -> str:
        return f"Async{self._twin!r}"

    async def __aenter__(self) -> AsyncRenderService:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    start = _awaited(RenderService.start)
    close = _awaited(RenderService.close)
    tick = _awaited(RenderService.tick)
    submit = _handled(RenderService.submit)
    check = _awaited(RenderService.check)
    submit_many = _batched(RenderService.submit_many)
    create_upload = _awaited(RenderService.create_upload)
    get = _awaited(RenderService.get)
    poll = _awaited(RenderService.poll)
    jobs = _awaited(RenderService.jobs)
    counts = _awaited(RenderService.counts)
    download_url = _awaited(RenderService.download_url)
    poster_url = _awaited(RenderService.poster_url)
    file_name = _awaited(RenderService.file_name)
    save = _awaited(RenderService.save)
    save_poster = _awaited(RenderService.save_poster)
    handle_webhook = _awaited(RenderService.handle_webhook)
    webhook_counts = _awaited(RenderService.webhook_counts)
    cancel = _awaited(RenderService.cancel)
    retry = _handled(RenderService.retry)
    delete = _awaited(RenderService.delete)

    def for_tenant(self, tenant: str) -> AsyncRenderService:
        """Return this service as one tenant sees it, as `RenderService.for_tenant`. Nothing is awaited."""
        return AsyncRenderService(self._twin.for_tenant(tenant))

    def handle(self, job_id: str) -> AsyncJobHandle:
        """Return a handle on a job. Whether the job exists is found out when the handle is used."""
        return AsyncJobHandle(self._twin.handle(job_id))

    def batch(self, batch_id: str) -> AsyncBatchHandle:
        """Return a handle on the jobs of a batch, as `RenderService.batch`. Nothing is awaited."""
        return AsyncBatchHandle(self._twin.batch(batch_id))


class AsyncJobHandle:
    """One job, for async code; awaiting the handle waits for the job to end."""

    def __init__(self, handle: JobHandle) -> None:
        self._twin = handle
        self.id = handle.id

    def __repr__(self) -> str:
        return f"AsyncJobHandle({self.id!r})"

    def __await__(self) -> Generator[Any, None, Job]:
        return self.wait().__await__()

    poll = _awaited(JobHandle.poll)
    cancel = _awaited(JobHandle.cancel)
    retry = _handled(JobHandle.retry)
    download_url = _awaited(JobHandle.download_url)
    poster_url = _awaited(JobHandle.poster_url)
    file_name = _awaited(JobHandle.file_name)
    save = _awaited(JobHandle.save)
    save_poster = _awaited(JobHandle.save_poster)
    _reconciled = _awaited(JobHandle._reconciled)  # noqa: SLF001 - its twin

    async def job(self) -> Job:
        """Return the record as it is now. Raises `JobNotFoundError`."""
        return await to_thread.run_sync(lambda: self._twin.job)

    async def wait(self, timeout: float | timedelta | None = None) -> Job:  # noqa: ASYNC109 - the blocking facade's
        """Wait for the job to end, however it ends, and return it, as `JobHandle.wait`."""
        async for job in self._revisions(timeout):
            last = job
        return last

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - the blocking facade's
        """Yield the job now and after each visible change, until it has ended, as `JobHandle.watch`."""
        shown = None
        async for job in self._revisions(timeout):
            if (visible := what_shows(job)) != shown:
                shown = visible
                yield job

    async def _revisions(self, timeout: float | timedelta | None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - the blocking facade's
        pause = Pause(timeout)
        while True:
            yield (job := await self._reconciled())
            if job.ended:
                return
            await anyio.sleep(pause.after(job))

    def _repr_html_(self) -> str:
        return self._twin._repr_html_()


class AsyncBatchHandle:
    """The jobs of a batch, for async code; awaiting the handle waits for all of them to end."""

    def __init__(self, handle: BatchHandle) -> None:
        self._twin = handle
        self.id = handle.id

    def __repr__(self) -> str:
        return f"AsyncBatchHandle({self.id!r})"

    def __await__(self) -> Generator[Any, None, BatchProgress]:
        return self.wait().__await__()

    counts = _awaited(BatchHandle.counts)
    jobs = _awaited(BatchHandle.jobs)
    cancel = _awaited(BatchHandle.cancel)

    async def wait(self, timeout: float | timedelta | None = None) -> BatchProgress:  # noqa: ASYNC109 - the blocking facade's
        """Wait for all jobs of the batch to end, however they end, as `BatchHandle.wait`."""
        async for progress in self._counted(timeout):
            last = progress
        return last

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncIterator[BatchProgress]:  # noqa: ASYNC109 - the blocking facade's
        """Yield how far the batch is, now and after each change, until all have ended, as `BatchHandle.watch`."""
        shown: Mapping[JobStatus, int] | None = None
        async for progress in self._counted(timeout):
            if progress.counts != shown:
                shown = progress.counts
                yield progress

    async def _counted(self, timeout: float | timedelta | None) -> AsyncIterator[BatchProgress]:  # noqa: ASYNC109 - the blocking facade's
        watch = BatchWatch(timeout)
        while True:
            yield (progress := watch.seen(await self.counts()))
            if not progress.left:
                return
            await anyio.sleep(watch.pause_after(progress))

"""How does async code use the service?

`AsyncRenderService` has the names of `RenderService`, awaited: one line a method over a worker thread. Waiting and
watching sleep on the event loop, not in a thread. A test holds the signatures to those of the blocking facade.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import anyio
from anyio import to_thread
from pydantic import JsonValue

from renderdispatch.engine.audio import AudioSource
from renderdispatch.engine.inbox import WebhookResponse
from renderdispatch.engine.watching import Pause, what_shows
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Limits, Output, PollResponse, UploadGrant
from renderdispatch.protocols import Page
from renderdispatch.service import JobHandle, RenderService
from renderdispatch.webhooks import Headers

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def _in_thread(call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    return await to_thread.run_sync(partial(call, *args, **kwargs))


class AsyncRenderService:
    """`RenderService` for async code.

    Args:
        service: The blocking service that does the work. It is closed with this one.
    """

    def __init__(self, service: RenderService) -> None:
        self._service = service

    def __repr__(self) -> str:
        return f"Async{self._service!r}"

    async def start(self) -> None:
        """Start the worker of this process, unless ``worker=False`` was given. A second call does nothing."""
        await _in_thread(self._service.start)

    async def close(self) -> None:
        """Stop the worker; local renders end, and their jobs go back to the queue. A second call does nothing."""
        await _in_thread(self._service.close)

    async def __aenter__(self) -> AsyncRenderService:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def tick(self) -> int:
        """Take one round of dispatch and reconcile; return how many jobs were moved."""
        return await _in_thread(self._service.tick)

    def for_tenant(self, tenant: str) -> AsyncRenderService:
        """Return this service as one tenant sees it. Nothing is awaited: it is a view."""
        return AsyncRenderService(self._service.for_tenant(tenant))

    async def submit(
        self,
        audio: AudioSource,
        *,
        scene: str | Path = "bars",
        params: Mapping[str, JsonValue] | None = None,
        output: Output | str = "flat-1080p-landscape",
        start: float = 0,
        duration: float | None = None,
        backend: str | None = None,
        require_gpu: bool = False,
        limits: Limits | None = None,
        priority: int = 0,
        metadata: Mapping[str, JsonValue] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncJobHandle:
        """Record a job and return its handle. Takes and raises what `RenderService.submit` does."""
        handle = await _in_thread(
            self._service.submit,
            audio,
            scene=scene,
            params=params,
            output=output,
            start=start,
            duration=duration,
            backend=backend,
            require_gpu=require_gpu,
            limits=limits,
            priority=priority,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return AsyncJobHandle(handle)

    async def create_upload(self, *, size: int, content_type: str) -> UploadGrant:
        """Let a client send audio straight to storage, as `RenderService.create_upload`."""
        return await _in_thread(self._service.create_upload, size=size, content_type=content_type)

    def handle(self, job_id: str) -> AsyncJobHandle:
        """Return a handle on a job. Nothing is awaited: the handle finds out whether the job exists."""
        return AsyncJobHandle(self._service.handle(job_id))

    async def get(self, job_id: str) -> Job:
        """Return the job's record. Raises `JobNotFoundError`."""
        return await _in_thread(self._service.get, job_id)

    async def poll(self, job_id: str) -> PollResponse:
        """Return what a poll endpoint answers. Raises `JobNotFoundError`."""
        return await _in_thread(self._service.poll, job_id)

    async def jobs(
        self, *, status: JobStatus | Iterable[JobStatus] | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        """Return a page of jobs, newest first; ``cursor`` of one page asks for the next."""
        return await _in_thread(self._service.jobs, status=status, limit=limit, cursor=cursor)

    async def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs have each status."""
        return await _in_thread(self._service.counts)

    async def download_url(self, job_id: str) -> str:
        """Return a URL of the finished video, good for 7 days. Raises `JobNotCompleteError`."""
        return await _in_thread(self._service.download_url, job_id)

    async def save(self, job_id: str, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the finished video to a file; return its path. Raises what `RenderService.save` does."""
        return await _in_thread(self._service.save, job_id, path, overwrite=overwrite)

    async def handle_webhook(self, headers: Headers, body: bytes) -> WebhookResponse:
        """Take a webhook of the GPU side and return the response to send."""
        return await _in_thread(self._service.handle_webhook, headers, body)

    async def webhook_counts(self) -> dict[str, int]:
        """Return how many webhooks this process took, by their fate."""
        return await _in_thread(self._service.webhook_counts)

    async def cancel(self, job_id: str) -> Job:
        """Have the job end, and its computing stop; return the job as it is now."""
        return await _in_thread(self._service.cancel, job_id)

    async def retry(self, job_id: str) -> AsyncJobHandle:
        """Submit a failed or cancelled job again, as a new job."""
        return AsyncJobHandle(await _in_thread(self._service.retry, job_id))

    async def delete(self, job_id: str) -> None:
        """Forget an ended job and remove its objects. Raises what `RenderService.delete` does."""
        await _in_thread(self._service.delete, job_id)


class AsyncJobHandle:
    """One job, for async code; awaiting the handle waits for the job to end."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self.id = handle.id

    def __repr__(self) -> str:
        return f"AsyncJobHandle({self.id!r})"

    def __await__(self) -> Generator[Any, None, Job]:
        return self.wait().__await__()

    async def job(self) -> Job:
        """Return the record as it is now. Raises `JobNotFoundError`."""
        return await _in_thread(lambda: self._handle.job)

    async def poll(self) -> PollResponse:
        """Return what a poll endpoint answers."""
        return await _in_thread(self._handle.poll)

    async def wait(self, timeout: float | timedelta | None = None) -> Job:  # noqa: ASYNC109 - the blocking facade's
        """Wait for the job to end, and return it. Raises `WaitTimeoutError`; the job goes on."""
        async for job in self._revisions(timeout):
            if job.ended:
                return job
        raise AssertionError

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - the blocking facade's
        """Yield the job now and after each visible change, until it has ended. Raises `WaitTimeoutError`."""
        shown = None
        async for job in self._revisions(timeout):
            if (visible := what_shows(job)) != shown:
                shown = visible
                yield job

    async def cancel(self) -> Job:
        """Have the job end; return it as it is now."""
        return await _in_thread(self._handle.cancel)

    async def retry(self) -> AsyncJobHandle:
        """Submit the failed or cancelled job again, as a new job."""
        return AsyncJobHandle(await _in_thread(self._handle.retry))

    async def download_url(self) -> str:
        """Return a URL of the finished video. Raises `JobNotCompleteError`."""
        return await _in_thread(self._handle.download_url)

    async def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the finished video to a file; return its path."""
        return await _in_thread(self._handle.save, path, overwrite=overwrite)

    async def _revisions(self, timeout: float | timedelta | None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - the blocking facade's
        pause = Pause(timeout)
        while True:
            yield (job := await _in_thread(self._handle._reconciled))  # noqa: SLF001 - its twin
            if job.ended:
                return
            await anyio.sleep(pause.after(job))

    def _repr_html_(self) -> str:
        return self._handle._repr_html_()

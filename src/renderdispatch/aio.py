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
        await _in_thread(self._service.start)

    async def close(self) -> None:
        await _in_thread(self._service.close)

    async def __aenter__(self) -> AsyncRenderService:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def tick(self) -> int:
        return await _in_thread(self._service.tick)

    def for_tenant(self, tenant: str) -> AsyncRenderService:
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
        return await _in_thread(self._service.create_upload, size=size, content_type=content_type)

    def handle(self, job_id: str) -> AsyncJobHandle:
        return AsyncJobHandle(self._service.handle(job_id))

    async def get(self, job_id: str) -> Job:
        return await _in_thread(self._service.get, job_id)

    async def poll(self, job_id: str) -> PollResponse:
        return await _in_thread(self._service.poll, job_id)

    async def jobs(
        self, *, status: JobStatus | Iterable[JobStatus] | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        return await _in_thread(self._service.jobs, status=status, limit=limit, cursor=cursor)

    async def counts(self) -> dict[JobStatus, int]:
        return await _in_thread(self._service.counts)

    async def download_url(self, job_id: str) -> str:
        return await _in_thread(self._service.download_url, job_id)

    async def save(self, job_id: str, path: str | Path, *, overwrite: bool = False) -> Path:
        return await _in_thread(self._service.save, job_id, path, overwrite=overwrite)

    async def handle_webhook(self, headers: Headers, body: bytes) -> WebhookResponse:
        return await _in_thread(self._service.handle_webhook, headers, body)

    async def webhook_counts(self) -> dict[str, int]:
        return await _in_thread(self._service.webhook_counts)

    async def cancel(self, job_id: str) -> Job:
        return await _in_thread(self._service.cancel, job_id)

    async def retry(self, job_id: str) -> AsyncJobHandle:
        return AsyncJobHandle(await _in_thread(self._service.retry, job_id))

    async def delete(self, job_id: str) -> None:
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
        return await _in_thread(lambda: self._handle.job)

    async def poll(self) -> PollResponse:
        return await _in_thread(self._handle.poll)

    async def wait(self, timeout: float | timedelta | None = None) -> Job:  # noqa: ASYNC109 - the blocking facade's
        async for job in self._revisions(timeout):
            if job.ended:
                return job
        raise AssertionError

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - the blocking facade's
        shown = None
        async for job in self._revisions(timeout):
            if (visible := what_shows(job)) != shown:
                shown = visible
                yield job

    async def cancel(self) -> Job:
        return await _in_thread(self._handle.cancel)

    async def retry(self) -> AsyncJobHandle:
        return AsyncJobHandle(await _in_thread(self._handle.retry))

    async def download_url(self) -> str:
        return await _in_thread(self._handle.download_url)

    async def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        return await _in_thread(self._handle.save, path, overwrite=overwrite)

    async def _revisions(self, timeout: float | timedelta | None) -> AsyncIterator[Job]:  # noqa: ASYNC109 - likewise
        pause = Pause(timeout)
        while True:
            yield (job := await _in_thread(self._handle._reconciled))  # noqa: SLF001 - its twin
            if job.ended:
                return
            await anyio.sleep(pause.after(job))

    def _repr_html_(self) -> str:
        return self._handle._repr_html_()

"""What do applications hold?

`RenderService`, the one facade: submit, poll, watch, cancel, and a worker in the background that brings every job to
exactly one end. All calls block for milliseconds (except uploads), and all are safe from any thread.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydantic import JsonValue

from renderdispatch.batches import BatchHandle, SubmittedBatch
from renderdispatch.engine import layout
from renderdispatch.engine.attachments import AttachmentSource
from renderdispatch.engine.audio import AudioSource
from renderdispatch.engine.intake import check_batch
from renderdispatch.engine.parts import Closable, Parts, Reroute, Route, machine_id
from renderdispatch.engine.rows import Submission
from renderdispatch.engine.runtime import Engine
from renderdispatch.engine.submission import UPLOAD_GRANT_LIFE, Submissions
from renderdispatch.engine.views import DOWNLOAD_URL_LIFE, Views
from renderdispatch.engine.watching import Pause, show_html, what_shows
from renderdispatch.errors import InvalidRequestError, JobNotFoundError, RenderDispatchError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Limits, Output, PollResponse, UploadGrant
from renderdispatch.protocols import AudioFetcher, JobStore, Page, RenderBackend, StorageAdapter
from renderdispatch.queueing import QueuePolicy

if TYPE_CHECKING:
    from renderdispatch.engine.inbox import WebhookResponse
    from renderdispatch.webhooks import Headers

__all__ = ["DOWNLOAD_URL_LIFE", "UPLOAD_GRANT_LIFE", "JobHandle", "RenderService", "Route"]


class RenderService:
    """Renders video on a GPU, and brings every job to an end.

    Args:
        store: Where jobs live.
        storage: Where audio and video live.
        backends: Where renders run, by name; or a single one. The first is the default.
        route: Chooses a backend for requests that name none.
        secrets: Master secrets for webhooks, ``whsec_...``: the first signs new attempts, all are understood, so that
            they can be rotated while renders run.
        webhook_url: Where the GPU side reaches `handle_webhook`. Without one, renders send no webhook, and the
            reconciler asks backends and storage.
        fetcher: What reads audio from URLs; without one, `AudioUrl` is refused.
        worker: Whether this process dispatches and reconciles in the background. No thread starts before `start`, a
            ``with`` block or the first `submit`. Without it, some other process has to run `tick` or a worker.
        lease: How long a job stays with a worker that has stopped renewing its claim.
        machine: This machine's id; None finds one.
        policy: How tenants share the backends: weights and limits. None: all alike, without limits.
        failover: Chooses the backend of each attempt, for requests that name none: called with the request and the
            attempts before, it returns a backend's name. None: all attempts on the one that ``route`` chose.
        keep: For how long ended jobs and their objects are kept, by status. None, or a status that is not named: until
            they are deleted.
        owned: Parts that `close` closes too, in this order.

    Raises:
        ConfigurationError: The parts do not fit together.
    """

    def __init__(
        self,
        store: JobStore,
        storage: StorageAdapter,
        backends: Mapping[str, RenderBackend] | RenderBackend,
        *,
        route: Route | None = None,
        secrets: str | Sequence[str] | None = None,
        webhook_url: str | None = None,
        fetcher: AudioFetcher | None = None,
        worker: bool = True,
        lease: timedelta = timedelta(seconds=30),
        machine: str | None = None,
        policy: QueuePolicy | None = None,
        failover: Reroute | None = None,
        keep: Mapping[JobStatus, timedelta] | None = None,
        owned: Iterable[Closable] = (),
    ) -> None:
        keys = None
        if secrets:
            from renderdispatch.webhooks import AttemptKeys  # a service without webhooks needs none

            keys = AttemptKeys(secrets)
        parts = Parts(
            store=store,
            storage=storage,
            backends=dict(backends) if isinstance(backends, Mapping) else {"default": backends},
            route=route,
            fetcher=fetcher,
            worker=worker,
            lease=lease,
            machine=machine or machine_id(),
            policy=policy or QueuePolicy(),
            failover=failover,
            keep=keep,
            keys=keys,
            webhook_url=webhook_url,
            owned=tuple(owned),
        )
        self._view(Engine(parts), None)

    def _view(self, engine: Engine, tenant: str | None) -> None:
        self._engine = engine
        self._tenant = tenant
        self._views = Views(engine.parts, tenant)
        self._submissions = Submissions(engine.parts, tenant, engine.created, engine.expected)

    def __repr__(self) -> str:
        parts = self._engine.parts
        shown = [type(parts.store).__name__, type(parts.storage).__name__, str(list(parts.backends))]
        if self._tenant is not None:
            shown.append(f"tenant={self._tenant!r}")
        return f"RenderService({', '.join(shown)})"

    # --- life

    def start(self) -> None:
        """Start the worker of this process, unless ``worker=False`` was given. A second call does nothing."""
        self._engine.start()

    def close(self) -> None:
        """Stop the worker; local renders end, and their jobs go back to the queue. A second call does nothing."""
        self._engine.close()

    def __enter__(self) -> RenderService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tick(self) -> int:
        """Take one round of dispatch and reconcile, for schedulers; return how many jobs were moved."""
        return self._engine.worker().tick()

    def for_tenant(self, tenant: str) -> RenderService:
        """Return a view of this service for one tenant: only its jobs, its objects and its idempotency keys.

        Raises:
            InvalidRequestError: The name is not 1 to 64 letters, digits, dots, dashes or underscores.
        """
        return _TenantView(self._engine, layout.check_tenant(tenant))

    # --- submitting

    def submit(
        self,
        audio: AudioSource,
        *,
        scene: str | Path = "bars",
        params: Mapping[str, JsonValue] | None = None,
        output: Output | str = "flat-1080p-landscape",
        start: float = 0,
        duration: float | None = None,
        audio_track: int | None = None,
        title: str | None = None,
        artist: str | None = None,
        cover: AttachmentSource | None = None,
        images: Iterable[AttachmentSource] = (),
        poster: bool = False,
        backend: str | None = None,
        require_gpu: bool = False,
        parallel: int = 1,
        limits: Limits | None = None,
        priority: int = 0,
        metadata: Mapping[str, JsonValue] | None = None,
        idempotency_key: str | None = None,
        batch: str | None = None,
        connection: object = None,
    ) -> JobHandle:
        """Record a job and return its handle, without waiting for anything to render.

        Args:
            audio: A file's path; bytes; an open binary file, read to its end; an `AudioUrl`; or a `StorageKey`. With a
                worker in this process, a file is checked now and read later. Bytes and streams are stored now.
            scene: The name of a registered scene, as a string; or a Shadertoy file of at most 1 MiB, as a `Path`. A
                string is never a path, so that what a web form sends is never read from this disk. A file is read when
                the audio is.
            params: The scene's parameters, at most 2 KiB of JSON.
            output: An `Output`, or a preset's name.
            start: Seconds into the audio.
            duration: Seconds of video; None is to the end.
            audio_track: Which of the file's audio streams is heard, from 0. None is the one that players choose.
            title: The song's, at most 200 characters, for the video's tags and the name of its file. None: the video's
                tags are the song's own, and the file has the name of the song's.
            artist: As ``title``.
            cover: The song's cover, for the tags and for scenes that draw it: the path of a JPEG, PNG, WebP, GIF or BMP
                of at most 16 MiB, or a `StorageKey`. None is the one in the song's tags. A file is read when the audio
                is.
            images: At most 3 pictures for the scene, as ``cover``; a Shadertoy file reads them from ``iChannel1`` to
                ``iChannel3``.
            poster: Deliver a JPEG of the video's brightest moment beside it.
            backend: Where to render. None: chosen by `route`, else the first backend.
            require_gpu: Fail rather than draw on a CPU.
            parallel: How many draw the video at once, 1 to 64: the run and its helpers, on the same backend. The video
                has the same bytes. Where the scene or the backend cannot share a video, one draws, and the warning
                ``parallel.ignored`` says so. An idempotency key gives the same job back whatever ``parallel`` says.
            limits: Deadlines, attempts, and the longest audio.
            priority: Higher goes first.
            metadata: Data of the application, at most 4 KiB of JSON.
            idempotency_key: The same key gives the same job back, for as long as the job lives.
            batch: The id of a batch to which the job belongs, as `submit_many` says.
            connection: A SQLAlchemy ``Connection`` or ``Session`` of the application, to the database of
                `SqlJobStore`: the job is recorded in its transaction, and is there when the application commits, or
                never was. No poll and no worker sees it before. What was stored for it is deleted after eight days.

        Raises:
            InvalidRequestError: The request can never be served; nothing was recorded.
            IdempotencyConflictError: The key belongs to a job with another request.
            JobExistsError: The key belongs to a job of a transaction that has not been committed.
            ConfigurationError: The store cannot write through ``connection``.
            StoreUnavailableError: The job store does not answer. With an idempotency key a second call is safe.
            StorageError: A file could not be stored.
        """
        self._engine.check_open()
        row = Submission(
            audio,
            scene=scene,
            params=params,
            output=output,
            start=start,
            duration=duration,
            audio_track=audio_track,
            title=title,
            artist=artist,
            cover=cover,
            images=images,
            poster=poster,
            backend=backend,
            require_gpu=require_gpu,
            parallel=parallel,
            limits=limits,
            priority=priority,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        batch = None if batch is None else check_batch(batch)
        return JobHandle(self, self._submissions.submit(row, batch=batch, connection=connection).id)

    def check(self, row: Submission) -> None:
        """Refuse a request that can never be served, as `submit` would; nothing is recorded, stored or read to its end.

        Raises:
            InvalidRequestError: What is wrong with it.
        """
        self._engine.check_open()
        self._submissions.check(row)

    def submit_many(
        self,
        rows: Iterable[Submission],
        *,
        batch: str | None = None,
        number_keys: bool = False,
        connection: object = None,
    ) -> SubmittedBatch[JobHandle, BatchHandle]:
        """Record many jobs in one transaction, without waiting for anything to render.

        Each row has its own result: its job, or the error that `submit` would have raised for it. A row's error does
        not stop the others. Files are stored before the transaction, one row at a time; a file that several rows name
        is stored once. What is stored is kept for eight days, as uploads are: longer than any job runs.

        Args:
            rows: At most 10,000. They are claimed and listed in this order, if nothing else orders them.
            batch: The batch's id: 1 to 64 letters, digits, dashes and underscores. None makes a new one. Several calls
                may fill a batch. A row whose idempotency key has a job already leaves that job in its own batch.
            number_keys: Give rows without an idempotency key one that is made of the batch and the row's number, so
                that a repeated call with the same rows gives the same jobs. It needs ``batch``.
            connection: As `submit` says.

        Raises:
            InvalidRequestError: There are too many rows, or the batch's id is not one.
            StorageError: A file could not be stored; nothing was recorded.
            StoreUnavailableError: The job store does not answer. All rows are recorded, or none is. (A store without
                transactions, such as `R2JobStore`, records rows one by one: this is the error of each row that it did
                not take.)
            ConfigurationError: The store cannot write through ``connection``.
        """
        self._engine.check_open()
        if batch is None and number_keys:
            raise InvalidRequestError("number_keys needs the batch's id: pass batch=...", code="batch.invalid")
        handle = self.batch(uuid.uuid4().hex if batch is None else batch)
        found = self._submissions.submit_many(rows, batch=handle.id, number_keys=number_keys, connection=connection)
        jobs = (row if isinstance(row, RenderDispatchError) else JobHandle(self, row.id) for row in found)
        return SubmittedBatch(handle, tuple(jobs))

    def create_upload(self, *, size: int, content_type: str) -> UploadGrant:
        """Let a client send audio or a picture straight to storage; its bytes do not pass through the application.

        The client sends one PUT to ``put.url``, with exactly ``put.headers`` (browsers set the length by themselves),
        within a day; then the application submits ``StorageKey(grant.key)``, on the same day or the next, in UTC. The
        bytes are used where they stand. They are deleted after eight days, whether they were used or not.

        Args:
            size: Bytes, 1 to 5 GiB; signed, so that no other size is taken.
            content_type: ``audio/...``, ``video/...``, ``application/octet-stream``, and for covers ``image/jpeg``,
                ``image/png``, ``image/webp``, ``image/gif`` and ``image/bmp``; signed too.

        Raises:
            InvalidRequestError: ``upload.size`` or ``upload.type``.
        """
        return self._submissions.grant_upload(size=size, content_type=content_type)

    # --- reading

    def handle(self, job_id: str) -> JobHandle:
        """Return a handle on a job. The first use of the handle finds out whether the job exists."""
        return JobHandle(self, job_id)

    def batch(self, batch_id: str) -> BatchHandle:
        """Return a handle on the jobs of a batch, which may have none.

        Raises:
            InvalidRequestError: ``batch.invalid``: no batch can have this id.
        """
        return BatchHandle(check_batch(batch_id), self._views, self._engine.cancel)

    def get(self, job_id: str) -> Job:
        """Return the job's record, as a value.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        return self._views.get(job_id)

    def poll(self, job_id: str) -> PollResponse:
        """Return what a poll endpoint answers: ``poll(...).to_json()`` is the body.

        If no worker runs in this process, a job that is due is reconciled first: its backend or its bucket is asked,
        ever less often while nothing changes. So the polls of a client alone bring its job to an end.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        return self._views.poll(self._reconciled(job_id))

    def _reconciled(self, job_id: str) -> Job:
        return self._engine.reconciled(self.get(job_id))

    def jobs(
        self,
        *,
        status: JobStatus | Iterable[JobStatus] | None = None,
        ended_by: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Return a page of jobs, newest first; ``cursor`` of one page asks for the next.

        Args:
            status: Only jobs with this status, or with one of these.
            ended_by: Only jobs that had ended by then and are kept: the oldest first.
            limit: How many at most, 1 to 1000.
            cursor: Of the page before.

        Raises:
            InvalidRequestError: There is no such status or cursor, or ``limit`` is not 1 to 1000.
        """
        return self._views.page(status, ended_by=ended_by, limit=limit, cursor=cursor)

    def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs have each status."""
        return self._views.counts()

    def download_url(self, job_id: str) -> str:
        """Return a URL of the finished video, good for 7 days.

        Raises:
            JobFailedError: The job failed.
            JobCancelledError: The job was cancelled.
            JobExpiredError: The video is kept no longer.
            JobNotCompleteError: The job still runs; the class of all of these.
        """
        return self._views.download_url(self.get(job_id))

    def poster_url(self, job_id: str) -> str:
        """Return a URL of the poster, good for 7 days.

        Raises:
            JobNotCompleteError: As `download_url`.
            ObjectNotFoundError: ``poster.missing``: it was not asked for, or the scene delivered none.
        """
        return self._views.poster_url(self.get(job_id))

    def file_name(self, job_id: str) -> str:
        """Return the song's name, as a safe name of a file: ``Artist - Title.mp4``, else that of the audio's file.

        `save` uses it, and so do the signed URLs of `R2Storage` and of `renderdispatch.web.objects`.
        """
        return self._views.file_name(self.get(job_id))

    def save(self, job_id: str, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the finished video to a file, which appears whole or not at all; return its path.

        Args:
            job_id: The job's.
            path: The file; None: in the working directory, under the song's name.
            overwrite: Whether a file that exists is replaced.

        Raises:
            JobNotCompleteError: As `download_url`.
            InvalidRequestError: The name says that it is not an MP4 video, as ``.webm`` does.
            ObjectExistsError: The file exists, and ``overwrite`` was not asked.
            StorageFullError: No space is left.
            StorageDeniedError: The file may not be written.
        """
        return self._views.save(self.get(job_id), path, overwrite=overwrite)

    def save_poster(self, job_id: str, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the poster to a file, as `save` does.

        Raises:
            JobNotCompleteError: As `download_url`.
            ObjectNotFoundError: As `poster_url`.
            ObjectExistsError: The file exists, and ``overwrite`` was not asked.
        """
        return self._views.save_poster(self.get(job_id), path, overwrite=overwrite)

    def open_video(self, job_id: str) -> AbstractContextManager[BinaryIO]:
        """Open the finished video for reading.

        Raises:
            JobNotCompleteError: As `download_url`.
        """
        return self._views.open_video(self.get(job_id))

    def open_object(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open one of this tenant's objects for reading.

        Raises:
            ObjectNotFoundError: There is no such object, or it belongs to another tenant.
        """
        return self._views.open_object(key)

    # --- webhooks

    def handle_webhook(self, headers: Headers, body: bytes) -> WebhookResponse:
        """Take a webhook of the GPU side and return the response to send; `web.webhook` mounts it in frameworks.

        Args:
            headers: Of the request: a mapping or pairs, in any case.
            body: The raw bytes. A body longer than `inbox.MAX_BODY_BYTES` may be cut one byte after that.

        Raises:
            ConfigurationError: The service has no secret.
        """
        return self._engine.receiver().receive(headers, body)

    def webhook_counts(self) -> dict[str, int]:
        """Return how many webhooks this process took, by what became of them: ``applied``, ``ignored``, or a refusal.

        Raises:
            ConfigurationError: The service has no secret.
        """
        return self._engine.receiver().counts

    # --- changing

    def cancel(self, job_id: str) -> Job:
        """Ask for the job to end and its computing to stop; return the job as it is now, often still ``cancelling``.

        A second call, or one after the end, does nothing.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        return self._engine.cancel(self.get(job_id))

    def retry(self, job_id: str) -> JobHandle:
        """Submit a failed or cancelled job again, as a new job whose ``retry_of`` is this one.

        Raises:
            JobNotFoundError: This tenant has no such job.
            InvalidRequestError: The job did not fail, or one of its files is gone.
            JobExpiredError: Its files are kept no longer.
            QueueLimitError: The tenant may submit no more jobs now.
        """
        return JobHandle(self, self._submissions.retry(self.get(job_id)).id)

    def delete(self, job_id: str, *, incarnation: str | None = None) -> None:
        """Forget an ended job and remove its objects, at once: a download that is in progress may end early.

        If storage does not respond, the job has expired all the same, and a worker removes the rest later.

        Args:
            incarnation: `Job.incarnation` as it was read: a later job of the same id, which a repeated idempotency key
                made, is then left alone.

        Raises:
            JobNotFoundError: This tenant has no such job (any more).
            InvalidRequestError: The job has not ended (cancel it first), or a render of it may still run.
        """
        job = self.get(job_id)
        if incarnation is not None and job.incarnation != incarnation:
            raise JobNotFoundError(f"job {job_id} was deleted, and a later job has its id")
        self._engine.delete(job)


class _TenantView(RenderService):
    """A service as one tenant sees it. It shares the engine of the service that it is a view of."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self._view(engine, tenant)


class JobHandle:
    """One job of a service."""

    def __init__(self, service: RenderService, job_id: str) -> None:
        self._service = service
        self.id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    @property
    def job(self) -> Job:
        """The record as it is now. Raises `JobNotFoundError`."""
        return self._service.get(self.id)

    def poll(self) -> PollResponse:
        """Return what a poll endpoint answers."""
        return self._service.poll(self.id)

    def wait(self, timeout: float | timedelta | None = None) -> Job:
        """Wait for the job to end, however it ends, and return it.

        Args:
            timeout: Seconds; None waits until the job ends, which its deadline bounds.

        Raises:
            WaitTimeoutError: Time is up; the job goes on.
        """
        for job in self._revisions(timeout):
            last = job
        return last

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[Job]:
        """Yield the job now and after each visible change, until it has ended.

        Raises:
            WaitTimeoutError: Time is up; the job goes on.
        """
        shown = None
        for job in self._revisions(timeout):
            if (visible := what_shows(job)) != shown:
                shown = visible
                yield job

    def cancel(self) -> Job:
        """Ask for the job to end, as `RenderService.cancel`."""
        return self._service.cancel(self.id)

    def retry(self) -> JobHandle:
        """Submit the job again as a new one, as `RenderService.retry`."""
        return self._service.retry(self.id)

    def download_url(self) -> str:
        """Return a URL of the finished video, as `RenderService.download_url`."""
        return self._service.download_url(self.id)

    def poster_url(self) -> str:
        """Return a URL of the poster, as `RenderService.poster_url`."""
        return self._service.poster_url(self.id)

    def file_name(self) -> str:
        """Return the song's name, as `RenderService.file_name`."""
        return self._service.file_name(self.id)

    def save(self, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the finished video to a file, as `RenderService.save`."""
        return self._service.save(self.id, path, overwrite=overwrite)

    def save_poster(self, path: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write the poster to a file, as `RenderService.save_poster`."""
        return self._service.save_poster(self.id, path, overwrite=overwrite)

    def _revisions(self, timeout: float | timedelta | None) -> Iterator[Job]:
        """Yield the job repeatedly until it has ended, ever less often while nothing changes."""
        pause = Pause(timeout)
        while True:
            yield (job := self._reconciled())
            if job.ended:
                return
            time.sleep(pause.after(job))

    def _reconciled(self) -> Job:
        return self._service._reconciled(self.id)  # noqa: SLF001 - the handle is a view of its service

    def _repr_html_(self) -> str:
        return show_html(self.poll(), lambda: self._service.open_video(self.id))

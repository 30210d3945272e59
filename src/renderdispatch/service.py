"""What do applications hold?

`RenderService`, the one facade: submit, poll, watch, cancel, and a worker in the background that sees to it that
every job ends exactly once. All calls block for milliseconds (but for uploads), and all are safe from any thread.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final

from attrs import evolve
from pydantic import JsonValue

from renderdispatch.engine import intake, layout
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import CancelRequested
from renderdispatch.engine.inbox import WebhookResponse
from renderdispatch.engine.intake import AudioSource
from renderdispatch.engine.runtime import Closable, Engine, Parts
from renderdispatch.engine.watching import Pause, show_html, what_shows
from renderdispatch.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobCancelledError,
    JobExistsError,
    JobFailedError,
    JobNotCompleteError,
    JobNotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
    UnknownNameError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    Audio,
    JobStatus,
    Limits,
    Output,
    PollError,
    PollResponse,
    PollResult,
    RenderRequest,
    Stage,
    StoredAudio,
    UploadGrant,
    read_output,
)
from renderdispatch.plumbing.files import write_file
from renderdispatch.protocols import (
    AudioFetcher,
    JobQuery,
    JobStore,
    Page,
    RenderBackend,
    StorageAdapter,
    SupportsCheck,
    SupportsCounts,
    SupportsWebhook,
)
from renderdispatch.webhooks import AttemptKeys, Headers

DOWNLOAD_URL_LIFE: Final = timedelta(days=7)
"""How long a download URL is good for; a new one is signed at each call."""

UPLOAD_GRANT_LIFE: Final = timedelta(days=1)
"""How long a client has for an upload of its own."""

_CHUNK_BYTES: Final = 1 << 20

_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may be a job's id at all: databases stumble over other text that a stranger sends."""

Route = Callable[[RenderRequest], str]
"""Chooses a backend by name for a request that names none."""


class RenderService:
    """Renders video on a GPU, and is sure to deliver the result.

    Args:
        store: Where jobs live.
        storage: Where audio and video live.
        backends: Where renders run, by name; or a single one. The first is the default.
        route: Chooses a backend for requests that name none.
        secrets: Master secrets for webhooks, ``whsec_...``: the first signs new attempts, all are understood, so that
            they can be rotated while renders run.
        webhook_url: Where the GPU side reaches `handle_webhook`. Without one no webhook is asked for, and the
            reconciler finds out by itself.
        fetcher: What reads audio from URLs; without one, `AudioUrl` is refused.
        worker: Whether this process dispatches and reconciles in the background. No thread starts before `start`, a
            ``with`` block or the first `submit`. Without it, some other process has to run `tick` or a worker.
        lease: How long a job stays with a worker that gives no sign of life.
        machine: This machine's id; None finds one.
        owned: What is closed with the service, in this order.

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
        owned: Iterable[Closable] = (),
    ) -> None:
        named = dict(backends) if isinstance(backends, Mapping) else {"default": backends}
        if not named:
            raise ConfigurationError("a service needs at least one backend")
        if lease < timedelta(seconds=1):
            raise ConfigurationError("a lease is at least one second")
        for name, backend in named.items():
            if storage.locality < backend.locality:
                message = (
                    f"backend {name!r} ({type(backend).__name__}) renders out of reach of {type(storage).__name__}'s "
                    "URLs: FsspecStorage reaches this machine's processes, R2Storage the world "
                    "(RENDERDISPATCH_STORAGE=r2://bucket), and a folder with signed URLs (RENDERDISPATCH_OBJECTS_URL) "
                    "as far as their host"
                )
                raise ConfigurationError(message)
        if webhook_url is not None and not webhook_url.startswith(("https://", "http://")):
            raise ConfigurationError("webhook_url is an http or https URL")
        if webhook_url is not None and not secrets:
            raise ConfigurationError("webhook_url needs secrets: without one anybody could report anything")
        if webhook_url is None and any(b.reports_by_webhook for b in named.values() if isinstance(b, SupportsWebhook)):
            raise ConfigurationError("a backend that reports by webhook needs webhook_url and secrets")
        self._tenant: str | None = None
        self._engine = Engine(
            Parts(
                store=store,
                storage=storage,
                backends=named,
                checks={name: b.check for name, b in named.items() if isinstance(b, SupportsCheck)},
                route=route,
                fetcher=fetcher,
                worker=worker,
                lease=lease,
                machine=machine or intake.machine_id(),
                keys=AttemptKeys(secrets) if secrets else None,
                webhook_url=webhook_url,
                owned=tuple(owned),
            )
        )

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
        """Return this service as one tenant sees it: its jobs, its objects, its idempotency keys, and no other.

        Raises:
            InvalidRequestError: The name is no tenant's name.
        """
        view = object.__new__(RenderService)
        view._tenant = layout.check_tenant(tenant)
        view._engine = self._engine
        return view

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
        backend: str | None = None,
        require_gpu: bool = False,
        limits: Limits | None = None,
        priority: int = 0,
        metadata: Mapping[str, JsonValue] | None = None,
        idempotency_key: str | None = None,
    ) -> JobHandle:
        """Record a job and return its handle, without waiting for anything to render.

        Args:
            audio: A file's path; bytes; an open binary file, read to its end; or a `StorageKey`. With a worker on
                this machine a path is only looked at, and read later; everything else is streamed into storage now.
            scene: The name of a registered scene.
            params: The scene's parameters, at most 2 KiB of JSON.
            output: An `Output`, or a preset's name.
            start: Seconds into the audio.
            duration: Seconds of video; None is to the end.
            backend: Where to render; None lets the route, or else the first backend, have it.
            require_gpu: Fail rather than draw on a CPU.
            limits: Deadlines and attempts.
            priority: Higher goes first.
            metadata: The application's own, at most 4 KiB of JSON.
            idempotency_key: The same key gives the same job back, for as long as the job lives.

        Raises:
            InvalidRequestError: The request can never be served; nothing was recorded.
            IdempotencyConflictError: The key belongs to a job with another request.
            StoreUnavailableError: The job store does not answer. With an idempotency key a second call is safe.
            StorageError: The audio could not be stored.
        """
        self._engine.check_open()
        parts = self._engine.parts
        priority = intake.check_priority(priority)
        known = {
            "scene": intake.scene_name(scene),
            "params": dict(params or {}),
            "output": read_output(output),
            "start": start,
            "duration": duration,
            "require_gpu": require_gpu,
            "limits": limits or Limits(),
            "metadata": dict(metadata or {}),
        }
        request = intake.read_request({**known, "audio": StoredAudio(key="", size=0), "backend": backend or ""})
        request = request.model_copy(update={"backend": self._backend_for(request)})
        if (check := parts.checks.get(request.backend)) is not None:
            check(request)
        job_id = uuid.uuid4().hex if idempotency_key is None else intake.keyed_id(self._tenant, idempotency_key)
        incoming = intake.look_at(
            audio,
            storage=parts.storage,
            tenant=self._tenant,
            machine=parts.machine,
            leave_files=parts.worker,
            now=parts.store.now,
            fetcher=parts.fetcher,
        )
        if idempotency_key is not None and (existing := self._existing(job_id)) is not None:
            return self._same(existing, request, incoming.describe(), idempotency_key, routed=not backend)
        incarnation = layout.new_incarnation()  # before the upload: the audio's key holds it, and so will the record
        stored = incoming.store(layout.job_prefix(self._tenant, job_id, incarnation))
        request = request.model_copy(update={"audio": stored})
        try:
            job = self._create(request, job_id, incarnation, tenant=self._tenant, priority=priority)
        except JobExistsError:
            incoming.discard()
            if idempotency_key is None:
                raise
            return self._same(parts.store.get(job_id), request, stored, idempotency_key, routed=not backend)
        except BaseException:
            if self._surely_absent(job_id, incarnation):  # a create whose answer was lost may stand: it needs its audio
                incoming.discard()
            raise
        return JobHandle(self, job.id)

    def create_upload(self, *, size: int, content_type: str) -> UploadGrant:
        """Let a client send audio straight to storage, without the bytes passing through the application.

        The client sends one PUT to ``put.url``, with exactly ``put.headers`` (browsers set the length by themselves),
        within a day; then the application submits ``StorageKey(grant.key)``, on the same day or the next, in UTC. The
        bytes are used where they stand. They are deleted after eight days, whether they were used or not.

        Args:
            size: Bytes, 1 to 5 GiB; signed, so that no other size is taken.
            content_type: ``audio/...``, ``video/...`` or ``application/octet-stream``; signed likewise.

        Raises:
            InvalidRequestError: ``upload.size`` or ``upload.type``.
        """
        size, content_type = intake.check_upload(size, content_type)
        parts = self._engine.parts
        now = parts.store.now()
        key = layout.upload_key(self._tenant, now)
        put = parts.storage.sign_put(key, expires_in=UPLOAD_GRANT_LIFE, content_type=content_type, size=size)
        return UploadGrant(key=key, put=put, expires_at=now + UPLOAD_GRANT_LIFE)

    def _create(
        self,
        request: RenderRequest,
        job_id: str,
        incarnation: str,
        *,
        tenant: str | None,
        priority: int,
        retry_of: str | None = None,
    ) -> Job:
        store = self._engine.parts.store
        now = store.now()
        job = Job(
            id=job_id,
            incarnation=incarnation,
            tenant=tenant,
            request=request,
            fingerprint=intake.fingerprint(request),
            priority=priority,
            retry_of=retry_of,
            created_at=now,
            updated_at=now,
            finish_by=now + request.limits.total_timeout,
            ready_at=now,
        )
        job = store.create(job)
        self._engine.start()
        self._engine.created()
        return job

    def _backend_for(self, request: RenderRequest) -> str:
        parts = self._engine.parts
        name = request.backend
        if not name:
            name = parts.route(request) if parts.route is not None else next(iter(parts.backends))
        if name not in parts.backends:
            raise UnknownNameError.of("backend", name, parts.backends, code="backend.unknown")
        return name

    def _existing(self, job_id: str) -> Job | None:
        try:
            return self._engine.parts.store.get(job_id)
        except JobNotFoundError:
            return None

    def _surely_absent(self, job_id: str, incarnation: str) -> bool:
        try:
            existing = self._existing(job_id)
        except StoreUnavailableError:
            return False
        return existing is None or existing.incarnation != incarnation

    def _same(self, job: Job, request: RenderRequest, audio: Audio, key: str, *, routed: bool) -> JobHandle:
        chosen = job.request.backend if routed else request.backend  # a route may choose another one each time
        if job.fingerprint != intake.fingerprint(request.model_copy(update={"audio": audio, "backend": chosen})):
            message = f"idempotency key {key[:40]!r} belongs to job {job.id}, whose request is another one"
            raise IdempotencyConflictError(message)
        return JobHandle(self, job.id)

    # --- reading

    def handle(self, job_id: str) -> JobHandle:
        """Return a handle on a job. Whether the job exists is found out when the handle is used."""
        return JobHandle(self, job_id)

    def get(self, job_id: str) -> Job:
        """Return the job's record, as a value.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        job = self._engine.parts.store.get(job_id) if _JOB_ID.fullmatch(job_id) else None
        if job is None or (self._tenant is not None and job.tenant != self._tenant):
            raise JobNotFoundError(f"no job {job_id[:80]!r}")
        return job

    def poll(self, job_id: str) -> PollResponse:
        """Return what a poll endpoint answers: ``poll(...).to_json()`` is the body.

        Where no worker runs in this process, a job that is due is reconciled first, so that the polls of its client
        alone bring it to its end: its backend or the bucket is asked, ever less often while nothing changes.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        return self._poll_response(self._reconciled(job_id))

    def _reconciled(self, job_id: str) -> Job:
        return self._engine.reconciled(self.get(job_id))

    def jobs(
        self, *, status: JobStatus | Iterable[JobStatus] | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        """Return a page of jobs, newest first; ``cursor`` of one page asks for the next."""
        statuses = None
        if status is not None:
            statuses = frozenset([JobStatus(status)] if isinstance(status, str) else map(JobStatus, status))
        query = JobQuery(tenant=self._tenant, statuses=statuses, limit=limit, cursor=cursor)
        return self._engine.parts.store.query(query)

    def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs have each status."""
        store = self._engine.parts.store
        if isinstance(store, SupportsCounts):
            return store.counts(tenant=self._tenant)
        counted = dict.fromkeys(JobStatus, 0)
        for job in self._all(JobQuery(tenant=self._tenant, limit=1000)):
            counted[job.status] += 1
        return counted

    def download_url(self, job_id: str) -> str:
        """Return a URL of the finished video, good for 7 days.

        Raises:
            JobFailedError: The job failed.
            JobCancelledError: The job was cancelled.
            JobNotCompleteError: The job still runs.
        """
        return self._sign(_video_key(self.get(job_id)))

    def _sign(self, key: str) -> str:
        return self._engine.parts.storage.sign_get(key, expires_in=DOWNLOAD_URL_LIFE)

    def save(self, job_id: str, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the finished video to a file, which appears whole or not at all; return its path.

        Raises:
            JobNotCompleteError: As `download_url`.
            ObjectExistsError: The file exists, and ``overwrite`` was not asked.
            StorageFullError: No space is left.
            StorageDeniedError: The file may not be written.
        """
        target = Path(path)
        with self.open_video(job_id) as source:
            chunks = iter(lambda: source.read(_CHUNK_BYTES), b"")
            try:
                write_file(target, chunks, key=str(target), only_if_absent=not overwrite)
            except ObjectExistsError:
                raise ObjectExistsError(f"{target} exists, and overwrite was not asked") from None
        return target

    def open_video(self, job_id: str) -> AbstractContextManager[BinaryIO]:
        """Open the finished video for reading.

        Raises:
            JobNotCompleteError: As `download_url`.
        """
        return self._engine.parts.storage.open(_video_key(self.get(job_id)))

    def open_object(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open one of this tenant's objects for reading.

        Raises:
            ObjectNotFoundError: Nothing stands under this key, or it is another tenant's.
        """
        if not layout.may_read(self._tenant, key):
            raise ObjectNotFoundError(f"nothing is stored under {key[:200]!r}")
        return self._engine.parts.storage.open(key)

    def _all(self, query: JobQuery) -> Iterator[Job]:
        while True:
            page = self._engine.parts.store.query(query)
            yield from page.items
            if page.cursor is None:
                return
            query = evolve(query, cursor=page.cursor)

    def _poll_response(self, job: Job) -> PollResponse:
        artifact = job.artifact if job.status is JobStatus.COMPLETE else None
        result = None
        if artifact is not None:
            shown = {name: getattr(artifact, name) for name in PollResult.model_fields if name != "video_key"}
            result = PollResult(video_key=artifact.key, **shown)
        error = None
        if job.status is JobStatus.FAILED and job.error is not None:
            error = PollError(code=job.error.code, message=job.error.message)
        return PollResponse(
            job_id=job.id,
            status=job.status,
            stage=job.stage,
            progress=job.progress,
            attempt=len(job.attempts),
            queue_position=self._queue_position(job),
            result=result,
            error=error,
            download_url=self._sign(artifact.key) if artifact is not None else None,
            created_at=job.created_at,
            updated_at=job.updated_at,
        )

    def _queue_position(self, job: Job) -> int | None:
        """Return 1 for the job that is next."""
        if job.stage is not Stage.QUEUED or job.ended:
            return None
        store = self._engine.parts.store
        if isinstance(store, SupportsCounts):
            return store.ahead_of(job) + 1
        ready = self._all(JobQuery(order="ready", ready_by=store.now(), machine=job.machine, limit=1000))
        return next((place for place, other in enumerate(ready, 1) if other.id == job.id), None)

    # --- webhooks

    def handle_webhook(self, headers: Headers, body: bytes) -> WebhookResponse:
        """Take a webhook of the GPU side and return the answer to send; `web.webhook` mounts it in frameworks.

        Args:
            headers: Of the request: a mapping or pairs, in any case.
            body: The raw bytes. Of a body longer than `receiver.MAX_BODY_BYTES`, one byte more is enough.

        Raises:
            ConfigurationError: The service has no secret.
        """
        return self._engine.receiver().receive(headers, body)

    def webhook_counts(self) -> dict[str, int]:
        """Return how many webhooks this process took, by their fate: ``applied``, ``ignored``, or why refused.

        Raises:
            ConfigurationError: The service has no secret.
        """
        return self._engine.receiver().counts

    # --- changing

    def cancel(self, job_id: str) -> Job:
        """Have the job end, and its computing stop; return the job as it is now, often still ``cancelling``.

        Cancelling twice, or after the end, is no error.

        Raises:
            JobNotFoundError: This tenant has no such job.
        """
        job = commit(self._engine.parts.store, self.get(job_id), CancelRequested()).job
        self._engine.changed(job)
        return job

    def retry(self, job_id: str) -> JobHandle:
        """Submit a failed or cancelled job again, as a new job whose ``retry_of`` is this one.

        Raises:
            JobNotFoundError: This tenant has no such job.
            InvalidRequestError: The job did not fail, or its audio is gone.
        """
        job = self.get(job_id)
        if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
            message = f"job {job.id} is {job.status}; only failed and cancelled jobs can be tried again"
            raise InvalidRequestError(message, code="job.not-retryable")
        new_id, incarnation = uuid.uuid4().hex, layout.new_incarnation()
        request = job.request
        passing = (layout.prefix_of(job), layout.UPLOADS)  # what may go before the new job ends
        if isinstance(request.audio, StoredAudio) and request.audio.key.startswith(passing):
            copy = self._copy_audio(request.audio, layout.job_prefix(job.tenant, new_id, incarnation))
            request = request.model_copy(update={"audio": copy})
        elif isinstance(request.audio, StoredAudio) and not request.audio.key:
            raise InvalidRequestError(
                f"the audio of job {job.id} was never stored; submit it again", code="audio.missing"
            )
        again = self._create(request, new_id, incarnation, tenant=job.tenant, priority=job.priority, retry_of=job.id)
        return JobHandle(self, again.id)

    def _copy_audio(self, audio: StoredAudio, prefix: str) -> StoredAudio:
        storage = self._engine.parts.storage
        try:
            with storage.open(audio.key) as source:
                return intake.Streamed(storage, source, audio.key).store(prefix)
        except ObjectNotFoundError:
            raise InvalidRequestError("the audio is not in storage any more", code="audio.missing") from None

    def delete(self, job_id: str) -> None:
        """Forget an ended job and remove its objects.

        Raises:
            JobNotFoundError: This tenant has no such job.
            InvalidRequestError: The job has not ended (cancel it first), or something of it may still compute.
        """
        job = self.get(job_id)
        if not job.ended:
            raise InvalidRequestError(f"job {job.id} is {job.status}; cancel it first", code="job.running")
        parts = self._engine.parts
        if job.owes_clean_up:
            self._engine.worker().reconciler.reconcile(job)
            job = self.get(job_id)
        if any(not a.stopped and not a.local and a.clean_up == "owed" for a in job.attempts):
            message = f"an attempt of job {job.id} may still compute; try again when it was stopped"
            raise InvalidRequestError(message, code="job.clean-up-owed")
        parts.storage.delete_prefix(layout.prefix_of(job))
        parts.store.delete(job.id)


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
            timeout: Seconds; None waits for as long as it takes, which the job's deadline bounds.

        Raises:
            WaitTimeoutError: Time is up; the job goes on.
        """
        for job in self._revisions(timeout):
            if job.ended:
                return job
        raise AssertionError

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[Job]:
        """Yield the job now, and again each time that something to see has changed, until it has ended.

        Raises:
            WaitTimeoutError: Time is up; the job goes on.
        """
        shown = None
        for job in self._revisions(timeout):
            if (visible := what_shows(job)) != shown:
                shown = visible
                yield job

    def cancel(self) -> Job:
        """As `RenderService.cancel`."""
        return self._service.cancel(self.id)

    def retry(self) -> JobHandle:
        """As `RenderService.retry`."""
        return self._service.retry(self.id)

    def download_url(self) -> str:
        """As `RenderService.download_url`."""
        return self._service.download_url(self.id)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """As `RenderService.save`."""
        return self._service.save(self.id, path, overwrite=overwrite)

    def _revisions(self, timeout: float | timedelta | None) -> Iterator[Job]:
        """Yield the job again and again, ever less often while nothing changes, up to its end."""
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


def _video_key(job: Job) -> str:
    match job.status:
        case JobStatus.COMPLETE if job.artifact is not None:
            return job.artifact.key
        case JobStatus.FAILED if job.error is not None:
            raise JobFailedError(f"job {job.id} failed: {job.error.message}", code=job.error.code)
        case JobStatus.CANCELLED:
            raise JobCancelledError(f"job {job.id} was cancelled")
    raise JobNotCompleteError(f"job {job.id} is {job.status} ({job.stage}, {job.progress:g} %)")

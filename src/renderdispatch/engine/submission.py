"""How does a request become a job?

Check the request, then the audio; find out whether an idempotency key has its job already; store the audio; record the
job. Nothing waits for anything to render.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from attrs import frozen

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.audio import AudioSource, Incoming, Streamed, examine
from renderdispatch.engine.cover import CoverSource, copy_cover, examine_cover
from renderdispatch.engine.intake import check_priority, check_upload, fingerprint, keyed_id, read_request, same_request
from renderdispatch.engine.parts import Parts
from renderdispatch.jobs import Job
from renderdispatch.messages import Audio, JobStatus, LocalAudio, RenderRequest, StoredAudio, UploadGrant
from renderdispatch.protocols import SupportsCheck

UPLOAD_GRANT_LIFE: Final = timedelta(days=1)
"""How long a client has for an upload of its own."""

_Files = Mapping[str, Audio | None]
"""Fields of a request that hold files."""

_NO_AUDIO: Final = StoredAudio.model_construct(key="", size=0)


@frozen
class _Inputs:
    """The files of a request: its audio, and its cover if it has one."""

    audio: Incoming[Audio]
    cover: Incoming[StoredAudio | LocalAudio] | None

    def describe(self) -> dict[str, Audio | None]:
        """Return what identifies them, as fields of the request."""
        cover = None if self.cover is None else self.cover.describe()
        return {"audio": self.audio.describe(), "cover": cover}

    def store(self, prefix: str) -> dict[str, Audio | None]:
        """See that a worker can read both; return the fields of the request. If one fails, nothing stays stored."""
        cover = None if self.cover is None else self.cover.store(prefix)
        try:
            return {"audio": self.audio.store(prefix), "cover": cover}
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what `store` stored, if anything."""
        for incoming in (self.audio, self.cover):
            if incoming is not None:
                incoming.discard()


@frozen
class Submissions:
    """Records jobs, for one tenant or for the service without tenants.

    Args:
        created: Called after a job was recorded.
    """

    _parts: Parts
    _tenant: str | None
    _created: Callable[[], None]

    def submit(
        self,
        audio: AudioSource,
        cover: CoverSource | None,
        fields: Mapping[str, Any],
        *,
        backend: str | None,
        priority: int,
        idempotency_key: str | None,
    ) -> Job:
        """Record a job and return it, or the job that this idempotency key has already.

        Args:
            audio: What the application handed in.
            cover: As ``audio``.
            fields: The rest of the request.
            backend: Where to render; None is chosen by the route, else the first backend.
            priority: Higher goes first.
            idempotency_key: The same key gives the same job back.

        Raises:
            InvalidRequestError: The request can never be served; nothing was recorded.
            IdempotencyConflictError: The key belongs to a job with another request.
        """
        priority = check_priority(priority)
        named = "" if backend is None else backend
        request = self._routed(read_request({**fields, "audio": _NO_AUDIO, "backend": named}))
        job_id = uuid.uuid4().hex if idempotency_key is None else keyed_id(self._tenant, idempotency_key)
        keyed = idempotency_key is not None
        incoming = _Inputs(
            examine(audio, self._parts, self._tenant, keyed=keyed),
            examine_cover(cover, self._parts, self._tenant, keyed=keyed),
        )

        def same(files: Callable[[], _Files]) -> Job | None:
            return None if idempotency_key is None else self._same(job_id, request, files, idempotency_key, not backend)

        if (job := same(incoming.describe)) is not None:
            return job
        incarnation = layout.new_incarnation()  # before the upload: the audio's key holds it, and so will the record
        stored = incoming.store(layout.job_prefix(self._tenant, job_id, incarnation))
        recorded = request.model_copy(update=stored)
        try:
            return self._create(recorded, id=job_id, incarnation=incarnation, tenant=self._tenant, priority=priority)
        except errors.JobExistsError:  # another submit with this key was faster
            incoming.discard()
            if (job := same(lambda: stored)) is None:
                raise
            return job
        except BaseException:
            if self._surely_absent(job_id, incarnation):  # a create whose answer was lost may stand: it needs its audio
                incoming.discard()
            raise

    def retry(self, job: Job) -> Job:
        """Submit a failed or cancelled job again; return the new job.

        Raises:
            InvalidRequestError: The job did not fail, its audio or cover is gone,
                or its backend is not one of this service.
        """
        if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
            message = f"job {job.id} is {job.status}; only failed and cancelled jobs can be retried"
            raise errors.InvalidRequestError(message, code="job.not-retryable")
        if job.request.backend not in self._parts.backends:
            raise errors.UnknownNameError.of(
                "backend", job.request.backend, self._parts.backends, code="backend.unknown"
            )
        new_id, incarnation = uuid.uuid4().hex, layout.new_incarnation()
        prefix = layout.job_prefix(job.tenant, new_id, incarnation)
        try:
            request = self._with_copies(job, prefix)
        except BaseException:
            self._parts.storage.delete_prefix(prefix)
            raise
        return self._create(
            request, id=new_id, incarnation=incarnation, tenant=job.tenant, priority=job.priority, retry_of=job.id
        )

    def grant_upload(self, *, size: int, content_type: str) -> UploadGrant:
        """Return a grant for a client's own upload.

        Raises:
            InvalidRequestError: ``upload.size`` or ``upload.type``.
        """
        size, content_type = check_upload(size, content_type)
        now = self._parts.store.now()
        key = layout.upload_key(self._tenant, now)
        put = self._parts.storage.sign_put(key, expires_in=UPLOAD_GRANT_LIFE, content_type=content_type, size=size)
        return UploadGrant(key=key, put=put, expires_at=now + UPLOAD_GRANT_LIFE)

    def _routed(self, request: RenderRequest) -> RenderRequest:
        """Return the request with its backend, which finds nothing wrong with it."""
        parts = self._parts
        name = request.backend or (parts.route(request) if parts.route is not None else next(iter(parts.backends)))
        if name not in parts.backends:
            raise errors.UnknownNameError.of("backend", name, parts.backends, code="backend.unknown")
        request = request.model_copy(update={"backend": name})
        if isinstance(backend := parts.backends[name], SupportsCheck):
            backend.check(request)
        return request

    def _same(
        self, job_id: str, request: RenderRequest, files: Callable[[], _Files], key: str, routed: bool
    ) -> Job | None:
        """Return the job that the idempotency key has; None where the key is new (rule J9).

        Raises:
            IdempotencyConflictError: The job's request is another one.
        """
        try:
            job = self._parts.store.get(job_id)
        except errors.JobNotFoundError:
            return None
        chosen = job.request.backend if routed else request.backend  # a route may choose another one each time
        given = dict(files())
        for name, file in given.items():
            recorded = getattr(job.request, name)
            if isinstance(file, StoredAudio) and isinstance(recorded, StoredAudio) and file.key == recorded.key != "":
                given[name] = recorded  # one object, which may be gone meanwhile
        if not same_request(job, request.model_copy(update={**given, "backend": chosen})):
            message = f"idempotency key {key[:40]!r} belongs to job {job.id}, which has another request"
            raise errors.IdempotencyConflictError(message)
        return job

    def _create(self, request: RenderRequest, **fields: Any) -> Job:
        now = self._parts.store.now()
        job = Job(
            **fields,
            request=request,
            fingerprint=fingerprint(request),
            created_at=now,
            updated_at=now,
            finish_by=now + request.limits.total_timeout,
            ready_at=now,
        )
        job = self._parts.store.create(job)
        self._created()
        return job

    def _surely_absent(self, job_id: str, incarnation: str) -> bool:
        try:
            return self._parts.store.get(job_id).incarnation != incarnation
        except errors.JobNotFoundError:
            return True
        except errors.StoreUnavailableError:
            return False

    def _with_copies(self, job: Job, prefix: str) -> RenderRequest:
        """Return a job's request for a new job, with copies of what may go before the new one ends."""
        audio, cover, copies = job.request.audio, job.request.cover, dict[str, StoredAudio]()
        passing = (layout.prefix_of(job), layout.UPLOADS)
        if isinstance(audio, StoredAudio) and not audio.key:
            message = f"the audio of job {job.id} was never stored; submit it again"
            raise errors.InvalidRequestError(message, code="audio.missing")
        if isinstance(cover, StoredAudio) and cover.key.startswith(passing):
            copies["cover"] = copy_cover(cover, self._parts.storage, prefix)
        if isinstance(audio, StoredAudio) and audio.key.startswith(passing):
            copies["audio"] = self._copied(audio, prefix)
        return job.request.model_copy(update=copies)

    def _copied(self, audio: StoredAudio, prefix: str) -> StoredAudio:
        storage = self._parts.storage
        try:
            with storage.open(audio.key) as source:
                copy = Streamed(storage, source, audio.key).store(prefix)
                return copy.model_copy(update={"name": audio.name})
        except errors.ObjectNotFoundError:
            raise errors.InvalidRequestError("the audio is not in storage any more", code="audio.missing") from None

"""How does a request become a job?

Check the request, then the audio; find out whether an idempotency key has its job already; store the audio; record the
job. Nothing waits for anything to render.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from attrs import frozen

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.attachments import AttachmentSource, File, copy_attachment, examine_attachments
from renderdispatch.engine.audio import AudioSource, Incoming, Streamed, examine
from renderdispatch.engine.intake import check_priority, check_upload, fingerprint, keyed_id, read_request, same_request
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.rerouting import first_backend
from renderdispatch.jobs import Job
from renderdispatch.messages import Audio, JobStatus, RenderRequest, StoredAudio, UploadGrant
from renderdispatch.protocols import RenderBackend, SupportsCheck, SupportsSceneFiles

_log: Final = logging.getLogger("renderdispatch.engine.submission")

UPLOAD_GRANT_LIFE: Final = timedelta(days=1)
"""How long a client has for an upload of its own."""

_AnyFile = TypeVar("_AnyFile", bound=Audio)

_NO_FILE: Final = StoredAudio.model_construct(key="", size=0)


@frozen
class _Files:
    """Where the files of a request are, as its record has them."""

    audio: Audio
    attached: Mapping[str, File]

    def of(self, request: RenderRequest) -> RenderRequest:
        """Return the request with these files."""
        return request.attaching(self.attached).model_copy(update={"audio": self.audio})


@frozen
class _Inputs:
    """The files of a request: its audio, and others by their places."""

    audio: Incoming[Audio]
    attached: Mapping[str, Incoming[File]]

    def describe(self) -> _Files:
        """Return what identifies them."""
        attached = {place: incoming.describe() for place, incoming in self.attached.items()}
        return _Files(self.audio.describe(), attached)

    def store(self, prefix: str) -> _Files:
        """See that a worker can read all; return where they are. If one fails, nothing stays stored."""
        try:
            attached = {place: incoming.store(prefix) for place, incoming in self.attached.items()}
            return _Files(self.audio.store(prefix), attached)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what `store` stored, if anything, as far as the storage answers."""
        for incoming in (self.audio, *self.attached.values()):
            try:
                incoming.discard()
            except errors.StorageError as error:
                _log.warning("what a submit stored could not be removed: %s", error)


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
        attached: Mapping[str, AttachmentSource],
        fields: Mapping[str, Any],
        *,
        backend: str | None,
        priority: int,
        idempotency_key: str | None,
    ) -> Job:
        """Record a job and return it, or the job that this idempotency key has already.

        Args:
            audio: What the application handed in.
            attached: Further files, by the names of `RenderRequest.attached`.
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
        named_files = dict.fromkeys(attached, _NO_FILE)
        request = read_request({**fields, "audio": _NO_FILE, "backend": named}).attaching(named_files)
        request = self._routed(request)
        job_id = uuid.uuid4().hex if idempotency_key is None else keyed_id(self._tenant, idempotency_key)
        keyed = idempotency_key is not None
        backend_of = self._parts.backends[request.backend]
        incoming = _Inputs(
            examine(audio, self._parts, self._tenant, keyed=keyed),
            examine_attachments(
                attached, self._parts, self._tenant, keyed=keyed, check_text=partial(_check_text, backend_of)
            ),
        )

        def same(files: Callable[[], _Files]) -> Job | None:
            return None if idempotency_key is None else self._same(job_id, request, files, idempotency_key, not backend)

        if (job := same(incoming.describe)) is not None:
            return job
        incarnation = layout.new_incarnation()  # before the upload: the audio's key holds it, and so will the record
        stored = incoming.store(layout.job_prefix(self._tenant, job_id, incarnation))
        recorded = stored.of(request)
        try:
            return self._create(
                recorded,
                id=job_id,
                incarnation=incarnation,
                tenant=self._tenant,
                priority=priority,
                reroutes=not backend and self._parts.failover is not None,
            )
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
            InvalidRequestError: The job did not fail, one of its files is gone,
                or its backend is not one of this service.
        """
        if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
            message = f"job {job.id} is {job.status}; only failed and cancelled jobs can be retried"
            raise errors.InvalidRequestError(message, code="job.not-retryable")
        reroutes = job.reroutes and self._parts.failover is not None
        backend = job.request.backend
        if reroutes:
            backend = self._routed(job.request.model_copy(update={"backend": ""})).backend
        elif backend not in self._parts.backends:
            raise errors.UnknownNameError.of("backend", backend, self._parts.backends, code="backend.unknown")
        new_id, incarnation = uuid.uuid4().hex, layout.new_incarnation()
        prefix = layout.job_prefix(job.tenant, new_id, incarnation)
        fields = {"tenant": job.tenant, "priority": job.priority, "retry_of": job.id, "reroutes": reroutes}
        creating = False
        try:
            request = self._with_copies(job, prefix).model_copy(update={"backend": backend})
            creating = True
            return self._create(request, id=new_id, incarnation=incarnation, **fields)
        except BaseException:
            if not creating or self._surely_absent(new_id, incarnation):  # a create whose answer was lost may stand
                self._parts.storage.delete_prefix(prefix)
            raise

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
        if not request.backend and parts.failover is not None:
            name = first_backend(parts.failover, parts.backends, request, parts.store.now())
            return request.model_copy(update={"backend": name})
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
        given, recorded = files(), job.request.attached()
        audio = _recorded(given.audio, job.request.audio)
        attached = {place: _recorded(file, recorded.get(place)) for place, file in given.attached.items()}
        again = request.attaching(attached).model_copy(update={"audio": audio, "backend": chosen})
        if not same_request(job, again):
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
        audio, passing = job.request.audio, (layout.prefix_of(job), layout.UPLOADS)
        if isinstance(audio, StoredAudio) and not audio.key:
            message = f"the audio of job {job.id} was never stored; submit it again"
            raise errors.InvalidRequestError(message, code="audio.missing")
        copies = {
            place: copy_attachment(place, file, self._parts.storage, prefix)
            for place, file in job.request.attached().items()
            if isinstance(file, StoredAudio) and file.key.startswith(passing)
        }
        request = job.request.attaching(copies)
        if isinstance(audio, StoredAudio) and audio.key.startswith(passing):
            request = request.model_copy(update={"audio": self._copied(audio, prefix)})
        return request

    def _copied(self, audio: StoredAudio, prefix: str) -> StoredAudio:
        storage = self._parts.storage
        try:
            with storage.open(audio.key) as source:
                copy = Streamed(storage, source, audio.key).store(prefix)
                return copy.model_copy(update={"name": audio.name})
        except errors.ObjectNotFoundError:
            raise errors.InvalidRequestError("the audio is not in storage any more", code="audio.missing") from None


def _recorded(file: _AnyFile, recorded: Audio | None) -> _AnyFile | StoredAudio:
    """Return what a record has of the object that a file names, which may be gone meanwhile; else the file."""
    if isinstance(file, StoredAudio) and isinstance(recorded, StoredAudio) and file.key == recorded.key != "":
        return recorded
    return file


def _check_text(backend: RenderBackend, text: str, name: str) -> None:
    """Have the backend check what a scene file says, if it can."""
    if isinstance(backend, SupportsSceneFiles):
        backend.check_scene_file(text, name=name)

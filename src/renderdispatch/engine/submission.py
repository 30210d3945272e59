"""How does a request become a job?

Check the request, then the audio; find out whether an idempotency key has its job already; store the audio; record the
job. Nothing waits for anything to render. Many requests become jobs in one transaction; each has its own errors.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, Final, TypeVar

from attrs import define, field, fields, frozen

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.attachments import AttachmentSource, copy_attachment
from renderdispatch.engine.audio import Streamed
from renderdispatch.engine.inputs import Inputs, StoredOnce, upload_place
from renderdispatch.engine.intake import (
    Fingerprints,
    check_parallel,
    check_priority,
    check_upload,
    fingerprint,
    keyed_id,
    read_request,
    same_request,
)
from renderdispatch.engine.loans import lend
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.quotas import quota_of
from renderdispatch.engine.rerouting import first_backend
from renderdispatch.engine.rows import Submission, read_rows
from renderdispatch.jobs import Job
from renderdispatch.messages import Audio, JobStatus, Limits, Output, RenderRequest, StoredAudio, UploadGrant
from renderdispatch.protocols import JobStore, RenderBackend, SupportsCheck, SupportsCreateMany, SupportsSceneFiles

_log: Final = logging.getLogger("renderdispatch.engine.submission")

UPLOAD_GRANT_LIFE: Final = timedelta(days=1)
"""How long a client has for an upload of its own."""

_AnyFile = TypeVar("_AnyFile", bound=Audio)

_NO_FILE: Final = StoredAudio.model_construct(key="", size=0)

_COMPARED: Final = frozenset({str, int, float, bool, type(None), Output, Limits})
"""Types whose values cannot change between two rows."""

_OWN: Final = frozenset({"audio", "priority", "parallel", "idempotency_key"})
_ASKED: Final = attrgetter(*(each.name for each in fields(Submission) if each.name not in _OWN))
"""What a row asks for, but for what is its own in any case."""

_IN_ORDER: Final = timedelta(microseconds=1)
"""The time between the rows of a batch, so that they are claimed and listed in their order."""

Recorded = Job | errors.RenderDispatchError
"""What became of a row: its job, or why there is none."""


@frozen(kw_only=True)
class _Asked:
    """A request that may be served.

    Args:
        request: The request; before its files are stored, with what names them.
        key: The idempotency key.
        routed: Whether the service chose the backend.
    """

    id: str
    incarnation: str
    request: RenderRequest
    priority: int
    parallel: int
    key: str | None
    routed: bool


@define
class _Last:
    """What the last row of many asked for: rows of a batch often differ in their files alone.

    Args:
        asked: The values and their types; None: they cannot be compared.
        files: The files beside the audio.
        read: The request without a backend.
        routed: The request with its backend, if nothing has to choose it for each row.
    """

    asked: tuple[object, object] | None = None
    files: dict[str, AttachmentSource] = field(factory=dict)
    read: RenderRequest | None = None
    routed: RenderRequest | None = None


@frozen
class Submissions:
    """Records jobs, for one tenant or for the service without tenants.

    Args:
        created: Called after a job was recorded.
        expected: Called when a job will be there as soon as the application commits.
    """

    _parts: Parts
    _tenant: str | None
    _created: Callable[[], None]
    _expected: Callable[[], None]

    def check(self, row: Submission) -> None:
        """Refuse a row that can never be served, as `submit` would; record and store nothing.

        Raises:
            InvalidRequestError: What is wrong with it.
        """
        self._examine(row)

    def submit(self, row: Submission, *, batch: str | None = None, connection: object = None) -> Job:
        """Record a job and return it, or the job that the idempotency key has already.

        Args:
            row: What is asked for.
            batch: The id of its batch.
            connection: The application's transaction, as `SupportsCreateMany.create_many` says.

        Raises:
            InvalidRequestError: The request can never be served; nothing was recorded.
            IdempotencyConflictError: The key belongs to a job with another request.
            ConfigurationError: The store cannot join this transaction.
        """
        self._check_joins(connection)
        asked, inputs = self._examine(row)
        if (known := self._known(asked, inputs)) is not None:
            return known
        own = layout.job_prefix(self._tenant, asked.id, asked.incarnation)
        stored = inputs.store((lambda: own) if connection is None else upload_place(self._tenant, self._parts))
        job = self._job(asked, stored.of(asked.request), batch)
        try:
            created = self._create([job], connection)[0]
        except BaseException as error:
            if self._surely_nothing(error, [job], connection):
                inputs.discard()
            raise
        if not isinstance(created, Job):
            inputs.discard()
            created = self._resolve(created, job, asked)
        return _job_or_raise(created)

    def submit_many(
        self, rows: Iterable[Submission], *, batch: str, number_keys: bool, connection: object = None
    ) -> list[Recorded]:
        """Record jobs in one transaction; return each row's job, or why it has none.

        Args:
            rows: What is asked for, at most `MAX_ROWS`.
            batch: The id of the batch.
            number_keys: Give rows without an idempotency key one that is made of the batch and the row's number.
            connection: The application's transaction.

        Raises:
            InvalidRequestError: There are too many rows.
            StorageError: A file could not be stored; nothing was recorded.
            StoreUnavailableError: The store does not answer; all is recorded or nothing.
        """
        self._check_joins(connection)
        once = StoredOnce(self._parts.storage)
        jobs: dict[str, tuple[Job, _Asked]] = {}
        try:
            outcomes = list(self._outcomes(rows, batch, number_keys, once, jobs))
            to_create = [job for job, _ in jobs.values()]
            created = dict(zip(jobs, self._create(to_create, connection) if to_create else [], strict=True))
        except BaseException as error:
            if self._surely_nothing(error, [job for job, _ in jobs.values()], connection):
                once.discard()
            raise
        once.discard(_keys_of(job for job, _ in jobs.values() if _may_be_stored(job, created[job.id])))
        for job_id, found in created.items():
            if not isinstance(found, Job):
                created[job_id] = self._resolve(found, *jobs[job_id])
        return [created[outcome] if isinstance(outcome, str) else outcome for outcome in outcomes]

    def _outcomes(
        self,
        rows: Iterable[Submission],
        batch: str,
        number_keys: bool,
        once: StoredOnce,
        jobs: dict[str, tuple[Job, _Asked]],
    ) -> Iterator[Recorded | str]:
        """Yield for each row its error, the job that its key has already, or the id under which ``jobs`` has its job.

        The row's files are stored meanwhile, and the row is let go of: its bytes may be many.
        """
        now, below, last = self._parts.store.now(), upload_place(self._tenant, self._parts), _Last()
        hashes = Fingerprints()
        for number, row in enumerate(read_rows(rows)):
            try:
                asked, inputs = self._examine(row, f"batch/{batch}/{number}" if number_keys else None, last)
                inputs = once.share(inputs, row)
                if asked.id in jobs:
                    first = jobs[asked.id][0]
                    _check_same(first, inputs.describe().of(asked.request), asked)
                elif (known := self._known(asked, inputs)) is not None:
                    yield known
                    continue
                else:
                    request = inputs.store(below).of(asked.request)
                    jobs[asked.id] = self._job(asked, request, batch, now + number * _IN_ORDER, hashes), asked
            except (errors.StorageError, errors.StoreUnavailableError):
                raise  # the other rows would meet it too
            except errors.RenderDispatchError as error:
                yield error
            else:
                yield asked.id

    def retry(self, job: Job) -> Job:
        """Submit a failed or cancelled job again; return the new job. It goes on from segments that are kept.

        Raises:
            InvalidRequestError: The job did not fail, one of its files is gone,
                or its backend is not one of this service.
            JobExpiredError: Its files are kept no longer.
        """
        if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
            message = f"job {job.id} is {job.status}; only failed and cancelled jobs can be retried"
            raise errors.InvalidRequestError(message, code="job.not-retryable")
        if job.expired_at is not None:
            raise errors.JobExpiredError(f"the files of job {job.id} are kept no longer; submit the song again")
        reroutes, backend = job.reroutes and self._parts.failover is not None, job.request.backend
        if reroutes:
            backend = self._routed(job.request.model_copy(update={"backend": ""})).backend
        elif backend not in self._parts.backends:
            raise errors.UnknownNameError.of("backend", backend, self._parts.backends, code="backend.unknown")
        new_id, incarnation = uuid.uuid4().hex, layout.new_incarnation()
        prefix = layout.job_prefix(job.tenant, new_id, incarnation)
        fields: dict[str, Any] = {"tenant": job.tenant, "priority": job.priority, "parallel": job.parallel}
        fields |= {"retry_of": job.id, "reroutes": reroutes}
        new: Job | None = None
        try:
            now = self._parts.store.now()
            request = self._with_copies(job, prefix).model_copy(update={"backend": backend})
            fields["borrows"] = lend(self._parts.store, job, new_id)
            new = _new_job(now, request, fingerprint(request), id=new_id, incarnation=incarnation, **fields)
            return _job_or_raise(self._create([new])[0])
        except BaseException:
            if new is None or self._surely_absent(new):  # a create whose answer was lost may stand
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

    def _check_joins(self, connection: object) -> None:
        if connection is not None and not isinstance(self._parts.store, SupportsCreateMany):
            message = f"{type(self._parts.store).__name__} has no database whose transactions it could join"
            raise errors.ConfigurationError(message)

    def _examine(self, row: Submission, own_key: str | None = None, last: _Last | None = None) -> tuple[_Asked, Inputs]:
        """Check a row, and refuse what can never be served. Nothing is stored.

        Args:
            row: What is asked for.
            own_key: The idempotency key of a row that brings none.
            last: What the row before asked for.
        """
        if not isinstance(row, Submission):
            message = f"a row is a Submission, as in Submission(Path('song.mp3')), not a {type(row).__name__}"
            raise errors.InvalidRequestError(message)
        priority, key = check_priority(row.priority), own_key if row.idempotency_key is None else row.idempotency_key
        request, files = self._read(row, _Last() if last is None else last)
        asked = _Asked(
            id=uuid.uuid4().hex if key is None else keyed_id(self._tenant, key),
            incarnation=layout.new_incarnation(),  # before the upload: the audio's key holds it, and so will the record
            request=request,
            priority=priority,
            parallel=check_parallel(row.parallel),
            key=key,
            routed=not row.backend,
        )
        check_text = partial(_check_text, self._parts.backends[request.backend])
        keyed = key is not None
        return asked, Inputs.examine(row.audio, files, self._parts, self._tenant, keyed=keyed, check_text=check_text)

    def _read(self, row: Submission, last: _Last) -> tuple[RenderRequest, dict[str, AttachmentSource]]:
        """Return a row's request, with its backend, and the files beside its audio.

        A row that asks for what the last one did, and has no such files, is not read again.
        """
        values = _ASKED(row)
        types = tuple(map(type, values))
        if last.read is None or (types, values) != last.asked:
            last.files = row.files()
            fields = {**row.fields(), "audio": _NO_FILE, "backend": "" if row.backend is None else row.backend}
            request = read_request(fields)
            last.read = request.attaching(dict.fromkeys(last.files, _NO_FILE)) if last.files else request
            plain = not last.files and all(
                kind in _COMPARED or not value for kind, value in zip(types, values, strict=True)
            )
            last.asked, last.routed = (types, values) if plain else None, None
        routed = last.routed
        if routed is None:
            routed = self._routed(last.read)
            if row.backend or (self._parts.route is None and self._parts.failover is None):
                last.routed = routed
        return routed, last.files

    def _known(self, asked: _Asked, inputs: Inputs) -> Job | None:
        """Return the job that the idempotency key has; None where the key is new (rule J9).

        Raises:
            IdempotencyConflictError: The job's request is another one.
        """
        if asked.key is None:
            return None
        try:
            job = self._parts.store.get(asked.id)
        except errors.JobNotFoundError:
            return None
        return _check_same(job, inputs.describe().of(asked.request), asked)

    def _resolve(self, refused: errors.RenderDispatchError, job: Job, asked: _Asked) -> Recorded:
        """Return the job that another submit with the same key created first, or why there is none."""
        if asked.key is None or not isinstance(refused, errors.JobExistsError):
            return refused
        try:
            return _check_same(self._parts.store.get(job.id), job.request, asked)
        except errors.JobNotFoundError:
            message = f"job {job.id} of this idempotency key is in a transaction that has not been committed yet"
            return errors.JobExistsError(message)
        except errors.RenderDispatchError as error:
            return error

    def _job(
        self,
        asked: _Asked,
        request: RenderRequest,
        batch: str | None,
        now: datetime | None = None,
        hashes: Fingerprints | None = None,
    ) -> Job:
        """Return the job of a request whose files are stored."""
        own = {name: getattr(asked, name) for name in ("id", "incarnation", "priority", "parallel")}
        reroutes = asked.routed and self._parts.failover is not None
        now = self._parts.store.now() if now is None else now
        hashed = fingerprint(request) if hashes is None else hashes.of(request, asked.request)
        return _new_job(now, request, hashed, tenant=self._tenant, batch=batch, reroutes=reroutes, **own)

    def _create(self, jobs: Sequence[Job], connection: object = None) -> list[Recorded]:
        """Create jobs, all in one transaction if the store can; return each as stored, or why it was refused.

        Args:
            jobs: The jobs, at least one, all of one tenant: what its quota does not allow is refused.
            connection: The application's transaction; the jobs are there when it commits.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        store, quota = self._parts.store, quota_of(self._parts.policy, jobs[0].tenant)
        at_once = len(jobs) > 1 or connection is not None or quota is not None
        if isinstance(store, SupportsCreateMany) and at_once:
            created = store.create_many(jobs, quota=quota, connection=connection)
        elif len(jobs) == 1:
            created = [_create_one(store, jobs[0])]
        else:
            created = list(_create_each(store, jobs))
        if any(isinstance(found, Job) for found in created):
            (self._created if connection is None else self._expected)()
        return created

    def _surely_nothing(self, error: BaseException, jobs: Iterable[Job], connection: object) -> bool:
        """Return whether a create that raised recorded nothing. One whose answer was lost may have recorded all."""
        if connection is not None:  # what the application commits is not known here; unused files are swept
            return isinstance(error, errors.ConfigurationError | errors.InvalidRequestError)
        return all(self._surely_absent(job) for job in jobs)

    def _surely_absent(self, job: Job) -> bool:
        try:
            return self._parts.store.get(job.id).incarnation != job.incarnation
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


def _new_job(now: datetime, request: RenderRequest, hashed: str, **fields: Any) -> Job:
    return Job(
        **fields,
        request=request,
        fingerprint=hashed,
        created_at=now,
        updated_at=now,
        finish_by=now + request.limits.total_timeout,
        ready_at=now,
    )


def _job_or_raise(recorded: Recorded) -> Job:
    if isinstance(recorded, Job):
        return recorded
    raise recorded


def _create_one(store: JobStore, job: Job) -> Recorded:
    try:
        return store.create(job)
    except errors.JobExistsError as error:
        return error


def _create_each(store: JobStore, jobs: Iterable[Job]) -> Iterator[Recorded]:
    """Create jobs in a store without transactions; once it does not answer, the jobs from there on have that error."""
    away: errors.StoreUnavailableError | None = None
    for job in jobs:
        if away is not None:
            yield away
            continue
        try:
            yield _create_one(store, job)
        except errors.StoreUnavailableError as error:
            away = error
            yield error


def _may_be_stored(job: Job, found: Recorded) -> bool:
    """Return whether the store may have this very job: if its answer was lost, that is not known."""
    if isinstance(found, Job):
        return found.incarnation == job.incarnation
    return isinstance(found, errors.StoreUnavailableError)


def _keys_of(jobs: Iterable[Job]) -> set[str]:
    """Return the keys of the objects that the jobs' requests name."""
    files = (file for job in jobs for file in (job.request.audio, *job.request.attached().values()))
    return {file.key for file in files if isinstance(file, StoredAudio)}


def _check_same(job: Job, request: RenderRequest, asked: _Asked) -> Job:
    """Return a job whose request is this one (rule J9).

    Raises:
        IdempotencyConflictError: It is another one.
    """
    chosen = job.request.backend if asked.routed else request.backend  # a route may choose another one each time
    recorded = job.request.attached()
    attached = {place: _recorded(file, recorded.get(place)) for place, file in request.attached().items()}
    audio = _recorded(request.audio, job.request.audio)
    again = request.attaching(attached).model_copy(update={"audio": audio, "backend": chosen})
    if not same_request(job, again):
        message = f"idempotency key {str(asked.key)[:40]!r} belongs to job {job.id}, which has another request"
        raise errors.IdempotencyConflictError(message)
    return job


def _recorded(file: _AnyFile, recorded: Audio | None) -> _AnyFile | StoredAudio:
    """Return what a record has of the object that a file names, which may be gone meanwhile; else the file."""
    if isinstance(file, StoredAudio) and isinstance(recorded, StoredAudio) and file.key == recorded.key != "":
        return recorded
    return file


def _check_text(backend: RenderBackend, text: str, name: str) -> None:
    """Have the backend check what a scene file says, if it can."""
    if isinstance(backend, SupportsSceneFiles):
        backend.check_scene_file(text, name=name)

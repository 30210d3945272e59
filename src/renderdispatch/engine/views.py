"""What does a service show of its jobs?

Their records, pages and counts, the answer to a poll, and the finished video. Nothing here changes a job.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

from attrs import evolve, frozen

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.intake import is_path, whole
from renderdispatch.engine.names import file_name
from renderdispatch.engine.parts import Parts
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import Artifact, JobStatus, PollError, PollResponse, PollResult, PollSegments, Stage
from renderdispatch.protocols import JobQuery, Page, SupportsCounts, SupportsFileNames, walk

DOWNLOAD_URL_LIFE: Final = timedelta(days=7)
"""How long a download URL is good for; a new one is signed at each call."""

_CHUNK_BYTES: Final = 1 << 20
_PAGE: Final = 1000

_DRAWN: Final = frozenset({Stage.RENDERING, Stage.UPLOADING_VIDEO, Stage.FINALIZING})
"""The stages in which the numbers of an attempt's segments say how far its video is."""

_OTHER_KINDS: Final = re.compile(
    r"3g[2p]|aac|aiff?|a?png|asf|avif?|bmp|dv|flac|flv|f4v|gif|h26[45]|hei[cf]|hevc|ivf|jpe?g|jxl|m2ts|m2v|m3u8|m4[ab]"
    r"|mk[av]|mov|mp[23]|mpd|mpe?g|mts|mxf|nut|og[agv]|opus|rm|svg|tiff?|ts|vob|wav|web[mp]|wm[av]|y4m"
)
"""Endings of names that say something else than that a file holds an MP4 video."""

_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may be a job's id at all: databases stumble over other text that a stranger sends."""


@frozen
class Views:
    """The jobs of one tenant, or of all.

    Args:
        tenant: None sees every job.
    """

    parts: Parts
    tenant: str | None

    def get(self, job_id: object) -> Job:
        """Return the job's record. Raises `JobNotFoundError`."""
        if not isinstance(job_id, str):
            raise errors.JobNotFoundError(f"no job: its id is a str, not {type(job_id).__name__}")
        job = self.parts.store.get(job_id) if _JOB_ID.fullmatch(job_id) else None
        if job is None or (self.tenant is not None and job.tenant != self.tenant):
            raise errors.JobNotFoundError(f"no job {job_id[:80]!r}")
        return job

    def page(
        self,
        status: JobStatus | Iterable[JobStatus] | None,
        *,
        limit: int,
        cursor: str | None,
        batch: str | None = None,
        ended_by: object = None,
    ) -> Page[Job]:
        """Return a page of jobs, newest first; with ``ended_by``, oldest first. Raises `InvalidRequestError`."""
        try:
            given = [status] if isinstance(status, str) else status
            statuses = None if given is None else frozenset(map(JobStatus, given))
        except (ValueError, TypeError):
            message = f"status: {', '.join(JobStatus)}, or several of them"
            raise errors.InvalidRequestError(message) from None
        if (number := whole(limit)) is None:
            raise errors.InvalidRequestError(f"limit: an integer, not {type(limit).__name__}")
        query = JobQuery(tenant=self.tenant, statuses=statuses, batch=batch, limit=number, cursor=cursor)
        if ended_by is not None:
            if not isinstance(ended_by, datetime) or ended_by.tzinfo is None:
                raise errors.InvalidRequestError("ended_by: a datetime with a time zone, such as datetime.now(UTC)")
            query = evolve(query, order="ended", due_by=ended_by)
        return self.parts.store.query(query)

    def counts(self, *, batch: str | None = None) -> dict[JobStatus, int]:
        """Return how many jobs have each status; of a batch, if one is named."""
        store = self.parts.store
        if isinstance(store, SupportsCounts):
            return store.counts(tenant=self.tenant, batch=batch)
        counted = dict.fromkeys(JobStatus, 0)
        for job in walk(store, JobQuery(tenant=self.tenant, batch=batch, limit=_PAGE)):
            counted[job.status] += 1
        return counted

    def poll(self, job: Job) -> PollResponse:
        """Return what a poll endpoint answers for the job."""
        artifact = job.artifact if job.status is JobStatus.COMPLETE else None
        kept = artifact is not None and job.expired_at is None
        result = error = None
        if artifact is not None:
            shown = {name: getattr(artifact, name) for name in PollResult.model_fields if name != "video_key"}
            shown |= {} if artifact.segments else dict.fromkeys(("segments", "segments_taken", "segments_twice"))
            result = PollResult(video_key=artifact.key, **shown)
        if job.status is JobStatus.FAILED and job.error is not None:
            error = PollError(code=job.error.code, message=job.error.message)
        return PollResponse(
            job_id=job.id,
            status=job.status,
            stage=job.stage,
            progress=job.progress,
            attempt=job.attempt_number,
            queue_position=self._queue_position(job),
            segments=segments_of(job),
            result=result,
            error=error,
            warnings=artifact.warnings if artifact is not None else (),
            download_url=self.download_url(job) if kept else None,
            poster_url=self.poster_url(job) if artifact is not None and kept and artifact.poster_key else None,
            expires_at=self._expires_at(job),
            created_at=job.created_at,
            updated_at=job.updated_at,
        )

    def _expires_at(self, job: Job) -> datetime | None:
        """Return when its video was or will be kept no longer; None: it runs, or is kept until it is deleted."""
        keep = self.parts.keep.get(job.status)
        if job.expired_at is not None or job.ended_at is None or keep is None:
            return job.expired_at
        return job.ended_at + keep

    def download_url(self, job: Job) -> str:
        """Return a URL of the finished video. Raises `JobNotCompleteError`."""
        return self._signed(job, _artifact_of(job).key, ".mp4")

    def poster_url(self, job: Job) -> str:
        """Return a URL of the poster. Raises `JobNotCompleteError`, and `ObjectNotFoundError` where there is none."""
        return self._signed(job, _poster_key(job), ".jpg")

    def open_video(self, job: Job) -> AbstractContextManager[BinaryIO]:
        """Open the finished video for reading. Raises `JobNotCompleteError`."""
        return self.parts.storage.open(_artifact_of(job).key)

    def file_name(self, job: Job) -> str:
        """Return the name under which the video is saved."""
        return file_name(job.request)

    def save(self, job: Job, path: object, *, overwrite: bool) -> Path:
        """Write the finished video to a file; return its path. Raises what `RenderService.save` does."""
        target = _target(path, file_name(job.request))
        check_video_name(target)
        return self._save(_artifact_of(job).key, target, overwrite=overwrite)

    def save_poster(self, job: Job, path: object, *, overwrite: bool) -> Path:
        """Write the poster to a file; return its path. Raises what `RenderService.save_poster` does."""
        target = _target(path, file_name(job.request, suffix=".jpg"))
        return self._save(_poster_key(job), target, overwrite=overwrite)

    def _save(self, key: str, target: Path, *, overwrite: bool) -> Path:
        from renderdispatch.plumbing.files import write_file

        with self.parts.storage.open(key) as source:
            chunks = iter(lambda: source.read(_CHUNK_BYTES), b"")
            try:
                write_file(target, chunks, key=str(target), only_if_absent=not overwrite)
            except errors.ObjectExistsError:
                raise errors.ObjectExistsError(f"{target} exists, and overwrite was not asked") from None
        return target

    def open_object(self, key: object) -> AbstractContextManager[BinaryIO]:
        """Open one of the tenant's objects for reading. Raises `ObjectNotFoundError`."""
        if not isinstance(key, str) or not layout.may_read(self.tenant, key):
            raise errors.ObjectNotFoundError(f"nothing is stored under {str(key)[:200]!r}")
        try:
            return self.parts.storage.open(key)
        except errors.StorageDeniedError:  # no object can have this key
            raise errors.ObjectNotFoundError(f"nothing may be read under {key[:200]!r}") from None

    def _signed(self, job: Job, key: str, suffix: str) -> str:
        storage = self.parts.storage
        if isinstance(storage, SupportsFileNames) and storage.names_files:
            name = file_name(job.request, suffix=suffix)
            return storage.sign_get(key, expires_in=DOWNLOAD_URL_LIFE, file_name=name)
        return storage.sign_get(key, expires_in=DOWNLOAD_URL_LIFE)

    def _queue_position(self, job: Job) -> int | None:
        """Return 1 for the job that is next."""
        if job.stage is not Stage.QUEUED or job.ended:
            return None
        store = self.parts.store
        if isinstance(store, SupportsCounts):
            return store.position(job, self.parts.policy)
        ready = walk(store, JobQuery(order="ready", ready_by=store.now(), machine=job.machine, limit=_PAGE))
        return next((place for place, other in enumerate(ready, 1) if other.id == job.id), None)


def segments_of(job: Job) -> PollSegments | None:
    """Return how far the segments of a job's video are; None: it is not drawn now, or they are not known."""
    attempt = job.attempt
    if job.ended or job.stage not in _DRAWN or attempt is None or attempt.segments is None:
        return None
    standing = min(attempt.segments_standing, attempt.segments)
    own = min(attempt.segments_own, standing)
    helpers = sum(helper.state is HelperState.STARTED for helper in attempt.helpers)
    return PollSegments(
        total=attempt.segments,
        standing=standing,
        own=own,
        taken_over=standing - own,
        missing=attempt.segments - standing,
        drawing=1 + helpers if job.stage is Stage.RENDERING else 0,
    )


def check_video_name(path: Path) -> None:
    """Check that a name does not say that a file holds anything but an MP4 video.

    Raises:
        InvalidRequestError: ``output.kind``.
    """
    if _OTHER_KINDS.fullmatch(path.suffix.lower().removeprefix(".")):
        message = (
            f"{path} would hold an MP4 video (H.264 and AAC), the only kind that there is; "
            f"name it {path.with_suffix('.mp4').name}"
        )
        raise errors.InvalidRequestError(message, code="output.kind")


def _target(path: object, default: str) -> Path:
    """Return the file to save to.

    Raises:
        InvalidRequestError: The system cannot have a file of this name.
    """
    given = default if path is None else path
    if not isinstance(given, str | Path) or not is_path(str(given)):
        raise errors.InvalidRequestError("path: a Path, or text that can be a file's name")
    return Path(given)


def _poster_key(job: Job) -> str:
    key = _artifact_of(job).poster_key
    if key is None:
        message = f"job {job.id} has no poster" + ("" if job.request.poster else "; submit it with poster=True")
        raise errors.ObjectNotFoundError(message, code="poster.missing")
    return key


def _artifact_of(job: Job) -> Artifact:
    match job.status:
        case JobStatus.COMPLETE if job.expired_at is not None:
            raise errors.JobExpiredError(f"the video of job {job.id} is kept no longer; submit the song again")
        case JobStatus.COMPLETE if job.artifact is not None:
            return job.artifact
        case JobStatus.FAILED if job.error is not None:
            raise errors.JobFailedError(f"job {job.id} failed: {job.error.message}", code=job.error.code)
        case JobStatus.CANCELLED:
            raise errors.JobCancelledError(f"job {job.id} was cancelled")
    raise errors.JobNotCompleteError(f"job {job.id} is {job.status} ({job.stage}, {job.progress:g} %)")

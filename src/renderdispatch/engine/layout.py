"""Which keys do a job's objects have?

All objects of a job share a prefix, ``jobs/{job}/{incarnation}/``; the objects of an attempt have the attempt's token
below it; and the objects of a tenant share the tenant's prefix. The incarnation is random and is chosen before anything
is written, so a delete by prefix never touches a later job of the same id (rule J15). Uploads by clients are stored
under the day of their grant, so unused ones are found by their keys alone. Files of jobs that the service is not yet
sure to have recorded are stored there too, each below a key of its own.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TENANTS: Final = "tenants/"

UPLOADS: Final = "uploads/"
"""The prefix of uploads by clients, and of files for jobs that may not be recorded. `upload_key` makes their keys. They
are deleted by their age."""

UPLOAD_DAYS: Final = 2
"""An upload must be submitted on the day of its grant or the next day. A job may then need it for six more days."""

TOMBSTONES: Final = "tombstones/"
"""The prefix of what remains of deleted jobs for a while; see `renderdispatch.engine.tombstones`."""

_OF_A_JOB: Final = re.compile(r"(?:tenants/[^/]+/)?jobs/([A-Za-z0-9_-]{1,128})/")
_TOMBSTONE: Final = re.compile(
    r"tombstones/(\d{8}T\d{6})/((?:tenants/[^/]+/)?jobs/[A-Za-z0-9_-]{1,128}/[0-9a-f]{16})", re.ASCII
)
_PIECES: Final = re.compile(
    r"(?:tenants/[^/]+/)?jobs/[A-Za-z0-9_-]{1,128}/[^/]+/(?:pieces/.*|[^/]+/(?:[^/]+\.grants|stop))",
    re.DOTALL | re.IGNORECASE,  # some disks do not tell the case of names apart
)
"""The keys of plans, segments and grants, and of what stops helpers."""

_UPLOAD: Final = re.compile(r"uploads/(\d{8})/((?:tenants/[^/]+/)?[0-9a-f]{32}(?:/[A-Za-z0-9./-]{1,100})?)", re.ASCII)


def check_tenant(tenant: object) -> str:
    """Return the tenant's name.

    Raises:
        InvalidRequestError: It is not 1 to 64 letters, digits, dots, dashes or underscores, or begins with a sign.
    """
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        message = "a tenant's name is 1 to 64 letters, digits, dots, dashes or underscores, first a letter or a digit"
        raise InvalidRequestError(message, code="tenant.invalid")
    return tenant


def tenant_prefix(tenant: str | None) -> str:
    """Return the prefix of a tenant's objects; "" for the service without tenants."""
    return "" if tenant is None else f"{_TENANTS}{tenant}/"


def may_read(tenant: str | None, key: str) -> bool:
    """Return whether this tenant may read an object whose key a client named. Pieces and grants are never read."""
    if _PIECES.fullmatch(key):
        return False
    upload = _UPLOAD.fullmatch(key)
    below = key if upload is None else upload[2]
    return below.startswith(tenant_prefix(tenant)) and (tenant is not None or not below.startswith(_TENANTS))


def upload_folder(tenant: str | None, now: datetime) -> str:
    """Return the prefix of a tenant's uploads of a day."""
    return f"{UPLOADS}{now.astimezone(UTC):%Y%m%d}/{tenant_prefix(tenant)}"


def upload_key(tenant: str | None, now: datetime) -> str:
    """Return a new key for an upload that is granted now, or the folder of a file that is stored now."""
    return f"{upload_folder(tenant, now)}{secrets.token_hex(16)}"


def upload_age(key: str, now: datetime) -> timedelta | None:
    """Return the time since the day of an upload's grant began (UTC); None for a key that `upload_key` did not make."""
    found = _UPLOAD.fullmatch(key)
    try:
        return now - datetime.fromisoformat(found[1]).replace(tzinfo=UTC) if found is not None else None
    except ValueError:  # not a day
        return None


def job_of(key: str) -> str | None:
    """Return the id of the job to whose objects a key belongs; None for other keys."""
    found = _OF_A_JOB.match(key)
    return found and found[1]


def new_incarnation() -> str:
    """Return a new random name for one life of a job's id."""
    return secrets.token_hex(8)


def job_prefix(tenant: str | None, job_id: str, incarnation: str) -> str:
    """Return the prefix of a job's objects. A later job of the same id has another one (rule J15)."""
    return f"{tenant_prefix(tenant)}jobs/{job_id}/{incarnation}/"


def prefix_of(job: Job) -> str:
    """Return the prefix of the job's objects."""
    return job_prefix(job.tenant, job.id, job.incarnation)


def audio_key(prefix: str, upload: str, filename: str) -> str:
    """Return the key of a job's audio; it keeps the extension of the file's name.

    Args:
        prefix: The job's, from `job_prefix`.
        upload: Names the upload: each attempt has its own, so that two of them never overwrite each other.
        filename: The file's name, for its extension.
    """
    extension = re.search(r"\.([A-Za-z0-9]{1,8})$", filename)
    return f"{prefix}{upload}/audio{'.' + extension[1].lower() if extension else ''}"


def attachment_key(prefix: str, part: str, sha256: str, suffix: str) -> str:
    """Return the key of a file beside the audio. It names the content: attempts that store it write the same object.

    Args:
        prefix: The job's, from `job_prefix`.
        part: What the file is, such as ``cover``.
        sha256: Of the file, in hex.
        suffix: The extension, such as ``jpg``.
    """
    return f"{prefix}{part}-{sha256[:32]}.{suffix}"


def attempt_upload(token: str) -> str:
    """Return the name of the upload of audio by one attempt."""
    return f"audio-{token}"


def attempt_prefix(prefix: str, token: str) -> str:
    """Return the prefix of one attempt's objects, below the job's."""
    return f"{prefix}{token}/"


def video_key(prefix: str, token: str) -> str:
    """Return the key of an attempt's video."""
    return f"{attempt_prefix(prefix, token)}video.mp4"


def poster_key(prefix: str, token: str) -> str:
    """Return the key of an attempt's poster."""
    return f"{attempt_prefix(prefix, token)}poster.jpg"


def grants_key(prefix: str, token: str, *, helpers: bool) -> str:
    """Return the key of an attempt's grants object: the lead's, or that of its helpers."""
    return f"{attempt_prefix(prefix, token)}{'helpers' if helpers else 'lead'}.grants"


def stop_key(prefix: str, token: str) -> str:
    """Return the key of the object that tells an attempt's helpers to stop."""
    return f"{attempt_prefix(prefix, token)}stop"


def pieces_prefix(prefix: str, picture: str) -> str:
    """Return the prefix of a video's plan and segments, below the job's.

    Args:
        prefix: The job's, from `job_prefix`.
        picture: Names the class of device and the software that draw it: others draw other bytes.
    """
    return f"{prefix}pieces/{picture}/"


def all_pieces(prefix: str) -> str:
    """Return the prefix of all plans and segments of a job, whatever drew them. `pieces_prefix` is below it."""
    return f"{prefix}pieces/"


def passing_keys(prefix: str, token: str, *, stop: bool) -> list[str]:
    """Return the keys of an attempt's objects that are needed only to draw: grants, and with ``stop`` the stop object.

    Args:
        prefix: The job's, from `job_prefix`.
        token: The attempt's.
        stop: Whether no helper can look for the stop object any more.
    """
    grants = [grants_key(prefix, token, helpers=helpers) for helpers in (False, True)]
    return [*grants, stop_key(prefix, token)] if stop else grants


def tombstone_key(prefix: str, until: datetime) -> str:
    """Return the key of a tombstone.

    Args:
        prefix: The deleted job's, from `job_prefix`.
        until: When its objects are to be deleted once more.
    """
    return f"{TOMBSTONES}{until.astimezone(UTC) + timedelta(seconds=1):%Y%m%dT%H%M%S}/{prefix.rstrip('/')}"


def read_tombstone(key: str) -> tuple[datetime, str] | None:
    """Return the time and the prefix of a tombstone; None for a key that `tombstone_key` did not make."""
    found = _TOMBSTONE.fullmatch(key)
    try:
        return found and (datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC), f"{found[2]}/")
    except ValueError:  # not a time
        return None


def picture_in(pieces: str) -> str:
    """Return the name of the pictures whose pieces have this prefix."""
    return pieces.rstrip("/").rpartition("/")[2]


def picture_of(device_class: str | None, token: str) -> str:
    """Return the name of the pictures that a backend draws: those of one name have the same bytes.

    Args:
        device_class: What the backend declares to draw with; what an attempt draws on another one, only it may use.
        token: The attempt's.
    """
    if device_class is None:
        return token
    return hashlib.sha256(f"{device_class}\n{_version()}".encode()).hexdigest()[:16]


@cache
def _version() -> str:
    from importlib import metadata  # slow, and only dispatchers need it

    try:
        return metadata.version("renderdispatch")
    except metadata.PackageNotFoundError:  # an image without package metadata
        return ""


def result_key(prefix: str, token: str) -> str:
    """Return the key of an attempt's result object."""
    return f"{attempt_prefix(prefix, token)}result.json"

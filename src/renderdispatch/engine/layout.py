"""Under which keys do a job's objects stand?

Everything of a job stands under one prefix, everything of an attempt under the attempt's token within it, and
everything of a tenant under the tenant's. What clients upload by themselves stands under the day of its grant, so that
what nobody used is found by its key alone.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, date, datetime, timedelta
from typing import Final

from renderdispatch.errors import InvalidRequestError

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TENANTS: Final = "tenants/"

UPLOADS: Final = "uploads/"
"""What stands here, by keys that `upload_key` made, is deleted by its age."""

UPLOAD_DAYS: Final = 2
"""An upload is submitted on the day of its grant or the day after; from then on, a job may need it for six days."""

_UPLOAD: Final = re.compile(r"uploads/(\d{4})(\d\d)(\d\d)/((?:tenants/[^/]+/)?[0-9a-f]{32})", re.ASCII)


def check_tenant(tenant: str) -> str:
    """Return the tenant's name.

    Raises:
        InvalidRequestError: It is not 1 to 64 letters, digits, dots, dashes or underscores.
    """
    if not _TENANT.fullmatch(tenant):
        message = "a tenant's name is 1 to 64 letters, digits, dots, dashes or underscores, and begins with no dot"
        raise InvalidRequestError(message, code="tenant.invalid")
    return tenant


def tenant_prefix(tenant: str | None) -> str:
    """Return where a tenant's objects stand; "" for the service without tenants."""
    return "" if tenant is None else f"{_TENANTS}{tenant}/"


def may_read(tenant: str | None, key: str) -> bool:
    """Return whether a key that a client named belongs to this tenant."""
    upload = _UPLOAD.fullmatch(key)
    below = key if upload is None else upload[4]
    return below.startswith(tenant_prefix(tenant)) and (tenant is not None or not below.startswith(_TENANTS))


def upload_key(tenant: str | None, now: datetime) -> str:
    """Return a fresh key for an upload that is granted now."""
    return f"{UPLOADS}{now.astimezone(UTC):%Y%m%d}/{tenant_prefix(tenant)}{secrets.token_hex(16)}"


def upload_age(key: str, now: datetime) -> timedelta | None:
    """Return the time since the day of an upload's grant began, in UTC; None for what `upload_key` did not make."""
    found = _UPLOAD.fullmatch(key)
    try:
        day = date(int(found[1]), int(found[2]), int(found[3])) if found is not None else None
    except ValueError:
        day = None
    return None if day is None else now - datetime(day.year, day.month, day.day, tzinfo=UTC)


def job_prefix(tenant: str | None, job_id: str) -> str:
    """Return where a job's objects stand."""
    return f"{tenant_prefix(tenant)}jobs/{job_id}/"


def audio_key(tenant: str | None, job_id: str, upload: str, filename: str) -> str:
    """Return the key of a job's audio; it keeps the extension of the file's name.

    Args:
        upload: Names the upload, so that two that meet at one job id never overwrite each other.
    """
    extension = re.search(r"\.([A-Za-z0-9]{1,8})$", filename)
    return f"{job_prefix(tenant, job_id)}{upload}/audio{'.' + extension[1].lower() if extension else ''}"


def attempt_prefix(tenant: str | None, job_id: str, token: str) -> str:
    """Return where the objects of one attempt stand."""
    return f"{job_prefix(tenant, job_id)}{token}/"


def video_key(tenant: str | None, job_id: str, token: str) -> str:
    return f"{attempt_prefix(tenant, job_id, token)}video.mp4"


def result_key(tenant: str | None, job_id: str, token: str) -> str:
    return f"{attempt_prefix(tenant, job_id, token)}result.json"

"""Whose fault was it, and how does it read?"""

from __future__ import annotations

import errno

from renderdispatch.errors import ConfigurationError, InvalidRequestError, RenderError, StorageError, StorageFullError
from renderdispatch.messages import FaultDomain, JobError


def job_error(error: BaseException, *, otherwise: FaultDomain) -> JobError:
    """Describe an exception as the error of a job.

    Args:
        error: What was raised.
        otherwise: Whose fault it is when the exception does not say: the scene's while it renders, the
            infrastructure's everywhere else.
    """
    said = _text(error)
    match error:
        case RenderError() if error.fault in set(FaultDomain):
            return JobError(code=str(error.code), message=said, fault=FaultDomain(error.fault))
        case InvalidRequestError() | ConfigurationError():
            return JobError(code=error.code, message=said, fault=FaultDomain.REQUEST)
        case StorageFullError():
            return JobError(code="disk.full", message=said, fault=FaultDomain.INFRASTRUCTURE)
        case StorageError():
            return JobError(code=error.code, message=said, fault=FaultDomain.INFRASTRUCTURE)
        case OSError() if is_disk_full(error):
            message = "no space is left on the disk"
            return JobError(code="disk.full", message=message, fault=FaultDomain.INFRASTRUCTURE)
        case MemoryError():
            return JobError(code="memory.full", message="out of memory", fault=FaultDomain.INFRASTRUCTURE)
    code = "scene.failed" if otherwise is FaultDomain.SCENE else "internal"
    return JobError(
        code=code, message=f"{type(error).__name__}: {said}" if said else type(error).__name__, fault=otherwise
    )


def is_disk_full(error: OSError) -> bool:
    """Return whether no space is left on a disk, or for this user."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _text(error: BaseException) -> str:
    """Return what an exception says, whatever its author did; names of files may hold bytes that are no text."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a description, never an exception
        said = ""
    return said.encode(errors="replace").decode()

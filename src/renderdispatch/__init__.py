"""Render video on a GPU, and be sure to get the result.

``renderdispatch.local()`` gives a service that needs nothing; `RenderService` is put together from any store, storage
and backends. Adapters are imported by their modules: ``from renderdispatch.stores.sql import SqlJobStore``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from renderdispatch.aio import AsyncJobHandle, AsyncRenderService
    from renderdispatch.errors import (
        ConfigurationError,
        IdempotencyConflictError,
        InvalidRequestError,
        JobCancelledError,
        JobFailedError,
        JobNotCompleteError,
        JobNotFoundError,
        RenderDispatchError,
        WaitTimeoutError,
    )
    from renderdispatch.jobs import Job
    from renderdispatch.messages import (
        PRESETS,
        AudioUrl,
        JobStatus,
        Limits,
        Output,
        PollResponse,
        Stage,
        StorageKey,
        UploadGrant,
    )
    from renderdispatch.service import JobHandle, RenderService
    from renderdispatch.wiring import Settings, from_settings, local

_HOME: Final = {
    "aio": ("AsyncJobHandle", "AsyncRenderService"),
    "errors": (
        "ConfigurationError",
        "IdempotencyConflictError",
        "InvalidRequestError",
        "JobCancelledError",
        "JobFailedError",
        "JobNotCompleteError",
        "JobNotFoundError",
        "RenderDispatchError",
        "WaitTimeoutError",
    ),
    "jobs": ("Job",),
    "messages": (
        "PRESETS",
        "AudioUrl",
        "JobStatus",
        "Limits",
        "Output",
        "PollResponse",
        "Stage",
        "StorageKey",
        "UploadGrant",
    ),
    "service": ("JobHandle", "RenderService"),
    "wiring": ("Settings", "from_settings", "local"),
}
_MODULE_OF: Final = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "PRESETS",
    "AsyncJobHandle",
    "AsyncRenderService",
    "AudioUrl",
    "ConfigurationError",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "JobHandle",
    "JobNotCompleteError",
    "JobNotFoundError",
    "JobStatus",
    "Limits",
    "Output",
    "PollResponse",
    "RenderDispatchError",
    "RenderService",
    "Settings",
    "Stage",
    "StorageKey",
    "UploadGrant",
    "WaitTimeoutError",
    "from_settings",
    "local",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used: a poll endpoint needs no SQLAlchemy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'renderdispatch' has no attribute {name!r}")
    return getattr(import_module(f"renderdispatch.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

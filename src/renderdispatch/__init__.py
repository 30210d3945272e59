"""Render video on a GPU, and be sure to get the result.

``renderdispatch.local()`` returns a service that needs no set-up. `RenderService` takes any store, storage and
backends. Import adapters from their modules: ``from renderdispatch.stores.sql import SqlJobStore``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from renderdispatch.aio import AsyncJobHandle as AsyncJobHandle
    from renderdispatch.aio import AsyncRenderService as AsyncRenderService
    from renderdispatch.batches import BatchHandle as BatchHandle
    from renderdispatch.batches import BatchProgress as BatchProgress
    from renderdispatch.batches import Submission as Submission
    from renderdispatch.batches import SubmittedBatch as SubmittedBatch
    from renderdispatch.errors import ConfigurationError as ConfigurationError
    from renderdispatch.errors import IdempotencyConflictError as IdempotencyConflictError
    from renderdispatch.errors import InvalidRequestError as InvalidRequestError
    from renderdispatch.errors import JobCancelledError as JobCancelledError
    from renderdispatch.errors import JobFailedError as JobFailedError
    from renderdispatch.errors import JobNotCompleteError as JobNotCompleteError
    from renderdispatch.errors import JobNotFoundError as JobNotFoundError
    from renderdispatch.errors import QueueLimitError as QueueLimitError
    from renderdispatch.errors import RenderDispatchError as RenderDispatchError
    from renderdispatch.errors import WaitTimeoutError as WaitTimeoutError
    from renderdispatch.failover import Failover as Failover
    from renderdispatch.jobs import Job as Job
    from renderdispatch.messages import PRESETS as PRESETS
    from renderdispatch.messages import AudioUrl as AudioUrl
    from renderdispatch.messages import JobStatus as JobStatus
    from renderdispatch.messages import Limits as Limits
    from renderdispatch.messages import Output as Output
    from renderdispatch.messages import PollResponse as PollResponse
    from renderdispatch.messages import Stage as Stage
    from renderdispatch.messages import StorageKey as StorageKey
    from renderdispatch.messages import UploadGrant as UploadGrant
    from renderdispatch.queueing import QueuePolicy as QueuePolicy
    from renderdispatch.queueing import TenantPolicy as TenantPolicy
    from renderdispatch.service import JobHandle as JobHandle
    from renderdispatch.service import RenderService as RenderService
    from renderdispatch.wiring import Settings as Settings
    from renderdispatch.wiring import from_settings as from_settings
    from renderdispatch.wiring import local as local

_NAMES: Final = {
    "aio": "AsyncJobHandle AsyncRenderService",
    "batches": "BatchHandle BatchProgress Submission SubmittedBatch",
    "errors": "ConfigurationError IdempotencyConflictError InvalidRequestError JobCancelledError JobFailedError "
    "JobNotCompleteError JobNotFoundError QueueLimitError RenderDispatchError WaitTimeoutError",
    "failover": "Failover",
    "jobs": "Job",
    "messages": "PRESETS AudioUrl JobStatus Limits Output PollResponse Stage StorageKey UploadGrant",
    "queueing": "QueuePolicy TenantPolicy",
    "service": "JobHandle RenderService",
    "wiring": "Settings from_settings local",
}
_MODULE_OF: Final = {name: module for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:  # type checkers take the imports above
    __all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used: a poll endpoint needs no SQLAlchemy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'renderdispatch' has no attribute {name!r}")
    return getattr(import_module(f"renderdispatch.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(_MODULE_OF)

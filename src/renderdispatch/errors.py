"""Which errors does the library raise?

Each is a `RenderDispatchError` and also the builtin that fits, so that ``except LookupError`` works where it reads
naturally::

    RenderDispatchError
    ├── InvalidRequestError (ValueError)          the request can never succeed
    │   ├── UnknownNameError (LookupError)         no such scene, preset, backend, parameter
    │   └── GpuUnavailableError                    a GPU was required, and there is none
    ├── ConfigurationError (ValueError)           a setting is wrong, or the parts do not fit
    │   └── MissingExtraError (ImportError)        an optional dependency is not installed
    ├── JobNotFoundError (LookupError)
    ├── JobUnreadableError (ValueError)           a newer version wrote its record
    ├── JobExistsError (ValueError)               a job with this id exists already
    ├── RevisionConflictError (RuntimeError)      another process wrote first: read again
    ├── IdempotencyConflictError (ValueError)     the same key was used with another request
    ├── QueueLimitError (RuntimeError)            the tenant has too many jobs; ``retry_after`` says when to try again
    ├── JobNotCompleteError (RuntimeError)        the job has no result: it runs, failed or was cancelled
    │   ├── JobFailedError
    │   ├── JobCancelledError
    │   └── JobExpiredError                        its video is kept no longer
    ├── WaitTimeoutError (TimeoutError)           wait() ran out of time; the job goes on
    ├── StoreUnavailableError (ConnectionError)   the job store does not respond: try again
    ├── StorageError (OSError)
    │   ├── ObjectNotFoundError (FileNotFoundError)
    │   ├── ObjectExistsError (FileExistsError)    a write-once key was written already
    │   ├── StorageDeniedError (PermissionError)
    │   ├── StorageFullError                       no space is left
    │   └── StorageUnavailableError (ConnectionError)
    ├── WebhookVerificationError (ValueError)     a webhook was refused; ``reason`` says why
    ├── BackendError (RuntimeError)               says whether it is retryable and whether the outcome is known
    └── RenderError (RuntimeError)                raised by renderers and the runner: code and fault domain
        ├── AudioError                             the audio cannot be used
        ├── SceneError                             the scene or its parameters are wrong
        ├── RenderStopped                          the run was told to stop
        └── RenderStalled                          the render showed no new frame for too long

Each has a ``code``, a stable string for programs. Messages never contain a secret or a signed URL.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar, Literal


class RenderDispatchError(Exception):
    """The base of all errors. ``code`` is stable; the message is for people."""

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidRequestError(RenderDispatchError, ValueError):
    """The request can never succeed; nothing was recorded."""

    code = "request.invalid"


class UnknownNameError(InvalidRequestError, LookupError):
    """No scene, preset, backend or parameter has this name; the message suggests similar names."""

    code = "request.unknown-name"

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, code: str) -> UnknownNameError:
        """Return the error; its message has similar names, or all names if none is similar."""
        import difflib

        names, name = sorted(known), str(name)[:80]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = "known: " + ", ".join(names) if names else "none is registered"
        if near:
            hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        return cls(f"unknown {kind} {name!r}; {hint}", code=code)


class GpuUnavailableError(InvalidRequestError):
    """`require_gpu=True` was given, and no backend has a GPU for the render."""

    code = "gpu.unavailable"


class ConfigurationError(RenderDispatchError, ValueError):
    """A setting is wrong, or the parts of the service do not fit together; the message says which.

    A job store that cannot be used until somebody acts is ``store.unusable``.
    """

    code = "configuration"


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is missing; the message says which extra installs it."""

    code = "configuration.missing-extra"

    @classmethod
    def of(cls, what: str, extra: str) -> MissingExtraError:
        """Return the error for a feature that needs an extra."""
        return cls(f"{what} needs the '{extra}' extra: pip install 'renderdispatch[{extra}]'")


class JobNotFoundError(RenderDispatchError, LookupError):
    """No job has this id (in this tenant), or the job was deleted."""

    code = "job.not-found"


class JobUnreadableError(RenderDispatchError, ValueError):
    """A newer version wrote the job's record, and this version cannot read it."""

    code = "job.unreadable"


class JobExistsError(RenderDispatchError, ValueError):
    """A job with the same id exists already."""

    code = "job.exists"


class RevisionConflictError(RenderDispatchError, RuntimeError):
    """The record was changed after it was read: read it again and decide again."""

    code = "job.revision-conflict"


class IdempotencyConflictError(RenderDispatchError, ValueError):
    """The idempotency key belongs to a job with another request."""

    code = "job.idempotency-conflict"


class QueueLimitError(RenderDispatchError, RuntimeError):
    """A tenant may submit no more jobs now: ``limit.queued`` or ``limit.rate``. Nothing was recorded.

    Args:
        message: Which limit, and how much of it is used.
        code: ``limit.queued`` or ``limit.rate``.
        retry_after: When a later submit may succeed.
    """

    code = "limit.queued"

    def __init__(self, message: str, *, code: str, retry_after: timedelta) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class JobNotCompleteError(RenderDispatchError, RuntimeError):
    """The job has no result: it still runs, it failed, or it was cancelled."""

    code = "job.not-complete"


class JobFailedError(JobNotCompleteError):
    """The job ended as ``failed``; ``code`` is the job's own ``error.code``."""

    code = "job.failed"


class JobCancelledError(JobNotCompleteError):
    """The job ended as ``cancelled``."""

    code = "job.cancelled"


class JobExpiredError(JobNotCompleteError):
    """The job's retention is over, or it is being deleted: its objects are kept no longer."""

    code = "job.expired"


class WaitTimeoutError(RenderDispatchError, TimeoutError):
    """The wait ended before the job did; the job goes on."""

    code = "wait.timeout"


class StoreUnavailableError(RenderDispatchError, ConnectionError):
    """The job store does not respond. A write may have taken effect. Try again."""

    code = "store.unavailable"


class StorageError(RenderDispatchError, OSError):
    """Object storage failed; the subclasses are what callers can act on."""

    code = "storage.error"


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """No object has this key."""

    code = "storage.not-found"


class ObjectExistsError(StorageError, FileExistsError):
    """The object exists already, and the key is write-once (or ``if_absent`` was given)."""

    code = "storage.exists"


class StorageDeniedError(StorageError, PermissionError):
    """The credentials do not allow it, or a key is outside the storage's root."""

    code = "storage.denied"


class StorageFullError(StorageError):
    """No space is left."""

    code = "storage.full"


class StorageUnavailableError(StorageError, ConnectionError):
    """Storage does not respond, or asks to slow down. Try again."""

    code = "storage.unavailable"


class WebhookRefusal(StrEnum):
    """Why a webhook was refused; the values are stable.

    ``malformed-*`` means that no sender that follows the specification sends such a request. The others can also happen
    to an honest sender: a header was lost, a clock is wrong, a key was rotated.
    """

    MISSING_HEADER = "missing-header"
    DUPLICATE_HEADER = "duplicate-header"
    MALFORMED_HEADER = "malformed-header"
    MALFORMED_ID = "malformed-id"
    MALFORMED_TIMESTAMP = "malformed-timestamp"
    TIMESTAMP_TOO_OLD = "timestamp-too-old"
    TIMESTAMP_TOO_NEW = "timestamp-too-new"
    MALFORMED_SIGNATURE = "malformed-signature"
    UNSUPPORTED_SIGNATURE = "unsupported-signature"
    """All signatures are of versions that are not supported."""
    MALFORMED_AUTHORIZATION = "malformed-authorization"
    MALFORMED_BODY = "malformed-body"
    BODY_TOO_LARGE = "body-too-large"
    UNKNOWN_KEY = "unknown-key"
    WRONG_SIGNATURE = "wrong-signature"
    WRONG_TOKEN = "wrong-token"  # noqa: S105 - the name of a reason, not a secret


class WebhookVerificationError(RenderDispatchError, ValueError):
    """A webhook was refused; do not trust anything in it. ``code`` is ``webhook.`` and the reason."""

    code = "webhook.refused"

    def __init__(self, reason: WebhookRefusal, message: str) -> None:
        super().__init__(message, code=f"webhook.{reason}")
        self.reason = reason


class BackendError(RenderDispatchError, RuntimeError):
    """A backend could not do what it was asked to do.

    Args:
        message: What happened, without secrets.
        retryable: Whether a later, identical call may succeed.
        outcome_known: False if the call may have taken effect, because its response was lost. An unknown outcome is
            never treated as a failure (rule J2).
        code: The stable string for programs.
    """

    code = "backend.error"

    def __init__(self, message: str, *, retryable: bool, outcome_known: bool = True, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable
        self.outcome_known = outcome_known


FaultName = Literal["request", "audio", "scene", "infrastructure", "preemption", "start-timeout", "deadline"]


class RenderError(RenderDispatchError, RuntimeError):
    """A render failed; ``fault`` says whose fault it is.

    Renderers may raise any exception. One that is not a `RenderError` counts as the scene's fault, because the same
    scene would raise it again.
    """

    code = "render.failed"
    fault: ClassVar[FaultName] = "infrastructure"


class AudioError(RenderError):
    """The audio cannot be used: it is not audio, it is empty, or it ends before the range that was asked for."""

    code = "audio.invalid"
    fault = "audio"


class SceneError(RenderError):
    """The scene or its parameters are wrong."""

    code = "scene.failed"
    fault = "scene"


class RenderStopped(RenderError):
    """The service told the run to stop, because the job was cancelled or a newer run took over."""

    code = "render.stopped"


class RenderStalled(RenderError):
    """The render showed no new frame for too long (rule J16). The second time in a job, it is the scene's fault."""

    code = "render.stalled"

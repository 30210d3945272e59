"""What can go wrong, and what is each thing called?

Every error of this library descends from `RenderDispatchError` and is also the apt builtin, so that
``except LookupError`` works where it reads naturally::

    RenderDispatchError
    ├── InvalidRequestError (ValueError)          the request can never be served as it stands
    │   ├── UnknownNameError (LookupError)         no such scene, preset, backend, parameter
    │   └── GpuUnavailableError                    a GPU was required where there is none
    ├── ConfigurationError (ValueError)           the service is put together wrongly
    │   └── MissingExtraError (ImportError)        an optional dependency is not installed
    ├── JobNotFoundError (LookupError)
    ├── JobUnreadableError (ValueError)           its record is one of a newer version
    ├── JobExistsError (ValueError)               create() met a job with that id
    ├── RevisionConflictError (RuntimeError)      somebody else wrote first: read again
    ├── IdempotencyConflictError (ValueError)     the same key came with another request
    ├── JobNotCompleteError (RuntimeError)        the job has no result (yet): it failed, was cancelled or runs
    │   ├── JobFailedError
    │   └── JobCancelledError
    ├── WaitTimeoutError (TimeoutError)           wait() ran out of time; the job goes on
    ├── StoreUnavailableError (ConnectionError)   the job store does not answer: try again
    ├── StorageError (OSError)
    │   ├── ObjectNotFoundError (FileNotFoundError)
    │   ├── ObjectExistsError (FileExistsError)    a write-once key was written before
    │   ├── StorageDeniedError (PermissionError)
    │   ├── StorageFullError                       no space is left
    │   └── StorageUnavailableError (ConnectionError)
    ├── WebhookVerificationError (ValueError)     a webhook was refused; ``reason`` says why
    ├── BackendError (RuntimeError)               says whether it is retryable and whether the outcome is known
    └── RenderError (RuntimeError)                raised by renderers and the runner: code and fault domain
        ├── AudioError                             the sound cannot be used
        ├── SceneError                             the scene is at fault
        └── RenderStopped                          told to stop: cancelled or superseded

Each carries ``code``, a stable string for programs. Messages never carry a secret or a signed URL.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable


class RenderDispatchError(Exception):
    """The root of the tree; ``code`` is stable, the message is for people."""

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class InvalidRequestError(RenderDispatchError, ValueError):
    """The request can never be served as it stands; nothing was recorded."""

    code = "request.invalid"


class UnknownNameError(InvalidRequestError, LookupError):
    """No scene, preset, backend or parameter has this name; the message holds the near matches."""

    code = "request.unknown-name"

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, code: str) -> UnknownNameError:
        """Name the near matches, or everything that is known when nothing is near."""
        import difflib

        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif names:
            hint = "known: " + ", ".join(names)
        else:
            hint = "none is registered"
        return cls(f"unknown {kind} {name[:80]!r}; {hint}", code=code)


class GpuUnavailableError(InvalidRequestError):
    """`require_gpu=True` where no GPU can take the render."""

    code = "gpu.unavailable"


class ConfigurationError(RenderDispatchError, ValueError):
    """The parts do not fit together, or a setting is wrong; the message says which."""

    code = "configuration"


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is missing; the message says which extra brings it."""

    code = "configuration.missing-extra"

    @classmethod
    def of(cls, what: str, extra: str) -> MissingExtraError:
        return cls(f"{what} needs the '{extra}' extra: pip install 'renderdispatch[{extra}]'")


class JobNotFoundError(RenderDispatchError, LookupError):
    """No job has this id (in this tenant), or it was deleted."""

    code = "job.not-found"


class JobUnreadableError(RenderDispatchError, ValueError):
    """This version cannot read the job's record: a newer one wrote it, and goes on with it."""

    code = "job.unreadable"


class JobExistsError(RenderDispatchError, ValueError):
    """`create` met a live job with the same id."""

    code = "job.exists"


class RevisionConflictError(RenderDispatchError, RuntimeError):
    """The record moved on since it was read: read again and decide again."""

    code = "job.revision-conflict"


class IdempotencyConflictError(RenderDispatchError, ValueError):
    """The idempotency key belongs to a job with another request."""

    code = "job.idempotency-conflict"


class JobNotCompleteError(RenderDispatchError, RuntimeError):
    """The job has no result: it still runs, it failed, or it was cancelled."""

    code = "job.not-complete"


class JobFailedError(JobNotCompleteError):
    """The job ended as ``failed``; ``code`` is the job's own ``error.code``."""

    code = "job.failed"


class JobCancelledError(JobNotCompleteError):
    """The job ended as ``cancelled``."""

    code = "job.cancelled"


class WaitTimeoutError(RenderDispatchError, TimeoutError):
    """The wait ended before the job did; the job goes on."""

    code = "wait.timeout"


class StoreUnavailableError(RenderDispatchError, ConnectionError):
    """The job store does not answer; what was to be written may stand all the same. Try again."""

    code = "store.unavailable"


class StorageError(RenderDispatchError, OSError):
    """Object storage refused; see the subclasses for what callers can act on."""

    code = "storage.error"


class ObjectNotFoundError(StorageError, FileNotFoundError):
    """No object stands under this key."""

    code = "storage.not-found"


class ObjectExistsError(StorageError, FileExistsError):
    """The key is write-once (or ``if_absent`` was asked), and an object stands there."""

    code = "storage.exists"


class StorageDeniedError(StorageError, PermissionError):
    """The credentials do not allow it, or a key leaves the storage's root."""

    code = "storage.denied"


class StorageFullError(StorageError):
    """No space is left."""

    code = "storage.full"


class StorageUnavailableError(StorageError, ConnectionError):
    """Storage does not answer, or asks to slow down. Try again."""

    code = "storage.unavailable"


class WebhookRefusal(StrEnum):
    """Why a webhook was refused; the values are stable.

    ``malformed-*`` says that no sender who follows the rules sends such a request. Everything else may
    also happen to an honest one: a lost header, a wrong clock, a key that was rotated away.
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
    """Only signatures of versions that are not understood here."""
    MALFORMED_AUTHORIZATION = "malformed-authorization"
    MALFORMED_BODY = "malformed-body"
    BODY_TOO_LARGE = "body-too-large"
    UNKNOWN_KEY = "unknown-key"
    WRONG_SIGNATURE = "wrong-signature"
    WRONG_TOKEN = "wrong-token"  # noqa: S105 - the name of a reason, no secret


class WebhookVerificationError(RenderDispatchError, ValueError):
    """A webhook was refused; nothing of it may be believed.

    ``code`` is ``webhook.`` and the reason.
    """

    code = "webhook.refused"

    def __init__(self, reason: WebhookRefusal, message: str) -> None:
        super().__init__(message, code=f"webhook.{reason}")
        self.reason = reason


class BackendError(RenderDispatchError, RuntimeError):
    """A backend could not do what it was asked.

    Args:
        message: What happened, without secrets.
        retryable: Whether a later, identical call may succeed.
        outcome_known: False when the call may have taken effect all the same (a lost answer). An
            unknown outcome is never treated as a failure (rule J2).
    """

    code = "backend.error"

    def __init__(self, message: str, *, retryable: bool, outcome_known: bool = True, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retryable = retryable
        self.outcome_known = outcome_known


FaultName = Literal["request", "audio", "scene", "infrastructure", "preemption", "start-timeout", "deadline"]


class RenderError(RenderDispatchError, RuntimeError):
    """What a renderer or the runner raises to say whose fault a failure is.

    A renderer may raise any exception; one that is no `RenderError` counts as the scene's fault, for
    the same scene would raise it again.
    """

    code = "render.failed"
    fault: ClassVar[FaultName] = "infrastructure"


class AudioError(RenderError):
    """The sound cannot be used: not audio, empty, or shorter than the asked range."""

    code = "audio.invalid"
    fault = "audio"


class SceneError(RenderError):
    """The scene is broken, or its parameters are."""

    code = "scene.failed"
    fault = "scene"


class RenderStopped(RenderError):
    """The service said stop (cancelled, or superseded by a newer run); cleans up and unwinds."""

    code = "render.stopped"

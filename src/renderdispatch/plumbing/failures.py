"""What does a foreign error mean here, and whose fault was it?

`translated` turns errors of other libraries into ours; each adapter gives it a table. `job_error` describes an
exception as the error of a job.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

from attrs import frozen

from renderdispatch import errors
from renderdispatch.messages import FaultDomain, JobError

_T = TypeVar("_T")

Translation = Mapping[type[BaseException], Callable[[Any], BaseException]]
"""Foreign classes, each with a function that makes our error. A function that returns its argument lets it pass."""


@frozen
class Translated:
    """Raises our error in the place of a foreign one; see `translated`. It has no state, and can be used many times.

    A class, because a generator would take four times as long, and every statement of a job store is within one.
    """

    table: Translation
    chain: bool | Callable[[Any], BaseException | None] = False

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Raise our error, if the block raised a foreign one."""
        if error is None or (make := nearest(error, self.table)) is None:
            return
        ours = make(error)
        if ours is error:
            return
        cause = self.chain(error) if callable(self.chain) else error if self.chain else None
        # contextlib takes an error that a StopIteration caused for the end of its generator, and drops it
        raise ours from (None if isinstance(cause, StopIteration) else cause)


def translated(table: Translation, *, chain: bool | Callable[[Any], BaseException | None] = False) -> Translated:
    """Raise our error in the place of a foreign one that the block raises. The nearest class of its ancestry decides.

    Args:
        table: The classes, and what each becomes.
        chain: Whether the foreign error stays visible as the cause, or a function that returns the cause. Off by
            default, because its text may hold a URL.
    """
    return Translated(table, chain)


def nearest(error: BaseException, table: Mapping[type[BaseException], _T]) -> _T | None:
    """Return the entry of the nearest class in an exception's ancestry; None where there is none."""
    return next((table[kind] for kind in type(error).__mro__ if kind in table), None)


def job_error(error: BaseException, *, otherwise: FaultDomain) -> JobError:
    """Describe an exception as the error of a job.

    Args:
        error: What was raised.
        otherwise: Whose fault it is if the exception does not say: the scene's while it renders, else the
            infrastructure's.
    """
    said = message = text_of(error)
    match error:
        case errors.RenderError() if error.fault in set(FaultDomain):
            code, fault = str(error.code), FaultDomain(error.fault)
        case errors.InvalidRequestError() | errors.ConfigurationError():
            code, fault = error.code, FaultDomain.REQUEST
        case errors.BackendError():
            code, fault = error.code, FaultDomain.INFRASTRUCTURE if error.retryable else FaultDomain.REQUEST
        case errors.StorageError():
            full = isinstance(error, errors.StorageFullError)
            code, fault = "disk.full" if full else error.code, FaultDomain.INFRASTRUCTURE
        case OSError() if is_disk_full(error):
            code, fault, message = "disk.full", FaultDomain.INFRASTRUCTURE, "no space is left on the disk"
        case MemoryError():
            code, fault, message = "memory.full", FaultDomain.INFRASTRUCTURE, "out of memory"
        case _:
            code, fault = "scene.failed" if otherwise is FaultDomain.SCENE else "internal", otherwise
            message = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return JobError(code=code, message=message, fault=fault)


def is_disk_full(error: OSError) -> bool:
    """Return whether no space is left on a disk, or for this user."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def text_of(error: BaseException) -> str:
    """Return the text of an exception, even if its author's code fails; file names may hold bytes that are not text."""
    try:
        said = str(error)
    except Exception:  # noqa: BLE001 - a description, never an exception
        said = ""
    return said.encode(errors="replace").decode()

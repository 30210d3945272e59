"""How does a job go on from the segments of the one that it repeats?

A retry borrows them. The loan is committed on the older job's record, before the new job is recorded; then no sweep
deletes the pieces while the new job needs them. A job that repeats a repeated one borrows from both: a segment may have
been drawn by either. The borrower reads the pieces, and never writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from renderdispatch import errors
from renderdispatch.engine import layout
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import PiecesLent
from renderdispatch.jobs import URLS_EXPIRED, Job
from renderdispatch.plumbing import pieces
from renderdispatch.protocols import JobStore, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.loans")

_MOST: Final = 4
"""From how many jobs one borrows at most."""

_BEING_RECORDED: Final = timedelta(minutes=10)
"""How long after a loan its borrower may not be recorded yet."""


def lend(store: JobStore, job: Job, to: str) -> str | None:
    """Lend the pieces of an ended job, and what it borrowed itself, to the job that is to repeat it.

    Args:
        store: Where both jobs live.
        job: The older job.
        to: The id of the new one.

    Returns:
        For `Job.borrows` of the new one: the prefix of the newest pieces. None if there is nothing to borrow, or
        another borrower still needs it.

    Raises:
        StoreUnavailableError: The store is away; a second call is safe.
    """
    lent = [layout.all_pieces(layout.prefix_of(each)) for each in _chain(store, job) if _lend(store, each, to)]
    return lent[0] if lent else None


def borrowed(store: JobStore, job: Job) -> list[str]:
    """Return the prefixes of all pieces that a job borrows. Those of a lender that was deleted stay for it, too.

    Raises:
        StoreUnavailableError: The store is away.
    """
    if job.borrows is None:
        return []
    lenders = (each for each in _chain(store, job) if each.id != job.id and each.lent_to == job.id)
    return list(dict.fromkeys([job.borrows, *(layout.all_pieces(layout.prefix_of(each)) for each in lenders)]))


def borrowed_keys(storage: StorageAdapter, prefixes: list[str], picture: str) -> dict[str, str]:
    """Return the keys of the pieces that are there to be borrowed, by names of `renderdispatch.plumbing.pieces`.

    If several jobs lend the same segment, the generations of its names tell the copies apart. Each is checked before it
    is used, so their order means nothing.

    Args:
        storage: Where they are.
        prefixes: From `borrowed`.
        picture: Names the class of device, as of `layout.pieces_prefix`: others drew other bytes.

    Raises:
        StorageError: Storage is away.
    """
    found: dict[str, list[str]] = {}
    for prefix in prefixes:
        for info in storage.list(f"{prefix}{picture}/"):
            piece = info.key.rpartition("/")[2].rpartition(".")[0]
            found.setdefault(piece, []).append(info.key)
    return {
        f"{piece}.{generation}": key
        for piece, keys in found.items()
        for generation, key in enumerate(keys[: pieces.GENERATIONS])
    }


def needed_until(store: JobStore, job: Job, now: datetime) -> datetime | None:
    """Return until when a borrower may read the job's pieces, at the latest; None: none reads them any more.

    A borrower that failed by no fault of its request keeps the loan as long as its own pieces are kept: a retry of it
    goes on from both.

    Raises:
        StoreUnavailableError: The store is away.
    """
    if job.lent_to is None:
        return None
    try:
        borrower = store.get(job.lent_to)
    except errors.JobNotFoundError:
        recorded_by = job.updated_at + _BEING_RECORDED
        return recorded_by if now < recorded_by else None
    except errors.JobUnreadableError:  # a newer version's
        return now + _BEING_RECORDED
    if not borrower.ended:
        return borrower.finish_by + URLS_EXPIRED
    kept_until = borrower.pieces_sweep_at if borrower.pieces_swept_at is None else None
    return kept_until if kept_until is not None and kept_until > now else None


def _lend(store: JobStore, job: Job, to: str) -> bool:
    if not job.owes_pieces or job.pieces_swept_at is not None:
        return False
    before = job.lent_to
    with suppress(errors.JobNotFoundError, errors.JobUnreadableError):
        if before is not None and before != to and not store.get(before).ended:
            _log.info("job %s: its segments are lent to job %s", job.id, before)
            return False
    try:
        return commit(store, job, PiecesLent(to=to, instead_of=before)).job.lent_to == to
    except errors.JobNotFoundError:
        return False


def _chain(store: JobStore, job: Job) -> Iterator[Job]:
    """Yield a job, the job from which it borrows, and so on."""
    for _ in range(_MOST + 1):
        yield job
        if job.borrows is None or job.retry_of is None:
            return
        try:
            job = store.get(job.retry_of)
        except (errors.JobNotFoundError, errors.JobUnreadableError):
            return

"""How are many renders submitted, followed and cancelled together?

`RenderService.submit_many` takes `Submission` values and returns a `SubmittedBatch`. Its jobs share the id of a batch:
`BatchHandle` counts, lists, watches and cancels them, in this process or in any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final, Generic, TypeVar

from attrs import frozen

from renderdispatch.engine.rows import MAX_ROWS, Submission
from renderdispatch.engine.views import Views
from renderdispatch.engine.watching import Pause
from renderdispatch.errors import JobNotFoundError, RenderDispatchError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import Page

__all__ = ["MAX_ROWS", "BatchHandle", "BatchProgress", "Submission", "SubmittedBatch"]

_PAGE: Final = 1000
_LONGEST_PAUSE_S: Final = 2.0
"""How long a watcher waits between two counts while nothing changes: a count costs more than a look at one job."""

_Handle = TypeVar("_Handle")
_Batch = TypeVar("_Batch")


@frozen
class BatchProgress:
    """How far a batch is.

    Args:
        counts: How many of its jobs have each status, every status included.
        seconds_left: How long the rest takes if it goes on as it did since the watching began; None: not known yet.
    """

    counts: Mapping[JobStatus, int]
    seconds_left: float | None = None

    @property
    def total(self) -> int:
        """How many jobs the batch has."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """How many jobs have ended, however they ended."""
        return sum(count for status, count in self.counts.items() if status.terminal)

    @property
    def left(self) -> int:
        """How many jobs have not ended."""
        return self.total - self.ended


@frozen
class SubmittedBatch(Generic[_Handle, _Batch]):
    """What became of the rows of one `submit_many`.

    Args:
        batch: The handle of the batch.
        rows: For each row, in order: the handle of its job, or the error for which it has none.
    """

    batch: _Batch
    rows: tuple[_Handle | RenderDispatchError, ...]

    @property
    def handles(self) -> list[_Handle]:
        """The handles of the rows that have a job."""
        return [row for row in self.rows if not isinstance(row, RenderDispatchError)]

    @property
    def errors(self) -> dict[int, RenderDispatchError]:
        """Why rows have no job, by their numbers from 0."""
        return {number: row for number, row in enumerate(self.rows) if isinstance(row, RenderDispatchError)}


class BatchWatch:
    """Spaces the counts of somebody who watches a batch, and estimates the time that is left."""

    def __init__(self, timeout: float | timedelta | None) -> None:
        self._pause = Pause(timeout, longest_s=_LONGEST_PAUSE_S)
        self._first: tuple[float, int] | None = None

    def seen(self, counts: Mapping[JobStatus, int]) -> BatchProgress:
        """Return how far the batch is."""
        progress, now = BatchProgress(counts), time.monotonic()
        began, ended_before = self._first = self._first or (now, progress.ended)
        ended = progress.ended - ended_before
        return BatchProgress(counts, (now - began) / ended * progress.left if ended > 0 else None)

    def pause_after(self, progress: BatchProgress) -> float:
        """Return the seconds until the next count.

        Raises:
            WaitTimeoutError: Time is up.
        """
        return self._pause.next(dict(progress.counts), f"{progress.left} of {progress.total} jobs have not ended")


class BatchHandle:
    """The jobs of a batch, those of one tenant or of the service without tenants."""

    def __init__(self, batch_id: str, views: Views, cancel: Callable[[Job], Job]) -> None:
        self.id = batch_id
        self._views = views
        self._cancel = cancel

    def __repr__(self) -> str:
        return f"BatchHandle({self.id!r})"

    def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs of the batch have each status; a batch that has no job yet, or no more, has zeros."""
        return self._views.counts(batch=self.id)

    def jobs(
        self, *, status: JobStatus | Iterable[JobStatus] | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Job]:
        """Return a page of the batch's jobs, the last row first, as `RenderService.jobs`."""
        return self._views.page(status, limit=limit, cursor=cursor, batch=self.id)

    def wait(self, timeout: float | timedelta | None = None) -> BatchProgress:
        """Wait for all jobs of the batch to end, however they end. A worker has to run, here or in another process.

        Args:
            timeout: Seconds; None waits until the jobs end, which their deadlines bound.

        Raises:
            WaitTimeoutError: Time is up; the jobs go on.
        """
        for progress in self._counted(timeout):
            last = progress
        return last

    def watch(self, timeout: float | timedelta | None = None) -> Iterator[BatchProgress]:
        """Yield how far the batch is, now and after each change, until all its jobs have ended.

        Raises:
            WaitTimeoutError: Time is up; the jobs go on.
        """
        shown: Mapping[JobStatus, int] | None = None
        for progress in self._counted(timeout):
            if progress.counts != shown:
                shown = progress.counts
                yield progress

    def cancel(self) -> int:
        """Ask all jobs of the batch that have not ended to end, as `RenderService.cancel`; return how many were asked.

        Jobs that are submitted to the batch meanwhile are left alone.
        """
        asked, cursor, more = 0, None, True
        while more:
            page = self.jobs(status=[s for s in JobStatus if not s.terminal], limit=_PAGE, cursor=cursor)
            for job in page.items:
                with suppress(JobNotFoundError):
                    self._cancel(job)
                    asked += 1
            cursor, more = page.cursor, page.cursor is not None
        return asked

    def _counted(self, timeout: float | timedelta | None) -> Iterator[BatchProgress]:
        """Yield the progress repeatedly until all jobs have ended, ever less often while nothing changes."""
        watch = BatchWatch(timeout)
        while True:
            yield (progress := watch.seen(self.counts()))
            if not progress.left:
                return
            time.sleep(watch.pause_after(progress))

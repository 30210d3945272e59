"""At which points of its life is the process killed that works on a job?

A point is a commit, or the call of a backend, and the process dies right before it or right after it. The store and the
backend of this module kill their own process there; they find out from the records which commit it is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from attrs import frozen

from renderdispatch.backends.http import KeyedHttpBackend
from renderdispatch.errors import JobNotFoundError
from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import JobStatus, RenderOrder, Stage
from renderdispatch.protocols import BackendCall, Claim, OnEvent
from renderdispatch.stores.sql import SqlJobStore

When = Literal["before", "after"]


def _entered(stage: Stage) -> Callable[[Job, Job], bool]:
    return lambda old, new: stage in _times(new) and stage not in _times(old)


def _times(job: Job) -> Mapping[Stage, object]:
    return {} if job.attempt is None else job.attempt.stage_times


def _newly(of: Callable[[Job], object]) -> Callable[[Job, Job], bool]:
    return lambda old, new: bool(of(new)) and not of(old)


def _of_attempt(of: Callable[[Attempt], object]) -> Callable[[Job, Job], bool]:
    return _newly(lambda job: job.attempt is not None and of(job.attempt))


COMMITS: Final[Mapping[str, Callable[[Job, Job], bool]]] = {
    "uploading-audio": _entered(Stage.UPLOADING_AUDIO),
    "audio-stored": _newly(lambda job: job.audio is not None),
    "dispatch-intended": _of_attempt(lambda attempt: attempt.called),
    "dispatched": _of_attempt(lambda attempt: attempt.called and attempt.holder is None),
    "checked-in": _of_attempt(lambda attempt: attempt.runs),
    "progressed": _entered(Stage.RENDERING),
    "completed": _newly(lambda job: job.stage is Stage.FINALIZING),
    "video-seen": _newly(lambda job: job.status is JobStatus.COMPLETE),
    "audio-dropped": _newly(lambda job: job.audio_clean_up is CleanUp.DONE),
    "attempt-failed": _newly(lambda job: job.stage is Stage.RETRY_WAIT),
    "job-failed": _newly(lambda job: job.status is JobStatus.FAILED),
    "cleaned-up": _of_attempt(lambda attempt: attempt.clean_up is CleanUp.DONE),
    "cancel-requested": _newly(lambda job: job.stage is Stage.CANCELLING),
    "cancelled": _newly(lambda job: job.status is JobStatus.CANCELLED),
    "expired": _newly(lambda job: job.expired_at is not None),
}
"""Commits of `JobStore.replace`, by what they change. A commit may be several of them."""

POINTS: Final = ("create", "claim", "backend-start", *COMMITS, "delete")


@frozen
class Death:
    """Where the process kills itself; an empty point is nowhere."""

    point: str
    when: When

    def at(self, point: str, when: When) -> None:
        """Die if this is the place."""
        if (point, when) == (self.point, self.when):
            os.kill(os.getpid(), signal.SIGKILL)


class KillingStore(SqlJobStore):
    """A store whose process dies at one of its commits."""

    def __init__(self, url: str, death: Death) -> None:
        super().__init__(url)
        self._death = death

    def create(self, job: Job) -> Job:
        """Store a new job, and die before or after that."""
        self._death.at("create", "before")
        stored = super().create(job)
        self._death.at("create", "after")
        return stored

    def create_many(self, jobs: Sequence[Job], **options: Any) -> list[Any]:
        """Store new jobs, and die before or after that."""
        self._death.at("create", "before")
        stored = super().create_many(jobs, **options)
        self._death.at("create", "after")
        return stored

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Claim, and die before or after the first claim that finds something."""
        if self._death.point == "claim" and self.claimable([claim.backend], machine=claim.machine):
            self._death.at("claim", "before")
        claimed = super().claim(claim, limit=limit)
        if claimed:
            self._death.at("claim", "after")
        return claimed

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store the job, and die before or after the commit of the point."""
        found = self._is_point(job)
        if found:
            self._death.at(self._death.point, "before")
        stored = super().replace(job, expected_revision=expected_revision)
        if found:
            self._death.at(self._death.point, "after")
        return stored

    def _is_point(self, job: Job) -> bool:
        if (changed := COMMITS.get(self._death.point)) is None:
            return False
        try:
            return changed(self.get(job.id), job)
        except JobNotFoundError:
            return False

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Delete the job, and die before or after that."""
        self._death.at("delete", "before")
        deleted = super().delete(job_id, expected_revision=expected_revision)
        self._death.at("delete", "after")
        return deleted


class KillingBackend(KeyedHttpBackend):
    """A backend whose process dies when it starts an order."""

    def __init__(self, url: str, token: str, death: Death) -> None:
        super().__init__(url, token=token, allow_http=True)
        self._death = death

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the order, and die before or after that."""
        self._death.at("backend-start", "before")
        call = super().start(order, on_event=on_event)
        self._death.at("backend-start", "after")
        return call

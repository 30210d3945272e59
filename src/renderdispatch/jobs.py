"""What is a job?

A value: the request, the stage, the attempts and the end. `renderdispatch.engine.transitions` says what may happen to
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from attrs import field, frozen

from renderdispatch import messages

CHECK_INTERVAL: Final = timedelta(seconds=15)
"""How long a remote attempt may be silent before the reconciler polls its backend."""


class CleanUp(StrEnum):
    """Whether an ended attempt may still compute, or has objects that are to be deleted."""

    NONE = "none"
    OWED = "owed"
    DONE = "done"


@frozen(kw_only=True)
class Attempt:
    """One try at a job, fenced by a token of its own.

    Args:
        number: 1 for the first.
        token: The fence. Events with another token are superseded.
        backend: The name of the backend that renders it.
        local: Whether computing ends with its holder (inline and local backends).
        claimed_at: When it began.
        holder: Who holds the lease; None if no holder is needed (remote, after dispatch).
        lease_until: When the lease lapses unless it is renewed, by the store's clock.
        called: Whether the backend may have been called. Committed before the call (rule J2).
        call_id: The backend's id of the call; None while unknown.
        runs: The ids of the runs that checked in, oldest first. The last one owns the attempt.
        start_by: When the first check-in is due.
        video_key: Where the run stores the video; None before the dispatch.
        result_key: Where the run stores the result object; None before the dispatch.
        frames: Frames rendered so far.
        frames_total: Frames in all.
        stage_times: When each stage was first entered.
        ended_at: When it ended; None while it runs.
        error: Why it failed.
        stopped: Whether its computing is known to have stopped.
        clean_up: Whether its call and its objects are still to be cleaned up.
    """

    number: int
    token: str = field(repr=False)
    backend: str
    local: bool
    claimed_at: datetime
    holder: str | None = None
    lease_until: datetime | None = None
    called: bool = False
    call_id: str | None = None
    runs: tuple[str, ...] = ()
    start_by: datetime | None = None
    video_key: str | None = None
    result_key: str | None = None
    frames: int | None = None
    frames_total: int | None = None
    stage_times: Mapping[messages.Stage, datetime] = field(factory=dict)
    ended_at: datetime | None = None
    error: messages.JobError | None = None
    stopped: bool = False
    clean_up: CleanUp = CleanUp.NONE


@frozen(kw_only=True)
class Job:
    """The record of a job; a value, so a change is a new `Job`.

    Args:
        incarnation: A random name for this life of the id: if the job is deleted and its id is created again, the new
            job has another one. The keys of the job's objects hold it (rule J15).
        fingerprint: Identifies the request: a repeated idempotency key must come with the same one (rule J9).
        retry_of: The id of the job that this one repeats.
        progress: 0 to 100; never falls within an attempt.
        ready_at: The earliest time at which a dispatcher may claim it; None if it is not claimable.
        finish_by: When it fails unless it has ended.
        audio: The audio in storage; None before it is stored.
        audio_clean_up: Whether the stored copy of a local file is still to be deleted.
        compute_stopped_at: When a cancelled job's computing stopped; None if that is not known.
        finalizing_at: When a delivery was reported; None before that.
        revision: Rises by one at each write; set by the store.
        protocol: The protocol of the version that wrote the record; set by the store. Older versions leave it alone.
    """

    id: str
    incarnation: str
    tenant: str | None = None
    request: messages.RenderRequest
    fingerprint: str
    priority: int = 0
    retry_of: str | None = None
    created_at: datetime
    updated_at: datetime
    finish_by: datetime
    ready_at: datetime | None
    status: messages.JobStatus = messages.JobStatus.PENDING
    stage: messages.Stage = messages.Stage.QUEUED
    progress: float = 0.0
    audio: messages.StoredAudio | None = None
    audio_clean_up: CleanUp = CleanUp.NONE
    attempts: tuple[Attempt, ...] = ()
    error: messages.JobError | None = None
    artifact: messages.Artifact | None = None
    cancel_requested_at: datetime | None = None
    compute_stopped_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime | None = None
    revision: int = 0
    protocol: int = messages.PROTOCOL

    @property
    def attempt(self) -> Attempt | None:
        """The current attempt: the newest one, running or ended."""
        return self.attempts[-1] if self.attempts else None

    @property
    def ended(self) -> bool:
        """Whether the job has ended, however it ended."""
        return self.status.terminal

    @property
    def machine(self) -> str | None:
        """The only machine whose workers may claim this job, because its audio is a file there; None: any machine."""
        audio = self.request.audio
        return audio.machine if isinstance(audio, messages.LocalAudio) and self.audio is None else None

    @property
    def owes_clean_up(self) -> bool:
        """Whether an ended attempt or the copy of a local file is still to be cleaned up."""
        return self.audio_clean_up is CleanUp.OWED or any(a.clean_up is CleanUp.OWED for a in self.attempts)

    @property
    def due_at(self) -> datetime | None:
        """When to reconcile this job next; None: never."""
        if self.ended:
            return self.updated_at if self.owes_clean_up else None
        if self.owes_clean_up or self.stage in {messages.Stage.FINALIZING, messages.Stage.CANCELLING}:
            return self.updated_at
        attempt = self.attempt
        if self.ready_at is not None or attempt is None:
            return self.finish_by
        if attempt.lease_until is not None:
            return min(attempt.lease_until, self.finish_by)
        return min(self.updated_at + CHECK_INTERVAL, self.finish_by)

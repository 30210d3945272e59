"""What is a job?

A value: the request, where it stands, its attempts, and how it ended. `renderdispatch.engine.transitions` says what may
happen to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from attrs import field, frozen

from renderdispatch import messages

CHECK_INTERVAL: Final = timedelta(seconds=15)
"""How long a remote attempt may be silent before the reconciler asks its backend."""


class CleanUp(StrEnum):
    """Whether something of an ended attempt may still run or lie about."""

    NONE = "none"
    OWED = "owed"
    DONE = "done"


@frozen(kw_only=True)
class Attempt:
    """One try at a job, fenced by a token of its own.

    Args:
        number: 1 for the first.
        token: The fence; events of another attempt are superseded.
        backend: The name of the backend that renders it.
        local: Whether computing ends with its holder (inline and local backends).
        holder: Who holds the lease, None where nobody has to (remote, after dispatch).
        lease_until: When the lease lapses unless it is renewed, by the store's clock.
        called: Whether the backend may have been called: committed before it is (rule J2).
        call_id: The backend's name for the call, None while unknown.
        runs: The run ids that checked in, oldest first; the last one owns the attempt.
        start_by: When the first check-in is due.
        frames: Frames rendered so far.
        frames_total: Frames in all.
        stage_times: When each stage was first entered.
        error: Why it failed.
        stopped: Whether it is known that nothing of it computes any more.
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
        incarnation: Names this life of the id, at random: a job that is created after a delete has another one. Its
            objects stand under it (rule J15).
        progress: 0 to 100; never falls within an attempt.
        ready_at: From when a dispatcher may claim it; None when it is not claimable.
        finish_by: When it fails unless it has ended.
        audio: The audio in storage, once it is there.
        audio_clean_up: Whether the stored copy of a local file is still to be deleted.
        compute_stopped_at: When a cancelled job's computing stopped; None where that is not known.
        revision: Rises by one at each write; set by the store.
        protocol: Of the version that wrote the record; set by the store. Versions with a lower one leave it alone.
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
        return self.status.terminal

    @property
    def machine(self) -> str | None:
        """The machine whose workers alone may claim this job, for they alone can read its file."""
        audio = self.request.audio
        return audio.machine if isinstance(audio, messages.LocalAudio) and self.audio is None else None

    @property
    def owes_clean_up(self) -> bool:
        return self.audio_clean_up is CleanUp.OWED or any(a.clean_up is CleanUp.OWED for a in self.attempts)

    @property
    def due_at(self) -> datetime | None:
        """When the reconciler should look at this job; None when it never needs to."""
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

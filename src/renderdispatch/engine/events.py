"""What can happen to a job?

The events that the GPU side reports cross the network, so they are in `messages`: `CheckedIn`, `Progressed`,
`Completed`, `Failed`. Clients, the dispatcher and the reconciler make the events of this module, which never leave the
process.
"""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from renderdispatch.messages import Artifact, CheckedIn, Completed, Failed, JobError, Progressed, Stage, StoredAudio


@frozen(kw_only=True)
class CancelRequested:
    """A client wants the job to end."""


@frozen(kw_only=True)
class Claimed:
    """A dispatcher takes a ready job, and a new attempt begins."""

    token: str = field(repr=False)
    holder: str
    lease_until: datetime
    backend: str
    local: bool


@frozen(kw_only=True)
class LeaseRenewed:
    """The holder is alive."""

    token: str = field(repr=False)
    holder: str
    lease_until: datetime


@frozen(kw_only=True)
class StageEntered:
    """The dispatcher enters ``uploading-audio`` or ``generating-url``."""

    token: str = field(repr=False)
    stage: Stage


@frozen(kw_only=True)
class AudioStored:
    """The audio is stored. A URL that it came from is no longer needed (rule J10)."""

    token: str = field(repr=False)
    audio: StoredAudio


@frozen(kw_only=True)
class DispatchIntended:
    """The backend is about to be called (rule J2)."""

    token: str = field(repr=False)
    video_key: str
    result_key: str
    start_by: datetime


@frozen(kw_only=True)
class Dispatched:
    """The backend accepted the order."""

    token: str = field(repr=False)
    call_id: str | None


@frozen(kw_only=True)
class AttemptFailed:
    """The attempt has ended, and its run did not report that.

    ``stopped``: its computing is known to have stopped.
    """

    token: str = field(repr=False)
    error: JobError
    stopped: bool


@frozen(kw_only=True)
class LeaseLapsed:
    """The lease until ``lease_until`` was not renewed in time.

    The rule compares no clocks. It applies only if the attempt still has exactly this lease (rule J13).
    """

    token: str = field(repr=False)
    lease_until: datetime


@frozen(kw_only=True)
class CallMissing:
    """The backend is able to find calls, and this one does not exist."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class ResultFound:
    """Storage has the result object, which is the attempt's commit point, whichever run wrote it."""

    token: str = field(repr=False)
    artifact: Artifact


@frozen(kw_only=True)
class VideoSeen:
    """Storage has the video, with this size in bytes (and this etag, if it has etags)."""

    token: str = field(repr=False)
    size: int
    etag: str | None = None


@frozen(kw_only=True)
class VideoMissing:
    """Storage responds, and does not have the video."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class CancelConfirmed:
    """The cancel reached the backend. ``stopped``: computing is known to have stopped."""

    token: str = field(repr=False)
    stopped: bool


@frozen(kw_only=True)
class CleanedUp:
    """An ended attempt's call is stopped, and its objects are deleted."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class AudioDropped:
    """The stored copy of a local file is deleted."""


@frozen(kw_only=True)
class ClockAdvanced:
    """Time has passed; check the deadlines."""


RunEvent = CheckedIn | Progressed | Completed | Failed
AttemptEvent = (
    LeaseRenewed
    | StageEntered
    | AudioStored
    | DispatchIntended
    | Dispatched
    | AttemptFailed
    | LeaseLapsed
    | CallMissing
    | ResultFound
    | VideoSeen
    | VideoMissing
    | CancelConfirmed
)
JobEvent = RunEvent | AttemptEvent | CancelRequested | Claimed | CleanedUp | AudioDropped | ClockAdvanced

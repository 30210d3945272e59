"""What can happen to a job?

What the GPU side reports is in `messages` (`CheckedIn`, `Progressed`, `Completed`, `Failed`): it crosses the network.
The events here never leave the process; clients, the dispatcher and the reconciler make them.
"""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen

from renderdispatch.messages import Artifact, CheckedIn, Completed, Failed, JobError, Progressed, Stage, StoredAudio


@frozen(kw_only=True)
class AttemptEvent:
    """Something that happened to one attempt, named by its token: the fence (rule J1)."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class CancelRequested:
    """A client wants the job to end."""


@frozen(kw_only=True)
class Claimed:
    """A dispatcher takes a ready job: a new attempt begins."""

    token: str = field(repr=False)
    holder: str
    lease_until: datetime
    backend: str
    local: bool


@frozen(kw_only=True)
class LeaseRenewed(AttemptEvent):
    """The holder is alive."""

    holder: str
    lease_until: datetime


@frozen(kw_only=True)
class StageEntered(AttemptEvent):
    """The dispatcher moves on: ``uploading-audio`` or ``generating-url``."""

    stage: Stage


@frozen(kw_only=True)
class AudioStored(AttemptEvent):
    """The audio stands in storage; a URL it came from is forgotten (rule J10)."""

    audio: StoredAudio


@frozen(kw_only=True)
class DispatchIntended(AttemptEvent):
    """The backend is about to be called (rule J2)."""

    video_key: str
    result_key: str
    start_by: datetime


@frozen(kw_only=True)
class Dispatched(AttemptEvent):
    """The backend took the order."""

    call_id: str | None


@frozen(kw_only=True)
class AttemptFailed(AttemptEvent):
    """The attempt is over, and no event of the GPU side said so.

    ``stopped`` says that nothing of it computes any more.
    """

    error: JobError
    stopped: bool


@frozen(kw_only=True)
class LeaseLapsed(AttemptEvent):
    """The lease that was seen as ``lease_until`` was not renewed in time.

    The rule compares no clocks: it applies only while that very lease stands (rule J13).
    """

    lease_until: datetime


@frozen(kw_only=True)
class CallMissing(AttemptEvent):
    """The backend can say, and says, that the call does not exist."""


@frozen(kw_only=True)
class ResultFound(AttemptEvent):
    """The result object stands in storage: the attempt's commit point, whichever run wrote it."""

    artifact: Artifact


@frozen(kw_only=True)
class VideoSeen(AttemptEvent):
    """Storage shows the video with this size in bytes (and etag, where it has one)."""

    size: int
    etag: str | None = None


@frozen(kw_only=True)
class VideoMissing(AttemptEvent):
    """Storage answers, and has no such video."""


@frozen(kw_only=True)
class CancelConfirmed(AttemptEvent):
    """The cancel reached the backend; ``stopped`` says that nothing computes any more."""

    stopped: bool


@frozen(kw_only=True)
class CleanedUp:
    """An ended attempt's call is stopped and its objects are gone."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class AudioDropped:
    """The stored copy of a local file is gone."""


@frozen(kw_only=True)
class ClockAdvanced:
    """Time passed: deadlines are looked at."""


RunEvent = CheckedIn | Progressed | Completed | Failed
JobEvent = RunEvent | AttemptEvent | CancelRequested | Claimed | CleanedUp | AudioDropped | ClockAdvanced

"""What can happen to a job?

The events that the GPU side reports cross the network, so they are in `messages`: `CheckedIn`, `Progressed`,
`Completed`, `Failed`. Clients, the dispatcher and the reconciler make the events of this module, which never leave the
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

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
    """A dispatcher takes a ready job, and a new attempt begins."""

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
    """The dispatcher enters ``uploading-audio`` or ``generating-url``."""

    stage: Stage


@frozen(kw_only=True)
class AudioStored(AttemptEvent):
    """The audio is stored. A URL that it came from is no longer needed (rule J10)."""

    audio: StoredAudio


@frozen(kw_only=True)
class AttachmentsStored(AttemptEvent):
    """Files beside the audio that lie on this machine are stored: cover, scene file, images.

    ``stored`` holds them by the names of `RenderRequest.attached`.
    """

    stored: Mapping[str, StoredAudio]


@frozen(kw_only=True)
class DispatchIntended(AttemptEvent):
    """The backend is about to be called (rule J2). ``pieces``: the prefix of plan and segments, if they are kept."""

    video_key: str
    result_key: str
    start_by: datetime
    pieces: str | None = None


@frozen(kw_only=True)
class PlanSeen(AttemptEvent):
    """The plan of the attempt's video is kept: its helpers may be started. A report of its run says the same."""


@frozen(kw_only=True)
class SegmentsSeen(AttemptEvent):
    """Storage lists so many segments of the attempt's video."""

    standing: int


@frozen(kw_only=True)
class HelperStarting(AttemptEvent):
    """The backend is about to be called for a helper (rule J2)."""

    helper: str = field(repr=False)


@frozen(kw_only=True)
class HelperStarted:
    """The backend started a helper, or found its call. The attempt may have ended: its helpers are then stopped."""

    token: str = field(repr=False)
    helper: str = field(repr=False)
    call_id: str


@frozen(kw_only=True)
class HelperStopped:
    """A helper computes no more, or was not started and never will be. The attempt may have ended."""

    token: str = field(repr=False)
    helper: str = field(repr=False)


@frozen(kw_only=True)
class Dispatched(AttemptEvent):
    """The backend accepted the order."""

    call_id: str | None


@frozen(kw_only=True)
class AttemptFailed(AttemptEvent):
    """The attempt has failed, and its run did not report that.

    ``stopped``: its computing is known to have stopped. ``refused``: its backend refused to start it.
    """

    error: JobError
    stopped: bool
    refused: bool = False


@frozen(kw_only=True)
class Rerouted:
    """The policy chose the backend of the next attempt. ``after``: the token of the attempt by which it chose."""

    after: str = field(repr=False)
    backend: str


@frozen(kw_only=True)
class LeaseLapsed(AttemptEvent):
    """The lease until ``lease_until`` was not renewed in time.

    The rule compares no clocks. It applies only if the attempt still has exactly this lease (rule J13).
    """

    lease_until: datetime


@frozen(kw_only=True)
class LeaseDoubted(AttemptEvent):
    """By the clock the lease until ``lease_until`` is over; its holder has one more lease to renew it.

    For processes that live too short to watch it for so long: ``seen`` tells a later one since when it is doubted.
    """

    lease_until: datetime
    seen: str


@frozen(kw_only=True)
class CallMissing(AttemptEvent):
    """The backend is able to find calls, and this one does not exist."""


@frozen(kw_only=True)
class ResultFound(AttemptEvent):
    """Storage has the result object, which is the attempt's commit point, whichever run wrote it."""

    artifact: Artifact


@frozen(kw_only=True)
class ResultMissing(AttemptEvent):
    """Storage responds, and has no result object of an attempt on which a verdict was given before."""


@frozen(kw_only=True)
class StorageSilent(AttemptEvent):
    """Storage was asked about the attempt, and did not respond."""


@frozen(kw_only=True)
class VideoSeen(AttemptEvent):
    """Storage has the video, with this size in bytes (and this etag, if it has etags)."""

    size: int
    etag: str | None = None


@frozen(kw_only=True)
class VideoMissing(AttemptEvent):
    """Storage responds, and does not have the video."""


@frozen(kw_only=True)
class CancelConfirmed(AttemptEvent):
    """The cancel reached the backend. ``stopped``: computing is known to have stopped."""

    stopped: bool


@frozen(kw_only=True)
class CallStopped:
    """The computing of an attempt that failed is known to have stopped."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class Swept:
    """The objects of an ended attempt are deleted, and it may still write more."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class CleanedUp:
    """An ended attempt's call is stopped, and its objects are deleted."""

    token: str = field(repr=False)


@frozen(kw_only=True)
class AudioDropped:
    """The stored copy of a local file is deleted."""

    key: str


@frozen(kw_only=True)
class Expired:
    """An ended job is kept no longer: its retention is over, or a client deletes it."""


@frozen(kw_only=True)
class ClockStepped:
    """The clock moved on while no time passed, or was set back: the deadlines move along (rule J13)."""

    by: timedelta


@frozen(kw_only=True)
class ClockAdvanced:
    """Time has passed; check the deadlines."""


@frozen(kw_only=True)
class PiecesLent:
    """The job that repeats this one is to read its plan and segments. ``instead_of``: who had them before."""

    to: str
    instead_of: str | None = None


@frozen(kw_only=True)
class PiecesNeeded:
    """The job to which they are lent still needs them: until then nothing is to be deleted, or asked."""

    until: datetime


@frozen(kw_only=True)
class PiecesSwept:
    """Plans, segments and grants of an ended job are about to be deleted. ``lent_to``: who needs them no longer."""

    lent_to: str | None = None


@frozen(kw_only=True)
class PiecesGone:
    """They are deleted, and no upload of them can be under way."""


RunEvent = CheckedIn | Progressed | Completed | Failed
HelperEnd = HelperStarted | HelperStopped
PiecesEvent = PiecesLent | PiecesNeeded | PiecesSwept | PiecesGone
CleanUpEvent = CallStopped | Swept | CleanedUp | AudioDropped | Expired | HelperEnd | PiecesEvent
JobEvent = RunEvent | AttemptEvent | CancelRequested | Claimed | Rerouted | CleanUpEvent | ClockStepped | ClockAdvanced

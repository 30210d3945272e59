"""What must a store, a storage, a backend, a renderer and a fetcher promise?

Each docstring is the specification that a contract suite in `renderdispatch.testing` tests. All calls block. All
implementations are safe to share between threads. ``Supports*`` are optional powers, found by ``isinstance``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

from attrs import evolve, field, frozen
from pydantic import JsonValue

from renderdispatch import messages
from renderdispatch.errors import RenderDispatchError
from renderdispatch.jobs import Job
from renderdispatch.queueing import QueuePolicy


class Locality(IntEnum):
    """How far a storage's URLs reach, or how far away a backend renders.

    A backend can render for a storage whose URLs reach at least as far as the backend is away.
    """

    PROCESS = 0
    MACHINE = 1
    WORLD = 2


# --- job stores -----------------------------------------------------------------------------------


_T = TypeVar("_T")


@frozen
class Page(Generic[_T]):
    """Some items, and the cursor of the next page (None at the end)."""

    items: tuple[_T, ...]
    cursor: str | None = None


@frozen(kw_only=True)
class JobQuery:
    """Which jobs, in which order. A job matches if it meets all conditions; None is no condition.

    Args:
        order: ``newest``: by creation, newest first. ``ready``: only jobs with ``ready_at`` at or before
            ``ready_by``, highest priority first, then longest ready. ``due``: only jobs with ``due_at`` at or
            before ``due_by``, longest due first. ``leased``: only jobs with ``lease_until`` at or before ``due_by``,
            the soonest first. ``ended``: only jobs that were created and ended at or before ``due_by`` and have
            not expired, the oldest first. Ties are broken by id.
        tenant: Only this tenant's jobs.
        statuses: Only jobs in one of these.
        backends: Only jobs whose next attempt waits for one of these.
        batch: Only jobs of this batch.
        machine: With ``ready``: also jobs that only this machine may claim. None: only jobs that any machine may claim.
        limit: The most items a page holds, 1 to 1000.
        cursor: From the previous page of the same query.
    """

    order: Literal["newest", "ready", "due", "leased", "ended"] = "newest"
    tenant: str | None = None
    statuses: frozenset[messages.JobStatus] | None = None
    backends: frozenset[str] | None = None
    batch: str | None = None
    machine: str | None = None
    ready_by: datetime | None = None
    due_by: datetime | None = None
    limit: int = 100
    cursor: str | None = None


class JobStore(Protocol):
    """A map from job id to record. Records change by compare-and-swap alone.

    What a call returned is durable, and every later call of every process that shares the store sees it. Every call
    raises `StoreUnavailableError` while the store is away. The store writes ``Job.protocol`` and leaves records with a
    newer protocol alone.
    """

    def create(self, job: Job) -> Job:
        """Store a new job and return it as stored, with its ``revision`` set.

        Atomic: of several creates of one id, one succeeds. After `delete`, the id may be created again. Its revision is
        then higher than every revision of the deleted job, so a writer that still holds one of those is refused.

        Raises:
            JobExistsError: A job with this id exists.
        """

    def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: The job does not exist, or was deleted.
            JobUnreadableError: A newer version wrote its record.
        """

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store ``job`` over the revision ``expected_revision``; return it with its new revision, one higher.

        Atomic: of several replaces of one revision, one succeeds.

        Raises:
            RevisionConflictError: The job is at another revision.
            JobNotFoundError: The job does not exist, or was deleted.
            JobUnreadableError: A newer version wrote its record.
        """

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of the jobs that match. Records that cannot be read are left out.

        Walking the pages visits a job exactly once if it matches, and keeps its place in the order, during the walk.

        Raises:
            InvalidRequestError: The cursor belongs to another query or to none, or the limit is not 1 to 1000.
        """

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Delete the job that is at the revision ``expected_revision``; return False if there is no job (any more).

        Atomic: of several deletes and replaces of one revision, one succeeds. A later job of the same id has a higher
        revision, so a delete that comes late never touches it.

        Raises:
            RevisionConflictError: The job is at another revision.
            JobUnreadableError: A newer version wrote its record.
        """

    def now(self) -> datetime:
        """Return the store's time, aware and in UTC: the clock of every transition."""

    def close(self) -> None:
        """Release what the store opened. A second call does nothing."""


def walk(store: JobStore, query: JobQuery) -> Iterator[Job]:
    """Yield the jobs of all pages of a query."""
    while True:
        page = store.query(query)
        yield from page.items
        if page.cursor is None:
            return
        query = evolve(query, cursor=page.cursor)


CLOCK_STEP: Final = timedelta(minutes=1)
"""A record that was written further in the future than this was written before the clock was set back (rule J13)."""


def is_ready(job: Job, now: datetime) -> bool:
    """Return whether a job may be claimed, as `SupportsClaim.claimable` says."""
    if job.ready_at is None or now > job.finish_by:
        return False
    return job.ready_at <= max(now, job.updated_at) or now < job.updated_at - CLOCK_STEP


@frozen(kw_only=True)
class Claim:
    """Who claims jobs, and how their attempts begin.

    Args:
        backend: Where they are to be rendered.
        local: Whether computing ends with its holder.
        holder: The process that will hold the attempts.
        lease: How long an attempt stays the holder's without a renewal.
        machine: The machine of the holder: it may claim jobs whose files lie there. None: only jobs for any machine.
        policy: The tenants' weights, and the limits of running attempts.
        nonce: Random, another one for each claim: the tokens of the attempts are made from it.
    """

    backend: str
    local: bool
    holder: str
    lease: timedelta
    machine: str | None = None
    policy: QueuePolicy = field(factory=QueuePolicy)
    nonce: str = field(factory=lambda: secrets.token_hex(16), repr=False)


@runtime_checkable
class SupportsClaim(Protocol):
    """A store that hands out ready jobs fairly, within limits, each of them once."""

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        """Return which of the backends may have ready jobs for this machine: the others have none, or none that the
        limits allowed a moment ago.

        A job is ready if it does not wait, and it waits from its last write until ``ready_at``. So a job whose
        ``ready_at`` is its ``updated_at`` is always ready, also if the clock was set back since. If the write is
        further in the future than `CLOCK_STEP`, it waits no longer. A job past ``finish_by`` is not ready: a look ends
        it. Nothing is written, but for waits that are over.
        """

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin an attempt of each of at most ``limit`` ready jobs of a backend; return the jobs as they are then.

        Atomic: each attempt begins once, with its token and its lease (`engine.claims.begin`), and counts against the
        limits from then on. Jobs that a newer version wrote, or that cannot be read, are not returned.

        Which jobs: tenants take turns by virtual time. Each claim of a job's first attempt charges its tenant 1 over
        its weight; later attempts cost nothing. The tenant with the least virtual time is next, if it has a ready job
        and is below its limits; ties go by name. A tenant that had no ready job goes on at the larger of its own time
        and that of the last claim. Of a tenant the job with the highest priority is next, then the one that is ready
        for the longest time, then by id.
        """


LOOK_PAUSES: Final = tuple(timedelta(seconds=pause) for pause in (0.5, 1.0, 2.0, 5.0, 10.0, 15.0))
"""How long a job is left alone after its first look, its second, and so on while nothing changes."""

LOOK_LEFT: Final = timedelta(seconds=30)
"""How long a job that is due is left to processes that have what it needs (`Job.look_needs`)."""


@runtime_checkable
class SupportsLooks(Protocol):
    """A store of which many processes together look at each due job once, not each of them."""

    def claim_looks(self, *, limit: int, able: Collection[str] | None = None, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, longest due first, and put each one's next look off.

        A job is due at ``Job.due_at``, and again after `LOOK_PAUSES`, or at the next of its deadlines
        (``Job.deadline_at``) if that comes first. A write makes the pauses short again. The record is not changed.

        Atomic: no other call returns the job until then. If the clock was set back, a job is due again at once rather
        than when the clock gets to where it was.

        Args:
            limit: How many jobs at most.
            able: What the process has, of what jobs need (`Job.look_needs`). A job that needs something else is
                returned only if one of its deadlines is over, or it has been due for `LOOK_LEFT`. None: all jobs.
            job_id: Only this job.
        """


@frozen(kw_only=True)
class Quota:
    """What a tenant may submit: as `TenantPolicy` says of ``queued`` and ``submits_per_minute``."""

    queued: int | None = None
    submits_per_minute: int | None = None


@runtime_checkable
class SupportsCreateMany(Protocol):
    """A store that creates many jobs in one transaction, within a tenant's quota."""

    def create_many(
        self, jobs: Sequence[Job], *, quota: Quota | None = None, connection: object = None
    ) -> list[Job | RenderDispatchError]:
        """Create jobs of one tenant; return for each the job as stored, or `JobExistsError`, or `QueueLimitError`.

        Atomic: either all that are returned as stored are durable, or this raises and none is.

        Args:
            jobs: All of the same tenant.
            quota: What the tenant may submit. Concurrent calls never exceed it together. None: no limit.
            connection: A transaction of the application, in the form that the store documents: the jobs are durable
                when the application commits, and never were if it does not.

        Raises:
            ConfigurationError: The store cannot write through this connection.
        """


@runtime_checkable
class SupportsNotify(Protocol):
    """A store that can wake the workers of other processes. Polling finds everything too, later."""

    def notify(self) -> None:
        """Say that there is something to claim, soon and at most 20 times a second. Never raises, never waits."""

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called, from a thread of the store, whenever a process notifies; return what ends that.

        While the connection is away ``wake`` may not be called. Once it is back it is called once.
        """

    @property
    def notifies(self) -> bool:
        """Whether processes are woken at present, so that they need to poll less often."""


@runtime_checkable
class SupportsServerTime(Protocol):
    """A store that can say whose time `now` is. A store that cannot goes by the clock of the machine that asks."""

    @property
    def server_time(self) -> bool:
        """Whether `now` is the clock of a server that all processes share: it is not set, and does not sleep."""


MAX_POSITION: Final = 1000
"""Up to which place a queue is counted. A place above it means: more than so many."""


@runtime_checkable
class SupportsCounts(Protocol):
    """A store that counts jobs without reading every record."""

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[messages.JobStatus, int]:
        """Return how many jobs have each status, every status included. Of a batch, if one is named."""

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return 1 for the job that is claimed next for its backend, and so on; None for a job that is not claimable.

        It is the place in the order of `SupportsClaim.claim`, if nothing else is submitted, no tenant is at a limit,
        and all machines claim alike. Exact up to `MAX_POSITION`; one more means: more than so many. It may be off by a
        few where jobs without a tenant wait beside jobs that several draw (`Job.parallel`).
        """


# --- storage --------------------------------------------------------------------------------------

Source = bytes | Path | BinaryIO | Iterable[bytes]
"""What `put` reads: bytes, a file's path, an open binary file (from its position), or chunks."""


@frozen(kw_only=True)
class ObjectInfo:
    """An object's key, its size in bytes, and its etag and time if the storage has them."""

    key: str
    size: int
    etag: str | None = None
    modified_at: datetime | None = None


class StorageAdapter(Protocol):
    """A map from key to bytes, with signed URLs. It holds audio and video.

    Keys are relative, ``/``-separated, of at most 1,024 bytes of UTF-8. Empty keys, empty parts, a leading slash,
    ``.`` and ``..`` as parts, backslashes and control characters raise `StorageDeniedError` in every call. Memory is
    bounded, whatever the object's size. While storage is away, calls raise `StorageUnavailableError`.
    """

    @property
    def locality(self) -> Locality:
        """How far this storage's signed URLs reach."""

    def put(
        self, key: str, source: Source, *, content_type: str = "application/octet-stream", if_absent: bool = False
    ) -> ObjectInfo:
        """Write an object, whole or not at all. Readers see the old one or the new one, never a part.

        The source's file is not changed. A source that raises leaves no trace.

        Raises:
            ObjectExistsError: ``if_absent`` is set, and the object exists. Atomic: of several such puts of one key,
                one succeeds.
            StorageFullError: No space is left.
        """

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for streamed reading.

        Raises:
            ObjectNotFoundError: No object has this key. Raised here, not at the first read.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Describe the object as the last finished `put` left it.

        Raises:
            ObjectNotFoundError: No object has this key.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose keys start with ``prefix`` (any string, "" for all), sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object, if it exists."""

    def delete_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with ``prefix``; return their number.

        Raises:
            StorageDeniedError: The prefix is empty.
        """

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        """Return a URL that reads the object for a while, without credentials. The object need not exist yet.

        Raises:
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days.
        """

    def sign_put(
        self, key: str, *, expires_in: timedelta, content_type: str, size: int | None = None
    ) -> messages.SignedPut:
        """Return a write-once upload: one PUT of at most 5 GiB, refused if the object exists.

        The sender sends exactly the returned headers. If ``size`` is given, an upload of another size in bytes is
        refused.

        Raises:
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days.
        """

    def close(self) -> None:
        """Release what the storage opened. A second call does nothing."""


@runtime_checkable
class SupportsFileNames(Protocol):
    """A storage whose signed URLs can say under which name browsers save an object, whatever its key is.

    Which of the two says it is the storage's own matter: a bucket keeps the name with the object when it is uploaded, a
    server of files takes it from the URL that reads. So give it to both. A name is one part of a path: text without
    slashes and control characters, of at most 255 bytes.
    """

    names_files: bool
    """Whether it does. Subclasses that override one of the methods without ``file_name`` set this to False."""

    def sign_get(self, key: str, *, expires_in: timedelta, file_name: str | None = None) -> str:
        """Return a URL that reads the object, as `StorageAdapter.sign_get`."""

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
        file_name: str | None = None,
    ) -> messages.SignedPut:
        """Return a write-once upload, as `StorageAdapter.sign_put`."""


# --- backends -------------------------------------------------------------------------------------


@frozen
class BackendCall:
    """A started order, by the backend's own id."""

    id: str


class CallStatus(StrEnum):
    """Whether a call runs."""

    RUNNING = "running"
    ENDED = "ended"
    MISSING = "missing"
    """It never existed, or its result is no longer kept."""


@frozen(kw_only=True)
class CallState:
    """The result of polling a call.

    Args:
        status: Whether it runs.
        outcome: With ``ended``: what the run returned, if it returned.
        error: With ``ended`` and no outcome: the cause, as far as the backend knows.
    """

    status: CallStatus
    outcome: messages.Completed | messages.Failed | None = None
    error: messages.JobError | None = None


OnEvent = Callable[[messages.RenderEvent], messages.EventReply]
"""Takes an event and returns the reply. It raises if the event could not be taken; then send it again."""


@runtime_checkable
class RenderBackend(Protocol):
    """Turns an order into a running render.

    Every call raises `BackendError`, which says whether it is retryable and whether the outcome is known. After any
    other exception, and after a result that this protocol does not allow, the outcome counts as unknown.
    """

    @property
    def locality(self) -> Locality:
        """How far away it renders. Below ``WORLD``, computing ends with the process that started it."""

    @property
    def slots(self) -> int | None:
        """How many orders it takes at once; None: no limit of its own."""

    def start(self, order: messages.RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render and return without waiting for it.

        Local backends pass every event of the run to ``on_event``, from a thread of their own, and obey its reply. They
        pass a final event (`Completed` or `Failed`) even if the render process dies before it reports one. Remote
        backends ignore ``on_event``: their runs report to the order's callback.
        """

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of the call, without waiting."""

    def cancel(self, call: BackendCall) -> None:
        """Tell the call to stop computing. A call that has ended or never existed is not an error.

        A call that ran is soon ``ended`` in `poll`.
        """

    def close(self) -> None:
        """Stop what computes here and release everything. A second call does nothing."""


@runtime_checkable
class SupportsFind(Protocol):
    """A backend that can say whether an order's call exists."""

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call that was started for this attempt; None if certainly none was."""


@runtime_checkable
class SupportsHelpers(Protocol):
    """A backend that can draw one video with several calls. One without this power ignores ``parallel``."""

    def start_helper(self, order: messages.HelperOrder) -> BackendCall:
        """Start a helper and return without waiting for it. `poll`, `cancel` and `find` know its call by its token.

        A backend of this machine starts it only if a slot is free now; it never waits. A helper has no outcome: in
        `poll` it is ``ended`` with neither ``outcome`` nor ``error``, unless its order could not be read.

        Raises:
            BackendError: As of `RenderBackend.start`. ``backend.busy``: there is no free slot.
        """


@runtime_checkable
class SupportsCheck(Protocol):
    """A backend that can refuse at submit what it can never render."""

    def check(self, request: messages.RenderRequest) -> None:
        """Raise `InvalidRequestError` for an unknown scene, a bad parameter or a missing GPU."""


@runtime_checkable
class SupportsSceneFiles(Protocol):
    """A renderer that draws files of users, or a backend that has it: it can refuse such a file at submit."""

    def check_scene_file(self, text: str, *, name: str) -> None:
        """Raise `InvalidRequestError` for a file that can never be drawn, as far as its text alone says that.

        Args:
            text: What the file says.
            name: The file's own, for the message.
        """


@runtime_checkable
class SupportsImages(Protocol):
    """A renderer that may draw the images of an order. Of one without this power, requests have none."""

    @property
    def draws_images(self) -> bool:
        """Whether it draws them."""


@runtime_checkable
class SupportsDeviceClass(Protocol):
    """A backend that knows which devices draw for it. Those of one class make the same bytes of the same order."""

    @property
    def device_class(self) -> str | None:
        """Their class, such as ``cpu-x86-64``; None if it is not sure.

        It goes into every order. A scene of NumPy that finds itself on another device fails with ``device.mismatch``.
        """


@runtime_checkable
class SupportsWebhook(Protocol):
    """A local backend whose runs can report to the order's callback, as those of remote backends always do."""

    @property
    def reports_by_webhook(self) -> bool:
        """Whether its runs do so."""


# --- renderers ------------------------------------------------------------------------------------

Report = Callable[[int, int], None]
"""``report(frames_done, frames_total)``: cheap; call it for every frame. Raises `RenderStopped` to end the render."""


@runtime_checkable
class Renderer(Protocol):
    """Turns audio and a scene into a video file. It runs beside the GPU, one render at a time."""

    def render(self, order: messages.RenderOrder, audio: Path, output: Path, report: Report) -> messages.RenderStats:
        """Write the video to ``output`` and return what was made.

        The order's URLs and keys are blank here. The number of frames is ``round(duration x fps)``; the duration is
        that of the decoded samples in the order's range. ``audio`` may be the file that was submitted: only read it.

        Raises:
            AudioError: The sound cannot be used, or is longer than ``order.max_duration`` (``audio.too-long``).
            SceneError: The scene or its parameters are at fault. Any other exception is treated as this one.
            RenderStopped: Raised by ``report``; let it pass. Nothing needs to be kept.
        """


Commit = Literal["committed", "twice", "kept"]
"""What became of a segment that was drawn: it is committed; another one drew it too and was faster; or no slot took it,
so that only the file has it."""


class Slots(Protocol):
    """Where the plan and the segments of one video are kept while it is drawn, each written once.

    What runs a renderer gives it one. Calls block, and may be made from several threads. While storage is away nothing
    is found, and nothing is committed. Every call raises `RenderStopped` once the render is to stop.
    """

    @property
    def count(self) -> int:
        """For how many segments there is a place."""

    @property
    def share(self) -> int:
        """Which segments to draw first: those whose index is this, modulo `parallel`. 0 for the lead."""

    @property
    def parallel(self) -> int:
        """How many draw, with the lead."""

    def read_plan(self, begin: int, size: int) -> bytes | None:
        """Return a part of the plan that is kept, at most ``size`` bytes of it; None: no plan is kept."""

    def put_plan(self, plan: Path) -> bool:
        """Keep a plan; return False if another one is kept, or storage is away. The file is not changed."""

    def is_drawn(self, digest: str, index: int) -> bool:
        """Return whether a segment of the plan with this digest is kept. Only its head is looked at."""

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Keep a segment. The file, whose head says what it is, is not changed."""

    def fetch(self, digest: str, index: int, into: Path) -> bool:
        """Bring a segment that is kept to a new file, and check all of it; return False if none is good.

        A segment that is bad as a whole counts as not drawn from then on.
        """

    def report(self, counts: messages.SegmentCounts, *, planned: bool) -> None:
        """Tell how far the segments are, for the job's progress. ``planned``: the plan is kept."""


@runtime_checkable
class SupportsSegments(Protocol):
    """A renderer that draws videos in segments, so that nothing drawn is lost, and several can draw one video."""

    def render_segments(
        self, order: messages.RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots
    ) -> messages.RenderStats:
        """Render as `Renderer.render` does, as the lead: take over segments that are kept, and keep what is drawn.

        A scene that cannot be cut is rendered in one piece, with the warning ``parallel.ignored`` if helpers were
        asked for.
        """

    def help(self, order: messages.HelperOrder, folder: Path, report: Report, *, slots: Slots) -> messages.Helped:
        """Draw segments of the plan that is kept until none is missing. If the plan is not ours, draw none.

        Args:
            order: The order, without URLs and keys.
            folder: For temporary files.
            report: Called as for a render; ``frames_total`` may grow.
            slots: Where plan and segments are kept.
        """


@runtime_checkable
class SupportsPreview(Protocol):
    """A renderer that can draw one frame of a video without drawing the others."""

    def preview(
        self, order: messages.RenderOrder, audio: Path, picture: Path, report: Report, *, at: float | None
    ) -> int:
        """Write the frame that a render of this order would show, as PNG or JPEG; return its index.

        Args:
            order: As of `Renderer.render`, and so are ``audio`` and ``report``.
            audio: The song.
            picture: The file; its suffix says what it holds.
            report: Call it while the audio is read and until the frame is reached.
            at: Seconds into the audio, as ``order.start``; None is the brightest moment.

        Raises:
            InvalidRequestError: ``preview.range``: the order's range does not hold the moment.
            RenderDispatchError: As of `Renderer.render`.
        """


@runtime_checkable
class SupportsParams(Protocol):
    """A renderer that checks and describes its parameters."""

    def check_params(self, params: Mapping[str, JsonValue]) -> None:
        """Raise `UnknownNameError` or `InvalidRequestError` for parameters that would fail the render."""

    def describe_params(self) -> Sequence[ParamInfo]:
        """Return the parameters, for help texts."""


@frozen
class ParamInfo:
    """One parameter of a scene, for help texts."""

    name: str
    type: str
    default: str
    help: str


@runtime_checkable
class SupportsGpu(Protocol):
    """A renderer that may draw on a GPU. A renderer without this power does not."""

    def uses_gpu(self) -> bool:
        """Return whether a render started now would draw on a GPU.

        Services ask, and the process that renders asks again. So a service's process must load no driver for the
        answer.
        """


@runtime_checkable
class SupportsGpuReason(Protocol):
    """A renderer that says why it draws on the CPU, for those who required a GPU."""

    def why_no_gpu(self) -> str:
        """Return why a render started now would not draw on a GPU, with the next step."""


@runtime_checkable
class SupportsReadAhead(Protocol):
    """A renderer that says when it reads. One without this power may read the audio at any time."""

    reads_audio_first: bool
    """Whether it has read all of the audio before it reports its first frame: the file may change from then on."""


# --- fetching -------------------------------------------------------------------------------------


@frozen(kw_only=True)
class FetchedAudio:
    """A fetched response: its chunks and its headers."""

    chunks: Iterator[bytes] = field(repr=False)
    content_type: str | None
    filename: str | None


class StopSignal(Protocol):
    """What ends a fetch from another thread; `renderdispatch.plumbing.stop.Stop` is one."""

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline."""

    def on_request(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the fetch is to end, or now if it is already. It may be called twice."""

    def forget(self, callback: Callable[[], None]) -> None:
        """Stop calling ``callback``."""


class AudioFetcher(Protocol):
    """Reads audio from a URL that a stranger may have submitted."""

    def fetch(self, url: str, *, stop: StopSignal | None = None) -> AbstractContextManager[FetchedAudio]:
        """Open the URL for streamed reading. Hosts, redirects, bytes and time are bounded.

        Args:
            url: Where the audio is.
            stop: Ends the fetch soon after a request, whatever the host does meanwhile: it raises
                `StorageUnavailableError`.

        Raises:
            InvalidRequestError: The URL is not allowed; the message never quotes it.
            StorageUnavailableError: The host does not respond.
        """


@runtime_checkable
class SupportsUrlCheck(Protocol):
    """A fetcher that can refuse at submit a URL that it would never fetch."""

    def check(self, url: str) -> None:
        """Raise `InvalidRequestError` for a URL that is not allowed. Look up no name; never quote the URL."""

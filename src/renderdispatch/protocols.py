"""What must a store, a storage, a backend, a renderer and a fetcher promise?

Each docstring is the specification that a contract suite in `renderdispatch.testing` tests. All calls block;
all implementations are safe to share between threads. ``Supports*`` are optional powers, found by
``isinstance``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import BinaryIO, Generic, Literal, Protocol, TypeVar, runtime_checkable

from attrs import evolve, field, frozen
from pydantic import JsonValue

from renderdispatch.jobs import Job
from renderdispatch.messages import (
    Completed,
    EventReply,
    Failed,
    JobError,
    JobStatus,
    RenderEvent,
    RenderOrder,
    RenderRequest,
    RenderStats,
    SignedPut,
)


class Locality(IntEnum):
    """How far something reaches: a storage's URLs, and the place where a backend renders.

    A backend can render for a storage whose URLs reach at least as far as the backend is away.
    """

    PROCESS = 0
    MACHINE = 1
    WORLD = 2


# --- job stores -----------------------------------------------------------------------------------


_T = TypeVar("_T")


@frozen
class Page(Generic[_T]):
    """Some items, and the cursor that asks for those after them (None at the end)."""

    items: tuple[_T, ...]
    cursor: str | None = None


@frozen(kw_only=True)
class JobQuery:
    """Which jobs, in which order. Conditions are joined by "and"; None is no condition.

    Args:
        order: ``newest``: by creation, newest first. ``ready``: only jobs with ``ready_at`` at or before
            ``ready_by``, highest priority first, then longest ready. ``due``: only jobs with ``due_at`` at or
            before ``due_by``, longest due first. Ties are broken by id.
        tenant: Only this tenant's jobs.
        statuses: Only jobs in one of these.
        backends: Only jobs whose request names one of these.
        machine: With ``ready``: also jobs that only this machine may claim; without it, only jobs that any may.
        limit: Items a page, 1 to 1000.
        cursor: From the page before, of the same query.
    """

    order: Literal["newest", "ready", "due"] = "newest"
    tenant: str | None = None
    statuses: frozenset[JobStatus] | None = None
    backends: frozenset[str] | None = None
    machine: str | None = None
    ready_by: datetime | None = None
    due_by: datetime | None = None
    limit: int = 100
    cursor: str | None = None


class JobStore(Protocol):
    """Where jobs live: a map from id to record whose one write is compare-and-swap.

    What a call returned is durable and seen by every later call of every process that shares the store.
    Every call raises `StoreUnavailableError` while the store is away.
    """

    def create(self, job: Job) -> Job:
        """Store a new job and return it as stored, its ``revision`` set.

        Atomic: of several creates of one id, one succeeds. After `delete`, the id may be created again; its revision
        is then higher than any that the deleted job had, so that a writer who still holds the old one is refused.

        Raises:
            JobExistsError: A job with this id stands.
        """

    def get(self, job_id: str) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: There is none, or it was deleted.
            JobUnreadableError: A newer version wrote its record.
        """

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store ``job`` over the revision ``expected_revision``; return it with its new revision, one higher.

        Atomic: of several replaces of one revision, one succeeds.

        Raises:
            RevisionConflictError: The job is at another revision.
            JobNotFoundError: There is no such job (any more).
        """

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of the jobs that match.

        Walking the pages visits every job that matches, and keeps its place in the order, throughout the walk exactly
        once. A cursor of another query, or of none, raises `InvalidRequestError`; so does another limit than 1 to 1000.
        """

    def delete(self, job_id: str) -> bool:
        """Forget the job; return whether there was one. A second call returns False."""

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


@runtime_checkable
class SupportsClaim(Protocol):
    """A store that can hand out ready jobs so that two dispatchers rarely meet at one."""

    def claim(self, *, limit: int, reserve_for: timedelta, backends: Collection[str], machine: str | None) -> list[Job]:
        """Return ready jobs, best first as `JobQuery` orders them, and hide them from other claims for a while.

        Atomic: no other claim returns them until ``reserve_for`` has passed (their ``ready_at`` moves and their
        revision rises). The claimer commits the attempt by `replace`, which is what really takes a job; one that
        dies before that only delays it.
        """


@runtime_checkable
class SupportsCounts(Protocol):
    """A store that counts without reading every record."""

    def counts(self, *, tenant: str | None = None) -> dict[JobStatus, int]:
        """Return how many jobs have each status, every status included."""

    def ahead_of(self, job: Job) -> int:
        """Return how many queued jobs of any tenant come before ``job`` in the order of claims."""


# --- storage --------------------------------------------------------------------------------------

Source = bytes | Path | BinaryIO | Iterable[bytes]
"""What `put` reads: bytes, a file's path, an open binary file (from where it stands), or chunks."""


@frozen(kw_only=True)
class ObjectInfo:
    """What storage says of an object: its size in bytes and, where there is one, its etag."""

    key: str
    size: int
    etag: str | None = None
    modified_at: datetime | None = None


class StorageAdapter(Protocol):
    """Where audio and video live: a map from key to bytes, with signed URLs.

    Keys are relative, ``/``-separated, of at most 1,024 bytes of UTF-8; empty ones, empty parts, a leading slash,
    ``.`` and ``..`` as parts, backslashes and control characters raise `StorageDeniedError` everywhere. Memory is
    bounded whatever the object's size. While storage is away, calls raise `StorageUnavailableError`.
    """

    @property
    def locality(self) -> Locality:
        """How far this storage's signed URLs reach."""

    def put(
        self, key: str, source: Source, *, content_type: str = "application/octet-stream", if_absent: bool = False
    ) -> ObjectInfo:
        """Write an object, whole or not at all; readers see the old one or the new one, never a part.

        A path or file is left as it is; a source that raises leaves no trace.

        Raises:
            ObjectExistsError: ``if_absent`` was asked, and an object stands there. Atomic: of several such
                puts of one key, one succeeds.
            StorageFullError: No space is left.
        """

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for streamed reading.

        Raises:
            ObjectNotFoundError: Nothing stands under this key; raised here, not at the first read.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Return what stands under the key, as the last finished `put` left it.

        Raises:
            ObjectNotFoundError: Nothing does.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose keys start with ``prefix`` (any string, "" for all), sorted by key."""

    def delete(self, key: str) -> None:
        """Remove the object. One that is absent is no error."""

    def delete_prefix(self, prefix: str) -> int:
        """Remove every object whose key starts with ``prefix``; return how many there were.

        Raises:
            StorageDeniedError: The prefix is empty.
        """

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        """Return a URL that reads the object for a while, without credentials. Does not look whether it exists.

        Raises:
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days.
        """

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str, size: int | None = None) -> SignedPut:
        """Return a write-once upload: one PUT of at most 5 GiB, refused where an object stands.

        The sender sends exactly the headers of the answer. ``size`` in bytes is enforced where it is given.

        Raises:
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days.
        """

    def close(self) -> None:
        """Release what the storage opened. A second call does nothing."""


# --- backends -------------------------------------------------------------------------------------


@frozen
class BackendCall:
    """What a backend calls one started order."""

    id: str


class CallStatus(StrEnum):
    """What a backend says of a call."""

    RUNNING = "running"
    ENDED = "ended"
    MISSING = "missing"
    """It never existed, or its result is no longer kept: nothing can be learned here."""


@frozen(kw_only=True)
class CallState:
    """A call, as its backend sees it.

    Args:
        status: Whether it runs.
        outcome: With ``ended``: what the run answered, where it could answer.
        error: With ``ended`` and no outcome: why, as far as the backend knows.
    """

    status: CallStatus
    outcome: Completed | Failed | None = None
    error: JobError | None = None


OnEvent = Callable[[RenderEvent], EventReply]
"""Takes an event and returns the answer; raises when the event was not taken, and is to come again."""


@runtime_checkable
class RenderBackend(Protocol):
    """What turns an order into a running render.

    Every call raises `BackendError`, which says whether it is retryable and whether the outcome is known.
    """

    @property
    def locality(self) -> Locality:
        """How far away it renders. Below ``WORLD``, computing ends with the process that started it."""

    @property
    def slots(self) -> int | None:
        """How many orders it takes at once; None is no limit of its own."""

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start the render and return without waiting for it.

        Local backends hand every event of the run to ``on_event``, from a thread of their own, and obey its answer;
        they hand over a final event (`Completed` or `Failed`) even when the render process dies without a word. Remote
        ones ignore it: their runs report to the order's callback.
        """

    def poll(self, call: BackendCall) -> CallState:
        """Return how the call stands, without waiting."""

    def cancel(self, call: BackendCall) -> None:
        """Tell the call to stop computing. A call that has ended, or never was, is no error.

        After a while `poll` says ``ended``, for calls that ran.
        """

    def close(self) -> None:
        """Stop what computes here and release everything. A second call does nothing."""


@runtime_checkable
class SupportsFind(Protocol):
    """A backend that can say whether an order's call exists."""

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call that was started for this attempt, or None when there surely is none."""


@runtime_checkable
class SupportsCheck(Protocol):
    """A backend that can tell at submit that a request can never be served here."""

    def check(self, request: RenderRequest) -> None:
        """Raise `InvalidRequestError` for an unknown scene, a bad parameter or a GPU that is not there."""


@runtime_checkable
class SupportsWebhook(Protocol):
    """A local backend that can have its runs report to the order's callback, as remote ones always do."""

    @property
    def reports_by_webhook(self) -> bool:
        """Return whether it does."""


# --- renderers ------------------------------------------------------------------------------------

Report = Callable[[int, int], None]
"""``report(frames_done, frames_total)``: cheap, call it for every frame; raises `RenderStopped` when told to stop."""


@runtime_checkable
class Renderer(Protocol):
    """What turns audio and a scene into a video file. Runs beside the GPU, one render at a time."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Write the video to ``output`` and return what was made.

        The order's URLs and keys are blank here. Frames are ``round(duration x fps)``, where the duration is that
        of the decoded samples in the order's range.

        Raises:
            AudioError: The sound cannot be used.
            SceneError: The scene or its parameters are at fault. Any other exception counts as the same.
            RenderStopped: As raised by ``report``; nothing needs to be kept.
        """


@runtime_checkable
class SupportsParams(Protocol):
    """A renderer that knows which parameters it takes."""

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
    """A renderer that can say whether it draws on a GPU; without this power it does not."""

    def uses_gpu(self) -> bool:
        """Return whether a render started now would draw on a GPU."""


# --- fetching -------------------------------------------------------------------------------------


@frozen(kw_only=True)
class FetchedAudio:
    """A fetched response: its chunks, and what it said of itself."""

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
    """What reads audio from a URL that a stranger may have given."""

    def fetch(self, url: str, *, stop: StopSignal | None = None) -> AbstractContextManager[FetchedAudio]:
        """Open the URL for streamed reading, under guard: hosts, redirects, bytes and time are bounded.

        Args:
            url: Where the audio is.
            stop: Ends the fetch soon after a request, whatever the host does meanwhile: it raises
                `StorageUnavailableError`.

        Raises:
            InvalidRequestError: The URL is not allowed; the message never quotes it.
            StorageUnavailableError: The host does not answer.
        """


@runtime_checkable
class SupportsUrlCheck(Protocol):
    """A fetcher that can tell at submit that a URL will never be fetched."""

    def check(self, url: str) -> None:
        """Raise `InvalidRequestError` for a URL that is not allowed, without looking up a name; it is never quoted."""

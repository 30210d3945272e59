"""How does a ready job become a running render?

Claim it, find its audio, bring the audio to storage, sign URLs, commit the intent, call the backend: each step
is committed before the next one, so that a crash between any two leaves a job that another dispatcher takes up
where its lease lapses.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final, assert_never

from renderdispatch.engine import layout
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import (
    AttemptFailed,
    AudioStored,
    CancelConfirmed,
    Claimed,
    ClockAdvanced,
    Dispatched,
    DispatchIntended,
    JobEvent,
    StageEntered,
)
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import Held, LeaseKeeper
from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.errors import (
    AudioError,
    BackendError,
    ConfigurationError,
    InvalidRequestError,
    JobNotFoundError,
    ObjectNotFoundError,
    RenderDispatchError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    Audio,
    Callback,
    FaultDomain,
    JobError,
    LocalAudio,
    ObjectUrls,
    RemoteAudio,
    RenderOrder,
    Stage,
    StoredAudio,
)
from renderdispatch.plumbing.failures import job_error
from renderdispatch.protocols import (
    AudioFetcher,
    BackendCall,
    JobQuery,
    JobStore,
    Locality,
    RenderBackend,
    StorageAdapter,
    SupportsClaim,
    SupportsWebhook,
)

_log: Final = logging.getLogger("renderdispatch.engine.dispatch")

_BATCH: Final = 10
_URL_SLACK: Final = timedelta(minutes=10)
"""How long an order's URLs outlive the job's deadline (rule J10)."""
_MAX_URL: Final = timedelta(days=7)
_CHUNK_BYTES: Final = 1 << 20
_CLAIM_PATIENCE_S: Final = 2.0


class _Unwanted(Exception):
    """The attempt is ours no longer, or was cancelled: whoever prepares it lets go."""


class Dispatcher:
    """Claims jobs and starts them, for one process.

    Args:
        machine: This machine's id, for jobs whose audio lies on it.
        fetcher: What reads audio from URLs; None refuses such jobs.
        threads: Jobs that are prepared at once.
        wake: Called when a job came to an end, or room became free: to look at soon.
        callback: Makes the callback of a job's attempt; None where no webhook reaches this service.
    """

    def __init__(
        self,
        store: JobStore,
        storage: StorageAdapter,
        backends: Mapping[str, RenderBackend],
        keeper: LeaseKeeper,
        inbox: Inbox,
        *,
        machine: str,
        fetcher: AudioFetcher | None = None,
        threads: int = 4,
        wake: Callable[[], None] = lambda: None,
        callback: Callable[[str, int], Callback] | None = None,
    ) -> None:
        self._store = store
        self._storage = storage
        self._backends = backends
        self._keeper = keeper
        self._inbox = inbox
        self._patience_s = keeper.lease.total_seconds()
        self._machine = machine
        self._fetcher = fetcher
        self._wake = wake
        self._callback = callback
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="renderdispatch-dispatch")
        self._threads = threads
        self._lock = threading.Lock()
        self._busy: set[Future[None]] = set()
        self._closing = threading.Event()

    def tick(self) -> int:
        """Claim what is ready and there is room for; return how many jobs were taken."""
        taken = 0
        for name, backend in self._backends.items():
            room = _BATCH if backend.slots is None else backend.slots - self._keeper.count(name)
            room = min(room, self._threads - len(self._preparing()))
            if room > 0:
                for job in self._ready(name, room):
                    taken += self._take(job, name, backend)
        return taken

    def drain(self) -> None:
        """Wait until every job that was taken is dispatched, or failed."""
        while busy := self._preparing():
            wait(busy)

    def close(self) -> None:
        """Let go of the jobs that are being prepared, each at its next step, and take no more."""
        self._closing.set()
        self._keeper.let_go()
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- claiming

    def _ready(self, backend: str, limit: int) -> list[Job]:
        if isinstance(self._store, SupportsClaim):
            return self._store.claim(
                limit=limit, reserve_for=self._keeper.lease, backends=[backend], machine=self._machine
            )
        query = JobQuery(
            order="ready",
            ready_by=self._store.now(),
            backends=frozenset([backend]),
            machine=self._machine,
            limit=limit,
        )
        return list(self._store.query(query).items)

    def _take(self, job: Job, name: str, backend: RenderBackend) -> bool:
        if self._store.now() > job.finish_by:  # it waited too long: nothing is begun that must fail
            with suppress(JobNotFoundError):
                self._persist(job, ClockAdvanced(), patience_s=_CLAIM_PATIENCE_S)
            return False
        claim = Claimed(
            token=secrets.token_hex(16),
            holder=self._keeper.holder,
            lease_until=self._store.now() + self._keeper.lease,
            backend=name,
            local=backend.locality < Locality.WORLD,
        )
        try:
            decision = self._persist(job, claim, patience_s=_CLAIM_PATIENCE_S)
        except JobNotFoundError:
            return False
        attempt = decision.job.attempt
        if attempt is None or attempt.token != claim.token:  # ours also where the answer to a first try was lost
            return False
        held = self._keeper.hold(decision.job)
        future = self._pool.submit(self._prepare, decision.job, held, backend)
        with self._lock:
            self._busy.add(future)
        future.add_done_callback(self._done)
        return True

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            self._busy.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            _log.error("a job could not be dispatched, and its lease will lapse", exc_info=error)
        self._wake()

    def _preparing(self) -> list[Future[None]]:
        with self._lock:
            return list(self._busy)

    def _persist(self, job: str | Job, event: JobEvent, *, patience_s: float) -> Decision:
        """Commit, trying again while the store is away: a hiccup costs no attempt."""
        deadline = time.monotonic() + patience_s
        pause = 0.05
        while True:
            try:
                return commit(self._store, job, event)
            except StoreUnavailableError:
                if self._closing.is_set() or time.monotonic() + pause > deadline:
                    raise
            self._closing.wait(pause)
            pause = min(1.0, 2 * pause)

    # --- preparing

    def _prepare(self, job: Job, held: Held, backend: RenderBackend) -> None:
        """Take a claimed job to the backend; whatever goes wrong becomes the attempt's error."""
        try:
            audio = self._bring_audio(job, held)
            self._commit(held, StageEntered(token=held.token, stage=Stage.GENERATING_URL))
            order = _of_bounded_size(self._order(job, held, audio, backend))
            intent = DispatchIntended(
                token=held.token,
                video_key=order.video.key,
                result_key=order.result.key,
                start_by=order.start_by,
            )
            self._commit(held, intent)
            self._start(held, backend, order)
        except JobNotFoundError:
            self._keeper.release(held.token)
        except _Unwanted:
            self._let_go(held)
        except StoreUnavailableError as error:  # the lease lapses, and another dispatcher goes on
            _log.warning("job %s: the store is away: %s", job.id, error)
            self._keeper.release(held.token)
        except Exception as error:  # noqa: BLE001 - whatever happened, the job must hear of it
            if not isinstance(error, (RenderDispatchError, OSError)):
                _log.exception("job %s: could not be dispatched", job.id)
            self._fail(held, error)
        finally:
            held.preparing = False

    def _let_go(self, held: Held) -> None:
        """Confirm a cancel; an attempt that a closing worker gives up stays held, to be handed back."""
        try:
            self._persist(held.job_id, CancelConfirmed(token=held.token, stopped=True), patience_s=self._patience_s)
        except (JobNotFoundError, StoreUnavailableError) as error:
            _log.warning("job %s: its lease will lapse: %s", held.job_id, error)
        finally:
            if not self._closing.is_set():
                self._keeper.release(held.token)

    def _start(self, held: Held, backend: RenderBackend, order: RenderOrder) -> None:
        try:
            call = backend.start(order, on_event=self._inbox.on_event)
        except BackendError as error:
            if error.outcome_known:
                raise
            # Unknown is not failed (rule J2): a check-in brings the call id, or the start deadline passes.
            _log.warning("job %s: waiting for a sign of life: %s", held.job_id, error)
            self._persist(held.job_id, Dispatched(token=held.token, call_id=None), patience_s=self._patience_s)
            self._keeper.release(held.token)
            return
        held.call = call
        self._dispatched(held, backend, call)

    def _dispatched(self, held: Held, backend: RenderBackend, call: BackendCall) -> None:
        dispatched = Dispatched(token=held.token, call_id=call.id)
        try:
            decision = self._persist(held.job_id, dispatched, patience_s=self._patience_s)
        except JobNotFoundError:
            backend.cancel(call)
            raise
        except StoreUnavailableError:
            if not held.local:  # its check-in brings the call id
                raise
            _log.warning("job %s: the store is away; the render goes on", held.job_id)
            return
        job = decision.job
        unwanted = decision.verdict is Verdict.SUPERSEDED or job.stage is Stage.CANCELLING
        if unwanted:
            try:
                backend.cancel(call)
            except BackendError as error:  # the call runs, so this is no failed start: the reconciler tells it again
                _log.warning("job %s: the backend was not told to stop: %s", held.job_id, error)
        if backend.locality is Locality.WORLD or job.ended or decision.verdict is Verdict.SUPERSEDED:
            self._keeper.release(held.token)

    def _commit(self, held: Held, event: JobEvent) -> Job:
        """Take a step; let go of an attempt that is no longer wanted."""
        if held.unwanted:
            raise _Unwanted
        decision = self._persist(held.job_id, event, patience_s=self._patience_s)
        job = decision.job
        if decision.verdict is Verdict.SUPERSEDED or job.ended or job.stage is Stage.CANCELLING:
            raise _Unwanted
        return job

    def _fail(self, held: Held, error: Exception) -> None:
        """Fail the attempt; nothing of it runs, for its start was refused or never came."""
        described = job_error(error, otherwise=FaultDomain.INFRASTRUCTURE)
        if isinstance(error, BackendError) and not error.retryable:
            described = JobError(code=error.code, message=str(error), fault=FaultDomain.REQUEST)
        elif isinstance(error, BackendError):
            described = JobError(code=error.code, message=str(error), fault=FaultDomain.INFRASTRUCTURE)
        try:
            failed = AttemptFailed(token=held.token, error=described, stopped=True)
            self._persist(held.job_id, failed, patience_s=self._patience_s)
        except (JobNotFoundError, StoreUnavailableError) as failure:
            _log.warning("job %s: its failure was not recorded, its lease will lapse: %s", held.job_id, failure)
        finally:
            self._keeper.release(held.token)

    # --- audio

    def _bring_audio(self, job: Job, held: Held) -> StoredAudio:
        """See that the audio stands in storage; each stage is shown, also where nothing is left to do."""
        source = job.audio or job.request.audio
        match source:
            case StoredAudio():
                self._see_stored(source)
                self._commit(held, StageEntered(token=held.token, stage=Stage.UPLOADING_AUDIO))
                audio = source
            case LocalAudio():
                path = _unchanged(source)
                self._commit(held, StageEntered(token=held.token, stage=Stage.UPLOADING_AUDIO))
                audio = self._upload(job, held, path)
                _unchanged(source)
            case RemoteAudio():
                self._commit(held, StageEntered(token=held.token, stage=Stage.UPLOADING_AUDIO))
                audio = self._fetch(job, held, source)
            case _:
                assert_never(source)
        try:
            self._commit(held, AudioStored(token=held.token, audio=audio))
        except _Unwanted:
            self._drop_unrecorded(job.id, source, audio)
            raise
        return audio

    def _drop_unrecorded(self, job_id: str, source: Audio, audio: StoredAudio) -> None:
        """Remove a copy that was made for an attempt that is ours no longer: the record never heard of it."""
        if audio is not source and self._store.get(job_id).audio != audio:
            self._storage.delete(audio.key)

    def _see_stored(self, audio: StoredAudio) -> None:
        try:
            found = self._storage.stat(audio.key)
        except ObjectNotFoundError:
            raise AudioError("the audio is not in storage any more", code="audio.missing") from None
        if found.size != audio.size:
            raise AudioError("the audio in storage has changed since submit", code="audio.changed")

    def _upload(self, job: Job, held: Held, path: Path) -> StoredAudio:
        key = layout.audio_key(layout.prefix_of(job), f"audio-{held.token}", path.name)
        try:
            with path.open("rb") as file:
                info = self._storage.put(key, _while_wanted(file, held))
        except FileNotFoundError:
            raise AudioError(f"{path.name} vanished since submit", code="audio.changed") from None
        except PermissionError as error:
            if isinstance(error, RenderDispatchError):
                raise
            raise AudioError(f"{path.name} may not be read", code="audio.denied") from None
        return StoredAudio(key=key, size=info.size)

    def _fetch(self, job: Job, held: Held, source: RemoteAudio) -> StoredAudio:
        if self._fetcher is None:
            raise InvalidRequestError("audio by URL needs a fetcher, and this worker has none", code="audio.no-fetcher")
        with self._fetcher.fetch(source.url.get_secret_value()) as fetched:
            key = layout.audio_key(layout.prefix_of(job), f"audio-{held.token}", fetched.filename or "")
            info = self._storage.put(key, _chunks_while_wanted(fetched.chunks, held))
        return StoredAudio(key=key, size=info.size)

    # --- the order

    def _order(self, job: Job, held: Held, audio: StoredAudio, backend: RenderBackend) -> RenderOrder:
        if self._storage.locality < backend.locality:
            message = (
                f"backend {held.backend!r} renders where this storage's URLs do not reach; "
                "use a storage with a wider reach, such as FsspecStorage for this machine or R2Storage"
            )
            raise ConfigurationError(message)
        now = self._store.now()
        expires_in = min(job.finish_by - now + _URL_SLACK, _MAX_URL)
        request = job.request
        prefix = layout.prefix_of(job)
        attempt = job.attempt
        assert attempt is not None

        def urls(key: str, content_type: str) -> ObjectUrls:
            put = self._storage.sign_put(key, expires_in=expires_in, content_type=content_type)
            return ObjectUrls(key=key, put=put, get=self._storage.sign_get(key, expires_in=expires_in))

        return RenderOrder(
            job_id=job.id,
            attempt=attempt.number,
            token=held.token,
            audio_url=self._storage.sign_get(audio.key, expires_in=expires_in),
            audio_size=audio.size,
            video=urls(layout.video_key(prefix, held.token), "video/mp4"),
            result=urls(layout.result_key(prefix, held.token), "application/json"),
            scene=request.scene,
            params=request.params,
            output=request.output,
            start=request.start,
            duration=request.duration,
            require_gpu=request.require_gpu,
            gpu=request.limits.gpu,
            start_by=min(now + request.limits.start_timeout, job.finish_by),
            finish_by=job.finish_by,
            callback=self._callback(job.id, attempt.number) if self._callback and takes_webhook(backend) else None,
            local=backend.locality < Locality.WORLD,
        )


def _of_bounded_size(order: RenderOrder) -> RenderOrder:
    """Return the order.

    Raises:
        InvalidRequestError: It is larger than any backend has to take.
    """
    size = len(order.model_dump_json())
    if size > MAX_ORDER_BYTES:
        message = (
            f"the order has {size} bytes, and {MAX_ORDER_BYTES} are the limit: "
            "shorten the storage key of the audio, the storage's prefix, the webhook's URL or the parameters"
        )
        raise InvalidRequestError(message, code="order.too-large")
    return order


def takes_webhook(backend: RenderBackend) -> bool:
    """Return whether the backend's runs report to a callback."""
    if isinstance(backend, SupportsWebhook):
        return backend.reports_by_webhook
    return backend.locality is Locality.WORLD


def _unchanged(audio: LocalAudio) -> Path:
    """Return the file's path while it is still the file that was submitted.

    Raises:
        AudioError: ``audio.changed``: it vanished, or has another size or modification time.
    """
    path = Path(audio.path)
    try:
        found = path.stat()
    except OSError:
        raise AudioError(f"{path.name} vanished since submit", code="audio.changed") from None
    if (found.st_size, found.st_mtime_ns) != (audio.size, audio.mtime_ns):
        raise AudioError(f"{path.name} changed since submit; submit it again", code="audio.changed")
    return path


def _while_wanted(file: BinaryIO, held: Held) -> Iterator[bytes]:
    return _chunks_while_wanted(iter(lambda: file.read(_CHUNK_BYTES), b""), held)


def _chunks_while_wanted(chunks: Iterator[bytes], held: Held) -> Iterator[bytes]:
    for chunk in chunks:
        if held.unwanted:
            raise _Unwanted
        yield chunk

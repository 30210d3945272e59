"""How does a claimed attempt get to its backend?

Find the audio, bring it to storage, sign URLs, commit the intent, call the backend: each step is committed before the
next one. After a crash between any two of them, another dispatcher takes the job up when the lease lapses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from attrs import define, evolve, field, frozen

from renderdispatch.engine import calls, events, layout, loans
from renderdispatch.engine.attachments import File, bring_attachment, bundle_attachments, check_attachment
from renderdispatch.engine.audio import bring, check_source, is_read_in_place
from renderdispatch.engine.commit import patiently
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import GivenUp, Held, LeaseKeeper
from renderdispatch.engine.orders import TOO_LARGE, make_grants, make_order, pack_grants, pieces_of
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.rules import BUSY, infrastructure_error
from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.errors import (
    BackendError,
    ConfigurationError,
    InvalidRequestError,
    JobNotFoundError,
    RenderDispatchError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    Audio,
    FaultDomain,
    JobStatus,
    LocalAudio,
    RemoteAudio,
    RenderOrder,
    Stage,
    StoredAudio,
)
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, Locality, SupportsDeviceClass, SupportsHelpers

_log: Final = logging.getLogger("renderdispatch.engine.dispatch")


@frozen
class _Brought:
    """Where the renderer reads its inputs."""

    audio: File
    attached: Mapping[str, File]
    bundle: StoredAudio | None = None


@define(eq=False)
class Preparation:
    """Takes one claimed attempt to its backend: `bring` in a lane for audio, then `start` in the backend's own.

    Args:
        job: The job, just claimed.
        held: Its attempt, as this process holds it.
        closing: Requested when the worker closes. An attempt that is given up for that stays held, to be handed back.
        noticed: Called with the job if its preparation ended without a call.
    """

    _parts: Parts
    _keeper: LeaseKeeper
    _inbox: Inbox
    job: Job
    held: Held
    _closing: Stop
    _noticed: Callable[[Job], None]
    _brought: _Brought | None = None
    _entered: list[events.JobEvent] = field(factory=list, init=False)
    """Stages that were entered, and take no time: the next write records them."""
    _asked: bool = field(default=False, init=False)
    """Whether the backend was asked to start it."""

    @property
    def source(self) -> Audio:
        """Where the audio is."""
        return self.job.audio or self.job.request.audio

    def bring(self) -> bool:
        """Bring the job's files to storage; return whether the attempt goes on. It takes up no slot meanwhile."""
        with self._concluding():
            self._brought = self._bring_inputs()
        if self._brought is None:
            self.end()
        return self._brought is not None

    def start(self) -> None:
        """Start the attempt, whose inputs are in storage; whatever goes wrong becomes the attempt's error."""
        try:
            with self._concluding():
                order = self._order(self._brought or self._bring_inputs())
                self._intend(order)
                call = self._start(order)
                self._record(call)
        finally:
            self.end()

    def end(self) -> None:
        """Leave the worker's stop signal: nothing more is prepared."""
        self.held.preparing = False
        self.held.stop.__exit__()

    def give_up(self, why: str) -> None:
        """Hand the attempt back, because this process cannot prepare it. The job waits a while for its next one."""
        error = infrastructure_error(BUSY, why)
        self._conclude(events.AttemptFailed(token=self.held.token, error=error, stopped=True))
        self.end()

    @contextmanager
    def _concluding(self) -> Iterator[None]:
        """Have whatever goes wrong in the block become the attempt's error."""
        job_id, token = self.job.id, self.held.token
        try:
            yield
        except JobNotFoundError:
            self._keeper.release(token)
        except GivenUp:
            self._conclude(events.CancelConfirmed(token=token, stopped=True))
        except StoreUnavailableError as error:  # the lease lapses, and another dispatcher goes on
            _log.warning("job %s: the store is away: %s", job_id, error)
            self._keeper.release(token)
        except Exception as error:  # noqa: BLE001 - whatever happened, the job must hear of it
            if not isinstance(error, (RenderDispatchError, OSError)):
                _log.exception("job %s: could not be dispatched", job_id)
            # Nothing of it runs: its start was refused, or never came.
            failed = job_error(error, otherwise=FaultDomain.INFRASTRUCTURE)
            refused = isinstance(error, (BackendError, ConfigurationError)) and self._asked
            self._conclude(events.AttemptFailed(token=token, error=failed, stopped=True, refused=refused))

    # --- the steps

    def _bring_inputs(self) -> _Brought:
        """See that the renderer can read the job's files. A stage that takes time is shown before it begins."""
        token, attached = self.held.token, self.job.attached()
        self.held.stop.check()
        check_source(self.source, self._parts)
        for place, file in attached.items():
            check_attachment(place, file, self._parts.storage)
        self._entered.append(events.StageEntered(token=token, stage=Stage.UPLOADING_AUDIO))
        if shown := self._takes_time(attached):
            self._advance()
        brought = _Brought(attached=self._bring_attachments(attached), audio=self._bring_audio())
        brought = self._bundled(brought)
        self._entered.append(events.StageEntered(token=token, stage=Stage.GENERATING_URL))
        if shown:
            self._advance()
        return brought

    def _takes_time(self, attached: Mapping[str, File]) -> bool:
        """Return whether a file is to be copied or fetched, or the order goes far away: then polls show each stage."""
        backend = self._parts.backends[self.held.backend]
        far = backend.locality is Locality.WORLD
        return (
            far
            or len(attached) > 1
            or any(
                isinstance(file, RemoteAudio)
                or (isinstance(file, LocalAudio) and not is_read_in_place(file, self._parts, backend))
                for file in (self.source, *attached.values())
            )
        )

    def _bring_attachments(self, attached: Mapping[str, File]) -> Mapping[str, File]:
        """See that the renderer can read the files beside the audio."""
        parts, backend, prefix = self._parts, self._parts.backends[self.held.backend], layout.prefix_of(self.job)
        stored: dict[str, StoredAudio] = {}
        try:
            for place, source in attached.items():
                self.held.stop.check()
                file = bring_attachment(place, source, parts, backend, prefix)
                if isinstance(file, StoredAudio) and file is not source:
                    stored[place] = file
            if stored:
                self._advance(events.AttachmentsStored(token=self.held.token, stored=stored))
        except BaseException:
            self._remove_if_deleted(*stored.values())
            raise
        return {**attached, **stored}

    def _bundled(self, brought: _Brought) -> _Brought:
        """Have the files beside the audio travel as one, if the order has no room for a URL of each."""
        if len(brought.attached) < 2:
            return brought
        try:
            self._order(brought)
        except InvalidRequestError as error:
            if error.code != TOO_LARGE:
                raise
        else:
            return brought
        storage = self._parts.storage
        bundle = bundle_attachments(brought.attached, storage, layout.prefix_of(self.job))
        self._remove_if_deleted(bundle)
        return evolve(brought, bundle=bundle)

    def _remove_if_deleted(self, *files: StoredAudio) -> None:
        """Remove files beside the audio if the job was deleted meanwhile; else another attempt may need them."""
        with suppress(RenderDispatchError):  # the store or the storage does not answer; what went wrong before counts
            if files and self._current() is None:
                for file in files:
                    self._parts.storage.delete(file.key)

    def _bring_audio(self) -> StoredAudio | LocalAudio:
        """See that the renderer can read the audio."""
        job, token, source = self.job, self.held.token, self.source
        key = partial(layout.audio_key, layout.prefix_of(job), layout.attempt_upload(token))
        backend = self._parts.backends[self.held.backend]
        audio = bring(source, self._parts, backend, key=key, stop=self.held.stop)
        if isinstance(audio, LocalAudio):
            return audio
        recorded = events.AudioStored(token=token, audio=audio)
        if audio is source:
            self._entered.append(recorded)
            return audio
        try:
            self._advance(recorded)
        except (GivenUp, JobNotFoundError):
            if not self._is_recorded(audio):
                self._parts.storage.delete(audio.key)
            raise
        return audio

    def _order(self, brought: _Brought) -> RenderOrder:
        job, parts = self.job, self._parts
        backend = parts.backends[self.held.backend]
        callback = parts.callback(job.id, job.attempt_number, backend)
        local = backend.locality < Locality.WORLD
        return make_order(
            job,
            brought.audio,
            brought.attached,
            bundle=brought.bundle,
            signer=parts.storage,
            now=parts.store.now(),
            callback=callback,
            local=local,
            device_class=backend.device_class if isinstance(backend, SupportsDeviceClass) else None,
            parallel=job.parallel if isinstance(backend, SupportsHelpers) else 1,
            borrowed=loans.borrowed(parts.store, job),
        )

    def _intend(self, order: RenderOrder) -> None:
        """Commit the intent, then store the grants of the order, if its pieces are kept behind URLs.

        In this order a crash between the two leaves no object that no clean-up knows of.
        """
        job, parts = self.job, self._parts
        if job.parallel > order.parallel:
            message = "job %s: backend %s draws a video with one call: parallel=%d is ignored"
            _log.warning(message, job.id, self.held.backend, job.parallel)
        pieces = None if order.pieces is None else pieces_of(job, order.device_class)
        intent = events.DispatchIntended(
            token=self.held.token,
            video_key=order.video.key,
            result_key=order.result.key,
            start_by=order.start_by,
            pieces=pieces,
        )
        self._advance(intent)
        if order.pieces is None or pieces is None or order.pieces.folder is not None:
            return
        key = layout.grants_key(layout.prefix_of(job), self.held.token, helpers=False)
        lent = loans.borrowed_keys(parts.storage, loans.borrowed(parts.store, job), layout.picture_in(pieces))
        grants = make_grants(job, pieces, signer=parts.storage, now=parts.store.now(), lent=lent)
        parts.storage.put(key, pack_grants(grants), content_type="application/gzip")

    def _is_recorded(self, audio: StoredAudio) -> bool:
        """Return whether the job has this copy."""
        job = self._current()
        return job is not None and job.audio == audio

    def _current(self) -> Job | None:
        """Return the job as it is now; None once it is deleted. A later job of the same id is another one (J15)."""
        try:
            job = self._parts.store.get(self.job.id)
        except JobNotFoundError:
            return None
        return job if job.incarnation == self.job.incarnation else None

    def _start(self, order: RenderOrder) -> BackendCall | None:
        """Call the backend; return its call, or None if it is not known whether there is one.

        Raises:
            BackendError, InvalidRequestError, ConfigurationError: Nothing was started.
        """
        self.held.calling = self._asked = True
        try:
            return calls.start(self._parts.backends[self.held.backend], order, on_event=self._inbox.on_event)
        except BackendError as error:
            if error.outcome_known:
                raise
            # Unknown is not failed (rule J2): a check-in brings the call id, or the start deadline passes.
            _log.warning("job %s: waiting for a sign of life: %s", self.held.job_id, error)
            return None
        finally:
            self.held.calling = False

    def _record(self, call: BackendCall | None) -> None:
        """Commit the call. Whatever goes wrong now, a render may run, so nothing here fails the attempt."""
        held = self.held
        held.call = call
        try:
            event = events.Dispatched(token=held.token, call_id=call.id if call is not None else None)
            checked_in = partial(held.has_recorded, call) if held.local and call is not None else None
            decision = self._commit(event, unless=checked_in)
        except JobNotFoundError:
            self._keeper.cancel(held)
            self._keeper.release(held.token)
            return
        except Exception as error:  # noqa: BLE001 - a check-in brings the call id, or the lease lapses
            _log.warning("job %s: its call was not recorded: %s", held.job_id, error)
            if not held.local or call is None:
                self._keeper.release(held.token)
            return
        superseded = decision.verdict is Verdict.SUPERSEDED
        if superseded or (decision.reply.stop and decision.job.status is not JobStatus.COMPLETE):
            self._keeper.cancel(held)
        if call is None or not held.local or decision.job.ended or superseded:
            self._keeper.release(held.token)

    # --- the record

    def _conclude(self, event: events.JobEvent) -> None:
        """Commit how the preparation ended. What a closing worker gives up stays held, to be handed back."""
        try:
            self._noticed(self._commit(event).job)
        except (JobNotFoundError, StoreUnavailableError) as error:
            _log.warning("job %s: how its preparation ended was not recorded: %s", self.job.id, error)
        finally:
            if not self._closing.requested:
                self._keeper.release(self.held.token)

    def _commit(self, *happened: events.JobEvent, unless: Callable[[Job], bool] | None = None) -> Decision:
        write = partial(self.held.commit, self._parts.store, *happened, unless=unless)
        return patiently(write, patience_s=self._parts.lease.total_seconds(), stop=self._closing)

    def _advance(self, *happened: events.JobEvent) -> None:
        """Take steps, after those that were entered before.

        Raises:
            GivenUp: The attempt is no longer wanted.
        """
        self.held.stop.check()
        decision = self._commit(*self._entered, *happened)
        self._entered.clear()
        if decision.verdict is Verdict.SUPERSEDED:
            raise GivenUp("superseded")
        if decision.job.ended or decision.job.stage is Stage.CANCELLING:
            raise GivenUp("cancelled")

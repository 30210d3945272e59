"""How does a claimed attempt get to its backend?

Find the audio, bring it to storage, sign URLs, commit the intent, call the backend: each step is committed before the
next one. After a crash between any two of them, another dispatcher takes the job up when the lease lapses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from attrs import define

from renderdispatch.engine import events, layout
from renderdispatch.engine.audio import bring, check_source
from renderdispatch.engine.commit import commit_patiently
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import GivenUp, Held, LeaseKeeper
from renderdispatch.engine.orders import make_order
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.rules import HANDED_BACK, infrastructure_error
from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.errors import BackendError, JobNotFoundError, RenderDispatchError, StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import Audio, FaultDomain, RenderOrder, Stage, StoredAudio
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, Locality, RenderBackend

_log: Final = logging.getLogger("renderdispatch.engine.dispatch")


@define(eq=False)
class Preparation:
    """Takes one claimed attempt to its backend: `bring` in a lane for audio, then `start` in the backend's own.

    Args:
        job: The job, just claimed.
        held: Its attempt, as this process holds it.
        closing: Requested when the worker closes. An attempt that is given up for that stays held, to be handed back.
    """

    _parts: Parts
    _keeper: LeaseKeeper
    _inbox: Inbox
    job: Job
    held: Held
    _closing: Stop
    _audio: StoredAudio | None = None

    @property
    def source(self) -> Audio:
        """Where the audio is."""
        return self.job.audio or self.job.request.audio

    def bring(self) -> bool:
        """Bring the audio to storage; return whether the attempt goes on. It takes up no slot meanwhile."""
        with self._concluding():
            self._audio = self._bring_audio()
        if self._audio is None:
            self.end()
        return self._audio is not None

    def start(self) -> None:
        """Start the attempt, whose audio is in storage; whatever goes wrong becomes the attempt's error."""
        try:
            with self._concluding():
                order = self._order(self._audio or self._bring_audio())
                intent = events.DispatchIntended(
                    token=self.held.token,
                    video_key=order.video.key,
                    result_key=order.result.key,
                    start_by=order.start_by,
                )
                self._advance(intent)
                self._start(order)
        finally:
            self.end()

    def end(self) -> None:
        """Leave the worker's stop signal: nothing more is prepared."""
        self.held.preparing = False
        self.held.stop.__exit__()

    def give_up(self, why: str) -> None:
        """Hand the attempt back, because this process cannot prepare it."""
        error = infrastructure_error(HANDED_BACK, why)
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
            self._conclude(events.AttemptFailed(token=token, error=failed, stopped=True))

    # --- the steps

    def _bring_audio(self) -> StoredAudio:
        """See that the audio is in storage; each stage is shown, also if nothing is left to do."""
        job, token, source = self.job, self.held.token, self.source
        self.held.stop.check()
        check_source(source, self._parts)
        self._advance(events.StageEntered(token=token, stage=Stage.UPLOADING_AUDIO))
        key = partial(layout.audio_key, layout.prefix_of(job), f"audio-{token}")
        audio = bring(source, self._parts, key=key, stop=self.held.stop)
        try:
            self._advance(events.AudioStored(token=token, audio=audio))
        except GivenUp:
            if audio is not source and self._parts.store.get(job.id).audio != audio:  # the record never heard of it
                self._parts.storage.delete(audio.key)
            raise
        self._advance(events.StageEntered(token=token, stage=Stage.GENERATING_URL))
        return audio

    def _order(self, audio: StoredAudio) -> RenderOrder:
        job, parts = self.job, self._parts
        backend = parts.backends[self.held.backend]
        callback = parts.callback(job.id, len(job.attempts), backend)
        local = backend.locality < Locality.WORLD
        return make_order(job, audio, signer=parts.storage, now=parts.store.now(), callback=callback, local=local)

    def _start(self, order: RenderOrder) -> None:
        held, backend = self.held, self._parts.backends[self.held.backend]
        call = self._call(backend, order)
        if call is None:
            self._commit(events.Dispatched(token=held.token, call_id=None))
            self._keeper.release(held.token)
            return
        held.call = call
        try:
            decision = self._commit(events.Dispatched(token=held.token, call_id=call.id))
        except JobNotFoundError:
            self._keeper.cancel(held)
            raise
        except StoreUnavailableError:
            if not held.local:  # its check-in brings the call id
                raise
            _log.warning("job %s: the store is away; the render goes on", held.job_id)
            return
        superseded = decision.verdict is Verdict.SUPERSEDED
        if superseded or decision.job.stage is Stage.CANCELLING:
            self._keeper.cancel(held)
        if backend.locality is Locality.WORLD or decision.job.ended or superseded:
            self._keeper.release(held.token)

    def _call(self, backend: RenderBackend, order: RenderOrder) -> BackendCall | None:
        """Start the call; None where it is not known whether it started.

        Unknown is not failed (rule J2): a check-in brings the call id, or the start deadline passes.
        """
        self.held.calling = True
        try:
            call: object = backend.start(order, on_event=self._inbox.on_event)
        except Exception as error:
            if isinstance(error, BackendError) and error.outcome_known:
                raise
            _log.warning("job %s: waiting for a sign of life: %s: %s", self.job.id, type(error).__name__, error)
            return None
        finally:
            self.held.calling = False
        if not isinstance(call, BackendCall) or not call.id:
            _log.error("job %s: waiting for a sign of life: the backend returned %r", self.job.id, type(call).__name__)
            return None
        return call

    # --- the record

    def _conclude(self, event: events.JobEvent) -> None:
        """Commit how the preparation ended. What a closing worker gives up stays held, to be handed back."""
        try:
            self._commit(event)
        except (JobNotFoundError, StoreUnavailableError) as error:
            _log.warning("job %s: how its preparation ended was not recorded: %s", self.job.id, error)
        finally:
            if not self._closing.requested:
                self._keeper.release(self.held.token)

    def _commit(self, event: events.JobEvent) -> Decision:
        patience_s = self._parts.lease.total_seconds()
        return commit_patiently(self._parts.store, self.held.job_id, event, patience_s=patience_s, stop=self._closing)

    def _advance(self, event: events.JobEvent) -> None:
        """Take a step.

        Raises:
            GivenUp: The attempt is no longer wanted.
        """
        self.held.stop.check()
        decision = self._commit(event)
        if decision.verdict is Verdict.SUPERSEDED:
            raise GivenUp("superseded")
        if decision.job.ended or decision.job.stage is Stage.CANCELLING:
            raise GivenUp("cancelled")

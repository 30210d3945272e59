"""Who keeps an attempt alive?

Its holder: the process that prepares it, and for inline and local renders computes it. The keeper renews the
leases of all that this process holds, sees through them when somebody wants a job cancelled, and hands in what
a backend said while the store was away. Remote attempts need no holder once they are dispatched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from attrs import define

from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import AttemptFailed, CancelConfirmed, LeaseRenewed
from renderdispatch.engine.rules import HANDED_BACK
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import (
    BackendError,
    JobNotFoundError,
    JobUnreadableError,
    RenderDispatchError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import FaultDomain, JobError, Stage
from renderdispatch.protocols import BackendCall, CallState, CallStatus, JobStore, RenderBackend

_log: Final = logging.getLogger("renderdispatch.engine.leases")

_STOP_S: Final = 10.0
"""How long a closing worker waits for its renders to end."""


@define
class Held:
    """An attempt that this process holds.

    Args:
        local: Whether it computes on this machine, and so takes up room until its computing has ended.
        preparing: Whether the dispatcher is still at it.
        released: Whether it is held no more, and only its computing has yet to end.
    """

    job_id: str
    token: str
    backend: str
    local: bool
    call: BackendCall | None = None
    preparing: bool = True
    released: bool = False
    unwanted: bool = False
    """Set once the attempt was cancelled or superseded; whoever prepares it stops."""


class LeaseKeeper:
    """Holds attempts for one process.

    Args:
        holder: This process's name, unlike any other's.
        lease: How long an attempt stays ours without a renewal.
    """

    def __init__(
        self, store: JobStore, backends: Mapping[str, RenderBackend], *, holder: str, lease: timedelta
    ) -> None:
        self.holder = holder
        self.lease = lease
        self._store = store
        self._backends = backends
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}

    def hold(self, job: Job) -> Held:
        """Begin to hold the job's current attempt."""
        assert job.attempt is not None
        attempt = job.attempt
        held = Held(job.id, attempt.token, attempt.backend, attempt.local)
        with self._lock:
            self._held[held.token] = held
        return held

    def release(self, token: str) -> None:
        """Hold the attempt no longer. One that is not held is no error."""
        with self._lock:
            held = self._held.get(token)
            if held is not None:
                held.released = True

    def count(self, backend: str) -> int:
        """Return how many attempts take up room on this backend: those that are held, and those that wind up."""
        self._forget()
        with self._lock:
            return sum(h.backend == backend for h in self._held.values())

    @property
    def winding_up(self) -> bool:
        """Whether room is about to become free."""
        with self._lock:
            return any(h.released for h in self._held.values())

    def look(self, job: Job) -> None:
        """Act on what the record says of an attempt that may be held here: stop what is no longer wanted."""
        attempt = job.attempt
        with self._lock:
            for held in self._held.values():
                if held.job_id == job.id and attempt is not None:
                    ours = attempt.token == held.token and attempt.ended_at is None
                    held.unwanted = held.unwanted or not ours or job.stage is Stage.CANCELLING
            unwanted = [h for h in self._held.values() if h.job_id == job.id and h.unwanted]
        for held in unwanted:
            self._stop(held)

    def tick(self) -> int:
        """Renew every lease once; return how many attempts are held."""
        with self._lock:
            everything = [h for h in self._held.values() if not h.released]
        for held in everything:
            try:
                self._renew(held)
            except StoreUnavailableError as error:
                _log.warning("job %s: the lease was not renewed: %s", held.job_id, error)
            except Exception:  # noqa: BLE001 - the other leases need renewing all the same
                _log.exception("job %s: the lease was not renewed", held.job_id)
        return len(everything)

    def collect(self) -> None:
        """Hand in how calls ended whose final event did not get through."""
        with self._lock:
            called = [h for h in self._held.values() if h.call is not None and not h.released]
        for held in called:
            assert held.call is not None
            try:
                self._hand_in(held, self._backends[held.backend].poll(held.call))
            except (StoreUnavailableError, BackendError) as error:
                _log.warning("job %s: will look again: %s", held.job_id, error)
            except JobNotFoundError:
                self.release(held.token)
            except JobUnreadableError as error:  # whoever wrote it finds the result, or the lease that lapses
                _log.error("job %s: how it ended was not recorded, its lease will lapse: %s", held.job_id, error)
                self.release(held.token)
        self._forget()

    def let_go(self) -> None:
        """Have whoever prepares an attempt stop doing so."""
        with self._lock:
            for held in self._held.values():
                held.unwanted = True

    def hand_back(self) -> None:
        """Give up everything that is held: another worker may take it at once, and nothing computes here any more."""
        with self._lock:
            everything = list(self._held.values())
            self._held.clear()
        error = JobError(code=HANDED_BACK, message="the worker was closed", fault=FaultDomain.INFRASTRUCTURE)
        for held in everything:
            try:
                if not held.released:
                    commit(self._store, held.job_id, AttemptFailed(token=held.token, error=error, stopped=True))
            except RenderDispatchError as failure:
                _log.warning("job %s: not handed back, its lease will lapse: %s", held.job_id, failure)
            self._stop(held)
        deadline = time.monotonic() + _STOP_S
        while any(self._runs(held) for held in everything) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _forget(self) -> None:
        with self._lock:
            released = [h for h in self._held.values() if h.released and not h.preparing]
        ended = [h.token for h in released if not self._runs(h)]
        with self._lock:
            for token in ended:
                self._held.pop(token, None)

    def _runs(self, held: Held) -> bool:
        backend = self._backends[held.backend]
        return held.local and held.call is not None and backend.poll(held.call).status is CallStatus.RUNNING

    def _renew(self, held: Held) -> None:
        lease_until = self._store.now() + self.lease
        event = LeaseRenewed(token=held.token, holder=self.holder, lease_until=lease_until)
        try:
            decision = commit(self._store, held.job_id, event)
        except JobNotFoundError:
            held.unwanted = True
            self._stop(held)
            self.release(held.token)
            return
        job = decision.job
        self.look(job)
        if decision.verdict is Verdict.SUPERSEDED or job.ended or job.attempt is None or job.attempt.holder is None:
            self.release(held.token)

    def _hand_in(self, held: Held, state: CallState) -> None:
        """Commit how a call ended, where its final event did not get through."""
        if state.status is CallStatus.RUNNING:
            return
        if state.outcome is not None:
            job = commit(self._store, held.job_id, state.outcome).job
        else:
            error = state.error or JobError(
                code="runner.died", message="the render ended without a word", fault=FaultDomain.INFRASTRUCTURE
            )
            job = commit(self._store, held.job_id, AttemptFailed(token=held.token, error=error, stopped=True)).job
        if job.stage is Stage.CANCELLING:
            commit(self._store, held.job_id, CancelConfirmed(token=held.token, stopped=True))
        self.release(held.token)

    def _stop(self, held: Held) -> None:
        if held.call is not None:
            try:
                self._backends[held.backend].cancel(held.call)
            except BackendError as error:
                _log.warning("job %s: the backend was not told to stop: %s", held.job_id, error)

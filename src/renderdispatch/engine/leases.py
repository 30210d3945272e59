"""Who keeps an attempt alive?

Its holder: the process that prepares it, and for inline and local renders computes it. The keeper renews the leases of
all attempts that this process holds, stops what the record no longer wants, and commits how a call ended if its final
event was lost. Remote attempts need no holder once they are dispatched.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import Final

from attrs import define, field

from renderdispatch import errors
from renderdispatch.engine import calls, layout
from renderdispatch.engine.bulkheads import Bulkheads
from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import AttemptFailed, CallStopped, HelperStopped, JobEvent, LeaseRenewed
from renderdispatch.engine.outcomes import call_event
from renderdispatch.engine.rules import HANDED_BACK, infrastructure_error
from renderdispatch.engine.transitions import Decision, Verdict, decide
from renderdispatch.jobs import Job
from renderdispatch.messages import EventReply, Progressed, RenderEvent, Stage
from renderdispatch.plumbing.stop import Stop, Stopped
from renderdispatch.protocols import BackendCall, CallState, CallStatus, JobStore, RenderBackend

_log: Final = logging.getLogger("renderdispatch.engine.leases")

KEEP_S: Final = 0.25
"""How soon after a write progress is not worth another one."""

_STOP_S: Final = 10.0
"""How long a closing worker waits for its renders to end."""


class GivenUp(Stopped):
    """An attempt is prepared no further: it is cancelled or superseded, or the worker closes."""


@define
class Held:
    """An attempt that this process holds.

    Args:
        job: Its job, as this process read or wrote it last.
        local: Whether it computes on this machine, and so takes up a slot until its computing has ended.
        stop: Requested once the attempt is cancelled or superseded; its preparation then ends.
        helpers: The calls of its helpers, by their tokens; None while one is being started. Each takes up a slot.
        helpers_from_s: Before then no helper is started, on this process's clock: the last start failed.
        leaving: The tokens of helpers that were told to stop because a job wants their slot.
        slotted: Whether it takes up a slot of its backend; not while its audio is brought.
        preparing: Whether the dispatcher still prepares it.
        calling: Whether the backend is being called, so that it is not known what computes.
        released: Whether it is held no more, and only its computing has yet to end.
    """

    job: Job
    token: str
    backend: str
    local: bool
    stop: Stop
    call: BackendCall | None = None
    helpers: dict[str, BackendCall | None] = field(factory=dict)
    helpers_from_s: float = -math.inf
    leaving: set[str] = field(factory=set)
    slotted: bool = False
    preparing: bool = True
    calling: bool = False
    released: bool = False
    _writing: threading.Lock = field(factory=threading.Lock, init=False, repr=False, eq=False)
    _written_s: float = field(default=-math.inf, init=False)
    """When it was written last, on this process's clock."""

    _kept: list[Progressed] = field(factory=list, init=False)
    """Reports of progress that the next write takes along."""

    _ahead: Job | None = field(default=None, init=False)
    """The job as it will be then."""

    @property
    def job_id(self) -> str:
        """The id of its job."""
        return self.job.id

    def commit(self, store: JobStore, *happened: JobEvent, unless: Callable[[Job], bool] | None = None) -> Decision:
        """Commit events as `commit` does, without a read unless another process wrote the job meanwhile.

        The threads of this process that have something to write take turns, so that they do not meet in the store.

        Args:
            store: Where the job lives.
            happened: What happened, in this order.
            unless: Returns whether there is nothing to write; called with the job when it is this thread's turn.
        """
        with self._writing:
            if unless is not None and unless(self.job):
                return Decision(self.job, Verdict.IGNORED, EventReply())
            return self._write(store, *happened)

    def report(self, store: JobStore, event: RenderEvent) -> Decision:
        """Commit what a run of this process reports.

        Progress soon after another write is kept for the next one, or for `flush`.
        """
        with self._writing:
            if isinstance(event, Progressed) and time.monotonic() - self._written_s < KEEP_S:
                decision = decide(self._ahead or self.job, event, store.now())
                if decision.verdict is Verdict.APPLIED:
                    self._kept.append(event)
                    self._ahead = decision.job
                    return decision
            return self._write(store, event)

    def flush(self, store: JobStore) -> None:
        """Write progress that was kept for long enough."""
        with self._writing:
            if self._kept and not self.released and time.monotonic() - self._written_s >= KEEP_S:
                self._write(store)

    def _write(self, store: JobStore, *happened: JobEvent) -> Decision:
        decision = commit(store, self.job, *self._kept, *happened)
        self._kept.clear()
        self._ahead = None
        self._written_s = time.monotonic()
        self.job = decision.job
        return decision

    @property
    def computes(self) -> bool:
        """Whether it has calls."""
        return self.call is not None or bool(self.helpers)

    def has_recorded(self, call: BackendCall, job: Job) -> bool:
        """Return whether the job's record has this call, and the job goes on."""
        attempt = job.attempts[-1]
        goes_on = not job.ended and not attempt.unwanted and job.stage is not Stage.CANCELLING
        return goes_on and attempt.token == self.token and attempt.call_id == call.id

    @property
    def delivered(self) -> bool:
        """Whether this attempt delivered, so that how its computing ends says nothing more."""
        attempt = self.job.attempts[-1]
        return attempt.token == self.token and self.job.stage is Stage.FINALIZING and self.job.artifact is not None


@define(eq=False)
class LeaseKeeper:
    """Holds attempts for one process.

    Args:
        holder: This process's name, unlike any other's.
        lease: How long an attempt stays ours without a renewal.
        freed: Called when a slot became free.
        discard: Removes the objects below a prefix.
        noticed: Called with each job whose attempt ended by a call of this process.
    """

    _store: JobStore
    _backends: Mapping[str, RenderBackend]
    _lanes: Bulkheads
    _freed: Callable[[], None]
    _discard: Callable[[str], object]
    _noticed: Callable[[Job], None] = field(default=lambda _job: None, kw_only=True)
    holder: str = field(kw_only=True)
    lease: timedelta = field(kw_only=True)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _held: dict[str, Held] = field(factory=dict, init=False)

    def hold(self, job: Job, stop: Stop) -> Held:
        """Begin to hold the job's current attempt."""
        attempt = job.attempts[-1]
        held = Held(job, attempt.token, attempt.backend, attempt.local, stop)
        with self._lock:
            self._held[held.token] = held
        return held

    def release(self, token: str) -> None:
        """Hold the attempt no longer. Does nothing for one that is not held."""
        if (held := self._held.get(token)) is not None:
            held.released = True

    def find(self, token: str) -> Held | None:
        """Return an attempt that this process holds."""
        return self._held.get(token)

    def helpable(self, backend: str) -> list[Held]:
        """Return the attempts of a backend whose helpers may be started here, those first that began first."""
        now_s = time.monotonic()
        return [
            held
            for held in self._everything([backend])
            if held.local and not held.released and not held.stop.requested and held.helpers_from_s <= now_s
            if held.job.helpers_to_start()
        ]

    def helped(self, backend: str) -> bool:
        """Return whether helpers of this machine take up slots of a backend, and none is about to give one back."""
        helping = [held for held in self._everything([backend]) if held.local and held.helpers]
        return bool(helping) and not any(held.leaving & held.helpers.keys() for held in helping)

    def free_slot(self, backend: str) -> None:
        """Have the helper of a backend that started last stop: a job wants its slot, and none depends on helpers."""
        for held in reversed(self._everything([backend])):
            for token, call in reversed(held.helpers.items()):
                if held.local and call is not None:
                    if self._lanes.orders[backend].submit(token, partial(self._cancel, held, call)):
                        held.leaving.add(token)
                    return

    def holds(self, token: str) -> bool:
        """Return whether this process holds the attempt."""
        held = self._held.get(token)
        return held is not None and not held.released

    def jobs(self) -> list[Job]:
        """Return the jobs whose attempts this process holds, as it read or wrote them last."""
        return [held.job for held in self._everything() if not held.released]

    def count(self, backend: str) -> int:
        """Return how many slots of this backend are taken: by attempts and helpers, and by what has yet to end."""
        return sum(held.slotted + len(held.helpers) for held in self._everything() if held.backend == backend)

    def coming(self, backend: str) -> int:
        """Return how many attempts of this backend take up no slot yet, and want one once their audio is brought."""
        return sum(
            held.preparing and not held.slotted and not held.stop.requested for held in self._everything([backend])
        )

    @property
    def winding_up(self) -> bool:
        """Whether a slot is about to become free."""
        return any(held.released for held in self._everything())

    def obey(self, job: Job) -> None:
        """Stop what this process holds of the job, if its record no longer wants it; wait for no backend."""
        attempt = job.attempt
        for held in self._everything():
            if held.job_id != job.id:
                continue
            if attempt is not None and (attempt.token != held.token or attempt.unwanted):
                held.stop.request("superseded")
            elif job.stage is Stage.CANCELLING:
                held.stop.request("cancelled")
            if held.stop.requested:
                self._tell(held)

    def cancel(self, held: Held) -> None:
        """Tell the backend to stop the call, if there is one, and its helpers. A backend that is away is told later."""
        for call in (held.call, *tuple(held.helpers.values())):
            if call is not None:
                self._cancel(held, call)

    def _cancel(self, held: Held, call: BackendCall) -> None:
        try:
            calls.cancel(self._backends[held.backend], call)
        except errors.BackendError as error:
            _log.warning("job %s: the backend was not told to stop: %s", held.job_id, error)

    def _tell(self, held: Held) -> bool:
        """Have the backend's own thread tell it to stop; return whether one will, or need not."""
        lane = self._lanes.orders[held.backend]
        return not held.computes or lane.submit(held.token, lambda: self.cancel(held)) or lane.has(held.token)

    def tick(self) -> int:
        """Renew every lease once; return how many attempts are held."""
        everything = [held for held in self._everything() if not held.released]
        for held in everything:
            try:
                self._renew(held)
            except errors.StoreUnavailableError as error:
                _log.warning("job %s: the lease was not renewed: %s", held.job_id, error)
            except Exception:  # noqa: BLE001 - the other leases need renewing all the same
                _log.exception("job %s: the lease was not renewed", held.job_id)
        return len(everything)

    def flush(self) -> None:
        """Write the progress of calls of this process that was kept for long enough."""
        for held in self._everything():
            try:
                held.flush(self._store)
            except errors.RenderDispatchError as error:
                _log.warning("job %s: its progress is written later: %s", held.job_id, error)

    @property
    def computing(self) -> bool:
        """Whether calls of this machine are held."""
        return any(held.local and held.computes for held in self._everything())

    def collect(self, backends: Iterable[str] | None = None) -> None:
        """Commit how calls ended whose final event was lost, and see which slots became free.

        Args:
            backends: Only calls of these.
        """
        for held in self._everything(backends):
            self._collect_helpers(held)
            if held.call is None or held.released:
                continue
            try:
                state = self._poll(held, held.call)
                if state is not None and state.status is not CallStatus.RUNNING:
                    self._commit_end(held, state)
            except (errors.StoreUnavailableError, errors.RevisionConflictError) as error:
                _log.warning("job %s: how its call ended is asked again: %s", held.job_id, error)
            except errors.JobNotFoundError:
                self.release(held.token)
            except (
                errors.JobUnreadableError
            ) as error:  # the version that wrote it finds the result, or the lapsed lease
                _log.error("job %s: how it ended was not recorded, its lease will lapse: %s", held.job_id, error)
                self.release(held.token)
        self._forget(backends)

    def collect_soon(self) -> None:
        """Have `collect` done in the lane of each backend that has calls: none waits for another."""
        for name in self._with_calls():
            self._lanes.ask[name].submit("collect", partial(self.collect, [name]))

    def collect_now(self, timeout_s: float) -> None:
        """Have `collect` done, and wait for it; a backend that hangs is left to its lane after a while."""
        deadline = time.monotonic() + timeout_s
        names = self._with_calls()
        for name in names:
            lane = self._lanes.ask[name]
            if not lane.submit("collect", partial(self.collect, [name])) and not lane.has("collect"):
                self.collect([name])  # no thread can be started
        for name in names:
            self._lanes.ask[name].wait_for("collect", max(0.0, deadline - time.monotonic()))

    def _with_calls(self) -> set[str]:
        """Return the backends with calls to collect."""
        return {held.backend for held in self._everything() if held.computes or held.released}

    def hand_back(self) -> None:
        """Give up everything that is held: another worker may take it at once, and nothing computes here any more."""
        error = infrastructure_error(HANDED_BACK, "the worker was closed")
        for held in self._everything():
            try:
                if not held.released and not held.calling:  # of a call in flight, its lease tells others
                    held.commit(self._store, AttemptFailed(token=held.token, error=error, stopped=False))
            except errors.RenderDispatchError as failure:
                _log.warning("job %s: not handed back, its lease will lapse: %s", held.job_id, failure)
            held.released = True
            if not self._tell(held):
                self.cancel(held)
        deadline = time.monotonic() + _STOP_S
        while (computing := self._computing()) and time.monotonic() < deadline:
            for name in computing:
                self._lanes.ask[name].submit("forget", partial(self._forget, [name]))
            time.sleep(0.02)
        with self._lock:
            self._held.clear()

    def _computing(self) -> set[str]:
        """Return the backends of this machine with calls that have yet to end."""
        return {held.backend for held in self._everything() if held.local and held.computes}

    def _everything(self, backends: Iterable[str] | None = None) -> list[Held]:
        with self._lock:
            held = list(self._held.values())
        return held if backends is None else [each for each in held if each.backend in backends]

    def _forget(self, backends: Iterable[str] | None = None) -> None:
        """Forget what was released and computes no more: its slot is free."""
        for held in self._everything(backends):
            if held.released and not held.preparing and not self._runs(held):
                with self._lock:
                    self._held.pop(held.token, None)
                self._freed()
                self._conclude(held)

    def _conclude(self, held: Held) -> None:
        """Record that an attempt computes here no more. Of a deleted job, remove what it delivered too late."""
        if not held.local or held.call is None or held.delivered:
            return
        try:
            held.commit(self._store, CallStopped(token=held.token))
        except errors.JobNotFoundError:
            prefix = layout.attempt_prefix(layout.prefix_of(held.job), held.token)
            self._lanes.tidy.submit(prefix, partial(self._remove, prefix))
        except errors.RenderDispatchError as error:  # until its URLs expire, its objects are swept
            _log.warning("job %s: that its call stopped was not recorded: %s", held.job_id, error)

    def _remove(self, prefix: str) -> None:
        try:
            self._discard(prefix)
        except errors.StorageError as error:
            _log.warning("the objects below %s, of a deleted job, were not removed: %s", prefix, error)

    def _runs(self, held: Held) -> bool:
        if held.helpers:
            self._collect_helpers(held)
        if not held.local or held.call is None:
            return bool(held.helpers)
        state = self._poll(held, held.call)
        return state is None or state.status is CallStatus.RUNNING or bool(held.helpers)

    def _collect_helpers(self, held: Held) -> None:
        """Tell helpers of this machine to stop once they are not wanted, and record which of them have ended."""
        unwanted = held.released or held.job.ended or held.stop.requested or held.job.stage is Stage.FINALIZING
        for token, call in tuple(held.helpers.items()):
            if call is None:
                continue
            if unwanted:
                self._cancel(held, call)
            state = self._poll(held, call)
            if state is None or state.status is CallStatus.RUNNING:
                continue
            try:
                job = held.commit(self._store, HelperStopped(token=held.token, helper=token)).job
            except errors.StoreUnavailableError as error:
                _log.warning("job %s: that a helper ended is recorded later: %s", held.job_id, error)
                continue
            except errors.RenderDispatchError as error:  # the job was deleted, or the record is another version's
                _log.warning("job %s: that a helper ended is not recorded: %s", held.job_id, error)
            else:
                if job.ended:
                    self._noticed(job)
            held.helpers.pop(token, None)
            self._freed()

    def _poll(self, held: Held, call: BackendCall) -> CallState | None:
        """Return the state of a call; None where its backend does not say: then its slot is not given away."""
        try:
            return calls.poll(self._backends[held.backend], call)
        except errors.BackendError as error:
            _log.warning("job %s: how its call ended is asked again: %s", held.job_id, error)
            return None

    def _renew(self, held: Held) -> None:
        lease_until = self._store.now() + self.lease
        event = LeaseRenewed(token=held.token, holder=self.holder, lease_until=lease_until)
        try:
            decision = held.commit(self._store, event)
        except errors.JobNotFoundError:
            held.stop.request("deleted")
            self._tell(held)
            self.release(held.token)
            return
        job = decision.job
        self.obey(job)
        if decision.verdict is Verdict.SUPERSEDED or job.ended or job.attempt is None or job.attempt.holder is None:
            self.release(held.token)

    def _commit_end(self, held: Held, state: CallState) -> None:
        job = self._store.get(held.job_id)
        attempt = job.attempt
        if attempt is not None and attempt.token == held.token:
            event = call_event(attempt, state, cancelling=job.stage is Stage.CANCELLING, silent=True)
            if event is not None:
                self._noticed(commit(self._store, job, event).job)
        self.release(held.token)

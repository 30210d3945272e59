"""What runs in the background of a process?

Three threads: one dispatches, one reconciles, one renews leases. They wait for nothing but the store; what calls a
backend, a bucket or another host has lanes (`renderdispatch.engine.bulkheads`). A worker belongs to the process that
made it; after a fork the child makes its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from renderdispatch.engine.bulkheads import Bulkheads
from renderdispatch.engine.dispatch import Dispatcher
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import LeaseKeeper
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.reconcile import TICK_S, Reconciler
from renderdispatch.engine.rerouting import Rerouting
from renderdispatch.engine.waking import Polls, frees, notify
from renderdispatch.errors import StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.plumbing.retry import Backoff
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import SupportsNotify

_log: Final = logging.getLogger("renderdispatch.engine.worker")

_WIND_UP_S: Final = 0.05
"""How soon a slot that is about to become free is checked again."""
_COLLECT_S: Final = 0.5
"""How often the calls of this machine are asked whether they have ended, and their progress is written."""
_RECONCILE_S: Final = 2.0
_CLOSE_S: Final = 10.0
"""How long a closing worker waits for calls of backends and of storage that are in progress."""
_JOIN_S: Final = 20.0
"""How long it waits for its threads: longer than a locked SQLite database makes them wait. A store may hang."""
_AWAY_S: Final = 5.0
_AWAY: Final = Backoff(pause_s=1.0, longest_pause_s=_AWAY_S)


class Worker:
    """Dispatcher, reconciler and leases of one process; `start` gives them threads, `tick` takes one round."""

    def __init__(self, parts: Parts) -> None:
        lease_s = parts.lease.total_seconds()
        holder = f"{parts.machine}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stop = Stop()
        self._to_claim = threading.Event()
        self._to_reconcile = threading.Event()
        self.lanes = Bulkheads.of(parts.backends)
        self.keeper = LeaseKeeper(
            parts.store,
            parts.backends,
            self.lanes,
            self._freed,
            parts.storage.delete_prefix,
            noticed=self.noticed,
            holder=holder,
            lease=parts.lease,
        )
        self.inbox = Inbox(parts.store, self.run_over, self.noticed, find=self.keeper.find)
        self.reconciler = Reconciler(
            parts.store,
            parts.storage,
            parts.backends,
            self.lanes,
            holds=self.keeper.holds,
            held=self.keeper.jobs,
            lease=parts.lease,
            keep=parts.keep,
            noticed=self._claim_after,
            stop=self._stop,
            rerouting=Rerouting(parts.store, parts.backends, parts.failover, self.wake),
        )
        self.dispatcher = Dispatcher(parts, self.keeper, self.lanes, self.inbox, self._to_claim.set, self.noticed)
        self._polls = Polls(parts.store)
        self._policy = parts.policy
        self._store = parts.store
        self._stop_listening: Callable[[], None] = lambda: None
        self._renew_s = lease_s / 3
        self._reconcile_s = min(_RECONCILE_S, lease_s / 4)
        self._stop.on_request(self.wake_all)
        self._works: dict[str, Callable[[], None]] = {
            "renderdispatch-leases": self._renew,
            "renderdispatch-reconciler": self._reconcile,
            "renderdispatch-worker": self._dispatch,  # the last one: what it claims would be lost without the others
        }
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        """Whether the threads work."""
        return len(self._threads) == len(self._works) and not self._stop.requested

    def start(self) -> None:
        """Start the threads. A second call does nothing.

        Raises:
            RuntimeError: There is no room for one of them; a later call starts those that are missing.
        """
        with self._starting:
            for name, work in list(self._works.items())[len(self._threads) :]:
                thread = threading.Thread(target=work, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
                if self.running and isinstance(self._store, SupportsNotify):
                    self._stop_listening = self._store.listen(self.wake)
                self.wake_all()

    def wake(self) -> None:
        """Have the next round of dispatching begin now: there may be something to claim."""
        self.dispatcher.expect()
        self._to_claim.set()

    def wake_all(self) -> None:
        """Have the next rounds of dispatching and reconciling begin now."""
        self._to_reconcile.set()
        self.wake()

    def run_over(self, token: str) -> None:
        """Hold an attempt no longer: a run of it reported its end, or its job is gone."""
        self.keeper.release(token)
        self._to_claim.set()

    def noticed(self, job: Job) -> None:
        """Go on at once with a job that this process has just written, instead of at the next round."""
        self._claim_after(job)
        if self.running and job.ready_at is None and job.due_at is not None and job.due_at <= job.updated_at:
            self.reconciler.hand_on(job)

    def _claim_after(self, job: Job) -> None:
        """Have claimed in time what a write of this process lets be claimed: a retry, or a job that was at a limit."""
        if not self.running:
            return
        if job.ready_at is not None:
            self._polls.at(job.ready_at - job.updated_at)
            self._to_claim.set()
        if frees(job, self._policy):
            self.wake()
            notify(self._store)

    def _freed(self) -> None:
        """Claim again: a slot of this process became free."""
        self._to_claim.set()

    def tick(self) -> int:
        """Take one round: dispatch what is ready, to the end of the dispatching, then reconcile.

        A backend, a bucket or a host of audio that hangs ends the wait for it after a while.
        """
        self.keeper.collect_now(TICK_S)
        taken = self.dispatcher.tick()
        self.dispatcher.drain(TICK_S)
        self.keeper.tick()
        self.keeper.collect_now(TICK_S)
        return taken + self.reconciler.tick()

    def close(self) -> None:
        """Stop the threads, end local renders and hand their jobs back."""
        self._stop.request("the worker closes")
        self._stop_listening()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self.dispatcher.close()
        self.lanes.wind_up(_CLOSE_S)
        self.keeper.hand_back()
        notify(self._store)
        self.lanes.close(_CLOSE_S)

    def _round(self) -> None:
        if self.reconciler.round():
            self.wake()

    def _dispatch(self) -> None:
        self._repeat(self._claim, self._to_claim, self._until_claim_s)

    def _reconcile(self) -> None:
        self._repeat(self._round, self._to_reconcile, lambda: self.reconciler.pause(self._reconcile_s))

    def _until_claim_s(self) -> float:
        left_s = self._polls.left_s
        if self.keeper.winding_up:
            return min(left_s, _WIND_UP_S)
        return min(left_s, _COLLECT_S) if self.keeper.computing else left_s

    def _claim(self) -> None:
        if self._polls.due():
            self.dispatcher.expect()
        self.keeper.flush()
        self.keeper.collect_soon()
        self.dispatcher.round()

    def _repeat(self, work: Callable[[], object], woken: threading.Event, pause_s: Callable[[], float]) -> None:
        """Do the work when it is woken, and after each pause; ever more slowly while the store is away."""
        failures = 0
        while not self._stop.requested:
            woken.wait(pause_s())
            woken.clear()
            if self._stop.requested:
                return
            try:
                work()
                failures = 0
            except StoreUnavailableError as error:
                failures += 1
                away_s = _AWAY.after(failures)
                _log.warning("the store is away, trying again in %.1f s: %s", away_s, error)
                self._stop.wait(away_s)
            except Exception:  # noqa: BLE001 - whatever it was, the other jobs go on
                _log.exception("a round of work failed")
                self._stop.wait(_AWAY_S)

    def _renew(self) -> None:
        while not self._stop.wait(self._renew_s):
            self.keeper.tick()

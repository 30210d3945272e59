"""Which ready jobs does this process take?

As many as its backends have room for. A dispatcher claims a job, holds its attempt, and has a thread prepare it.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Final

from attrs import define, field

from renderdispatch.engine.commit import commit_patiently
from renderdispatch.engine.events import Claimed, ClockAdvanced
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import GivenUp, LeaseKeeper
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.preparation import Preparation
from renderdispatch.errors import JobNotFoundError
from renderdispatch.jobs import Job
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import JobQuery, Locality, SupportsClaim

_log: Final = logging.getLogger("renderdispatch.engine.dispatch")

_BATCH: Final = 10
_CLAIM_PATIENCE_S: Final = 2.0
_THREADS: Final = 4
"""How many jobs are prepared at once."""


@define(eq=False)
class Dispatcher:
    """Claims jobs and starts them, for one process.

    Args:
        inbox: Takes the events of local runs.
        wake: Called when a preparation ended: there may be room, or something to reconcile.
    """

    _parts: Parts
    _keeper: LeaseKeeper
    _inbox: Inbox
    _wake: Callable[[], None]
    _pool: ThreadPoolExecutor = field(
        factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="renderdispatch-dispatch"), init=False
    )
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _busy: set[Future[None]] = field(factory=set, init=False)
    _closing: Stop = field(factory=lambda: Stop(error=GivenUp), init=False)

    def tick(self) -> int:
        """Note which calls ended, then claim ready jobs while there is room for them; return how many were taken."""
        self._keeper.collect()
        taken = 0
        for name, backend in self._parts.backends.items():
            room = _BATCH if backend.slots is None else backend.slots - self._keeper.count(name)
            room = min(room, _THREADS - len(self._preparing()))
            if room > 0:
                for job in self._ready(name, room):
                    taken += self._take(job, name)
        return taken

    def drain(self) -> None:
        """Wait until every job that was taken is dispatched, or failed."""
        while busy := self._preparing():
            wait(busy)

    def close(self) -> None:
        """Give up the jobs that are being prepared, each at its next step, and take no more."""
        self._closing.request("the worker closes")
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ready(self, backend: str, limit: int) -> list[Job]:
        store, machine = self._parts.store, self._parts.machine
        if isinstance(store, SupportsClaim):
            return store.claim(limit=limit, reserve_for=self._keeper.lease, backends=[backend], machine=machine)
        backends = frozenset([backend])
        query = JobQuery(order="ready", ready_by=store.now(), backends=backends, machine=machine, limit=limit)
        return list(store.query(query).items)

    def _take(self, job: Job, name: str) -> bool:
        store = self._parts.store
        if store.now() > job.finish_by:  # it waited too long: nothing is begun that must fail
            with suppress(JobNotFoundError):
                commit_patiently(store, job, ClockAdvanced(), patience_s=_CLAIM_PATIENCE_S, stop=self._closing)
            return False
        claim = Claimed(
            token=secrets.token_hex(16),
            holder=self._keeper.holder,
            lease_until=store.now() + self._keeper.lease,
            backend=name,
            local=self._parts.backends[name].locality < Locality.WORLD,
        )
        try:
            decision = commit_patiently(store, job, claim, patience_s=_CLAIM_PATIENCE_S, stop=self._closing)
        except JobNotFoundError:
            return False
        job = decision.job
        if job.attempt is None or job.attempt.token != claim.token:  # ours also if the answer to a first try was lost
            return False
        held = self._keeper.hold(job, Stop(parent=self._closing, error=GivenUp))
        preparation = Preparation(self._parts, self._keeper, self._inbox, job, held, self._closing)
        future = self._pool.submit(preparation.run)
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

"""What runs in the background of a process?

Three threads: one dispatches, one reconciles (which may wait for a slow bucket), one renews leases. A worker belongs
to the process id that made it; after a fork the child makes its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from renderdispatch.engine.dispatch import Dispatcher
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import LeaseKeeper
from renderdispatch.engine.reconcile import Reconciler
from renderdispatch.errors import StoreUnavailableError
from renderdispatch.messages import Callback
from renderdispatch.protocols import AudioFetcher, JobStore, RenderBackend, StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.worker")

_POLL_S: Final = 0.5
_WIND_UP_S: Final = 0.05
"""How soon a slot is looked at that is about to become free."""
_RECONCILE_S: Final = 2.0
_AWAY_S: Final = 5.0


class Worker:
    """Dispatcher, reconciler and leases of one process; `start` gives them threads, `tick` takes one round.

    Args:
        lease: How long an attempt stays with a holder that gives no sign of life.
    """

    def __init__(
        self,
        store: JobStore,
        storage: StorageAdapter,
        backends: Mapping[str, RenderBackend],
        *,
        machine: str,
        fetcher: AudioFetcher | None,
        lease: timedelta,
        callback: Callable[[str, int], Callback] | None = None,
    ) -> None:
        self.pid = os.getpid()
        holder = f"{machine}:{self.pid}:{secrets.token_hex(4)}"
        self.keeper = LeaseKeeper(store, backends, holder=holder, lease=lease)
        self.inbox = Inbox(store, over=self.run_over)
        self.dispatcher = Dispatcher(
            store,
            storage,
            backends,
            self.keeper,
            self.inbox,
            machine=machine,
            fetcher=fetcher,
            wake=self.look,
            callback=callback,
        )
        self.reconciler = Reconciler(store, storage, backends)
        self._backends = backends
        self._renew_s = lease.total_seconds() / 3
        self._reconcile_s = min(_RECONCILE_S, lease.total_seconds() / 4)
        self._woken = threading.Event()
        self._news = threading.Event()
        self._closing = threading.Event()
        self._works: dict[str, Callable[[], None]] = {
            "renderdispatch-leases": self._renew,
            "renderdispatch-reconciler": self._reconcile,
            "renderdispatch-worker": self._work,  # the last one: what it claims would be lost without the others
        }
        self._starting = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> bool:
        return len(self._threads) == len(self._works) and not self._closing.is_set()

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

    def wake(self) -> None:
        """Have the next round of dispatching begin now: there is something to claim."""
        self._woken.set()

    def look(self) -> None:
        """Have the next round begin now, and look at what is due: something came to an end."""
        self._news.set()
        self._woken.set()

    def run_over(self, token: str) -> None:
        """Hold an attempt no longer: a run of it reported its end, or its job is gone."""
        self.keeper.release(token)
        self.look()

    def tick(self) -> int:
        """Take one round: dispatch what is ready, to the end of the dispatching, then reconcile."""
        taken = self.dispatcher.tick()
        self.dispatcher.drain()
        self.keeper.tick()
        self.keeper.collect()
        return taken + self.reconciler.tick()

    def close(self) -> None:
        """Stop the threads, end local renders and hand their jobs back."""
        self.reconciler.stop()
        self._closing.set()
        self._woken.set()
        self._news.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self.dispatcher.close()
        self.keeper.hand_back()

    def _work(self) -> None:
        def dispatch() -> None:
            self.keeper.collect()
            self.dispatcher.tick()

        self._repeat(dispatch, self._woken, lambda: _WIND_UP_S if self.keeper.winding_up else _POLL_S)

    def _reconcile(self) -> None:
        self._repeat(self.reconciler.tick, self._news, lambda: self._reconcile_s)

    def _repeat(self, work: Callable[[], object], woken: threading.Event, pause_s: Callable[[], float]) -> None:
        """Do the work when it is woken, and after each pause; ever more slowly while the store is away."""
        away_s = 0.0
        while not self._closing.is_set():
            woken.wait(pause_s())
            woken.clear()
            if self._closing.is_set():
                return
            try:
                work()
                away_s = 0.0
            except StoreUnavailableError as error:
                away_s = min(_AWAY_S, 2 * away_s + _POLL_S)
                _log.warning("the store is away, trying again in %g s: %s", away_s, error)
            except Exception:  # noqa: BLE001 - whatever it was, the other jobs go on
                away_s = _AWAY_S
                _log.exception("a round of work failed")
            self._closing.wait(away_s)

    def _renew(self) -> None:
        while not self._closing.wait(self._renew_s):
            self.keeper.tick()

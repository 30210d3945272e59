"""What runs behind a service, in this process?

The parts that it was put together from, and one worker and one webhook receiver for each process id. A service and
its views for tenants share an engine.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final, Protocol

from attrs import frozen

from renderdispatch.engine.inbox import Inbox, WebhookReceiver
from renderdispatch.engine.worker import Worker
from renderdispatch.errors import ConfigurationError
from renderdispatch.jobs import Job
from renderdispatch.messages import Callback, RenderRequest
from renderdispatch.protocols import AudioFetcher, JobStore, RenderBackend, StorageAdapter
from renderdispatch.webhooks import AttemptKeys


class Closable(Protocol):
    """Something that can be closed."""

    def close(self) -> None:
        """Release it."""


@frozen(kw_only=True)
class Parts:
    """What a service is put together from."""

    store: JobStore
    storage: StorageAdapter
    backends: Mapping[str, RenderBackend]
    checks: Mapping[str, Callable[[RenderRequest], None]]
    route: Callable[[RenderRequest], str] | None
    fetcher: AudioFetcher | None
    worker: bool
    lease: timedelta
    machine: str
    keys: AttemptKeys | None
    webhook_url: str | None
    owned: tuple[Closable, ...]


class Engine:
    """The parts, and the worker of this process: shared by a service and its views for tenants."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.closed = False
        self.begin()
        _engines.add(self)

    def begin(self) -> None:
        """Begin in this process. A child begins afresh, for a lock that was held at the fork stays locked."""
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._receiver: WebhookReceiver | None = None

    def worker(self) -> Worker:
        """Return this process's worker; after a fork the child gets its own."""
        with self._lock:
            self.check_open()
            if self._worker is None:
                parts = self.parts
                self._worker = Worker(
                    parts.store,
                    parts.storage,
                    parts.backends,
                    machine=parts.machine,
                    fetcher=parts.fetcher,
                    lease=parts.lease,
                    callback=self._callback if parts.webhook_url is not None else None,
                )
            return self._worker

    def check_open(self) -> None:
        """Raise `ConfigurationError` once the service is closed."""
        if self.closed:
            raise ConfigurationError("the service is closed")

    def _callback(self, job_id: str, attempt: int) -> Callback:
        parts = self.parts
        assert parts.keys is not None
        assert parts.webhook_url is not None
        return Callback(url=parts.webhook_url, key=parts.keys.secret(job_id=job_id, attempt=attempt))

    def _run_over(self, token: str) -> None:
        worker = self._worker
        if worker is not None and worker.pid == os.getpid():
            worker.run_over(token)

    def receiver(self) -> WebhookReceiver:
        """Return what answers webhooks.

        Raises:
            ConfigurationError: There is no secret: nothing would be verified.
        """
        if self.parts.keys is None:
            raise ConfigurationError("webhooks need a secret: RenderService(secrets=[...]) or RENDERDISPATCH_SECRETS")
        with self._lock:
            if self._receiver is None:
                inbox = Inbox(self.parts.store, over=self._run_over, check=self.check_open)
                self._receiver = WebhookReceiver(inbox, self.parts.keys)
            return self._receiver

    def start(self) -> None:
        """Start this process's worker, where this service has one. A second call does nothing."""
        if self.parts.worker:
            self.worker().start()

    def created(self) -> None:
        """Let a running worker of this process claim a new job at once."""
        worker = self._worker
        if worker is not None and worker.pid == os.getpid():
            worker.wake()

    def changed(self, job: Job) -> None:
        """Let a running worker of this process act on what was decided about the job at once."""
        worker = self._worker
        if worker is not None and worker.pid == os.getpid():
            worker.keeper.look(job)
            worker.look()

    def reconciled(self, job: Job) -> Job:
        """Return the job as it is now; one that is due is reconciled first, unless a worker of this process does it."""
        if self.closed or (self._worker is not None and self._worker.running):
            return job
        return self.worker().reconciler.look(job)

    def close(self) -> None:
        """Stop the worker, then close what is owned. A second call does nothing."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        for part in self.parts.owned:
            part.close()


_engines: Final[weakref.WeakSet[Engine]] = weakref.WeakSet()


def _begin_in_child() -> None:
    for engine in list(_engines):
        engine.begin()


os.register_at_fork(after_in_child=_begin_in_child)

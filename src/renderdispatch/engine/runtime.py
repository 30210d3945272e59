"""What runs behind a service, in this process?

One worker and one receiver of webhooks for each process, built from the service's parts. A service and its views for
tenants share an engine. What only some processes need is imported at its first use: many of them only submit and poll.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from renderdispatch.engine.parts import Closable, Parts
from renderdispatch.engine.waking import frees, notify
from renderdispatch.errors import ConfigurationError, InvalidRequestError, JobNotFoundError
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.plumbing.interpreter import require_threads
from renderdispatch.plumbing.lanes import Lane
from renderdispatch.plumbing.per_process import PerProcess

if TYPE_CHECKING:
    from renderdispatch.engine.inbox import WebhookReceiver
    from renderdispatch.engine.worker import Worker

_log: Final = logging.getLogger("renderdispatch.engine.worker")

_CLOSE_S: Final = 60.0
"""How long `close` waits for each part, which may be a third party's and hang."""


class Engine:
    """The parts, and the worker of this process: shared by a service and its views for tenants."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._open = [True]  # emptied by `close`: to pop takes no lock, which a fork could leave behind
        self._worker = PerProcess(self._new_worker)
        self._receiver = PerProcess(self._new_receiver)

    def worker(self) -> Worker:
        """Return this process's worker; after a fork the child gets its own.

        Raises:
            ConfigurationError: The service is closed.
        """
        self.check_open()
        return self._worker.get()

    def receiver(self) -> WebhookReceiver:
        """Return what answers webhooks.

        Raises:
            ConfigurationError: There is no secret: nothing would be verified.
        """
        return self._receiver.get()

    def check_open(self) -> None:
        """Raise `ConfigurationError` once the service is closed."""
        if not self._open:
            raise ConfigurationError("the service is closed")

    def start(self) -> None:
        """Start this process's worker, if this service has one. A second call does nothing.

        Raises:
            ConfigurationError: Threads do not run in this process, or the service is closed.
        """
        if self.parts.worker:
            require_threads()
            self.worker().start()

    def expected(self) -> None:
        """Start the worker, for a job that is recorded, or will be when the application commits.

        The job is recorded whether or not a worker can be started here: the next call tries again.
        """
        try:
            self.start()
        except Exception as error:  # noqa: BLE001 - threads are limited, or the service is being closed
            _log.warning("no worker can be started in this process: %s", error)

    def created(self) -> None:
        """Start the worker; let it claim a new job at once, and those of other processes where the store wakes them."""
        self.expected()
        notify(self.parts.store)
        if (worker := self._worker.peek()) is not None:
            worker.wake()

    def cancel(self, job: Job) -> Job:
        """Commit a client's wish to cancel, and let a worker of this process act on it at once; return the new job."""
        from renderdispatch.engine import commit, events

        job = commit.commit(self.parts.store, job, events.CancelRequested()).job
        if (worker := self._worker.peek()) is not None:
            worker.keeper.obey(job)
            worker.noticed(job)
            worker.wake()
        return job

    def reconciled(self, job: Job) -> Job:
        """Return the job as it is now; one that is due is reconciled first, unless a worker of this process does it."""
        worker = self._worker.peek()
        if not self._open or (worker is not None and worker.running):
            return job
        return self.worker().reconciler.reconcile_if_due(job)

    def delete(self, job: Job) -> None:
        """Forget an ended job and remove its objects. Only this very job: a later one of the same id stays (rule J15).

        It expires first: after a crash, or while storage is away, a worker removes what is left.

        Raises:
            InvalidRequestError: The job has not ended, or something of it may still compute.
        """
        from renderdispatch.engine import retention

        if not job.ended:
            raise InvalidRequestError(f"job {job.id} is {job.status}; cancel it first", code="job.running")
        if job.owes_clean_up:
            self.worker().reconciler.reconcile(job)
            current = self.parts.store.get(job.id)
            if current.incarnation != job.incarnation:
                raise JobNotFoundError(f"job {job.id} was deleted, and a later job has its id")
            job = current
        if any(not a.stopped and not a.may_write and a.clean_up is CleanUp.OWED for a in job.attempts):
            message = f"an attempt of job {job.id} may still compute; try again when it was stopped"
            raise InvalidRequestError(message, code="job.clean-up-owed")
        job = retention.expire(self.parts.store, job)
        retention.remove(self.parts.store, self.parts.storage, job)

    def close(self) -> None:
        """Stop the worker, then close what is owned. A second call does nothing."""
        try:
            self._open.pop()
        except IndexError:
            return
        if (worker := self._worker.take()) is not None:
            worker.close()
        for part in self.parts.owned:
            _close(part)

    def _new_worker(self) -> Worker:
        from renderdispatch.engine.worker import Worker

        self.check_open()  # again: `close` takes the worker that there is, and none is made after it
        return Worker(self.parts)

    def _new_receiver(self) -> WebhookReceiver:
        if self.parts.keys is None:
            raise ConfigurationError("webhooks need a secret: RenderService(secrets=[...]) or RENDERDISPATCH_SECRETS")
        from renderdispatch.engine.inbox import Inbox, WebhookReceiver

        inbox = Inbox(self.parts.store, self._run_over, self._noticed, self.check_open)
        return WebhookReceiver(inbox, self.parts.keys)

    def _run_over(self, token: str) -> None:
        if (worker := self._worker.peek()) is not None:
            worker.run_over(token)

    def _noticed(self, job: Job) -> None:
        worker = self._worker.peek()
        if worker is not None and worker.running:
            worker.noticed(job)
            return
        if frees(job, self.parts.policy):
            notify(self.parts.store)


def _close(part: Closable) -> None:
    """Close a part. If it raises or hangs, that is logged: the parts after it are closed all the same."""
    lane = Lane("renderdispatch-close", 1)
    if not lane.submit("close", part.close):  # no thread can be started, perhaps because the process ends
        part.close()
    elif not lane.drain(_CLOSE_S):
        _log.warning("a %s is still closing after %g s: it is left behind", type(part).__name__, _CLOSE_S)
    lane.close()
    lane.join(0.1)

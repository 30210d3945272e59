"""Where does the next attempt of a job run, if a policy decides?

The policy is the application's: a function of the request and the attempts so far (`renderdispatch.failover`). It is
asked at submit, and after each attempt that failed. A choice is an event like any other, so of several processes that
ask, one decides. A backend that finds something wrong with the request counts as one that refused to start it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

from attrs import define, field

from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import Rerouted
from renderdispatch.engine.parts import Reroute
from renderdispatch.engine.transitions import Verdict
from renderdispatch.errors import InvalidRequestError, UnknownNameError
from renderdispatch.jobs import Attempt, Job
from renderdispatch.messages import FaultDomain, RenderRequest
from renderdispatch.plumbing.failures import job_error
from renderdispatch.protocols import CLOCK_STEP, JobStore, Locality, RenderBackend, SupportsCheck

_log: Final = logging.getLogger("renderdispatch.engine.rerouting")

LEFT_TO_OTHERS: Final = timedelta(minutes=1)
"""How long a process that cannot choose leaves a job to others, before its next attempt runs where the last one ran."""


def first_backend(policy: Reroute, backends: Mapping[str, RenderBackend], request: RenderRequest, now: datetime) -> str:
    """Return the backend of the first attempt: the first one of the policy's that finds nothing wrong.

    Raises:
        InvalidRequestError: All of them find something wrong; the error is that of the first.
        UnknownNameError: ``backend.unknown``: the policy chose something else.
    """
    first: InvalidRequestError | None = None
    refused: tuple[Attempt, ...] = ()
    while True:
        name: object = policy(request, refused)
        if not isinstance(name, str) or name not in backends:
            raise UnknownNameError.of("backend", str(name), backends, code="backend.unknown")
        if first is not None and any(attempt.backend == name for attempt in refused):
            raise first
        error = _objection(backends[name], request, name)
        if error is None:
            return name
        first = first or error
        refused = (*refused, _refused(name, backends[name], error, refused, now))


@define(eq=False)
class Rerouting:
    """Has the policy choose where jobs are tried again.

    Args:
        policy: None leaves the choice to other processes, for a while.
        ready: Called when a job may be claimed.
    """

    _store: JobStore
    _backends: Mapping[str, RenderBackend]
    _policy: Reroute | None = None
    _ready: Callable[[], None] = field(default=lambda: None)

    @property
    def chooses(self) -> bool:
        """Whether this process has a policy."""
        return self._policy is not None

    def reroute(self, job: Job) -> Job:
        """Commit where the job's next attempt runs, if it waits for that; return the job as it is then."""
        last = job.attempt
        if job.ended or job.retry_at is None or last is None or last.ended_at is None:
            return job
        name = self._choice(job, last)
        if name is None:
            waited = self._store.now() - last.ended_at
            if -CLOCK_STEP <= waited < LEFT_TO_OTHERS:
                return job
            name = last.backend
        decision = commit(self._store, job, Rerouted(after=last.token, backend=name))
        if decision.verdict is Verdict.APPLIED and not decision.job.ended:
            code = "" if last.error is None else f" ({last.error.code})"
            _log.info("job %s: attempt %d on %s ended%s, next on %s", job.id, last.number, last.backend, code, name)
            self._ready()
        return decision.job

    def _choice(self, job: Job, last: Attempt) -> str | None:
        """Return the backend that the policy chooses; None if this process cannot tell.

        A policy that raises or returns no name chooses the last attempt's backend, and so does one that has no backend
        which takes the request.
        """
        if self._policy is None:
            return None
        attempts = job.attempts
        while True:
            try:
                name: object = self._policy(job.request, attempts)
            except Exception:  # noqa: BLE001 - the application's: the job goes on all the same
                _log.exception("job %s: the failover policy failed; the job stays on %s", job.id, last.backend)
                return last.backend
            if not isinstance(name, str):
                kind = type(name).__name__
                _log.error("job %s: the failover policy returned a %s; it stays on %s", job.id, kind, last.backend)
                return last.backend
            backend = self._backends.get(name)
            if backend is None:
                _log.warning("job %s: the failover policy chose %s, which is not a backend here", job.id, name[:80])
                return None
            error = _objection(backend, job.request, name)
            if error is None:
                return name
            _log.warning("job %s: backend %s cannot take it: %s", job.id, name, error)
            if any(attempt.backend == name for attempt in attempts[len(job.attempts) :]):
                return last.backend
            attempts = (*attempts, _refused(name, backend, error, attempts, self._store.now()))


def _objection(backend: RenderBackend, request: RenderRequest, name: str) -> InvalidRequestError | None:
    """Return what a backend finds wrong with a request; None if it finds nothing, or cannot say."""
    if not isinstance(backend, SupportsCheck):
        return None
    try:
        backend.check(request.model_copy(update={"backend": name}))
    except InvalidRequestError as error:
        return error
    return None


def _refused(
    name: str, backend: RenderBackend, error: InvalidRequestError, before: tuple[Attempt, ...], now: datetime
) -> Attempt:
    """Return the attempt that a backend would have refused, for the policy to see."""
    return Attempt(
        number=before[-1].number + 1 if before else 1,
        token="",
        backend=name,
        local=backend.locality < Locality.WORLD,
        claimed_at=now,
        ended_at=now,
        error=job_error(error, otherwise=FaultDomain.REQUEST),
        refused=True,
        stopped=True,
    )

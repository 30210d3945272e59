"""How do the helpers of an attempt start, and how do they stop?

As its run does: the start is committed first, then the backend is called, then its call is committed (rule J2). What
was committed as starting is never started again. Only when it is to stop is it looked for, because only then does its
call matter. Nothing waits for a helper, so whatever goes wrong here costs time and no job.

Helpers are started and stopped in chunks of neighbouring shares: one write of the record serves a chunk. Of several
processes that see the same intents, the one whose write comes first starts the chunk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Final

from attrs import define, field, frozen

from renderdispatch import errors
from renderdispatch.engine import calls, events, layout, loans
from renderdispatch.engine.attachments import bundle_attachments
from renderdispatch.engine.commit import commit, patiently
from renderdispatch.engine.orders import TOO_LARGE, make_grants, make_helper_order, pack_grants
from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.jobs import URLS_EXPIRED, Attempt, Helper, HelperState, Job
from renderdispatch.messages import HelperOrder
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import (
    BackendCall,
    CallStatus,
    JobStore,
    Locality,
    RenderBackend,
    StorageAdapter,
    SupportsDeviceClass,
    SupportsHelpers,
)

_log: Final = logging.getLogger("renderdispatch.engine.helpers")

_CHUNK: Final = 8
_PATIENCE_S: Final = 30.0
"""How long the store may be away before calls that were started go unrecorded."""
_REMEMBERED: Final = 10_000

_Write = Callable[..., Decision]
"""Commits events, as `commit` does."""


@frozen
class Chunk:
    """Some helpers of one attempt, which are started or stopped one after another."""

    attempt: Attempt
    helpers: tuple[Helper, ...]

    @property
    def key(self) -> str:
        """Names it among all chunks."""
        return f"{self.attempt.token}/{self.helpers[0].share // _CHUNK}"


@define(eq=False)
class Helpers:
    """Starts and stops helpers, for one process."""

    _store: JobStore
    _storage: StorageAdapter
    _backends: Mapping[str, RenderBackend]
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _beginning: set[str] = field(factory=set, init=False)
    """The tokens of helpers whose start is in progress here."""

    _written: set[str] = field(factory=set, init=False)
    """The tokens of attempts whose helpers were told by an object to stop."""

    # --- what is to be done

    def to_start(self, job: Job) -> list[Chunk]:
        """Return the helpers that any process may start now. Those of this machine are started by their holder."""
        attempt = job.attempt
        if attempt is None or attempt.local or attempt.backend not in self._backends:
            return []
        return _chunks(attempt, job.helpers_to_start())

    def to_stop(self, job: Job) -> list[Chunk]:
        """Return the helpers that may compute, and are not wanted any more.

        Those of a backend that this process does not have are left to others, until their URLs expired.
        """
        return [
            chunk
            for attempt in job.attempts
            if (helpers := job.helpers_to_stop(attempt))
            if attempt.backend in self._backends or self._is_too_late(job)
            for chunk in _chunks(attempt, helpers)
        ]

    def to_write(self, job: Job) -> list[Attempt]:
        """Return the attempts whose helpers are still to be told by an object to stop."""
        return [a for a in job.attempts if a.token not in self._written and job.helpers_to_stop(a)]

    # --- starting

    def start(self, job: Job, helpers: Collection[Helper], *, write: _Write | None = None) -> dict[str, BackendCall]:
        """Start helpers of the job's current attempt; return their calls, by the helpers' tokens.

        A call that the record does not want by then, or does not have, was told to stop.

        Args:
            job: The job.
            helpers: Those to start, which were intended: of a remote attempt a whole chunk.
            write: Commits events; None commits them to the job's record.

        Raises:
            StorageError: Their grants could not be stored; they are still intended.
            StoreUnavailableError: Nothing was started; or what was started was not recorded, and is told to stop.
            JobNotFoundError: The job was deleted; what was started is told to stop.
        """
        attempt = job.attempts[-1]
        backend = self._backends[attempt.backend]
        write = write or partial(commit, self._store, job)
        if not isinstance(backend, SupportsHelpers):
            write(*[_stopped(attempt, helper) for helper in helpers])
            return {}
        try:
            orders = self._orders(job, helpers, backend)
        except errors.InvalidRequestError as error:
            _log.warning("job %s: it is drawn without helpers: %s", job.id, error)
            write(*[_stopped(attempt, helper) for helper in helpers])
            return {}
        tokens = {order.token for order in orders}
        with self._lock:
            self._beginning |= tokens
        try:
            starting = [events.HelperStarting(token=attempt.token, helper=token) for token in tokens]
            if write(*starting).verdict is not Verdict.APPLIED:  # another process starts them, or they are not wanted
                return {}
            return self._call(job, attempt, backend, orders, write)
        finally:
            with self._lock:
                self._beginning -= tokens

    def _call(
        self, job: Job, attempt: Attempt, backend: SupportsHelpers, orders: Sequence[HelperOrder], write: _Write
    ) -> dict[str, BackendCall]:
        """Call the backend for helpers that are committed as starting, and commit their calls."""
        begun: dict[str, BackendCall] = {}
        happened: list[events.JobEvent] = []
        for order in orders:
            try:
                call = calls.start_helper(backend, order)
            except errors.BackendError as error:
                _log.warning("job %s: helper %d was not started: %s", job.id, order.share, error)
                if error.outcome_known:
                    happened.append(events.HelperStopped(token=attempt.token, helper=order.token))
            except (errors.InvalidRequestError, errors.ConfigurationError) as error:
                _log.warning("job %s: helper %d can never be started: %s", job.id, order.share, error)
                happened.append(events.HelperStopped(token=attempt.token, helper=order.token))
            else:
                begun[order.token] = call
                happened.append(events.HelperStarted(token=attempt.token, helper=order.token, call_id=call.id))
        kept: set[str] = set()
        try:
            if happened:
                decision = patiently(partial(write, *happened), patience_s=_PATIENCE_S, stop=Stop())
                kept = _recorded(decision.job, attempt, begun)
        finally:
            for token in begun.keys() - kept:
                self._cancel(self._backends[attempt.backend], begun[token], job)
        return begun

    def _orders(self, job: Job, helpers: Collection[Helper], backend: RenderBackend) -> list[HelperOrder]:
        """Return the orders of helpers, whose grants are stored."""
        make = partial(
            make_helper_order,
            signer=self._storage,
            now=self._store.now(),
            local=backend.locality < Locality.WORLD,
            device_class=backend.device_class if isinstance(backend, SupportsDeviceClass) else None,
            borrowed=loans.borrowed(self._store, job),
        )
        attached = job.attached()
        try:
            orders = [make(job, helper, attached) for helper in helpers]
        except errors.InvalidRequestError as error:
            if error.code != TOO_LARGE or len(attached) < 2:
                raise
            bundle = bundle_attachments(attached, self._storage, layout.prefix_of(job))
            orders = [make(job, helper, attached, bundle=bundle) for helper in helpers]
        if any(order.pieces.folder is None for order in orders):
            self._keep_grants(job)
        return orders

    def _keep_grants(self, job: Job) -> None:
        """Store the grants of an attempt's helpers, unless they are stored."""
        attempt = job.attempts[-1]
        key = layout.grants_key(layout.prefix_of(job), attempt.token, helpers=True)
        with suppress(errors.ObjectNotFoundError):
            self._storage.stat(key)
            return
        assert attempt.pieces is not None
        prefixes, picture = loans.borrowed(self._store, job), layout.picture_in(attempt.pieces)
        lent = loans.borrowed_keys(self._storage, prefixes, picture)
        now = self._store.now()
        grants = make_grants(job, attempt.pieces, signer=self._storage, now=now, helpers=True, lent=lent)
        self._storage.put(key, pack_grants(grants), content_type="application/gzip")

    # --- stopping

    def stop(self, job: Job, chunk: Chunk) -> Job:
        """Tell helpers to stop, and record which of them have; return the job as it is then.

        Raises:
            StoreUnavailableError, JobNotFoundError: It is not recorded.
        """
        attempt = chunk.attempt
        backend, too_late = self._backends.get(attempt.backend), self._is_too_late(job)
        happened: list[events.JobEvent] = []
        for helper in chunk.helpers:
            try:
                stopped = backend is not None and self._is_stopped(backend, job, helper)
            except errors.BackendError as error:
                _log.warning("job %s: helper %d is told to stop again: %s", job.id, helper.share, error)
                stopped = False
            if stopped or too_late:  # its URLs are dead, so what it computes harms nothing
                happened.append(_stopped(attempt, helper))
        return commit(self._store, job, *happened).job if happened else job

    def _is_stopped(self, backend: RenderBackend, job: Job, helper: Helper) -> bool:
        """Tell a helper to stop; return whether it surely computes no more."""
        with self._lock:
            if helper.token in self._beginning:  # whoever starts it stops it, if the record wants that by then
                return False
        call, missing = calls.find(backend, job.id, token=helper.token, call_id=helper.call_id)
        if call is None:
            return missing
        calls.cancel(backend, call)
        return calls.poll(backend, call).status is not CallStatus.RUNNING

    def write_stop(self, job: Job, attempt: Attempt) -> None:
        """Store the object that tells the helpers of an attempt to stop; those that no backend finds see it too.

        Once their URLs expired none can read it, and nothing would delete it any more: then it is not stored.

        Raises:
            StorageError: Storage is away.
        """
        if not self._is_too_late(job):
            key = layout.stop_key(layout.prefix_of(job), attempt.token)
            self._storage.put(key, b"stop", content_type="text/plain")
        with self._lock:
            if len(self._written) >= _REMEMBERED:
                self._written.clear()  # some are written once more
            self._written.add(attempt.token)

    def _is_too_late(self, job: Job) -> bool:
        """Return whether the URLs of a job's helpers have expired."""
        return self._store.now() > job.finish_by + URLS_EXPIRED

    def _cancel(self, backend: RenderBackend, call: BackendCall, job: Job) -> None:
        try:
            calls.cancel(backend, call)
        except errors.BackendError as error:
            _log.warning("job %s: a helper was not told to stop, and ends by itself: %s", job.id, error)


def _chunks(attempt: Attempt, helpers: Collection[Helper]) -> list[Chunk]:
    grouped = groupby(helpers, lambda helper: helper.share // _CHUNK)
    return [Chunk(attempt, tuple(found)) for _, found in grouped]


def _stopped(attempt: Attempt, helper: Helper) -> events.HelperStopped:
    return events.HelperStopped(token=attempt.token, helper=helper.token)


def _recorded(job: Job, attempt: Attempt, begun: Mapping[str, BackendCall]) -> set[str]:
    """Return the tokens of the calls that are in the record, of an attempt that goes on."""
    found = next((each for each in job.attempts if each.token == attempt.token), None)
    if found is None or job.ended or job.is_unwanted(found):
        return set()
    known = {helper.token: helper.call_id for helper in found.helpers if helper.state is HelperState.STARTED}
    return {token for token, call in begun.items() if known.get(token) == call.id}

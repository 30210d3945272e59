"""What ends a job when nothing reports how it went?

The reconciler checks every job that is due, ever less often while nothing changes; `checks` says what a check is.
Deadlines and leases need the store alone, so one thread keeps all of them. What asks a bucket or a backend is done in
lanes, and so are orders to stop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from attrs import Factory, define, field

from renderdispatch import errors
from renderdispatch.engine.bulkheads import Bulkheads
from renderdispatch.engine.checks import Checks
from renderdispatch.engine.cleanup import UploadSweep
from renderdispatch.engine.clocks import Clocks
from renderdispatch.engine.rerouting import Rerouting
from renderdispatch.engine.retention import RetentionSweep
from renderdispatch.jobs import FAILOVER, Job
from renderdispatch.messages import JobStatus, Stage
from renderdispatch.plumbing.lanes import Lane
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import (
    LOOK_PAUSES,
    JobQuery,
    JobStore,
    RenderBackend,
    StorageAdapter,
    SupportsLooks,
    walk,
)

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")

_PAGE: Final = 100
_FRESH_S: Final = 1.0
"""For how long a job that was read or written is good enough to check it; later it is read again."""
_REMEMBERED: Final = 10_000
TICK_S: Final = 60.0
"""How long a round that a scheduler asks for waits for backends and storage that hang."""
_ORDERS_S: Final = 2.0
"""How long a check of such a round waits until backends have been told to stop what is not wanted."""
_CLIENT_S: Final = 2.0
"""How long a client waits for the check of its job."""


@define
class _Check:
    revision: int
    count: int
    next_s: float


@define(eq=False)
class _Schedule:
    """When a job that did not change is worth another check: ever less often, as `LOOK_PAUSES` says.

    It serves stores that cannot say so themselves, and keeps a client from asking the others at each poll.
    """

    _checks: dict[str, _Check] = field(factory=dict)

    def due(self, job: Job, now_s: float) -> bool:
        """Return whether to check the job now; if so, the next check is due after a pause."""
        check = self._checks.get(job.id)
        if check is None or check.revision != job.revision:
            check = self._checks[job.id] = _Check(job.revision, 0, now_s)
        if now_s < check.next_s:
            return False
        check.next_s = now_s + LOOK_PAUSES[min(check.count, len(LOOK_PAUSES) - 1)].total_seconds()
        check.count += 1
        return True

    def keep(self, job_ids: Collection[str]) -> None:
        """Forget every other job."""
        self._checks = {job_id: check for job_id, check in list(self._checks.items()) if job_id in job_ids}

    def bound(self) -> None:
        """Forget all jobs once they are very many, for callers that never `keep`."""
        if len(self._checks) > _REMEMBERED:
            self._checks.clear()


@define(eq=False)
class Reconciler:
    """Ends what nothing else ends.

    Args:
        lanes: Where a round has done what may take long.
        holds: Whether this process holds the attempt with this token.
        held: Returns the jobs whose attempts this process holds, as it read or wrote them last.
        lease: How long an attempt stays its holder's without a renewal.
        keep: For how long ended jobs are kept, by status.
        noticed: Called with each job that a check changed in a lane.
        rerouting: Chooses where jobs are tried again.
        stop: Has a round in progress end after the job that it checks.
        monotonic: The clock that spaces repeated checks of one job, and sweeps of the uploads, and by which leases and
            waiting jobs are watched; seconds.
    """

    _store: JobStore
    _storage: StorageAdapter
    _backends: Mapping[str, RenderBackend]
    _lanes: Bulkheads = field(factory=lambda: Bulkheads.of(()))
    _holds: Callable[[str], bool] = field(default=lambda _token: False, kw_only=True)
    _held: Callable[[], Iterable[Job]] = field(default=lambda: (), kw_only=True)
    _lease: timedelta = field(default=timedelta(seconds=30), kw_only=True)
    _keep: Mapping[JobStatus, timedelta] = field(factory=dict, kw_only=True)
    _noticed: Callable[[Job], None] = field(default=lambda _job: None, kw_only=True)
    _stop: Stop = field(factory=Stop, kw_only=True)
    rerouting: Rerouting = field(
        default=Factory(lambda self: Rerouting(self._store, self._backends), takes_self=True), kw_only=True
    )
    _monotonic: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _schedule: _Schedule = field(factory=_Schedule, init=False)
    clocks: Clocks = field(init=False)
    _checks: Checks = field(init=False)
    _sweep: UploadSweep = field(init=False)
    _retention: RetentionSweep = field(init=False)
    _looks: SupportsLooks | None = field(init=False)
    """The store, if it hands out looks."""

    def __attrs_post_init__(self) -> None:
        self._looks = self._store if isinstance(self._store, SupportsLooks) else None
        self.clocks = Clocks(self._store, self._holds, self._lease, self._seconds)
        self._checks = Checks(self._store, self._storage, self._backends, self.clocks)
        self._sweep = UploadSweep(self._storage, self._monotonic())
        self._retention = RetentionSweep(self._store, self._keep)

    def tick(self) -> int:
        """Check every job that is due, to the end of each check; return how many were changed.

        Deadlines come first. What hangs is left to its lane after a minute, so that a scheduler's next round can come.
        """
        changed: list[str] = []

        def check(job: Job) -> None:
            if self._reconcile(job, self._told_and_asked):
                changed.append(job.id)

        begun: list[tuple[Lane, str]] = []
        for job in self._due():
            seen = self.clocks.doubt(job)
            noted = job if seen is None else self._checked(job, partial(self._checks.doubt, seen=seen))
            found = self._checked(noted or job, self._checks.clock) or job
            if found.revision != job.revision:
                changed.append(job.id)
            if self._is_turn(found):
                begun.append((self._ask_lane(job), f"check {job.id}"))
                lane, key = begun[-1]
                if not lane.submit(key, partial(check, found)) and not lane.has(key):
                    check(found)  # no thread can be started
        for key, sweep in self._due_sweeps():
            begun.append((self._lanes.tidy, key))
            if not self._lanes.tidy.submit(key, sweep) and not self._lanes.tidy.has(key):
                sweep()
        deadline = time.monotonic() + TICK_S
        for lane, key in begun:
            lane.wait_for(key, max(0.0, deadline - time.monotonic()))
        return len(set(changed))

    def round(self) -> int:
        """Enforce the deadlines and leases of every job that is due, and hand the rest of its check to the lanes.

        Return how many were changed.
        """
        changed = 0
        for job in self._due():
            if (found := self._checked(job, self._checks.clock)) is not None:
                changed += found.revision != job.revision
                if self._is_turn(found):
                    self._hand_on(found)
        for key, sweep in self._due_sweeps():
            self._lanes.tidy.submit(key, sweep)
        return changed

    def pause(self, longest_s: float) -> float:
        """Return the seconds until the next round: less when a lease is about to lapse."""
        return min(longest_s, self.clocks.next_lapse_s)

    def hand_on(self, job: Job) -> None:
        """Have the lanes go on with a job that was just written and is due."""
        self._hand_on(job)

    def _is_turn(self, job: Job) -> bool:
        """Return whether a due job is to be checked now; a store that hands out looks has decided it."""
        return self._looks is not None or self._schedule.due(job, self._monotonic())

    @property
    def _able(self) -> frozenset[str]:
        """What this process has, of what jobs need so that a look gets on."""
        return frozenset(self._backends) | ({FAILOVER} if self.rerouting.chooses else set())

    def _due(self) -> Iterator[Job]:
        """Yield the jobs that are due for a look."""
        self._judge_held()
        yield from self._lapsed()
        yield from self._claimed_looks(self._looks) if self._looks is not None else self._all_due()

    def _judge_held(self) -> None:
        """Enforce the deadlines of what this process holds: another one that claims the look may not (rule J13)."""
        if self.clocks.shared:
            return
        now = self._store.now()
        for job in self._held():
            if job.deadline_at is not None and job.deadline_at <= now:
                self._checked(job, self._checks.clock)

    def _claimed_looks(self, store: SupportsLooks) -> Iterator[Job]:
        """Yield the due jobs that no other process looks at now."""
        seen: set[str] = set()
        while not self._stop.requested:
            jobs = store.claim_looks(limit=_PAGE, able=self._able)
            for job in jobs:
                if self._stop.requested:
                    return
                yield job
            again = seen & {job.id for job in jobs}
            seen.update(job.id for job in jobs)
            if len(jobs) < _PAGE or again:  # they are due again: so many jobs are a round of their own
                return

    def _all_due(self) -> Iterator[Job]:
        seen: set[str] = set()
        for job in walk(self._store, JobQuery(order="due", due_by=self._store.now(), limit=_PAGE)):
            if self._stop.requested:
                return
            seen.add(job.id)
            yield job
        self._schedule.keep(seen)

    def _lapsed(self) -> Iterator[Job]:
        """Yield the jobs whose holder is gone, wherever their leases end by the clock."""
        query = self.clocks.leases()
        for job in () if query is None else walk(self._store, query):
            if self.clocks.lapsed(job):
                yield job
            elif (by := self.clocks.written_ahead(job)) is not None:  # it would be due only when the clock gets there
                self._checked(job, partial(self._checks.step, by=by))
        for job_id in self.clocks.ripe():
            try:
                job = self._store.get(job_id)
            except (errors.JobNotFoundError, errors.JobUnreadableError):
                self.clocks.forget(job_id)
            else:
                if self.clocks.lapsed(job):
                    yield job

    def _hand_on(self, job: Job) -> Sequence[Lane]:
        """Have the lanes do what may take long; return those that may have a part of it, in turn.

        None does, if there is nothing to do. What finds no room is due again later.
        """
        owed = job.owes_clean_up or job.owes_pieces or job.removal_at is not None
        if not owed and (job.attempt is None or job.ended):
            return ()
        ask = self._ask_lane(job)
        lanes = self._lanes.reroute, *self._orders_lanes(job), ask, self._lanes.bucket, self._lanes.tidy
        told = self._tell(job)
        told |= self._help(job)
        if job.retry_at is not None and not job.ended:
            told |= self._lanes.reroute.submit(job.id, partial(self._checked, job, self.rerouting.reroute))
        if job.ended:
            handed_on = self._tidy(job)
        elif job.stage is Stage.FINALIZING or job.attempts[-1].unwanted:
            handed_on = self._look(job)
        else:
            handed_on = self._then(ask, job, self._checks.ask, self._look)
        return lanes if told or handed_on else ()

    def _orders_lanes(self, job: Job) -> Mapping[Lane, set[str]]:
        """Return in which lanes the backends of the job's attempts are told to stop: a lost one may hang."""
        lanes: dict[Lane, set[str]] = {}
        for backend in self._checks.orders_of(job):
            lanes.setdefault(self._lanes.orders[self._lanes.name_of(backend)], set()).add(backend)
        return lanes

    def _tell(self, job: Job) -> bool:
        """Have each backend told to stop what is not wanted; return whether one will be."""
        told = False
        for lane, backends in self._orders_lanes(job).items():
            orders = partial(self._checks.orders, backends=backends)
            told |= lane.submit(job.id, partial(self._checked, job, orders))
        return told

    def _help(self, job: Job) -> bool:
        """Have helpers started or stopped; return whether any will be."""
        return bool([key for lane, key, work in self._helping(job) if lane.submit(key, work)])

    def _helping(self, job: Job) -> list[tuple[Lane, str, Callable[[], object]]]:
        """Return what is to be done for helpers, each with its lane: some are to be started, or all to be stopped.

        Their backend is told to stop them and an object is stored that says so; neither waits for the other.
        """
        helpers, lanes = self._checks.helpers, self._lanes
        works: list[tuple[Lane, str, Callable[[], object]]] = []

        def go_on(part: Callable[[Job], Job]) -> None:
            if not self._stop.requested and (found := self._checked(job, part)) is not None and found.ended:
                self._noticed(found)

        def add(lane: Lane, key: str, part: Callable[[Job], Job]) -> None:
            works.append((lane, key, partial(go_on, part)))

        for chunk in helpers.to_stop(job):
            lane = lanes.stop[lanes.name_of(chunk.attempt.backend)]
            add(lane, chunk.key, partial(self._checks.stop_helpers, chunk=chunk))
        if helpers.to_write(job):
            add(lanes.bucket, f"stop {job.id}", self._checks.tell_helpers)
        for chunk in helpers.to_start(job):
            lane = lanes.help[lanes.name_of(chunk.attempt.backend)]
            add(lane, chunk.key, partial(self._checks.start_helpers, chunk=chunk))
        return works

    def _ask_lane(self, job: Job) -> Lane:
        return self._lanes.ask[self._lanes.name_of("" if job.attempt is None else job.attempt.backend)]

    def _look(self, job: Job) -> bool:
        return self._then(self._lanes.bucket, job, self._checks.look, self._after_look)

    def _after_look(self, job: Job) -> None:
        self._help(job)
        self._tidy(job)

    def _tidy(self, job: Job) -> bool:
        owed = job.owes_clean_up or job.owes_pieces or job.removal_at is not None
        return owed and self._then(self._lanes.tidy, job, self._checks.tidy, lambda _job: None)

    def _then(self, lane: Lane, job: Job, part: Callable[[Job], Job], go_on: Callable[[Job], object]) -> bool:
        """Have a lane do a part of the job's check, with the job as it is by then, and hand on what is left.

        Return whether it will.
        """
        handed_on_s = self._monotonic()

        def work() -> None:
            if self._stop.requested:
                return
            with suppress(errors.JobNotFoundError, errors.JobUnreadableError):
                fresh = self._monotonic() - handed_on_s < _FRESH_S
                read = job if fresh else self._store.get(job.id)
                if (found := self._checked(read, part)) is None:
                    return
                if found.revision != read.revision:
                    self._noticed(found)
                go_on(found)

        return lane.submit(job.id, work) or lane.has(job.id)

    def _due_sweeps(self) -> list[tuple[str, Callable[[], None]]]:
        """Return what is done now and then, each with its key in the lane of clean-ups."""
        now_s = self._monotonic()
        uploads = [("uploads", self._sweep_uploads)] if self._sweep.next_s <= now_s else []
        return [*uploads, ("retention", self._sweep_jobs)] if self._retention.due(now_s) else uploads

    def _sweep_uploads(self) -> None:
        self._sweep.sweep(self._store.now(), self._monotonic())

    def _sweep_jobs(self) -> None:
        try:
            self._retention.sweep(self._store.now(), self._monotonic())
        except errors.StoreUnavailableError as error:
            _log.warning("expired jobs: the sweep is repeated later: %s", error)

    def _seconds(self) -> float:
        return self._monotonic()

    def reconcile_if_due(self, job: Job) -> Job:
        """Reconcile one job that a client asks about, if it is due for a check; return it as it is then.

        A backend or a bucket that hangs holds up the client for a moment only: its lanes go on.
        """
        if not _is_due(job, self._store.now()) or not self._schedule.due(job, self._monotonic()):
            return job
        self._schedule.bound()
        if self._looks is not None:
            looks = self._looks.claim_looks(limit=1, able=self._able, job_id=job.id)
            if not looks:  # another process looks at it, or is to
                return job
            job = looks[0]
        job = self._checked(job, self._checks.clock) or job
        if not (lanes := self._hand_on(job)):  # no thread can be started, or the client alone keeps the deadlines
            return self._store.get(job.id) if self.reconcile(job) else job
        deadline = time.monotonic() + _CLIENT_S
        for lane in lanes:
            lane.wait_for(job.id, max(0.0, deadline - time.monotonic()))
        return self._store.get(job.id)

    def reconcile(self, job: Job) -> bool:
        """Check one job; return whether it changed. What is away is tried again at a later check."""
        return self._reconcile(job, self._checks.check)

    def _reconcile(self, job: Job, check: Callable[[Job], Job]) -> bool:
        found = self._checked(job, check)
        if found is not None and found.retry_at is not None:
            found = self._checked(found, self.rerouting.reroute)
        return found is not None and found.revision != job.revision

    def _told_and_asked(self, job: Job) -> Job:
        """Check everything about the job. A backend that takes no order holds this up for a moment only."""
        lanes = self._orders_lanes(job)
        for lane, backends in lanes.items():
            tell = partial(self._checked, job, partial(self._checks.orders, backends=backends))
            if not lane.submit(job.id, tell) and not lane.has(job.id):
                tell()  # no thread can be started
        begun = [(lane, job.id) for lane in lanes]
        for lane, key, work in self._helping(job):
            begun.append((lane, key))
            if not lane.submit(key, work) and not lane.has(key):
                work()
        deadline = time.monotonic() + _ORDERS_S
        for lane, key in begun:
            lane.wait_for(key, max(0.0, deadline - time.monotonic()))
        return self._checks.questions(self._store.get(job.id) if begun else job)

    def _checked(self, job: Job, part: Callable[[Job], Job]) -> Job | None:
        """Return the job after a part of its check; None if the part failed, which is logged."""
        try:
            return part(job)
        except errors.JobNotFoundError:
            pass
        except (errors.StorageError, errors.BackendError, errors.StoreUnavailableError) as error:
            _log.warning("job %s: will be checked again: %s", job.id, error)
        except Exception:  # noqa: BLE001 - one broken record must not keep the others waiting
            _log.exception("job %s: could not be reconciled", job.id)
        return None


def _is_due(job: Job, now: datetime) -> bool:
    return job.due_at is not None and job.due_at <= now

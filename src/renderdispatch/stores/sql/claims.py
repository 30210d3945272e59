"""How are ready jobs handed out?

While no tenant has work for a backend, and nothing limits it, one statement claims its jobs (`plain`). Otherwise
tenants take turns within a transaction (`fair`). Either one ends the waits that are over, if there are any.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Final, Protocol

import sqlalchemy as sa
from attrs import asdict, define, field

from renderdispatch.engine.claims import Begun
from renderdispatch.jobs import URLS_EXPIRED, Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import Claim
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.database import Database, Transaction
from renderdispatch.stores.sql.fairness import Queue
from renderdispatch.stores.sql.firsts import BACKEND, NOW, OVER, end_waits, first_jobs, listed
from renderdispatch.stores.sql.listing import Readable
from renderdispatch.stores.sql.queues import QUEUES, WOKEN
from renderdispatch.stores.sql.statements import ORDERS, RECORD
from renderdispatch.stores.sql.tables import CLAIMABLE, JOBS, MACHINE, OURS, TENANT
from renderdispatch.stores.turns import Pause, Turns, is_plain

_c: Final = JOBS.c
_NONE: Final = sa.literal_column("''", sa.Text)
_FULL_S: Final = 0.25
"""How long a backend is left alone after a claim that limits left empty, unless this process wrote jobs."""

_MOST: Final = 1000
"""How many jobs a claim takes at most."""


class Clock(Protocol):
    """Tells the time."""

    def __call__(self, transaction: Transaction | None = None, /) -> datetime:
        """Return the time; within a transaction, by no other connection."""
        ...


@define
class Claims:
    """Begins attempts of ready jobs."""

    _database: Database
    _now: Clock
    _readable: Readable
    _shared: set[str] = field(factory=set)
    """Backends for which tenants had work at the last claim: it was not worth while to try the plain statement."""

    _stopped: dict[tuple[str, str | None], tuple[int, str]] = field(factory=dict)
    """By backend and machine: behind which tenant the last claim read no further, and had taken too few jobs."""

    _full_until: dict[str, float] = field(factory=dict)
    """Backends all of whose tenants were at a limit, and when to try them again, on this process's clock."""

    def changed(self) -> None:
        """Note that this process wrote jobs: a limit may leave room now."""
        if self._full_until:
            self._full_until.clear()

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        """Return which backends may have ready jobs, as `SupportsClaim.claimable` says."""
        now_s = time.monotonic()
        names = sorted(name for name in set(backends) if self._full_until.get(name, 0.0) <= now_s)
        if not names:
            return frozenset()
        values: dict[str, Any] = {"now": micros(self._now()), "machine": machine or "", **_numbered(names)}
        found = self._ready(names, values, machine)
        if None in found:
            with self._database.transaction() as transaction:
                end_waits(transaction, values["now"])
            found = self._ready(names, values, machine)
        return frozenset(name for name in found if name is not None)

    def _ready(self, names: list[str], values: dict[str, Any], machine: str | None) -> set[str | None]:
        statement = claimable_statement(len(names), elsewhere=machine is not None)
        return {row[0] for row in self._database.step(statement, values)[0]}

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin attempts of ready jobs, as `SupportsClaim.claim` says."""
        if limit <= 0:
            return []
        limit = min(limit, _MOST)
        begun = Begun.of(claim, self._now())
        if is_plain(claim.policy, claim.backend) and claim.backend not in self._shared:
            statement = plain(self._database.dialect, limit, elsewhere=claim.machine is not None)
            if rows := self._database.step(statement, begin_values(claim, begun))[0]:
                return list(self._readable(sorted(rows, key=_order)))
            if not self._database.step(CONTENDED, {"backend": claim.backend, "now": micros(begun.at)})[0]:
                return []
        return list(self._readable(self._fairly(claim, limit)))

    def _fairly(self, claim: Claim, limit: int) -> list[Any]:
        """Let the tenants take turns. Return the rows of the claimed jobs, in order."""
        with self._database.transaction() as transaction:
            here = claim.backend, claim.machine
            resume = self._stopped.pop(here, None)
            queue = Queue.open(
                transaction, self._database.dialect, claim, partial(self._now, transaction), resume=resume
            )
            turns = Turns(queue.room(limit))
            queue.read_players(turns)
            while (pause := turns.play()) is not Pause.DONE:
                if pause is Pause.PLAYERS:
                    queue.read_players(turns)
                else:
                    queue.read_jobs(turns)
            begun = Begun.of(claim, queue.moment)
            values = {**begin_values(claim, begun), "ids": json.dumps(turns.taken)}
            rows = transaction.step(chosen(self._database.dialect), values)[0] if turns.taken else []
            queue.close(turns)
        if queue.stopped is not None and len(turns.taken) < turns.limit:
            self._stopped[here] = queue.stopped
        (self._shared.add if queue.shared else self._shared.discard)(claim.backend)
        if turns.full and not turns.taken and queue.stopped is None:
            self._full_until[claim.backend] = time.monotonic() + _FULL_S
        order = {job_id: number for number, job_id in enumerate(turns.taken)}
        return sorted(rows, key=lambda row: order[row[0]])


def _numbered(names: list[str]) -> dict[str, str]:
    return {f"backend_{number}": name for number, name in enumerate(names)}


def _order(row: Any) -> tuple[int, int, str]:
    return -row[-2], row[-1], row[0]


_SHARED: Final = (
    sa.exists().where(QUEUES.c.backend == BACKEND, QUEUES.c.active == sa.literal_column("1")),
    sa.exists().where(WOKEN.c.backend == BACKEND),
)
"""Tenants have work for the backend, or gained some."""

CONTENDED: Final[sa.Select[Any]] = sa.select(sa.literal_column("1")).where(sa.or_(*_SHARED, *OVER))
"""Whether tenants take turns for a backend, or waits are over."""


@cache
def claimable_statement(number: int, *, elsewhere: bool) -> Any:
    """Return what finds backends with ready jobs; a row of NULL says that waits are over."""
    backends = [sa.bindparam(f"backend_{index}", type_=sa.Text) for index in range(number)]
    machines: list[Any] = [_NONE, sa.bindparam("machine", type_=sa.Text)] if elsewhere else [_NONE]
    ready = [
        sa.select(backend).where(
            sa.or_(
                *(
                    sa.select(_c.id)
                    .where(CLAIMABLE, OURS, _c.deadline_at >= NOW, _c.backend == backend, machine == MACHINE)
                    .order_by(TENANT, *ORDERS["ready"])  # so that the index is read, whatever is expected to be found
                    .limit(sa.literal_column("1", sa.Integer))
                    .scalar_subquery()
                    .is_not(None)
                    for machine in machines
                )
            )
        )
        for backend in backends
    ]
    over = sa.select(sa.cast(sa.null(), sa.Text)).where(sa.or_(*OVER))
    return sa.union_all(*ready, over)


def begin_values(claim: Claim, begun: Begun) -> dict[str, Any]:
    """Return what a claim writes."""
    times = {"at": micros(begun.at), "lease_until": micros(begun.lease_until)}
    return {
        "now": times["at"],
        "lease": times["lease_until"],
        "begun": json.dumps(asdict(begun) | times),
        "backend": claim.backend,
        "machine": claim.machine or "",
    }


def _begin() -> dict[str, Any]:
    """Return what a claim sets in each row; until then ``deadline_at`` is the job's ``finish_by``."""
    lease = sa.bindparam("lease", type_=sa.BigInteger)
    expired = sa.literal_column(str(URLS_EXPIRED // timedelta(microseconds=1)), sa.BigInteger)
    return {
        "claim": sa.bindparam("begun", type_=sa.Text),
        "revision": _c.revision + sa.literal_column("1"),
        "status": sa.literal_column(f"'{JobStatus.PROCESSING.value}'", sa.Text),
        "ready_at": None,
        "waits_since": _c.ready_at,
        "attempted": sa.literal_column("1"),
        "look_at": sa.case((_c.look_at < lease, _c.look_at), else_=lease),
        "looks": sa.literal_column("0"),
        "deadline_at": sa.case((_c.deadline_at < lease, _c.deadline_at), else_=lease),
        "lease_until": lease,
        "held_on": BACKEND,
        "held": sa.literal_column("1"),
        "held_until": _c.deadline_at + expired,
    }


def _these(dialect: str, ids: Any) -> sa.ColumnElement[bool]:
    """Return the condition for rows by id. PostgreSQL would join a sub-select, at times by reading the table."""
    return _c.id == sa.any_(sa.func.array(ids.scalar_subquery())) if dialect == "postgresql" else _c.id.in_(ids)


@cache
def plain(dialect: str, limit: int, *, elsewhere: bool) -> Any:
    """Return what claims jobs without a tenant, unless there are turns to take or waits to end."""
    machines: list[Any] = [_NONE, sa.bindparam("machine", type_=sa.Text)] if elsewhere else [_NONE]
    firsts = [first_jobs(_NONE, machine, limit).subquery() for machine in machines]
    found = firsts[0] if len(firsts) == 1 else sa.union_all(*(sa.select(first) for first in firsts)).subquery()
    ids = sa.select(found.c.id)
    if len(firsts) > 1:
        ids = ids.order_by(found.c.priority.desc(), found.c.ready_at, found.c.id)
        ids = ids.limit(sa.literal_column(str(limit), sa.Integer))
    return (
        sa.update(JOBS)
        .where(_these(dialect, ids), *(~condition for condition in (*_SHARED, *OVER)))
        .values(_begin())
        .returning(*RECORD, _c.priority, _c.waits_since)
    )


@cache
def chosen(dialect: str) -> Any:
    """Return what claims the jobs that were chosen."""
    return sa.update(JOBS).where(_these(dialect, listed(dialect, "ids"))).values(_begin()).returning(*RECORD)

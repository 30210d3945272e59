"""How many jobs are there, and which place in the queue has one, without counting all of them?

Ended jobs are counted as they end, by a trigger. Jobs that are live are counted by an index.

The place of a job follows from virtual times. Each job of a tenant has a time: that of its tenant when it is its turn.
Jobs are claimed in the order of (time, tenant). So the place is how many jobs of each tenant have a lesser time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import sqlalchemy as sa
from attrs import define, frozen

from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import MAX_POSITION
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.database import Database
from renderdispatch.stores.sql.firsts import BACKEND, with_machines
from renderdispatch.stores.sql.statements import ORDERS
from renderdispatch.stores.sql.tables import CLAIMABLE, JOBS, LIVE, MACHINE, TENANT
from renderdispatch.stores.turns import NO_TENANT, cost

_c: Final = JOBS.c
_MOST: Final = sa.literal_column(str(MAX_POSITION + 1), sa.Integer)
_PLAYERS: Final = 64
"""How many tenants are read at once: the literal in `_STATE` and `_LATER`."""

_COUNTS: Final = sa.table(
    "renderdispatch_counts",
    *(sa.column(name, sa.Text) for name in ("tenant", "status")),
    sa.column("number", sa.BigInteger),
)

_STATE: Final = sa.text(
    with_machines("""
    SELECT 'turn' AS kind, tenant AS name, time FROM (
        SELECT tenant, time FROM renderdispatch_queues
        WHERE backend = :backend AND active = 1 AND hidden_until IS NULL ORDER BY time, tenant LIMIT 64
    ) AS turns
    UNION ALL
    SELECT 'hidden', tenant, time FROM (
        SELECT tenant, time FROM renderdispatch_queues
        WHERE backend = :backend AND active = 1 AND hidden_until IS NOT NULL LIMIT 1000
    ) AS hidden
    UNION ALL
    SELECT 'own', tenant, time FROM renderdispatch_queues WHERE backend = :backend AND tenant IN ('', :tenant)
    UNION ALL
    SELECT 'clock', '', max(claimed) FROM renderdispatch_queues WHERE backend = :backend
    UNION ALL
    SELECT 'woken', woken.tenant, coalesce(queues.time, 0) FROM (
        SELECT DISTINCT tenant FROM renderdispatch_woken WHERE backend = :backend LIMIT 1000
    ) AS woken LEFT JOIN renderdispatch_queues AS queues ON queues.backend = :backend AND queues.tenant = woken.tenant
    UNION ALL
    SELECT 'machine', name, 0 FROM machines WHERE name IS NOT NULL
""")
)
_LATER: Final = sa.text("""
    SELECT tenant, time FROM renderdispatch_queues
    WHERE backend = :backend AND active = 1 AND hidden_until IS NULL AND (time, tenant) > (:time, :tenant)
    ORDER BY time, tenant LIMIT 64
""")
_FIRST_OF_MANY: Final = sa.text("""
    SELECT wanted.value->>0, count(*), coalesce(sum(abs(first.attempted)), 0)
    FROM json_array_elements(CAST(:wanted AS json)) AS wanted (value)
    CROSS JOIN json_array_elements_text(CAST(:machines AS json)) AS machines (name)
    CROSS JOIN LATERAL (
        SELECT attempted FROM renderdispatch_jobs
        WHERE ready_at IS NOT NULL AND waits_since IS NULL AND backend = :backend
            AND coalesce(machine, '') = machines.name AND coalesce(tenant, '') = wanted.value->>0
        ORDER BY priority DESC, ready_at, id LIMIT CAST(wanted.value->>1 AS BIGINT)
    ) AS first
    GROUP BY wanted.value->>0
""")
_FIRST: Final = sa.text("""
    SELECT count(*), coalesce(sum(abs(attempted)), 0) FROM (
        SELECT attempted FROM renderdispatch_jobs
        WHERE ready_at IS NOT NULL AND waits_since IS NULL AND backend = :backend
            AND coalesce(machine, '') = :machine AND coalesce(tenant, '') = :tenant
        ORDER BY priority DESC, ready_at, id LIMIT :number
    ) AS first
""")


@define
class _Other:
    """A tenant beside the job's: what its jobs cost, and when its next turn is."""

    tenant: str
    time: int
    cost: int

    def turns_before(self, time: int, tenant: str) -> int:
        """Return how many of its turns come before another tenant's at a time, if each costs something."""
        if (self.time, self.tenant) >= (time, tenant):
            return 0
        whole, rest = divmod(time - self.time, self.cost)
        return min(MAX_POSITION + 1, whole + (1 if rest or self.tenant < tenant else 0))


@frozen
class Counting:
    """Counts jobs."""

    _database: Database

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        statement = counts_statement(of_tenant=tenant is not None, of_batch=batch is not None)
        values = {"tenant": tenant, "batch": batch}
        rows = self._database.step(statement, {name: value for name, value in values.items() if value is not None})[0]
        found = {status: int(count) for status, count in rows}
        return {status: found.get(status.value, 0) for status in JobStatus}

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return the job's place in the queue, as `SupportsCounts.position` says."""
        if job.ready_at is None:
            return None
        own = job.tenant or NO_TENANT
        rows = self._database.step(_STATE, {"backend": job.backend, "tenant": own})[0]
        machines = [name for kind, name, _ in rows if kind == "machine"]
        there, before, saved = self._own(job, machines)
        if not there:
            return None
        if before >= MAX_POSITION:
            return MAX_POSITION + 1
        times = _times(rows, own)
        mine = times.pop(own, 0) + (before - saved) * cost(policy, own)
        place = 1 + before
        full = sum(kind == "turn" for kind, _, _ in rows) == _PLAYERS
        last = max(((time, name) for kind, name, time in rows if kind == "turn"), default=(0, ""))
        others = times
        while place <= MAX_POSITION:
            found = [_Other(name, time, cost(policy, name)) for name, time in others.items() if name != own]
            place += self._before(job.backend, found, (mine, own), machines, MAX_POSITION + 1 - place)
            if not full or last >= (mine, own):
                break
            later = self._database.step(_LATER, {"backend": job.backend, "time": last[0], "tenant": last[1]})[0]
            others = {name: time for name, time in later if name not in times}
            full = len(later) == _PLAYERS
            last = (later[-1][1], later[-1][0]) if later else last
        return min(place, MAX_POSITION + 1)

    def _own(self, job: Job, machines: list[str]) -> tuple[bool, int, int]:
        """Return whether a job is claimable, how many of its tenant come before it, and how many turns those save.

        A job that costs nothing saves one, and one that costs three turns saves -2.
        """
        assert job.ready_at is not None
        values = {"backend": job.backend, "tenant": job.tenant or "", "id": job.id}
        values |= {f"machine_{number}": name for number, name in enumerate(machines)}
        place = {"priority": job.priority, "ready_at": micros(job.ready_at)}
        there, before, saved = self._database.step(before_statement(len(machines)), {**values, **place})[0][0]
        return bool(there), int(before), int(saved)

    def _before(self, backend: str, others: list[_Other], mine: tuple[int, str], machines: list[str], room: int) -> int:
        """Return how many jobs of other tenants come before a time, as far as it matters: up to ``room``."""
        ahead = {other.tenant: (other, turns) for other in others if (turns := other.turns_before(*mine))}
        if not ahead:
            return 0
        total = 0
        wanted = {tenant: min(turns, room) for tenant, (_, turns) in ahead.items()}
        for tenant, (number, unlike) in self._first(backend, wanted, machines).items():
            other, turns = ahead[tenant]
            total += self._walk(backend, other, mine, machines) if unlike else min(number, turns)
            if total >= room:
                break
        return total

    def _first(self, backend: str, wanted: dict[str, int], machines: list[str]) -> dict[str, tuple[int, int]]:
        """Return how many of the first jobs of tenants there are, and a number: 0 if each costs one turn."""
        if self._database.dialect == "postgresql":
            lists = {"wanted": json.dumps(list(wanted.items())), "machines": json.dumps(machines)}
            rows = self._database.step(_FIRST_OF_MANY, {"backend": backend, **lists})[0]
            return {tenant: (int(number), int(unlike)) for tenant, number, unlike in rows}
        found = {}
        for tenant, number in wanted.items():
            values = {"backend": backend, "tenant": tenant, "number": number}
            parts = [self._database.step(_FIRST, {**values, "machine": name})[0][0] for name in machines]
            found[tenant] = (sum(part[0] for part in parts), sum(part[1] for part in parts))
        return found

    def _walk(self, backend: str, other: _Other, mine: tuple[int, str], machines: list[str]) -> int:
        """Count the jobs of a tenant before a time, where some of them do not cost it one turn."""
        values = {"backend": backend, "tenant": other.tenant}
        values |= {f"machine_{number}": name for number, name in enumerate(machines)}
        rows = self._database.step(first_statement(len(machines)), values)[0]
        time, number = other.time, 0
        for row in sorted(rows, key=lambda row: (-row[1], row[2], row[0])):
            if (time, other.tenant) >= mine:
                break
            number += 1
            time += (1 - row[3]) * other.cost
        return number


def _times(rows: Iterable[Any], own: str) -> dict[str, int]:
    """Return the times of the tenants that take turns, those included that do so from the next claim on."""
    found = list(rows)
    clock = max((time or 0 for kind, _, time in found if kind == "clock"), default=0)
    times = {name: time for kind, name, time in found if kind in {"turn", "hidden"}}
    times |= {name: max(time, clock) for kind, name, time in found if kind == "woken" and name not in times}
    least = min(times.values(), default=0)
    kept = {name: time for kind, name, time in found if kind == "own"}
    times.setdefault(own, kept.get(own, 0))
    times[NO_TENANT] = max(kept.get(NO_TENANT, 0), least)
    return times


def _claimable_of(tenant: Any, machine: Any) -> sa.ColumnElement[bool]:
    return sa.and_(CLAIMABLE, _c.backend == BACKEND, machine == MACHINE, tenant == TENANT)


def _tenant() -> Any:
    return sa.bindparam("tenant", type_=sa.Text)


@cache
def before_statement(machines: int) -> Any:
    """Return what counts the jobs of a tenant before one of them, each of three ranges of the index by itself."""
    priority, ready_at = (sa.bindparam(name, type_=sa.BigInteger) for name in ("priority", "ready_at"))
    job_id = sa.bindparam("id", type_=sa.Text)
    ranges = (
        (_c.priority > priority,),
        (_c.priority == priority, _c.ready_at < ready_at),
        (_c.priority == priority, _c.ready_at == ready_at, _c.id < job_id),
    )
    parts = [
        sa.select(_c.attempted)
        .where(_claimable_of(_tenant(), sa.bindparam(f"machine_{number}", type_=sa.Text)), *within)
        .order_by(*ORDERS["ready"])
        .limit(_MOST)
        .subquery()
        for number in range(machines)
        for within in ranges
    ]
    there = sa.select(sa.func.count()).select_from(JOBS).where(CLAIMABLE, _c.id == job_id).scalar_subquery()
    if not parts:
        return sa.select(there, sa.literal_column("0"), sa.literal_column("0"))
    ahead = sa.union_all(*(sa.select(part) for part in parts)).subquery()
    return sa.select(there, sa.func.count(), sa.func.coalesce(sa.func.sum(ahead.c.attempted), 0)).select_from(ahead)


@cache
def first_statement(machines: int) -> Any:
    """Return what reads the first jobs of a tenant."""
    parts = [
        sa.select(_c.id, _c.priority, _c.ready_at, _c.attempted)
        .where(_claimable_of(_tenant(), sa.bindparam(f"machine_{number}", type_=sa.Text)))
        .order_by(*ORDERS["ready"])
        .limit(_MOST)
        .subquery()
        for number in range(machines)
    ]
    return sa.union_all(*(sa.select(part) for part in parts))


@cache
def counts_statement(*, of_tenant: bool, of_batch: bool) -> Any:
    """Return what counts jobs by status."""
    tenant = sa.bindparam("tenant", type_=sa.Text)
    jobs = sa.select(_c.status, sa.func.count()).group_by(_c.status)
    if of_batch:
        jobs = jobs.where(_c.batch == sa.bindparam("batch", type_=sa.Text), LIVE)
        return jobs.where(_c.tenant == tenant) if of_tenant else jobs
    live = [sa.literal_column(f"'{status.value}'", sa.Text) for status in JobStatus if not status.terminal]
    jobs = jobs.where(LIVE, _c.status.in_(live))
    ended = sa.select(_COUNTS.c.status, sa.func.sum(_COUNTS.c.number)).group_by(_COUNTS.c.status)
    if of_tenant:
        jobs, ended = jobs.where(_c.tenant == tenant), ended.where(_COUNTS.c.tenant == tenant)
    return jobs.union_all(ended)

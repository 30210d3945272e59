"""How does a claim learn whose turn it is, and what a tenant may begin?

Within one transaction. On PostgreSQL a lock of the backend lets claims that take turns follow each other, and a lock
of all backends those whose policy limits a tenant over all of them: no two claims count the same free unit. Running
units are counted from the jobs that hold them, so none can leak. The order is that of `stores.turns`.

The cost of a claim does not depend on how many jobs wait. Tenants are read in the order of their times, some at a time.
If many of them are at a limit, those are passed over for a second.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final, Self

import sqlalchemy as sa
from attrs import define, field

from renderdispatch.protocols import Claim
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql.database import Transaction
from renderdispatch.stores.sql.firsts import end_waits, first_jobs, with_machines
from renderdispatch.stores.turns import NO_TENANT, Player, Turns, Waiting, cost

_PLAYERS: Final = 64
"""How many tenants are read at once: the literal in `_STATE` and `_LATER`."""

_READS: Final = 16
"""How often more tenants are read in one claim."""

_MANY_FULL: Final = 32
_HIDDEN_FOR: Final = timedelta(seconds=1)
_EVERYWHERE: Final = 0x72656E6465720000
"""The lock of the claims that count a tenant's units on all backends; those of backends are hashes."""

_LOCK: Final = sa.text("SELECT pg_advisory_xact_lock(:backend_lock)")
_LOCK_EVERYWHERE: Final = sa.text("SELECT pg_advisory_xact_lock(:everywhere)")

_STATE: Final = sa.text("""
    SELECT 'turn' AS kind, tenant, time FROM (
        SELECT tenant, time FROM renderdispatch_queues
        WHERE backend = :backend AND active = 1 AND hidden_until IS NULL ORDER BY time, tenant LIMIT 64
    ) AS turns
    UNION ALL
    SELECT 'clock', '', max(claimed) FROM renderdispatch_queues WHERE backend = :backend
    UNION ALL
    SELECT 'own', '', time FROM renderdispatch_queues WHERE backend = :backend AND tenant = ''
    UNION ALL
    SELECT 'woken', tenant, 0 FROM (
        SELECT DISTINCT tenant FROM renderdispatch_woken WHERE backend = :backend ORDER BY tenant LIMIT 1000
    ) AS woken
    UNION ALL
    SELECT 'over', '', 0 WHERE (
        SELECT min(ready_at) FROM renderdispatch_jobs WHERE ready_at IS NOT NULL AND waits_since IS NOT NULL
    ) <= :now OR (
        SELECT max(waits_since) FROM renderdispatch_jobs WHERE ready_at IS NOT NULL AND waits_since IS NOT NULL
    ) > :now + 60000000
    UNION ALL
    SELECT 'shown', '', 0 WHERE EXISTS (
        SELECT 1 FROM renderdispatch_queues WHERE backend = :backend AND hidden_until <= :now
    ) OR EXISTS (
        SELECT 1 FROM renderdispatch_queues WHERE backend = :backend AND hidden_until > :now + 60000000
    )
""")
_LATER: Final = sa.text("""
    SELECT tenant, time FROM renderdispatch_queues
    WHERE backend = :backend AND active = 1 AND hidden_until IS NULL AND (time, tenant) > (:time, :tenant)
    ORDER BY time, tenant LIMIT 64
""")
_SHOW: Final = sa.text("""
    UPDATE renderdispatch_queues SET hidden_until = NULL
    WHERE backend = :backend AND (hidden_until <= :now OR hidden_until > :now + 60000000)
""")
_HELD: Final = sa.text("""
    SELECT (
        SELECT coalesce(sum(held), 0) FROM (
            SELECT held FROM renderdispatch_jobs WHERE held_on = :backend AND held_until > :now LIMIT :most
        ) AS running
    ) + (
        SELECT coalesce(sum(units), 0) FROM (
            SELECT units FROM renderdispatch_leftovers WHERE backend = :backend AND until > :now LIMIT :most
        ) AS leftovers
    )
""")

_FOR: Final = {
    "sqlite": {
        "wake": """
            INSERT INTO renderdispatch_queues (backend, tenant, active, time, claimed)
            SELECT :backend, value, 1, :clock, 0 FROM json_each(:tenants) WHERE true
            ON CONFLICT (backend, tenant) DO UPDATE SET active = 1, hidden_until = NULL, time = CASE
                WHEN renderdispatch_queues.time > excluded.time THEN renderdispatch_queues.time ELSE excluded.time END
            WHERE renderdispatch_queues.active = 0
        """,
        "woke": """
            DELETE FROM renderdispatch_woken
            WHERE backend = :backend AND tenant IN (SELECT value FROM json_each(:tenants))
        """,
        "units": """
            WITH RECURSIVE places (name) AS (
                SELECT min(held_on) FROM renderdispatch_jobs WHERE held_on IS NOT NULL
                UNION ALL
                SELECT (SELECT min(held_on) FROM renderdispatch_jobs WHERE held_on > places.name)
                FROM places WHERE places.name IS NOT NULL
            )
            SELECT held_on, coalesce(tenant, ''), sum(held) FROM renderdispatch_jobs
            WHERE held_on IN (SELECT name FROM places) AND held_until > :now
                AND coalesce(tenant, '') IN (SELECT value FROM json_each(:tenants))
            GROUP BY held_on, coalesce(tenant, '')
            UNION ALL
            SELECT backend, tenant, sum(units) FROM renderdispatch_leftovers
            WHERE tenant IN (SELECT value FROM json_each(:tenants)) AND until > :now GROUP BY backend, tenant
        """,
        "charge": """
            INSERT INTO renderdispatch_queues (backend, tenant, active, time, claimed)
            SELECT :backend, json_extract(value, '$[0]'), 0, json_extract(value, '$[1]'), json_extract(value, '$[2]')
            FROM json_each(:turns) WHERE true
            ON CONFLICT (backend, tenant) DO UPDATE SET time = excluded.time, claimed = excluded.claimed
        """,
        "rest": with_machines("""
            UPDATE renderdispatch_queues SET active = 0
            WHERE backend = :backend AND tenant IN (SELECT value FROM json_each(:tenants)) AND NOT EXISTS (
                SELECT 1 FROM machines WHERE EXISTS (
                    SELECT 1 FROM renderdispatch_jobs
                    WHERE ready_at IS NOT NULL AND waits_since IS NULL AND backend = :backend
                        AND coalesce(machine, '') = machines.name
                        AND coalesce(tenant, '') = renderdispatch_queues.tenant
                )
            )
        """),
        "hide": """
            UPDATE renderdispatch_queues SET hidden_until = :until
            WHERE backend = :backend AND tenant IN (SELECT value FROM json_each(:tenants))
        """,
    },
    "postgresql": {
        "wake": """
            INSERT INTO renderdispatch_queues (backend, tenant, active, time, claimed)
            SELECT :backend, value, 1, :clock, 0 FROM json_array_elements_text(CAST(:tenants AS json)) AS woken (value)
            WHERE NOT EXISTS (
                SELECT FROM renderdispatch_queues
                WHERE backend = :backend AND tenant = value AND active = 1
            )
            ON CONFLICT (backend, tenant) DO UPDATE SET active = 1, hidden_until = NULL,
                time = greatest(renderdispatch_queues.time, excluded.time)
        """,
        "woke": """
            DELETE FROM renderdispatch_woken WHERE ctid = ANY (ARRAY (
                SELECT ctid FROM renderdispatch_woken WHERE backend = :backend
                    AND tenant = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json))))
                FOR UPDATE SKIP LOCKED
            ))
        """,
        "units": """
            WITH RECURSIVE places (name) AS (
                SELECT min(held_on) FROM renderdispatch_jobs WHERE held_on IS NOT NULL
                UNION ALL
                SELECT (SELECT min(held_on) FROM renderdispatch_jobs WHERE held_on > places.name)
                FROM places WHERE places.name IS NOT NULL
            )
            SELECT held_on, coalesce(tenant, ''), sum(held) FROM renderdispatch_jobs
            WHERE held_on = ANY (ARRAY (SELECT name FROM places)) AND held_until > :now
                AND coalesce(tenant, '') = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json))))
            GROUP BY held_on, coalesce(tenant, '')
            UNION ALL
            SELECT backend, tenant, sum(units) FROM renderdispatch_leftovers
            WHERE tenant = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json)))) AND until > :now
            GROUP BY backend, tenant
        """,
        "charge": """
            INSERT INTO renderdispatch_queues (backend, tenant, active, time, claimed)
            SELECT :backend, value->>0, 0, CAST(value->>1 AS BIGINT), CAST(value->>2 AS BIGINT)
            FROM json_array_elements(CAST(:turns AS json)) AS turns (value)
            ON CONFLICT (backend, tenant) DO UPDATE SET time = excluded.time, claimed = excluded.claimed
        """,
        "lock": """
            SELECT tenant FROM renderdispatch_queues WHERE backend = :backend AND active = 1
                AND tenant = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json))))
            FOR UPDATE SKIP LOCKED
        """,
        "rest": with_machines("""
            UPDATE renderdispatch_queues AS queues SET active = 0
            WHERE backend = :backend
                AND tenant = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json))))
                AND NOT EXISTS (
                    SELECT 1 FROM machines CROSS JOIN LATERAL (
                        SELECT 1 FROM renderdispatch_jobs AS jobs
                        WHERE ready_at IS NOT NULL AND waits_since IS NULL AND jobs.backend = :backend
                            AND coalesce(jobs.machine, '') = machines.name
                            AND coalesce(jobs.tenant, '') = queues.tenant
                        ORDER BY priority DESC, ready_at, id LIMIT 1
                    ) AS found
                )
        """),
        "hide": """
            UPDATE renderdispatch_queues SET hidden_until = :until WHERE backend = :backend
                AND tenant = ANY (ARRAY (SELECT json_array_elements_text(CAST(:tenants AS json))))
        """,
    },
}


@cache
def _statement(dialect: str, name: str) -> sa.TextClause:
    return sa.text(_FOR[dialect][name])


def _lock_of(backend: str) -> int:
    return int.from_bytes(hashlib.sha256(b"renderdispatch\n" + backend.encode()).digest()[:8], "big", signed=True)


def _limits_tenants(policy: QueuePolicy) -> bool:
    """Return whether a limit of a tenant spans all backends."""
    return any(tenant.running is not None for tenant in (policy.tenant, *policy.tenants.values()))


@define
class Queue:
    """The queue of one backend, as one claim sees it. Its transaction is the caller's.

    Args:
        now: When the claim happens, in microseconds, by the store's clock.
        shared: Whether tenants have work for the backend.
        stopped: The place of the last tenant that was read, if there may be others whose jobs were not looked for.
        resume: Such a place, of the claim before: behind the first tenants this one goes on from there. So every tenant
            is reached, however many before it have work for other machines alone, or are at a limit.
    """

    _transaction: Transaction
    _dialect: str
    _claim: Claim
    moment: datetime
    shared: bool = False
    stopped: tuple[int, str] | None = None
    _resume: tuple[int, str] | None = None
    _state: list[tuple[str, str, int]] = field(factory=list)
    _reads: int = 0

    @classmethod
    def open(
        cls,
        transaction: Transaction,
        dialect: str,
        claim: Claim,
        clock: Callable[[], datetime],
        *,
        resume: tuple[int, str] | None = None,
    ) -> Self:
        """Wait for other claims of this backend, then let tenants take part that gained work."""
        if dialect == "postgresql":
            if _limits_tenants(claim.policy):
                transaction.step(_LOCK_EVERYWHERE, {"everywhere": _EVERYWHERE})
            transaction.step(_LOCK, {"backend_lock": _lock_of(claim.backend)})
        queue = cls(transaction, dialect, claim, clock(), resume=resume)
        queue._read_state()
        return queue

    @property
    def now(self) -> int:
        """When the claim happens, in microseconds."""
        return micros(self.moment)

    def _step(self, name: str, **values: Any) -> list[Any]:
        statement = _statement(self._dialect, name)
        return self._transaction.step(statement, {"backend": self._claim.backend, **values})[0]

    def _read_state(self) -> None:
        values = {"backend": self._claim.backend, "now": self.now}
        self._state = self._transaction.step(_STATE, values)[0]
        kinds = {row[0] for row in self._state}
        if "over" in kinds:
            end_waits(self._transaction, self.now)
            self._state = self._transaction.step(_STATE, values)[0]
            kinds = {row[0] for row in self._state}
        if "shown" in kinds:
            self._transaction.step(_SHOW, values)
        if woken := [tenant for kind, tenant, _ in self._state if kind == "woken"]:
            self._step("wake", tenants=json.dumps(woken), clock=self._time("clock"))
            self._step("woke", tenants=json.dumps(woken))
        if kinds & {"shown", "woken"}:
            self._state = self._transaction.step(_STATE, values)[0]
        self.shared = any(kind in {"turn", "woken"} for kind, _, _ in self._state)

    def _time(self, kind: str) -> int:
        return max((time or 0 for found, _, time in self._state if found == kind), default=0)

    def room(self, limit: int) -> int:
        """Return how many attempts may begin, by the limit of the backend."""
        most = self._claim.policy.running.get(self._claim.backend)
        if most is None:
            return limit
        values = {"backend": self._claim.backend, "now": self.now, "most": most}
        used = int(self._transaction.step(_HELD, values)[0][0][0])
        return max(0, min(limit, most - used))

    def read_players(self, turns: Turns) -> None:
        """Let the next tenants take turns, in the order of their times."""
        if self._reads == 0:
            rows = [(tenant, time) for kind, tenant, time in self._state if kind == "turn"]
        else:
            assert turns.beyond is not None
            time, tenant = turns.beyond
            if self._reads == 1 and self._resume is not None:
                time, tenant = max(turns.beyond, self._resume)
            values = {"backend": self._claim.backend, "time": time, "tenant": tenant}
            rows = [(row[0], row[1]) for row in self._transaction.step(_LATER, values)[0]]
        more = len(rows) == _PLAYERS and self._reads < _READS
        last = (rows[-1][1], rows[-1][0]) if len(rows) == _PLAYERS else None
        beyond = last if more else None
        self.stopped = None if more else last
        if self._reads == 0:
            least = min((time for _, time in rows), default=0)
            rows.append((NO_TENANT, max(self._time("own"), least)))
        self._reads += 1
        left = self._left([tenant for tenant, _ in rows])
        policy = self._claim.policy
        turns.join(Player(name, time, cost(policy, name), left=left.get(name), more=True) for name, time in rows)
        turns.beyond = beyond

    def _left(self, tenants: Sequence[str]) -> dict[str, int]:
        """Return how many attempts each tenant may begin, if it has a limit."""
        policy, backend = self._claim.policy, self._claim.backend
        own = {name: policy.of(name) for name in tenants if name != NO_TENANT}
        limited = [name for name, of in own.items() if of.running is not None or backend in of.running_on]
        if not limited:
            return {}
        used: Counter[str] = Counter()
        here: Counter[str] = Counter()
        for place, tenant, units in self._step("units", tenants=json.dumps(limited), now=self.now):
            used[tenant] += int(units)
            here[tenant] += int(units) * (place == backend)
        return {
            name: min(
                limit - count
                for limit, count in ((own[name].running, used[name]), (own[name].running_on.get(backend), here[name]))
                if limit is not None
            )
            for name in limited
        }

    def read_jobs(self, turns: Turns) -> None:
        """Read the next jobs of the tenants whose turns come next."""
        taken = set(turns.taken)
        players = {player.tenant: player for player in turns.players}
        wanted = {tenant: number + players[tenant].taken for tenant, number in turns.wanted().items()}
        found = self._read(wanted)
        for tenant, number in wanted.items():
            # beyond so many, those for one machine may be in the wrong order to those for any
            rows = sorted(found.get(tenant, ()), key=lambda row: (-row[1], row[2], row[0]))[:number]
            jobs = [Waiting(row[0], 1 - row[3]) for row in rows if row[0] not in taken]
            players[tenant].jobs = deque(jobs)
            players[tenant].more = len(rows) >= number

    def _read(self, wanted: dict[str, int]) -> dict[str, list[Any]]:
        values = {"backend": self._claim.backend, "now": self.now, "machine": self._claim.machine or ""}
        elsewhere = self._claim.machine is not None
        found: dict[str, list[Any]] = {}
        if self._dialect == "postgresql":
            statement = jobs_of_tenants(max(wanted.values()), elsewhere=elsewhere)
            for row in self._transaction.step(statement, {**values, "tenants": json.dumps(list(wanted))})[0]:
                found.setdefault(row[4], []).append(row)
            return found
        for tenant, number in wanted.items():
            statement = jobs_of_tenant(number, elsewhere=elsewhere)
            found[tenant] = self._transaction.step(statement, {**values, "tenant": tenant})[0]
        return found

    def close(self, turns: Turns) -> None:
        """Write the times of the tenants that were charged, and which tenants have no work."""
        if charged := turns.charged:
            times = [[player.tenant, player.time, player.began] for player in charged]
            self._step("charge", turns=json.dumps(times))
        if idle := [tenant for tenant in turns.idle if tenant != NO_TENANT]:
            if self._dialect == "postgresql":  # first the lock, then a look that sees what was committed before it
                idle = [row[0] for row in self._step("lock", tenants=json.dumps(idle))]
            self._step("rest", tenants=json.dumps(idle))
        if len(turns.full) > _MANY_FULL:
            until = self.now + _HIDDEN_FOR // timedelta(microseconds=1)
            self._step("hide", tenants=json.dumps(turns.full), until=until)


def _machines(*, elsewhere: bool) -> list[Any]:
    none = sa.literal_column("''", sa.Text)
    return [none, sa.bindparam("machine", type_=sa.Text)] if elsewhere else [none]


@cache
def jobs_of_tenant(limit: int, *, elsewhere: bool) -> Any:
    """Return what reads the first jobs of a tenant."""
    tenant = sa.bindparam("tenant", type_=sa.Text)
    firsts = [first_jobs(tenant, machine, limit).subquery() for machine in _machines(elsewhere=elsewhere)]
    return sa.union_all(*(sa.select(first) for first in firsts))


@cache
def jobs_of_tenants(limit: int, *, elsewhere: bool) -> Any:
    """Return what reads the first jobs of each of several tenants, and their names, on PostgreSQL."""
    texts = sa.cast(sa.bindparam("tenants", type_=sa.Text), sa.JSON)
    found = []
    for number, machine in enumerate(_machines(elsewhere=elsewhere)):
        tenants = sa.func.json_array_elements_text(texts).table_valued("value", name=f"tenants_{number}")
        first = first_jobs(tenants.c.value, machine, limit).lateral(f"first_{number}")
        found.append(sa.select(*first.c, tenants.c.value).select_from(tenants.join(first, sa.true())))
    return sa.union_all(*found)

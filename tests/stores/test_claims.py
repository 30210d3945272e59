"""Do the claims, looks, counts, places and pages of the SQL stores go by an index, and does none wait for another?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from attrs import evolve

from renderdispatch.jobs import Attempt, CleanUp, Job
from renderdispatch.messages import JobStatus, Stage
from renderdispatch.protocols import Claim, JobQuery
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore, claims
from renderdispatch.stores.sql.fairness import _lock_of
from renderdispatch.stores.sql.tables import JOBS
from renderdispatch.testing import FakeClock, eventually, make_job

_HOUR = timedelta(hours=1)
_LIMITED = QueuePolicy(running={"inline": 50}, tenant=TenantPolicy(running=9, running_on={"inline": 9}))


def _claim(policy: QueuePolicy | None = None, **changes: Any) -> Claim:
    policy = policy or QueuePolicy()
    return Claim(
        **{"backend": "inline", "local": True, "holder": "worker", "lease": _HOUR, "policy": policy, **changes}
    )


def _ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[SqlJobStore]:
    with closing(SqlJobStore(tmp_path / "jobs.db")) as store:
        yield store


@pytest.fixture
def on_postgresql(postgres_url: str) -> Iterator[SqlJobStore]:
    with closing(SqlJobStore(postgres_url)) as store:
        yield store


# --- plans

_PENDING = frozenset({JobStatus.PENDING})


def _waiting(store: SqlJobStore) -> Job:
    return store.create(make_job(tenant="acme", batch="batch"))


def _claim_in_turns(store: SqlJobStore) -> None:
    for tenant in ("acme", "other", None):
        store.create(make_job(tenant=tenant))
    assert len(store.claim(_claim(_LIMITED, machine="here"), limit=5)) == 3


def _second_page(store: SqlJobStore, query: JobQuery) -> None:
    for _ in range(2):
        _waiting(store)
    cursor = store.query(query).cursor
    assert cursor is not None
    store.query(evolve(query, cursor=cursor))


_ASKED: dict[str, tuple[str, Callable[[SqlJobStore], object]]] = {
    "a claim": ("claims", lambda store: store.claim(_claim(machine="here"), limit=5)),
    "a claim in turns": ("claims", _claim_in_turns),
    "whether there is work": ("claims", lambda store: store.claimable(["inline", "modal"], machine="here")),
    "looks": ("looks", lambda store: store.claim_looks(limit=5)),
    "looks of some backends": ("looks", lambda store: store.claim_looks(limit=5, able={"inline", "other"})),
    "a look at one": ("jobs", lambda store: store.claim_looks(limit=5, job_id="x")),
    "a place": ("claims", lambda store: store.position(_waiting(store), _LIMITED)),
    "counts": ("status", lambda store: store.counts()),
    "counts of a tenant": ("tenant", lambda store: store.counts(tenant="acme")),
    "counts of a batch": ("batch", lambda store: store.counts(batch="batch")),
    "a page": ("status", lambda store: _second_page(store, JobQuery(limit=1))),
    "a page of one status": ("status", lambda store: _second_page(store, JobQuery(statuses=_PENDING, limit=1))),
    "a page of a tenant": ("tenant", lambda store: _second_page(store, JobQuery(tenant="acme", limit=1))),
    "a page of a batch": ("batch", lambda store: _second_page(store, JobQuery(batch="batch", limit=1))),
    "a page of leases": ("held", lambda store: store.query(JobQuery(order="leased", due_by=store.now()))),
    "a page of ended jobs": ("status", lambda store: store.query(JobQuery(order="ended", due_by=store.now()))),
}


@pytest.mark.parametrize("what", _ASKED)
def test_sqlite_goes_by_an_index(on_sqlite: SqlJobStore, what: str) -> None:
    """No statement of SQLite reads the whole table of jobs, or sorts more of it than a page."""
    index, ask = _ASKED[what]
    on_sqlite.set_up()
    plans: list[str] = []
    engine = on_sqlite._database._connections.get().engine

    def listen(connection: Any, _: object) -> None:
        def explain(statement: str) -> None:
            if not statement.upper().startswith(("EXPLAIN", "BEGIN", "COMMIT", "PRAGMA", "--")):
                statements.append(statement)

        connection.set_trace_callback(explain)

    statements: list[str] = []
    sa.event.listen(engine, "connect", listen)
    engine.dispose()
    ask(on_sqlite)
    for statement in dict.fromkeys(statements):
        rows, _ = on_sqlite._database.execute(sa.text("EXPLAIN QUERY PLAN " + statement.replace(":", r"\:")))
        plans += [row[3] for row in rows]
    wanted = "sqlite_autoindex_renderdispatch_jobs" if index == "jobs" else f"renderdispatch_jobs_{index}"
    assert any(wanted in line for line in plans), plans
    assert not [line for line in plans if re.match(r"SCAN renderdispatch_jobs(?!.*INDEX)", line)], plans


def _explained(store: SqlJobStore, *settings: str) -> list[str]:
    """Return the list to which PostgreSQL's plans of all later statements are added."""
    store.set_up()
    plans: list[str] = []
    engine = store._database._connections.get().engine
    explain = ("auto_explain.log_min_duration = 0", "auto_explain.log_nested_statements = off")

    def listen(connection: Any, _: object) -> None:
        connection.add_notice_handler(lambda notice: plans.append(str(notice.message_primary)))
        connection.execute("LOAD 'auto_explain'")
        for setting in (*explain, "client_min_messages = log", *settings):
            connection.execute(f"SET {setting}")

    sa.event.listen(engine, "connect", listen)
    engine.dispose()
    return plans


def test_postgresql_goes_by_an_index_whatever_it_expects(on_postgresql: SqlJobStore) -> None:
    """Claims read no table where nearly all jobs waited when PostgreSQL last looked, and none does now."""
    store = on_postgresql
    store.create(make_job(id="x", created_at=store.now()))
    names = ", ".join(column.name for column in JOBS.c if column.name not in {"id", "waits_since"})
    copy = f"""
        INSERT INTO renderdispatch_jobs (id, waits_since, {names})
        SELECT 'x' || number, created_at, {names} FROM renderdispatch_jobs, generate_series(1, 5000) AS number
    """
    gone = "UPDATE renderdispatch_jobs SET ready_at = NULL, waits_since = NULL"
    for statement in (copy, "ANALYZE renderdispatch_jobs", gone):
        store._database.execute(sa.text(statement))
    plans = _explained(store)
    assert store.claimable(["inline"], machine="here") == frozenset()
    for policy in (QueuePolicy(), _LIMITED):
        assert store.claim(_claim(policy, machine="here"), limit=5) == []
    found = "\n".join(plans)
    assert "renderdispatch_jobs_claims" in found
    assert "Seq Scan on renderdispatch_jobs" not in found, found


@pytest.mark.parametrize("what", _ASKED)
def test_postgresql_goes_by_an_index(on_postgresql: SqlJobStore, what: str) -> None:
    """PostgreSQL can answer each statement by an index; of a table this small it would read all, if we let it."""
    index, ask = _ASKED[what]
    plans = _explained(on_postgresql, "enable_seqscan = off")
    ask(on_postgresql)
    found = "\n".join(plans)
    assert ("renderdispatch_jobs_pkey" if index == "jobs" else f"renderdispatch_jobs_{index}") in found, found
    assert "Seq Scan on renderdispatch_jobs" not in found, found


# --- the application's transactions


def test_a_long_transaction_of_the_application_keeps_no_job_waiting(on_postgresql: SqlJobStore) -> None:
    """While a transaction that submitted a tenant's job is open, its other jobs are submitted and claimed."""
    store = on_postgresql
    engine = sa.create_engine(store._address.url)
    for active in (False, True):
        if active:  # the tenant takes part already
            store.create(make_job(id="before", tenant="acme"))
            assert _ids(store.claim(_claim(), limit=1)) == ["before"]
        with engine.connect() as connection, connection.begin():
            store.create_many([make_job(id=f"open-{active}", tenant="acme")], connection=connection)
            store.create(make_job(id=f"mine-{active}", tenant="acme"))
            store.create(make_job(id=f"other-{active}", tenant="other"))
            claimed = _ids(store.claim(_claim(), limit=9))
            assert sorted(claimed) == [f"mine-{active}", f"other-{active}"]
            assert store.claim(_claim(), limit=9) == []
        assert _ids(store.claim(_claim(), limit=9)) == [f"open-{active}"]
    engine.dispose()


def test_two_open_transactions_of_the_application_keep_no_claim_waiting(on_postgresql: SqlJobStore) -> None:
    """A tenant that takes part is announced once more, by a transaction that was long: the claim waits for no other."""
    store = on_postgresql
    engine = sa.create_engine(store._address.url)
    with engine.connect() as early, engine.connect() as late:
        store.create_many([make_job(id="early", tenant="acme")], connection=early)
        for number in range(2):
            store.create(make_job(id=f"mine-{number}", tenant="acme"))
        assert len(store.claim(_claim(), limit=1)) == 1
        early.commit()
        store.create_many([make_job(id="late", tenant="acme")], connection=late)
        with closing(SqlJobStore(store._address.url.render_as_string() + "?timeout=1")) as impatient:
            assert len(impatient.claim(_claim(), limit=9)) == 2
        late.commit()
    engine.dispose()
    assert _ids(store.claim(_claim(), limit=9)) == ["late"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_old_rows_submits(on_postgresql: SqlJobStore, level: str) -> None:
    """What claims changed since the application's transaction began makes it fail at no isolation level."""
    store = on_postgresql
    engine = sa.create_engine(store._address.url, isolation_level=level)
    store.create(make_job(id="before", tenant="acme"))
    store.create(make_job(id="last", tenant="acme"))
    assert len(store.claim(_claim(), limit=1)) == 1
    with engine.connect() as connection, connection.begin():
        connection.execute(sa.text("SELECT 1"))  # from here on it sees what there is now
        assert len(store.claim(_claim(), limit=9)) == 1  # the tenant has no work any more
        (created,) = store.create_many([make_job(id="late", tenant="acme")], connection=connection)
        assert isinstance(created, Job)
    engine.dispose()
    assert _ids(store.claim(_claim(), limit=9)) == ["late"]


def test_what_falls_through_leaves_nothing_behind(on_postgresql: SqlJobStore) -> None:
    """A job that was rolled back is neither claimed nor counted, and costs its tenant nothing."""
    store = on_postgresql
    engine = sa.create_engine(store._address.url)
    with engine.connect() as connection:
        connection.begin()
        store.create_many([make_job(tenant="acme")], connection=connection)
        connection.rollback()
    engine.dispose()
    assert store.claimable(["inline"], machine=None) == frozenset()
    assert store.claim(_claim(), limit=9) == []
    assert sum(store.counts().values()) == 0


# --- one claim after another


def test_a_claim_sees_what_was_submitted_while_it_waited(on_postgresql: SqlJobStore) -> None:
    """Also in a database where a transaction sees what was there when it began, unless it says otherwise."""
    store = on_postgresql
    store.set_up()
    engine = sa.create_engine(store._address.url)
    with engine.connect() as other:
        name = other.execute(sa.text("SELECT current_database()")).scalar_one()
        other.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"))
        other.commit()
        store.close()  # the next connection begins with that
        other.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _lock_of("inline")})
        waiting = sa.text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        with ThreadPoolExecutor(1) as pool:
            claim = pool.submit(store.claim, _claim(_LIMITED), limit=9)
            eventually(lambda: other.execute(waiting).all())
            store.create(make_job(id="late", tenant="acme"))
            other.commit()
            assert _ids(claim.result()) == ["late"]
    engine.dispose()


def test_a_claim_needs_one_connection(on_postgresql: SqlJobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that has to ask what time it is asks within its transaction: there may be no other connection."""
    monkeypatch.setattr("renderdispatch.stores.sql.server_clock._LONGEST_AGE_S", -1)
    url = on_postgresql._address.url.render_as_string()
    with closing(SqlJobStore(f"{url}?pool_size=1&timeout=1")) as store:
        store.create(make_job(id="x", tenant="acme"))
        assert _ids(store.claim(_claim(), limit=1)) == ["x"]


# --- bounded work


@pytest.mark.parametrize("dialect", ["on_sqlite", "on_postgresql"])
def test_many_tenants_at_their_limits_do_not_hide_another(request: pytest.FixtureRequest, dialect: str) -> None:
    """A tenant behind two hundred that are at their limits is served; those are served once a unit is free."""
    store: SqlJobStore = request.getfixturevalue(dialect)
    policy = QueuePolicy(tenant=TenantPolicy(running=1))
    many = [make_job(id=f"{tenant:03}-{number}", tenant=f"{tenant:03}") for tenant in range(200) for number in range(2)]
    for job in many:
        store.create(job)
    assert len(store.claim(_claim(policy), limit=500)) == 200
    store.create(make_job(id="last", tenant="zzz"))
    assert _ids(store.claim(_claim(policy), limit=9)) == ["last"]
    running = store.get("007-0") if store.get("007-0").attempts else store.get("007-1")
    store.delete(running.id, expected_revision=running.revision)
    assert len(eventually(lambda: store.claim(_claim(policy), limit=9))) == 1


@pytest.mark.parametrize("dialect", ["on_sqlite", "on_postgresql"])
def test_more_tenants_than_are_read_at_once_take_turns(request: pytest.FixtureRequest, dialect: str) -> None:
    """Of a hundred and fifty tenants each gets one job before any gets its second one."""
    store: SqlJobStore = request.getfixturevalue(dialect)
    for number in range(2):
        for tenant in range(150):
            store.create(make_job(id=f"{number}-{tenant:03}", tenant=f"{tenant:03}"))
    claimed = [_ids(store.claim(_claim(), limit=limit)) for limit in (100, 100, 100)]
    order = [job_id for ids in claimed for job_id in ids]
    assert {job_id.split("-")[1] for job_id in order[:150]} == {f"{tenant:03}" for tenant in range(150)}
    assert len(set(order)) == 300


@pytest.mark.parametrize("dialect", ["on_sqlite", "on_postgresql"])
def test_tenants_whose_jobs_are_for_another_machine_do_not_hide_one(
    request: pytest.FixtureRequest, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many tenants come first, a machine that reads some of them in each claim reaches those that it serves."""
    monkeypatch.setattr("renderdispatch.stores.sql.fairness._READS", 1)
    store: SqlJobStore = request.getfixturevalue(dialect)
    for tenant in range(200):
        store.create(make_job(tenant=f"{tenant:03}", machine="away"))
    for number in range(2):
        store.create(make_job(id=f"mine-{number}", tenant="zzz"))
    claims = [_ids(store.claim(_claim(machine="here"), limit=1)) for _ in range(6)]
    assert [ids for ids in claims if ids] == [["mine-0"], ["mine-1"]]


def test_a_clock_that_is_set_back_keeps_no_tenant_waiting(tmp_path: Path) -> None:
    """Tenants that were passed over for a second take part again, whatever the clock says since."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with closing(SqlJobStore(tmp_path / "jobs.db", clock=lambda: now)) as store:
        for tenant in range(40):
            store.create(make_job(tenant=f"{tenant:03}", created_at=now))
        assert store.claim(_claim(QueuePolicy(tenant=TenantPolicy(running=0))), limit=50) == []
        now -= timedelta(days=1)
        assert len(store.claim(_claim(), limit=50)) == 40


# --- the same claims as in memory


class _Both:
    """A SQL store and a memory store, on one clock, to which the same things happen."""

    def __init__(self, url: str, seed: int) -> None:
        self.clock = FakeClock()
        self.draw = random.Random(seed)
        self.stores = (SqlJobStore(url, clock=self.clock), MemoryJobStore(clock=self.clock))
        self.number = 0
        self.waiting: set[str] = set()
        self.running: set[str] = set()

    def nonce(self) -> str:
        """Return another nonce for each claim, the same one for both stores: a used one would begin nothing."""
        return f"{self.draw.getrandbits(64):x}"

    def submit(self) -> None:
        for _ in range(self.draw.randint(1, 8)):
            self.number += 1
            job = make_job(
                id=f"job-{self.number:04}",
                tenant=self.draw.choice([None, "a", "a", "b", "c"]),
                backend=self.draw.choice(["inline", "inline", "modal"]),
                machine=self.draw.choice([None, None, "here"]),
                priority=self.draw.choice([0, 0, 1]),
                created_at=self.clock(),
                ready_at=self.clock() + self.draw.choice([0, 0, 0, 2]) * timedelta(seconds=1),
            )
            self.waiting.add(job.id)
            for store in self.stores:
                store.create(job)

    def claim(self) -> int:
        pick = self.draw.choice
        policy = QueuePolicy(
            running=pick([{}, {}, {"inline": 4}]),
            tenants={
                "a": TenantPolicy(weight=pick([0.3, 1.0, 3.0]), running=pick([None, None, 3])),
                "b": TenantPolicy(running_on=pick([{}, {"inline": 2}])),
            },
        )
        claim = _claim(
            policy, backend=pick(["inline", "inline", "modal"]), machine=pick([None, "here"]), nonce=self.nonce()
        )
        limit = pick([1, 1, 2, 5])
        first, second = (store.claim(claim, limit=limit) for store in self.stores)
        assert first == second
        self.waiting -= set(_ids(first))
        self.running |= set(_ids(first))
        return len(first)

    def end(self) -> None:
        for job_id in self.draw.sample(sorted(self.running), min(len(self.running), self.draw.randint(1, 4))):
            self.running.remove(job_id)
            again = self.draw.random() < 0.2
            unknown = self.draw.random() < 0.2
            for store in self.stores:
                job = store.get(job_id)
                change: dict[str, Any] = {"ended_at": self.clock(), "stopped": not unknown}
                if unknown:
                    change |= {"called": True, "local": False, "clean_up": CleanUp.OWED}
                attempts = (*job.attempts[:-1], evolve(job.attempts[-1], **change))
                job = evolve(job, attempts=attempts, updated_at=self.clock())
                retried: dict[str, Any] = {"ready_at": self.clock(), "stage": Stage.RETRY_WAIT}
                job = evolve(job, **retried) if again else evolve(job, status=JobStatus.FAILED)
                store.replace(job, expected_revision=job.revision)
            if again:
                self.waiting.add(job_id)

    def cancel(self) -> None:
        for job_id in self.draw.sample(sorted(self.waiting), min(len(self.waiting), self.draw.randint(1, 6))):
            self.waiting.remove(job_id)
            for store in self.stores:
                store.delete(job_id, expected_revision=store.get(job_id).revision)

    def compare_places(self) -> None:
        policy = QueuePolicy(tenants={"a": TenantPolicy(weight=2.5)})
        for job_id in self.draw.sample(sorted(self.waiting), min(3, len(self.waiting))):
            first, second = (store.position(store.get(job_id), policy) for store in self.stores)
            assert first == second

    def run(self, steps: int) -> int:
        """Let things happen; return how many jobs were claimed."""
        claimed = 0
        for _ in range(steps):
            act = self.draw.choice([self.submit, self.claim, self.claim, self.claim, self.end, self.cancel])
            claimed += act() or 0
            self.compare_places()
            self.clock.advance(timedelta(milliseconds=self.draw.choice([0, 300, 900])))
        assert self.stores[0].counts() == self.stores[1].counts()
        self.stores[0].close()
        return claimed


@pytest.mark.parametrize("seed", range(6))
def test_sqlite_claims_as_memory_does(tmp_path: Path, seed: int) -> None:
    """Whatever is submitted, claimed, ended and cancelled: SQLite claims the same jobs, in the same order."""
    assert _Both(f"sqlite:///{tmp_path / 'jobs.db'}", seed).run(150) > 30


@pytest.mark.parametrize("seed", range(10, 13))
def test_postgresql_claims_as_memory_does(postgres_url: str, seed: int) -> None:
    """So does PostgreSQL."""
    assert _Both(postgres_url, seed).run(120) > 25


# --- a clock that is set


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_no_look_waits_for_a_clock_that_was_set_back(kind: str, tmp_path: Path) -> None:
    """Jobs that were put off, or written, while the clock was an hour ahead are due soon, not after an hour."""
    clock = FakeClock()
    right = clock()
    store = MemoryJobStore(clock=clock) if kind == "memory" else SqlJobStore(tmp_path / "jobs.db", clock=clock)

    def dispatched(job_id: str) -> Job:
        job = make_job(id=job_id, created_at=right, finish_by=right + 6 * _HOUR, ready_at=None, updated_at=clock())
        attempt = Attempt(number=1, token=job_id, backend="inline", local=False, called=True, claimed_at=right)
        attempt = evolve(attempt, start_by=job.finish_by)
        return store.create(evolve(job, attempts=(attempt,), stage=Stage.DISPATCHED))

    put_off = dispatched("put off")
    store.create(make_job(id="queued", created_at=right, finish_by=right + 6 * _HOUR))
    clock.advance(_HOUR)
    written = dispatched("written")
    assert store.claim_looks(limit=9) == [put_off]
    clock.advance(-_HOUR)
    assert {job.id for job in store.claim_looks(limit=9)} == {put_off.id, written.id}
    store.close()


# --- what a full backend costs


def test_a_full_backend_is_left_alone_until_something_changes(
    on_sqlite: SqlJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that took nothing because of a limit is not worth repeating, until this process writes a job."""
    monkeypatch.setattr(claims, "_FULL_S", 3600.0)
    policy = QueuePolicy(tenant=TenantPolicy(running=1))
    for name in ("first", "second"):
        on_sqlite.create(make_job(id=name, tenant="acme"))
    (first,) = on_sqlite.claim(_claim(policy), limit=5)
    assert on_sqlite.claimable(["inline"], machine=None) == {"inline"}
    assert on_sqlite.claim(_claim(policy), limit=5) == []
    assert on_sqlite.claimable(["inline"], machine=None) == frozenset()
    ended = evolve(first.attempts[-1], ended_at=first.updated_at, stopped=True)
    on_sqlite.replace(evolve(first, attempts=(ended,), status=JobStatus.COMPLETE), expected_revision=first.revision)
    assert on_sqlite.claimable(["inline"], machine=None) == {"inline"}
    assert _ids(on_sqlite.claim(_claim(policy), limit=5)) == ["second"]

"""What must a job store do that hands out jobs, looks at them, counts them, or creates many at once?

Each test is a sentence of `SupportsClaim`, `SupportsLooks`, `SupportsCounts` or `SupportsCreateMany` in
`renderdispatch.protocols`. `JobStoreContract` holds them all.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from renderdispatch.engine.claims import Begun, begin
from renderdispatch.errors import JobExistsError, QueueLimitError, RevisionConflictError
from renderdispatch.jobs import CHECK_INTERVAL, URLS_EXPIRED, Attempt, CleanUp, Helper, HelperState, Job, evolve
from renderdispatch.messages import JobStatus, Stage
from renderdispatch.protocols import (
    LOOK_LEFT,
    LOOK_PAUSES,
    MAX_POSITION,
    Claim,
    JobQuery,
    JobStore,
    Quota,
    SupportsClaim,
    SupportsCounts,
    SupportsCreateMany,
    SupportsLooks,
)
from renderdispatch.queueing import QueuePolicy, TenantPolicy
from renderdispatch.testing.builders import eventually, in_threads, make_ended_job, make_job

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
THREADS = 8


def a_claim(**changes: Any) -> Claim:
    """Return a claim of jobs for the inline backend."""
    return Claim(**{"backend": "inline", "local": True, "holder": "worker", "lease": HOUR, **changes})


def claimed_ids(store: SupportsClaim, *, limit: int = 100, **changes: Any) -> list[str]:
    """Claim jobs; return their ids in order."""
    return [job.id for job in store.claim(a_claim(**changes), limit=limit)]


def a_try(job: Job, **changes: Any) -> Attempt:
    """Return an attempt of a job that ended before anything was called."""
    fields = {"number": 1, "token": f"token-{job.id}", "backend": "inline", "local": False, "ended_at": job.created_at}
    return Attempt(**{**fields, "claimed_at": job.created_at, **changes})


def _helped(job: Job, *states: HelperState) -> Job:
    """Return the job with helpers of its attempt in these states."""
    helpers = tuple(Helper(share=n, token=f"helper-{n}", state=state) for n, state in enumerate(states, start=1))
    return evolve(job, attempts=(*job.attempts[:-1], evolve(job.attempts[-1], helpers=helpers)))


class QueueContract:
    """The tests of a store's optional powers; those of a power that it lacks are skipped."""

    @pytest.fixture
    def store(self) -> JobStore:
        """An empty store; override it."""
        raise NotImplementedError("override the fixture `store`")

    @pytest.fixture
    def second(self, store: JobStore) -> JobStore | None:  # noqa: ARG002 - overrides need it
        """Another instance over the same jobs as `store`; override it if there can be one."""
        return None

    @pytest.fixture
    def other(self, second: JobStore | None) -> JobStore:
        """`second`; skips without one."""
        if second is None:
            pytest.skip("the fixture `second` gives no other instance over the same jobs")
        return second

    @pytest.fixture
    def now(self, store: JobStore) -> datetime:
        """The store's time, when the test began."""
        return store.now()

    @pytest.fixture
    def claiming(self, store: JobStore) -> SupportsClaim:
        """`store`, if it hands out jobs; else skips."""
        if not isinstance(store, SupportsClaim):
            pytest.skip("the store lacks the optional power SupportsClaim")
        return store

    @pytest.fixture
    def looking(self, store: JobStore) -> SupportsLooks:
        """`store`, if it hands out looks; else skips."""
        if not isinstance(store, SupportsLooks):
            pytest.skip("the store lacks the optional power SupportsLooks")
        return store

    @pytest.fixture
    def counting(self, store: JobStore) -> SupportsCounts:
        """`store`, if it counts; else skips."""
        if not isinstance(store, SupportsCounts):
            pytest.skip("the store lacks the optional power SupportsCounts")
        return store

    @pytest.fixture
    def creating(self, store: JobStore) -> SupportsCreateMany:
        """`store`, if it creates many at once; else skips."""
        if not isinstance(store, SupportsCreateMany):
            pytest.skip("the store lacks the optional power SupportsCreateMany")
        return store

    # --- SupportsClaim: each job once

    def test_claim_begins_an_attempt(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """`claim` returns the job with the attempt that it began, one revision later; `get` returns the same."""
        for tenant in (None, "acme"):
            job = store.create(make_job(tenant=tenant))
            claim = a_claim()
            (claimed,) = claiming.claim(claim, limit=9)
            assert claimed.attempt is not None
            at = claimed.attempt.claimed_at
            assert now <= at <= store.now()
            assert claimed == evolve(begin(job, Begun.of(claim, at)), revision=job.revision + 1)
            assert store.get(job.id) == claimed
            assert store.query(JobQuery(order="leased", due_by=at + 2 * HOUR)).items[-1] == claimed

    def test_each_attempt_has_a_token_of_its_own(self, store: JobStore, claiming: SupportsClaim) -> None:
        """The attempts of one claim, and of two claims of one job, differ in their tokens."""
        for _ in range(3):
            store.create(make_job())
        jobs = claiming.claim(a_claim(), limit=9)
        again = evolve(jobs[0], ready_at=jobs[0].updated_at, stage=Stage.RETRY_WAIT)
        store.replace(again, expected_revision=again.revision)
        jobs += claiming.claim(a_claim(), limit=9)
        assert len({job.attempt.token for job in jobs if job.attempt is not None}) == len(jobs) == 4

    def test_claim_takes_the_best_first(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant's jobs are claimed by priority, then longest ready, then id; at most ``limit`` of them."""
        for tenant in (None, "acme"):
            for job_id, priority, age in (("a", 0, 9), ("b", 5, 1), ("c", 5, 1), ("d", 5, 3), ("e", -5, 99)):
                ready_at = now - age * SECOND
                store.create(make_job(id=f"{tenant}-{job_id}", tenant=tenant, priority=priority, created_at=ready_at))
            assert claimed_ids(claiming, limit=2) == [f"{tenant}-d", f"{tenant}-b"]
            assert claimed_ids(claiming) == [f"{tenant}-c", f"{tenant}-a", f"{tenant}-e"]

    def test_claim_of_none(self, store: JobStore, claiming: SupportsClaim) -> None:
        """`claim` of no jobs, or for another backend, returns none and changes none."""
        job = store.create(make_job())
        assert claimed_ids(claiming, limit=0) == []
        assert claimed_ids(claiming, backend="modal") == []
        assert store.get(job.id) == job

    def test_claim_leaves_out_what_is_not_ready(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """`claim` returns no job that waits, ended, runs, was deleted, or is past ``finish_by``."""
        store.create(make_job(ready_at=now + HOUR))
        store.create(make_ended_job())
        store.create(make_job(ready_at=None))
        store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND))
        deleted = store.create(make_job())
        store.delete(deleted.id, expected_revision=deleted.revision)
        assert claimed_ids(claiming) == []

    def test_a_wait_ends(self, store: JobStore, claiming: SupportsClaim) -> None:
        """A job waits until ``ready_at``; then `claimable` and `claim` see it."""
        for tenant in (None, "acme"):
            now = store.now()
            job = store.create(make_job(tenant=tenant, created_at=now, ready_at=now + timedelta(milliseconds=50)))
            assert eventually(lambda: claiming.claimable(["inline"], machine=None)) == {"inline"}
            assert claimed_ids(claiming) == [job.id]
            now = store.now()
            job = store.create(make_job(tenant=tenant, created_at=now, ready_at=now + timedelta(milliseconds=50)))
            assert eventually(lambda: claimed_ids(claiming)) == [job.id]

    def test_a_clock_that_was_set_back_keeps_no_job_waiting(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """A job that is ready when it is written stays ready, and a wait that was written in the future is over."""
        store.create(make_job(id="queued", created_at=now + HOUR))
        store.create(make_job(id="retried", created_at=now + HOUR, ready_at=now + HOUR + 30 * SECOND))
        store.create(make_job(id="waits", created_at=now, ready_at=now + HOUR))
        assert set(claimed_ids(claiming)) == {"queued", "retried"}
        assert claimed_ids(claiming) == []

    def test_the_next_write_takes_a_claimed_job(self, store: JobStore, claiming: SupportsClaim) -> None:
        """`replace` over the revision of the claim stores the attempt too; one over the revision before is refused."""
        job = store.create(make_job())
        (claimed,) = claiming.claim(a_claim(), limit=9)
        with pytest.raises(RevisionConflictError):
            store.replace(job, expected_revision=job.revision)
        stored = store.replace(evolve(claimed, progress=10.0), expected_revision=claimed.revision)
        assert stored == evolve(claimed, progress=10.0, revision=claimed.revision + 1)
        assert store.get(job.id) == stored
        assert claimed_ids(claiming) == []

    def test_a_claimed_job_can_be_deleted(self, store: JobStore, claiming: SupportsClaim) -> None:
        """`delete` goes by the revision that the claim made."""
        store.create(make_job())
        (claimed,) = claiming.claim(a_claim(), limit=9)
        assert store.delete(claimed.id, expected_revision=claimed.revision)

    def test_claims_go_by_backend(self, store: JobStore, claiming: SupportsClaim) -> None:
        """`claimable` names the backends that have ready jobs, and `claim` takes those of one."""
        for backend in ("modal", "inline", "http"):
            store.create(make_job(id=backend, backend=backend, tenant="acme" if backend == "modal" else None))
        assert claiming.claimable(["inline", "modal", "other"], machine=None) == {"inline", "modal"}
        assert claiming.claimable([], machine=None) == frozenset()
        assert claimed_ids(claiming) == ["inline"]
        assert claimed_ids(claiming, backend="modal") == ["modal"]
        assert claiming.claimable(["inline", "http"], machine=None) == {"http"}

    def test_claims_go_by_machine(self, store: JobStore, claiming: SupportsClaim) -> None:
        """A claim takes jobs that any machine may claim, and those of the one that asks."""
        for tenant in (None, "acme"):
            for machine in ("here", "there"):
                store.create(make_job(id=f"{tenant}-{machine}", machine=machine, tenant=tenant))
            assert claiming.claimable(["inline"], machine=None) == frozenset()
            assert claimed_ids(claiming) == []
            assert claiming.claimable(["inline"], machine="here") == {"inline"}
            assert claimed_ids(claiming, machine="here") == [f"{tenant}-here"]
            store.create(make_job(id=f"{tenant}-any", tenant=tenant))
            assert claimed_ids(claiming, machine="there") == [f"{tenant}-there", f"{tenant}-any"]

    def test_claim_keeps_the_order_of_pinned_jobs(self, store: JobStore, claiming: SupportsClaim) -> None:
        """A tenant's pinned jobs come in its order, also where tenants before it turn out to have none for here."""
        for tenant in ("first", "second", "third"):
            store.create(make_job(tenant=tenant, machine="there"))
        for number in range(12):
            store.create(make_job(id=f"here-{number:02}", tenant="z", machine="here", priority=1))
            store.create(make_job(id=f"any-{number:02}", tenant="z"))
        claimed = claimed_ids(claiming, machine="here", limit=12)
        assert sorted(claimed) == [f"here-{number:02}" for number in range(12)]

    def test_concurrent_claims_share_the_jobs(self, store: JobStore, claiming: SupportsClaim) -> None:
        """Eight threads that claim three at a time get eighty jobs, each exactly once, tenants or none."""
        for tenants in ((None,), (None, "a", "b", "c")):
            created = {store.create(make_job(tenant=tenants[n % len(tenants)])).id for n in range(10 * THREADS)}

            def claim_all(_: int) -> list[str]:
                mine: list[str] = []
                while found := claimed_ids(claiming, limit=3):
                    mine += found
                return mine

            claimed = [job_id for mine in in_threads(THREADS, claim_all) for job_id in mine]
            assert len(claimed) == len(created)
            assert set(claimed) == created

    def test_claims_of_instances_exclude_each_other(
        self, store: JobStore, claiming: SupportsClaim, other: JobStore
    ) -> None:
        """What one instance claimed, another does not get."""
        assert isinstance(other, SupportsClaim)
        for number in range(4):
            store.create(make_job(tenant=None if number % 2 else "acme"))
        mine, theirs = claimed_ids(claiming, limit=2), claimed_ids(other)
        assert len({*mine, *theirs}) == len(mine) + len(theirs) == 4

    # --- SupportsClaim: fair turns

    def _submit(self, store: JobStore, now: datetime, *names: str, **changes: Any) -> None:
        """Create jobs named by their tenants and numbers, such as "a1", in this order; "-1" has no tenant."""
        for number, name in enumerate(names):
            tenant = None if name[0] == "-" else name[0]
            ready_at = now - HOUR + number * SECOND
            store.create(make_job(id=name, tenant=tenant, created_at=ready_at, **changes))

    def test_tenants_take_turns(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant's few jobs do not wait behind another's many; jobs without a tenant take turns too."""
        self._submit(store, now, "a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "-1")
        assert claimed_ids(claiming) == ["-1", "a1", "b1", "a2", "b2", "a3", "a4", "a5", "a6"]

    def test_small_claims_give_the_same_order(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """It makes no difference how many jobs are claimed at once."""
        self._submit(store, now, "a1", "a2", "a3", "a4", "b1", "b2", "c1")
        found: list[str] = []
        for limit in (1, 2, 1, 3):
            found += claimed_ids(claiming, limit=limit)
        assert found == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]

    def test_weights_are_shares(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant of weight 3 gets three jobs for each one of a tenant of weight 1."""
        policy = QueuePolicy(tenants={"a": TenantPolicy(weight=3)})
        self._submit(store, now, *(f"{tenant}{number}" for tenant in "ab" for number in range(20)))
        shares = Counter(job_id[0] for _ in range(4) for job_id in claimed_ids(claiming, limit=5, policy=policy))
        assert shares == {"a": 15, "b": 5}

    def test_priority_orders_a_tenants_own_jobs(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A job of high priority goes before its tenant's others, and before none of another tenant."""
        self._submit(store, now, "a1", "a2", "b1")
        store.create(make_job(id="b9", tenant="b", priority=9, created_at=now))
        assert claimed_ids(claiming) == ["a1", "b9", "a2", "b1"]

    def test_jobs_that_are_cancelled_cost_nothing(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """A tenant that deletes a hundred waiting jobs and submits one is served as if it had submitted one."""
        self._submit(store, now, *(f"a{number}" for number in range(100)), "b1", "b2")
        for number in range(100):
            store.delete(f"a{number}", expected_revision=store.get(f"a{number}").revision)
        store.create(make_job(id="a-last", tenant="a", created_at=now))
        assert claimed_ids(claiming) == ["a-last", "b1", "b2"]

    def test_later_attempts_cost_nothing(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A job that had an attempt is claimed without a charge to its tenant."""
        self._submit(store, now, "a2", "b1", "b2")
        retried = make_job(id="a1", tenant="a", priority=1, created_at=now)
        store.create(evolve(retried, attempts=(a_try(retried),), stage=Stage.RETRY_WAIT))
        assert claimed_ids(claiming) == ["a1", "a2", "b1", "b2"]

    def test_a_job_that_several_draw_costs_as_many_turns(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """A job whose video three draw at once moves its tenant's time on by three turns; a retry costs nothing."""
        store.create(make_job(id="a1", tenant="a", parallel=3, created_at=now - 2 * HOUR))
        retried = make_job(id="a2", tenant="a", parallel=3, created_at=now - 2 * HOUR)
        self._submit(store, now, "a3", "b1", "b2", "b3", "b4")
        store.create(evolve(retried, attempts=(a_try(retried),), stage=Stage.RETRY_WAIT))
        assert claimed_ids(claiming) == ["a1", "b1", "b2", "b3", "a2", "a3", "b4"]

    def test_idle_time_is_not_saved_up(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant that had no work goes on at the last claim's time: it gets its share, not all at once."""
        self._submit(store, now, *(f"a{number:02}" for number in range(20)))
        assert len(claimed_ids(claiming, limit=10)) == 10
        self._submit(store, now, "b1", "b2", "b3")
        assert claimed_ids(claiming, limit=6) == ["b1", "a10", "b2", "a11", "b3", "a12"]

    def test_past_use_is_forgiven(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant that used the backend alone does not wait for the others to catch up."""
        self._submit(store, now, *(f"a{number}" for number in range(9)))
        assert len(claimed_ids(claiming)) == 9
        self._submit(store, now, "a-1", "a-2", "b1", "b2", "b3", "b4")
        assert "a-1" in claimed_ids(claiming, limit=3)

    def test_backends_have_turns_of_their_own(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """What a tenant uses on one backend costs it nothing on another."""
        self._submit(store, now, *(f"a{number}" for number in range(9)), backend="modal")
        assert len(claimed_ids(claiming, backend="modal")) == 9
        self._submit(store, now, "a-1", "b-1")
        assert claimed_ids(claiming) == ["a-1", "b-1"]

    # --- SupportsClaim: limits

    def test_a_backend_has_a_limit(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """No more attempts begin on a backend than may run at once; elsewhere they do. Units come back."""
        policy = QueuePolicy(running={"inline": 2})
        self._submit(store, now, "-1", "-2", "a1", "b1")
        first = claiming.claim(a_claim(policy=policy), limit=9)
        assert len(first) == 2
        assert claimed_ids(claiming, policy=policy) == []
        store.create(make_job(id="elsewhere", backend="modal"))
        assert claimed_ids(claiming, policy=policy, backend="modal") == ["elsewhere"]
        self._end(store, first[0])
        assert len(claimed_ids(claiming, policy=policy)) == 1

    def test_a_tenant_has_a_limit(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant's attempts on all backends together are limited; other tenants go on."""
        policy = QueuePolicy(tenants={"a": TenantPolicy(running=2)})
        store.create(make_job(id="elsewhere", tenant="a", backend="modal"))
        assert claimed_ids(claiming, policy=policy, backend="modal") == ["elsewhere"]
        self._submit(store, now, "a1", "a2", "a3", "b1", "b2")
        assert claimed_ids(claiming, policy=policy) == ["a1", "b1", "b2"]
        assert claimed_ids(claiming, policy=policy) == []
        self._end(store, store.get("elsewhere"))
        assert claimed_ids(claiming, policy=policy) == ["a2"]

    def test_a_tenant_has_a_limit_on_a_backend(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A tenant's attempts on one backend are limited."""
        policy = QueuePolicy(tenant=TenantPolicy(running_on={"inline": 1}))
        store.create(make_job(id="elsewhere", tenant="a", backend="modal"))
        assert claimed_ids(claiming, policy=policy, backend="modal") == ["elsewhere"]
        self._submit(store, now, "a1", "a2", "b1", "b2", "-1", "-2")
        assert claimed_ids(claiming, policy=policy) == ["-1", "a1", "b1", "-2"]
        store.delete("a1", expected_revision=store.get("a1").revision)
        assert claimed_ids(claiming, policy=policy) == ["a2"]

    def test_a_raised_limit_counts_at_once(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """The limits are those of the claim's policy."""
        self._submit(store, now, "a1", "a2", "a3")
        for number in (1, 2, 3):
            policy = QueuePolicy(tenant=TenantPolicy(running=number))
            assert claimed_ids(claiming, policy=policy) == [f"a{number}"]
        assert claimed_ids(claiming, policy=QueuePolicy(tenant=TenantPolicy(running=0))) == []

    def test_a_call_that_may_still_compute_holds_its_unit(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """The unit of an ended attempt counts until its call is known to have stopped, beside that of the next one."""
        policy = QueuePolicy(running={"inline": 2})
        job = make_job(id="a1", tenant="a", created_at=now)
        owed = a_try(job, called=True, clean_up=CleanUp.OWED)
        stored = store.create(evolve(job, attempts=(owed,), stage=Stage.RETRY_WAIT))
        self._submit(store, now, "b1")
        assert claimed_ids(claiming, policy=policy) == ["a1"]
        assert claimed_ids(claiming, policy=policy) == []
        claimed = store.get(stored.id)
        stopped = evolve(owed, stopped=True, clean_up=CleanUp.DONE)
        settled = evolve(claimed, attempts=(stopped, *claimed.attempts[1:]))
        store.replace(settled, expected_revision=claimed.revision)
        assert claimed_ids(claiming, policy=policy) == ["b1"]

    def test_a_call_that_stays_unknown_holds_its_unit_until_its_urls_expired(
        self, store: JobStore, claiming: SupportsClaim, now: datetime
    ) -> None:
        """An ended job whose call may still compute holds a unit of its tenant, and later none."""
        policy = QueuePolicy(tenant=TenantPolicy(running=1))
        for name, finish_by in (("late", now - URLS_EXPIRED), ("open", now - URLS_EXPIRED + HOUR)):
            job = make_job(id=name, tenant=name, created_at=now - 9 * HOUR, finish_by=finish_by, ready_at=None)
            owed = a_try(job, called=True, clean_up=CleanUp.OWED)
            store.create(evolve(job, attempts=(owed,), status=JobStatus.FAILED, ended_at=now))
            store.create(make_job(id=f"{name}-2", tenant=name))
        assert claimed_ids(claiming, policy=policy) == ["late-2"]

    def test_helpers_hold_units(self, store: JobStore, claiming: SupportsClaim, now: datetime) -> None:
        """A helper that may compute holds a unit beside its attempt's own, until it is known to have stopped."""
        policy = QueuePolicy(running={"inline": 3}, tenants={"a": TenantPolicy(running=3)})
        store.create(make_job(id="helped", tenant="a", parallel=3, created_at=now - HOUR))
        (job,) = claiming.claim(a_claim(policy=policy, local=False), limit=1)
        states = (HelperState.STARTING, HelperState.STARTED)
        job = store.replace(_helped(job, *states), expected_revision=job.revision)
        store.create(make_job(id="another", tenant="a", created_at=now))
        assert claimed_ids(claiming, policy=policy) == []
        self._end(store, job)
        job = store.get(job.id)
        store.create(make_job(id="third", tenant="a", created_at=now))
        assert len(claimed_ids(claiming, policy=policy)) == 1
        store.replace(_helped(job, HelperState.STOPPED, HelperState.STARTED), expected_revision=job.revision)
        assert len(claimed_ids(claiming, policy=policy)) == 1

    def test_no_concurrent_claims_exceed_a_limit(
        self, store: JobStore, claiming: SupportsClaim, other: JobStore, now: datetime
    ) -> None:
        """Eight threads of two instances begin as many attempts as the limits allow, no more and no fewer."""
        assert isinstance(other, SupportsClaim)
        policy = QueuePolicy(running={"inline": 11}, tenant=TenantPolicy(running=4))
        self._submit(store, now, *(f"{tenant}{number}" for tenant in "abcd" for number in range(9)))
        instances = (claiming, other)

        def claim_some(number: int) -> list[str]:
            mine: list[str] = []
            for _ in range(4):
                mine += claimed_ids(instances[number % 2], limit=2, policy=policy)
            return mine

        claimed = [job_id for mine in in_threads(THREADS, claim_some) for job_id in mine]
        assert len(claimed) == 11
        assert max(Counter(job_id[0] for job_id in claimed).values()) <= 4

    @staticmethod
    def _end(store: JobStore, job: Job) -> None:
        """Let a job and its attempt end."""
        assert job.attempt is not None
        ended = evolve(job.attempt, ended_at=store.now(), stopped=True)
        done = evolve(job, status=JobStatus.COMPLETE, attempts=(*job.attempts[:-1], ended), ended_at=store.now())
        store.replace(done, expected_revision=job.revision)

    # --- SupportsLooks

    def test_looks_are_claimed_longest_due_first(self, store: JobStore, looking: SupportsLooks, now: datetime) -> None:
        """`claim_looks` returns jobs that are due, longest due first, at most ``limit``, as they are; then others."""
        for job_id, age in (("c", 1), ("b", 1), ("d", 2), ("later", -3600)):
            store.create(make_job(id=job_id, created_at=now - HOUR, finish_by=now - age * SECOND))
        store.create(make_ended_job(id="owes", updated_at=now - 9 * SECOND))
        store.create(
            make_ended_job(
                id="settled", attempts=(), audio_clean_up=CleanUp.NONE, pieces_clean_up=CleanUp.NONE, expired_at=None
            )
        )
        first = looking.claim_looks(limit=2)
        assert [job.id for job in first] == ["owes", "d"]
        assert first == [store.get(job.id) for job in first]
        assert looking.claim_looks(limit=0) == []
        assert [job.id for job in looking.claim_looks(limit=9)] == ["b", "c"]
        assert looking.claim_looks(limit=9) == []

    def test_a_look_changes_no_record(self, store: JobStore, looking: SupportsLooks, now: datetime) -> None:
        """A look spends no revision: a writer that read the job before is not refused."""
        job = store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND))
        assert looking.claim_looks(limit=9) == [job]
        assert store.get(job.id) == job
        store.replace(job, expected_revision=job.revision)

    def test_a_look_comes_again_after_a_pause(self, store: JobStore, looking: SupportsLooks, now: datetime) -> None:
        """A job that was looked at is due again after the first of `LOOK_PAUSES`, and then after the second."""
        job = store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND))
        looks: list[tuple[datetime, datetime]] = []  # each look was claimed between these times, however long that took

        def look() -> list[Job]:
            before = store.now()
            if found := looking.claim_looks(limit=9):
                looks.append((before, store.now()))
            return found

        for _ in range(3):
            assert eventually(look) == [job]
        slack = timedelta(milliseconds=100)  # a server's time is estimated between its answers
        (first, _), (second, after_second), (_, after_third) = looks
        assert after_second - first > LOOK_PAUSES[0] - slack
        assert after_third - second > LOOK_PAUSES[1] - slack

    def test_a_write_makes_the_pauses_short_again(self, store: JobStore, looking: SupportsLooks, now: datetime) -> None:
        """A job that was written is due when ``due_at`` says so, whatever was before."""
        job = store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND))
        for _ in range(3):
            assert looking.claim_looks(limit=9) == [job]
            job = store.replace(job, expected_revision=job.revision)

    def test_a_deadline_brings_the_next_look_forward(
        self, store: JobStore, looking: SupportsLooks, now: datetime
    ) -> None:
        """A look is not put off beyond ``deadline_at``."""
        soon = timedelta(milliseconds=150)
        looked_at = []
        for job_id, start_by in (("a-later", now + HOUR), ("b-soon", now + soon)):
            job = make_job(id=job_id, created_at=now - HOUR, finish_by=now + HOUR, ready_at=None)
            attempt = a_try(job, ended_at=None, called=True, start_by=start_by)
            job = evolve(job, attempts=(attempt,), stage=Stage.DISPATCHED, updated_at=now - HOUR)
            looked_at.append(store.create(job))
        assert looking.claim_looks(limit=9) == looked_at
        if store.now() < now + soon:  # else the deadline was over at that look
            assert eventually(lambda: looking.claim_looks(limit=1)) == [looked_at[1]]

    def test_a_look_at_one_job(self, store: JobStore, looking: SupportsLooks, now: datetime) -> None:
        """With ``job_id``, only that job is looked at, if it is due."""
        jobs = [store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND)) for _ in range(2)]
        store.create(make_job(id="later"))
        assert looking.claim_looks(limit=9, job_id="later") == []
        assert looking.claim_looks(limit=9, job_id="unknown") == []
        assert looking.claim_looks(limit=9, job_id=jobs[1].id) == [jobs[1]]
        assert looking.claim_looks(limit=9) == [jobs[0]]

    def test_a_look_is_left_to_those_that_have_what_it_needs(
        self, store: JobStore, looking: SupportsLooks, now: datetime
    ) -> None:
        """A process without the job's backend leaves the look to others, until a deadline is over, or for a while."""

        def due(job_id: str, age: timedelta, *, start_by: datetime = now + HOUR) -> None:
            job = make_job(id=job_id, created_at=now - HOUR, finish_by=now + HOUR, ready_at=None)
            attempt = a_try(job, ended_at=None, called=True, start_by=start_by)
            job = evolve(job, attempts=(attempt,), stage=Stage.DISPATCHED, updated_at=now - CHECK_INTERVAL - age)
            assert store.create(job).look_needs == "inline"

        due("now", SECOND)
        due("long", LOOK_LEFT)
        due("late", SECOND, start_by=now - SECOND)
        assert looking.claim_looks(limit=9, able={"local"}, job_id="now") == []
        assert {job.id for job in looking.claim_looks(limit=9, able={"local"})} == {"late", "long"}
        assert [job.id for job in looking.claim_looks(limit=9, able={"local", "inline"})] == ["now"]
        store.create(make_job(id="queued", created_at=now - HOUR, finish_by=now - SECOND))
        assert [job.id for job in looking.claim_looks(limit=9, able=())] == ["queued"]

    def test_a_claimed_job_is_due_when_its_lease_lapses(
        self, store: JobStore, looking: SupportsLooks, claiming: SupportsClaim
    ) -> None:
        """The claim sets when the job is due: a holder that dies is found out."""
        store.create(make_job())
        (claimed,) = claiming.claim(a_claim(lease=timedelta(milliseconds=50)), limit=9)
        assert eventually(lambda: looking.claim_looks(limit=9)) == [claimed]

    def test_concurrent_looks_are_shared(
        self, store: JobStore, looking: SupportsLooks, other: JobStore, now: datetime
    ) -> None:
        """Eight threads of two instances look at eighty jobs, each of them once."""
        assert isinstance(other, SupportsLooks)
        created = {store.create(make_job(created_at=now - HOUR, finish_by=now - SECOND)).id for _ in range(80)}
        for job_id in created:  # so that none is due again soon, however slow the machine is
            job = store.get(job_id)
            store.replace(job, expected_revision=job.revision)
        instances = (looking, other)

        def look(number: int) -> list[str]:
            return [job.id for _ in range(3) for job in instances[number % 2].claim_looks(limit=4)]

        looked = [job_id for mine in in_threads(THREADS, look) for job_id in mine]
        again = Counter(looked)
        assert set(again) <= created
        assert set(looked) | {job.id for job in looking.claim_looks(limit=100)} == created

    # --- SupportsCounts

    def test_counts_by_status(self, store: JobStore, counting: SupportsCounts) -> None:
        """`counts` gives every status its number, of all jobs or of one tenant's; deleted ones do not count."""
        assert counting.counts() == dict.fromkeys(JobStatus, 0)
        jobs = [
            store.create(make_job(tenant=tenant, status=status))
            for tenant, status in (("acme", JobStatus.FAILED), ("acme", JobStatus.PENDING), (None, JobStatus.FAILED))
        ]
        for tenant, status in (("acme", JobStatus.PENDING), ("acme", JobStatus.CANCELLED)):
            deleted = store.create(make_job(tenant=tenant, status=status))
            store.delete(deleted.id, expected_revision=deleted.revision)
        assert counting.counts() == {**dict.fromkeys(JobStatus, 0), JobStatus.FAILED: 2, JobStatus.PENDING: 1}
        assert counting.counts(tenant="acme")[JobStatus.FAILED] == 1
        assert counting.counts(tenant="nobody") == dict.fromkeys(JobStatus, 0)
        for status in (JobStatus.COMPLETE, JobStatus.CANCELLED, JobStatus.PROCESSING):
            jobs[1] = store.replace(evolve(jobs[1], status=status), expected_revision=jobs[1].revision)
            assert counting.counts(tenant="acme") == {
                **dict.fromkeys(JobStatus, 0),
                JobStatus.FAILED: 1,
                status: 1,
            }

    def test_counts_of_a_batch(self, store: JobStore, counting: SupportsCounts) -> None:
        """`counts` of a batch counts its jobs alone."""
        for batch, status in (("b", JobStatus.FAILED), ("b", JobStatus.PENDING), ("c", JobStatus.FAILED)):
            store.create(make_job(tenant="acme", batch=batch, status=status))
        expected = {**dict.fromkeys(JobStatus, 0), JobStatus.FAILED: 1, JobStatus.PENDING: 1}
        assert counting.counts(batch="b") == counting.counts(batch="b", tenant="acme") == expected
        assert counting.counts(batch="b", tenant="other") == dict.fromkeys(JobStatus, 0)

    def test_concurrent_ends_are_all_counted(self, store: JobStore, counting: SupportsCounts) -> None:
        """Jobs that end in eight threads at once are all counted."""

        def end(number: int) -> None:
            for _ in range(5):
                job = store.create(make_job(tenant="acme"))
                status = JobStatus.COMPLETE if number % 2 else JobStatus.FAILED
                store.replace(evolve(job, status=status, ready_at=None), expected_revision=job.revision)

        in_threads(THREADS, end)
        expected = {**dict.fromkeys(JobStatus, 0), JobStatus.COMPLETE: 20, JobStatus.FAILED: 20}
        assert counting.counts() == counting.counts(tenant="acme") == expected

    @pytest.mark.parametrize("seed", range(6))
    def test_the_place_in_the_queue_is_the_order_of_claims(
        self, store: JobStore, counting: SupportsCounts, claiming: SupportsClaim, seed: int
    ) -> None:
        """`position` is 1 for the job that is claimed next, and so on, whatever tenants, weights and retries wait."""
        draw = random.Random(seed)
        tenants = [None] if seed == 0 else [None, "a", "b", "c"] if seed < 4 else ["a", "b", "c"]
        parallel = [1] if seed < 4 else [1, 1, 4]
        policy = QueuePolicy(tenants={"a": TenantPolicy(weight=2.5), "b": TenantPolicy(weight=0.4)})
        for number in range(30):
            job = make_job(id=f"job-{number}", tenant=draw.choice(tenants), priority=draw.choice([0, 0, 1]))
            tries = (a_try(job),) if draw.random() < 0.2 else ()
            store.create(evolve(job, attempts=tries, parallel=draw.choice(parallel)))
        assert len(claiming.claim(a_claim(policy=policy), limit=5)) == 5
        waiting = [job for job in store.query(JobQuery()).items if job.ready_at is not None]
        places = {job.id: counting.position(job, policy) for job in waiting}
        order = [claimed_ids(claiming, limit=1, policy=policy)[0] for _ in waiting]
        assert places == {job_id: number for number, job_id in enumerate(order, 1)}

    def test_a_job_that_is_not_claimable_has_no_place(
        self, store: JobStore, counting: SupportsCounts, claiming: SupportsClaim, now: datetime
    ) -> None:
        """`position` is None for a job that waits for a time, runs or has ended."""
        policy = QueuePolicy()
        assert counting.position(store.create(make_ended_job()), policy) is None
        assert counting.position(store.create(make_job(created_at=now, ready_at=now + HOUR)), policy) is None
        job = store.create(make_job())
        claiming.claim(a_claim(), limit=9)
        assert counting.position(job, policy) is None  # also by an older record

    def test_a_place_beyond_the_last_that_is_counted(
        self, store: JobStore, counting: SupportsCounts, creating: SupportsCreateMany, now: datetime
    ) -> None:
        """`position` is exact up to `MAX_POSITION`; one more means: more than so many."""
        jobs = [
            make_job(id=f"job-{number:04}", tenant="a", created_at=now + number * timedelta(milliseconds=1))
            for number in range(MAX_POSITION + 2)
        ]
        creating.create_many(jobs)
        for number, place in ((0, 1), (MAX_POSITION - 1, MAX_POSITION), (MAX_POSITION, MAX_POSITION + 1)):
            assert counting.position(store.get(f"job-{number:04}"), QueuePolicy()) == place
        assert counting.position(store.get(f"job-{MAX_POSITION + 1:04}"), QueuePolicy()) == MAX_POSITION + 1
        last = store.create(make_job(id="other", tenant="b", created_at=now + HOUR))
        assert counting.position(last, QueuePolicy()) == 2
        slow = QueuePolicy(tenants={"b": TenantPolicy(weight=0.0001)})
        assert counting.position(store.create(make_job(id="other-2", tenant="b", created_at=now + HOUR)), slow) == (
            MAX_POSITION + 1
        )

    # --- SupportsCreateMany

    def test_create_many_returns_one_result_for_each(self, store: JobStore, creating: SupportsCreateMany) -> None:
        """`create_many` returns, in order, each job as stored, or `JobExistsError`; the others are created."""
        taken = store.create(make_job())
        jobs = [make_job(), evolve(make_job(), id=taken.id), make_job()]
        first, second, third = creating.create_many(jobs)
        assert isinstance(second, JobExistsError)
        assert [first, third] == [store.get(jobs[0].id), store.get(jobs[2].id)]
        assert first == evolve(jobs[0], revision=store.get(jobs[0].id).revision)
        assert store.get(taken.id) == taken
        assert creating.create_many([]) == []

    def test_create_many_is_claimed_like_others(
        self, store: JobStore, creating: SupportsCreateMany, claiming: SupportsClaim
    ) -> None:
        """Jobs that were created together wait like any others."""
        jobs = [make_job(id=name, tenant="a") for name in ("one", "two")]
        creating.create_many(jobs)
        assert sorted(claimed_ids(claiming)) == ["one", "two"]
        assert store.get("one").attempt is not None

    def test_a_quota_of_queued_jobs(
        self, store: JobStore, creating: SupportsCreateMany, claiming: SupportsClaim
    ) -> None:
        """No more jobs of a tenant wait than its quota says; those beyond it are refused, and claims make room."""
        quota = Quota(queued=3)
        results = creating.create_many([make_job(tenant="a") for _ in range(5)], quota=quota)
        refused = [result for result in results if isinstance(result, QueueLimitError)]
        assert [type(result) for result in results[:3]] == [Job] * 3
        assert [error.code for error in refused] == ["limit.queued"] * 2
        assert all(isinstance(job, Job) for job in creating.create_many([make_job(tenant="b")], quota=quota))
        assert len(claimed_ids(claiming, limit=1)) == 1
        (result,) = creating.create_many([make_job(tenant="a")], quota=quota)
        assert isinstance(result, Job)
        assert store.get(result.id) == result

    def test_a_quota_of_submits_a_minute(self, store: JobStore, creating: SupportsCreateMany) -> None:
        """A tenant creates no more jobs within a minute than its quota says, whatever becomes of them."""
        quota = Quota(submits_per_minute=3)
        for job in creating.create_many([make_job(tenant="a") for _ in range(2)], quota=quota):
            assert isinstance(job, Job)
            store.delete(job.id, expected_revision=job.revision)
        results = creating.create_many([make_job(tenant="a") for _ in range(3)], quota=quota)
        assert [isinstance(result, Job) for result in results] == [True, False, False]
        refused = results[2]
        assert isinstance(refused, QueueLimitError)
        assert refused.code == "limit.rate"
        assert timedelta(0) < refused.retry_after <= timedelta(minutes=1)
        assert isinstance(creating.create_many([make_job(tenant="b")], quota=quota)[0], Job)

    def test_no_concurrent_creates_exceed_a_quota(
        self, store: JobStore, creating: SupportsCreateMany, other: JobStore
    ) -> None:
        """Eight threads of two instances create exactly as many jobs as the quota allows."""
        assert isinstance(other, SupportsCreateMany)
        instances = (creating, other)
        for tenant, quota in (("a", Quota(queued=10)), ("b", Quota(submits_per_minute=10))):

            def create(number: int, tenant: str = tenant, quota: Quota = quota) -> int:
                jobs = [make_job(tenant=tenant) for _ in range(3)]
                results = instances[number % 2].create_many(jobs, quota=quota)
                return sum(isinstance(result, Job) for result in results)

            assert sum(in_threads(THREADS, create)) == 10
            assert len(store.query(JobQuery(tenant=tenant)).items) == 10

"""Are many jobs created at once, within quotas, and within the application's transaction?"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from renderdispatch.errors import (
    ConfigurationError,
    InvalidRequestError,
    JobExistsError,
    JobNotFoundError,
    QueueLimitError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.protocols import JobQuery, Quota
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.stores.sql.addresses import read_address
from renderdispatch.testing import FakeClock, eventually, in_threads, make_job


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[SqlJobStore]:
    with closing(SqlJobStore(url)) as store:
        yield store


@pytest.fixture
def application(url: str) -> Iterator[sa.Engine]:
    """The application's own engine, with a table of its own, beside those of the store."""
    with closing(SqlJobStore(url)) as store:
        store.set_up()
    engine = sa.create_engine(read_address(url).url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE songs (name TEXT)")
    yield engine
    engine.dispose()


def _songs(application: sa.Engine) -> int:
    with application.begin() as connection:
        found: int = connection.execute(sa.text("SELECT count(*) FROM songs")).scalar_one()
        return found


def _exists(store: SqlJobStore, job: Job) -> bool:
    try:
        return bool(store.get(job.id))
    except JobNotFoundError:
        return False


def _kinds(results: Sequence[object]) -> list[type]:
    return [type(result) for result in results]


# --- many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 49, 50, 51, 120])
def test_all_are_created_as_they_would_be_one_by_one(store: SqlJobStore, number: int) -> None:
    """Each result is the job as it is stored, in the order of the jobs."""
    jobs = [make_job(tenant="acme", batch="b") for _ in range(number)]
    results = store.create_many(jobs)
    assert [result.id for result in results if isinstance(result, Job)] == [job.id for job in jobs]
    assert [store.get(job.id) for job in jobs] == results


def test_one_that_exists_keeps_none_of_the_others_out(store: SqlJobStore) -> None:
    """Ids that are taken, in the store or earlier in the same call, are `JobExistsError`; the others are created."""
    old, twice = store.create(make_job()), make_job()
    results = store.create_many([make_job(), old, twice, twice, *(make_job() for _ in range(60))])
    assert _kinds(results) == [Job, JobExistsError, Job, JobExistsError, *[Job] * 60]
    assert store.get(old.id) == old
    assert len(store.query(JobQuery(limit=1000)).items) == 63


def test_over_a_tombstone_the_revision_rises(store: SqlJobStore) -> None:
    """A job that takes the id of a deleted one has a higher revision, as after `create`."""
    old = store.create(make_job(id="again"))
    store.delete("again", expected_revision=old.revision)
    (stored,) = store.create_many([make_job(id="again")])
    assert isinstance(stored, Job) and stored.revision == 3
    assert store.get("again") == stored


def test_none_is_created_if_one_cannot_be(store: SqlJobStore) -> None:
    """A job that cannot be stored, in the last of several statements, leaves none of the others."""
    with pytest.raises(InvalidRequestError):
        store.create_many([*(make_job() for _ in range(70)), make_job(batch="a\0")])
    assert store.query(JobQuery()).items == ()


def test_jobs_of_several_tenants(store: SqlJobStore) -> None:
    """They are refused: a quota is one tenant's."""
    with pytest.raises(InvalidRequestError, match="one tenant"):
        store.create_many([make_job(tenant="a"), make_job(tenant="b")])


def test_two_that_create_the_same_jobs_in_another_order(postgres_url: str) -> None:
    """Neither of them holds what the other one waits for: the second waits, and finds that all of them exist."""
    engine = sa.create_engine(read_address(postgres_url).url)
    waiting = sa.text("SELECT 1 FROM pg_locks WHERE NOT granted")
    with closing(SqlJobStore(postgres_url)) as store, engine.connect() as first, ThreadPoolExecutor(1) as pool:
        store.create_many([make_job(id="a")], connection=first)
        second = pool.submit(store.create_many, [make_job(id="b"), make_job(id="a")])
        eventually(lambda: first.execute(waiting).all())
        (created,) = store.create_many([make_job(id="b")], connection=first)
        assert isinstance(created, Job)
        first.commit()
        assert [type(found) for found in second.result()] == [JobExistsError] * 2
    engine.dispose()


def test_memory_does_not_grow_with_the_number(store: SqlJobStore) -> None:
    """While thousands are created, what is held of them is that of a few."""
    store.set_up()
    jobs = [make_job() for _ in range(3000)]

    def peak(number: int) -> int:
        tracemalloc.start()
        created = store.create_many(jobs[:number])
        assert len(created) == number
        found = tracemalloc.get_traced_memory()[1] - tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return found

    peak(100)
    assert peak(3000) < 4_000_000


# --- quotas ---------------------------------------------------------------------------------------


def test_a_quota_is_exact_among_many(url: str, store: SqlJobStore) -> None:
    """Eight that submit at once create together as many as the tenant may have, and no more."""
    stores = [store, *(SqlJobStore(url) for _ in range(3))]
    quota = Quota(queued=40, submits_per_minute=30)

    def submit(number: int) -> int:
        made = 0
        for _ in range(5):
            results = stores[number % 4].create_many([make_job(tenant="acme"), make_job(tenant="acme")], quota=quota)
            made += sum(isinstance(result, Job) for result in results)
        return made

    assert sum(in_threads(8, submit)) == 30
    assert len(store.query(JobQuery(tenant="acme", limit=1000)).items) == 30
    for other in stores[1:]:
        other.close()


def test_one_tenants_quota_is_not_anothers(store: SqlJobStore) -> None:
    """A tenant that is at its limit keeps no other tenant out."""
    quota = Quota(queued=1, submits_per_minute=1)
    for tenant in ("a", "b", None):
        results = store.create_many([make_job(tenant=tenant), make_job(tenant=tenant)], quota=quota)
        assert _kinds(results) == [Job, QueueLimitError]


def test_the_rate_is_of_the_last_minute(url: str) -> None:
    """Submits count for a minute, also those that were cancelled or deleted since; the error says how long that is."""
    clock = FakeClock()
    with closing(SqlJobStore(url, clock=clock)) as store:
        quota = Quota(submits_per_minute=2)
        first, second = store.create_many([make_job(tenant="a"), make_job(tenant="a")], quota=quota)
        assert isinstance(first, Job) and isinstance(second, Job)
        store.delete(first.id, expected_revision=first.revision)
        clock.advance(timedelta(seconds=45))
        (refusal,) = store.create_many([make_job(tenant="a")], quota=quota)
        assert isinstance(refusal, QueueLimitError)
        assert (refusal.code, refusal.retry_after) == ("limit.rate", timedelta(seconds=15))
        clock.advance(refusal.retry_after)
        assert _kinds(store.create_many([make_job(tenant="a")], quota=quota)) == [Job]


def test_what_was_refused_costs_nothing(store: SqlJobStore) -> None:
    """A refused job, and one that exists, use up none of the tenant's quota."""
    quota, old = Quota(submits_per_minute=3), make_job(tenant="a")
    store.create_many([old], quota=quota)
    results = store.create_many(
        [old, make_job(tenant="a"), old, make_job(tenant="a"), make_job(tenant="a")], quota=quota
    )
    assert _kinds(results) == [JobExistsError, Job, JobExistsError, Job, QueueLimitError]


# --- the application's transaction ----------------------------------------------------------------


@pytest.mark.parametrize("first", ["song", "job"])
@pytest.mark.parametrize("commits", [True, False])
def test_both_or_none(store: SqlJobStore, application: sa.Engine, first: str, commits: bool) -> None:
    """The application's row and the job are there together or not at all, whichever was written first."""
    job = make_job()
    with application.connect() as connection:
        for step in ("song", "job") if first == "song" else ("job", "song"):
            if step == "song":
                connection.execute(sa.text("INSERT INTO songs VALUES ('a')"))
            else:
                assert _kinds(store.create_many([job], connection=connection)) == [Job]
        if commits:
            connection.commit()
        else:
            connection.rollback()
    assert (_songs(application), _exists(store, job)) == ((1, True) if commits else (0, False))


def test_a_session(store: SqlJobStore, application: sa.Engine) -> None:
    """A session of the ORM serves as a connection does."""
    kept, lost = make_job(), make_job()
    with Session(application) as session:
        store.create_many([kept], connection=session)
        session.commit()
        store.create_many([lost], connection=session)
    assert (_exists(store, kept), _exists(store, lost)) == (True, False)


def test_a_job_that_exists_spoils_no_transaction(store: SqlJobStore, application: sa.Engine) -> None:
    """After a refusal the application's transaction goes on, and commits what it wrote before and after."""
    job = store.create(make_job())
    with application.begin() as connection:
        connection.execute(sa.text("INSERT INTO songs VALUES ('before')"))
        assert _kinds(store.create_many([job], connection=connection)) == [JobExistsError]
        connection.execute(sa.text("INSERT INTO songs VALUES ('after')"))
    assert _songs(application) == 2


def test_a_failure_leaves_the_transaction_as_it_was(store: SqlJobStore, application: sa.Engine) -> None:
    """If one job cannot be stored, those before it are taken back alone; the application may go on and commit."""
    with application.begin() as connection:
        connection.execute(sa.text("INSERT INTO songs VALUES ('before')"))
        with pytest.raises(InvalidRequestError):
            store.create_many([*(make_job() for _ in range(60)), make_job(batch="\ud800")], connection=connection)
        connection.execute(sa.text("INSERT INTO songs VALUES ('after')"))
    assert _songs(application) == 2
    assert store.query(JobQuery()).items == ()


def test_a_quota_within_a_transaction(store: SqlJobStore, application: sa.Engine) -> None:
    """A quota holds there too, and counts what the same transaction created."""
    quota = Quota(queued=3)
    with application.begin() as connection:
        for expected in ([Job, Job], [Job, QueueLimitError]):
            jobs = [make_job(tenant="a"), make_job(tenant="a")]
            assert _kinds(store.create_many(jobs, quota=quota, connection=connection)) == expected


def test_a_connection_in_autocommit(store: SqlJobStore, application: sa.Engine) -> None:
    """It has no transaction to join, and is refused."""
    autocommit = application.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection, pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        store.create_many([make_job()], connection=connection)


def test_a_connection_to_another_database(store: SqlJobStore, tmp_path: Path) -> None:
    """One to another file, or another kind of database, is refused before anything is written."""
    with closing(SqlJobStore(tmp_path / "other.db")) as other:
        other.set_up()
    store.set_up()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with engine.connect() as connection, pytest.raises(ConfigurationError, match="the connection is one to"):
        store.create_many([make_job()], connection=connection)
    engine.dispose()


def test_another_database_of_one_server(postgres_url: str, postgres: Any) -> None:
    """Of two databases of one server, each with jobs or without, only the store's own is taken."""
    with postgres.database() as elsewhere, closing(SqlJobStore(postgres_url)) as store:
        engine = sa.create_engine(read_address(elsewhere).url)
        for _ in range(2):
            with engine.connect() as connection, pytest.raises(ConfigurationError, match="another database"):
                store.create_many([make_job()], connection=connection)
            with closing(SqlJobStore(elsewhere)) as other:
                other.set_up()
        engine.dispose()


@pytest.mark.parametrize("wrong", [5, "sqlite:///jobs.db", object()])
def test_what_is_not_a_connection(store: SqlJobStore, wrong: object) -> None:
    """The error says what is taken."""
    with pytest.raises(ConfigurationError, match="an SQLAlchemy Connection or Session"):
        store.create_many([make_job()], connection=wrong)


def test_a_transaction_that_failed_before(postgres_url: str) -> None:
    """The error tells that, and not that it is another database."""
    engine = sa.create_engine(read_address(postgres_url).url)
    with closing(SqlJobStore(postgres_url)) as store, engine.connect() as connection:
        with pytest.raises(sa.exc.ProgrammingError):
            connection.execute(sa.text("SELECT nonsense"))
        with pytest.raises(StoreUnavailableError, match="roll it back"):
            store.create_many([make_job()], connection=connection)
        connection.rollback()
        store.create_many([make_job(id="x")], connection=connection)
        connection.commit()
        assert store.get("x").id == "x"
    engine.dispose()


def test_a_transaction_whose_connection_is_gone(postgres_url: str, postgres: Any) -> None:
    """The application's connection that breaks is `StoreUnavailableError`, and the job is not there."""
    store, job = SqlJobStore(postgres_url), make_job()
    store.set_up()
    engine = sa.create_engine(read_address(postgres_url).url)
    with engine.connect() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        postgres.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        with pytest.raises(StoreUnavailableError):
            store.create_many([job], connection=connection)
    engine.dispose()
    assert not _exists(store, job)
    store.close()

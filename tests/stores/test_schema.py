"""Are the tables of a job store made, and brought up to date, once, whoever comes first?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from attrs import evolve

from renderdispatch.errors import ConfigurationError, JobNotFoundError, JobUnreadableError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.protocols import Claim, JobQuery
from renderdispatch.stores.pages import micros
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.stores.sql.addresses import read_address
from renderdispatch.testing import in_threads, make_ended_job, make_job
from tests.support import earlier_tables
from tests.support.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def database(url: str) -> Iterator[sa.Engine]:
    """The database, past the store."""
    engine = sa.create_engine(read_address(url).url, poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def _run(database: sa.Engine, statement: str, values: Any = None) -> list[Any]:
    with database.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return list(result.all()) if result.returns_rows else []


def _objects(database: sa.Engine) -> set[tuple[str, ...]]:
    """Return the tables with their columns, the indexes, and the triggers."""
    there = sa.inspect(database)
    tables = there.get_table_names()
    found = {(table, *sorted(column["name"] for column in there.get_columns(table))) for table in tables}
    others = {
        "sqlite": "SELECT type, name FROM sqlite_schema",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'renderdispatch%' "
        "UNION ALL SELECT tgname, '' FROM pg_trigger WHERE NOT tgisinternal",
    }
    return found | {tuple(row) for row in _run(database, others[database.dialect.name])}


# --- set-up ---------------------------------------------------------------------------------------


def test_many_set_up_at_once(url: str, database: sa.Engine) -> None:
    """Eight that come first together make one set of tables, with one row that says the version."""
    stores = [SqlJobStore(url) for _ in range(8)]
    in_threads(8, lambda number: stores[number].set_up())
    assert len(_run(database, "SELECT version FROM renderdispatch_schema")) == 1
    for store in stores:
        store.close()


def test_a_second_set_up_changes_nothing(url: str, database: sa.Engine) -> None:
    """Set-up where everything is there leaves it, and its jobs, as they are."""
    with closing(SqlJobStore(url)) as store:
        job = store.create(make_job())
    before = _objects(database)
    with closing(SqlJobStore(url)) as store:
        store.set_up()
        assert store.get(job.id) == job
    assert _objects(database) == before


def test_tables_of_a_newer_version(url: str, database: sa.Engine) -> None:
    """A process that is too old for the tables says so, and touches none of them."""
    with closing(SqlJobStore(url)) as store:
        store.create(make_job())
    _run(database, "UPDATE renderdispatch_schema SET version = version + 1")
    with closing(SqlJobStore(url)) as store:
        for call in (store.set_up, store.counts, lambda: store.create(make_job())):
            with pytest.raises(
                ConfigurationError, match=r"newer version of renderdispatch.*update this process"
            ) as refusal:
                call()
            assert refusal.value.code == "store.unusable"


def test_a_role_that_may_not_create_tables(postgres: PostgresServer, postgres_url: str) -> None:
    """Once the owner has set them up, a user with rights to read and write does the rest; before, the error says so."""
    postgres.execute("CREATE ROLE plain LOGIN")
    name = str(read_address(postgres_url).url.database)
    plain = postgres_url.replace("postgres@", "plain@")
    try:
        with closing(SqlJobStore(plain)) as store, pytest.raises(ConfigurationError, match="may not make") as refusal:
            store.get("x")
        assert "set_up" in str(refusal.value)
        with closing(SqlJobStore(postgres_url)) as owner:
            owner.set_up()
        tables = "ON ALL TABLES IN SCHEMA public"
        with closing(SqlJobStore(plain)) as store, pytest.raises(ConfigurationError, match="may not use"):
            store.get("x")
        postgres.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE {tables} TO plain", name)
        with closing(SqlJobStore(plain)) as store:
            job = store.create(make_job(tenant="acme"))
            (claimed,) = store.claim(
                Claim(backend="inline", local=True, holder="h", lease=timedelta(minutes=1)), limit=1
            )
            ended = evolve(claimed, status=JobStatus.COMPLETE, ended_at=store.now())
            stored = store.replace(ended, expected_revision=claimed.revision)
            assert store.counts()[JobStatus.COMPLETE] == 1
            assert store.delete(job.id, expected_revision=stored.revision)
    finally:
        postgres.execute("DROP OWNED BY plain", name)
        postgres.execute("DROP ROLE plain")


# --- upgrades -------------------------------------------------------------------------------------


def _version_1(database: sa.Engine, jobs: list[Job]) -> None:
    for statement in earlier_tables.statements():
        _run(database, statement)
    for job in jobs:
        _insert(database, earlier_tables.row(job))


def _insert(database: sa.Engine, row: dict[str, object]) -> None:
    marks = ", ".join(f":{name}" for name in row)
    _run(database, f"INSERT INTO renderdispatch_jobs ({', '.join(row)}) VALUES ({marks})", row)


def _some_jobs() -> list[Job]:
    queued = [make_job(id=f"queued-{number}", tenant="acme", revision=3) for number in range(3)]
    return [*queued, make_job(id="free", revision=1), make_ended_job(id="ended", revision=9, expired_at=None)]


def test_an_upgrade_keeps_every_job(url: str, database: sa.Engine) -> None:
    """The jobs of the version before are there, as they were, and their ids are still taken."""
    jobs = _some_jobs()
    _version_1(database, jobs)
    with closing(SqlJobStore(url)) as store:
        assert {job.id: store.get(job.id) for job in jobs} == {job.id: job for job in jobs}


def test_upgraded_jobs_are_served(url: str, database: sa.Engine) -> None:
    """They are claimed, looked at, counted, listed, and forgotten, as jobs of this version are."""
    _version_1(database, _some_jobs())
    with closing(SqlJobStore(url)) as store:
        claimed = store.claim(Claim(backend="inline", local=True, holder="h", lease=timedelta(minutes=1)), limit=9)
        assert {job.id for job in claimed} == {"queued-0", "queued-1", "queued-2", "free"}
        assert store.counts()[JobStatus.PROCESSING] == 4
        assert store.counts(tenant="acme")[JobStatus.PROCESSING] == 3
        ended = store.query(JobQuery(order="ended")).items
        assert [job.id for job in ended] == ["ended"]


def test_an_upgraded_database_is_as_a_new_one(url: str, database: sa.Engine, tmp_path: Path) -> None:
    """It has the same tables, columns and indexes: none is left that nothing uses."""
    _version_1(database, _some_jobs())
    with closing(SqlJobStore(url)) as store:
        store.set_up()
    upgraded = _objects(database)
    for table in sa.inspect(database).get_table_names():
        _run(database, f"DROP TABLE {table}")
    with closing(SqlJobStore(url)) as store:
        store.set_up()
    assert _objects(database) == upgraded


def test_many_upgrade_at_once(url: str, database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four that upgrade together, in small steps, fill every row once."""
    monkeypatch.setattr("renderdispatch.stores.sql.schema._STEP_ROWS", 7)
    jobs = [make_job(id=f"{number:03}") for number in range(60)]
    _version_1(database, jobs)
    stores = [SqlJobStore(url) for _ in range(4)]
    in_threads(4, lambda number: stores[number].set_up())
    assert len(_run(database, "SELECT version FROM renderdispatch_schema")) == 1
    assert _run(database, "SELECT count(*) FROM renderdispatch_jobs WHERE looks = 0") == [(60,)]
    for store in stores:
        store.close()


def test_an_upgrade_that_was_interrupted(url: str, database: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process goes on with it."""
    jobs = [make_job(id=f"{number:03}", revision=1) for number in range(20)]
    _version_1(database, jobs)
    module = "renderdispatch.stores.sql.schema"
    monkeypatch.setattr(f"{module}._STEP_ROWS", 7)
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}._make", _fail)
        with closing(SqlJobStore(url)) as store, pytest.raises(ZeroDivisionError):
            store.set_up()
    with closing(SqlJobStore(url)) as store:
        assert sorted(store.query(JobQuery()).items, key=lambda job: job.id) == jobs


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_a_process_of_the_version_before_stops(url: str, database: sa.Engine) -> None:
    """After an upgrade its writes fail: a column that only it writes is gone, so it cannot leave rows half filled."""
    _version_1(database, _some_jobs())
    with closing(SqlJobStore(url)) as store:
        store.set_up()
        with pytest.raises(sa.exc.DBAPIError):
            _insert(database, earlier_tables.row(make_job(id="late")))
        with pytest.raises(JobNotFoundError):
            store.get("late")


def test_records_that_cannot_be_read_outlast_an_upgrade(url: str, database: sa.Engine) -> None:
    """They are left as they are, and keep none of the others from being brought up to date."""
    _version_1(database, _some_jobs())
    _run(database, "UPDATE renderdispatch_jobs SET document = '{}' WHERE id = 'queued-1'")
    with closing(SqlJobStore(url)) as store:
        with pytest.raises(JobUnreadableError):
            store.get("queued-1")
        assert store.get("queued-2").id == "queued-2"


def test_tombstones_outlast_an_upgrade(url: str, database: sa.Engine) -> None:
    """A job that takes the id of one that was deleted before the upgrade starts at a higher revision."""
    _version_1(database, [])
    deleted_at = micros(make_job().created_at)
    _insert(database, earlier_tables.tombstone("gone", revision=5, deleted_at=deleted_at))
    with closing(SqlJobStore(url)) as store:
        assert store.create(make_job(id="gone")).revision == 6

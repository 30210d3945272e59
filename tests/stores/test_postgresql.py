"""Does `SqlJobStore` keep its promises on PostgreSQL, whatever happens to the server and the network?"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from renderdispatch.errors import (
    ConfigurationError,
    InvalidRequestError,
    QueueLimitError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.plumbing.failures import translated
from renderdispatch.protocols import Claim, JobQuery, Quota
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.stores.sql.addresses import read_address
from renderdispatch.stores.sql.database_errors import translation
from renderdispatch.stores.sql.notices import CHANNEL
from renderdispatch.testing import JobStoreContract, eventually, in_threads, make_job, make_request
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.stalling import Network


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def store(url: str) -> Iterator[SqlJobStore]:
    with closing(SqlJobStore(url)) as store:
        yield store


def _run(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


class TestSqlJobStoreOnPostgreSQL(JobStoreContract):
    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[SqlJobStore]:
        with closing(SqlJobStore(postgres_url)) as store:
            yield store

    @pytest.fixture
    def second(self, postgres_url: str) -> Iterator[SqlJobStore]:
        with closing(SqlJobStore(postgres_url)) as second:
            yield second

    def raw_get(self, store: SqlJobStore, job_id: str) -> str | None:
        document: str | None = _run(_url_of(store), "SELECT document FROM renderdispatch_jobs WHERE id = %s", job_id)[
            0
        ][0]
        return document

    def raw_set(self, store: SqlJobStore, job_id: str, document: str) -> None:
        statement = "UPDATE renderdispatch_jobs SET document = %s, protocol = %s WHERE id = %s"
        _run(_url_of(store), statement, document, json.loads(document)["protocol"], job_id)


def _url_of(store: SqlJobStore) -> str:
    return store._address.url.set(drivername="postgresql").render_as_string(hide_password=False)


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_scheme_means_psycopg(url: str, scheme: str) -> None:
    """The schemes that hosting services and SQLAlchemy write all mean the same driver."""
    with closing(SqlJobStore(url.replace("postgresql", scheme, 1))) as store:
        job = store.create(make_job())
        assert store.get(job.id) == job


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("pool_size=0", "pool_size"),
        ("pool_size=many", "pool_size"),
        ("pooler=session", "pooler"),
        ("timeout=0.5", "timeout"),
        ("timeout=soon", "timeout"),
        ("sslmod=require", "sslmode=require"),
    ],
)
def test_an_option_that_makes_no_sense(options: str, named: str) -> None:
    """It is refused at once, by name, and the password is not quoted."""
    with pytest.raises(ConfigurationError, match=named) as refusal:
        SqlJobStore(f"postgresql://user:s3cret@host/jobs?{options}")
    assert "s3cret" not in str(refusal.value)


def test_a_password_with_an_at_sign() -> None:
    """Unless it is encoded, its end would be taken for a part of the host, which errors and logs show."""
    with pytest.raises(ConfigurationError, match="write '@' as %40") as refusal:
        SqlJobStore("postgresql://user:first@s3cret@host/jobs")
    assert "s3cret" not in str(refusal.value)
    assert "s3cret" not in repr(SqlJobStore("postgresql://user:first%40s3cret@host/jobs"))


def test_options_of_libpq_pass(url: str) -> None:
    """What PostgreSQL's own library knows is passed on, and counts beside what the store sets."""
    with closing(SqlJobStore(f"{url}?application_name=mine&options=-c%20work_mem%3D5MB")) as store:
        store.create(make_job())
        rows, _ = store._database.execute(_text("SHOW application_name"))
        assert rows[0][0] == "mine"
        assert store._database.execute(_text("SHOW work_mem"))[0][0][0] == "5MB"
        assert store._database.execute(_text("SHOW statement_timeout"))[0][0][0] == "27s"


def _text(statement: str) -> Any:
    return sa.text(statement)


@pytest.mark.parametrize("user", ["nobody_here:s3cret@", "postgres@"])
def test_a_server_that_refuses(postgres: PostgresServer, user: str) -> None:
    """A user or a database that the server does not have is `store.unusable`; no password is quoted."""
    name = "nowhere" if user == "postgres@" else "postgres"
    store = SqlJobStore(f"postgresql://{user}127.0.0.1:{postgres.port}/{name}")
    with pytest.raises(ConfigurationError, match=r"no database of this name|refuses this user") as refusal:
        store.get("x")
    assert refusal.value.code == "store.unusable"
    assert "s3cret" not in f"{refusal.value} {refusal.value.__cause__!r}"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("options=-csearch_path%3Dmissing", "names no schema that exists"),
        ("sslmode=foo", "has a value that does not work"),
    ],
)
def test_an_option_that_can_never_work(postgres: PostgresServer, option: str, said: str) -> None:
    """It is `store.unusable`, not a server that is away for a while, and not a bug."""
    with (
        closing(SqlJobStore(f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?{option}")) as store,
        pytest.raises(ConfigurationError, match=said) as refusal,
    ):
        store.create(make_job())
    assert refusal.value.code == "store.unusable"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("FATAL:  unsupported startup parameter: options", "pooler=transaction"),
        ('FATAL:  unrecognized configuration parameter "s3cret"', "option of its URL"),
        ("server does not support SSL, but SSL was required", "option of its URL"),
    ],
)
def test_a_connection_that_will_always_be_refused(said: str, told: str) -> None:
    """It is not a server that is away: the error says what helps."""
    where = read_address("postgresql://user:s3cret@host/jobs").url
    with (
        pytest.raises(ConfigurationError, match=told) as refusal,
        translated(translation(where, psycopg)),
    ):
        raise psycopg.OperationalError(said)
    assert "s3cret" not in str(refusal.value)


def test_a_database_that_cannot_hold_every_text(postgres: PostgresServer) -> None:
    """It is refused before the first job, and the error says how to make another one."""
    name = f"latin_{uuid.uuid4().hex}"
    _run(postgres.url(), f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with closing(SqlJobStore(postgres.url(name))) as store:
        with pytest.raises(ConfigurationError, match=r"encoding LATIN1.*ENCODING 'UTF8'") as refusal:
            store.set_up()
        assert refusal.value.code == "store.unusable"
    _run(postgres.url(), f"DROP DATABASE {name}")


def test_a_text_does_not_depend_on_settings_of_the_database(url: str) -> None:
    """Whatever encoding the database gives its clients, each text is stored as it is."""
    _run(url, f"ALTER DATABASE {_name_of(url)} SET client_encoding = 'LATIN1'")
    with closing(SqlJobStore(url)) as store:
        job = store.create(make_job(request=make_request(metadata={"place": "日本 ☃"})))
        assert store.get(job.id).request.metadata == {"place": "日本 ☃"}


def _name_of(url: str) -> str:
    return url.rpartition("/")[2]


# --- isolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "?pooler=transaction"])
def test_a_quota_is_exact_whatever_the_databases_isolation_is(url: str, options: str) -> None:
    """A submit that waited for another one of the tenant sees its job, also if REPEATABLE READ is the default."""
    _run(url, f"ALTER DATABASE {_name_of(url)} SET default_transaction_isolation = 'repeatable read'")
    with closing(SqlJobStore(f"{url}{options}")) as store, _engine(url) as engine:
        store.set_up()
        results: list[Any] = []
        second = threading.Thread(
            target=lambda: results.extend(store.create_many([make_job(tenant="acme")], quota=Quota(queued=1)))
        )
        with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection, connection.begin():
            store.create_many([make_job(tenant="acme")], quota=Quota(queued=1), connection=connection)
            second.start()
            assert eventually(lambda: _run(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        second.join()
        assert [type(result) for result in results] == [QueueLimitError]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_quota_is_not_counted_in_a_transaction_that_sees_too_little(url: str, level: Any) -> None:
    """An application's transaction of another isolation level is refused, and told why; without a quota it is not."""
    with closing(SqlJobStore(url)) as store, _engine(url) as engine:
        with engine.connect().execution_options(isolation_level=level) as connection, connection.begin():
            with pytest.raises(ConfigurationError, match=rf"READ COMMITTED, and this one is {level}"):
                store.create_many([make_job(tenant="acme")], quota=Quota(queued=1), connection=connection)
            store.create_many([make_job(tenant="acme")], connection=connection)
        assert len(store.query(JobQuery(tenant="acme")).items) == 1


def test_an_applications_connection_that_cannot_be_used(url: str) -> None:
    """The error says what is wrong with it: it does not say that it is one to another database."""
    with closing(SqlJobStore(url)) as store, _engine(url) as engine:
        job = make_job(request=make_request(metadata={"place": "☃"}))
        with engine.connect() as connection:
            with pytest.raises(sa.exc.ProgrammingError):
                connection.execute(sa.text("SELECT nonsense"))
            with pytest.raises(StoreUnavailableError, match="roll it back"):
                store.create_many([job], connection=connection)
            connection.rollback()
            connection.execute(sa.text("SET LOCAL client_encoding = 'LATIN1'"))
            with pytest.raises(ConfigurationError, match="client_encoding"):
                store.create_many([job], connection=connection)
        with pytest.raises(ConfigurationError, match="Connection is closed"):
            store.create_many([job], connection=connection)
        with Session() as unbound, pytest.raises(ConfigurationError, match="not bound"):
            store.create_many([job], connection=unbound)
        assert store.query(JobQuery()).items == ()


@contextmanager
def _engine(url: str) -> Iterator[sa.Engine]:
    """The application's own."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


# --- poolers --------------------------------------------------------------------------------------


def test_through_a_pooler_nothing_is_left_on_a_connection(url: str) -> None:
    """With ``?pooler=transaction`` there are no prepared statements and no settings of the session, and no notices."""
    with closing(SqlJobStore(f"{url}?pooler=transaction&pool_size=1")) as store:
        for _ in range(20):
            store.create(make_job())
        assert store._database.execute(_text("SELECT count(*) FROM pg_prepared_statements"))[0][0][0] == 0
        assert store._database.execute(_text("SHOW statement_timeout"))[0][0][0] == "0"
        store.listen(lambda: None)
        store.notify()
        assert not store.notifies


def test_statements_are_prepared(url: str) -> None:
    """Without a pooler, a statement that is run often is planned once."""
    with closing(SqlJobStore(f"{url}?pool_size=1")) as store:
        for _ in range(20):
            store.create(make_job())
        assert store._database.execute(_text("SELECT count(*) FROM pg_prepared_statements"))[0][0][0] > 0


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\0"])
def test_texts_that_cannot_be_stored(store: SqlJobStore, text: str) -> None:
    """A NUL, or half of a surrogate pair, is the caller's mistake, wherever it is given."""
    job = store.create(make_job())
    for call in (
        lambda: store.create(make_job(id=text)),
        lambda: store.create(make_job(tenant=text)),
        lambda: store.create_many([make_job(), make_job(batch=text)]),
        lambda: store.get(text),
        lambda: store.delete(text, expected_revision=1),
        lambda: store.query(JobQuery(tenant=text)),
        lambda: store.query(JobQuery(batch=text)),
        lambda: store.counts(tenant=text),
        lambda: store.claimable({text}, machine=None),
        lambda: store.claim(
            Claim(backend="inline", local=True, holder=text, lease=timedelta(1), machine=text), limit=1
        ),
    ):
        with pytest.raises(InvalidRequestError):
            call()
    assert store.query(JobQuery()).items == (job,)


# --- the network and the server -------------------------------------------------------------------


@pytest.fixture
def network(postgres: PostgresServer) -> Iterator[Network]:
    with Network(postgres.port) as network:
        yield network


def _by(network: Network, url: str, options: str = "") -> str:
    address = read_address(url).url.set(drivername="postgresql", port=network.port)
    return address.render_as_string(hide_password=False) + options


def test_a_connection_that_hangs(network: Network, url: str) -> None:
    """A server that no longer answers is `StoreUnavailableError` within the timeout; later calls connect anew."""
    with closing(SqlJobStore(_by(network, url, "?timeout=1"))) as store:
        job = store.create(make_job())
        network.stall()
        with pytest.raises(StoreUnavailableError):
            store.get(job.id)
        with pytest.raises(StoreUnavailableError), store._database.transaction() as transaction:
            transaction.step(_text("SELECT 1"), {})
        network.resume()
        assert eventually(lambda: _unless_away(lambda: store.get(job.id))) == job


def _unless_away(call: Any) -> Any:
    try:
        return call()
    except StoreUnavailableError:
        return None


def test_a_first_connection_that_hangs(network: Network, url: str) -> None:
    """So is one that accepts the connection and says nothing."""
    network.stall()
    with closing(SqlJobStore(_by(network, url, "?timeout=2"))) as store, pytest.raises(StoreUnavailableError):
        store.get("x")


def test_a_statement_that_waits_for_a_lock(url: str) -> None:
    """A row that another program keeps locked is `StoreUnavailableError`, by the server's own limit."""
    with closing(SqlJobStore(f"{url}?timeout=1&pool_size=1")) as store:
        job = store.create(make_job())
        with psycopg.connect(url) as other:
            other.execute("SELECT 1 FROM renderdispatch_jobs FOR UPDATE")
            with pytest.raises(StoreUnavailableError):
                store.replace(job, expected_revision=job.revision)
            other.rollback()
        assert store.replace(job, expected_revision=job.revision).revision == 2


def test_all_connections_are_busy(url: str) -> None:
    """A call that gets no connection in time is `StoreUnavailableError`, and says why."""
    with closing(SqlJobStore(f"{url}?timeout=1&pool_size=1")) as store:
        job = store.create(make_job())
        with store._database._borrowed(), pytest.raises(StoreUnavailableError, match="all connections are busy"):
            store.get(job.id)
        assert store.get(job.id) == job


def test_a_transaction_that_is_not_ended(url: str) -> None:
    """A process that stops within a transaction loses it, and with it every lock: the server ends the connection."""
    with closing(SqlJobStore(f"{url}?timeout=1")) as store:
        job = store.create(make_job())
        ended = threading.Event()
        with pytest.raises(StoreUnavailableError), store._database.transaction() as transaction:
            transaction.step(_text("SELECT 1 FROM renderdispatch_jobs FOR UPDATE"), {})
            pid = transaction.step(_text("SELECT pg_backend_pid()"), {})[0][0][0]
            alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            eventually(lambda: _run(url, alive, pid) == [(0,)])
            ended.set()
        assert ended.is_set()
        assert store.replace(job, expected_revision=job.revision).revision == 2


def test_the_server_has_no_connection_left(postgres: PostgresServer, url: str) -> None:
    """A server that takes no more connections is away; it is worth another try."""
    name = read_address(url).url.database
    postgres.execute(f"CREATE ROLE few LOGIN CONNECTION LIMIT 1; GRANT ALL ON DATABASE {name} TO few")
    few = url.replace("postgres@", "few@")
    try:
        with psycopg.connect(few), closing(SqlJobStore(few)) as store, pytest.raises(StoreUnavailableError):
            store.get("x")
    finally:
        postgres.execute(f"REVOKE ALL ON DATABASE {name} FROM few; DROP ROLE few")


def _idle(store: SqlJobStore, number: int) -> None:
    """Have so many connections of the store open, and none in use."""
    barrier = threading.Barrier(number)

    def use(_: int) -> None:
        with store._database.transaction() as transaction:
            transaction.step(_text("SELECT 1"), {})
            barrier.wait(30)

    in_threads(number, use)


def test_one_broken_connection_has_the_others_tested(network: Network, url: str) -> None:
    """After connections broke, one call fails; the next ones find the other broken connections and replace them."""
    with closing(SqlJobStore(_by(network, url))) as store:
        job = store.create(make_job())
        _idle(store, 5)
        network.cut()
        with pytest.raises(StoreUnavailableError):
            store.get(job.id)
        assert [store.get(job.id) for _ in range(10)] == [job] * 10
        _idle(store, 5)


def test_a_connection_that_was_idle_for_long_is_tested(
    network: Network, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that broke while it was idle for long is replaced before a call uses it."""
    with closing(SqlJobStore(_by(network, url))) as store:
        job = store.create(make_job())
        network.cut()
        monkeypatch.setattr("renderdispatch.stores.sql.connections._IDLE_S", 0.0)
        assert store.get(job.id) == job


def test_a_server_that_restarts() -> None:
    """While it is away calls say so. Once it is back, everything that was told to be stored is there."""
    with postgres_server() as server, server.database() as url, closing(SqlJobStore(url)) as store:
        created: list[Job] = [store.create(make_job()) for _ in range(3)]
        server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                store.create(make_job())
        server.start()
        created.append(eventually(lambda: _unless_away(lambda: store.create(make_job()))))
        assert {job.id for job in store.query(JobQuery()).items} == {job.id for job in created}


# --- the clock ------------------------------------------------------------------------------------


def test_the_time_is_the_servers(store: SqlJobStore, url: str) -> None:
    """`now` is the server's time, or behind it by a round trip, however often it is asked."""
    for _ in range(50):
        before = _run(url, "SELECT clock_timestamp()")[0][0]
        assert before - timedelta(seconds=1) <= store.now() <= _run(url, "SELECT clock_timestamp()")[0][0]
    assert store.now().tzinfo is UTC
    assert store.server_time


def _statements(store: SqlJobStore) -> list[str]:
    """Return a list to which each statement of the store is added."""
    seen: list[str] = []
    database = store._database
    original = database._run

    def run(connection: Any, statement: Any, values: Any) -> Any:
        seen.append(str(statement))
        return original(connection, statement, values)

    database._run = run  # type: ignore[method-assign]  # it only adds a note
    return seen


def test_now_asks_nothing_after_another_statement(store: SqlJobStore) -> None:
    """A create, a get and a replace bring the time along."""
    job = store.create(make_job())
    seen = _statements(store)
    for _ in range(100):
        store.now()
    store.get(job.id)
    store.now()
    store.replace(job, expected_revision=job.revision)
    store.now()
    assert len(seen) == 2


def test_an_old_time_is_asked_anew(store: SqlJobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds, those of a suspension included, the server is asked."""
    store.create(make_job())
    seen = _statements(store)
    monkeypatch.setattr("renderdispatch.stores.sql.server_clock._LONGEST_AGE_S", 0.0)
    assert abs(store.now() - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(seen) == 1


# --- notices --------------------------------------------------------------------------------------


def _listener(store: SqlJobStore) -> tuple[list[str], Any]:
    woken: list[str] = []
    end = store.listen(lambda: woken.append("woken"))
    eventually(lambda: store.notifies)
    return woken, end


def test_a_notice_wakes_other_processes(store: SqlJobStore, url: str) -> None:
    """What listens on one connection hears what is sent on another."""
    with closing(SqlJobStore(url)) as other:
        woken, _ = _listener(store)
        woken.clear()
        other.notify()
        eventually(lambda: woken)


def test_a_notice_is_sent_before_the_store_closes(url: str) -> None:
    """A program that submits a job and ends wakes a worker too."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        with closing(SqlJobStore(url)) as store:
            store.notify()
        assert len(list(connection.notifies(timeout=10, stop_after=1))) == 1


def test_many_notices_become_few(store: SqlJobStore) -> None:
    """A thousand notices at once are sent as a few."""
    woken, _ = _listener(store)
    woken.clear()
    for _ in range(1000):
        store.notify()
    eventually(lambda: woken)
    assert len(woken) < 100


def test_what_has_ended_is_not_woken(store: SqlJobStore) -> None:
    """After its end a listener is not called; others are. One that raises keeps none of the others from being called."""
    ended, end = _listener(store)

    def broken() -> None:
        raise ZeroDivisionError

    store.listen(broken)
    woken, _ = _listener(store)
    end()
    before = len(ended)
    woken.clear()
    store.notify()
    eventually(lambda: woken)
    assert len(ended) == before


def test_a_listener_comes_back(network: Network, url: str) -> None:
    """After its connection broke it connects again, and wakes once for what it may have missed."""
    with closing(SqlJobStore(_by(network, url))) as store:
        woken, _ = _listener(store)
        network.cut()
        woken.clear()
        eventually(lambda: woken and store.notifies)
        woken.clear()
        with closing(SqlJobStore(url)) as other:
            other.notify()
            eventually(lambda: woken)


def test_a_notice_while_the_server_is_away(network: Network, url: str) -> None:
    """To notify never raises, and never waits for the server."""
    with closing(SqlJobStore(_by(network, url, "?timeout=1"))) as store:
        store.create(make_job())
        network.close()
        for _ in range(100):
            store.notify()
        assert not store.notifies

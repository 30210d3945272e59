"""Does `SqlJobStore` keep the promises of a job store on a SQLite file, and between processes?"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from sqlalchemy.engine import make_url

from renderdispatch.errors import (
    ConfigurationError,
    JobExistsError,
    JobUnreadableError,
    MissingExtraError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL, RemoteAudio
from renderdispatch.plumbing.failures import translated
from renderdispatch.protocols import Claim, JobQuery
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.stores.sql.database_errors import translation
from renderdispatch.stores.sql.tables import JOBS, columns
from renderdispatch.testing import FakeClock, JobStoreContract, make_ended_job, make_job, make_request
from tests.support.command_line import as_an_ordinary_user

_HOUR = timedelta(hours=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"


@pytest.fixture
def store(url: str) -> Iterator[SqlJobStore]:
    store = SqlJobStore(url)
    yield store
    store.close()


def _claim(store: SqlJobStore, limit: int, *, backend: str = "inline", machine: str | None = None) -> list[Job]:
    return store.claim(Claim(backend=backend, local=True, holder="h", lease=_HOUR, machine=machine), limit=limit)


class TestSqlJobStoreOnSQLite(JobStoreContract):
    @pytest.fixture
    def store(self, url: str) -> Iterator[SqlJobStore]:
        store = SqlJobStore(url)
        yield store
        store.close()

    @pytest.fixture
    def second(self, url: str) -> Iterator[SqlJobStore]:
        second = SqlJobStore(url)
        yield second
        second.close()

    def raw_get(self, store: SqlJobStore, job_id: str) -> str | None:
        with closing(sqlite3.connect(str(store._address.url.database))) as connection:
            query = "SELECT document FROM renderdispatch_jobs WHERE id = ?"
            document: str | None = connection.execute(query, (job_id,)).fetchone()[0]
            return document

    def raw_set(self, store: SqlJobStore, job_id: str, document: str) -> None:
        statement = "UPDATE renderdispatch_jobs SET document = ?, protocol = ? WHERE id = ?"
        _write(Path(str(store._address.url.database)), statement, document, json.loads(document)["protocol"], job_id)


def test_tombstones_go_after_a_week(file: Path, url: str) -> None:
    """A deleted job's row is kept for a week, without a word of the record, and then goes."""
    clock = FakeClock()
    store = SqlJobStore(url, clock=clock)
    audio = RemoteAudio.model_validate({"url": "https://example.com/a.wav?s3cret"})
    old = store.create(make_job(id="old", tenant="acme", request=make_request(audio=audio)))
    store.delete("old", expected_revision=old.revision)
    assert b"s3cret" not in _row(file, "old").encode()
    clock.advance(timedelta(days=7))
    store.delete("new", expected_revision=store.create(make_job(id="new")).revision)
    assert _row(file, "old")
    clock.advance(timedelta(microseconds=1))
    store.delete("whatever", expected_revision=1)
    assert not _row(file, "old")
    assert _row(file, "new")
    store.close()


def _row(file: Path, job_id: str) -> str:
    connection = sqlite3.connect(file)
    found = connection.execute("SELECT * FROM renderdispatch_jobs WHERE id = ?", (job_id,)).fetchone()
    connection.close()
    return repr(found) if found else ""


# --- records of a newer version -------------------------------------------------------------------


def _make_newer(file: Path, *job_ids: str) -> None:
    """Give the records a stage that this version does not know."""
    statement = "UPDATE renderdispatch_jobs SET document = replace(document, ?, ?) WHERE id = ?"
    connection = sqlite3.connect(file)
    for job_id in job_ids:
        assert connection.execute(statement, ('"queued"', '"warming-up"', job_id)).rowcount == 1
    connection.commit()
    connection.close()


def _five(store: SqlJobStore) -> list[str]:
    """Create five jobs, which every order has in this order."""
    now = store.now()
    ids = ["a", "b", "c", "d", "e"]
    for job_id in ids:
        store.create(make_job(id=job_id, created_at=now))
    return ids


def test_a_claim_leaves_out_what_cannot_be_read(file: Path, store: SqlJobStore) -> None:
    """A record that this version cannot read is claimed by no one, and those beside it are claimed."""
    _five(store)
    _make_newer(file, "a", "c")
    claimed = _claim(store, 9)
    assert [job.id for job in claimed] == ["b", "d", "e"]


def test_one_that_is_asked_for_and_cannot_be_read(file: Path, store: SqlJobStore) -> None:
    """`get` says that a newer version wrote it, without its content."""
    _five(store)
    _make_newer(file, "a")
    with pytest.raises(JobUnreadableError, match="newer") as caught:
        store.get("a")
    assert "warming-up" not in str(caught.value)


def test_the_log_hears_of_each_once(file: Path, store: SqlJobStore, caplog: pytest.LogCaptureFixture) -> None:
    """However often a round meets a record that cannot be read, there is one error of it."""
    caplog.set_level(logging.INFO, logger="renderdispatch.stores.sql")
    _five(store)
    _make_newer(file, "a", "c")
    for _ in range(3):
        store.query(JobQuery(order="due"))
        store.query(JobQuery())
    _claim(store, 9)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("order", ["newest", "ready", "due"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_pages_go_on_past_what_cannot_be_read(file: Path, store: SqlJobStore, order: str, limit: int) -> None:
    """Pages leave such a record out, wherever in a page it stands, and go on to the end."""
    _five(store)
    _make_newer(file, "a", "b", "d")
    query = JobQuery(order=order, limit=limit)  # type: ignore[arg-type]
    found: list[str] = []
    for _ in range(5):
        page = store.query(query)
        found += [job.id for job in page.items]
        if page.cursor is None:
            break
        query = evolve(query, cursor=page.cursor)
    assert (found, page.cursor) == (["c", "e"], None)


# --- speed where it would be lost unseen ----------------------------------------------------------


def _steps(store: SqlJobStore, work: Callable[[], object]) -> int:
    """Return how many hundreds of instructions SQLite's machine takes for some work."""
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    with store._database._borrowed() as connection:  # the only thread always gets the same one
        connection.set_progress_handler(count, 100)
    work()
    with store._database._borrowed() as connection:
        connection.set_progress_handler(None, 0)
    return steps[0]


def _crowd(store: SqlJobStore, file: Path, number: int, **fields: Any) -> None:
    """Store many jobs at once."""
    jobs = [make_job(**fields) for _ in range(number)]
    rows = [{"id": job.id, "revision": 1, **columns(job)} for job in jobs]
    names = list(rows[0])
    marks = ", ".join(f":{name}" for name in names)
    with closing(sqlite3.connect(file)) as connection:
        connection.executemany(f"INSERT INTO renderdispatch_jobs ({', '.join(names)}) VALUES ({marks})", rows)
        connection.commit()


@pytest.mark.parametrize("what", ["another backend", "another machine", "a retry", "claimed ones"])
def test_a_claim_costs_the_same_beside_many(file: Path, store: SqlJobStore, what: str) -> None:
    """Jobs that others may claim, or that wait, cost a claim nothing: one that finds none, and one that finds some."""

    def claim() -> list[Job]:
        return _claim(store, 4, backend="modal", machine="here")

    def crowd(number: int) -> None:
        match what:
            case "another backend":
                _crowd(store, file, number, backend="inline")
            case "another machine":
                _crowd(store, file, number, backend="modal", machine="there")
            case "a retry":
                _crowd(store, file, number, backend="modal", created_at=now, ready_at=now + _HOUR)
            case _:
                _crowd(store, file, number, backend="modal")
                while _claim(store, 1000, backend="modal", machine="here"):
                    pass

    def costs() -> tuple[int, int]:
        idle = _steps(store, claim)
        mine = store.create(make_job(backend="modal")).id
        found: list[Job] = []
        busy = _steps(store, lambda: found.extend(claim()))
        assert [job.id for job in found] == [mine]
        return idle, busy

    now = store.now()
    claim()  # makes the table
    crowd(100)
    few = costs()
    crowd(3000)
    many = costs()
    assert many <= (few[0] + 3, few[1] + 10), (few, many)


def test_an_idle_worker_writes_nothing(file: Path, store: SqlJobStore) -> None:
    """To ask what can be claimed keeps no writer waiting: it works while another process holds the lock to write."""
    store.create(make_job(backend="inline"))
    hasty = SqlJobStore(f"sqlite:///{file}?timeout=0.05")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        hasty.counts()
        connection.execute("BEGIN IMMEDIATE")
        assert hasty.claimable(["modal"], machine="here") == frozenset()
        connection.execute("ROLLBACK")
    hasty.close()


# --- trouble --------------------------------------------------------------------------------------


def test_nothing_is_opened_before_the_first_call(file: Path, url: str) -> None:
    """The constructor touches no file; the first call makes the folder, the file and the table."""
    store = SqlJobStore(f"sqlite:///{file.parent}/a/b/jobs.db")
    assert not (file.parent / "a").exists()
    store.create(make_job())
    assert (file.parent / "a/b/jobs.db").exists()
    store.close()


def test_a_relative_path_stays_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative file is the one in the folder where the store was made, wherever the process goes."""
    monkeypatch.chdir(tmp_path)
    store = SqlJobStore("sqlite:///jobs.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.create(make_job())
    store.close()
    assert (tmp_path / "jobs.db").exists()


def test_a_store_goes_on_after_close(store: SqlJobStore) -> None:
    """A call after `close` connects again."""
    job = store.create(make_job())
    store.close()
    assert store.get(job.id) == job


def _assert_away(store: SqlJobStore, why: str) -> None:
    """Every call says that the store is away, and why."""
    job = make_job()
    for call in (
        lambda: store.create(job),
        lambda: store.replace(job, expected_revision=1),
        lambda: store.delete(job.id, expected_revision=1),
        lambda: _claim(store, 1),
    ):
        with pytest.raises(StoreUnavailableError, match=why):
            call()


def test_locked_for_too_long(file: Path, url: str, store: SqlJobStore) -> None:
    """A database that another process keeps locked is `StoreUnavailableError` after the timeout."""
    store.create(make_job())
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    hasty = SqlJobStore(f"{url}?timeout=0.05")
    _assert_away(hasty, "locked for too long")
    assert len(hasty.query(JobQuery()).items) == 1
    connection.execute("ROLLBACK")
    connection.close()
    hasty.create(make_job())
    hasty.close()


def test_locked_at_the_first_use(file: Path, url: str) -> None:
    """The same, where the table is not there yet."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    store = SqlJobStore(f"{url}?timeout=0.05")
    with pytest.raises(StoreUnavailableError, match="locked for too long"):
        store.get("x")
    connection.execute("ROLLBACK")
    connection.close()
    store.create(make_job())
    store.close()


def _refused(store: SqlJobStore) -> str:
    """Return what every call says of a store that nobody should wait for."""
    said = set()
    for call in (lambda: store.get("x"), lambda: store.create(make_job()), store.counts):
        with pytest.raises(ConfigurationError) as refusal:
            call()
        assert refusal.value.code == "store.unusable"
        said.add(str(refusal.value))
    store.close()
    (message,) = said
    return message


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    """A folder of the file's name stays until somebody acts: the error names it, and says what to do."""
    message = _refused(SqlJobStore(tmp_path))
    assert f"{tmp_path} cannot be used: it is a folder; " in message
    assert "RENDERDISPATCH_STORE" in message


def test_a_pipe_in_the_way(file: Path) -> None:
    """So does a pipe, which SQLite takes for a disk that fails."""
    os.mkfifo(file)
    assert "not a regular file" in _refused(SqlJobStore(file))


def test_a_file_in_the_way(file: Path) -> None:
    """So does a file where the folder should be."""
    file.write_text("")
    assert f"{file} is not a folder" in _refused(SqlJobStore(file / "jobs.db"))


@pytest.mark.parametrize("data", [b"I am a song. " * 1000, b"not long"])
def test_not_a_database(file: Path, data: bytes) -> None:
    """A file that is no SQLite database is refused, and stays as it is."""
    file.write_bytes(data)
    assert "not a SQLite database" in _refused(SqlJobStore(file))
    assert file.read_bytes() == data


def test_a_damaged_database(file: Path, store: SqlJobStore) -> None:
    """A database with holes is no reason to try again."""
    for _ in range(20):
        store.create(make_job())
    store.close()
    pages = file.read_bytes()
    file.write_bytes(pages[:4096] + b"\xff" * (len(pages) - 4096))
    assert "damaged" in _refused(SqlJobStore(file))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE renderdispatch_jobs (id text)",
        "CREATE VIEW renderdispatch_jobs AS SELECT 1 AS id",
        "DROP TABLE renderdispatch_jobs",
    ],
)
def test_a_table_of_another_program(file: Path, statement: str) -> None:
    """A table of our name that somebody else made, or that was dropped while the store is open, is refused."""
    store = SqlJobStore(file)
    if statement.startswith("DROP"):
        store.create(make_job())
    _write(file, statement)
    with pytest.raises(ConfigurationError, match="renderdispatch_"):
        store.create(make_job())
    store.close()


def test_a_table_that_asks_for_more(file: Path, store: SqlJobStore) -> None:
    """A column that must have a value, and that this version does not know, is refused too."""
    store.counts()
    _write(file, "DROP TABLE renderdispatch_jobs")
    names = ", ".join(column.name for column in JOBS.columns if column.name != "id")
    _write(file, f"CREATE TABLE renderdispatch_jobs (id text PRIMARY KEY, {names}, extra text NOT NULL)")
    with pytest.raises(ConfigurationError, match="another program or version"):
        store.create(make_job())


_LOCKED_OUT = """
    import sys
    from pathlib import Path
    from renderdispatch.errors import RenderDispatchError
    from renderdispatch.stores.sql import SqlJobStore
    for path in sys.argv[1:]:
        try:
            SqlJobStore(Path(path)).delete("x", expected_revision=1)
        except RenderDispatchError as error:
            print(error.code, error)
"""


def test_no_permission(tmp_path: Path) -> None:
    """A file, its log or its folder that this user may not write stays so: the error says which it is."""
    locked = {"file": "jobs.db", "log": "jobs.db-shm", "folder": "", "below a folder": ""}
    for name, what in locked.items():
        (tmp_path / name).mkdir()
        if what:
            with closing(SqlJobStore(tmp_path / "kept" / "jobs.db")) as keeper:
                keeper.create(make_job())
                shutil.copytree(
                    tmp_path / "kept", tmp_path / name, dirs_exist_ok=True
                )  # with the log, as a kill leaves it
        (tmp_path / name / what).chmod(0o400 if what else 0o500)
    files = [str(tmp_path / name / ("sub" if "below" in name else "") / "jobs.db") for name in locked]
    command = [sys.executable, "-c", textwrap.dedent(_LOCKED_OUT), *files]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=as_an_ordinary_user())
    said = dict(zip(locked, ran.stdout.splitlines(), strict=True))
    assert all(line.startswith("store.unusable ") for line in said.values()), said
    assert "this user may not read and write it (jobs.db)" in said["file"]
    assert "this user may not read and write it (jobs.db-shm)" in said["log"]
    assert f"this user may not write to {tmp_path / 'folder'}" in said["folder"]
    assert f"this user may not write to {tmp_path / 'below a folder'}" in said["below a folder"]


_SERVER_SAYS = {
    'FATAL:  password authentication failed for user "u"': "its password",
    "fe_sendauth: no password supplied": "its password",
    'FATAL:  role "u" does not exist': "refuses this user",
    'FATAL:  pg_hba.conf rejects connection for host "h", user "u", database "d", no encryption': "refuses this user",
    'FATAL:  database "d" does not exist': "no database of this name",
    "FATAL:  the database system is starting up": None,
    "FATAL:  sorry, too many clients already": None,
    "connection refused": None,
}


@pytest.mark.parametrize("said", _SERVER_SAYS)
def test_a_server_that_refuses_is_not_one_that_is_away(said: str) -> None:
    """PostgreSQL's refusals of a connection have no code, but a text; all others are worth another try."""
    table = translation(make_url("postgresql://u:s3cret@h/d"), sqlite3)
    with pytest.raises((ConfigurationError, StoreUnavailableError)) as refusal, translated(table):
        raise sqlite3.OperationalError(said)
    expected = _SERVER_SAYS[said]
    assert refusal.value.code == ("store.unavailable" if expected is None else "store.unusable")
    assert expected is None or expected in str(refusal.value)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    ["50%20off", "what?x=1", "a#b", "::", "file:x", "memory:", ":memory:", "new\nline", "~me", os.fsdecode(b"\xff")],
)
def test_a_path_is_not_a_url(tmp_path: Path, name: str) -> None:
    """Characters that mean something in a URL mean themselves in a path."""
    store = SqlJobStore(tmp_path / name / "jobs.db")
    job = store.create(make_job())
    store.close()
    assert (tmp_path / name / "jobs.db").is_file()
    with closing(SqlJobStore(tmp_path / name / "jobs.db")) as again:
        assert again.get(job.id) == job
    assert len(list(tmp_path.iterdir())) == 1


def test_where_processes_cannot_share_memory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without it gets a rollback journal, which later processes leave as it is."""

    class Unshared(sqlite3.Connection):
        """As SQLite is on many file systems in user space: the log can be chosen, and not used."""

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            alone = getattr(self, "alone", False)
            self.alone = alone or "EXCLUSIVE" in statement
            (journal,) = super().execute("PRAGMA journal_mode").fetchone()
            if journal == "wal" and not self.alone:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_IOERR_SHMOPEN"
                raise error
            return super().execute(statement, *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Unshared, **options))
    store = SqlJobStore(file)
    job = store.create(make_job())
    monkeypatch.undo()
    with closing(SqlJobStore(file)) as later, closing(connect(file)) as connection:
        assert later.get(job.id) == job
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    store.close()


def test_a_full_disk(small_disk: Path) -> None:
    """A full disk is `StoreUnavailableError` and says so; with room, the store goes on."""
    store = SqlJobStore(f"sqlite:///{small_disk}/jobs.db")
    job = store.create(make_job())
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
        while True:
            out.write(b"x" * 4096)
    created: list[Job] = []
    with pytest.raises(StoreUnavailableError, match=r"full|no space"):
        while True:
            created.append(store.create(make_ended_job()))
    assert store.get(job.id) == job
    filler.unlink()
    store.create(make_job())
    assert [store.get(stored.id) for stored in created] == created
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jobs.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///jobs.db?timeout=soon",
        "sqlite://s3cret@host/jobs.db",
        "sqlite://jobs.db",
        "mysql://user:s3cret@host/jobs",
        "nonsense://user:s3cret@host/jobs",
        "postgresql+nonsense://user:s3cret@host/jobs",
        "postgresql://user:s3cret@host:port/jobs",
    ],
)
def test_urls_that_cannot_be_used(url: str) -> None:
    """Such a URL is `ConfigurationError`, which does not quote it."""
    with pytest.raises(ConfigurationError) as refusal:
        SqlJobStore(url)
    assert "s3cret" not in str(refusal.value)


def test_a_missing_driver_names_the_extra() -> None:
    """A PostgreSQL URL without its driver says which extra brings it."""
    if importlib.util.find_spec("psycopg") is None:
        with pytest.raises(MissingExtraError, match=r"renderdispatch\[postgres\]"):
            SqlJobStore("postgresql+psycopg://user:s3cret@host/jobs")
    else:
        assert "s3cret" not in repr(SqlJobStore("postgresql+psycopg://user:s3cret@host/jobs?password=s3cret"))


def test_errors_hold_no_record(file: Path, url: str) -> None:
    """An error's text, and that of its causes, quotes no values of a statement, and so no URL of a record."""
    sqlite3.connect(file).close()
    store = SqlJobStore(f"{url}?timeout=0.01")
    store.create(make_job())
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    audio = RemoteAudio.model_validate({"url": "https://example.com/a.wav?s3cret"})
    with pytest.raises(StoreUnavailableError) as refusal:
        store.create(make_job(request=make_request(audio=audio)))
    error: BaseException | None = refusal.value
    while error is not None:
        assert "s3cret" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__
    connection.execute("ROLLBACK")
    connection.close()
    store.close()


def test_errors_quote_no_statement(file: Path, url: str) -> None:
    """The cause of an error is the driver's, also where SQLAlchemy raised: the text of its own quotes the statement."""
    store = SqlJobStore(f"{url}?timeout=0.01")
    job = store.create(make_job())
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError) as refusal:
        store.delete(job.id, expected_revision=job.revision)
    assert isinstance(refusal.value.__cause__, sqlite3.OperationalError)
    assert "UPDATE" not in f"{refusal.value.__cause__}"
    connection.execute("ROLLBACK")
    connection.close()
    store.close()


def test_create_after_a_duplicate_goes_on(store: SqlJobStore) -> None:
    """A refused create leaves the connection as usable as before."""
    job = store.create(make_job())
    for _ in range(20):
        with pytest.raises(JobExistsError):
            store.create(job)
    assert store.get(job.id) == job


# --- the protocol of records ----------------------------------------------------------------------


def _write(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement, values)


def test_a_row_says_its_protocol(file: Path, store: SqlJobStore) -> None:
    """Each write notes in a column which protocol the record has."""
    job = store.create(make_job(id="a"))
    protocol = "SELECT protocol FROM renderdispatch_jobs"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute(protocol).fetchall() == [(PROTOCOL,)]
        _write(file, "UPDATE renderdispatch_jobs SET protocol = 0")
        store.replace(job, expected_revision=job.revision)
        assert connection.execute(protocol).fetchall() == [(PROTOCOL,)]


def test_rows_of_a_newer_protocol_are_left_alone(file: Path, store: SqlJobStore) -> None:
    """Neither a claim nor a query of what is due or ready meets them: their rows stay as they are."""
    ids = _five(store)
    _write(file, "UPDATE renderdispatch_jobs SET protocol = ?, document = 'new' WHERE id IN ('a', 'd')", PROTOCOL + 1)
    before = [_row(file, job_id) for job_id in ("a", "d")]
    assert [job.id for job in store.query(JobQuery(order="ready", limit=1)).items] == ["b"]
    assert [job.id for job in store.query(JobQuery(order="due")).items] == ["b", "c", "e"]
    claimed = _claim(store, 2)
    assert [job.id for job in claimed] == ["b", "c"]
    assert [_row(file, job_id) for job_id in ("a", "d")] == before
    assert len(ids) == 5


def test_a_table_of_another_version(file: Path, url: str) -> None:
    """A table without all columns is `ConfigurationError`, which names what is missing and what to do."""
    store = SqlJobStore(url)
    store.create(make_job())
    store.close()
    _write(file, "ALTER TABLE renderdispatch_jobs DROP COLUMN protocol")
    with pytest.raises(
        ConfigurationError, match=r"renderdispatch_jobs: it has no column protocol\. Use another database"
    ):
        store.get("x")
    store.close()

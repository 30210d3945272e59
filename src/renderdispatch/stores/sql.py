"""How are jobs kept in a SQL database that several processes share?

In one table with one row a job. The columns are authoritative; the record is JSON text in one of them. Every step is
one statement in its own transaction, so a step holds nothing that others wait for. Times are integer microseconds.
``ready_at`` and ``due_at`` are NULL unless a dispatcher or a reconciler has to act on the job, and their indexes hold
only rows where they are set. These indexes stay small, however many finished jobs there are.

A claim costs the same beside ten jobs and beside a million. Jobs that have to wait (a retry, or a job that another
claim reserved) have ``waits_since``, and are in another index than those that can be claimed. A claim first moves the
waits that are over. While nothing can be claimed and no wait is over, a claim only reads and delays no writer.

A deleted job leaves a row without a record, so that a new job of the same id starts at a higher revision. After a week
no process can still hold a revision of the deleted job, and the row is removed.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from attrs import evolve
from pydantic import ValidationError
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.schema import CreateIndex, CreateTable

from renderdispatch import errors
from renderdispatch.engine.records import check_protocol, dump_job, load_job, unreadable
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL, JobStatus
from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.files import obstacle
from renderdispatch.plumbing.per_process import ForkGate, PerProcess
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.protocols import CLOCK_STEP, JobQuery, Page
from renderdispatch.stores.database_errors import cause, driver_code, place_of, translation, unusable
from renderdispatch.stores.pages import Place, check_limit, from_micros, micros, place, read_cursor, write_cursor

_log: Final = logging.getLogger("renderdispatch.stores.sql")

_BUSY_TIMEOUT_S: Final = 15.0
_TOMBSTONE_LIFE: Final = timedelta(days=7)

# --- the table ------------------------------------------------------------------------------------

_jobs: Final = sa.Table(
    "renderdispatch_jobs",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("protocol", sa.BigInteger),
    sa.Column("document", sa.Text),  # not a JSON type: those would encode the text a second time
    *(sa.Column(name, sa.Text) for name in ("tenant", "status", "backend", "machine")),
    *(sa.Column(name, sa.BigInteger) for name in ("priority", "created_at", "ready_at")),
    sa.Column("was_ready_at", sa.BigInteger),  # before the claim that moved ready_at
    sa.Column("due_at", sa.BigInteger),
    sa.Column("deleted_at", sa.BigInteger),
    sa.Column("waits_since", sa.BigInteger),  # while it waits until ready_at: the time of the write
)
_ADDED: Final = frozenset({"waits_since"})
"""Columns that tables of earlier versions lack; they are added, and hold NULL at first."""

_c: Final = _jobs.c
_LIVE: Final = _c.created_at.is_not(None)
_CLAIMABLE: Final = sa.and_(_c.ready_at.is_not(None), _c.waits_since.is_(None))
_WAITING: Final = sa.and_(_c.ready_at.is_not(None), _c.waits_since.is_not(None))
_OURS: Final = _c.protocol <= PROTOCOL
"""Rows that no newer version wrote; such rows are left to that version."""


_ANY_MACHINE: Final = sa.literal_column("''", sa.Text)
_MACHINE: Final = sa.func.coalesce(_c.machine, _ANY_MACHINE)
"""What a claim compares: PostgreSQL keeps the order of an index behind ``=``, but not behind ``IS NULL``."""

_INDEXES: Final[Mapping[str, tuple[Sequence[sa.ColumnElement[Any]], Any]]] = {
    "ready": ((_c.priority.desc(), _c.ready_at, _c.id), _c.ready_at.is_not(None)),
    "claimable": ((_c.backend, _MACHINE, _c.priority.desc(), _c.ready_at, _c.id), _CLAIMABLE),
    "waiting": ((_c.ready_at, _c.waits_since), _WAITING),
    "due": ((_c.due_at, _c.id), _c.due_at.is_not(None)),
    # counts by status read these two alone; an index that leads with the status would tempt SQLite away from them
    "newest": ((_c.created_at.desc(), _c.id, _c.status), _LIVE),
    "tenant": ((_c.tenant, _c.created_at.desc(), _c.id, _c.status), _LIVE),
    "deleted": ((_c.deleted_at,), _c.deleted_at.is_not(None)),
}
"""By name: the columns of each index, and the rows that it holds."""


@cache
def _indexes(dialect: str) -> list[sa.Index]:
    """Return the indexes; to name the other dialect here would import it."""
    return [
        sa.Index(f"renderdispatch_jobs_{name}", *columns, **{f"{dialect}_where": only})
        for name, (columns, only) in _INDEXES.items()
    ]


_VALUES: Final[Mapping[str, Callable[[Job], Any]]] = {
    "protocol": lambda job: job.protocol,
    "document": dump_job,
    "tenant": lambda job: job.tenant,
    "status": lambda job: job.status.value,
    "backend": lambda job: job.request.backend,
    "machine": lambda job: job.machine,
    "priority": lambda job: job.priority,
    "created_at": lambda job: micros(job.created_at),
    "ready_at": lambda job: None if job.ready_at is None else micros(job.ready_at),
    "due_at": lambda job: None if job.due_at is None else micros(job.due_at),
    "waits_since": lambda job: micros(job.updated_at) if job.ready_at and job.ready_at > job.updated_at else None,
}
"""What each write sets, beside the revision."""

_RECORD: Final = (_c.id, _c.revision, _c.document, _c.ready_at)
_ORDERS: Final = {
    "newest": (_c.created_at.desc(), _c.id.asc()),
    "ready": (_c.priority.desc(), _c.ready_at.asc(), _c.id.asc()),
    "due": (_c.due_at.asc(), _c.id.asc()),
}


def _columns(job: Job) -> dict[str, Any]:
    return {name: value(job) for name, value in _VALUES.items()}


def _job(row: Sequence[Any]) -> Job:
    """Read a row that begins with `_RECORD`."""
    job_id, revision, document, ready_at = row[: len(_RECORD)]
    try:
        job = check_protocol(load_job(document))
    except ValidationError as error:
        raise unreadable(job_id) from error
    return evolve(job, revision=revision, ready_at=None if ready_at is None else from_micros(ready_at))


# --- the statements -------------------------------------------------------------------------------

_DIALECTS: Final = frozenset({"sqlite", "postgresql"})


def _create_statement(dialect: str) -> Any:
    insert = import_module(f"sqlalchemy.dialects.{dialect}").insert
    new = insert(_jobs).values(revision=1, **{name: sa.bindparam(name) for name in ("id", *_VALUES)})
    return new.on_conflict_do_update(
        index_elements=[_c.id],
        set_={**{name: new.excluded[name] for name in _VALUES}, "revision": _c.revision + 1, "deleted_at": None},
        where=_c.created_at.is_(None),
    ).returning(_c.revision)


_GET: Final = sa.select(*_RECORD).where(_c.id == sa.bindparam("job_id"), _LIVE)
_REPLACE: Final = (
    sa.update(_jobs)
    .where(_c.id == sa.bindparam("job_id"), _c.revision == sa.bindparam("expected"), _LIVE, _OURS)
    .values(revision=_c.revision + 1, **{name: sa.bindparam(name) for name in _VALUES})
)
_DELETE: Final = (
    sa.update(_jobs)
    .where(_c.id == sa.bindparam("job_id"), _c.revision == sa.bindparam("expected"), _LIVE, _OURS)
    .values(revision=_c.revision + 1, deleted_at=sa.bindparam("now"), **dict.fromkeys(_VALUES))
)
_PURGE: Final = sa.delete(_jobs).where(_c.deleted_at.is_not(None), _c.deleted_at < sa.bindparam("before"))


def _for_machine(machine: Any) -> sa.ColumnElement[bool]:
    return sa.or_(_c.machine.is_(None), _c.machine == machine)


# --- claims: each statement is built once, because to build it costs five times as much as to run it

_NOW: Final[sa.BindParameter[int]] = sa.bindparam("now")
_LAST: Final = sa.select(_c.id, _c.waits_since).where(_WAITING).order_by(_c.ready_at.desc()).limit(20).subquery()
_STEP: Final = CLOCK_STEP // timedelta(microseconds=1)
_OVER: Final = (
    sa.select(_c.id).where(_WAITING, _c.ready_at <= _NOW).order_by(_c.ready_at),
    # written before the clock was set back (`SupportsClaim`): such a wait ends after all others
    sa.select(_LAST.c.id).where(_LAST.c.waits_since > _NOW + _STEP),
)
"""The waits that are over."""

_END_WAITS: Final = tuple(
    sa.update(_jobs)
    .where(_c.id.in_(sa.select(_c.id).where(_c.id.in_(over.limit(1000))).with_for_update(skip_locked=True)))
    .values(waits_since=None)
    for over in _OVER
)


@cache
def _claims(backends: int) -> tuple[Any, Any]:
    """Return what asks whether a claim for so many backends is worth a write, and the claim."""
    best: list[sa.Select[Any]] = []
    for number in range(backends):
        for machine in (_ANY_MACHINE, sa.bindparam("for_machine", type_=sa.Text)):
            here = sa.and_(_CLAIMABLE, _OURS, _c.backend == sa.bindparam(f"backend_{number}"), machine == _MACHINE)
            best.append(sa.select(_c.id, _c.priority, _c.ready_at).where(here).order_by(*_ORDERS["ready"]))
    limit: sa.BindParameter[int] = sa.bindparam("limit")
    # a lock is left out where the database has no such thing
    locked = [each.limit(limit).with_for_update(skip_locked=True).subquery() for each in best]
    found = sa.union_all(*(sa.select(each) for each in locked)).subquery()
    chosen = sa.select(found.c.id).order_by(found.c.priority.desc(), found.c.ready_at, found.c.id).limit(limit)
    claim = (
        sa.update(_jobs)
        .where(_c.id.in_(chosen))
        .values(ready_at=sa.bindparam("until"), was_ready_at=_c.ready_at, waits_since=_NOW, revision=_c.revision + 1)
        .returning(*_RECORD, _c.priority, _c.was_ready_at)
    )
    worth = sa.select(
        sa.or_(*map(_any, best)).label("ready"),
        sa.or_(*map(_any, _OVER)).label("over"),
    )
    return worth, claim


def _any(rows: sa.Select[Any]) -> sa.ColumnElement[bool]:
    """Return whether there are rows. For EXISTS, PostgreSQL ignores the order, and may read the whole table."""
    return rows.with_only_columns(rows.selected_columns.id).limit(1).scalar_subquery().is_not(None)


def _conditions(query: JobQuery) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if query.tenant is not None:
        found.append(_c.tenant == query.tenant)
    if query.statuses is not None:
        found.append(_c.status.in_([status.value for status in query.statuses]))
    if query.backends is not None:
        found.append(_c.backend.in_(list(query.backends)))
    match query.order:
        case "newest":
            found.append(_LIVE)
        case "ready":
            found += [_OURS, _c.ready_at.is_not(None), _for_machine(query.machine)]
            if query.ready_by is not None:
                found.append(_c.ready_at <= micros(query.ready_by))
        case "due":
            found += [_OURS, _c.due_at.is_not(None)]
            if query.due_by is not None:
                found.append(_c.due_at <= micros(query.due_by))
    return found


def _beyond(order: str, where: Place, *, before: bool = False) -> sa.ColumnElement[bool]:
    """Return the condition for rows after (or before) ``where``: the lexicographic order, column by column."""
    condition: sa.ColumnElement[bool] = sa.false()
    for term, value in reversed(list(zip(_ORDERS[order], where, strict=True))):
        column: Any = term.element
        descends = term.modifier is sa.sql.operators.desc_op
        further = column < value if descends is not before else column > value
        condition = sa.or_(further, sa.and_(column == value, condition))
    return condition


# --- the store ------------------------------------------------------------------------------------


class SqlJobStore:
    """Keeps jobs in a table of a SQL database.

    On SQLite the file may be shared by any number of threads and processes of one machine (not over a network file
    system). Commits survive a crash of every process; the last ones before a power cut may be lost (write-ahead log,
    ``synchronous=NORMAL``). The clock is this machine's, as the database is.

    Nothing is opened before the first call; the folder of a SQLite file and the table are made then.

    Args:
        url: A SQLite file's path, as a `Path`; or a URL, as SQLAlchemy takes it: ``sqlite:///jobs.db``,
            ``postgresql+psycopg://user:password@host/name``. In a URL of SQLite ``?timeout=5`` sets how many seconds a
            call waits for other writers (default 15).
        clock: Returns the time, aware and in UTC, in place of the database's.

    Raises:
        ConfigurationError: The URL is not one that this store can use.
        MissingExtraError: The database's driver is not installed.
    """

    def __init__(self, url: str | Path, *, clock: Callable[[], datetime] | None = None) -> None:
        self._url = _read_url(url)
        driver = self._url.get_dialect().import_dbapi()
        self._clock = clock
        self._create = _create_statement(self._url.get_backend_name())
        self._errors = translation(self._url, driver)
        self._compiled: dict[Any, Any] = {}
        self._left_alone: set[str] = set()
        # forked by something that is not Python, a child keeps its parent's engine: to close it would harm the parent
        self._engines = PerProcess(lambda: _new_engine(self._url))
        self._gate = ForkGate(self.close)

    def __repr__(self) -> str:
        return f"SqlJobStore({place_of(self._url)!r})"

    # --- writing

    def create(self, job: Job) -> Job:
        """Store a new job, as `JobStore.create` says."""
        rows, _ = self._step(self._create, {"id": job.id, **_columns(job)})
        if not rows:
            raise errors.JobExistsError(f"job {job.id} exists")
        return evolve(job, revision=rows[0][0])

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store a job over a revision, as `JobStore.replace` says."""
        stored = evolve(job, revision=expected_revision + 1, protocol=PROTOCOL)
        values = {"job_id": job.id, "expected": expected_revision, **_columns(stored)}
        if self._step(_REPLACE, values)[1] == 1:
            return stored
        raise self._conflict(job.id, expected_revision)

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget a job, as `JobStore.delete` says; the row stays for a week, without its record."""
        now = self.now()
        values = {"job_id": job_id, "expected": expected_revision, "now": micros(now)}
        _, deleted = self._execute(_DELETE, values)
        self._execute(_PURGE, {"before": micros(now - _TOMBSTONE_LIFE)})
        if deleted != 1:
            try:
                raise self._conflict(job_id, expected_revision)
            except errors.JobNotFoundError:
                return False
        return True

    def _conflict(self, job_id: str, expected: int) -> errors.RevisionConflictError:
        """Return the error for a write that the job's revision refused. Raises what `get` raises."""
        found = self.get(job_id).revision
        return errors.RevisionConflictError(f"job {job_id} is at revision {found}, not {expected}: read it again")

    def claim(self, *, limit: int, reserve_for: timedelta, backends: Collection[str], machine: str | None) -> list[Job]:
        """Hand out ready jobs, as `SupportsClaim.claim` says; while there are none, write nothing."""
        if limit < 1 or not backends:
            return []
        now = self.now()
        names = list(backends)
        moments = {"now": micros(now), "until": micros(now + reserve_for)}
        values = {f"backend_{number}": name for number, name in enumerate(names)} | {"for_machine": machine, **moments}
        worth, claim = _claims(len(names))
        ((ready, over),) = self._step(worth, values)[0]
        if over:
            for end_waits in _END_WAITS:
                self._step(end_waits, values)
        rows = self._step(claim, {**values, "limit": limit})[0] if ready or over else []  # RETURNING has no order
        return list(self._readable(sorted(rows, key=lambda row: (-row[4], row[5], row[0]))))

    # --- reading

    def get(self, job_id: str) -> Job:
        """Return a job, as `JobStore.get` says."""
        rows, _ = self._step(_GET, {"job_id": job_id})
        if not rows:
            raise errors.JobNotFoundError(f"there is no job {job_id}")
        return _job(rows[0])

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of jobs, as `JobStore.query` says."""
        check_limit(query)
        conditions = _conditions(query)
        if (after := read_cursor(query)) is not None:
            conditions.append(_beyond(query.order, after))
        order = _ORDERS[query.order]
        where = [term.element.label(f"place_{number}") for number, term in enumerate(order)]
        statement = sa.select(*_RECORD, *where).where(*conditions).order_by(*order).limit(query.limit + 1)
        rows, _ = self._execute(statement)
        items = tuple(self._readable(rows[: query.limit]))
        last = tuple(rows[query.limit - 1][-len(order) :]) if len(rows) > query.limit else None
        return Page(items, None if last is None else write_cursor(query, last))

    def counts(self, *, tenant: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        statement = sa.select(_c.status, sa.func.count()).where(_LIVE).group_by(_c.status)
        if tenant is not None:
            statement = statement.where(_c.tenant == tenant)
        found = {status: int(count) for status, count in self._execute(statement)[0]}
        return {status: found.get(status.value, 0) for status in JobStatus}

    def ahead_of(self, job: Job) -> int:
        """Count the jobs that are claimed earlier, as `SupportsCounts.ahead_of` says."""
        if job.ready_at is None:
            return 0
        before = _beyond("ready", place(JobQuery(order="ready"), job), before=True)
        statement = sa.select(sa.func.count()).where(_c.ready_at.is_not(None), before)
        return int(self._execute(statement)[0][0][0])

    @property
    def server_time(self) -> bool:
        """Whether the time is the database's, which all processes share."""
        return self._clock is None and self._url.get_backend_name() != "sqlite"

    def now(self) -> datetime:
        """Return the database's time on PostgreSQL, and this machine's on SQLite, where the two are the same."""
        if self._clock is not None:
            return self._clock()
        if self._url.get_backend_name() == "sqlite":
            return datetime.now(UTC)
        now: datetime = self._execute(sa.select(sa.func.clock_timestamp()))[0][0][0]
        return now.astimezone(UTC)

    def _readable(self, rows: Iterable[Any]) -> Iterator[Job]:
        """Yield the jobs, without records that cannot be read: other jobs do not wait for them. Each is logged once."""
        for row in rows:
            try:
                yield _job(row)
            except errors.JobUnreadableError as error:
                _log.log(logging.DEBUG if row[0] in self._left_alone else logging.ERROR, "left alone: %s", error)
                self._left_alone.add(row[0])

    # --- connections

    def close(self) -> None:
        """Close every connection. A later call connects again."""
        if (engine := self._engines.take()) is not None:
            engine.dispose()

    def _step(self, statement: Any, values: Mapping[str, Any]) -> tuple[list[Any], int]:
        """Execute a statement that every job needs many times; return the rows, and how many were written.

        It is compiled once and runs on the driver's own connection, which takes half the time of an execution through
        Core. All values are integers and texts, which need no conversion.
        """
        with self._gate.operation(), translated(self._errors, chain=cause):
            engine = self._engines.get()
            sql = self._compiled.get(statement)
            if sql is None:
                sql = self._compiled[statement] = statement.compile(dialect=engine.dialect)
            bound = sql.construct_params(dict(values))
            with closing(engine.raw_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute(sql.string, [bound[name] for name in sql.positiontup] if sql.positional else bound)
                return list(cursor.fetchall()) if cursor.description else [], cursor.rowcount

    def _execute(self, statement: Any, values: Mapping[str, Any] | None = None) -> tuple[Sequence[Any], int]:
        """Execute any other statement; return as `_step` does."""
        with (
            self._gate.operation(),
            translated(self._errors, chain=cause),
            self._engines.get().connect() as connection,
        ):
            result = connection.execute(statement, values)
            return result.all() if result.returns_rows else [], result.rowcount


def _read_url(text: str | Path) -> URL:
    try:
        # in a path, '?', '%' and '#' mean themselves
        url = URL.create("sqlite", database=str(text)) if isinstance(text, Path) else make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        hint = "sqlite:///relative/path.db, sqlite:////absolute/path.db or postgresql+psycopg://user:password@host/name"
        raise errors.ConfigurationError(f"cannot read the database URL of the job store; write {hint}") from None
    message = f"unsupported database URL '{url.drivername}://...'; use sqlite:///path.db or postgresql+psycopg://..."
    unsupported = errors.ConfigurationError(message)
    if url.get_backend_name() not in _DIALECTS:
        raise unsupported
    try:
        url.get_dialect().import_dbapi()
    except sa.exc.NoSuchModuleError:
        raise unsupported from None
    except ImportError:
        raise errors.MissingExtraError.of("a job store on PostgreSQL", "postgres") from None
    return _read_sqlite_url(url) if url.get_backend_name() == "sqlite" else url


def _read_sqlite_url(url: URL) -> URL:
    if sqlite3.sqlite_version_info < (3, 35):
        message = f"SQLite {sqlite3.sqlite_version} is too old; the job store needs 3.35 or later"
        raise errors.ConfigurationError(message)
    if url.host or url.username or url.password or url.port:
        message = "a SQLite URL has three slashes before a relative path, four before an absolute one"
        raise errors.ConfigurationError(message)
    if not url.database or url.database == ":memory:":
        raise errors.ConfigurationError("threads cannot share a SQLite database in memory; use MemoryJobStore")
    try:
        timeout = float(str(url.query.get("timeout", _BUSY_TIMEOUT_S)))
    except ValueError:
        timeout = -1.0
    if timeout < 0 or url.query.keys() - {"timeout"}:
        raise errors.ConfigurationError("the only option of a SQLite URL is a number of seconds, such as ?timeout=5")
    try:
        path = Path(url.database).absolute()
    except FileNotFoundError:
        message = "the path of the job store is relative, and the working directory is gone; write an absolute path"
        raise errors.ConfigurationError(message) from None
    return url.set(database=str(path), query={"timeout": str(timeout)})


def _new_engine(url: URL) -> Engine:
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "hide_parameters": True}
    if url.get_backend_name() == "sqlite":
        file = Path(str(url.database))
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # SQLite would take a pipe for a disk that fails
            raise unusable(str(file), str(obstacle(file)))
        engine = sa.create_engine(url, **options)
        sa.event.listen(engine, "connect", _set_up_sqlite)
    else:
        engine = sa.create_engine(url, pool_pre_ping=True, **options)
    try:
        _prepare(engine, patience_s=float(str(url.query.get("timeout", _BUSY_TIMEOUT_S))))
    except BaseException:
        engine.dispose()
        raise
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")


def _choose_journal(file: str, patience_s: float) -> None:
    """Turn on the write-ahead log of a new database. Where that cannot be, a rollback journal serves.

    The log needs memory that processes share by way of a file, which many file systems in user space do not have.
    """
    ours = "SELECT 1 FROM sqlite_schema WHERE name = ?"
    try:
        with closing(sqlite3.connect(file, timeout=patience_s)) as connection:
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
            if journal == "delete" and connection.execute(ours, (_jobs.name,)).fetchone():
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(ours, (_jobs.name,))
    except sqlite3.OperationalError as error:
        if not driver_code(error).startswith("SQLITE_IOERR_SHM"):
            raise
        with closing(sqlite3.connect(file, timeout=patience_s)) as alone:
            alone.execute("PRAGMA locking_mode = EXCLUSIVE")  # needs no shared memory
            alone.execute("PRAGMA journal_mode = DELETE")


_MET_ANOTHER: Final = frozenset({"SQLITE_BUSY", "23505", "42P07", "42710"})
"""SQLite does not wait for the lock that begins a write-ahead log; PostgreSQL's IF NOT EXISTS is not atomic."""


def _prepare(engine: Engine, *, patience_s: float) -> None:
    """Create the table unless it exists. Other processes may be doing the same."""

    def create() -> None:
        if engine.dialect.name == "sqlite":
            _choose_journal(str(engine.url.database), patience_s)
        with engine.connect() as connection:
            connection.execute(CreateTable(_jobs, if_not_exists=True))
            _check_columns(connection)
            for index in _indexes(engine.dialect.name):
                connection.execute(CreateIndex(index, if_not_exists=True))

    def trouble(error: Exception) -> Trouble:
        return Trouble.FAILED if driver_code(error) in _MET_ANOTHER else Trouble.FATAL

    retry(create, Backoff(patience_s=patience_s, pause_s=0.02, longest_pause_s=0.02), trouble=trouble)


def _check_columns(connection: Connection) -> None:
    """Add the columns that tables of earlier versions lack.

    Raises:
        ConfigurationError: Another version made the table, with other columns.
    """
    missing = _missing_columns(connection)
    if foreign := missing - _ADDED:
        message = (
            f"another version made the table {_jobs.name}: it has no column {', '.join(sorted(foreign))}. "
            "Use another database, or drop the table if you no longer need its jobs"
        )
        raise errors.ConfigurationError(message, code="store.unusable")
    for name in missing:
        try:
            connection.exec_driver_sql(f"ALTER TABLE {_jobs.name} ADD COLUMN {name} BIGINT")
        except sa.exc.DBAPIError:
            if name in _missing_columns(connection):  # else another process was faster
                raise


def _missing_columns(connection: Connection) -> set[str]:
    found = connection.execute(sa.select(sa.text("*")).select_from(_jobs).where(sa.false())).keys()
    return {column.name for column in _c} - set(found)

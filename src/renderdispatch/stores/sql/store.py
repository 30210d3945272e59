"""How does a job store talk to its database?

Every step is one statement in its own transaction, so a step holds nothing that others wait for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from attrs import asdict
from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine.claims import Begun, begin
from renderdispatch.engine.records import check_protocol, load_job, unreadable
from renderdispatch.jobs import Job, evolve
from renderdispatch.messages import PROTOCOL, JobStatus
from renderdispatch.protocols import CLOCK_STEP, LOOK_PAUSES, MAX_POSITION, Claim, JobQuery, Page, Quota
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import check_limit, from_micros, micros, read_cursor, write_cursor
from renderdispatch.stores.sql.connections import read_url
from renderdispatch.stores.sql.database import Database
from renderdispatch.stores.sql.database_errors import place_of
from renderdispatch.stores.sql.statements import (
    DELETE,
    GET,
    ORDERS,
    PURGE,
    RECORD,
    REPLACE,
    beyond,
    conditions,
    create_statement,
)
from renderdispatch.stores.sql.tables import CLAIMABLE, JOBS, LIVE, OURS, WAITING, columns

_log: Final = logging.getLogger("renderdispatch.stores.sql")

_TOMBSTONE_LIFE: Final = timedelta(days=7)
_c: Final = JOBS.c


def _job(row: Sequence[Any]) -> Job:
    """Read a row that begins with `RECORD`."""
    job_id, revision, document, claim = row[: len(RECORD)]
    try:
        job = check_protocol(load_job(document))
    except ValidationError as error:
        raise unreadable(job_id) from error
    if claim is not None:
        fields = json.loads(claim)
        times = {name: from_micros(fields[name]) for name in ("at", "lease_until")}
        job = begin(job, Begun(**{**fields, **times}))
    return evolve(job, revision=revision)


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
        self._url = read_url(url)
        self._database = Database(self._url)
        self._clock = clock
        self._create = create_statement(self._database.dialect)
        self._left_alone: set[str] = set()

    def __repr__(self) -> str:
        return f"SqlJobStore({place_of(self._url)!r})"

    # --- writing

    def create(self, job: Job) -> Job:
        """Store a new job, as `JobStore.create` says."""
        rows, _ = self._database.step(self._create, {"id": job.id, **columns(job)})
        if not rows:
            raise errors.JobExistsError(f"job {job.id} exists")
        return evolve(job, revision=rows[0][0])

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store a job over a revision, as `JobStore.replace` says."""
        stored = evolve(job, revision=expected_revision + 1, protocol=PROTOCOL)
        values = {"job_id": job.id, "expected": expected_revision, **columns(stored)}
        if self._database.step(REPLACE, values)[1] == 1:
            return stored
        raise self._conflict(job.id, expected_revision)

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget a job, as `JobStore.delete` says; the row stays for a week, without its record."""
        now = self.now()
        values = {"job_id": job_id, "expected": expected_revision, "now": micros(now)}
        _, deleted = self._database.execute(DELETE, values)
        self._database.execute(PURGE, {"before": micros(now - _TOMBSTONE_LIFE)})
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

    def claimable(self, backends: Collection[str], *, machine: str | None) -> frozenset[str]:
        """Return which backends may have ready jobs, as `SupportsClaim.claimable` says."""
        now = micros(self.now())
        over = sa.or_(_c.ready_at <= now, _c.waits_since > now + CLOCK_STEP // timedelta(microseconds=1))
        self._database.execute(sa.update(JOBS).where(WAITING, over).values(waits_since=None))
        ready = (
            sa.select(_c.backend)
            .distinct()
            .where(CLAIMABLE, OURS, _c.deadline_at >= now, _c.backend.in_(list(backends)))
        )
        rows, _ = self._database.execute(ready.where(sa.or_(_c.machine.is_(None), _c.machine == machine)))
        return frozenset(row[0] for row in rows)

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin attempts of ready jobs, as `SupportsClaim.claim` says."""
        self.claimable([claim.backend], machine=claim.machine)
        begun = Begun.of(claim, self.now())
        fields = asdict(begun) | {"at": micros(begun.at), "lease_until": micros(begun.lease_until)}
        here = sa.and_(CLAIMABLE, OURS, _c.deadline_at >= fields["at"], _c.backend == claim.backend)
        mine = sa.or_(_c.machine.is_(None), _c.machine == claim.machine)
        chosen = sa.select(_c.id).where(here, mine).order_by(*ORDERS["ready"]).limit(limit)
        statement = (
            sa.update(JOBS)
            .where(_c.id.in_(chosen.with_for_update(skip_locked=True)))
            .values(
                claim=json.dumps(fields),
                revision=_c.revision + 1,
                status=JobStatus.PROCESSING.value,
                ready_at=None,
                attempted=1,
                look_at=fields["lease_until"],
                looks=0,
                lease_until=fields["lease_until"],
            )
            .returning(*RECORD, _c.priority, _c.created_at)
        )
        rows = self._database.execute(statement)[0]
        return list(self._readable(sorted(rows, key=lambda row: (-row[-2], row[-1], row[0]))))

    def claim_looks(self, *, limit: int, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        now = micros(self.now())
        pauses = [micros_of // timedelta(microseconds=1) for micros_of in LOOK_PAUSES]
        pause = sa.case(*((_c.looks == number, value) for number, value in enumerate(pauses[:-1])), else_=pauses[-1])
        after = now + pause
        due = sa.select(_c.id).where(OURS, _c.look_at.is_not(None), _c.look_at <= now)
        if job_id is not None:
            due = due.where(_c.id == job_id)
        chosen = due.order_by(_c.look_at, _c.id).limit(limit).with_for_update(skip_locked=True)
        soon = sa.and_(_c.deadline_at > now, _c.deadline_at < after)
        statement = (
            sa.update(JOBS)
            .where(_c.id.in_(chosen))
            .values(looks=_c.looks + 1, look_at=sa.case((soon, _c.deadline_at), else_=after))
            .returning(*RECORD)
        )
        return list(self._readable(self._database.execute(statement)[0]))

    def create_many(
        self, jobs: Sequence[Job], *, quota: Quota | None = None, connection: object = None
    ) -> list[Job | errors.RenderDispatchError]:
        """Create jobs, as `SupportsCreateMany.create_many` says."""
        results: list[Job | errors.RenderDispatchError] = []
        for job in jobs:
            try:
                results.append(self.create(job))
            except errors.JobExistsError as error:
                results.append(error)
        return results

    # --- reading

    def get(self, job_id: str) -> Job:
        """Return a job, as `JobStore.get` says."""
        rows, _ = self._database.step(GET, {"job_id": job_id})
        if not rows:
            raise errors.JobNotFoundError(f"there is no job {job_id}")
        return _job(rows[0])

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of jobs, as `JobStore.query` says."""
        check_limit(query)
        where = conditions(query)
        if (after := read_cursor(query)) is not None:
            where.append(beyond(query.order, after))
        order = ORDERS[query.order]
        places = [term.element.label(f"place_{number}") for number, term in enumerate(order)]
        statement = sa.select(*RECORD, *places).where(*where).order_by(*order).limit(query.limit + 1)
        rows, _ = self._database.execute(statement)
        items = tuple(self._readable(rows[: query.limit]))
        last = tuple(rows[query.limit - 1][-len(order) :]) if len(rows) > query.limit else None
        return Page(items, None if last is None else write_cursor(query, last))

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        statement = sa.select(_c.status, sa.func.count()).where(LIVE).group_by(_c.status)
        if tenant is not None:
            statement = statement.where(_c.tenant == tenant)
        if batch is not None:
            statement = statement.where(_c.batch == batch)
        found = {status: int(count) for status, count in self._database.execute(statement)[0]}
        return {status: found.get(status.value, 0) for status in JobStatus}

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return the job's place in the queue, as `SupportsCounts.position` says."""
        if job.ready_at is None:
            return None
        ready, priority = micros(job.ready_at), _c.priority
        before = sa.or_(
            priority > job.priority,
            sa.and_(priority == job.priority, _c.ready_at < ready),
            sa.and_(priority == job.priority, _c.ready_at == ready, _c.id < job.id),
        )
        first = sa.select(_c.id).where(CLAIMABLE, _c.backend == job.backend, before).limit(MAX_POSITION).subquery()
        return int(self._database.execute(sa.select(sa.func.count()).select_from(first))[0][0][0]) + 1

    @property
    def server_time(self) -> bool:
        """Whether the time is the database's, which all processes share."""
        return self._clock is None and self._database.dialect != "sqlite"

    def now(self) -> datetime:
        """Return the database's time on PostgreSQL, and this machine's on SQLite, where the two are the same."""
        if self._clock is not None:
            return self._clock()
        if self._database.dialect == "sqlite":
            return datetime.now(UTC)
        now: datetime = self._database.execute(sa.select(sa.func.clock_timestamp()))[0][0][0]
        return now.astimezone(UTC)

    def _readable(self, rows: Iterable[Any]) -> Iterator[Job]:
        """Yield the jobs, without records that cannot be read: other jobs do not wait for them. Each is logged once."""
        for row in rows:
            try:
                yield _job(row)
            except errors.JobUnreadableError as error:
                _log.log(logging.DEBUG if row[0] in self._left_alone else logging.ERROR, "left alone: %s", error)
                self._left_alone.add(row[0])

    def close(self) -> None:
        """Close every connection. A later call connects again."""
        self._database.close()

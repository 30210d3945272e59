"""How does a job store talk to its database?

Every step is one statement in its own transaction, so a step holds nothing that others wait for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine.claims import Begun, begin
from renderdispatch.engine.records import check_protocol, load_job, unreadable
from renderdispatch.jobs import Job, evolve
from renderdispatch.messages import PROTOCOL, JobStatus
from renderdispatch.protocols import Claim, JobQuery, Page, Quota
from renderdispatch.queueing import QueuePolicy
from renderdispatch.stores.pages import from_micros, micros
from renderdispatch.stores.sql.addresses import read_address
from renderdispatch.stores.sql.claims import Claims
from renderdispatch.stores.sql.counting import Counting
from renderdispatch.stores.sql.creation import (
    Runner,
    create_statement,
    create_within,
    job_exists,
    joined,
    row_of,
)
from renderdispatch.stores.sql.database import ASK_TIME, Database, Transaction
from renderdispatch.stores.sql.database_errors import place_of
from renderdispatch.stores.sql.listing import Listing
from renderdispatch.stores.sql.looks import Looks
from renderdispatch.stores.sql.notices import SEND, Notices
from renderdispatch.stores.sql.statements import (
    DELETE,
    GET,
    PURGE,
    RECORD,
    REPLACE,
)
from renderdispatch.stores.sql.tables import JOBS, columns

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
        job = begin(job, _begun(claim))
    return evolve(job, revision=revision)


@lru_cache(64)
def _begun(claim: str) -> Begun:
    """Return what a claim says; all jobs of a claim have the same."""
    fields = json.loads(claim)
    return Begun(**{**fields, **{name: from_micros(fields[name]) for name in ("at", "lease_until")}})


# --- the store ------------------------------------------------------------------------------------


class SqlJobStore:
    """Keeps jobs in a table of a SQL database.

    On SQLite the file may be shared by any number of threads and processes of one machine (not over a network file
    system). Commits survive a crash of every process; the last ones before a power cut may be lost (write-ahead log,
    ``synchronous=NORMAL``). The clock is this machine's, as the database is.

    Nothing is opened before the first call; the folder of a SQLite file and the table are made then.

    Args:
        url: A SQLite file's path, as a `Path`; or a URL, as SQLAlchemy takes it: ``sqlite:///jobs.db``,
            ``postgresql://user:password@host/name`` (``postgres://`` is the same). ``?timeout=5`` sets how many seconds
            a call waits: on SQLite for other writers (default 15), on PostgreSQL for an answer (default 30). On
            PostgreSQL ``?pool_size=`` limits the connections of a process (default 10), and ``?pooler=transaction``
            says that a pooler such as PgBouncer is between.
        clock: Returns the time, aware and in UTC, in place of the database's.

    Raises:
        ConfigurationError: The URL is not one that this store can use.
        MissingExtraError: The database's driver is not installed.
    """

    def __init__(self, url: str | Path, *, clock: Callable[[], datetime] | None = None) -> None:
        self._address = read_address(url)
        self._database = Database(self._address)
        self._clock = clock
        self._listing = Listing(self._database, self._readable)
        self._counting = Counting(self._database)
        self._claims = Claims(self._database, self._time, self._readable)
        self._looks = Looks(self._database, self.now, self._readable)
        self._create = create_statement(self._database.dialect)
        self._notices = Notices(self._database)
        self._left_alone: set[str] = set()

    def __repr__(self) -> str:
        return f"SqlJobStore({place_of(self._address.url)!r})"

    # --- writing

    def create(self, job: Job) -> Job:
        """Store a new job, as `JobStore.create` says."""
        rows, _ = self._database.step(self._create, row_of(job))
        if not rows:
            raise job_exists(job.id)
        self._claims.changed()
        return evolve(job, revision=rows[0][0])

    def replace(self, job: Job, *, expected_revision: int) -> Job:
        """Store a job over a revision, as `JobStore.replace` says."""
        stored = evolve(job, revision=expected_revision + 1, protocol=PROTOCOL)
        values = {"job_id": job.id, "expected": expected_revision, **columns(stored)}
        if self._database.step(REPLACE, values)[1] == 1:
            self._claims.changed()
            return stored
        raise self._conflict(job.id, expected_revision)

    def delete(self, job_id: str, *, expected_revision: int) -> bool:
        """Forget a job, as `JobStore.delete` says; the row stays for a week, without its record."""
        now = self.now()
        values = {"job_id": job_id, "expected": expected_revision, "now": micros(now)}
        _, deleted = self._database.execute(DELETE, values)
        self._database.execute(PURGE, {"before": micros(now - _TOMBSTONE_LIFE)})
        self._claims.changed()
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
        return self._claims.claimable(backends, machine=machine)

    def claim(self, claim: Claim, *, limit: int) -> list[Job]:
        """Begin attempts of ready jobs, as `SupportsClaim.claim` says."""
        return self._claims.claim(claim, limit=limit)

    def claim_looks(self, *, limit: int, able: Collection[str] | None = None, job_id: str | None = None) -> list[Job]:
        """Return jobs that are due for a look, as `SupportsLooks.claim_looks` says."""
        return self._looks.claim(limit=limit, able=able, job_id=job_id)

    def create_many(
        self, jobs: Sequence[Job], *, quota: Quota | None = None, connection: object = None
    ) -> list[Job | errors.RenderDispatchError]:
        """Create jobs, as `SupportsCreateMany.create_many` says.

        Args:
            jobs: All of the same tenant.
            quota: What the tenant may submit.
            connection: An SQLAlchemy `Connection` or `Session` to the database of this store. If there is a quota,
                other submits of the tenant wait until its transaction ends.
        """
        if connection is None:
            with self._database.transaction() as transaction:
                created = self._create_within(transaction, jobs, quota)
            self._claims.changed()
            return created
        with joined(self._database, connection) as theirs:
            created = self._create_within(theirs, jobs, quota)
            if self._database.dialect != "sqlite" and any(isinstance(found, Job) for found in created):
                theirs.step(SEND, {})  # delivered at the application's commit
            return created

    def _create_within(
        self, run: Runner, jobs: Sequence[Job], quota: Quota | None
    ) -> list[Job | errors.RenderDispatchError]:
        return create_within(run, self._database.dialect, jobs, quota, self._now_within)

    def _now_within(self, run: Runner) -> int:
        """Return the time within a transaction, without a second connection: there may be no other."""
        return int(run.step(ASK_TIME, {})[0][0][0]) if self.server_time else micros(self.now())

    # --- reading

    def get(self, job_id: str) -> Job:
        """Return a job, as `JobStore.get` says."""
        rows, _ = self._database.step(GET, {"job_id": job_id})
        if not rows:
            raise errors.JobNotFoundError(f"there is no job {job_id}")
        return _job(rows[0])

    def query(self, query: JobQuery) -> Page[Job]:
        """Return a page of jobs, as `JobStore.query` says."""
        return self._listing.query(query)

    def counts(self, *, tenant: str | None = None, batch: str | None = None) -> dict[JobStatus, int]:
        """Count the jobs by status, as `SupportsCounts.counts` says."""
        return self._counting.counts(tenant=tenant, batch=batch)

    def position(self, job: Job, policy: QueuePolicy) -> int | None:
        """Return the job's place in the queue, as `SupportsCounts.position` says."""
        return self._counting.position(job, policy)

    @property
    def server_time(self) -> bool:
        """Whether the time is the database's, which all processes share."""
        return self._clock is None and self._database.dialect != "sqlite"

    def now(self) -> datetime:
        """Return the database's time on PostgreSQL, and this machine's on SQLite, where the two are the same."""
        return self._time()

    def _time(self, transaction: Transaction | None = None) -> datetime:
        """Return the time, if need be by a question within a transaction."""
        if self._clock is not None:
            return self._clock()
        if self._database.dialect == "sqlite":
            return datetime.now(UTC)
        return from_micros(self._database.server_time_us(transaction))

    def _readable(self, rows: Iterable[Any]) -> Iterator[Job]:
        """Yield the jobs, without records that cannot be read: other jobs do not wait for them. Each is logged once."""
        for row in rows:
            try:
                yield _job(row)
            except errors.JobUnreadableError as error:
                _log.log(logging.DEBUG if row[0] in self._left_alone else logging.ERROR, "left alone: %s", error)
                self._left_alone.add(row[0])

    # --- notices

    @property
    def notifies(self) -> bool:
        """Whether the database wakes this process at present; never on SQLite, and never through a pooler."""
        return self._notices.heard

    def notify(self) -> None:
        """Wake the workers of other processes, as `SupportsNotify.notify` says. On SQLite it does nothing."""
        self._notices.send()

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called at each notice, as `SupportsNotify.listen` says. On SQLite it never is."""

        def noticed() -> None:
            self._claims.changed()
            wake()

        return self._notices.listen(noticed)

    # ---

    def set_up(self) -> None:
        """Make the tables, or bring those of an earlier version up to date, unless they are.

        Every other call does so as well. This is for a database in which the processes' own user may not create tables:
        the owner of the database calls it once, at each new version.
        """
        self._database.set_up()

    def close(self) -> None:
        """Close every connection. A later call connects again."""
        self._notices.close()
        self._database.close()

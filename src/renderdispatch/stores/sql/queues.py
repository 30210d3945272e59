"""Which tables and triggers keep the queue's books?

- ``renderdispatch_queues``: the virtual time of each tenant on each backend, and whether it may have work there
  (``active``). ``hidden_until``: it was at a limit, and is passed over until then.
- ``renderdispatch_woken``: tenants that gained work while they were not active. The next claim makes them active. A
  write of a job only ever inserts here, so it waits for no other transaction, and no claim waits for it.
- ``renderdispatch_leftovers``: units of running attempts that ended attempts still hold.
- ``renderdispatch_counts``: how many jobs have ended, by tenant and status; on PostgreSQL in several shards, so that
  writers do not wait for each other.

Triggers on the table of jobs move them in the transaction of the job's write, whichever version of this library or
application makes it.

On PostgreSQL a write of a claimable job locks the tenant's active row, or its row among the woken ones, FOR KEY SHARE.
A claim that makes a tenant inactive, or deletes woken rows, needs a lock that conflicts with that one, and passes over
what it cannot lock. So no transaction can commit a job while another commits that there is none. (``active`` is part
of a unique key, so that changing it takes that lock, and changing ``time`` does not.) A transaction of the application
at a higher isolation level sees old rows, which it could not lock: it adds a row to the woken ones for each job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa

QUEUES: Final = sa.table(
    "renderdispatch_queues",
    *(sa.column(name, sa.Text) for name in ("backend", "tenant")),
    *(sa.column(name, sa.BigInteger) for name in ("active", "time", "claimed", "hidden_until")),
)
WOKEN: Final = sa.table("renderdispatch_woken", sa.column("backend", sa.Text), sa.column("tenant", sa.Text))

_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS renderdispatch_queues (
        backend TEXT NOT NULL,
        tenant TEXT NOT NULL,
        active BIGINT NOT NULL,
        time BIGINT NOT NULL,
        claimed BIGINT NOT NULL,
        hidden_until BIGINT,
        PRIMARY KEY (backend, tenant),
        UNIQUE (backend, tenant, active)
    )
    """,
    """
    CREATE INDEX IF NOT EXISTS renderdispatch_queues_turns ON renderdispatch_queues (backend, time, tenant)
    WHERE active = 1 AND hidden_until IS NULL
    """,
    """
    CREATE INDEX IF NOT EXISTS renderdispatch_queues_hidden ON renderdispatch_queues (backend, hidden_until)
    WHERE hidden_until IS NOT NULL
    """,
    "CREATE INDEX IF NOT EXISTS renderdispatch_queues_claimed ON renderdispatch_queues (backend, claimed)",
    "CREATE TABLE IF NOT EXISTS renderdispatch_woken (backend TEXT NOT NULL, tenant TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS renderdispatch_woken_tenants ON renderdispatch_woken (backend, tenant)",
    """
    CREATE TABLE IF NOT EXISTS renderdispatch_leftovers (
        job_id TEXT NOT NULL,
        backend TEXT NOT NULL,
        tenant TEXT NOT NULL,
        units BIGINT NOT NULL,
        until BIGINT NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS renderdispatch_leftovers_jobs ON renderdispatch_leftovers (job_id)",
    """
    CREATE INDEX IF NOT EXISTS renderdispatch_leftovers_backends
    ON renderdispatch_leftovers (backend, until, units)
    """,
    """
    CREATE INDEX IF NOT EXISTS renderdispatch_leftovers_tenants
    ON renderdispatch_leftovers (tenant, until, backend, units)
    """,
    """
    CREATE TABLE IF NOT EXISTS renderdispatch_counts (
        tenant TEXT NOT NULL,
        status TEXT NOT NULL,
        shard BIGINT NOT NULL,
        number BIGINT NOT NULL,
        PRIMARY KEY (tenant, status, shard)
    )
    """,
)

_FILLED: Final = (
    """
    INSERT INTO renderdispatch_woken (backend, tenant)
    SELECT DISTINCT backend, tenant FROM renderdispatch_jobs
    WHERE ready_at IS NOT NULL AND waits_since IS NULL AND tenant IS NOT NULL
    """,
    """
    INSERT INTO renderdispatch_counts (tenant, status, shard, number)
    SELECT coalesce(tenant, ''), status, 0, count(*) FROM renderdispatch_jobs
    WHERE status IN ('complete', 'failed', 'cancelled') GROUP BY coalesce(tenant, ''), status
    """,
)

_SQLITE: Final = (
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_work_new AFTER INSERT ON renderdispatch_jobs
    WHEN NEW.ready_at IS NOT NULL AND NEW.waits_since IS NULL AND NEW.tenant IS NOT NULL
    BEGIN
        INSERT INTO renderdispatch_woken (backend, tenant) SELECT NEW.backend, NEW.tenant
        WHERE NOT EXISTS (
            SELECT 1 FROM renderdispatch_queues WHERE backend = NEW.backend AND tenant = NEW.tenant AND active = 1
        ) AND NOT EXISTS (SELECT 1 FROM renderdispatch_woken WHERE backend = NEW.backend AND tenant = NEW.tenant);
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_work AFTER UPDATE ON renderdispatch_jobs
    WHEN NEW.ready_at IS NOT NULL AND NEW.waits_since IS NULL AND NEW.tenant IS NOT NULL
    BEGIN
        INSERT INTO renderdispatch_woken (backend, tenant) SELECT NEW.backend, NEW.tenant
        WHERE NOT EXISTS (
            SELECT 1 FROM renderdispatch_queues WHERE backend = NEW.backend AND tenant = NEW.tenant AND active = 1
        ) AND NOT EXISTS (SELECT 1 FROM renderdispatch_woken WHERE backend = NEW.backend AND tenant = NEW.tenant);
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_ended_new AFTER INSERT ON renderdispatch_jobs
    WHEN NEW.status IN ('complete', 'failed', 'cancelled')
    BEGIN
        INSERT INTO renderdispatch_counts (tenant, status, shard, number)
        VALUES (coalesce(NEW.tenant, ''), NEW.status, 0, 1)
        ON CONFLICT (tenant, status, shard) DO UPDATE SET number = number + 1;
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_ended AFTER UPDATE ON renderdispatch_jobs
    WHEN NEW.status IN ('complete', 'failed', 'cancelled')
        AND (OLD.status IS NOT NEW.status OR OLD.tenant IS NOT NEW.tenant)
    BEGIN
        INSERT INTO renderdispatch_counts (tenant, status, shard, number)
        VALUES (coalesce(NEW.tenant, ''), NEW.status, 0, 1)
        ON CONFLICT (tenant, status, shard) DO UPDATE SET number = number + 1;
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_undone AFTER UPDATE ON renderdispatch_jobs
    WHEN OLD.status IN ('complete', 'failed', 'cancelled')
        AND (OLD.status IS NOT NEW.status OR OLD.tenant IS NOT NEW.tenant)
    BEGIN
        UPDATE renderdispatch_counts SET number = number - 1
        WHERE tenant = coalesce(OLD.tenant, '') AND status = OLD.status AND shard = 0;
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_left_new AFTER INSERT ON renderdispatch_jobs
    WHEN NEW.leftovers IS NOT NULL
    BEGIN
        INSERT INTO renderdispatch_leftovers (job_id, backend, tenant, units, until)
        SELECT NEW.id, json_extract(value, '$[0]'), coalesce(NEW.tenant, ''), json_extract(value, '$[1]'),
            json_extract(value, '$[2]') FROM json_each(NEW.leftovers);
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS renderdispatch_jobs_left AFTER UPDATE ON renderdispatch_jobs
    WHEN OLD.leftovers IS NOT NEW.leftovers
    BEGIN
        DELETE FROM renderdispatch_leftovers WHERE job_id = NEW.id;
        INSERT INTO renderdispatch_leftovers (job_id, backend, tenant, units, until)
        SELECT NEW.id, json_extract(value, '$[0]'), coalesce(NEW.tenant, ''), json_extract(value, '$[1]'),
            json_extract(value, '$[2]') FROM json_each(coalesce(NEW.leftovers, '[]'));
    END
    """,
)

_POSTGRESQL: Final = (
    """
    CREATE OR REPLACE FUNCTION renderdispatch_work() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
            INSERT INTO renderdispatch_woken (backend, tenant) VALUES (NEW.backend, NEW.tenant);
            RETURN NULL;
        END IF;
        PERFORM 1 FROM renderdispatch_queues
        WHERE backend = NEW.backend AND tenant = NEW.tenant AND active = 1 FOR KEY SHARE SKIP LOCKED;
        IF FOUND THEN RETURN NULL; END IF;
        PERFORM 1 FROM renderdispatch_woken
        WHERE backend = NEW.backend AND tenant = NEW.tenant LIMIT 1 FOR KEY SHARE SKIP LOCKED;
        IF FOUND THEN RETURN NULL; END IF;
        INSERT INTO renderdispatch_woken (backend, tenant) VALUES (NEW.backend, NEW.tenant);
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION renderdispatch_ended() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO renderdispatch_counts AS counts (tenant, status, shard, number)
        VALUES (coalesce(NEW.tenant, ''), NEW.status, mod(pg_backend_pid(), 8), 1)
        ON CONFLICT (tenant, status, shard) DO UPDATE SET number = counts.number + 1;
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION renderdispatch_undone() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO renderdispatch_counts AS counts (tenant, status, shard, number)
        VALUES (coalesce(OLD.tenant, ''), OLD.status, mod(pg_backend_pid(), 8), -1)
        ON CONFLICT (tenant, status, shard) DO UPDATE SET number = counts.number - 1;
        RETURN NULL;
    END $$
    """,
    """
    CREATE OR REPLACE FUNCTION renderdispatch_left() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM renderdispatch_leftovers WHERE job_id = NEW.id;
        INSERT INTO renderdispatch_leftovers (job_id, backend, tenant, units, until)
        SELECT NEW.id, value->>0, coalesce(NEW.tenant, ''), CAST(value->>1 AS BIGINT), CAST(value->>2 AS BIGINT)
        FROM json_array_elements(CAST(coalesce(NEW.leftovers, '[]') AS json));
        RETURN NULL;
    END $$
    """,
    """
    DO $$ BEGIN
        IF EXISTS (
            SELECT FROM pg_trigger WHERE tgrelid = 'renderdispatch_jobs'::regclass AND tgname = 'renderdispatch_work'
        ) THEN RETURN; END IF;
        CREATE TRIGGER renderdispatch_work AFTER INSERT OR UPDATE ON renderdispatch_jobs FOR EACH ROW
        WHEN (NEW.ready_at IS NOT NULL AND NEW.waits_since IS NULL AND NEW.tenant IS NOT NULL)
        EXECUTE FUNCTION renderdispatch_work();
        CREATE TRIGGER renderdispatch_ended_new AFTER INSERT ON renderdispatch_jobs FOR EACH ROW
        WHEN (NEW.status IN ('complete', 'failed', 'cancelled'))
        EXECUTE FUNCTION renderdispatch_ended();
        CREATE TRIGGER renderdispatch_ended AFTER UPDATE ON renderdispatch_jobs FOR EACH ROW
        WHEN (NEW.status IN ('complete', 'failed', 'cancelled')
            AND (OLD.status IS DISTINCT FROM NEW.status OR OLD.tenant IS DISTINCT FROM NEW.tenant))
        EXECUTE FUNCTION renderdispatch_ended();
        CREATE TRIGGER renderdispatch_undone AFTER UPDATE ON renderdispatch_jobs FOR EACH ROW
        WHEN (OLD.status IN ('complete', 'failed', 'cancelled')
            AND (OLD.status IS DISTINCT FROM NEW.status OR OLD.tenant IS DISTINCT FROM NEW.tenant))
        EXECUTE FUNCTION renderdispatch_undone();
        CREATE TRIGGER renderdispatch_left_new AFTER INSERT ON renderdispatch_jobs FOR EACH ROW
        WHEN (NEW.leftovers IS NOT NULL)
        EXECUTE FUNCTION renderdispatch_left();
        CREATE TRIGGER renderdispatch_left AFTER UPDATE ON renderdispatch_jobs FOR EACH ROW
        WHEN (OLD.leftovers IS DISTINCT FROM NEW.leftovers)
        EXECUTE FUNCTION renderdispatch_left();
    END $$
    """,
)

SET_UP: Final[Mapping[str, Sequence[str]]] = {
    "sqlite": (*_TABLES, *_SQLITE),
    "postgresql": (*_TABLES, *_POSTGRESQL),
}
"""By dialect: what makes the tables and triggers, once the table of jobs and its columns exist. Safe to repeat."""

FILL: Final = _FILLED
"""What fills them from the jobs that exist. To be run once, in the transaction that makes the triggers."""

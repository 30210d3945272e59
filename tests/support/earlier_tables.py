"""The tables of a job store as version 1 made them, before there was a row that says the version."""

from __future__ import annotations

from typing import Final

from renderdispatch.engine.records import dump_job
from renderdispatch.jobs import Job
from renderdispatch.stores.pages import micros

_LIVE: Final = "created_at IS NOT NULL"
_CLAIMABLE: Final = "ready_at IS NOT NULL AND waits_since IS NULL"
_TABLE: Final = """
    CREATE TABLE renderdispatch_jobs (
        id TEXT NOT NULL, revision BIGINT NOT NULL, protocol BIGINT, document TEXT, tenant TEXT, status TEXT,
        backend TEXT, machine TEXT, priority BIGINT, created_at BIGINT, ready_at BIGINT, was_ready_at BIGINT,
        due_at BIGINT, deleted_at BIGINT, waits_since BIGINT, PRIMARY KEY (id)
    )
"""
_INDEXES: Final = {
    "ready": "(priority DESC, ready_at, id) WHERE ready_at IS NOT NULL",
    "claimable": f"(backend, coalesce(machine, ''), priority DESC, ready_at, id) WHERE {_CLAIMABLE}",
    "waiting": "(ready_at, waits_since) WHERE ready_at IS NOT NULL AND waits_since IS NOT NULL",
    "due": "(due_at, id) WHERE due_at IS NOT NULL",
    "newest": f"(created_at DESC, id, status) WHERE {_LIVE}",
    "tenant": f"(tenant, created_at DESC, id, status) WHERE {_LIVE}",
    "deleted": "(deleted_at) WHERE deleted_at IS NOT NULL",
}


def statements() -> list[str]:
    """Return what makes the table and its indexes, on either database."""
    return [
        _TABLE,
        *(f"CREATE INDEX renderdispatch_jobs_{name} ON renderdispatch_jobs {on}" for name, on in _INDEXES.items()),
    ]


def row(job: Job) -> dict[str, object]:
    """Return the columns of a job, by name."""
    times = {name: getattr(job, name) for name in ("created_at", "ready_at", "due_at")}
    return {
        "id": job.id,
        "revision": job.revision,
        "protocol": job.protocol,
        "document": dump_job(job),
        "tenant": job.tenant,
        "status": job.status.value,
        "backend": job.request.backend,
        "machine": job.machine,
        "priority": job.priority,
        **{name: None if time is None else micros(time) for name, time in times.items()},
    }


def tombstone(job_id: str, *, revision: int, deleted_at: int) -> dict[str, object]:
    """Return the columns of a deleted job."""
    return {"id": job_id, "revision": revision, "deleted_at": deleted_at}

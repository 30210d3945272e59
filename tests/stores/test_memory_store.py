"""Does `MemoryJobStore` keep the promises of a job store?"""

from __future__ import annotations

import pytest
from attrs import evolve

from renderdispatch.engine.records import dump_job, load_job
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import JobStoreContract


class TestMemoryJobStore(JobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryJobStore:
        return MemoryJobStore()

    def raw_get(self, store: MemoryJobStore, job_id: str) -> str | None:
        job = store._jobs.get(job_id)
        return None if job is None else dump_job(job)

    def raw_set(self, store: MemoryJobStore, job_id: str, document: str) -> None:
        store._jobs[job_id] = evolve(load_job(document), revision=store._jobs[job_id].revision)

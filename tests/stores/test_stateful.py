"""Do the stores behave like a dictionary, whatever is asked of them in whatever order?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import sqlalchemy as sa
from hypothesis.stateful import run_state_machine_as_test

from renderdispatch.protocols import JobStore
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing.stateful import JobStoreMachine
from tests.support.lengths import examples


class MemoryJobStoreMachine(JobStoreMachine):
    def make_store(self) -> JobStore:
        return MemoryJobStore()


class SqlJobStoreMachine(JobStoreMachine):
    def make_store(self) -> JobStore:
        self._folder = tempfile.TemporaryDirectory()
        return SqlJobStore(f"sqlite:///{Path(self._folder.name) / 'jobs.db'}")

    def teardown(self) -> None:
        super().teardown()
        self._folder.cleanup()


TestMemoryJobStoreMachine = MemoryJobStoreMachine.TestCase
TestMemoryJobStoreMachine.settings = examples(40)
TestSqlJobStoreMachine = SqlJobStoreMachine.TestCase
TestSqlJobStoreMachine.settings = examples(40)


_TABLES = [f"renderdispatch_{name}" for name in ("jobs", "queues", "woken", "leftovers", "counts", "submits")]


def test_postgresql_behaves_like_the_model(postgres_url: str) -> None:
    """The store on PostgreSQL does what the model does; each example begins with empty tables."""

    class PostgresqlMachine(JobStoreMachine):
        def make_store(self) -> JobStore:
            store = SqlJobStore(postgres_url)
            store._database.execute(sa.text(f"TRUNCATE {', '.join(_TABLES)}"))
            return store

    run_state_machine_as_test(PostgresqlMachine, settings=examples(20))

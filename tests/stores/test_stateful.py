"""Do the stores behave like a dictionary, whatever is asked of them in whatever order?"""

from __future__ import annotations

import tempfile
from pathlib import Path

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

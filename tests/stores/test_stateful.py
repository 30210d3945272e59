"""Do the stores behave like a dictionary, whatever is asked of them in whatever order?"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

from renderdispatch.protocols import JobStore
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing.stateful import JobStoreMachine


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


_quick = settings(max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))

TestMemoryJobStoreMachine = MemoryJobStoreMachine.TestCase
TestMemoryJobStoreMachine.settings = _quick
TestSqlJobStoreMachine = SqlJobStoreMachine.TestCase
TestSqlJobStoreMachine.settings = _quick

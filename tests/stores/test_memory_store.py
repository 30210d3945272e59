"""Does `MemoryJobStore` keep the promises of a job store?"""

from __future__ import annotations

import pytest

from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import JobStoreContract


class TestMemoryJobStore(JobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryJobStore:
        return MemoryJobStore()

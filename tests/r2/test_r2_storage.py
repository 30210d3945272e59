"""Does `R2Storage` keep the promises of a storage, on Cloudflare's own local R2?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing import StorageContract
from renderdispatch.testing.local_r2 import LocalR2


class TestR2Storage(StorageContract):
    @pytest.fixture
    def storage(self, storage: R2Storage) -> R2Storage:
        return storage

    @pytest.fixture
    def second(self, r2: LocalR2) -> Iterator[R2Storage]:
        storage = r2.storage()
        yield storage
        storage.close()

"""Do URLs of `R2Storage` get the statuses that those of the other storages get?"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import httpx
import pytest

from renderdispatch.protocols import StorageAdapter
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing import in_threads
from renderdispatch.testing.contracts.urls import SignedUrlContract
from renderdispatch.testing.local_r2 import LocalR2

_HOUR: Final = timedelta(hours=1)


class TestR2Urls(SignedUrlContract):
    without_length = 500  # miniflare's; R2 documents 411, MissingContentLength

    @pytest.fixture
    def storage(self, r2: LocalR2) -> Iterator[R2Storage]:
        storage = r2.storage()
        yield storage
        storage.close()

    def test_an_upload_of_unknown_length(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """Refused, and nothing is written; R2 answers 411, its local one 500."""
        put = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4")
        assert client.put(put.url, headers=put.headers, content=iter([b"x"])).status_code in {411, 500}
        assert list(storage.list("")) == []

    def test_refusals_side_by_side(self, client: httpx.Client, storage: StorageAdapter) -> None:
        """Each refused upload is answered, whatever became of the connections of those before it."""
        url = storage.sign_put("new", expires_in=_HOUR, content_type="video/mp4").url

        def refused(_: int) -> set[int]:
            return {client.put(url, content=b"x").status_code for _ in range(50)}

        assert set.union(*in_threads(3, refused)) == {403}

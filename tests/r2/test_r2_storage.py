"""Does `R2Storage` keep the promises of a storage, on Cloudflare's own local R2?"""

from __future__ import annotations

from collections.abc import Iterator

import botocore.session
import pytest
from botocore.config import Config

from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing import StorageContract
from renderdispatch.testing.local_r2 import LocalR2


class TestR2Storage(StorageContract):
    @pytest.fixture
    def storage(self, storage: R2Storage) -> R2Storage:
        return storage

    @pytest.fixture(autouse=True)
    def _client(self, r2: LocalR2) -> Iterator[None]:
        self.bucket = r2.buckets[0]
        self.client = botocore.session.get_session().create_client(
            "s3",
            region_name="auto",
            endpoint_url=r2.endpoint_url,
            aws_access_key_id=r2.access_key_id,
            aws_secret_access_key=r2.secret_access_key,
            config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
        )
        yield
        self.client.close()

    def raw_get(self, storage: R2Storage, key: str) -> bytes | None:
        try:
            return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.client.exceptions.NoSuchKey:
            return None

    def raw_set(self, storage: R2Storage, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    @pytest.fixture
    def second(self, r2: LocalR2) -> Iterator[R2Storage]:
        storage = r2.storage()
        yield storage
        storage.close()

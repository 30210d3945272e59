"""Cloudflare's own local R2, one for the session of each test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.errors import ConfigurationError
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing.local_r2 import LocalR2, local_r2

_CACHE = Path(__file__).parents[2] / ".cache" / "miniflare"


@pytest.fixture(scope="session")
def r2_server() -> Iterator[LocalR2]:
    """A local R2 with two buckets; skips where there is no Node, and fails there in CI."""
    try:
        running = local_r2(buckets=("renders", "other"), cache=_CACHE)
        with running as server:
            yield server
    except ConfigurationError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def everything(r2_server: LocalR2) -> Iterator[list[R2Storage]]:
    """A storage over each bucket, to empty them."""
    storages = [r2_server.storage(bucket) for bucket in r2_server.buckets]
    yield storages
    for storage in storages:
        storage.close()


@pytest.fixture
def r2(r2_server: LocalR2, everything: list[R2Storage]) -> Iterator[LocalR2]:
    """The local R2, unthrottled and without faults, its buckets empty."""
    r2_server.forget()
    yield r2_server
    r2_server.forget()
    for storage in everything:
        for info in storage.list(""):
            storage.delete(info.key)


@pytest.fixture
def storage(r2: LocalR2) -> Iterator[R2Storage]:
    """An R2 storage over the first bucket."""
    storage = r2.storage()
    yield storage
    storage.close()
